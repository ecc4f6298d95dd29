"""Real daemons, and the command line as a process of its own: what people and scripts meet."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from pyrepl.cli import main

MIB = 1 << 20
DAEMON = "from pyrepl.service.daemon import main; main(prog_name='pyrepld')"
COMMAND = "from pyrepl.cli import main; main(prog_name='pyrepl')"
PATH = os.pathsep.join(path for path in sys.path if path)


def environment(**more: str) -> dict[str, str]:
    """That of a user without preferences: no socket, colour or width of the caller's."""
    kept = {key: value for key, value in os.environ.items()
            if not key.startswith("PYREPL_") and key not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
    return {**kept, "PYTHONPATH": PATH, **more}


def pyrepl(*arguments: str, input: bytes | None = None, timeout: float = 120, **more: str) -> subprocess.CompletedProcess[str]:
    """One ``pyrepl`` process; output as text."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, check=False, timeout=timeout,
                          input=input if input is not None else b"", env=environment(**more))
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode())


class Daemon:
    """A ``pyrepld`` of its own, and ``pyrepl`` against it. ``path``: what only its Python finds."""

    def __init__(self, folder: Path, name: str, path: str = "") -> None:
        self.folder, self.name, self._path = folder, name, path
        self.socket = str(folder / "control.sock")
        self.address = ""
        self._process: subprocess.Popen[str] | None = None
        self._numbers = itertools.count(1)
        folder.mkdir()
        self.config = folder / "node.toml"
        self.configure()
        self.start()

    def configure(self, more: str = "") -> None:
        """Writes its configuration."""
        self.config.write_text(
            f'state = "{self.folder}/node"\nname = "{self.name}"\ncreate = true\nlisten = ["127.0.0.1:0"]\n'
            f'[control]\nsocket = "{self.socket}"\n[limits]\nrequests_per_second = 10000\n{more}'
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Runs it, until it says that it is ready."""
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen([sys.executable, "-c", DAEMON, "--config", str(self.config)], text=True,
                                             stdout=subprocess.PIPE, stderr=log,
                                             env=environment(PYTHONPATH=os.pathsep.join(filter(None, (self._path, PATH)))))
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, (self.folder / "log").read_text()
        ready = json.loads(line)
        assert ready["event"] == "ready"
        self.address = ready["listening"][0]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it; its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        assert process.stdout is not None
        process.stdout.read()
        process.stdout.close()
        return process.wait(60)

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """``pyrepl`` as a process."""
        return pyrepl(*arguments, PYREPL_SOCKET=self.socket, **options)

    def ok(self, *arguments: str, **options: Any) -> str:
        """The same where it must do its work; standard output."""
        done = self(*arguments, **options)
        assert done.returncode == 0, f"{arguments}: {done.returncode} {done.stderr}"
        return done.stdout

    def fails(self, status: int, *arguments: str, **options: Any) -> str:
        """The same where it must fail so: one sentence on standard error, which is returned."""
        done = self(*arguments, **options)
        assert (done.returncode, done.stdout) == (status, ""), f"{arguments}: {done.returncode} {done.stdout} {done.stderr}"
        assert "Traceback" not in done.stderr and done.stderr.strip()
        return done.stderr

    def json(self, kind: type[msgspec.Struct], *arguments: str) -> Any:
        """The output of a command, strictly decoded by the struct that describes it: no field more, none less."""
        text = self.ok(*arguments, "--json")
        assert text.count("\n") == 1
        assert json.loads(text).keys() == set(kind.__struct_fields__)
        return msgspec.json.decode(text, type=kind, strict=True)

    def invoke(self, *arguments: str, input: bytes | None = None) -> Result:
        """``pyrepl`` in this process, where one of its own adds nothing."""
        return CliRunner(env={"PYREPL_SOCKET": self.socket}).invoke(main, arguments, input=input, prog_name="pyrepl")

    def new_group(self, *options: str, volume: bool = True, size: str = "4M") -> str:
        """A group of its own for a test, with the volume ``data``."""
        name = f"{self.name}-{next(self._numbers)}"  # no other daemon has it
        made = self.invoke("group", "create", name, "--journal", f"{self.folder}/{name}.journal", "--journal-size", "16M", *options)
        assert made.exit_code == 0, made.output
        if volume:
            made = self.invoke("volume", "add", f"{name}/data", "--size", size)
            assert made.exit_code == 0, made.output
        return name


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Daemon]]:
    """``daemons(name)``: a running pyrepld; all are ended with the module."""
    folder = tmp_path_factory.mktemp("nodes")
    made: dict[str, Daemon] = {}

    def start(name: str) -> Daemon:
        if name not in made:
            made[name] = Daemon(folder / name, name)
        return made[name]

    yield start
    for daemon in made.values():
        daemon.stop(signal.SIGKILL if daemon.name.startswith("killed") else signal.SIGTERM)


@pytest.fixture(scope="module")
def berlin(daemons: Callable[[str], Daemon]) -> Daemon:
    """The daemon of the primary's site."""
    return daemons("berlin")


@pytest.fixture(scope="module")
def paris(daemons: Callable[[str], Daemon]) -> Daemon:
    """The daemon of the secondary's site."""
    return daemons("paris")


@pytest.fixture
def group(berlin: Daemon) -> str:
    """A fresh group at berlin with the volume data, 4 MiB."""
    return berlin.new_group()


@pytest.fixture
def pair(berlin: Daemon, paris: Daemon) -> str:
    """A fresh group at berlin with a volume and a link to paris, synced."""
    name = berlin.new_group()
    for arguments in (["group", "create", name, "--journal", f"{paris.folder}/{name}.journal", "--journal-size", "16M",
                       "--role", "secondary"], ["volume", "add", f"{name}/data", "--size", "4M"]):
        assert paris.invoke(*arguments).exit_code == 0
    added = berlin.invoke("link", "add", f"{name}/paris", paris.address, "--wait", "--timeout", "60")
    assert added.exit_code == 0, added.output
    return name
