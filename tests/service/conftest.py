"""Real daemons in processes of their own, by real configuration files; what they log and say is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyrepl

MIB = 1 << 20
RUN = "import sys; from pyrepl.service.daemon import main; main(sys.argv[1:], prog_name='pyrepld')"


class Daemon:
    """One ``pyrepld``, which may be started again and again over the same folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.file = folder / "node.toml"
        self.socket = str(folder / "control.sock")
        self.log = folder / "log"
        self.process: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}
        self.wrapper: list[str] = []

    def configure(self, more: str = "", *, top: str = "") -> None:
        """Writes the configuration: the least that is needed, and ``more`` tables, ``top`` keys."""
        self.file.write_text(
            f'state = "{self.folder}/node"\ncreate = true\n{top}\n[control]\nsocket = "{self.socket}"\n{more}\n'
        )

    def start(self, **environment: str) -> Daemon:
        """Starts it and waits until it is ready."""
        if not self.file.exists():
            self.configure()
        kept = {key: value for key, value in os.environ.items()
                if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM", "INVOCATION_ID")}
        path = os.pathsep.join(p for p in sys.path if p)
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, sys.executable, "-c", RUN, "--config", str(self.file)],
                stdout=subprocess.PIPE, stderr=log, text=True, env={**kept, "PYTHONPATH": path, **environment},
            )
        line = self.process.stdout.readline()
        assert line, f"pyrepld did not start: {self.log.read_text()}"
        self.ready = json.loads(line)
        return self

    @property
    def pid(self) -> int:
        return self.process.pid

    def connect(self) -> pyrepl.remote.RemoteNode:
        return pyrepl.connect(self.socket)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self, number: int = signal.SIGTERM, *, seconds: float = 60) -> int:
        """Ends it; its exit status."""
        self.send(number)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Whatever state it is in."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()

    def lines(self) -> list[str]:
        """Of its log, so far."""
        return self.log.read_text().splitlines()

    def await_line(self, *words: str, seconds: float = 60, after: int = 0) -> str:
        """A line of its log with all these words."""
        def found() -> str | None:
            return next((line for line in self.lines()[after:] if all(word in line for word in words)), None)
        return until(found, f"the log says {words}", seconds)

    def reload(self) -> list[str]:
        """SIGHUP; what it logged from there to the end of the reload."""
        before = len(self.lines())
        self.send(signal.SIGHUP)
        until(lambda: any("SIGHUP" in line and ("was taken over" in line or "nothing" in line)
                          for line in self.lines()[before:]), "the reload is over")
        return self.lines()[before:]


def until(true: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Looks again and again; the first value that counts as true."""
    end = time.monotonic() + seconds
    while True:
        value = true()
        if value:
            return value
        assert time.monotonic() < end, f"after {seconds} s still not: {what}"
        time.sleep(0.01)


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """``daemons(name)`` is a daemon that is not started yet; killed at the end if it still runs."""
    made: list[Daemon] = []

    def make(name: str = "here") -> Daemon:
        daemon = Daemon(tmp_path / name)
        made.append(daemon)
        return daemon

    try:
        yield make
    finally:
        for daemon in made:
            daemon.kill()


@pytest.fixture
def daemon(daemons: Callable[..., Daemon]) -> Daemon:
    """One that runs, without groups."""
    return daemons().start()


@pytest.fixture
def node(daemon: Daemon) -> Iterator[pyrepl.remote.RemoteNode]:
    """A connection to it."""
    with daemon.connect() as connected:
        yield connected


@pytest.fixture
def group(daemon: Daemon, node: Any) -> Any:
    """A primary there, with the volume ``data``."""
    made = node.create_group("db", daemon.folder / "journal", journal_size=16 * MIB)
    made.add_volume("data", size=4 * MIB)
    return made
