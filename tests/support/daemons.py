"""Real daemons for tests: ``pyrepld`` in processes of its own, which serve NBD, and two of them with a link between.

Decides how a daemon is configured, started, killed and started again at the same addresses. Each runs in a session of its
own, so that a Ctrl-C ends the test and not the disks under its mounts; every fixture that makes one must close it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyrepl
from tests.support.clients import until
from tests.support.ports import lasting_port

MIB = 1 << 20
_RUN = "from pyrepl.service.daemon import main; main(prog_name='pyrepld')"
_COMMAND = "from pyrepl.cli import main; main(prog_name='pyrepl')"
_ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class Daemon:
    """A ``pyrepld``: ``client`` is the node as :func:`pyrepl.connect` sees it."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir()
        self.folder, self.name = folder, name
        self.control, self.unix = folder / "control.sock", folder / "nbd.sock"
        self.address, self.tcp = (f"127.0.0.1:{lasting_port()}" for _ in range(2))
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Any = None
        self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def client(self) -> Any:
        if self._client is None:
            self._client = pyrepl.connect(self.control)
        return self._client

    def uri(self, export: str, transport: str = "unix") -> str:
        """Of an export."""
        return f"nbd+unix:///{export}?socket={self.unix}" if transport == "unix" else f"nbd://{self.tcp}/{export}"

    def start(self) -> None:
        """Runs it, at the addresses that it had before; returns when it is ready."""
        config = self.folder / "node.toml"
        config.write_text(
            f'state = "{self.folder}/node"\nname = "{self.name}"\ncreate = true\nlisten = ["{self.address}"]\n'
            f'[control]\nsocket = "{self.control}"\n[nbd]\nlisten = ["unix:{self.unix}", "{self.tcp}"]\n'
            f"[limits]\nrequests_per_second = 10000\n"
        )
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-c", _RUN, "--config", str(config)], stdin=subprocess.DEVNULL,
                                             stdout=subprocess.PIPE, stderr=log, env=_ENVIRONMENT, start_new_session=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise AssertionError(f"{self.name} did not start: {(self.folder / 'log').read_text()[-3000:]}")
        ready = json.loads(line)
        self.address, self.tcp = ready["listening"][0], ready["nbd"][1]

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM; returns when it has drained and ended, in good order."""
        assert self._end(signal.SIGTERM) == 0, (self.folder / "log").read_text()[-3000:]

    def close(self) -> None:
        """Ends it, however it is. Harmless the second time."""
        self._end(signal.SIGTERM, patience=20)

    def pyrepl(self, *arguments: object) -> str:
        """What the command ``pyrepl`` prints for this daemon; it must do its work."""
        done = subprocess.run([sys.executable, "-c", _COMMAND, *map(str, arguments)], stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=120,
                              env={**_ENVIRONMENT, "PYREPL_SOCKET": str(self.control)})
        assert done.returncode == 0, f"pyrepl {' '.join(map(str, arguments))}: {done.returncode} {done.stdout}"
        return done.stdout

    def _end(self, number: int, patience: float = 60) -> int:
        if self._client is not None:
            self._client.close()
            self._client = None
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
        if process.stdout is not None:
            process.stdout.close()
        return process.wait()


class Export:
    """An export of a store; ``volume`` is the store's handle."""

    def __init__(self, daemon: Daemon, volume: Any, name: str, *, read_only: bool | None = None) -> None:
        self.daemon, self.volume, self.name = daemon, volume, name
        self.size = volume.size
        daemon.client.start_export(name, volume.group, volume, read_only=read_only)

    def uri(self, transport: str = "unix", *, name: str | None = None) -> str:
        return self.daemon.uri(self.name if name is None else name, transport)


class Pair:
    """Two daemons, group "db" with volume "data" at both, and a link "far" from the first to the second, synchronized."""

    def __init__(self, folder: Path, size: int, mode: str, *, journal: int = 256 * MIB) -> None:
        folder.mkdir()
        self.mode = mode
        self.daemons: list[Daemon] = []
        try:
            for name in ("near", "there"):
                self.daemons.append(Daemon(folder / name, name))
            self.primary, self.secondary = self.daemons
            for daemon, role in ((self.primary, "primary"), (self.secondary, "secondary")):
                daemon.client.create_group("db", daemon.folder / "journal", journal_size=journal, role=role).add_volume(
                    "data", size=size)
            self.group.add_link("far", self.secondary.address, mode=mode)
            self.export = Export(self.primary, self.group.volume("data"), "data")
            self.settle()
            self.secondary.client.start_export("data", "db", "data")
        except BaseException:
            self.close()
            raise

    @property
    def group(self) -> Any:
        """At the primary."""
        return self.primary.client.group("db")

    def settle(self) -> None:
        """The secondary has, and has performed, everything; a link in mode sync promises so from here on."""
        lsn = self.group.flush()
        self.group.link("far").wait_synced(timeout=60)
        self.group.wait(lsn, where="far", timeout=60)
        until(lambda: not self.group.link("far").status()["degraded"], "the link promises")

    def close(self) -> None:
        """Ends both. Harmless the second time."""
        for daemon in self.daemons:
            daemon.close()


PairMaker = Callable[..., Pair]
