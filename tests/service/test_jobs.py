"""Jobs outlive the daemon that was given them: what is kept, whatever ended it, and whatever stands in its folder."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

import pyrepl
from pyrepl.remote import requests
from pyrepl.service import job_file
from pyrepl.service.control import User
from pyrepl.service.job_file import AHEAD, Head, JobFile
from pyrepl.service.jobs import KEPT, Jobs

from .conftest import until

USER = User(1, 0, 3, frozenset())
ADD_LARGE = "import sys, pyrepl; pyrepl.connect(sys.argv[1]).group('db').add_image('large', sys.argv[2])"


@pytest.fixture
def folder(tmp_path):
    """Of a node that is closed: what its jobs are kept beside."""
    pyrepl.Node.open(tmp_path / "node", create=True).close()
    return tmp_path / "node"


@contextlib.contextmanager
def jobs_in(folder: Path):
    """As a daemon has them, from start to stop."""
    with pyrepl.Node.open(folder) as node:
        jobs = Jobs(node)
        jobs.start()
        try:
            yield jobs
        finally:
            jobs.stop()


def give(jobs: Jobs, *names: str, words: str = "") -> None:
    for name in names:
        with jobs.track(USER, requests.LinkPause(group="db", name=name + words), 0):
            pass


def names(listed: list[dict]) -> list[str]:
    return [one["arguments"]["name"] for one in listed]


def read(folder: Path) -> job_file.Found:
    return JobFile(folder, list).read()


# ---------------------------------------------------------------- a daemon


def test_what_was_given_to_a_daemon_that_was_killed(daemon, node, group, tmp_path) -> None:
    """What was over is as it was; what was under way was interrupted; numbers go on, and none comes twice."""
    lsn = group.volume("data").snapshot("monday").lsn
    with pytest.raises(pyrepl.PyreplError):
        group.volume("data").snapshot("monday")
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 64 << 30)  # its digest takes more than a minute
    client = subprocess.Popen([sys.executable, "-c", ADD_LARGE, str(daemon.socket), str(path)], stderr=subprocess.DEVNULL)
    until(lambda: node.jobs("db")[-1]["verb"] == "group.add_image", "the command has come")
    before = node.jobs()
    running, kept = before[-1], Path(daemon.folder) / "node" / "jobs"
    assert running["state"] == "running"
    until(lambda: f'"id":{running["id"]},' in kept.read_text(), "it is in the file")
    daemon.stop(signal.SIGKILL)
    client.wait(60)
    daemon.start()
    with daemon.connect() as again:
        found = again.jobs()
        assert found[:-1] == before[:-1] and [one["state"] for one in found[-3:]] == ["done", "failed", "interrupted"]
        assert found[-3]["lsn"] == lsn and found[-2]["code"] == "exists" and found[-2]["error"]
        same = dict.fromkeys(("state", "seconds", "progress"))
        assert found[-1] | same == running | same and found[-1]["seconds"] is None
        assert again.jobs("db")[-1] == found[-1] and again.jobs("nothing") == []
        again.group("db").volume("data").snapshot("tuesday")
        more = again.jobs()[-1]
        assert more["id"] > running["id"] and more["state"] == "done"
    assert daemon.stop() == 0
    daemon.start()
    with daemon.connect() as again:
        assert again.jobs() == [*found, more]
        again.group("db").volume("data").snapshot("wednesday")
        assert again.jobs()[-1]["id"] == more["id"] + 1, "a daemon that ends in good order leaves no gap"


def test_a_file_that_is_damaged_is_set_aside_and_said(daemon, node, group) -> None:
    for name in ("one", "two", "three"):
        group.volume("data").snapshot(name)
    before = node.jobs()
    assert daemon.stop() == 0
    kept = Path(daemon.folder) / "node" / "jobs"
    lines = kept.read_bytes().splitlines(keepends=True)
    lost = next(number for number, line in enumerate(lines) if b'"two"' in line)
    damaged = b"".join([*lines[:lost], b"\x00" * (len(lines[lost]) - 1) + b"\n", *lines[lost + 1:]])
    kept.write_bytes(damaged)
    daemon.start()
    daemon.await_line("pyrepl.jobs", f"line {lost + 1} cannot be read", "jobs.damaged now")
    assert kept.with_name("jobs.damaged").read_bytes() == damaged
    with daemon.connect() as again:
        assert again.jobs() == [one for one in before if one["arguments"].get("name") != "two"]
        again.group("db").volume("data").snapshot("four")
        assert again.jobs()[-1]["id"] > before[-1]["id"]
    assert daemon.stop() == 0
    assert read(kept.parent).jobs[-1][1].state == "done", "it goes on in a new file"


# ---------------------------------------------------------------- what a crash leaves


def test_wherever_a_crash_tears_the_file(folder, caplog) -> None:
    """What stands before that is kept, and half of what is set aside may be missing before a number comes twice."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    with jobs_in(folder) as jobs:
        give(jobs, *map(str, range(3 * AHEAD)))
        before = jobs.list()
        kept = folder / "jobs"
        until(lambda: sum(ended is not None for _, ended in read(folder).jobs) == len(before), "all of it is in the file")
        data = kept.read_bytes()
    head = data.index(b"\n", data.index(b"\n") + 1) + 1  # what a start writes is there before the first number
    ends = [at + 1 for at, byte in enumerate(data) if byte == 10 and at >= head]
    for cut in [*dice.sample(range(head, len(data)), 200), *dice.sample(ends, 50), len(data)]:
        kept.write_bytes(data[:cut])
        found = read(folder)
        assert not kept.with_name("jobs.damaged").exists() and not caplog.records, f"a torn end is no damage ({cut})"
        ids = [given.id for given, _ in found.jobs]
        assert ids == list(range(1, len(ids) + 1)) and data[:cut].count(b'"given"') - len(ids) in (0, 1)
        assert found.next > (ids[-1] if ids else 0) + AHEAD // 2 - 1, f"{found.next} after {ids[-1:]}"
    with jobs_in(folder) as jobs:
        assert jobs.list() == before


