"""The systems that are measured. Each is started on files of its own in one folder, with both copies equal, and ended
again.

Decides how each system is set up, what "the secondary has everything" means for it, and how its two copies are
compared. Options are those that the systems' own documents recommend for throughput; where a peer is left an
advantage, its class says so. Must not know what is run on them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import pyrepl
from benchmarks.peers.processes import (
    Program,
    equal_files,
    filled,
    forget_pages,
    free_port,
    wait_until,
    write_out,
)

T = TypeVar("T")

SETTLE = 600.0  # seconds for a secondary to get what it lacks


class Rig:
    """A system under load. A context manager; inside it ``target`` can be read and written.

    Attributes:
        name: in tables.
        programs: what it needs of the machine, see ``processes.PACKAGES``.
        target: a file, or the URI of an NBD export.
        port: the TCP port that its replica listens on, None without a replica.
    """

    name: ClassVar[str]
    programs: ClassVar[Sequence[str]] = ()

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.target: Path | str = ""
        self.port: int | None = None
        self._running = contextlib.ExitStack()
        self._programs: list[Program] = []

    @property
    def pids(self) -> list[int]:
        """Of all its processes; empty if the kernel alone does the work."""
        return [program.pid for program in self._programs]

    def start(self) -> None:
        """Starts it; returns when the replica, if there is one, has everything."""
        raise NotImplementedError

    def settle(self) -> float:
        """Returns when the replica has everything, after how many seconds."""
        return 0.0

    def finish(self) -> bool | None:
        """Ends it, and says whether both copies are equal; None: there is only one."""
        self._running.close()
        return None

    def __enter__(self) -> Rig:
        try:
            self.start()
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        self._running.close()

    def run(self, *arguments: object, log: str) -> Program:
        """Starts a program that belongs to the rig."""
        program = self._running.enter_context(Program([str(a) for a in arguments], self.folder / f"{log}.log"))
        self._programs.append(program)
        return program

    def enter(self, thing: contextlib.AbstractContextManager[T]) -> T:
        """Something that is closed with the rig."""
        return self._running.enter_context(thing)

    def _socket(self, name: str) -> Path:
        return self.folder / f"{name}.sock"

    def _file(self, name: str, *, seed: bytes | None = None) -> Path:
        """A file that belongs to the rig, and does not outlive it."""
        path = self.folder / name
        self._running.callback(path.unlink, missing_ok=True)
        self._running.callback(write_out, path)
        return filled(path, self.size, seed=seed)


class Raw(Rig):
    """The file itself: io_uring, O_DIRECT."""

    name = "raw file"

    def start(self) -> None:
        self.target = self._file("raw")


class _Serving(Rig):
    """A program that serves NBD on a unix socket."""

    def _serve(self, program: Program, path: Path, export: str = "") -> None:
        program.wait_for(lambda: _answers(path), f"it listens on {path.name}")
        self.target = f"nbd+unix:///{export}?socket={path}"


class NbdkitNull(_Serving):
    """The ceiling: an NBD server that does nothing."""

    name = "nbdkit null"
    programs = ("nbdkit",)

    def start(self) -> None:
        path = self._socket("null")
        self._serve(self.run("nbdkit", "-f", "-U", path, "null", self.size, log="nbdkit"), path)


class NbdkitFile(_Serving):
    """nbdkit's file plugin through the page cache, all of the file in it: what it reads comes from memory."""

    name = "nbdkit file, cached"
    programs = ("nbdkit",)
    options: ClassVar[Sequence[str]] = ()
    is_cached: ClassVar[bool] = True

    def start(self) -> None:
        file, path = self._file("served"), self._socket("file")
        if self.is_cached:
            with file.open("rb", buffering=0) as opened:
                while opened.read(1 << 20):
                    pass
        else:
            forget_pages(file)
        self._serve(self.run("nbdkit", "-f", "-U", path, "file", file, *self.options, log="nbdkit"), path)


class NbdkitFileUncached(NbdkitFile):
    """The same with ``cache=none fadvise=random``: what was read leaves the page cache, so reads come from the disk."""

    name = "nbdkit file, uncached"
    options = ("cache=none", "fadvise=random")
    is_cached = False


