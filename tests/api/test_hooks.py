"""Hooks at marks, over real TCP: what they are told, that a held applier stands exactly there, and how a hold ends."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import pyrepl
from pyrepl.errors import UsageError
from tests.api.test_verify import REGION, SIZE, Two


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    made = Two(tmp_path)
    yield made
    made.close()


def until(true: Any, what: str) -> Any:
    end = time.monotonic() + 30
    while not (found := true()):
        assert time.monotonic() < end, what
        time.sleep(0.01)
    return found


def runs(group: pyrepl.Group, state: str = "") -> list[dict[str, Any]]:
    return [run for run in group.status()["hooks"] if state in ("", run["state"])]


class Holding:
    """A hook that lasts until it is let go."""

    def __init__(self) -> None:
        self.told: list[pyrepl.Passing] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, passing: pyrepl.Passing) -> None:
        self.told.append(passing)
        self.begun.set()
        assert self.go.wait(60)


def test_both_sites_are_told(two: Two) -> None:
    here: list[pyrepl.Passing] = []
    there: list[pyrepl.Passing] = []
    far = two.b.group("db")
    events = two.a.events()
    two.group.on_mark("noon", here.append)
    far.on_mark("*", there.append)
    two.group.mark("midnight", b"x")
    lsn = two.group.mark("noon", b"payload").lsn
    until(lambda: len(there) == 2 and here, "the hooks ran")
    assert here == [("db", "noon", b"payload", lsn, "primary")]
    assert [(p.mark, p.lsn, p.role) for p in there] == [("midnight", lsn - 1, "secondary"), ("noon", lsn, "secondary")]
    (run,) = until(lambda: runs(two.group, "done"), "it is said")
    assert (run["mark"], run["lsn"], run["hold"], run["exit_status"], run["text"]) == ("noon", lsn, False, None, "")
    told = until(lambda: next((e for e in iter(lambda: events.get(30), None) if e["event"] == "hook"), None), "an event")
    assert (told["mark"], told["lsn"], told["state"]) == ("noon", lsn, "done")
    two.group.on_mark("noon", None)
    two.group.mark("noon", wait=True)
    assert len(runs(two.group)) == 1


def test_a_secondary_that_is_held_stands_exactly_there(two: Two) -> None:
    """Writers go on: what the secondary shows, and what is on its device, stays as of the mark until the hook ends."""
    data, far, hook = two.group.volume("data"), two.b.group("db"), Holding()
    data.write(0, os.urandom(SIZE))
    far.on_mark("noon", hook, hold=True, timeout=60)
    before = data.read(0, SIZE)
    lsn = two.group.mark("noon").lsn
    data.write(0, os.urandom(SIZE))
    two.group.snapshot("after")
    assert hook.begun.wait(30)
    until(lambda: far.status()["lsn"]["durable"] >= lsn + 2, "what follows has arrived")
    time.sleep(0.3)
    assert far.applied_lsn == lsn - 1
    path = next(s["path"] for s in far.status()["stores"] if s["name"] == "data")
    assert Path(path).read_bytes() == before  # from outside
    with far.open_view("data") as view:
        assert view.lsn == lsn - 1 and view.read(0, SIZE) == before
    assert runs(far, "running")[0]["hold"] and two.link.status()["applied_lsn"] < lsn
    hook.go.set()
    two.group.wait(where="paris", timeout=30)
    assert runs(far)[0]["state"] == "done" and two.equal() and hook.told[0].lsn == lsn


def test_a_primary_that_is_held(two: Two) -> None:
    """Its writers do not wait, and read what they wrote; the mark is performed when the hook has ended."""
    data, hook = two.group.volume("data"), Holding()
    two.group.on_mark("noon", hook, hold=True, timeout=60)
    result = two.group.mark("noon", wait=False)
    assert hook.begun.wait(30)
    new = os.urandom(REGION)
    data.write(0, new)
    assert data.read(0, REGION) == new and result.state == "admitted"
    two.link.wait_synced(timeout=30)  # the secondary is not held
    two.link.wait_applied(result.lsn + 1, timeout=30)
    hook.go.set()
    assert result.wait(timeout=30).state == "performed"


def test_who_finds_no_room_ends_a_hold_however_little_of_it_is_taken(tmp_path: Path) -> None:
    """Zeros take next to nothing of the journal; what bounds them is an index in memory."""
    hook = Holding()
    with pyrepl.Node.open(tmp_path / "node", create=True) as node:
        group = node.create_group("db", tmp_path / "journal", journal_size=64 << 20)
        data = group.add_volume("data", size=1 << 30)
        group.on_mark("noon", hook, hold=True, timeout=120)
        mark = group.mark("noon", wait=False)
        assert hook.begun.wait(30)
        begin = time.monotonic()
        for offset in range(0, 384 << 20, 1 << 20):
            data.discard(offset, 1 << 20)
        assert mark.wait(timeout=30).state == "performed" and time.monotonic() - begin < 60
        (run,) = runs(group)
        assert run["state"] == "released" and "no room" in run["text"]
        hook.go.set()


def zombies() -> set[str]:
    """Processes that this one began, and has not reaped."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                found.add(path.parent.name)
    return found


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("what", ["descriptors", "descriptors of watchers", "threads", "first threads", "watchers"])
def test_one_that_cannot_be_begun_is_over(two: Two, monkeypatch: pytest.MonkeyPatch, what: str, hold: bool) -> None:
    """Nobody waits for it then, and those after it have their turn."""
    def none(*args: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    start = threading.Thread.start

    def begins(thread: threading.Thread) -> None:
        if thread.name in (("pyrepl-hold", "pyrepl-hooks") if what == "first threads" else ("pyrepl-hook",)):
            raise RuntimeError("can't start new thread")
        start(thread)

    two.group.on_mark("noon", len if what == "threads" else ["/bin/true"], hold=hold, timeout=60)
    open_before, dead_before = len(os.listdir("/proc/self/fd")), zombies()
    with monkeypatch.context() as patch:
        if what == "descriptors":
            patch.setattr("pyrepl.runtime.hooks.os.pipe", none)
        elif what == "descriptors of watchers":
            patch.setattr("pyrepl.runtime.hooks.os.pidfd_open", none)
        else:
            patch.setattr(threading.Thread, "start", begins)
        two.group.mark("noon", timeout=30)
        (run,) = until(lambda: runs(two.group, "failed"), "it is over")
    if "watchers" in what:
        until(lambda: len(os.listdir("/proc/self/fd")) <= open_before, "nothing of it stays open")
        until(lambda: zombies() <= dead_before, "nobody is left to be reaped")
    assert run["text"].endswith("Too many open files" if "descriptors" in what else "can't start new thread")
    two.group.on_mark("noon", ["/bin/true"], hold=hold)
    two.group.mark("noon", timeout=30)
    until(lambda: runs(two.group, "done"), "the next one")


def test_the_dead_mans_timer(two: Two) -> None:
    hook = Holding()
    far = two.b.group("db")
    far.on_mark("noon", hook, hold=True, timeout=0.5)
    lsn = two.group.mark("noon").lsn
    two.group.wait(lsn, where="paris", timeout=30)
    (run,) = runs(far)
    assert run["state"] == "timed-out" and 0.5 <= run["seconds"] < 60 and "0.5 s" in run["text"]
    hook.go.set()  # what comes late changes nothing
    two.group.mark("midnight")
    two.group.wait(where="paris", timeout=30)
    assert runs(far)[0]["state"] == "timed-out"


def test_writers_do_not_wait_for_a_hook(two: Two) -> None:
    """The memory of the journal fills while the applier is held: the hold ends long before its time, and says so."""
    hook, data = Holding(), two.group.volume("data")
    two.group.on_mark("noon", hook, hold=True, timeout=300)
    result = two.group.mark("noon", wait=False)
    assert hook.begun.wait(30)
    written = 0
    while result.state == "admitted":
        data.write(written % SIZE, bytes(1 << 20))
        written += 1 << 20
        assert written < 1 << 30
    (run,) = runs(two.group)
    assert run["state"] == "released" and "no room" in run["text"] and run["seconds"] < 60
    hook.go.set()


def test_hooks_that_fail(two: Two) -> None:
    def broken(passing: pyrepl.Passing) -> None:
        raise ValueError("not today")

    two.group.on_mark("noon", broken, hold=True)
    two.group.mark("noon")
    assert [(r["state"], r["text"]) for r in runs(two.group)] == [("failed", "ValueError: not today")]


SCRIPT = """
import os, signal, sys
print(*(os.environ.get(name) for name in ("PYREPL_GROUP", "PYREPL_MARK", "PYREPL_LSN", "PYREPL_ROLE")), sys.stdin.read())
print(sorted(os.environ), os.getcwd(), sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
sys.exit(3)
"""


def test_a_program(two: Two, tmp_path: Path) -> None:
    """What it is told, what it inherits (nothing), its exit status and its words."""
    script = tmp_path / "hook.py"
    script.write_text(SCRIPT)
    two.group.on_mark("noon", [sys.executable, "-I", str(script)], hold=True, timeout=60)
    lsn = two.group.mark("noon", b"hello").lsn
    (run,) = runs(two.group)
    assert (run["state"], run["exit_status"]) == ("failed", 3)
    first, second = run["text"].splitlines()
    assert first == f"db noon {lsn} primary hello"
    names, _, rest = second.partition("] ")
    assert {"PATH", "PYREPL_GROUP", "PYREPL_LSN", "PYREPL_MARK", "PYREPL_ROLE"} == {n for n in eval(names + "]") if n != "LC_CTYPE"}
    assert rest.endswith(" set()") and rest.count("pipe:[") == 3, rest  # its three; no signal is blocked


def test_a_program_that_hangs_is_killed_with_what_it_began(two: Two, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    two.group.on_mark("noon", ["/bin/sh", "-c", f"sleep 1000 & echo $! $$ > {pids}; wait"], hold=True, timeout=4)
    two.group.mark("noon")
    (run,) = runs(two.group)
    assert run["state"] == "timed-out"
    for pid in map(int, pids.read_text().split()):
        until(lambda pid=pid: not _lives(pid), f"process {pid} was killed")


def _lives(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_program_that_is_not_there(two: Two) -> None:
    two.group.on_mark("noon", ["/nowhere/hook"], hold=True)
    two.group.mark("noon")
    assert runs(two.group)[0]["state"] == "failed" and "/nowhere/hook: No such file" in runs(two.group)[0]["text"]


def test_many_marks_at_once(two: Two) -> None:
    """Hooks that hold nothing run one at a time in the order of the marks; what is too much is skipped, and said."""
    hook = Holding()
    two.group.on_mark("*", hook)
    two.group.mark("m0")
    assert hook.begun.wait(30)  # it waits for its turn no longer: there is room for the next
    for n in range(1, 80):
        two.group.mark(f"m{n}", wait=False)
    two.group.wait(timeout=30)
    until(lambda: len(runs(two.group, "skipped")) == 15, "what is too much is skipped")
    assert "wait for their turn" in runs(two.group, "skipped")[0]["text"]
    hook.go.set()
    until(lambda: len(hook.told) == 65, "all that were not skipped have run")
    assert [p.mark for p in hook.told] == [f"m{n}" for n in range(65)]


def test_a_site_that_dies_while_it_is_held_holds_again(two: Two) -> None:
    """The mark is not performed: the hook runs again after the start, where the site stands at the same point."""
    hook, data = Holding(), two.group.volume("data")
    two.b.group("db").on_mark("noon", hook, hold=True, timeout=60)
    lsn = two.group.mark("noon").lsn
    data.write(0, os.urandom(REGION))
    assert hook.begun.wait(30)
    two.b.close()  # as far as the mark it is the same as a crash: nothing behind it is performed
    assert hook.told[0].lsn == lsn
    again = Holding()
    two.b = pyrepl.Node.open(two.path / "b", hooks=lambda group: [pyrepl.Hook("noon", again, hold=True, timeout=60)] if group == "db" else [])
    two.b.listen(*two.address)
    assert again.begun.wait(30) and again.told[0].lsn == lsn
    assert two.b.group("db").applied_lsn == lsn - 1
    again.go.set()
    hook.go.set()
    assert two.equal()


def test_a_change_of_role_passes_what_is_held(two: Two) -> None:
    hook, far = Holding(), two.b.group("db")
    far.on_mark("noon", hook, hold=True, timeout=60)
    lsn = two.group.mark("noon").lsn
    two.group.volume("data").write(0, b"after")
    assert hook.begun.wait(30)
    until(lambda: far.status()["lsn"]["durable"] > lsn, "what follows has arrived")
    two.a.close()
    far.takeover()
    assert far.volume("data").read(0, 5) == b"after" and runs(far)[0]["state"] == "released"
    hook.go.set()


@pytest.mark.parametrize(("arguments", "options", "words"), [
    (("no/name", print), {}, "no/name"),
    (("noon", "/bin/true"), {}, "list of a program"),
    (("noon", []), {}, "list of a program"),
    (("noon", ["true"]), {}, "whole path"),
    (("noon", 7), {}, "list of a program"),
    (("noon", ["/bin/true", "a\0b"]), {}, "list of a program"),
    (("noon", print), {"timeout": 0}, "at most 300"),
    (("noon", print), {"timeout": 301}, "at most 300"),
    (("noon", print), {"timeout": True}, "at most 300"),
])
def test_what_cannot_be_a_hook(two: Two, arguments: Any, options: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        two.group.on_mark(*arguments, **options)


def test_what_came_of_them_outlives_a_restart(two: Two) -> None:
    """Of the last 32 that are over; whatever stands in the file, and not of a group that had the name before."""
    def fails(passing: pyrepl.Passing) -> None:
        raise ValueError("a bad day")

    two.group.on_mark("bad", fails)
    two.group.on_mark("good", lambda passing: None, hold=True)
    for number in range(20):
        two.group.mark("bad" if number % 2 else "good")
    until(lambda: len(runs(two.group, "done")) == 10 and len(runs(two.group, "failed")) == 10, "all have run")
    before = two.group.status()["hooks"]
    assert "a bad day" in before[-1]["text"]
    two.a.close()
    two.a = pyrepl.Node.open(two.path / "a")
    two.group = two.a.group("db")
    assert two.group.status()["hooks"] == before
    two.link = two.group.link("paris")
    two.link.wait_synced(timeout=60)
    two.group.on_mark("good", lambda passing: None)
    for _ in range(20):
        two.group.mark("good")
    until(lambda: len(runs(two.group)) == 32 and len(runs(two.group, "done")) == 26, "all have run")
    assert two.group.status()["hooks"][:12] == before[8:]
    last = two.group.status()["hooks"]
    two.a.close()
    file = two.path / "a" / "groups" / "db" / "stores" / "hooks"
    whole = file.read_bytes()
    journal = json.loads(whole)["journal"]
    for data, wanted in ((whole, last), (whole[:-1], []), (b"", []), (whole.replace(journal.encode(), b"0" * 32), []),
                         (whole.replace(b'"version":1', b'"version":2'), [])):
        file.write_bytes(data)
        two.a = pyrepl.Node.open(two.path / "a")
        assert two.a.group("db").status()["hooks"] == wanted
        two.a.close()
    two.a = pyrepl.Node.open(two.path / "a")


def test_a_hook_that_a_kill_interrupted_is_not_said_to_be_over(two: Two) -> None:
    """Only what has ended is kept, as soon as it has."""
    hook = Holding()
    two.group.on_mark("noon", hook)
    two.group.on_mark("later", lambda passing: None, hold=True)
    two.group.mark("noon")
    assert hook.begun.wait(30)
    two.group.mark("later")
    file = two.path / "a" / "groups" / "db" / "stores" / "hooks"
    kept = json.loads(until(lambda: file.exists() and file.read_bytes(), "it is written"))
    assert [(run["mark"], run["state"]) for run in kept["runs"]] == [("later", "done")]
    hook.go.set()
