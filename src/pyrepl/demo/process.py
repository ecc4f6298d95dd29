"""A node process as the demo's parent sees it: commands out, answers in, one JSON object a line.

It never outlives its parent: its input ends with the parent, and close() ends it by its process id.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

GRACE = 10.0  # seconds for a clean end


class AgentError(RuntimeError):
    """A command failed at the node; ``code`` is that of pyrepl.errors."""

    def __init__(self, node: str, command: str, code: str, text: str) -> None:
        super().__init__(f"{node}: {command}: {text}")
        self.code = code


class Agent:
    """One node process. ``call`` may be used from several threads; calls to one agent are made one after the other."""

    def __init__(self, name: str, log: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pyrepl.demo.agent"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Runs one command; returns its answer.

        Raises:
            AgentError: the node refused, failed, or is dead (then the end of its error output is in the text).
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with self._lock:
            try:
                process.stdin.write(json.dumps({"do": command, **arguments}).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except (OSError, ValueError) as error:
                raise AgentError(self.name, command, "peer", f"the process is gone: {error}") from error
        if not line:
            raise AgentError(self.name, command, "peer", f"the process ended; it said: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise AgentError(self.name, command, answer["error"], answer["text"])
        return answer

    def check(self) -> None:
        """Raises AgentError if the process has ended."""
        if self._process.poll() is not None:
            raise AgentError(self.name, "check", "peer", f"the process ended; it said: {self._last_words()}")

    def kill(self) -> None:
        """SIGKILL, as a crash would; returns when the kernel has taken it away."""
        self._process.kill()
        self._reap()

    def close(self) -> None:
        """Ends it: its input is closed, and if that does not help, SIGKILL."""
        if self._process.poll() is None and self._process.stdin is not None:
            try:
                self._process.stdin.close()
                self._process.wait(GRACE)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
        self._reap()

    def _reap(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was written to a dead process cannot be flushed
                    pipe.close()

    def _last_words(self) -> str:
        with open(self._log, "rb") as log:
            return log.read()[-2000:].decode(errors="replace").strip() or "nothing"
