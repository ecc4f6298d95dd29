"""The test of a failover with a real file system: a trial at the secondary is mounted and written while the primary's is, too."""

from __future__ import annotations

import pytest

from tests.clients.test_file_system import SIZE, read_files, write_files
from tests.support import clients
from tests.support.clients import FileSystem

pytestmark = [pytest.mark.device, pytest.mark.timeout(200, method="signal")]  # a signal, so that mounts are taken away


@pytest.fixture(autouse=True)
def _mounts():
    if reason := clients.why_no_mounts():
        pytest.skip(reason)
    clients.need("nbdfuse", "fusermount3", "mkfs.ext4", "e2fsck")


def test_a_trial_is_mounted_and_written_while_replication_goes_on(pairs, tmp_path):
    """The file system is mounted at the primary when the trial begins, so the trial replays its journal: what was fsynced
    is there. Both are written on; neither sees the other's, and the secondary in the end holds what the primary does."""
    pair = pairs(SIZE, "sync")
    with FileSystem(pair.export.uri(), tmp_path / "near") as disk:
        disk.make()
        root = disk.mount()
        kept = write_files(root, 1)
        said = pair.secondary.pyrepl("export", "start", "tried", "db/data", "--trial")
        assert "a trial as of LSN" in str(said)
        with FileSystem(pair.secondary.uri("tried"), tmp_path / "tried") as tried:
            seen = tried.mount()
            found = read_files(seen)
            assert {name: found.get(name) for name in kept} == kept
            write_files(root, 2)
            mine = write_files(seen, 3)
            (seen / "1").rename(seen / "moved")
            found = read_files(seen)
            assert {name: found.get(name) for name in mine} == mine and not any(name.startswith("2/") for name in found)
            tried.unmount()
            clients.run("e2fsck", "-fn", tried.device)
        pair.secondary.pyrepl("export", "stop", "tried")
        kept = read_files(root)
        assert not any(name.startswith(("3/", "moved/")) for name in kept)
        disk.unmount()
        pair.settle()
        with FileSystem(pair.secondary.uri("data"), tmp_path / "far", read_only=True) as far:
            clients.run("e2fsck", "-fn", far.device)
            assert read_files(far.mount()) == kept
