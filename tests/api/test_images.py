"""Images through the public API: registered, restored from, cloned, removed; at two nodes over TCP; what is refused and why."""

from __future__ import annotations

import hashlib
import os
import threading

import pytest

import pyrepl
from pyrepl._core.device import FileDevice
from pyrepl.errors import Exists, InUse, NotFound, Refused, UsageError, WaitTimeout

MIB = 1 << 20
REGION = 64 * 1024
SIZE = 2 * MIB
WAIT = 60.0


@pytest.fixture
def data(group):
    volume = group.add_volume("data", size=SIZE)
    volume.write(0, b"a" * SIZE)
    return volume


@pytest.fixture
def content():
    return os.urandom(SIZE)


@pytest.fixture
def path(tmp_path, content):
    file = tmp_path / "golden.img"
    file.write_bytes(content)
    return file


@pytest.fixture
def golden(group, path):
    return group.add_image("golden", path)


def test_restore_synchronize_and_clone(group, data, path, content):
    told: list[dict] = []
    golden = group.add_image("golden", path, progress=told.append)
    assert told[-1] == {"bytes_done": SIZE, "bytes_total": SIZE}
    assert (golden.name, golden.kind, golden.size, golden.state) == ("golden", "image", SIZE, "ready")
    assert golden.digest == hashlib.sha256(content).hexdigest() and golden.device == str(path)
    assert group.images == [golden] and group.image("golden") == golden and golden not in group.volumes
    result = data.restore(golden, extent=pyrepl.Extent(REGION, 2 * REGION))
    assert (result.kind, result.bytes_changed) == ("restore", 2 * REGION)
    assert data.read(0, SIZE) == b"a" * REGION + content[REGION:3 * REGION] + b"a" * (SIZE - 3 * REGION)
    data.write(REGION + 100, b"over")  # the rest of the region comes from the image
    assert data.read(REGION, REGION) == content[REGION:][:100] + b"over" + content[REGION + 104:2 * REGION]
    snapshot = data.snapshot("before")
    data.restore("golden")
    assert data.read(0, SIZE) == content and snapshot.read(REGION + 100, 4) == b"over"
    snapshot.synchronize(golden)
    assert snapshot.read(0, SIZE) == content
    clone = golden.clone("twin")
    assert clone.read(0, SIZE) == content and clone.kind == "volume"
    data.write(0, b"b" * SIZE)
    group.copy_range("golden", REGION, data, REGION, REGION)
    assert data.read(0, 2 * REGION) == b"b" * REGION + content[REGION:2 * REGION]
    assert path.read_bytes() == content, "an image is never written"


def test_in_a_set(group, data, golden, content):
    with group.unordered() as ops:
        ops.restore(data, golden)
        ops.clone("golden", "twin")
    assert data.read(0, SIZE) == content == group.volume("twin").read(0, SIZE)
    assert [member.kind for member in ops.result.members] == ["restore", "clone"]
    with pytest.raises(UsageError, match=r"restore.*'data'.*synchronize"), group.unordered() as ops:
        ops.restore(data, golden)
        ops.synchronize("data", "golden")


def test_what_is_removed_is_handed_over_first(group, data, golden, path, content):
    snapshots = [data.snapshot("s0")]
    snapshots[0].synchronize(golden)  # a snapshot rests: it shows the image's device until that goes
    data.restore(golden)
    golden.remove(timeout=WAIT)
    assert golden.state == "gone" and group.images == []
    path.write_bytes(b"!" * SIZE)
    assert snapshots[0].read(0, SIZE) == content == data.read(0, SIZE)
    with pytest.raises(NotFound, match="was removed"):
        golden.remove()
    with pytest.raises(NotFound, match="no image 'golden'"):
        data.restore(golden)
    with pytest.raises(NotFound, match="no store 'golden'"):
        data.restore("golden")
    again = group.add_image("golden", path)
    with pytest.raises(Refused, match="means .* bytes with") as caught:
        data.restore(golden)  # the one that is gone is not the one that has its name now
    assert caught.value.reason == "image"
    data.restore(again)
    assert data.read(0, SIZE) == b"!" * SIZE


def test_a_removal_that_takes_long_goes_on(group, data, golden, monkeypatch):
    stop = threading.Event()
    data.snapshot("s").synchronize(golden)
    move = group.site.applier.move
    monkeypatch.setattr(group.site.applier, "move", lambda: move() if stop.is_set() else False)
    with pytest.raises(WaitTimeout, match="it goes on"):
        golden.remove(timeout=0.1)
    assert golden.state == "leaving" and group.images == [golden]
    with pytest.raises(Refused, match="being removed"):
        data.restore(golden)
    with pytest.raises(Exists, match="has an image 'golden'"):
        group.add_image("golden", golden.device)
    stop.set()
    golden.remove(timeout=WAIT)
    assert group.images == []


