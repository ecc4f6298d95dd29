"""What all tests share: storage to run on, nodes that are closed whatever happens, and a header that says what runs here.

Storage is a parameter: files and loop devices, with 512 and 4096 bytes of alignment. What cannot run here is skipped with the
reason, and counted by pytest.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[1]
LONGEST = (  # files that take a minute, or nearly
    "sanitizers/test_sanitizers", "claims/test_medium", "claims/test_kills", "cli/test_operations", "cli/test_roles",
    "clients/test_peers", "api/test_room", "demo/test_demo", "claims/test_system", "kill/test_sigkill", "cli/test_explain",
    "api/test_roles", "quality/test_lint", "api/test_verify", "api/test_fan", "claims/test_order", "nbd/test_transmission",
)
ORDER = {f"tests/{name}.py": number for number, name in enumerate(LONGEST)}

# Where these are set pytest tells a failed comparison in full: for the contents of two volumes that is a diff that takes hours.
for _variable in ("CI", "BUILD_NUMBER"):
    os.environ.pop(_variable, None)


def _no_loop() -> str:
    """Why loop devices cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "loop devices need root"
    if not os.path.exists("/dev/loop-control"):
        return "/dev/loop-control is missing"
    return ""


def pytest_configure(config: pytest.Config) -> None:
    """A shell ignores SIGINT in what it starts in the background, and so would everything that a test starts and interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # else the files with the fewest tests, which are the longest, come last


def pytest_report_header() -> list[str]:
    """What this run exercises."""
    from pyrepl._core import crc32c, device
    from tests.support import clients

    engine, why = device.probe()
    lacking = ", ".join(clients.missing())
    return [f"pyrepl: engine {engine}{f' ({why})' if why else ''}, crc32c {crc32c.chosen()}, "
            f"loop devices {_no_loop() or 'yes'}, {'root' if os.geteuid() == 0 else 'not root'}, "
            f"foreign clients {f'without {lacking}' if lacking else 'all'}"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also the long forms of tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes minutes begins first, and what is to be alone last, so that no process waits long for another."""
    items.sort(key=lambda item: (item.get_closest_marker("alone") is not None, ORDER.get(item.location[0], len(ORDER))))
    if not config.getoption("--long"):
        for item in items:
            if "long" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="a long form: run with --long"))


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """What is marked ``alone`` measures time: no other process of this run tests anything meanwhile.

    Two locks, of files that are there: each test shares the room, one that is to be alone has it for itself, and who waits for
    the room keeps the door, so that nobody overtakes him for ever. Before the time of the test begins.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    with open(ROOT / "pyproject.toml") as door, open(__file__) as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if "alone" in item.keywords else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    """What a module used goes back to the system: simulated disks and windows are large, stand in cycles, and leave a heap in
    pieces; two processes of them would fill a small machine."""
    yield
    gc.collect()
    with suppress(OSError, AttributeError):  # it is the GNU C library's
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A primary that is opened again is written to at once; its peers may answer late on a machine that does much else."""
    monkeypatch.setattr("pyrepl.node.ASKED", 60.0)


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """``loop_device(size, sector_size=512)`` is the path of a fresh loop device, all zeros, which goes away with the test."""
    reason = _no_loop()
    if reason:
        pytest.skip(reason)
    from pyrepl._core import blockdev

    made: list[str] = []

    def make(size: int, sector_size: int = 512) -> str:
        file = tmp_path / f"loop-{len(made)}"
        with open(file, "wb") as image:
            image.truncate(size)
        try:
            device = blockdev.attach_loop(file, sector_size=sector_size)
        except PermissionError as error:
            pytest.skip(f"this container may not make loop devices: {error}")
        made.append(device)
        return device

    try:
        yield make
    finally:
        for device in made:
            blockdev.detach_loop(device)


class Storage:
    """Where a test keeps journals and volumes."""

    def __init__(self, kind: str, alignment: int, folder: Path, loop: Callable[..., str] | None) -> None:
        self.kind = kind
        self.alignment = alignment
        self._folder = folder
        self._loop = loop
        self._made = 0

    def device(self, size: int) -> str:
        """A device of that many bytes, all zeros."""
        if self._loop is not None:
            return self._loop(size, sector_size=self.alignment)
        self._made += 1
        path = self._folder / f"device-{self._made}"
        with open(path, "wb") as file:
            file.truncate(size)
        return str(path)

    def __repr__(self) -> str:
        return f"{self.kind}-{self.alignment}"


@pytest.fixture(params=["file-512", "file-4096", pytest.param("loop-512", marks=pytest.mark.device),
                        pytest.param("loop-4096", marks=pytest.mark.device)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Files and loop devices, of both alignments."""
    kind, _, alignment = request.param.partition("-")
    loop = request.getfixturevalue("loop_device") if kind == "loop" else None
    return Storage(kind, int(alignment), tmp_path, loop)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """``nodes(folder)`` opens the node there (and makes it); closed at the end, failed or not."""
    import pyrepl

    opened: list[Any] = []

    def open_node(folder: str = "node", **options: Any) -> Any:
        node = pyrepl.Node.open(tmp_path / folder, create=True, **options)
        opened.append(node)
        return node

    try:
        yield open_node
    finally:
        for node in reversed(opened):
            with suppress(pyrepl.PyreplError):
                node.close()


@pytest.fixture
def group(nodes: Callable[..., Any], tmp_path: Path) -> Any:
    """A primary on files, without volumes."""
    return nodes().create_group("db", tmp_path / "journal", journal_size=16 * MIB)


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``python(code, *arguments)`` runs a program in another process; it is killed at the end if it still runs."""
    running: list[subprocess.Popen[str]] = []

    def run(code: str, *arguments: str) -> subprocess.Popen[str]:
        path = os.pathsep.join(p for p in sys.path if p)
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True,
                                   env={**os.environ, "PYTHONPATH": path})
        running.append(process)
        return process

    try:
        yield run
    finally:
        for process in running:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
