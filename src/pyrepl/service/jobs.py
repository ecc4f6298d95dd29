"""Jobs: the commands that were given over the control socket, by whom, how far they are, and what came of them.

    begin   a command has come           told   it says how far it is           end   it is over, in whichever way

Decides what is kept of a command and for how long, and the line of the audit log. Data that are written are audited and
no job: there would be nothing else in the list. Must not know what commands do (``verbs``), nor how they travel.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from pyrepl.border import typed
from pyrepl.errors import PyreplError
from pyrepl.remote import requests
from pyrepl.remote.requests import OperationInfo, Request, StoreMade, verb
from pyrepl.service.verbs.call import ClientGone

if TYPE_CHECKING:
    from pyrepl.node import Node
    from pyrepl.service.control import User

_audit = logging.getLogger("pyrepl.audit")

KEPT = 1000  # jobs that are over, the newest
RUNNING, DONE, FAILED, LEFT = "running", "done", "failed", "left"
DATA = (requests.StoreWrite, requests.StoreZero, requests.StoreDiscard)


class Job:
    """One command. Changed by the thread that performs it; read by whoever lists."""

    def __init__(self, number: int, user: User, request: Request[Any], arguments: str) -> None:
        self.id = number
        self.user = user
        self.verb = verb(type(request))
        self.group = requests.group_of(request)
        self.arguments = arguments
        self.time = time.time()
        self.state = RUNNING
        self.seconds: float | None = None
        self.error: PyreplError | None = None
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
        self.seconds = time.monotonic() - self._begun
        self.state, self.error = state, error

    def told(self) -> dict[str, Any]:
        """As it travels, and as ``docs/json.md`` has it."""
        seconds, error = self.seconds, self.error
        return {
            "id": self.id,
            "verb": self.verb,
            "group": self.group,
            "arguments": msgspec.json.decode(self.arguments),
            "user": self.user.name,
            "pid": self.user.pid,
            "time": self.time,
            "seconds": time.monotonic() - self._begun if seconds is None else seconds,
            "state": self.state,
            "code": error.code if error is not None else None,
            "error": error.text if error is not None else None,
            "lsn": self.lsn,
            "result": self.result,
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
    """Those of a daemon, since it was started."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._running: dict[int, Job] = {}
        self._over: deque[Job] = deque(maxlen=KEPT)

    def list(self, group: str | None = None) -> list[dict[str, Any]]:
        """Those under way and the last :data:`KEPT` that are over, in the order in which they were given."""
        with self._lock:
            found = [*self._over, *self._running.values()]
        return [job.told() for job in sorted(found, key=lambda job: job.id) if group is None or job.group == group]

    @contextlib.contextmanager
    def track(self, user: User, request: Request[Any], payload: int) -> Iterator[Job]:
        """While a command is performed. One line of the audit log when it is over: who, what, with which arguments,
        between which LSNs, and what came of it."""
        arguments = _arguments(request, payload)
        job = Job(0 if isinstance(request, DATA) else next(self._numbers), user, request, arguments)
        if job.id:
            with self._lock:
                self._running[job.id] = job
        outcome, before = FAILED, self._end_lsn(job.group)
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
            job.end(FAILED, typed(error, f"performing {job.verb}"))
            raise
        finally:
            if job.id:
                with self._lock:
                    del self._running[job.id]
                    self._over.append(job)
            _audit.info(
                "user=%s uid=%d pid=%d verb=%s outcome=%s lsn=%s..%s arguments=%s",
                user.name, user.uid, user.pid, job.verb, outcome, before, self._end_lsn(job.group), arguments,
            )  # fmt: skip

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