class QemuNbd(_Serving):
    """qemu-nbd with O_DIRECT and io_uring."""

    name = "qemu-nbd, O_DIRECT"
    programs = ("qemu-nbd",)

    def start(self) -> None:
        file, path = self._file("served"), self._socket("qemu")
        self._serve(
            self.run(
                "qemu-nbd", "-k", path, "-f", "raw", "--cache=none", "--aio=io_uring", "-t", "-e", 8, "-x", "x", file,
                log="qemu-nbd",
            ),
            path,
            "x",
        )


class QemuMirror(_Serving):
    """qemu-storage-daemon: an export of a raw file (O_DIRECT, io_uring) whose writes blockdev-mirror sends over TCP to
    nbdkit's file plugin.

    The peer's advantage: its secondary is done when nbdkit has taken a write into the page cache; ours when it is on
    the disk. Other options are the daemon's defaults (granularity 64 KiB, buffer 16 MiB).
    """

    programs = ("qemu-storage-daemon", "nbdkit")
    copy_mode: ClassVar[Literal["background", "write-blocking"]]

    def start(self) -> None:
        here, there = self._file("primary"), self._file("secondary", seed=b"")
        self.port = free_port()
        replica = self.run("nbdkit", "-f", "-i", "127.0.0.1", "-p", self.port, "file", there, log="nbdkit")
        replica.wait_for(lambda: _answers(("127.0.0.1", self.port or 0)), "it listens")
        served, control = self._socket("mirror"), self._socket("qmp")
        daemon = self.run(
            "qemu-storage-daemon",
            "--object", "iothread,id=io",
            "--blockdev", f"driver=file,node-name=file,filename={here},cache.direct=on,aio=io_uring",
            "--blockdev", "driver=raw,node-name=disk,file=file",
            "--blockdev", f"driver=nbd,node-name=far,server.type=inet,server.host=127.0.0.1,server.port={self.port}",
            "--nbd-server", f"addr.type=unix,addr.path={served}",
            "--export", "type=nbd,id=export,node-name=disk,writable=on,name=x",
            "--chardev", f"socket,id=qmp,path={control},server=on,wait=off",
            "--monitor", "chardev=qmp",
            log="qemu",
        )  # fmt: skip
        self._serve(daemon, served, "x")
        self._files = here, there
        daemon.wait_for(control.exists, "it listens on its control socket")  # which is made after the server's
        self._qmp = self._running.enter_context(Qmp(control))
        self._qmp.call(
            "blockdev-mirror",
            **{"job-id": "mirror", "device": "disk", "target": "far", "sync": "full", "copy-mode": self.copy_mode},
        )
        wait_until(lambda: self._job()["ready"], "the mirror is ready", SETTLE)

    def settle(self) -> float:
        def has_all() -> bool:
            job = self._job()
            return bool(job["ready"] and job["offset"] == job["len"])

        return wait_until(has_all, "the mirror has everything", SETTLE)

    def finish(self) -> bool | None:
        self.settle()
        self._qmp.call("block-job-complete", device="mirror")
        wait_until(lambda: not self._qmp.call("query-block-jobs"), "the mirror has ended", SETTLE)
        for program in reversed(self._programs):
            program.close()
        equal = equal_files(*self._files)
        self._running.close()
        return equal

    def _job(self) -> dict[str, Any]:
        jobs = self._qmp.call("query-block-jobs")
        if not jobs or jobs[0].get("error"):
            raise RuntimeError(f"the mirror has ended: {jobs or self._programs[-1].last_words()}")
        job: dict[str, Any] = jobs[0]
        return job


class QemuMirrorAsync(QemuMirror):
    name = "qemu mirror, background"
    copy_mode = "background"


class QemuMirrorSync(QemuMirror):
    name = "qemu mirror, write-blocking"
    copy_mode = "write-blocking"


