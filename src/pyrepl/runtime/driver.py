"""The threads of one group: who steps the site, and when.

    apply     the only one that steps: stores, maps, mover, checkpoints; between two steps it runs what others asked
              for (call)
    watch     waits on behalf of ``apply``, which cannot wait for two things at once: for events, and for whoever
              finds no room for one
    commit    writes to the journal what was submitted and nobody waits for
    sweep     once a minute, gives up a verification that nobody asks about any more

Events are left to accumulate for up to 10 ms or an eighth of the ring, so that an epoch is worth its flush and blocks
that are written again are applied once; an operation, a call or close() ends that wait (hurry).

What a step judges is as old as its beginning. So who rests after one is woken by everything that came since then, not
since it ended: what came in between may be the last that comes (it has filled the journal, say).

Decides when to step. Must not know what a step does. An exception in a step is the end of the group: the window fails,
so that nothing is acknowledged any more, and ``on_failure`` hears why.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyrepl.errors import PyreplError, Refused

if TYPE_CHECKING:
    from pyrepl.site import Site

SWEEP = 60.0  # seconds
ACCUMULATE = 0.010  # seconds
LOOK = 5.0  # seconds until there is a step at the latest: something wakes it before, this bounds what a bug could cost


class _Call:
    """A function that another thread wants to run between two steps, and what came of it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error
            if not isinstance(error, PyreplError):
                raise
        finally:
            self._done.set()

    def refuse(self, error: BaseException) -> None:
        self._error = error
        self._done.set()

    def outcome(self) -> Any:
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value


class Driver:
    """Drives one site from the moment it is made until :meth:`close`."""

    def __init__(self, site: Site, on_failure: Callable[[BaseException], None]) -> None:
        self._site = site
        self._on_failure = on_failure
        self.after_step: Callable[[], None] = lambda: None  # what follows each step, and so each write
        self._condition = threading.Condition()
        self._awake = True  # a step may find something to do
        self._stopping = False
        self._failed: BaseException | None = None
        self._failing = threading.Lock()
        self._calls: deque[_Call] = deque()
        self._over = threading.Event()
        self._idle = threading.Event()  # apply has nothing to do: watch for what comes after _idle_at
        self._idle_at = 0, 0  # position, and how often somebody had found no room
        self._rest = LOOK  # seconds until it looks again, whatever comes
        self._threads = [
            threading.Thread(target=body, name=f"{site.name}-{name}", daemon=True)
            for name, body in (("apply", self._apply), ("watch", self._watch), ("commit", self._commit),
                               ("sweep", self._sweep))
        ]
        site.exclusive = self.call
        for thread in self._threads:
            thread.start()

    # ---- from other threads

    def call(self, function: Callable[[], Any]) -> Any:
        """Runs the function between two steps; its value. Its exceptions are the caller's.

        Raises:
            Refused: the group is closed.
        """
        if threading.current_thread() is self._threads[0]:
            return function()
        call = _Call(function)
        with self._condition:
            if self._failed is not None:
                raise self._failed
            if self._stopping:
                raise Refused(f"group {self._site.name!r} is closed", reason="closed")
            self._calls.append(call)
            self._condition.notify()
        return call.outcome()

    def hurry(self) -> None:
        """Somebody waits for what the next steps do."""
        with self._condition:
            self._awake = True
            self._condition.notify()

    def fail(self, error: BaseException) -> None:
        """The group is over: nothing is stepped or acknowledged any more. The first error counts."""
        with self._failing:
            if self._failed is not None:
                return
            self._on_failure(error)  # first: whoever meets the failed window asks there for the reason
            with self._condition:
                self._failed = error
                calls, self._calls = self._calls, deque()
                self._condition.notify()
            self._site.window.fail(errno.EIO)
            for call in calls:
                call.refuse(error)

    def close(self) -> None:
        """Stops stepping, then closes the site: the journal is applied, a checkpoint taken, devices are given back."""
        self._over.set()
        with self._condition:
            self._stopping = True
            self._condition.notify()
        apply, *others = self._threads
        apply.join()
        while self._calls:
            self._calls.popleft().refuse(Refused(f"group {self._site.name!r} was closed", reason="closed"))
        try:
            self._site.close()
        finally:
            self._idle.set()
            for thread in others:
                thread.join()

    # ---- the threads

    def _apply(self) -> None:
        try:
            while self._await_work():
                before = self._site.window.state()
                stepped = self._site.step()
                state = self._site.window.state()
                self.after_step()
                if stepped:
                    self._awake = True
                    continue
                if state.failed:
                    code = abs(state.failed)
                    raise OSError(code, os.strerror(code), self._site.journal.device.name)
                # At a mark that is held nothing can be applied until the gate says so, or the journal fills. That it
                # has filled is for the next step to judge: what came during this one may be the last that finds room.
                held, wait = self._site.applier.held, self._site.wait
                position = before.end_position if held or wait is not None else state.applied_position
                self._idle_at = position, before.wants
                self._rest = LOOK if held or wait is None else min(LOOK, max(wait, ACCUMULATE))
                self._idle.set()
        except BaseException as error:  # of whatever kind: the site stands in the middle of a step
            self.fail(error)

    def _await_work(self) -> bool:
        with self._condition:
            self._condition.wait_for(lambda: self._awake or self._calls or self._stopping or self._failed, self._rest)
            self._awake = False
            calls, self._calls = self._calls, deque()
        try:
            while calls:
                calls.popleft().run()
        finally:
            for call in calls:
                call.refuse(self._failed or Refused("the group failed in an earlier call", reason="failed"))
        return not (self._stopping or self._failed)

    def _watch(self) -> None:
        window = self._site.window
        enough = window.state().ring_size // 8
        try:
            while True:
                self._idle.wait()
                self._idle.clear()
                beyond, wants = self._idle_at
                while not self._stopping and not self._idle.is_set():  # else the applier has looked again by itself
                    if window.wait_written(beyond, LOOK, wants=wants) > beyond or window.state().wants > wants:
                        break
                if self._stopping:
                    return
                if self._idle.is_set():
                    continue
                window.wait_written(beyond + enough, ACCUMULATE)
                self.hurry()
        except OSError:
            self.hurry()  # the window failed: the step finds out and says so

    def _sweep(self) -> None:
        while not self._over.wait(SWEEP):
            if self._site.verification.lsn:
                try:
                    self.call(self._site.verification.sweep)
                except Exception:
                    return  # the group is over; whoever ended it has said why

    def _commit(self) -> None:
        try:
            self._site.window.run_committer()
        except OSError:
            self.hurry()
