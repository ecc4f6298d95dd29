"""The file in which a daemon keeps its jobs, so that they outlive it: ``jobs`` in the node's folder.

    head      what the file is, and its version: the first line
    numbers   from here on no number was given yet: the last such line counts
    given     a command has come
    ended     it is over, in whichever way

One line of JSON each, appended by a thread of its own: whoever gives a command never waits for this disk. So what came
in the last moment before a crash, or in the last second before a loss of power, may be missing. Numbers are set aside a
hundred at a time, before they are needed, so that none is given twice all the same. What a crash has torn at the end is
left out; a file that is damaged otherwise is set aside as ``jobs.damaged``, and what of it can be read goes on. A file
that has become long is written anew.

Decides the encoding, what of a file can be believed, and how long it may be. Must not know what commands are, nor which
of them are kept (``jobs``).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from pyrepl.runtime.placement import sync_folder

_log = logging.getLogger("pyrepl.jobs")

NAME = "jobs"
VERSION = 1
MOST = 8 << 20  # bytes of the file: it is written anew before it becomes longer
MOST_LINES = 8000  # ... or has more lines
MOST_ANEW = MOST // 2  # bytes that it has then, at most: the oldest jobs are left out
MOST_READ = 64 << 20  # bytes: a longer file is none of this program's
AHEAD = 100  # numbers that are set aside at a time
SYNC_EVERY = 1.0  # seconds
PATIENCE = 5.0  # seconds that start and end wait for what is to be written


class Head(msgspec.Struct, frozen=True, tag_field="line", tag="jobs", forbid_unknown_fields=True):
    """The first line."""

    version: int


class Numbers(msgspec.Struct, frozen=True, tag_field="line", tag="numbers", forbid_unknown_fields=True):
    """No number from ``next`` on was given yet."""

    next: int


class Given(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="given", forbid_unknown_fields=True):
    """A command, and who gave it when (seconds since 1970). ``arguments``: an object of JSON."""

    id: int
    verb: str
    group: str | None
    arguments: msgspec.Raw
    user: str
    pid: int
    time: float


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="ended", forbid_unknown_fields=True):
    """What came of it. ``seconds``: that it took; None: it is not known when it ended."""

    id: int
    state: str
    seconds: float | None
    code: str | None = None
    error: str | None = None
    lsn: int | None = None
    result: str | None = None


Line = Head | Numbers | Given | Ended
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


class Found(NamedTuple):
    """What a file holds: jobs, in the order in which they were given, with None in place of an end that is not known;
    and the first number that was not given yet."""

    jobs: list[tuple[Given, Ended | None]]
    next: int


class JobFile:
    """The file of one daemon. :meth:`read`, then :meth:`begin`, at last :meth:`end`.

    Args:
        folder: of the node.
        kept: all that a new file is to hold, the newest last; called by the thread that writes.
    """

    def __init__(self, folder: Path, kept: Callable[[], Sequence[Line]]) -> None:
        self._path = folder / NAME
        self._kept = kept
        self._ready = threading.Condition()
        self._waiting: list[Line] = []
        self._ending = False
        self._tried = threading.Event()  # to write it the first time
        self._unsynced = False  # something of it may not outlive a loss of power
        self._synced = 0.0  # when that was so last
        self._fd = -1  # of the file as it was written anew; -1: what stands there cannot be appended to
        self._length = self._lines = 0
        self._thread = threading.Thread(target=self._run, name="pyrepl-jobs", daemon=True)

    # ---- at the start

    def read(self) -> Found:
        """What the daemon before has kept. Never raises for what stands there: it is set aside, and the log says so."""
        try:
            with open(self._path, "rb") as file:
                data = file.read(MOST_READ + 1)
        except FileNotFoundError:
            return Found([], 1)
        except OSError as error:
            self._set_aside(f"it cannot be read: {error}")
            return Found([], 1)
        lines, problem = _decode(data)
        found = _sort(lines)
        if not problem:
            return found
        self._set_aside(problem)
        return found._replace(next=found.next + AHEAD)  # of a line that is lost, too

    def begin(self, numbers: Numbers) -> None:
        """What is kept is written anew, and what comes is appended from here on. Waits for that, so that these numbers
        are set aside before the first of them is given; not for ever."""
        self.append(numbers)
        self._thread.start()
        self._tried.wait(PATIENCE)

    # ---- while it runs

    def append(self, line: Line) -> None:
        """It is written soon. Never waits, and never raises."""
        with self._ready:
            if not self._ending:
                self._waiting.append(line)
                self._ready.notify()

    def end(self, numbers: Numbers) -> None:
        """Nothing more is kept; returns when all of it is written, or after a few seconds. Harmless the second time."""
        with self._ready:
            if self._ending:
                return
            self._waiting.append(numbers)
            self._ending = True
            self._ready.notify()
        if self._thread.ident is not None:
            self._thread.join(PATIENCE)

    # ---- inside

    def _set_aside(self, problem: str) -> None:
        aside = self._path.with_name(f"{NAME}.damaged")
        try:
            os.replace(self._path, aside)
            _log.warning("the jobs of before in %s: %s. What can be read of them is kept; the file is %s now",
                         self._path, problem, aside)
        except OSError as error:
            _log.warning("the jobs of before in %s: %s. What can be read of them is kept; the file cannot be set "
                         "aside: %s", self._path, problem, error)

    def _run(self) -> None:
        said = ""
        while True:
            with self._ready:
                until_sync = max(0.0, self._synced + SYNC_EVERY - time.monotonic()) if self._unsynced else None
                self._ready.wait_for(lambda: self._waiting or self._ending, until_sync)
                lines, self._waiting = self._waiting, []
                ending = self._ending
            try:
                if lines:
                    self._write(lines)
                self._sync(now=ending or any(isinstance(line, Numbers) for line in lines))
                if said:
                    _log.info("jobs are kept over a restart again")
                said = ""
            except OSError as error:
                self._forget()  # a part of a line may stand there
                if said != str(error):
                    said = str(error)
                    _log.warning("jobs are not kept over a restart: %s", error)
            self._tried.set()
            if ending:
                self._forget()
                return

    def _write(self, lines: list[Line]) -> None:
        """Appends these, or writes all anew if they cannot be."""
        encoded = [_encoder.encode(line) + b"\n" for line in lines]
        length = sum(map(len, encoded))
        if self._fd < 0 or self._length + length > MOST or self._lines + len(lines) > MOST_LINES:
            self._write_anew()  # with these: they are among what is kept
            return
        self._unsynced = True
        _write_all(self._fd, b"".join(encoded))
        self._length += length
        self._lines += len(lines)

    def _sync(self, *, now: bool) -> None:
        """What was written outlives a loss of power: numbers that are set aside at once, the rest a moment later, for
        the journals may be on the same disk."""
        if self._unsynced and self._fd >= 0 and (now or time.monotonic() - self._synced >= SYNC_EVERY):
            os.fdatasync(self._fd)
            self._unsynced, self._synced = False, time.monotonic()

    def _write_anew(self) -> None:
        self._forget()
        head, *rest = [_encoder.encode(line) + b"\n" for line in (Head(VERSION), *self._kept())]
        left, chosen = MOST_ANEW, list[bytes]()
        for line in reversed(rest):  # what ended and does not say what it was is left out when it is read
            left -= len(line)
            if left < 0:
                break
            chosen.append(line)
        data = b"".join([head, *reversed(chosen)])
        fresh = self._path.with_name(f"{NAME}.new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, data)
            os.fsync(fd)
            os.replace(fresh, self._path)
            sync_folder(self._path.parent)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._length, self._lines = fd, len(data), 1 + len(chosen)
        self._unsynced, self._synced = False, time.monotonic()

    def _forget(self) -> None:
        fd, self._fd, self._unsynced = self._fd, -1, False
        if fd >= 0:
            os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left):]


def _decode(data: bytes) -> tuple[list[Line], str]:
    """The lines that can be read, and what is wrong with the file, if anything is. What stands behind the last end of a
    line is what a crash has torn."""
    if len(data) > MOST_READ:
        return [], f"it is longer than {MOST_READ} bytes"
    lines, problem = list[Line](), ""
    for number, text in enumerate(data.split(b"\n")[:-1], 1):
        try:
            line = _decoder.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            problem = problem or f"line {number} cannot be read ({error})"
            continue
        if isinstance(line, Head) and line.version != VERSION:
            return [], f"it has version {line.version}, this program reads {VERSION}"
        if isinstance(line, Head) != (number == 1):
            problem = problem or f"line {number} is not one that stands there"
        lines.append(line)
    return lines, problem or ("" if lines else "it is empty")


def _sort(lines: list[Line]) -> Found:
    given, ended, following = dict[int, Given](), dict[int, Ended](), 1
    for line in lines:
        match line:
            case Numbers(number):
                following = number
            case Given():
                given[line.id] = line
            case Ended():
                ended[line.id] = line
            case Head():
                pass
    jobs = [(given[number], ended.get(number)) for number in sorted(given)]
    return Found(jobs, max([following, *(number + 1 for number in [*given, *ended])]))
