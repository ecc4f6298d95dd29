"""Jobs: the commands that were given over the control socket, by whom, how far they are, and what came of them.

    enter   a command has come           told   it says how far it is           leave   it is over, in whichever way

Decides what is kept of a command and for how long, and the line of the audit log. Data that are written are audited and
no job: there would be nothing else in the list. Must not know what commands do (``verbs``), how they travel, nor how
they outlive the daemon (``job_file``).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from pyrepl.border import typed
from pyrepl.errors import PyreplError
from pyrepl.remote import requests
from pyrepl.remote.requests import Request, verb
from pyrepl.remote.values import OperationInfo, StoreMade
from pyrepl.service.job_file import AHEAD, Ended, Given, JobFile, Line, Numbers
from pyrepl.service.verbs.call import ClientGone

if TYPE_CHECKING:
    from pyrepl.node import Node
    from pyrepl.service.control import User

_audit = logging.getLogger("pyrepl.audit")

KEPT = 1000  # jobs that are over, the newest
RUNNING, DONE, FAILED, LEFT = "running", "done", "failed", "left"
INTERRUPTED = "interrupted"  # the daemon died, or was stopped, before it was over
DATA = (requests.StoreWrite, requests.StoreZero, requests.StoreDiscard)


class Job:
    """One command. Changed by the thread that performs it; read by whoever lists.

    Args:
        given: who gave what; None: data, which are audited and in no list.
        ended: what came of it, of one that a daemon before has kept.
    """

    def __init__(self, given: Given | None, ended: Ended | None = None) -> None:
        self.given, self.ended = given, ended
        self.lsn: int | None = None
        self.result: str | None = None
        self.progress: dict[str, Any] = {}
        self._begun = time.monotonic()

    def answered(self, value: Any) -> None:
        """Notes the operation that it has become, if it is one, and what came of it that "done" does not say."""
        operation = value.operation if isinstance(value, StoreMade) else value
        if isinstance(operation, OperationInfo):
            self.lsn = operation.lsn
            self.result = _of_plugins(operation) or _of_comparison(operation.verification)
        elif isinstance(value, dict):
            self.result = _of_comparison(value)

    def end(self, state: str, error: PyreplError | None = None) -> None:
        """It is over."""
        if self.given is not None:
            self.ended = Ended(
                id=self.given.id, state=state, seconds=time.monotonic() - self._begun, lsn=self.lsn, result=self.result,
                code=error.code if error is not None else None, error=error.text if error is not None else None)

    def told(self) -> dict[str, Any]:
        """As it travels, and as ``docs/json.md`` has it."""
        given, ended = self.given, self.ended
        assert given is not None
        return {
            "id": given.id,
            "verb": given.verb,
            "group": given.group,
            "arguments": msgspec.json.decode(given.arguments),
            "user": given.user,
            "pid": given.pid,
            "time": given.time,
            "seconds": time.monotonic() - self._begun if ended is None else ended.seconds,
            "state": RUNNING if ended is None else ended.state,
            "code": ended.code if ended is not None else None,
            "error": ended.error if ended is not None else None,
            "lsn": ended.lsn if ended is not None else self.lsn,
            "result": ended.result if ended is not None else self.result,
            "progress": dict(self.progress),
        }


def _of_plugins(operation: OperationInfo) -> str | None:
    """What of an operation did not happen at any site."""
    reasons = [reason for _, reason in operation.outcomes if reason]
    reasons = reasons or [member.failed for member in operation.members if member.failed]
    return f"plug-in failed: {'; '.join(reasons)}" if reasons else None


def _of_comparison(found: dict[str, Any] | None) -> str | None:
    """What a comparison has found that is not equal, if this is what came of one."""
    if found is None or not {"links", "region_size"} <= found.keys():
        return None
    parts = []
    for name, one in found["links"].items():
        different = f"{one['regions_different'] * found['region_size'] // 1024} KiB "
        if one["state"] == "repaired":
            parts.append(f"{different}differed at {name}, repaired")
        elif one["regions_different"]:
            parts.append(f"{different}differ at {name}" + (f" ({one['reason']})" if one["reason"] else ""))
        elif one["state"] == "failed":
            parts.append(f"not compared with {name}: {one['reason']}")
    return "; ".join(parts) or None


class Jobs:
    """Those of a daemon, and of those before it in the same folder: from :meth:`start` to :meth:`stop` they are kept
    there."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._file = JobFile(node.path, self._kept)
        self._next = 1
        self._ahead = 1  # numbers from here on are not set aside
        self._running: dict[int, Job] = {}
        self._over: deque[Job] = deque(maxlen=KEPT)

    def start(self) -> None:
        """Takes up what the daemon before has kept. What was under way when it died is over: what it had done by then
        is in the journals."""
        found = self._file.read()
        for given, ended in found.jobs:
            self._over.append(Job(given, ended or Ended(id=given.id, state=INTERRUPTED, seconds=None)))
        self._next, self._ahead = found.next, found.next + AHEAD
        self._file.begin(Numbers(self._ahead))

    def stop(self) -> None:
        """What comes from here on is not kept. Harmless the second time."""
        with self._lock:
            self._ahead = self._next
        self._file.end(Numbers(self._next))

    def list(self, group: str | None = None) -> list[dict[str, Any]]:
        """Those under way and the last :data:`KEPT` that are over, in the order in which they were given."""
        told = [job.told() for job in self._all()]
        return [one for one in told if group is None or one["group"] == group]

    @contextlib.contextmanager
    def track(self, user: User, request: Request[Any], payload: int) -> Iterator[Job]:
        """While a command is performed. One line of the audit log when it is over: who, what, with which arguments,
        between which LSNs, and what came of it."""
        arguments, group = _arguments(request, payload), requests.group_of(request)
        job = Job(None) if isinstance(request, DATA) else self._enter(user, request, group, arguments)
        outcome, before = FAILED, self._end_lsn(group)
        try:
            yield job
            outcome = DONE
            job.end(DONE)
        except ClientGone:
            outcome = LEFT
            job.end(LEFT)
            raise
        except PyreplError as error:
            outcome = error.code
            job.end(FAILED, error)
            raise
        except Exception as error:  # ours; the log has where
            job.end(FAILED, typed(error, f"performing {verb(type(request))}"))
            raise
        finally:
            self._leave(job)
            _audit.info(
                "user=%s uid=%d pid=%d verb=%s outcome=%s lsn=%s..%s arguments=%s",
                user.name, user.uid, user.pid, verb(type(request)), outcome, before, self._end_lsn(group), arguments,
            )  # fmt: skip

    # ---- inside

    def _enter(self, user: User, request: Request[Any], group: str | None, arguments: str) -> Job:
        """It has a number, and is in the list; soon also in the file."""
        with self._lock:
            number, self._next = self._next, self._next + 1
            given = Given(id=number, verb=verb(type(request)), group=group, user=user.name, pid=user.pid,
                          time=time.time(), arguments=msgspec.Raw(arguments.encode()))
            job = self._running[number] = Job(given)
            if self._next + AHEAD // 2 > self._ahead:
                self._ahead += AHEAD
                self._file.append(Numbers(self._ahead))
            self._file.append(given)
        return job

    def _leave(self, job: Job) -> None:
        if job.given is None:
            return
        with self._lock:
            del self._running[job.given.id]
            self._over.append(job)
            if job.ended is not None:
                self._file.append(job.ended)

    def _all(self) -> Sequence[Job]:
        with self._lock:
            found = [*self._over, *self._running.values()]
        return sorted(found, key=lambda job: job.given.id if job.given is not None else 0)

    def _kept(self) -> Sequence[Line]:
        """What a new file holds."""
        lines = deque[Line]([Numbers(self._ahead)])
        for job in self._all():
            lines += [line for line in (job.given, job.ended) if line is not None]
        return lines

    def _end_lsn(self, group: str | None) -> int | None:
        try:
            return self._node.group(group).site.window.state().end_lsn if group is not None else None
        except PyreplError:
            return None


def _arguments(request: Request[Any], payload: int) -> str:
    """As JSON on one line; of data only how many."""
    shown: dict[str, Any] = msgspec.to_builtins(request, builtin_types=(bytes,))
    del shown["verb"]
    shown = {name: len(value) if isinstance(value, bytes) else value for name, value in shown.items()}
    if payload:
        shown["payload_bytes"] = payload
    return msgspec.json.encode(shown).decode()