def test_over_a_restart(nodes, tmp_path, path, content):
    node = nodes("one")
    group = node.create_group("db", tmp_path / "journal", journal_size=16 * MIB)
    data = group.add_volume("data", size=SIZE)
    data.snapshot("s").synchronize(group.add_image("golden", path))
    node.close()
    group = nodes("one").group("db")
    assert group.image("golden").state == "ready" and group.store("s").read(0, SIZE) == content
    group.volume("data").restore("golden")
    assert group.volume("data").read(0, SIZE) == content


def test_a_file_that_was_changed_is_not_used(group, data, golden, path, content):
    with open(path, "r+b") as file:
        file.write(b"changed")
    assert golden.state == "changed"
    with pytest.raises(Refused, match="changed since it was registered: remove it and add it again") as caught:
        data.restore(golden)
    assert caught.value.reason == "image" and data.read(0, SIZE) == b"a" * SIZE
    path.unlink()
    assert golden.state == "missing"
    with pytest.raises(Refused, match="cannot be opened any more"):
        data.restore(golden)
    assert group.operation_counts()["restore", "refused"] == 2
    golden.remove(timeout=WAIT)


def test_a_file_that_is_changed_while_it_is_read_is_refused(group, path):
    def change(told: dict) -> None:
        with open(path, "r+b") as file:
            file.write(b"changed")

    with pytest.raises(Refused, match="was changed while its digest was made") as caught:
        group.add_image("golden", path, progress=change)
    assert caught.value.reason == "changed" and caught.value.retryable and group.images == []