def test_one_end_and_many_starts(folder) -> None:
    """Each takes over what the one before had; of what is over the newest stay."""
    for number in range(3):
        with jobs_in(folder) as jobs:
            give(jobs, str(number))
            assert names(jobs.list()) == [str(n) for n in range(number + 1)]
            assert [one["id"] for one in jobs.list()] == list(range(1, number + 2))
    with jobs_in(folder) as jobs:
        give(jobs, *map(str, range(KEPT)))
        newest = jobs.list()
        assert len(newest) == KEPT and newest[0]["id"] == 4
    with jobs_in(folder) as jobs:
        assert jobs.list() == newest


def test_a_long_file_is_written_anew(folder) -> None:
    with jobs_in(folder) as jobs:
        for number in range(240):
            give(jobs, f"{number}-", words="x" * 60000)
            assert (folder / "jobs").stat().st_size <= job_file.MOST
        listed = jobs.list()
    assert (folder / "jobs").stat().st_size <= job_file.MOST
    with jobs_in(folder) as jobs:
        found = jobs.list()
        assert found == listed[-len(found):] and 60 <= len(found) < 240 and jobs.list()[-1]["id"] == 240
        give(jobs, "short")
    found = read(folder)
    assert sum(len(given.arguments) for given, _ in found.jobs) <= job_file.MOST_ANEW + 100 and found.next == 242


# ---------------------------------------------------------------- what stands in its way


@pytest.mark.parametrize(("data", "say"), [
    (b"", "it is empty"), (b"\xff\xfe\n", "line 1 cannot be read"), (b'{"line":"given"}\n', "line 1 cannot be read"),
    (b'{"line":"numbers","next":7}\n', "line 1 is not one that stands there"),
    (b'{"line":"jobs","version":2}\n{"line":"numbers","next":7}\n', "it has version 2, this program reads 1"),
    (b'{"line":"jobs","version":1}\n' + b"[" * 100000 + b"\n", "line 2 cannot be read")])
