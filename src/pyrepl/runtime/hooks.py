"""Hooks: what a site does beside the order where a mark passes, with a bound on the time that it takes.

    hold   the applier stands before the mark until the hook has ended: the stores are, flushed, as of that point. A
           dead-man timer releases it after ``timeout``, and so does a journal that fills, for writers never wait for
           a hook. It runs before the mark is performed: a site that dies meanwhile runs it again (at least once)
    else   it runs after the mark, and nothing waits for it: one after the other, at most once

A program is run without a shell, in a session of its own, and killed when its time is over; a callable cannot be
killed: nobody waits for it any more. Whatever came of it is in ``runs``, and is emitted. Decides when a hook is begun,
given up and what is said of it. Must not know what a mark means.

Those that are over outlive a restart, in a file of the group's folder, for people: it is replaced when a hook has
ended, and nothing waits for the disk. One that cannot be read, or is of another journal, says nothing; one that cannot
be written is as old as it is.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from pyrepl.catalog import check_name
from pyrepl.errors import UsageError

if TYPE_CHECKING:
    from pyrepl.operations import Mark
    from pyrepl.site import Site

ANY = "*"
TIMEOUT = 10.0  # seconds, where none is given
LONGEST = 300.0  # seconds
MOST_RUNS = 32  # kept of a group
MOST_QUEUED = 64  # hooks that hold nothing, waiting for their turn
MOST_TEXT = 1024  # characters of what a program wrote
NAME = "hooks"
VERSION = 1
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Passing(NamedTuple):
    """What a hook is told."""

    group: str
    mark: str
    payload: bytes
    lsn: int
    role: str
    """Of this site: primary or secondary."""


@dataclass(frozen=True)
class Hook:
    """What a site does at a mark.

    Args:
        mark: its name; ``"*"``: every mark that has no hook of its own.
        run: a callable, or a program (its whole path) with its arguments.
        timeout: seconds, at most 300.
        hold: the applier stands before the mark until it has ended.

    Raises:
        UsageError: the text names value and rule.
    """

    mark: str
    run: Callable[[Passing], object] | Sequence[str]
    timeout: float = TIMEOUT
    hold: bool = False

    def __post_init__(self) -> None:
        run, timeout = self.run, self.timeout
        if self.mark != ANY:
            check_name(self.mark)
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= LONGEST:
            raise UsageError(
                f"timeout={timeout!r}: the time of a hook is bounded: above 0, at most {LONGEST:g} seconds")
        if callable(run):
            return
        words = [] if isinstance(run, str | bytes) or not isinstance(run, Sequence) else list(run)
        if not words or not all(isinstance(word, str) and "\0" not in word for word in words):
            raise UsageError(
                f"the hook of mark {self.mark!r}: give a callable, or a list of a program and its arguments")
        if not words[0].startswith("/"):
            raise UsageError(
                f"the hook of mark {self.mark!r}: {words[0]!r}: give the whole path of the program, from / on",
                program=words[0])


class Told(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is said of a hook that is over."""

    mark: str
    lsn: int
    hold: bool
    state: str
    exit_status: int | None
    seconds: float
    text: str


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file holds: the last that are over, oldest first, of the group with this journal (its uuid)."""

    version: int = VERSION
    journal: str
    runs: list[Told]


class _Run:
    """One hook at one mark."""

    def __init__(self, hook: Hook, passing: Passing) -> None:
        self.hook, self.passing = hook, passing
        self.state, self.text = "queued", ""
        self.exit_status: int | None = None
        self.seconds = 0.0
        self.over = threading.Event()
        self._begin = time.monotonic()
        self._ending = threading.Lock()
        self._pid = 0  # of a program that runs: the leader of its session, too

    def begin(self) -> None:
        """Runs it, for at most its time. In a thread that may wait so long."""
        self._begin = time.monotonic()
        self.state = "running"
        try:
            if callable(self.hook.run):
                worker = threading.Thread(target=self._call, args=(self.hook.run,), name="pyrepl-hook", daemon=True)
                worker.start()
            else:
                self._start(list(self.hook.run))
        except (OSError, RuntimeError) as error:  # no descriptor, or no thread, is to be had
            what = self.hook.run[0] if not callable(self.hook.run) else self.hook.mark
            self.end("failed", f"{what}: {getattr(error, 'strerror', None) or error}")
            self._reap()
        if not self.over.wait(self.hook.timeout):
            self.end("timed-out", f"it had not ended after {self.hook.timeout:g} s")

    def end(self, state: str, text: str, exit_status: int | None = None) -> bool:
        """What came of it; what comes later changes nothing. A program that still runs is killed."""
        with self._ending:
            if self.over.is_set():
                return False
            self.state, self.text, self.exit_status = state, text[:MOST_TEXT], exit_status
            self.seconds = time.monotonic() - self._begin
            self.over.set()
            if self._pid:
                with suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)  # what it has begun in its session, too
        return True

    def _reap(self) -> None:
        """Of a program that was killed, and that nobody watches."""
        with self._ending:
            if self._pid:
                os.waitpid(self._pid, 0)
                self._pid = 0

    def told(self) -> dict[str, Any]:
        """For people and programs."""
        return {
            "mark": self.passing.mark,
            "lsn": self.passing.lsn,
            "hold": self.hook.hold,
            "state": self.state,
            "exit_status": self.exit_status,
            "seconds": self.seconds if self.over.is_set() else time.monotonic() - self._begin,
            "text": self.text,
        }

    def _call(self, call: Callable[[Passing], object]) -> None:
        try:
            call(self.passing)
        except BaseException as error:
            self.end("failed", f"{type(error).__name__}: {error}")
        else:
            self.end("done", "")

    def _start(self, program: list[str]) -> None:
        told = self.passing
        environment = {
            "PATH": _PATH, "PYREPL_MARK": told.mark, "PYREPL_GROUP": told.group, "PYREPL_LSN": str(told.lsn),
            "PYREPL_ROLE": told.role,
        }  # fmt: skip
        with ExitStack() as ends:
            stdin, payload = _pipe(ends)
            output, stdout = _pipe(ends)
            os.write(payload, told.payload)  # at most 4096 bytes: a pipe holds them
            with self._ending:
                if self.over.is_set():
                    return
                # Not by subprocess: the program would have the signals blocked that the daemon's threads have blocked.
                self._pid = os.posix_spawn(
                    program[0], program, environment, setsid=True, setsigmask=(), setsigdef=(signal.SIGPIPE,),
                    file_actions=[(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1),
                                  (os.POSIX_SPAWN_DUP2, stdout, 2),
                                  *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inherited())],
                )  # fmt: skip
            with ExitStack() as watched:
                fds = _kept(watched, os.dup(output)), _kept(watched, os.pidfd_open(self._pid))
                threading.Thread(target=self._watch, args=fds, name="pyrepl-hook", daemon=True).start()
                watched.pop_all()  # the thread closes them

    def _watch(self, output: int, ended: int) -> None:
        """Until the program has ended, of itself or killed; its first words are kept."""
        wrote, poll = bytearray(), select.poll()
        try:
            os.set_blocking(output, False)
            poll.register(output, select.POLLIN)
            poll.register(ended, select.POLLIN)
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if output in ready and not self._take(output, wrote):
                    poll.unregister(output)
                if ended in ready:
                    break
            for _ in range(16):  # what it had begun may write for ever
                if not self._take(output, wrote):
                    break
            with self._ending:
                _, status = os.waitpid(self._pid, 0)
                self._pid = 0  # another process may have this number from now on
        finally:
            os.close(output)
            os.close(ended)
        code = os.waitstatus_to_exitcode(status)
        self.end("failed" if code else "done", wrote.decode(errors="replace").strip(), code)

    @staticmethod
    def _take(output: int, wrote: bytearray) -> bool:
        """Some of what the program wrote; False: there is nothing now, or no more."""
        try:
            some = os.read(output, 65536)
        except BlockingIOError:
            return False
        wrote += some[: 4 * MOST_TEXT - len(wrote)]
        return bool(some)


def _pipe(ends: ExitStack) -> tuple[int, int]:
    """Both ends of one; they are closed with these."""
    output, entry = os.pipe()
    return _kept(ends, output), _kept(ends, entry)


def _kept(ends: ExitStack, fd: int) -> int:
    ends.callback(os.close, fd)
    return fd


def _inherited() -> list[int]:
    """Descriptors that this process was given itself, and that a program would get: none of its business."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the folder, and what others have closed since
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


