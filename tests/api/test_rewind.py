"""Rewind: a new volume shows what a volume showed at any LSN that journal and stores still cover."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import pyrepl
from pyrepl.errors import Exists, NotFound, Refused, UsageError, WaitTimeout

REGION = 65536
MIB = 1 << 20


class History:
    """A group whose volume ``v`` is written and operated on at random; what it showed at every LSN."""

    def __init__(self, folder: Path, seed: int, *, journal: int = 64 * MIB) -> None:
        self.rng = random.Random(seed)
        self.node = pyrepl.Node.open(folder, create=True)
        self.group = self.node.create_group("db", folder / "journal", journal_size=journal)
        self.volume = self.group.add_volume("v", size=8 * REGION)
        self.other = self.group.add_volume("w", size=8 * REGION)
        self.seen: dict[int, bytes] = {}
        self.count = 0
        self.look(self.volume.lsn)

    def look(self, lsn: int) -> int:
        self.seen[lsn] = self.volume.read(0, self.volume.size)
        return lsn

    def content(self, length: int) -> bytes:
        self.count += 1
        return self.count.to_bytes(8, "little") * (length // 8)

    def write(self, store: Any) -> int:
        rng = self.rng
        if rng.random() < 0.3:
            count, unit = rng.choice((1, 2)), REGION
        else:
            count, unit = rng.choice((1, 2, 3, 16)), 4096
        length = min(count * unit, store.size)
        offset = rng.randrange((store.size - length) // unit + 1) * unit
        if rng.random() < 0.1:
            return int(store.zero(offset, length))
        return int(store.write(offset, self.content(length)))

    def some(self, most: int) -> list[tuple[int, bytes]]:
        """Some of what was seen, ascending."""
        return sorted(self.rng.sample(sorted(self.seen.items()), min(most, len(self.seen))))

    def act(self) -> None:
        rng, group, roll = self.rng, self.group, self.rng.random()
        snapshots = group.snapshots
        self.count += 1
        try:
            if roll < 0.7:
                lsn = self.write(rng.choice([self.volume, self.volume, self.volume, self.other, *snapshots]))
            elif roll < 0.78 and len(snapshots) < 5:
                lsn = rng.choice([self.volume, self.volume, self.other, *snapshots]).snapshot(f"s{self.count}").lsn
            elif roll < 0.84 and snapshots:
                extent = (REGION * rng.randrange(4), REGION * rng.randrange(1, 4)) if rng.random() < 0.5 else None
                lsn = rng.choice([self.volume, self.other]).restore(rng.choice(snapshots), extent=extent).lsn
            elif roll < 0.87 and snapshots:
                lsn = rng.choice(snapshots).refresh().lsn
            elif roll < 0.91 and snapshots:
                lsn = rng.choice(snapshots).delete().lsn
            elif roll < 0.94:
                lsn = self.volume.resize(REGION * rng.randrange(4, 10), force=True).lsn
            elif roll < 0.97:
                lsn = group.copy_range(self.other, 0, self.volume, 0, REGION * rng.randrange(1, 4)).lsn
            else:
                lsn = group.mark("m").lsn
        except UsageError:
            return  # sizes differ
        self.look(lsn)


@pytest.fixture
def history(tmp_path: Path) -> Any:
    made: list[History] = []

    def make(seed: int, **options: Any) -> History:
        made.append(History(tmp_path / f"n{len(made)}", seed, **options))
        return made[-1]

    yield make
    for one in made:
        one.node.close()


@pytest.mark.parametrize("seed", range(4))
def test_every_lsn_of_a_random_history_is_shown_exactly(history, seed, pytestconfig):
    story, full = history(seed), pytestconfig.getoption("--long")
    for _ in range(150 if full else 40):
        story.act()
    for lsn, wanted in story.some(1000 if full else 12):
        made = story.volume.rewind(lsn, "back")
        assert made.read(0, made.size) == wanted, f"seed {seed}: rewound to LSN {lsn}"
        made.remove()


@pytest.mark.parametrize("seed", range(10, 12))
def test_of_a_journal_that_has_been_written_over_the_range_is_said(history, seed, pytestconfig):
    story, full = history(seed, journal=8 * MIB), pytestconfig.getoption("--long")
    for _ in range(150 if full else 50):
        story.act()
        story.other.write(0, story.content(2 * REGION))
    covered, least = [], 0
    for lsn, wanted in story.some(1000 if full else 16):
        try:
            made = story.volume.rewind(lsn, "back")
        except Refused as error:
            assert error.reason == "range", f"seed {seed}: {error}"
            assert lsn < error.context["first"] <= error.context["last"], f"seed {seed}: LSN {lsn}: {error}"
            assert f"every LSN from {error.context['first']}" in str(error)
            least = max(least, error.context["first"])
            said = sorted(lsn for lsn in story.seen if lsn >= least)[3]  # the log goes on: its very begin may be gone
            made = story.volume.rewind(said, "said")
            assert made.read(0, made.size) == story.seen[said], f"seed {seed}: rewound to LSN {said}, of {least}"
            made.remove()
            continue
        assert made.read(0, made.size) == wanted, f"seed {seed}: rewound to LSN {lsn}"
        covered.append(lsn)
        made.remove()
    assert least and covered, f"seed {seed}: from LSN {least} on, of {len(story.seen)} {len(covered)} covered"


def test_a_snapshot_lets_its_lsn_be_shown_without_data_on_the_way(history):
    story = history(20)
    story.volume.write(0, story.content(8 * REGION))
    lsn = story.look(story.volume.snapshot("monday").lsn)
    story.volume.write(0, story.content(8 * REGION))
    made = story.volume.rewind(lsn, "back")
    assert made.read(0, made.size) == story.seen[lsn] != story.volume.read(0, made.size)
    assert made.result.details == {"to_lsn": lsn, "bytes_written": 0}
    assert made.result.kind == "complete" and made.result.created == {"back": made.id} and made.lsn > lsn
    made.write(0, b"mine")
    assert made.read(0, 4) == b"mine" and story.volume.read(0, 4) != b"mine"


def test_across_a_restore_which_is_replayed_as_an_operation(history):
    """Between the restore and the LSN there is a partial write, and what was restored lives in the snapshot alone."""
    story = history(21)
    story.volume.write(0, story.content(8 * REGION))
    story.volume.snapshot("monday")
    story.volume.write(0, story.content(8 * REGION))
    story.volume.restore("monday")
    lsn = story.look(story.volume.write(4096, b"x" * 4096))
    story.volume.write(0, story.content(8 * REGION))
    made = story.volume.rewind(lsn, "back")
    assert made.read(0, made.size) == story.seen[lsn]
    assert 0 < made.result.details["bytes_written"] <= REGION  # the region that was written to, and no other


def test_to_a_time(history):
    story = history(22)
    window = story.group.site.window
    base = int(datetime(2030, 1, 1, tzinfo=UTC).timestamp())
    seen = {}
    for second in range(5):
        window.set_time((base + second) * 10**9)
        for _ in range(2):
            story.look(story.volume.write(0, story.content(REGION)))
        seen[second] = max(story.seen)
    from pyrepl import rewinding

    with pytest.raises(UsageError, match="still to come"):
        story.volume.rewind(datetime.fromtimestamp(base + 5, UTC), "later")
    window.set_time((base + 50) * 10**9)
    now, rewinding.time.time = rewinding.time.time, lambda: base + 100.0
    try:
        for second, lsn in seen.items():
            for text, moment in (("at", second), ("behind", second + 0.5)):
                made = story.volume.rewind(datetime.fromtimestamp(base + moment, UTC), f"{text}{second}")
                assert made.result.details["to_lsn"] == lsn
                assert made.read(0, made.size) == story.seen[lsn]
        with pytest.raises(Refused, match="the oldest event that it holds is LSN 1") as refused:
            story.volume.rewind(datetime(2020, 1, 1, tzinfo=UTC), "early")
        assert refused.value.reason == "range"
    finally:
        rewinding.time.time = now


def test_what_cannot_be_is_refused_and_nothing_is_left(history):
    story = history(23)
    volume, group = story.volume, story.group
    end = volume.write(0, story.content(REGION))
    for wrong in (end + 1, -1, "yesterday", 1.5, True):
        with pytest.raises(UsageError, match="give an LSN from 0 to"):
            volume.rewind(wrong, "back")
    with pytest.raises(Exists):
        volume.rewind(end, "w")
    with pytest.raises(UsageError, match="cannot be a name"):
        volume.rewind(end, "a/b")
    with pytest.raises(Refused, match=f"the volume was made at LSN {volume.lsn}, there was none before") as refused:
        volume.rewind(volume.lsn - 1, "back")
    assert refused.value.reason == "range" and refused.value.context["first"] == volume.lsn
    with group.rewinding, pytest.raises(Refused, match="another rewind is under way"):
        volume.rewind(end, "back")
    left(group, ["v", "w"])


def left(group: Any, names: list[str]) -> None:
    """Nothing else is there: no store, no view, no file."""
    group.wait()
    assert sorted(store["name"] for store in group.status()["stores"]) == names
    assert group.status()["views"] == []
    folder = group.site.shelf.placement.folder
    assert [path.name for path in folder.glob("*rewind*")] == []


@pytest.mark.parametrize("phase", ["trace", "build", "fill"])
def test_ended_by_its_caller_it_leaves_nothing(history, phase, monkeypatch):
    from pyrepl import rewinding

    monkeypatch.setattr(rewinding, "TELL_EVERY", 0.0)
    story = history(24)
    story.volume.write(0, story.content(8 * REGION))
    lsn = story.volume.write(8192, story.content(4096))
    story.volume.write(0, story.content(8 * REGION))
    told: list[dict[str, Any]] = []

    def stop(state: dict[str, Any]) -> None:
        told.append(state)
        if state["phase"] == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        story.volume.rewind(lsn, "back", progress=stop)
    left(story.group, ["v", "w"])
    assert told[-1]["phase"] == phase and told[-1]["lsn"] == lsn
    assert story.volume.rewind(lsn, "back").size == story.volume.size


def test_its_time_over_it_leaves_nothing(history):
    story = history(25)
    lsn = story.volume.write(0, story.content(REGION))
    with pytest.raises(WaitTimeout, match="given up: nothing is left of it"):
        story.volume.rewind(lsn, "back", timeout=0)
    left(story.group, ["v", "w"])


def test_an_unfinished_store_is_found_by_nobody_and_gone_after_a_start(history, tmp_path):
    """As if the process had died while it was filled."""
    from pyrepl import operations

    story = history(26)
    group = story.group
    group.operate(lambda catalog: operations.rewind(catalog, story.volume.id, "back", REGION, 1, [(story.volume.id, 0, 1)]))
    assert [volume.name for volume in group.volumes] == ["v", "w"] and group.snapshots == []
    assert [store["kind"] for store in group.status()["stores"]] == ["volume", "volume", "unfinished"]
    for find in (group.volume, group.store):
        with pytest.raises(NotFound):
            find("back")
    with pytest.raises(Refused, match="still being made"):
        story.volume.synchronize("back")
    with pytest.raises(Exists):
        story.volume.clone("back")
    story.node.close()
    story.node = pyrepl.Node.open(tmp_path / "n0")
    left(story.node.group("db"), ["v", "w"])


def test_a_secondary_refuses(nodes, tmp_path):
    far = nodes("far").create_group("db", tmp_path / "far-journal", journal_size=16 * MIB, role="secondary")
    volume = far.add_volume("v", size=REGION)
    with pytest.raises(Refused) as refused:
        volume.rewind(0, "back")
    assert refused.value.reason == "role"


def test_what_an_image_brought_is_found_in_the_image(history, tmp_path):
    story = history(27)
    golden = story.content(8 * REGION)
    (tmp_path / "golden").write_bytes(golden)
    story.group.add_image("golden", tmp_path / "golden")
    story.volume.restore("golden")
    lsn = story.look(story.volume.write(4096, b"x" * 4096))
    story.volume.write(0, story.content(8 * REGION))
    made = story.volume.rewind(lsn, "back")
    assert made.read(0, made.size) == story.seen[lsn] == golden[:4096] + b"x" * 4096 + golden[8192:]
    story.group.image("golden").remove()
    with pytest.raises(Refused) as refused:
        story.volume.rewind(lsn, "again")
    assert refused.value.reason == "range" and refused.value.context["first"] == lsn + 1