class Pyrepl(_Serving):
    """Two pyrepld of which the first serves NBD on a unix socket, linked over TCP; journals and volumes are files of
    the same folder, written once before so that no run pays for allocating them.

    It has everything when both sites have performed it: on their disks, not in a page cache.
    """

    mode: ClassVar[Literal["async", "sync"]]
    journal: ClassVar[int] = 4 << 30

    def start(self) -> None:
        self._sites = [Site(self, name) for name in ("primary", "secondary")]
        primary, secondary = self._sites
        for site in self._sites:
            role = "primary" if site is primary else "secondary"
            journal, data = self.file(f"{site.name}-journal", self.journal), self.file(f"{site.name}-data", self.size)
            group = site.node.create_group("bench", journal, role=role, force=True)  # an earlier run has written there
            group.add_volume("data", data, force=True)
        self.port = int(secondary.address.rpartition(":")[2])
        self._group = primary.node.group("bench")
        self._group.add_link("replica", secondary.address, mode=self.mode)
        self._link = self._group.link("replica")
        self._link.wait_synced(timeout=SETTLE)
        primary.node.start_export("x", "bench", "data")
        self._serve(primary.program, primary.nbd, "x")
        self.settle()

    def settle(self) -> float:
        begin = time.monotonic()
        lsn = self._group.flush()
        self._group.wait(lsn, timeout=SETTLE)
        self._group.wait(lsn, where="replica", timeout=SETTLE)
        self._link.wait_synced(timeout=SETTLE)
        return time.monotonic() - begin

    def finish(self) -> bool | None:
        """After both daemons have ended the stores are read through the package: what they show, whatever holds it."""
        self.settle()
        for site in self._sites:
            site.node.close()
            site.program.close()
        digests = set()
        for site in self._sites:
            with pyrepl.Node.open(site.folder) as node:
                store = node.group("bench").volume("data")
                digest = hashlib.blake2b()
                for offset in range(0, store.size, 4 << 20):
                    digest.update(store.read(offset, min(4 << 20, store.size - offset)))
                digests.add(digest.digest())
        self._running.close()
        return len(digests) == 1

    def file(self, name: str, size: int) -> Path:
        """A file of the rig with all its blocks written."""
        path = self.folder / name
        self._running.callback(path.unlink, missing_ok=True)
        return filled(path, size, seed=b"" if name.endswith("journal") else None)


class Site:
    """One pyrepld of a rig, and the connection to its control socket."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.name = name
        self.folder, self.nbd, self.control = (rig.folder / f"{name}{end}" for end in ("", ".sock", ".control"))
        self.address = f"127.0.0.1:{free_port()}"
        config = rig.folder / f"{name}.toml"
        config.write_text(
            f'state = "{self.folder}"\nname = "{name}"\ncreate = true\nlisten = ["{self.address}"]\n'
            f'[control]\nsocket = "{self.control}"\n[nbd]\nlisten = ["unix:{self.nbd}"]\n'
        )
        self.program = rig.run(sys.executable, "-m", "pyrepl.service.daemon", "--config", config, log=name)
        self.program.wait_for(lambda: _answers(self.control), "its control socket answers")
        self.node = rig.enter(pyrepl.connect(self.control))


class PyreplAsync(Pyrepl):
    name = "pyrepl, async"
    mode = "async"


class PyreplSync(Pyrepl):
    name = "pyrepl, sync"
    mode = "sync"


class Qmp:
    """QEMU's control socket: one command, one answer; events are passed over."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(60)
            self._socket.connect(str(path))
            self._stream = self._socket.makefile("rwb")
            json.loads(self._stream.readline())
            self.call("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def call(self, command: str, **arguments: object) -> Any:
        """What the command returns.

        Raises:
            RuntimeError: it failed; the text is QEMU's.
        """
        self._stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._stream.flush()
        while line := self._stream.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise RuntimeError(f"{command}: qemu-storage-daemon has ended")

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *args: object) -> None:
        with contextlib.suppress(OSError):  # what a dead process did not take
            self._stream.close()
        self._socket.close()


def _answers(address: Path | tuple[str, int]) -> bool:
    """Whether somebody listens there."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(address) if isinstance(address, Path) else address)
        except OSError:
            return False
    return True