class Hooks:
    """Those of one group; the gate of its site. ``set`` may be called at any time."""

    def __init__(self, site: Site, hooks: Sequence[Hook], emit: Callable[[dict[str, Any]], None], folder: Path) -> None:
        self._site = site
        self._file = folder / NAME
        self._journal = site.journal.superblock["journal"].hex()
        self._writing = threading.Lock()
        self._earlier = self._read()  # from before this start
        self._hooks = {hook.mark: hook for hook in hooks}
        self._emit = emit
        self.hurry: Callable[[], None] = lambda: None  # the applier is to look again
        self.runs: deque[_Run] = deque(maxlen=MOST_RUNS)
        self._held: _Run | None = None
        self._queue: deque[_Run] = deque()
        self._wanted = threading.Condition()
        self._worker: threading.Thread | None = None
        self._closed = False

    def set(self, mark: str, hook: Hook | None) -> None:
        """From now on; None: no more."""
        hooks = dict(self._hooks)
        hooks.pop(mark, None)
        if hook is not None:
            hooks[mark] = hook
        self._hooks = hooks

    def told(self) -> list[dict[str, Any]]:
        """The last that were begun, oldest first, those from before this start too."""
        return [*self._earlier, *(run.told() for run in list(self.runs))][-MOST_RUNS:]

    def close(self) -> None:
        """No hook begins any more; what is held stays so, and one that runs is given up."""
        with self._wanted:
            self._closed = True
            queued, self._queue = list(self._queue), deque()
            self._wanted.notify()
        for run in [*queued, *list(self.runs)]:
            run.end("ended", "the group was closed")
        self._keep()

    # ---- the gate: the applier's thread

    def may_pass(self, mark: Mark, lsn: int) -> bool:
        """See :class:`pyrepl.seams.Gate`."""
        run = self._held
        if run is None or run.passing.lsn != lsn:
            hook = self._of(mark)
            if hook is None or not hook.hold:
                return True
            if self._closed:
                return False
            self._site.stores.flush()  # whoever looks at the devices from outside sees this point
            run = self._held = self._made(hook, mark, lsn)
            try:
                threading.Thread(target=self._hold, args=(run,), name="pyrepl-hold", daemon=True).start()
            except RuntimeError as error:
                run.end("failed", str(error))  # no thread is to be had
                self._say(run)
        if self._closed:
            return False
        if not run.over.is_set() and self._is_filling():
            self._end(run, "released", "the journal has no room to wait longer")
        return run.over.is_set()

    def passed(self, mark: Mark, lsn: int) -> None:
        """See :class:`pyrepl.seams.Gate`."""
        run, self._held = self._held, None
        if run is not None and run.passing.lsn == lsn:
            self._end(run, "released", "the site has changed its role")
            return
        hook = self._of(mark)
        if hook is None or self._closed:
            return
        run = self._made(hook, mark, lsn)
        with self._wanted:
            if len(self._queue) >= MOST_QUEUED:
                self._end(run, "skipped", f"{MOST_QUEUED} hooks wait for their turn already")
                return
            if self._worker is None:
                worker = threading.Thread(target=self._work, name="pyrepl-hooks", daemon=True)
                try:
                    worker.start()
                except RuntimeError as error:
                    self._end(run, "failed", str(error))
                    return
                self._worker = worker
            self._queue.append(run)
            self._wanted.notify()

    # ---- inside

    def _of(self, mark: Mark) -> Hook | None:
        return self._hooks.get(mark.name) or self._hooks.get(ANY)

    def _made(self, hook: Hook, mark: Mark, lsn: int) -> _Run:
        site = self._site
        run = _Run(hook, Passing(site.name, mark.name, mark.payload, lsn, site.role))
        self.runs.append(run)
        return run

    def _is_filling(self) -> bool:
        state = self._site.window.state()
        return state.wanting or state.ring_used > state.ring_size // 2 or self._site.is_crowded()

    def _read(self) -> list[dict[str, Any]]:
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=Kept)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return []
        of_this = kept.version == VERSION and kept.journal == self._journal
        return [msgspec.structs.asdict(run) for run in kept.runs] if of_this else []

    def _keep(self) -> None:
        over = [*self._earlier, *(run.told() for run in list(self.runs) if run.over.is_set())][-MOST_RUNS:]
        if not over:
            return
        data = msgspec.json.encode({"version": VERSION, "journal": self._journal, "runs": over})
        fresh = self._file.with_name(f"{NAME}.new")
        with self._writing, suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(data)
            os.replace(fresh, self._file)

    def _hold(self, run: _Run) -> None:
        run.begin()
        self._say(run)
        self.hurry()
        self._keep()

    def _work(self) -> None:
        while True:
            with self._wanted:
                self._wanted.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                run = self._queue.popleft()
            run.begin()
            self._say(run)
            self._keep()

    def _end(self, run: _Run, state: str, text: str) -> None:
        if run.end(state, text) and not run.hook.hold:
            self._say(run)  # of one that holds its own thread says it

    def _say(self, run: _Run) -> None:
        told = run.told()
        del told["text"]  # a program's output is for the status, not for everybody who listens
        self._emit({"event": "hook", "group": run.passing.group, **told})


__all__ = ["Hook", "Hooks", "Passing"]