def test_who_asks_for_progress_may_end_it(group, path):
    def stop(told: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        group.add_image("golden", path, progress=stop)
    assert group.images == []
    group.add_image("golden", path)


def test_what_cannot_be_an_image(group, data, golden, tmp_path, path, content):
    short = tmp_path / "short.img"
    short.write_bytes(bytes(REGION + 5))
    for error, told, name, file in (
        (UsageError, f"truncate -s {2 * REGION}", "short", short),
        (NotFound, "no device or file", "nothing", tmp_path / "nothing"),
        (UsageError, "neither a block device nor", "folder", tmp_path),
        (Exists, "has an image 'golden'", "golden", path),
        (Exists, "a store of group 'g?\\w*' is named 'data'", "data", path),
        (UsageError, "cannot be a name", "a/b", path),
        (UsageError, "is not a path", "x", 7),
        (UsageError, "files of its stores", "own", data.device),
        (InUse, "in use by a store or journal", "journal", group.status()["journal"]["path"]),
    ):
        with pytest.raises(error, match=told):
            group.add_image(name, file)
    with pytest.raises(Exists, match="has an image 'golden'"):
        data.snapshot("golden")
    with pytest.raises(OSError, match="in use"):
        FileDevice(golden.device)  # no store can be put on it
    small = group.add_volume("small", size=REGION)
    with pytest.raises(UsageError, match="resize the target first"):
        small.restore(golden)
    with pytest.raises(UsageError, match="multiples of the group's region size"):
        data.restore(golden, extent=(1, 2))
    with pytest.raises(UsageError, match="ends outside"):
        group.copy_range(golden, SIZE, small, SIZE, REGION)
    with pytest.raises(UsageError, match="is not a store"):
        group.copy_range(data, 0, golden, 0, REGION)
    with pytest.raises(UsageError, match="timeout"):
        golden.remove(timeout=-1)
    assert group.images == [golden] and path.read_bytes() == content


def test_as_many_as_there_may_be(group, path):
    made = [group.add_image(f"i{n}", path) for n in range(16)]  # one file: it is shared by all who read
    with pytest.raises(Refused, match="which is the most") as caught:
        group.add_image("more", path)
    assert caught.value.reason == "limit"
    made[3].remove(timeout=WAIT)
    group.add_image("more", path)
    assert len(group.images) == 16


def test_an_image_of_another_group(nodes, group, data, tmp_path, path):
    other = nodes("other").create_group("other", tmp_path / "other-journal", journal_size=16 * MIB)
    golden = other.add_image("golden", path)
    with pytest.raises(UsageError, match=f"add it to group '{group.name}' too"):
        data.restore(golden)


def test_a_block_device(group, data, loop_device, content):
    device = loop_device(SIZE)
    with open(device, "r+b") as file:
        file.write(content)
    golden = group.add_image("golden", device)
    data.restore(golden)
    assert data.read(0, SIZE) == content and golden.state == "ready"
    golden.remove(timeout=WAIT)
    assert data.read(0, SIZE) == content


# ---- at two sites


@pytest.fixture
def two(nodes, tmp_path):
    """(group, volume, the other site's group) of a pair whose link is synchronized."""
    there = nodes("there")
    far = there.create_group("db", tmp_path / "far-journal", journal_size=16 * MIB, role="secondary")
    far.add_volume("data", size=SIZE)
    host, port = there.listen("127.0.0.1", 0)
    group = nodes("here").create_group("db", tmp_path / "near-journal", journal_size=16 * MIB)
    data = group.add_volume("data", size=SIZE)
    data.write(0, os.urandom(SIZE))
    group.add_link("paris", f"{host}:{port}").wait_synced(WAIT)
    return group, data, far


def test_each_site_reads_its_own_copy(two, tmp_path, content):
    group, data, far = two
    for one, name in ((group, "near.img"), (far, "far.img")):
        (tmp_path / name).write_bytes(content)
        one.add_image("golden", tmp_path / name)
    before = group.link("paris").status()["bytes_sent"]
    data.restore("golden").wait("paris", WAIT)
    group.image("golden").clone("twin").wait("paris", WAIT)
    assert far.volume("data").read(0, SIZE) == far.volume("twin").read(0, SIZE) == content == data.read(0, SIZE)
    status = group.link("paris").status()
    assert status["bytes_sent"]["copied"] == before["copied"] and status["bytes_sent"]["events"] == before["events"]
    assert status["bytes_sent"]["operations"] - before["operations"] <= 2048 and status["consistent"]
    far.image("golden").remove(timeout=WAIT)
    group.image("golden").remove(timeout=WAIT)
    assert far.volume("data").read(0, SIZE) == content == data.read(0, SIZE)


def test_a_restore_from_an_image_that_both_have_makes_unequal_regions_equal(two, tmp_path, content):
    """What differs before the command need not be sent after it."""
    group, data, far = two
    for one, name in ((group, "near.img"), (far, "far.img")):
        (tmp_path / name).write_bytes(content)
        one.add_image("golden", tmp_path / name)
    link = group.link("paris")
    link.pause()
    for _ in range(12):  # more than the journal holds: it is folded
        data.write(0, os.urandom(SIZE))
    group.flush()
    group.site.checkpoint()
    data.restore("golden")
    before = link.status()["bytes_sent"]["copied"]
    link.resume()
    link.wait_synced(WAIT)
    assert far.volume("data").read(0, SIZE) == content
    assert link.status()["bytes_sent"]["copied"] - before < SIZE // 4


def test_a_secondary_without_the_image_gets_the_data_at_the_same_point(two, tmp_path, content):
    group, data, far = two
    (tmp_path / "near.img").write_bytes(content)
    golden = group.add_image("golden", tmp_path / "near.img")
    link = group.link("paris")
    before, connections = link.status()["bytes_sent"]["copied"], link.status()["connections"]
    result = data.restore(golden, extent=(4 * REGION, 8 * REGION))
    data.write(5 * REGION, b"after")
    status = link.wait_synced(WAIT)
    assert status["connections"] == connections, "it is no reason to end the connection"
    assert status["refused"] == [{"lsn": result.lsn, "reason": "it has no image of that name"}]
    assert 8 * REGION <= status["bytes_sent"]["copied"] - before <= 8 * REGION + MIB // 8
    assert far.volume("data").read(0, SIZE) == data.read(0, SIZE)
    (told,) = [one for one in far.operations() if one["lsn"] == result.lsn]
    assert told["refused"] == "it has no image of that name" and told["bytes_changed"] == 0
    assert group.operations()[-1]["refused"] is None
    assert result.bytes_changed == 8 * REGION and result.bytes_avoided == 0, "the data came instead"
    (tmp_path / "far.img").write_bytes(content[::-1])
    far.add_image("golden", tmp_path / "far.img")
    clone = golden.clone("twin")
    status = link.wait_synced(WAIT)
    assert status["refused"][-1] == {"lsn": clone.lsn, "reason": "its image of that name is another"}
    assert far.volume("twin").read(0, SIZE) == content


def test_one_link_falls_back_and_the_other_keeps_the_command(nodes, tmp_path, two, content):
    group, data, far = two
    rome = nodes("rome")
    third = rome.create_group("db", tmp_path / "rome-journal", journal_size=16 * MIB, role="secondary")
    third.add_volume("data", size=SIZE)
    host, port = rome.listen("127.0.0.1", 0)
    group.add_link("rome", f"{host}:{port}").wait_synced(WAIT)
    for one, name in ((group, "near.img"), (third, "third.img")):
        (tmp_path / name).write_bytes(content)
        one.add_image("golden", tmp_path / name)
    before = {link.name: link.status()["bytes_sent"]["copied"] for link in group.links}
    data.restore("golden")
    after = {link.name: link.wait_synced(WAIT) for link in group.links}
    assert after["rome"]["refused"] == [] and after["rome"]["bytes_sent"]["copied"] == before["rome"]
    assert len(after["paris"]["refused"]) == 1 and after["paris"]["bytes_sent"]["copied"] >= before["paris"] + SIZE
    told = group.operations()[-1]
    assert told["bytes_avoided"] == told["bytes_changed"] == SIZE, "at rome; at paris the data came instead"
    assert far.volume("data").read(0, SIZE) == third.volume("data").read(0, SIZE) == content


def test_what_a_secondary_refused_is_no_difference_that_a_verification_finds(two, tmp_path, content):
    """When the verification is sent nobody knows yet that the operation before it, or its own, will be refused."""
    group, data, far = two
    (tmp_path / "near.img").write_bytes(content)
    golden, link = group.add_image("golden", tmp_path / "near.img"), group.link("paris")
    link.set(bandwidth=2 * MIB)  # what stands before the operation keeps the link busy
    data.write(0, os.urandom(SIZE))
    data.restore(golden, wait=False)
    result = group.verify(repair=False, timeout=WAIT)["links"]["paris"]
    assert result["state"] == "equal" and result["regions_known_to_differ"] == SIZE // REGION, result
    link.set(bandwidth=0)
    assert link.wait_synced(WAIT)["found_different"] is None
    data.write(0, os.urandom(SIZE))
    before = link.wait_synced(WAIT)["bytes_sent"]["copied"]
    done = data.restore(golden, verify=True)
    status = link.wait_synced(WAIT)
    assert done.wait_verified(WAIT)["links"]["paris"]["state"] == "equal"
    assert SIZE <= status["bytes_sent"]["copied"] - before <= SIZE + MIB // 8, "once"
    assert far.volume("data").read(0, SIZE) == content


def test_what_a_secondary_refused_is_not_avoided_there(two, tmp_path, content):
    """However often it is heard, and whenever: before it is performed here, after it, and anew with each connection."""
    group, data, far = two
    (tmp_path / "near.img").write_bytes(content)
    group.add_image("golden", tmp_path / "near.img")
    link, begun = group.link("paris"), group.status()["bytes_avoided"]
    link.pause()
    snapshot = data.snapshot("s").result
    data.write(0, os.urandom(REGION))
    with group.unordered() as ops:
        ops.restore("data", "golden", extent=(4 * REGION, 8 * REGION))
        ops.clone("s", "twin")
    both = ops.result.wait()
    assert both.bytes_avoided == both.bytes_changed == 8 * REGION + SIZE, "nobody has refused it yet"
    assert group.status()["bytes_avoided"] - begun == snapshot.bytes_avoided + both.bytes_avoided
    for _ in range(2):
        link.resume()
        link.wait_synced(WAIT)
        link.pause()
        told = group.operations()[-1]
        assert told["lsn"] == both.lsn and told["secondaries"] == {"paris": "refused"}
        assert both.bytes_avoided == told["bytes_avoided"] == SIZE, "the clone was made there, the image was sent"
        assert group.status()["bytes_avoided"] - begun == snapshot.bytes_avoided + SIZE
    for _ in range(20):  # more than the link remembers by name
        data.restore("golden", extent=(0, REGION))
    link.resume()
    link.wait_synced(WAIT)
    for told in group.operations()[-20:]:
        assert told["secondaries"] == {"paris": "refused"} and told["bytes_avoided"] == 0
    assert group.status()["bytes_avoided"] - begun == snapshot.bytes_avoided + SIZE


def test_what_a_secondary_refused_is_listed_after_a_restart(two, tmp_path, content):
    """More of them than the link remembers with reasons, connected or not."""
    group, data, _ = two
    (tmp_path / "near.img").write_bytes(content)
    group.add_image("golden", tmp_path / "near.img")
    before = data.snapshot("s").result.lsn
    refused = [data.restore("golden", extent=(0, REGION)).lsn for _ in range(20)]
    group.link("paris").wait_synced(WAIT)
    reasons = group.link("paris").status()["refused"]
    group.link("paris").pause()
    assert len(reasons) == 16 and reasons[-1]["lsn"] == refused[-1]
    wanted = {lsn: {"paris": "refused"} for lsn in refused}
    node = pyrepl.Node.open(tmp_path / "again", create=True)
    group.close()
    try:
        again = node.import_group(tmp_path / "near-journal", force=True)
        assert again.operations() == [] and again.link("paris").status()["refused"] == reasons
        listed = {one["lsn"]: one["secondaries"] for one in again.operations(earlier=True)}
        assert {lsn: listed[lsn] for lsn in refused} == wanted and listed[before] == {"paris": "pending"}, "it is not asked"
        again.link("paris").resume()
        again.link("paris").wait_synced(WAIT)
        listed = {one["lsn"]: one["secondaries"] for one in again.operations(earlier=True)}
        assert {lsn: listed[lsn] for lsn in refused} == wanted and listed[before] == {"paris": "performed"}
    finally:
        node.close()