def test_what_is_no_file_of_jobs(folder, caplog, data, say) -> None:
    (folder / "jobs").write_bytes(data)
    with jobs_in(folder) as jobs:
        assert jobs.list() == []
        give(jobs, "one")
        (one,) = jobs.list()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert say in line and "jobs.damaged" in line and (folder / "jobs.damaged").read_bytes() == data
    assert one["id"] > (7 if b'"version":2' not in data and b"7" in data else 0)
    assert [given.id for given, _ in read(folder).jobs] == [one["id"]]


def test_a_file_that_cannot_be_read(folder, caplog) -> None:
    (folder / "jobs").mkdir()
    with jobs_in(folder) as jobs:
        give(jobs, "one")
    assert (folder / "jobs.damaged").is_dir() and "cannot be read" in caplog.text
    assert names(listed(folder)) == ["one"]


def listed(folder: Path) -> list[dict]:
    with jobs_in(folder) as jobs:
        return jobs.list()


def test_a_file_that_cannot_be_written(folder, caplog) -> None:
    """It is said once; what is given meanwhile is in the list, and is kept as soon as it can be."""
    (folder / "jobs.new").mkdir()
    with jobs_in(folder) as jobs:
        give(jobs, "one", "two", "three")
        assert names(jobs.list()) == ["one", "two", "three"]
        until(lambda: "jobs are not kept over a restart" in caplog.text, "it is said")
        (folder / "jobs.new").rmdir()
        with caplog.at_level(logging.INFO, "pyrepl.jobs"):
            give(jobs, "four")
            until(lambda: "kept over a restart again" in caplog.text, "that is said, too")
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert names(listed(folder)) == ["one", "two", "three", "four"]


def test_nobody_waits_for_the_disk(folder, monkeypatch) -> None:
    """A write that hangs hangs nobody: neither commands, nor the list."""
    monkeypatch.setattr(job_file, "MOST_LINES", 5)  # it is written anew at once
    with jobs_in(folder) as jobs:
        os.mkfifo(folder / "jobs.new")  # to open it waits for somebody who reads
        begin = time.monotonic()
        give(jobs, *map(str, range(2 * AHEAD)))
        assert len(jobs.list()) == 2 * AHEAD and time.monotonic() - begin < 30
        reader = os.open(folder / "jobs.new", os.O_RDONLY | os.O_NONBLOCK)  # it goes on, and fails: that is no file
        until(lambda: not (folder / "jobs.new").exists() or _emptied(reader), "it goes on")
        monkeypatch.undo()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder / "jobs.new")
        give(jobs, "last")
    os.close(reader)
    assert names(listed(folder))[-1] == "last" and len(listed(folder)) == 2 * AHEAD + 1


def _emptied(reader: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        return bool(os.read(reader, 1 << 16))
    return False


def test_what_was_given_outlives_a_loss_of_power_a_moment_later(folder, monkeypatch) -> None:
    """Numbers that are set aside do at once; and it is not for each command that the disk is flushed."""
    synced: list[int] = []
    real = os.fdatasync

    def watch(fd: int) -> None:
        real(fd)
        synced.append((folder / "jobs").read_bytes().count(b'"given"'))

    monkeypatch.setattr(os, "fdatasync", watch)
    with jobs_in(folder) as jobs:
        give(jobs, "one")
        until(lambda: 1 in synced, "it is durable")
        for number in range(2 * AHEAD):
            give(jobs, str(number))
            time.sleep(0.001)
        until(lambda: 2 * AHEAD + 1 in synced, "all are")
        assert len(synced) < AHEAD


def test_what_stands_in_it(folder) -> None:
    """For its owner alone, and nothing of data: only how many bytes."""
    with jobs_in(folder) as jobs, jobs.track(USER, requests.GroupMark(group="db", name="m", message=b"secret"), 0):
        pass
    assert (folder / "jobs").stat().st_mode & 0o777 == 0o600
    first, *_ = (folder / "jobs").read_bytes().splitlines()
    assert msgspec.json.decode(first, type=Head) == Head(job_file.VERSION)
    assert b"secret" not in (folder / "jobs").read_bytes() and b'"message":6' in (folder / "jobs").read_bytes()
