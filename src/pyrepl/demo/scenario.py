"""What happens in the demo, in order, and what is measured. Runs in the parent: it owns proxy, devices and processes.

Whatever it made it takes away again, on success, failure and Ctrl-C: processes by their ids, loop devices, the folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

from pyrepl.demo import content
from pyrepl.demo.process import Agent, AgentError
from pyrepl.demo.proxy import Counts, Proxy
from pyrepl.errors import InUse, UsageError, WaitTimeout
from pyrepl.runtime.contents import check_path_blank

MIB = 1 << 20
VOLUME, LINK = "data", "second"
RATE = 200.0  # stamped writes a second, all the time
SHARE = 0.3  # of the volume is overwritten between snapshot and restore
OUTAGE = 1.0  # seconds of writing while the secondary is dead, and while the link is cut
LEAST, MOST = 32 * MIB, 1 << 40
SYNCED = 60.0  # seconds until a wait for the secondary is given up


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What can be chosen. ``devices``: volume at the first site, at the second, journal at the first, at the second."""

    size: int = 256 * MIB
    folder: str | None = None
    devices: tuple[str, ...] = ()
    source: str | None = None
    force: bool = False  # what stands on the devices may be lost


class Step(msgspec.Struct):
    """One line of the table. ``bytes_if_shipped``: what crossing as data would have cost; null where it did so."""

    name: str
    seconds: float = 0.0
    bytes_changed: int = 0
    bytes_on_wire: int = 0
    bytes_if_shipped: int | None = None


class Restore(msgspec.Struct):
    """``bytes_on_wire``: all that crossed, both ways, but the frames that carry the concurrent writes, and the
    acknowledgements and heartbeats, which go on with or without it: those are ``bytes_of_acknowledgements``.
    ``seconds_until_usable``: until a read at the first site had shown the snapshot; what was overwritten before had
    been applied when it began."""

    bytes_changed: int = 0
    bytes_on_wire: int = 0
    bytes_of_acknowledgements: int = 0
    seconds_until_usable: float = 0.0


class Report(msgspec.Struct):
    """What came out."""

    schema: int = 1
    equal: bool = False
    lost_writes: int = 0
    acknowledged_writes: int = 0
    slowest_write_seconds: float = 0.0
    steps: list[Step] = []
    restore: Restore = msgspec.field(default_factory=Restore)
    stores: dict[str, list[str]] = {}
    """Store -> digest at the first site, at the second."""
    notes: list[str] = []
    """What stood where, and what was different from the plan."""


class Display(Protocol):
    """Who shows progress."""

    def begin(self, name: str, total: int | None, watch: Callable[[], int] | None) -> None:
        """A step begins; ``total`` bytes are expected of ``watch()``, or of advance()."""

    def advance(self, count: int) -> None:
        """So many bytes more."""

    def end(self, step: Step) -> None:
        """The step is over."""


