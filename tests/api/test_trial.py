"""Trials: what they show and cost, who holds them, how they end, and what is refused."""

from __future__ import annotations

import errno
import shutil

import pytest

import pyrepl
from pyrepl.errors import Exists, NotFound, Refused, UsageError
from pyrepl.trial import _ViewDevice
from tests.support.rig import MIB, Rig

SIZE = 2 * MIB


@pytest.fixture
def rig(tmp_path):
    with Rig(tmp_path / "rig", {"a": SIZE, "b": SIZE}, seed=11, journal=32 * MIB) as made:
        made.fill("a", 0, SIZE)
        made.drain()
        yield made


def files(rig):
    return sorted(path.name for path in (rig.folder / "far").rglob("*") if "trials" in path.parts and path.is_file())


def test_what_is_not_written_takes_no_space(rig):
    with rig.far.open_trial(journal_size=8 * MIB) as trial:
        a = trial.volume("a")
        a.flush()
        before = trial.told()["space"]
        assert before <= 9 * MIB, "the journal, and nothing of the volumes"
        a.write(0, b"x" * 4096)
        trial.group.site.exclusive(lambda: None)
        trial.group.wait()
        assert trial.told()["space"] - before <= 256 * 1024, "one region"
        assert a.read(4096, SIZE - 4096) == rig.far.volume("a").read(4096, SIZE - 4096)


def test_several_trials_know_nothing_of_each_other(rig):
    first = rig.far.open_trial(journal_size=8 * MIB)
    rig.fill("a", 0, MIB)
    rig.drain()
    second = rig.far.open_trial(journal_size=8 * MIB)
    assert first.lsn < second.lsn and first.number != second.number
    first.volume("a").write(0, b"1" * 4096)
    second.volume("a").write(0, b"2" * 4096)
    assert first.volume("a").read(0, 4096) == b"1" * 4096 and second.volume("a").read(0, 4096) == b"2" * 4096
    rig.check_both()
    first.close()
    first.close()
    assert first.closed and not second.closed
    with pytest.raises(Refused, match="closed"):
        first.volume("a").write(0, b"x" * 4096)
    assert second.volume("a").read(0, 4096) == b"2" * 4096
    second.close()
    assert files(rig) == []


def test_a_trial_outlives_a_takeover_and_the_deletion_of_a_volume(rig):
    trial = rig.far.open_trial(journal_size=8 * MIB)
    want = trial.volume("b").read(0, SIZE)
    rig.near.demote(timeout=60)
    rig.far.promote()
    rig.far.volume("b").remove(force=True)
    rig.far.volume("a").write(0, bytes(SIZE))
    rig.far.wait()
    assert trial.volume("b").read(0, SIZE) == want
    trial.volume("b").write(0, b"x" * 4096)
    trial.close()


def test_closing_the_group_ends_its_trials(rig):
    trial = rig.far.open_trial(journal_size=8 * MIB)
    trial.volume("a").write(0, b"x" * 4096)
    rig.close_far()
    assert files(rig) == []
    with pytest.raises(Refused, match="closed"):
        trial.volume("a")
    rig.open_far()
    assert rig.far.status()["views"] == [] and rig.far.status()["trials"] == []
    rig.check_both()


def test_a_start_removes_what_a_dead_process_left(rig):
    trial = rig.far.open_trial(journal_size=8 * MIB)
    trial.volume("a").write(0, b"x" * 4096)
    kept = rig.folder / "kept"
    folder = next(path for path in (rig.folder / "far").rglob("trials"))
    shutil.copytree(folder, kept)
    rig.close_far()
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    assert files(rig)
    rig.open_far()
    assert files(rig) == []
    rig.check_both()


def test_exports_share_one_trial(rig):
    """All at one LSN, though replication goes on between; the last one that is stopped ends it."""
    node = rig.far_node
    first = node.start_export("one", "db", "a", trial=True)
    lsn = first.status()["view_lsn"]
    rig.fill("a", 0, MIB)
    rig.drain()
    second = node.start_export("two", rig.far, rig.far.volume("b"), trial=True)
    assert second.status()["view_lsn"] == lsn < rig.far.applied_lsn
    assert [one["exports"] for one in rig.far.status()["trials"]] == [2]
    assert not first.status()["read_only"] and first.status()["trial"] and not first.shape().read_only
    node.start_export("three", "db", "a")
    assert node.export("three").status()["read_only"] and not node.export("three").status()["trial"]
    with pytest.raises(Exists, match="two"):
        node.start_export("two", "db", "a", trial=True)
    node.stop_export("one")
    assert [one["exports"] for one in rig.far.status()["trials"]] == [1]
    node.stop_export("two")
    assert rig.far.status()["trials"] == [] and files(rig) == []
    rig.close_far()
    rig.open_far()
    assert [export.name for export in rig.far_node.exports] == ["three"]


@pytest.mark.parametrize(("store", "options", "words"), [("a", {"read_only": True}, "writable"), ("s", {}, "volume")])
def test_what_cannot_be_exported_as_a_trial(rig, store, options, words):
    rig.snapshot("a", "s")
    rig.drain()
    with pytest.raises(UsageError, match=words):
        rig.far_node.start_export("one", "db", store, trial=True, **options)
    assert rig.far.status()["trials"] == [] and rig.far_node.exports == []


@pytest.mark.parametrize("size", [0, -1, True, "64M", 8 * MIB + 1, MIB])
def test_a_journal_that_cannot_be(rig, size):
    with pytest.raises(UsageError, match="journal_size"):
        rig.far.open_trial(journal_size=size)
    assert rig.far.status()["trials"] == []


def test_a_site_without_a_state_of_one_moment_has_nothing_to_try(tmp_path):
    with Rig(tmp_path / "rig", {"a": SIZE}, seed=12, journal=32 * MIB, synced=False) as one:
        one.link.pause()
        if not one.far.status()["consistent"]:
            with pytest.raises(Refused, match="consistent"):
                one.far.open_trial()
    with pyrepl.Node.open(tmp_path / "alone", create=True) as node:
        group = node.create_group("db", tmp_path / "journal", journal_size=16 * MIB)
        with pytest.raises(Refused, match="no volumes"):
            group.open_trial()
        with pytest.raises(NotFound):
            node.start_export("one", "db", "a", trial=True)


def test_what_fails_on_the_way_leaves_nothing(rig, monkeypatch):
    monkeypatch.setattr("pyrepl.trial.Image.clone", lambda *arguments: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(pyrepl.errors.DeviceError, match="full"):
        rig.far.open_trial(journal_size=8 * MIB)
    assert rig.far.status()["views"] == rig.far.status()["trials"] == [] and files(rig) == []
    rig.check_both()


def test_a_trial_that_lost_its_disk_fails_alone(rig):
    with rig.far.open_trial(journal_size=8 * MIB) as trial:
        trial.group.site.window.fail(errno.EIO)
        with pytest.raises(pyrepl.PyreplError):
            trial.volume("a").write(0, b"x" * 4096)
        rig.check_both()
    assert files(rig) == []


def test_a_view_is_no_device_to_write_to(rig):
    with rig.far.open_view("a") as view:
        device = _ViewDevice(rig.far.site, rig.far.site.views.opened[view.id])
        assert device.read(0, 4096) == view.read(0, 4096)
        for change in (lambda: device.write(0, bytes(4096)), lambda: device.do_discard(0, 4096)):
            with pytest.raises(OSError, match="Read-only"):
                change()
        device.flush()
