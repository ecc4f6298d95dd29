"""A real file system on a replicated primary: ext4 over nbdfuse and a loop device, with a snapshot and a restore.

The secondary's copy is checked as an administrator would: e2fsck, and mounted read-only, from an export of the secondary.
"""

from __future__ import annotations

import hashlib
import os
import random

import pytest

from tests.support import clients
from tests.support.clients import FileSystem, LoopMount

MIB = 1 << 20
SIZE = 128 * MIB

pytestmark = [pytest.mark.device, pytest.mark.timeout(200, method="signal")]  # a signal, so that mounts are taken away


@pytest.fixture(autouse=True)
def _mounts():
    if reason := clients.why_no_mounts():
        pytest.skip(reason)
    clients.need("nbdfuse", "fusermount3", "mkfs.ext4", "e2fsck")


def write_files(root, seed: int, count: int = 40) -> dict[str, str]:
    """Files of all sizes, each written through to the disk; name -> digest."""
    rng, made = random.Random(seed), {}
    for number in range(count):
        name = f"{seed}/{number % 7}/{number}"
        data = rng.randbytes(rng.choice((0, 1, 100, 4096, 70_000, 700_001)))
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with (root / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        made[name] = hashlib.sha256(data).hexdigest()
    return made


def read_files(root) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*") if path.is_file()
    }


def check_far(pair, tmp_path, files: dict[str, str]) -> None:
    """e2fsck and a read-only mount of what the secondary shows, once it has everything."""
    pair.settle()
    clients.until(lambda: pair.secondary.client.export("data").status()["view_lsn"] is None, "what was shown before is given back")
    with FileSystem(pair.secondary.uri("data"), tmp_path / "far", read_only=True) as far:
        clients.run("e2fsck", "-fn", far.device)
        assert read_files(far.mount()) == files


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_file_system_that_is_restored_under_replication(pairs, tmp_path, mode):
    pair = pairs(SIZE, mode)
    with FileSystem(pair.export.uri(), tmp_path / "near") as disk:
        disk.make()
        kept = write_files(disk.mount(), 1)
        disk.unmount()
        pair.primary.pyrepl("snapshot", "create", "db/data", "monday")
        root = disk.mount()
        more = write_files(root, 2)
        (root / "1").rename(root / "moved")
        changed = {**{name.replace("1/", "moved/", 1): digest for name, digest in kept.items()}, **more}
        assert read_files(root) == changed
        disk.unmount()
        check_far(pair, tmp_path, changed)
        sent = pair.group.link("far").status()["bytes_sent"]
        pair.primary.pyrepl("volume", "restore", "db/data", "monday", "--force")
        assert read_files(disk.mount()) == kept
        again = write_files(disk.root, 3)
        disk.unmount()
        clients.run("e2fsck", "-fn", disk.device)
        check_far(pair, tmp_path, {**kept, **again})
        assert pair.group.link("far").status()["bytes_sent"]["copied"] == sent["copied"], "the restore copied data"


def test_a_snapshot_of_a_mounted_file_system(pairs, tmp_path):
    """Taken while files are being written: what was fsynced before it is there after a journal replay, at both sites."""
    pair = pairs(SIZE, "sync")
    with FileSystem(pair.export.uri(), tmp_path / "near") as disk:
        disk.make()
        root = disk.mount()
        kept = write_files(root, 1)
        pair.primary.pyrepl("snapshot", "create", "db/data", "live")
        write_files(root, 2)
        disk.unmount()
    pair.settle()
    for number, daemon in enumerate((pair.primary, pair.secondary)):
        daemon.pyrepl("export", "start", "live", "db/live", "--read-only")
        copy = tmp_path / f"copy-{number}"
        clients.run("nbdcopy", daemon.uri("live"), copy)
        clients.run("e2fsck", "-fy", "-E", "journal_only", copy, status=None)
        with LoopMount(copy, tmp_path / f"mount-{number}") as mounted:
            found = read_files(mounted)
            assert {name: found.get(name) for name in kept} == kept
        clients.run("e2fsck", "-fn", copy)