class Scenario:
    """One run. ``run`` may be called once."""

    def __init__(self, options: Options, display: Display) -> None:
        self.report = Report(steps=[], stores={}, notes=[])
        self._options, self._display = options, display
        self._cleanup = contextlib.ExitStack()
        self._size = options.size // MIB * MIB
        self._proxy: Proxy | None = None

    def run(self) -> Report:
        """Everything, in order.

        Raises:
            UsageError, InUse, Refused: before anything was touched.
            AgentError: a node failed; all is taken away, the text says what it said.
        """
        self._check()
        with self._cleanup:
            self._prepare()
            self._start()
            self._attach()
            self._operate()
            self._kill()
            self._cut()
            self._compare()
        return self.report

    # -- before anything is touched

    def _check(self) -> None:
        options = self._options
        if not LEAST <= self._size <= MOST:
            raise UsageError(f"--size is {options.size} bytes: it must be from {LEAST} to {MOST}")
        if options.source is not None and not os.path.exists(options.source):
            raise UsageError(f"--source {options.source}: there is no such file")
        if len(options.devices) > 4:
            raise UsageError("--device is given at most four times: volume, volume, journal, journal")
        if len(set(map(os.path.realpath, options.devices))) != len(options.devices):
            raise UsageError("--device: the same device is given twice")
        for device in options.devices:
            _check_device(device, self._size if device in options.devices[:2] else self._journal_size())
            if not options.force:
                check_path_blank(device)

    def _journal_size(self) -> int:
        return min(max(self._size, 64 * MIB), 512 * MIB)

    # -- steps

    @contextlib.contextmanager
    def _step(self, name: str, total: int | None = None, *, watched: bool = False) -> Iterator[Step]:
        before, start, step = self._counts(), time.monotonic(), Step(name)
        self._display.begin(name, total, (lambda: self._counts().since(before).total) if watched else None)
        yield step
        step.seconds = round(time.monotonic() - start, 3)
        step.bytes_on_wire = self._counts().since(before).total
        self.report.steps.append(step)
        self._display.end(step)

    def _counts(self) -> Counts:
        return self._proxy.counts() if self._proxy is not None else Counts()

    def _prepare(self) -> None:
        with self._step("prepare the input") as step:
            base = self._options.folder
            if base is not None:
                self._make_base(base)
            self._folder = tempfile.mkdtemp(prefix="pyrepl-demo-", dir=base if base is not None else _roomy())
            self._cleanup.callback(shutil.rmtree, self._folder, ignore_errors=True)
            free = shutil.disk_usage(self._folder).free
            needed = 4 * self._size + 2 * self._journal_size()
            if free < needed:
                raise UsageError(
                    f"{self._folder} has {free // MIB} MiB free, {needed // MIB} MiB are needed: "
                    f"choose another folder with --dir, or a smaller --size"
                )
            if self._options.source is not None:
                self._source = self._options.source
                self.report.notes.append(f"input: {self._source}")
            else:
                self._source = os.path.join(self._folder, "input.img")
                self.report.notes.append("input: " + content.make_image(self._source, self._size, self._folder))
            self._devices = [self._device(0), self._device(1)]
            step.bytes_changed = self._size

    def _make_base(self, base: str) -> None:
        """The folder of --dir; what was made for this run goes away with it, if nobody else put something there."""
        missing = os.path.abspath(base)
        made = []
        while not os.path.isdir(missing):
            made.append(missing)
            missing = os.path.dirname(missing)
        try:
            os.makedirs(base, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--dir {base} cannot be made ({error.strerror}): choose another folder") from error
        if not os.access(base, os.W_OK | os.X_OK):
            raise UsageError(f"--dir {base} cannot be written to: choose another folder, or run as another user")
        for folder in reversed(made):
            self._cleanup.callback(_remove_empty, folder)

    def _start(self) -> None:
        with self._step("start two nodes"):
            self._first = self._agent("first")
            self._second = self._agent("second")
            self._first.call("open", path=self._path("first"))
            self._second.call("open", path=self._path("second"))
            self._port = self._second.call("listen", port=0)["address"][1]
            self._proxy = self._cleanup.enter_context(Proxy(("127.0.0.1", self._port)))
            for i, (agent, role) in enumerate([(self._first, "primary"), (self._second, "secondary")]):
                agent.call("create", role=role, alignment=4096, **self._journal(i))
                agent.call("add_volume", name=VOLUME, device=self._devices[i], size=self._size)
        piece = 16 * MIB
        with self._step("fill the volume", self._size) as step:
            for first in range(0, self._size, piece):
                length = min(piece, self._size - first)
                self._first.call("fill", volume=VOLUME, source=self._source, first=first, length=length)
                self._display.advance(length)
            step.bytes_changed = self._size

    def _attach(self) -> None:
        self._first.call("start_writer", volume=VOLUME, rate=RATE, seed=1)
        with self._step("attach and synchronize", self._size, watched=True) as step:
            self._first.call("add_link", name=LINK, address=f"127.0.0.1:{self._cable.port}", mode="async")
            self._synced()
            step.bytes_changed = self._size

    def _operate(self) -> None:
        with self._step("snapshot") as step:
            result = self._first.call("snapshot", volume=VOLUME, name="monday")
            self._snapshot = result["lsn"]
            self._synced()
            step.bytes_changed, step.bytes_if_shipped = result["bytes_changed"], result["bytes_avoided"]
        with self._step(f"overwrite {SHARE:.0%}", int(SHARE * self._size), watched=True) as step:
            step.bytes_changed = self._first.call("overwrite", volume=VOLUME, share=SHARE, seed=2)["bytes"]
            self._synced()
        with self._step("applied at both sites"):
            for link in (None, LINK):
                self._first.call("wait_applied", lsn=None, link=link, timeout=SYNCED)
        with self._step("restore") as step:
            before = self._counts()
            result = self._first.call("restore", volume=VOLUME, name="monday")
            self._synced()
            crossed = self._counts().since(before)
            self._restored = result["lsn"]
            step.bytes_changed, step.bytes_if_shipped = result["bytes_changed"], result["bytes_avoided"]
            beyond = crossed.total - crossed.writes - crossed.signs
            self.report.restore = Restore(result["bytes_changed"], beyond, crossed.signs, result["seconds"])

    def _kill(self) -> None:
        with self._step("secondary killed and back") as step:
            before = self._first.call("written")["bytes"]
            self._second.kill()
            time.sleep(OUTAGE)  # the writer goes on
            self._second = self._agent("second")
            self._second.call("open", path=self._path("second"))
            self._second.call("listen", port=self._port)
            self._synced()
            step.bytes_changed = self._first.call("written")["bytes"] - before

    def _cut(self) -> None:
        with self._step("link cut and resumed") as step:
            before = self._first.call("written")["bytes"]
            self._cable.cut()
            time.sleep(OUTAGE)
            self._first.call("snapshot", volume=VOLUME, name="tuesday")
            self._cable.mend()
            self._synced()
            step.bytes_changed = self._first.call("written")["bytes"] - before

    def _compare(self) -> None:
        """Both nodes are closed and opened again first, so that what is compared comes from the devices."""
        with self._step("compare every store") as step, ThreadPoolExecutor(2) as pool:
            stopped = self._first.call("stop_writer")
            self._synced()
            for agent, name in ((self._first, "first"), (self._second, "second")):
                agent.call("close")
                agent.call("open", path=self._path(name))
            both = [pool.submit(agent.call, "stores") for agent in (self._first, self._second)]
            digests = [future.result()["digests"] for future in both]
            verdict = self._first.call(
                "judge", volume=VOLUME, source=self._source, snapshot=self._snapshot, restore=self._restored
            )
            step.bytes_changed = 0
        report = self.report
        names = sorted(set(digests[0]) | set(digests[1]))
        report.stores = {name: [digest.get(name, "missing") for digest in digests] for name in names}
        report.lost_writes = verdict["lost"]
        report.acknowledged_writes = verdict["acknowledged"]
        report.slowest_write_seconds = round(stopped["slowest"], 4)
        report.equal = bool(names) and digests[0] == digests[1] and not verdict["wrong"] and not verdict["lost"]
        if verdict["wrong"]:
            report.notes.append(f"{verdict['wrong']} blocks of the volume are not what they must be after the restore")

    # -- parts

    def _synced(self) -> None:
        """Waits for the secondary, and looks now and then whether it lives."""
        deadline = time.monotonic() + SYNCED
        while True:
            try:
                self._first.call("wait_synced", name=LINK, timeout=1.0)
                return
            except AgentError as error:
                self._second.check()
                if error.code != WaitTimeout.code or time.monotonic() > deadline:
                    raise

    @property
    def _cable(self) -> Proxy:
        assert self._proxy is not None
        return self._proxy

    def _agent(self, name: str) -> Agent:
        agent = Agent(name, self._path(f"{name}.log"))
        self._cleanup.callback(agent.close)
        return agent

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _journal(self, site: int) -> dict[str, Any]:
        if len(self._options.devices) > 2 + site:
            return {"journal": self._options.devices[2 + site], "journal_size": None, "force": True}
        return {"journal": self._path(f"journal-{site}.img"), "journal_size": self._journal_size(), "force": False}

    def _device(self, site: int) -> str:
        """The volume's device at a site: the one given, else a loop device if that is possible, else a file."""
        where = ("first", "second")[site]
        if len(self._options.devices) > site:
            self.report.notes.append(f"{where} site: the device {self._options.devices[site]}")
            return self._options.devices[site]
        path = self._path(f"volume-{site}.img")
        with open(path, "wb") as file:
            file.truncate(self._size)
        if os.geteuid() != 0:
            self.report.notes.append(f"{where} site: a file (loop devices need root)")
            return path
        from pyrepl._core import blockdev

        try:
            device = blockdev.attach_loop(path)
        except OSError as error:
            self.report.notes.append(f"{where} site: a file (no loop device: {error})")
            return path
        self._cleanup.callback(_detach, device)
        self.report.notes.append(f"{where} site: the loop device {device}")
        return device


def _check_device(device: str, size: int) -> None:
    from pyrepl._core import blockdev

    if not os.path.exists(device):
        raise UsageError(f"--device {device}: there is no such device")
    mode = os.stat(device).st_mode
    if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
        raise UsageError(f"--device {device} is neither a block device nor a file")
    if not os.access(device, os.R_OK | os.W_OK):
        raise UsageError(f"--device {device} may not be used by this user: run as root, or give files")
    used = blockdev.in_use(device)
    if used:
        raise InUse(f"--device {device} is in use ({used}); its content would be lost, so it is refused", device=device)
    with open(device, "rb") as file:
        if file.seek(0, os.SEEK_END) < size:
            raise UsageError(f"--device {device} is smaller than {size // MIB} MiB: choose a smaller --size")


def _remove_empty(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _detach(device: str) -> None:
    """A killed process may hold the device a moment longer; the kernel detaches it when the last user is gone."""
    from pyrepl._core import blockdev

    blockdev.detach_loop(device)


def _roomy() -> str | None:
    """Where temporary files go: not into memory (a tmpfs takes no direct I/O), unless there is nothing else."""
    usual = tempfile.gettempdir()
    with open("/proc/mounts", encoding="utf-8") as mounts:
        fields = [line.split() for line in mounts]
    in_memory = {field[1] for field in fields if field[2] in ("tmpfs", "ramfs")}
    path = os.path.realpath(usual)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return "/var/tmp" if path in in_memory and os.access("/var/tmp", os.W_OK) else None
