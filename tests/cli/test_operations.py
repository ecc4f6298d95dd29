"""Every verb that changes something: what it does, what it says, and what it asks for before something is lost."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess

import pytest

from pyrepl import errors
from pyrepl.cli import output
from tests.support.clients import until

MIB = 1 << 20


def content(daemon, store, *options):
    """What a store holds, as pyrepl reads it."""
    done = daemon("volume", "read", store, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.encode(errors="surrogateescape")


def names(daemon, group, kind):
    told = daemon.json(output.StoreList, kind, "list", group)
    return {store.name for store in told.stores}


# ---- groups


def test_group_create_list_show(berlin):
    text = berlin.ok("group", "create", "made", "--journal", f"{berlin.folder}/made.journal", "--journal-size", "16M",
                     "--alignment", "512", "--region-size", "128K")
    assert text.startswith("made  primary  no links (journal ")
    shown = berlin.json(output.GroupShow, "group", "show", "made").group
    assert (shown.role, shown.state, shown.alignment, shown.region_size) == ("primary", "active", 512, 128 << 10)
    assert shown.journal.path == f"{berlin.folder}/made.journal" and shown.stores == [] and shown.links == []
    assert "made" in {one.name for one in berlin.json(output.GroupList, "group", "list").groups}
    line = next(line for line in berlin.ok("group", "list").splitlines() if line.startswith("made "))
    assert line.split()[:3] == ["made", "primary", "active"]


def test_a_relative_journal_is_made_where_the_command_runs(berlin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    berlin.ok("group", "create", "relative", "--journal", "here.journal", "--journal-size", "16M")
    assert (tmp_path / "here.journal").stat().st_size == 16 * MIB
    assert berlin.json(output.GroupShow, "group", "show", "relative").group.journal.path == str(tmp_path / "here.journal")


def test_group_create_keeps_the_journal_of_another(berlin, tmp_path):
    journal = tmp_path / "journal"
    berlin.ok("group", "create", "old", "--journal", str(journal), "--journal-size", "16M")
    told = berlin.fails(6, "group", "create", "new", "--journal", str(journal))
    assert "in use" in told or "process" in told
    copy = tmp_path / "copy"
    copy.write_bytes(journal.read_bytes())
    before = copy.read_bytes()
    told = berlin.fails(2, "group", "create", "new", "--journal", str(copy))
    assert "journal of a group 'old'" in told and copy.read_bytes() == before
    berlin.ok("group", "create", "new", "--journal", str(copy), "--force")
    assert copy.read_bytes() != before


HELD = {  # what makes it, what it is called
    "ext": (["mkfs.ext4", "-q"], "an ext file system"),
    "swap": (["mkswap"], "swap space"),
    "partitions": ("part-msdos", "a partition table (MBR)"),
    "at-the-end": ("last-sector", "data"),
    "data": ("second-block", "data"),
}


def hold(made, path, size):
    """Puts something on a device or file."""
    if isinstance(made, list):
        subprocess.run([*made, path], check=True, capture_output=True)
        return
    with open(path, "r+b") as file:
        file.seek({"part-msdos": 510, "last-sector": size - 512, "second-block": 4096}[made])
        file.write(b"\x55\xaa")


@pytest.mark.parametrize("case", HELD)
@pytest.mark.parametrize("kind", ["file", pytest.param("loop", marks=pytest.mark.device)])
def test_a_journal_is_not_made_over_what_a_device_holds(berlin, tmp_path, loop_device, kind, case):
    made, called = HELD[case]
    if isinstance(made, list) and shutil.which(made[0]) is None:
        pytest.skip(f"{made[0]} is not installed")
    path = str(tmp_path / "disk")
    with open(path, "wb") as file:
        file.truncate(16 * MIB)
    if kind == "loop":
        path = loop_device(16 * MIB)
    hold(made, path, 16 * MIB)
    with open(path, "rb") as file:
        before = file.read()
    told = berlin.fails(2, "group", "create", "over", "--journal", path)
    assert f"{path} holds {called}, which would be overwritten" in told and "with force" in told
    with open(path, "rb") as file:
        assert file.read() == before, "nothing is touched"
    berlin.ok("group", "create", "over", "--journal", path, "--force")
    berlin.ok("group", "delete", "over", "--force")
    berlin.ok("group", "create", "over", "--journal", path)  # what a deleted group leaves is nothing that could be lost
    berlin.ok("group", "delete", "over", "--force")


@pytest.mark.device
def test_a_journal_is_made_on_nothing_that_is_in_use_whatever_is_forced(berlin, loop_device):
    device = loop_device(16 * MIB)
    held = os.open(device, os.O_RDWR | os.O_EXCL)
    try:
        for force in ([], ["--force"]):
            assert "in use" in berlin.fails(6, "group", "create", "held", "--journal", device, *force)
    finally:
        os.close(held)


def test_a_volumes_device_is_not_overwritten_by_mistake(berlin, paris, group, tmp_path):
    def disk(name):
        (tmp_path / name).write_bytes(b"precious" * (2 * MIB // 8))
        return str(tmp_path / name)

    kept = disk("kept")
    berlin.ok("volume", "add", f"{group}/kept", "--device", kept)  # its content is the volume's
    assert berlin("volume", "read", f"{group}/kept", "--length", "8").stdout == "precious"
    berlin.ok("snapshot", "create", f"{group}/kept", "monday")
    golden = tmp_path / "golden"
    golden.write_bytes(b"golden" + bytes(2 * MIB - 6))
    berlin.ok("image", "add", f"{group}/golden", str(golden))
    paris.ok("group", "create", "fresh", "--journal", f"{tmp_path}/fresh.journal", "--journal-size", "16M", "--role", "secondary")
    for number, (site, verb) in enumerate([
        (berlin, ["volume", "add", f"{group}/new", "--zero"]),
        (berlin, ["snapshot", "clone", f"{group}/monday", "cloned"]),
        (berlin, ["image", "clone", f"{group}/golden", "imaged"]),
        (paris, ["volume", "add", "fresh/data"]),
    ]):
        device = disk(f"disk-{number}")
        told = site.fails(2, *verb, "--device", device)
        assert f"{device} holds data, which would be overwritten" in told
        assert (tmp_path / f"disk-{number}").read_bytes()[:8] == b"precious"
        told = site.ok(*verb, "--device", device, "--force")
    assert f"whose content then overwrites what {device} holds" in told
    paris.ok("volume", "add", "fresh/logs", "--size", "1M")
    berlin.ok("group", "create", "alone", "--journal", f"{tmp_path}/alone.journal", "--journal-size", "16M")
    empty = tmp_path / "empty"
    empty.write_bytes(bytes(2 * MIB))
    berlin.ok("volume", "add", "alone/new", "--zero", "--device", str(empty))


# ---- volumes


def test_volume_add_and_list(berlin, tmp_path):
    group = berlin.new_group(volume=False)
    image = tmp_path / "image"
    image.write_bytes(b"here before" + bytes(2 * MIB - 11))
    assert "added: performed at LSN 1" in berlin.ok("volume", "add", f"{group}/device", "--device", str(image))
    berlin.ok("volume", "add", f"{group}/sparse", "--size", "1M")
    berlin.ok("volume", "add", f"{group}/zero", "--size", "64K", "--zero", "--no-wait")
    listed = {store.name: store for store in berlin.json(output.StoreList, "volume", "list", group).stores}
    assert {name: store.size for name, store in listed.items()} == {"device": 2 * MIB, "sparse": MIB, "zero": 64 << 10}
    assert listed["device"].path == str(image)
    assert content(berlin, f"{group}/device", "--length", "11") == b"here before"
    assert berlin.json(output.StoreList, "snapshot", "list", group).stores == []
    assert berlin.ok("snapshot", "list", group) == "no snapshots\n"


def test_volume_write_and_read(berlin, group):
    data = os.urandom(3 * MIB + 17)
    done = berlin("volume", "write", f"{group}/data", "--offset", "1000", input=data)
    assert done.returncode == 0 and done.stdout == "" and f"{len(data)} bytes" in done.stderr
    assert content(berlin, f"{group}/data", "--offset", "1000", "--length", str(len(data))) == data
    assert content(berlin, f"{group}/data", "--length", "1000") == bytes(1000)
    assert len(content(berlin, f"{group}/data")) == 4 * MIB
    assert content(berlin, f"{group}/data", "--offset", "4M") == b""


def test_volume_write_of_a_file_that_does_not_fit_writes_nothing(berlin, group, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(b"x" * (4 * MIB + 1))
    import subprocess
    import sys

    from tests.cli.conftest import COMMAND, environment

    with open(image, "rb") as file:
        done = subprocess.run([sys.executable, "-c", COMMAND, "volume", "write", f"{group}/data"], stdin=file,
                              capture_output=True, text=True, check=False, env=environment(PYREPL_SOCKET=berlin.socket))
    assert done.returncode == 2 and "nothing was written" in done.stderr
    assert content(berlin, f"{group}/data") == bytes(4 * MIB)


def test_volume_write_of_a_pipe_that_is_too_long_says_what_was_written(berlin, group):
    told = berlin.fails(2, "volume", "write", f"{group}/data", "--offset", "2M", input=b"y" * (7 * MIB))
    assert "its first 0 bytes are written" in told or "its first 2097152 bytes are written" in told
    told = berlin.fails(2, "volume", "write", f"{group}/data", "--offset", "5M", input=b"y")
    assert "not inside volume" in told


def test_a_snapshot_is_written_as_a_volume_is(berlin, paris, pair):
    berlin.ok("snapshot", "create", f"{pair}/data", "written")
    berlin.ok("volume", "write", f"{pair}/written", "--offset", "1M", input=b"changed")
    berlin.ok("wait", pair, "applied", "--link", "paris", "--timeout", "60")
    for daemon in (berlin, paris):
        assert content(daemon, f"{pair}/written", "--offset", "1M", "--length", "7") == b"changed"
        assert content(daemon, f"{pair}/data", "--offset", "1M", "--length", "7") != b"changed"
    assert f"not inside snapshot {pair}/written" in berlin.fails(2, "volume", "write", f"{pair}/written", "--offset", "1G", input=b"y")


def test_an_early_operation_says_who_was_not_first(berlin, pair):
    words = ("snapshot", "create", f"{pair}/data")
    assert berlin(*words, "first", "--early").stderr == ""
    berlin.ok("link", "pause", f"{pair}/paris")
    done = berlin(*words, "second", "--early")
    assert done.returncode == 0 and done.stderr.startswith("performed first at 0 of 1 link: a secondary that is not connected")
    berlin.ok("link", "resume", f"{pair}/paris")
    berlin.ok("link", "remove", f"{pair}/paris")
    done = berlin("volume", "restore", f"{pair}/data", "first", "--early", "--force")
    assert done.returncode == 0 and done.stderr == "no secondary performed it first: the group has no links\n"


def test_an_early_operation_of_a_group(berlin, paris, pair):
    berlin.ok("volume", "add", f"{pair}/logs", "--size", "1M")
    for name in ("data", "logs"):
        berlin.ok("volume", "write", f"{pair}/{name}", input=b"monday")
    berlin.ok("wait", pair, "synced", "--timeout", "60")
    done = berlin("snapshot", "create", pair, "monday", "--early")
    assert f"snapshots {pair}/data-monday, {pair}/logs-monday: performed" in done.stdout and done.stderr == ""
    for name in ("data", "logs"):
        berlin.ok("volume", "write", f"{pair}/{name}", input=b"sunday")
    restored = berlin.json(output.Operation, "volume", "restore", pair, "monday", "--early", "--force")
    assert restored.kind == "restore" and [member.kind for member in restored.members] == ["restore"] * 2
    berlin.ok("wait", pair, "synced", "--timeout", "60")
    berlin.ok("wait", pair, "applied", "--link", "paris", "--timeout", "60")
    for name in ("data", "logs", "data-monday", "logs-monday"):
        assert content(paris, f"{pair}/{name}", "--length", "6") == content(berlin, f"{pair}/{name}", "--length", "6") == b"monday"
    listed = [(one.kind, one.created) for one in berlin.json(output.OperationList, "operation", "list", pair).operations]
    assert ("snapshot", ["data-monday", "logs-monday"]) in listed and "early-snapshot" in dict(listed), "at one point"
    assert "restore of 2 volumes" in berlin.ok("operation", "list", pair)
    for words in (("snapshot", "create", pair, "x"), ("volume", "restore", pair, "monday", "--force")):
        assert "leave verify out" in berlin.fails(errors.UsageError.exit_status, *words, "--early", "--verify")
    berlin.ok("link", "pause", f"{pair}/paris")
    done = berlin("volume", "restore", pair, "monday", "--early", "--force")
    assert done.returncode == 0 and done.stderr.startswith("performed first at 0 of 1 link: a secondary that is not connected")


def test_volume_compare(berlin, group, tmp_path):
    data = os.urandom(4 * MIB)
    berlin.ok("volume", "write", f"{group}/data", input=data)
    berlin.ok("snapshot", "create", f"{group}/data", "same")
    assert berlin.json(output.Compared, "volume", "compare", f"{group}/data", f"{group}/same").equal
    berlin.ok("volume", "write", f"{group}/data", "--offset", "3333333", input=bytes([data[3333333] ^ 1]))
    done = berlin("volume", "compare", f"{group}/data", f"{group}/same", "--json")
    assert done.returncode == 1 and '"first_difference":3333333' in done.stdout
    assert "first at byte 3333333" in berlin("volume", "compare", f"{group}/data", f"{group}/same").stdout
    image = tmp_path / "image"
    image.write_bytes(data)
    assert berlin.ok("volume", "compare", f"{group}/same", str(image)).startswith("equal: ")
    image.write_bytes(data[:-1])
    done = berlin("volume", "compare", f"{group}/same", str(image))
    assert done.returncode == 1 and "is 4194304 bytes long" in done.stdout and "4194303" in done.stdout
    assert "there is no" in berlin.fails(3, "volume", "compare", f"{group}/same", str(tmp_path / "missing"))


def test_restore_says_what_is_lost_and_wants_force(berlin, group):
    berlin.ok("volume", "write", f"{group}/data", input=b"before")
    berlin.ok("snapshot", "create", f"{group}/data", "monday")
    berlin.ok("volume", "write", f"{group}/data", input=b"after!")
    told = berlin.fails(2, "volume", "restore", f"{group}/data", "monday")
    assert "what was written since snapshot 'monday' is lost" in told and "--force" in told
    assert content(berlin, f"{group}/data", "--length", "6") == b"after!"
    berlin.ok("snapshot", "clone", f"{group}/data", "other")
    told = berlin.fails(2, "volume", "restore", f"{group}/other", "monday")
    assert "what it holds now is lost" in told, "a snapshot of another volume replaces all of it"
    done = berlin.json(output.Operation, "volume", "restore", f"{group}/data", f"{group}/monday", "--force")
    assert (done.kind, done.state, done.bytes_changed) == ("restore", "performed", 64 << 10)
    assert content(berlin, f"{group}/data", "--length", "6") == b"before"


def test_restore_of_a_part(berlin, group):
    berlin.ok("snapshot", "create", f"{group}/data", "empty")
    berlin.ok("volume", "write", f"{group}/data", input=b"a" * MIB)
    told = berlin.fails(2, "volume", "restore", f"{group}/data", "empty", "--offset", "100", "--length", "64K", "--force")
    assert "region size, 65536 bytes" in told
    berlin.ok("volume", "restore", f"{group}/data", "empty", "--offset", "64K", "--length", "64K", "--force")
    expected = b"a" * (64 << 10) + bytes(64 << 10) + b"a" * (MIB - (128 << 10))
    assert content(berlin, f"{group}/data", "--length", "1M") == expected


def test_synchronize(berlin, group):
    berlin.ok("volume", "add", f"{group}/other", "--size", "4M")
    berlin.ok("volume", "write", f"{group}/data", input=b"wanted")
    told = berlin.fails(2, "volume", "synchronize", f"{group}/other", "data")
    assert "what it holds now is lost" in told
    berlin.ok("volume", "synchronize", f"{group}/other", "data", "--force")
    assert content(berlin, f"{group}/other", "--length", "6") == b"wanted"
    assert "stay within one group" in berlin.fails(2, "volume", "synchronize", f"{group}/other", "elsewhere/data", "--force")


def test_resize(berlin, group):
    assert "resized to 8 MiB" in berlin.ok("volume", "resize", f"{group}/data", "8M")
    berlin.ok("volume", "write", f"{group}/data", "--offset", "7M", input=b"tail")
    assert "would lose its last 6 MiB" in berlin.fails(2, "volume", "resize", f"{group}/data", "2M")
    assert berlin.json(output.StoreList, "volume", "list", group).stores[0].size == 8 * MIB
    berlin.ok("volume", "resize", f"{group}/data", "2M", "--force")
    assert berlin.json(output.StoreList, "volume", "list", group).stores[0].size == 2 * MIB


def test_remove(berlin, group):
    berlin.ok("snapshot", "create", f"{group}/data", "kept")
    told = berlin.fails(2, "volume", "remove", f"{group}/data")
    assert "leaves the group" in told and "--force" in told
    assert names(berlin, group, "volume") == {"data"}
    berlin.ok("volume", "remove", f"{group}/data", "--force")
    assert names(berlin, group, "volume") == set() and names(berlin, group, "snapshot") == {"kept"}


# ---- snapshots


def test_snapshots(berlin, group):
    berlin.ok("volume", "add", f"{group}/logs", "--size", "1M")
    one = berlin.json(output.Operation, "snapshot", "create", f"{group}/data", "one")
    assert one.created == ["one"] and one.group == group
    all_ = berlin.json(output.Operation, "snapshot", "create", group, "all")
    assert all_.created == ["data-all", "logs-all"] and all_.lsn > one.lsn
    text = berlin.ok("snapshot", "create", group, "more")
    assert f"snapshots {group}/data-more, {group}/logs-more: performed at LSN" in text
    listed = berlin.json(output.StoreList, "snapshot", "list", group).stores
    assert {store.name: store.origin for store in listed}["logs-all"] == "logs"
    assert "OF" in berlin.ok("snapshot", "list").splitlines()[0]


def test_refresh(berlin, group):
    berlin.ok("snapshot", "create", f"{group}/data", "nightly")
    berlin.ok("volume", "write", f"{group}/data", input=b"new")
    assert "content that it has now is lost" in berlin.fails(2, "snapshot", "refresh", f"{group}/nightly")
    assert content(berlin, f"{group}/nightly", "--length", "3") == bytes(3)
    berlin.ok("snapshot", "refresh", f"{group}/nightly", "--force")
    assert content(berlin, f"{group}/nightly", "--length", "3") == b"new"
    assert "is a volume" in berlin.fails(5, "snapshot", "refresh", f"{group}/data", "--force")


def test_clone(berlin, group, tmp_path):
    berlin.ok("volume", "write", f"{group}/data", input=b"seed")
    berlin.ok("snapshot", "create", f"{group}/data", "s")
    berlin.ok("snapshot", "clone", f"{group}/s", "sparse")
    device = tmp_path / "device"
    device.write_bytes(bytes(4 * MIB))
    berlin.ok("snapshot", "clone", f"{group}/data", "placed", "--device", str(device))
    assert names(berlin, group, "volume") == {"data", "sparse", "placed"}
    for name in ("sparse", "placed"):
        assert content(berlin, f"{group}/{name}", "--length", "4") == b"seed"


def test_delete_of_a_snapshot_that_others_were_made_from(berlin, group):
    berlin.ok("snapshot", "create", f"{group}/data", "first")
    berlin.ok("snapshot", "create", f"{group}/first", "second")
    told = berlin.fails(2, "snapshot", "delete", f"{group}/first")
    assert "origin of second" in told and names(berlin, group, "snapshot") == {"first", "second"}
    berlin.ok("snapshot", "delete", f"{group}/second", "--force")
    berlin.ok("snapshot", "delete", f"{group}/first", "--force")
    assert names(berlin, group, "snapshot") == set()


def test_a_size_that_cannot_be_is_refused_before_force_is_asked_for(berlin, group):
    for words in (["volume", "resize", f"{group}/data", "100"], ["set", group, "resize data 100"]):
        told = berlin.fails(2, *words)
        assert "the nearest sizes are 0 and 65536" in told and "--force" not in told
    for words in (["volume", "resize", f"{group}/data", "64K"], ["set", group, "resize data 64K"]):
        assert "--force" in berlin.fails(2, *words)
    assert "lost" not in berlin.fails(errors.NotFound.exit_status, "volume", "restore", f"{group}/data", "never")
    assert berlin.json(output.StoreList, "volume", "list", group).stores[0].size > 64 << 10
    berlin.ok("set", group, "resize data 64K", "--force")


def test_group_wide(berlin, paris, pair):
    berlin.ok("volume", "add", f"{pair}/logs", "--size", "1M")
    for name in ("data", "logs"):
        berlin.ok("volume", "write", f"{pair}/{name}", input=b"monday")
    berlin.ok("snapshot", "create", pair, "monday")
    for name in ("data", "logs"):
        berlin.ok("volume", "write", f"{pair}/{name}", input=b"sunday")
    said = berlin.fails(errors.UsageError.exit_status, "volume", "restore", pair, "monday")
    assert "volumes data, logs" in said and "since snapshot 'monday' is lost" in said and "--force" in said
    assert f"restore in {pair}: 128 KiB would change here" in berlin.ok("explain", "volume", "restore", pair, "monday")
    assert f"2 volumes of {pair} restored from monday: performed" in berlin.ok("volume", "restore", pair, "monday", "--force")
    assert content(berlin, f"{pair}/data", "--length", "6") == content(berlin, f"{pair}/logs", "--length", "6") == b"monday"
    assert "restore of 2 volumes" in berlin.ok("operation", "list", pair)
    berlin.ok("volume", "write", f"{pair}/logs", input=b"sunday")
    made = berlin.json(output.Operation, "snapshot", "clone", pair, "test", "--from", "monday")
    assert made.kind == "clone" and made.created == ["data-test", "logs-test"] and len(made.members) == 2
    assert f"clone in {pair}" in berlin.ok("explain", "snapshot", "clone", pair, "other")
    assert "snapshots data-monday, logs-monday" not in berlin.fails(errors.NotFound.exit_status, "snapshot", "delete", pair, "monday")
    for name in ("data-test", "logs-test"):
        berlin.ok("volume", "remove", f"{pair}/{name}", "--force")
    assert "content that they have now is lost" in berlin.fails(errors.UsageError.exit_status, "snapshot", "refresh", pair, "monday")
    assert f"refresh in {pair}" in berlin.ok("explain", "snapshot", "refresh", pair, "monday")
    assert f"2 snapshots monday of {pair} refreshed" in berlin.ok("snapshot", "refresh", pair, "monday", "--force")
    assert content(berlin, f"{pair}/logs-monday", "--length", "6") == b"sunday"
    berlin.ok("snapshot", "create", f"{pair}/logs-monday", "inner")
    said = berlin.fails(errors.UsageError.exit_status, "snapshot", "delete", pair, "monday")
    assert "logs-monday is the origin of inner" in said and f"snapshots {pair}/data-monday (made at LSN " in said
    assert "what they show is lost, here and at paris; clones" in said
    assert f"delete in {pair}" in berlin.ok("explain", "snapshot", "delete", pair, "monday")
    assert f"2 snapshots monday of {pair} deleted" in berlin.ok("snapshot", "delete", pair, "monday", "--force")
    berlin.ok("wait", pair, "synced", "--timeout", "30")
    until(lambda: all(names(berlin, pair, kind) == names(paris, pair, kind) for kind in ("volume", "snapshot")), "it is performed")
    for words, say in (
        (["snapshot", "refresh", pair], "or GROUP NAME"), (["snapshot", "delete", f"{pair}/inner", "monday"], "or GROUP NAME"),
        (["volume", "restore", pair, "x", "--offset", "0"], "are of one volume"), (["snapshot", "clone", pair, "x", "--device", "/d"], "for one volume"),
        (["snapshot", "clone", f"{pair}/inner", "x", "--from", "y"], "for a whole group"),
    ):
        assert say in berlin.fails(errors.UsageError.exit_status, *words)


def test_mark_and_operations(berlin, group):
    marked = berlin.json(output.Operation, "mark", group, "before-upgrade", "--payload", "4.2")
    assert marked.kind == "mark" and marked.created == []
    listed = berlin.json(output.OperationList, "operation", "list", group)
    assert [one.kind for one in listed.operations] == ["add-volume", "mark"]
    assert listed.operations[0].created == ["data"]
    assert [one.lsn for one in berlin.json(output.OperationList, "operation", "list", group, "--last", "1").operations] == [marked.lsn]
    shown = berlin.json(output.OperationShow, "operation", "show", group, str(marked.lsn)).operation
    assert shown == listed.operations[1]
    assert berlin.ok("operation", "list", group).splitlines()[0].split() == ["LSN", "TIME", "OPERATION", "TOOK", "CHANGED", "MADE", "COMPARED"]
    assert berlin.ok("operation", "show", group, "1").splitlines()[1] == "made data"
    assert "may be older" in berlin.fails(3, "operation", "show", group, "999")


def test_no_wait(berlin, group):
    done = berlin.json(output.Operation, "snapshot", "create", f"{group}/data", "soon", "--no-wait")
    assert done.state in ("admitted", "performed")
    assert f"{group}: applied up to LSN " in berlin.ok("wait", group, str(done.lsn), "--timeout", "60")


# ---- links


def test_links(berlin, pair):
    listed = berlin.json(output.LinkList, "link", "list", pair).links
    assert [(link.group, link.name, link.state, link.synced) for link in listed] == [(pair, "paris", "streaming", True)]
    assert berlin.ok("link", "list", pair).splitlines()[1].split()[0] == f"{pair}/paris"
    berlin.ok("link", "pause", f"{pair}/paris")
    assert berlin.json(output.LinkList, "link", "list", pair).links[0].state == "paused"
    berlin.ok("link", "resume", f"{pair}/paris")
    berlin.ok("wait", pair, "synced", "--timeout", "30")
    berlin.ok("link", "remove", f"{pair}/paris")
    assert berlin.ok("link", "list", pair) == "no links\n"


def test_operations_reach_the_secondary(berlin, paris, pair):
    berlin.ok("volume", "write", f"{pair}/data", input=b"crosses")
    made = berlin.json(output.Operation, "snapshot", "create", f"{pair}/data", "both")
    assert made.bytes_avoided == made.bytes_changed == 4 * MIB
    waited = berlin.json(output.Waited, "wait", pair, str(made.lsn), "--link", "paris", "--timeout", "30")
    assert waited.reached == made.lsn and waited.group == pair and waited.seconds >= 0
    assert names(paris, pair, "snapshot") == {"both"}
    assert content(paris, f"{pair}/both", "--length", "7") == b"crosses"


def test_what_was_kept_off_the_links_is_said_only_where_it_is_so(berlin, paris, pair, tmp_path):
    """A snapshot would never be sent; what comes from an image is sent where there is no such image."""
    berlin.ok("volume", "write", f"{pair}/data", input=os.urandom(MIB))
    told = berlin.ok("snapshot", "create", f"{pair}/data", "evening")
    lsn = int(told.rpartition("LSN ")[2])
    assert told == f"snapshot {pair}/evening of {pair}/data: performed at LSN {lsn}\n"
    assert "kept off" not in berlin.ok("operation", "show", pair, str(lsn)) + berlin.ok("set", pair, "snapshot data a", "snapshot evening b")
    berlin.ok("volume", "write", f"{pair}/data", input=os.urandom(MIB))
    told = berlin.ok("volume", "restore", f"{pair}/data", "evening", "--force")
    assert told.endswith(", 1 MiB changed, 1 MiB kept off the links\n")
    lsn = told.partition("LSN ")[2].partition(",")[0]
    assert "1 MiB kept off the links" in berlin.ok("operation", "show", pair, lsn)
    (tmp_path / "golden.img").write_bytes(os.urandom(4 * MIB))
    berlin.ok("image", "add", f"{pair}/golden", str(tmp_path / "golden.img"))
    told = berlin.ok("volume", "restore", f"{pair}/data", "golden", "--force")
    assert told.endswith(("4 MiB kept off the links of secondaries that have the image\n", "4 MiB changed\n"))
    lsn = told.partition("LSN ")[2].partition(",")[0]
    berlin.ok("wait", pair, "synced", "--timeout", "30")
    told = berlin.ok("operation", "show", pair, lsn)
    assert "refused at paris, which got the data instead" in told and "kept off the links" not in told
    berlin.ok("image", "remove", f"{pair}/golden")


def test_wait(berlin, pair):
    assert f"{pair}: synced up to LSN" in berlin.ok("wait", pair, "synced", "--timeout", "30s")
    assert f"{pair}: applied up to LSN" in berlin.ok("wait", pair, "applied")
    assert "at paris" in berlin.ok("wait", pair, "applied", "--link", "paris")
    berlin.ok("link", "pause", f"{pair}/paris")
    berlin.ok("volume", "write", f"{pair}/data", input=b"late")
    told = berlin.fails(11, "wait", pair, "synced", "--timeout", "0.3")
    assert "is paused" in told and "it goes on" in told
    assert "no link 'rome'" in berlin.fails(3, "wait", pair, "synced", "--link", "rome")


def test_wait_synced_without_links(berlin, group):
    assert "has no links" in berlin.fails(5, "wait", group, "synced")


@pytest.mark.parametrize("target", ["soon", "-1", "1.5", ""])
def test_wait_for_nonsense(berlin, group, target):
    assert berlin("wait", group, target).returncode == 2


def test_images(berlin, group, tmp_path):
    wanted = os.urandom(4 * MIB)
    path = tmp_path / "golden.img"
    path.write_bytes(wanted)
    added = berlin.json(output.ImageList, "image", "add", f"{group}/golden", str(path)).images[0]
    assert (added.name, added.size, added.state, added.path) == ("golden", 4 * MIB, "ready", str(path))
    assert added.digest == hashlib.sha256(wanted).hexdigest()
    assert berlin.json(output.ImageList, "image", "list", group).images == [added]
    assert f"{group}/golden" in berlin.ok("image", "list") and "no images" in berlin.ok("image", "list", berlin.new_group())
    told = berlin.fails(2, "volume", "restore", f"{group}/data", "golden")
    assert "what it holds now is lost" in told and "--force" in told
    done = berlin.json(output.Operation, "volume", "restore", f"{group}/data", "golden", "--force")
    assert (done.kind, done.state, done.bytes_changed) == ("restore", "performed", 4 * MIB)
    assert content(berlin, f"{group}/data") == wanted
    assert "cloned from" in berlin.ok("image", "clone", f"{group}/golden", "twin")
    berlin.ok("volume", "write", f"{group}/twin", input=b"other")
    berlin.ok("volume", "synchronize", f"{group}/twin", f"{group}/golden", "--force")
    assert content(berlin, f"{group}/twin") == wanted
    assert "removed" in berlin.ok("image", "remove", f"{group}/golden", "--timeout", "30s")
    assert "no image 'golden'" in berlin.fails(3, "image", "remove", f"{group}/golden")
    path.unlink()
    assert content(berlin, f"{group}/data") == wanted
    assert "no device or file" in berlin.fails(3, "image", "add", f"{group}/golden", str(path))
    path.write_bytes(b"short")
    assert "truncate -s 65536" in berlin.fails(2, "image", "add", f"{group}/golden", str(path))


def test_a_set_that_deletes(berlin, group):
    berlin.ok("snapshot", "create", f"{group}/data", "monday")
    told = berlin.fails(2, "set", group, "delete monday")
    assert "monday (delete)" in told and "to keep it" not in told
    assert "no store 'tuesday'" in berlin.fails(3, "set", group, "delete tuesday")
    berlin.ok("set", group, "delete monday", "--force")


def test_a_group_whose_journal_is_gone_is_deleted(berlin):
    group = berlin.new_group()
    os.unlink(f"{berlin.folder}/{group}.journal")
    assert "deleted" in berlin.ok("group", "delete", group, "--force")
    assert group not in berlin.ok("group", "list")
    berlin.ok("group", "create", group, "--journal", f"{berlin.folder}/{group}.journal", "--journal-size", "16M")
    berlin.ok("group", "delete", group, "--force")


def test_a_set(berlin, group):
    berlin.ok("volume", "add", f"{group}/logs", "--size", "4M")
    berlin.ok("volume", "write", f"{group}/data", input=b"before")
    done = berlin.json(output.Operation, "set", group, "snapshot data monday", f"clone {group}/logs twin")
    assert (done.kind, done.state, done.created) == ("set", "performed", ["monday", "twin"])
    assert [(one.kind, one.created) for one in done.members] == [("snapshot", ["monday"]), ("clone", ["twin"])]
    berlin.ok("volume", "write", f"{group}/data", input=b"after!")
    told = berlin.fails(2, "set", group, "restore data monday 0 64K", "resize logs 8M", "synchronize twin monday")
    assert "what these hold now is lost: data (restore), twin (synchronize)" in told and "--force" in told
    told = berlin.fails(2, "set", group, "restore data monday 0 64K", "snapshot data x", "--force")
    assert "number 1 (restore) writes store 'data', which number 2 (snapshot) reads" in told
    said = berlin.ok("set", group, "restore data monday 0 64K", "resize logs 8M", "copy-range monday twin 0 1M", "--force")
    assert said.startswith(f"set of 3 operations of {group}: performed at LSN")
    assert content(berlin, f"{group}/data", "--length", "6") == b"before" == content(berlin, f"{group}/twin", "--length", "6")
    assert berlin.json(output.StoreList, "volume", "list", group).stores[1].size == 8 * MIB
    berlin.ok("set", group, "refresh monday", "remove twin", "--force")
    assert "is lost: monday (delete)" in berlin.fails(2, "set", group, "delete monday")
    berlin.ok("set", group, "delete monday", "--force")
    listed = berlin.json(output.OperationList, "operation", "list", group).operations
    assert [member.kind for member in listed[-3].members] == ["restore", "resize", "copy-range"]
    assert "set: refresh, delete" in berlin.ok("operation", "list", group)
    told = berlin.ok("operation", "show", group, str(listed[-2].lsn))
    assert "  refresh (" in told and "{" not in told
    told = berlin.ok("operation", "show", group, str(listed[-3].lsn))
    assert "  restore (target data, source monday, first 0, count 1): " in told and "{" not in told and "[" not in told


@pytest.mark.parametrize(
    ("member", "told"),
    [
        ("mark here", "is no operation that can be in a set: it begins with snapshot, clone, restore"),
        ("", "is no operation"),
        ("restore data", "write restore VOLUME SNAPSHOT [OFFSET LENGTH]"),
        ("restore data monday 0", "write restore VOLUME SNAPSHOT [OFFSET LENGTH]"),
        ("resize data big", "is not a size"),
        ("snapshot 'data x", "No closing quotation"),
        ("snapshot elsewhere/data x", "stay within one group"),
    ],
)
def test_what_is_no_member_of_a_set(berlin, group, member, told):
    assert told in berlin.fails(2, "set", group, member, "--force")


def test_strict_ordering(berlin, tmp_path):
    name = berlin.new_group("--ordering", "strict")
    assert berlin.json(output.GroupShow, "group", "show", name).group.ordering == "strict"
    assert "one after the other" in berlin.fails(5, "set", name, "snapshot data x")


def test_a_set_at_two_daemons(berlin, paris, pair):
    """Over TCP: the same members at the same LSN, whole at both."""
    berlin.ok("volume", "write", f"{pair}/data", input=b"before")
    berlin.ok("snapshot", "create", f"{pair}/data", "monday")
    berlin.ok("volume", "write", f"{pair}/data", input=b"after!")
    berlin.ok("snapshot", "clone", f"{pair}/data", "test")
    done = berlin.json(output.Operation, "set", pair, "restore data monday", "snapshot test then", "--force")
    berlin.ok("volume", "write", f"{pair}/test", input=b"later")
    berlin.ok("wait", pair, "applied", "--link", "paris", "--timeout", "30s")
    (there,) = [one for one in paris.json(output.OperationList, "operation", "list", pair).operations if one.lsn == done.lsn]
    assert (there.kind, there.members, there.created) == ("set", done.members, ["then"])
    for store, wanted in (("data", b"before"), ("then", b"after!"), ("test", b"later!")):
        for daemon in (berlin, paris):
            assert content(daemon, f"{pair}/{store}", "--length", "6") == wanted, (store, daemon.name)


# ---- rewind


def test_volume_rewind(berlin, group):
    before = os.urandom(4 * MIB)
    berlin.ok("volume", "write", f"{group}/data", input=before)
    lsn = berlin.json(output.Operation, "snapshot", "create", f"{group}/data", "then").lsn
    berlin.ok("volume", "write", f"{group}/data", "--offset", "1M", input=os.urandom(MIB))
    told = berlin.ok("volume", "rewind", f"{group}/data", "--to", str(lsn), "--as", "back")
    assert told.startswith(f"volume {group}/back shows {group}/data at LSN {lsn}: complete at LSN ")
    assert content(berlin, f"{group}/back") == before
    from datetime import UTC, datetime

    now = datetime.now(UTC).isoformat()
    berlin.ok("volume", "write", f"{group}/data", input=os.urandom(MIB))
    rewound = berlin.json(output.Rewound, "volume", "rewind", f"{group}/data", "--to", now, "--as", "now")
    assert rewound.to_lsn >= lsn and rewound.lsn > rewound.to_lsn and (rewound.volume, rewound.created) == ("data", "now")
    assert {"back", "now"} <= names(berlin, group, "volume")
    told = berlin.fails(2, "volume", "rewind", f"{group}/data", "--to", "yesterday", "--as", "x")
    assert "neither an LSN nor a time" in told
    assert "give an LSN from 0 to" in berlin.fails(2, "volume", "rewind", f"{group}/data", "--to", "999999", "--as", "x")
    assert "there was none before" in berlin.fails(5, "volume", "rewind", f"{group}/data", "--to", "0", "--as", "x")
    assert "exists" in berlin.fails(4, "volume", "rewind", f"{group}/data", "--to", str(lsn), "--as", "back")
    told = berlin.fails(5, "volume", "rewind", f"{group}/data", "--to", "2001-01-01", "--as", "x")
    assert "the journal holds nothing that early" in told
