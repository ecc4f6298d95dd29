"""Programs that are measured: started, ended by their process id, and asked what they used.

Decides how a program is started and ended, and where CPU, memory and bytes on the wire are read. All of it is read
from the kernel, the same for every program: nothing runs beside the measurement that would cost one of them more than
the other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

TICK = os.sysconf("SC_CLK_TCK")
GRACE = 30.0  # seconds for a clean end

PACKAGES = {  # program -> package of Debian 12
    "fio": "fio",
    "nbdkit": "nbdkit",
    "qemu-nbd": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
}


def missing(programs: Sequence[str]) -> list[str]:
    """Those that this machine lacks, each with the package that brings it."""
    return [f"{name} (apt-get install {PACKAGES[name]})" for name in programs if shutil.which(name) is None]


def free_port() -> int:
    """A TCP port of loopback that nobody uses now; for programs that cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 60.0, pause: float = 0.01) -> float:
    """Returns, after how many seconds, when the condition holds.

    Raises:
        TimeoutError: it does not, after ``timeout`` seconds.
    """
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > timeout:
            raise TimeoutError(f"{what}: not after {timeout:.0f} s")
        time.sleep(pause)
    return time.monotonic() - begin


class Program:
    """A running program. A context manager: the end is SIGTERM, and SIGKILL if that does not help."""

    def __init__(self, arguments: Sequence[str], log: Path, **options: object) -> None:
        self.arguments, self._log = list(arguments), log
        with log.open("ab") as output:
            self.process = subprocess.Popen(  # type: ignore[call-overload]
                self.arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options
            )

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def last_words(self) -> str:
        """The end of what it printed."""
        return self._log.read_bytes()[-2000:].decode(errors="replace").strip() or "nothing"

    def wait_for(self, condition: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
        """Returns when the condition holds.

        Raises:
            RuntimeError: the program ended before.
            TimeoutError: the condition does not hold in time.
        """

        def holds() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.arguments[0]} ended before {what}; it said: {self.last_words()}")
            return condition()

        wait_until(holds, what, timeout)

    def close(self) -> None:
        """Ends it. Harmless the second time."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


class Usage(NamedTuple):
    """CPU seconds and the most memory, of several processes together."""

    cpu_seconds: float
    peak_rss: int
    rss: int


def usage(pids: Sequence[int]) -> Usage:
    """What the processes used since they started, children that ended included."""
    cpu = peak = now = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu += sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
        words = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        peak += int(words["VmHWM"].split()[0]) << 10
        now += int(words["VmRSS"].split()[0]) << 10
    return Usage(cpu / TICK, peak, now)


class Wire(NamedTuple):
    """Bytes of the TCP connections that a port of loopback took: received there, and sent back."""

    received: int
    sent: int
    connections: frozenset[int]

    @property
    def total(self) -> int:
        return self.received + self.sent


_DIAG = struct.Struct("=BBBxI")  # inet_diag_req_v2: family, protocol, extensions, states
_ID = struct.Struct("!HH16s16s")  # inet_diag_sockid up to the interface: ports, addresses
_SOCK_DIAG_BY_FAMILY, _DUMP, _DONE, _ERROR, _INFO, _ESTABLISHED = 20, 0x301, 3, 2, 2, 1
_BYTES = struct.Struct("=QQ")  # of tcp_info at 120: bytes that the peer acknowledged, bytes received


def wire(port: int) -> Wire:
    """What has crossed the established connections of a listening port, as the kernel counts (sock_diag, tcp_info)."""
    received = sent = 0
    found = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 4) as diag:  # NETLINK_SOCK_DIAG
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _DIAG.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 1 << _ESTABLISHED)
            body += _ID.pack(port, 0, bytes(16), bytes(16)) + bytes(12)
            diag.send(struct.pack("=IHHII", 16 + len(body), _SOCK_DIAG_BY_FAMILY, _DUMP, 1, 0) + body)
            for message in _answers(diag):
                (number,) = struct.unpack_from("!H", message, 4)
                if number != port:
                    continue
                (cookie,) = struct.unpack_from("=Q", message, 44)
                position = 72
                while position + 4 <= len(message):
                    length, kind = struct.unpack_from("=HH", message, position)
                    if kind == _INFO and length >= 4 + 136:
                        acked, got = _BYTES.unpack_from(message, position + 4 + 120)
                        received, sent = received + got, sent + acked
                        found.add(cookie)
                    position += max(4, (length + 3) & ~3)
    return Wire(received, sent, frozenset(found))


def _answers(diag: socket.socket) -> list[bytes]:
    messages = []
    while True:
        data = diag.recv(1 << 18)
        while len(data) >= 16:
            length, kind = struct.unpack_from("=IH", data)
            if kind == _DONE:
                return messages
            if kind == _ERROR:
                raise OSError(-struct.unpack_from("=i", data, 16)[0], "sock_diag")
            messages.append(data[16:length])
            data = data[(length + 3) & ~3 :]


def write_out(path: Path) -> None:
    """What the page cache holds of a file goes to the disk, so that it does not disturb whoever is measured next."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def forget_pages(path: Path) -> None:
    """The page cache holds nothing of the file any more."""
    write_out(path)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def filled(path: Path, size: int, *, seed: bytes | None = None) -> Path:
    """A file of ``size`` bytes with all its blocks written, so that no run pays for allocating them: noise that no two
    places share, or with ``seed=b""`` zeros."""
    chunk = 1 << 20
    with path.open("wb") as file:
        for _ in range(size // chunk):
            file.write(os.urandom(chunk) if seed is None else bytes(chunk))
        file.flush()
        os.fsync(file.fileno())
    forget_pages(path)
    return path


def equal_files(one: Path, other: Path) -> bool:
    """Whether the two hold the same bytes."""
    chunk = 4 << 20
    with contextlib.ExitStack() as stack:
        left, right = (stack.enter_context(path.open("rb")) for path in (one, other))
        while True:
            a, b = left.read(chunk), right.read(chunk)
            if a != b:
                return False
            if not a:
                return True
