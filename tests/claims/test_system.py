"""Claims 22 to 25: the scenarios of claims 1, 9, 10 and 11 in a system of two daemons, driven by the command line alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pyrepl._core import batch, layout
from pyrepl.demo.proxy import Counts, Proxy
from tests.support.cable import HEADER, Cable, Gate
from tests.support.clients import until
from tests.support.daemons import Daemon
from tests.support.rig import COMMAND as COMMAND_BYTES
from tests.support.rig import framing

MIB, KIB = 1 << 20, 1 << 10
REGION = 64 * KIB
COMMAND = "from pyrepl.cli import main; main(prog_name='pyrepl')"


class System:
    """Two daemons with group "db" and its volume "v", and a cable between them; what its stores must show is kept beside."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        with contextlib.ExitStack() as stack:
            self.near, self.far = (Daemon(folder / name, name) for name in ("near", "far"))
            for daemon in (self.near, self.far):
                stack.callback(daemon.close)
            host, port = self.far.address.rsplit(":", 1)
            self.cable = Cable((host, int(port)))
            stack.callback(self.cable.close)
            for daemon, role in ((self.near, "primary"), (self.far, "secondary")):
                self.cli(daemon, "group", "create", "db", "--journal", daemon.folder / "journal", "--journal-size", "128M",
                         "--role", role)
                self.cli(daemon, "volume", "add", "db/v", "--size", size)
            self.stores = {"v": bytearray(size)}
            self.proxy = stack.enter_context(Proxy(("127.0.0.1", self.cable.port)))
            self.do("link", "add", "db/far", f"127.0.0.1:{self.proxy.port}", "--wait", "--timeout", 60)
            self._cleanup = stack.pop_all()

    def close(self) -> None:
        self._cleanup.close()

    def cli(self, daemon: Daemon, *arguments: object, data: bytes = b"") -> bytes:
        """The output of one ``pyrepl`` process, which must do its work."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                       "PYREPL_SOCKET": str(daemon.control)}
        done = subprocess.run([sys.executable, "-c", COMMAND, *map(str, arguments)], input=data, capture_output=True,
                              check=False, timeout=120, env=environment)
        assert done.returncode == 0, f"pyrepl {arguments}: {done.returncode} {done.stderr.decode()}"
        return done.stdout

    def do(self, *arguments: object, data: bytes = b"") -> bytes:
        """At the primary."""
        return self.cli(self.near, *arguments, data=data)

    def ask(self, daemon: Daemon, *arguments: object) -> Any:
        """Its JSON."""
        return json.loads(self.cli(daemon, *arguments, "--json"))

    # ---- what is done, and kept beside

    def write(self, store: str, offset: int, data: bytes) -> None:
        self.do("volume", "write", f"db/{store}", "--offset", offset, data=data)
        self.stores[store][offset:offset + len(data)] = data

    def add(self, name: str, size: int) -> None:
        """A volume."""
        self.do("volume", "add", f"db/{name}", "--size", size)
        self.stores[name] = bytearray(size)

    def snapshot(self, name: str) -> None:
        self.do("snapshot", "create", "db/v", name)
        self.stores[name] = bytearray(self.stores["v"])

    def restore(self, name: str, offset: int = 0, length: int | None = None) -> None:
        end = len(self.stores[name]) if length is None else offset + length
        extent = () if length is None else ("--offset", offset, "--length", length)
        self.do("volume", "restore", "db/v", name, "--force", *extent)
        self.stores["v"][offset:end] = self.stores[name][offset:end]

    def resize(self, size: int) -> None:
        self.do("volume", "resize", "db/v", size)
        self.stores["v"].extend(bytes(size - len(self.stores["v"])))

    def delete(self, name: str) -> None:
        self.do("snapshot", "delete", f"db/{name}", "--force")
        del self.stores[name]

    @property
    def lsn(self) -> int:
        return int(self.ask(self.near, "status", "db")["groups"][0]["lsn"]["end"])

    def drain(self) -> None:
        self.do("wait", "db", "synced", "--timeout", 60)
        self.do("wait", "db", "applied", "--link", "far", "--timeout", 60)

    def counts(self) -> Counts:
        """What has crossed, when nothing but signs of life moves."""
        self.drain()
        last, counts = Counts(), self.proxy.counts()
        while counts.since(last)._replace(total=0, signs=0, forward=0) != Counts():
            time.sleep(0.05)
            last, counts = counts, self.proxy.counts()
        return counts

    def shown(self, daemon: Daemon, store: str) -> bytes:
        return self.cli(daemon, "volume", "read", f"db/{store}")

    def check(self) -> None:
        """Both sites show what they must."""
        self.drain()
        for daemon in (self.near, self.far):
            for name, content in self.stores.items():
                assert self.shown(daemon, name) == content, f"{name} at {daemon.name}"

    def operations(self, daemon: Daemon) -> list[Any]:
        return [(entry["lsn"], entry["kind"]) for entry in self.ask(daemon, "operation", "list", "db")["operations"]]


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        def make(size: int) -> System:
            one = System(tmp_path / "system", size)
            stack.callback(one.close)
            return one
        (tmp_path / "system").mkdir()
        yield make


def test_claim_22_operations_travel_as_commands_in_a_system(system):
    one = system(16 * MIB)
    one.add("w", 4 * MIB)
    one.write("v", 0, os.urandom(16 * MIB))
    one.snapshot("k")
    one.write("v", 0, os.urandom(10 * MIB))
    before = one.counts()
    written, restored = [0], threading.Event()

    def writes() -> None:  # beside the restore: some before it, some after it
        while written[0] < 4 or not restored.is_set():
            one.write("w", written[0] % 16 * 256 * KIB, os.urandom(256 * KIB))
            written[0] += 1

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(writes)
        until(lambda: written[0] >= 2, "it writes")
        one.restore("k")
        restored.set()
        writer.result(60)
    sent, payload = one.counts().since(before), written[0] * 256 * KIB
    assert sent.copied == 0 < sent.operations <= COMMAND_BYTES
    assert payload <= sent.writes and sent.forward - sent.signs - payload <= COMMAND_BYTES + framing(payload)
    one.check()
    near, far = (one.operations(daemon) for daemon in (one.near, one.far))
    assert [kind for _, kind in far][-2:] == ["snapshot", "restore"] and near[-2:] == far[-2:]


def test_claim_23_ordered_operations_in_a_system(system, times):
    """Write A, snapshot, write B, restore a range, write C, snapshot, grow, write D in the new area; daemons are killed on
    the way."""
    one = system(2 * MIB)
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for n in range(times(20)):
        end = len(one.stores["v"])
        steps = [lambda: one.write("v", 0, rng.randbytes(MIB)), lambda n=n: one.snapshot(f"a{n}"),
                 lambda: one.write("v", REGION, rng.randbytes(MIB)), lambda n=n: one.restore(f"a{n}", REGION * 2, REGION * 5),
                 lambda: one.write("v", REGION * 4, rng.randbytes(REGION)), lambda n=n: one.snapshot(f"b{n}"),
                 lambda end=end: one.resize(end + REGION), lambda end=end: one.write("v", end, rng.randbytes(REGION))]
        for step in steps:
            chosen = rng.randrange(8)
            if chosen < 2:
                daemon = (one.near, one.far)[chosen]
                daemon.kill()
                daemon.start()
                until(lambda: not one.ask(one.near, "status", "db")["groups"][0]["asking"], "the primary leads when its peer has answered", 60)
            step()
        one.check()
        near, far = (dict(one.operations(daemon)) for daemon in (one.near, one.far))
        assert all(near[lsn] == far[lsn] for lsn in near.keys() & far.keys())
        one.delete(f"a{n}")
        one.delete(f"b{n}")
    one.check()


def test_claim_24_at_the_very_place_in_a_system(system, times):
    """A write, a restore, a write that overlaps its target; S stops after each."""
    one = system(MIB)
    one.write("v", 0, os.urandom(MIB))
    one.snapshot("k")
    for _ in range(times(30)):
        one.drain()
        one.cable.tap = gate = Gate(one.lsn)
        moments, lsns = [bytes(one.stores["v"])], [one.lsn]
        for step in (lambda: one.write("v", 0, os.urandom(REGION)), lambda: one.restore("k"),
                     lambda: one.write("v", REGION // 2, os.urandom(REGION))):
            step()
            moments.append(bytes(one.stores["v"]))
            lsns.append(one.lsn)
        assert lsns == list(range(lsns[0], lsns[0] + 4)) and one.shown(one.far, "v") == moments[0]
        for lsn, moment in zip(lsns[1:], moments[1:], strict=True):
            gate.open(lsn)
            one.do("wait", "db", lsn, "--link", "far", "--timeout", 60)
            assert one.shown(one.far, "v") == moment, f"at LSN {lsn}"
        assert moments[2] == bytes(one.stores["k"]), "never the later write under the operation"
        gate.open()
        one.cable.tap = None
    one.check()


def test_claim_25_the_command_is_in_the_stream_in_a_system(system):
    one = system(MIB)
    one.write("v", 0, os.urandom(MIB))
    one.snapshot("k")
    one.drain()
    one.cable.tap = gate = Gate()
    first = one.lsn + 1
    one.write("v", 0, os.urandom(REGION))
    one.restore("k")
    one.write("v", REGION, os.urandom(REGION))
    one.drain()
    batches = [frame[HEADER:] for kind, frame in gate.frames if kind == layout.FRAME_BATCH]
    heads = [batch.head(body) for body in batches]
    wanted = [(first, layout.BATCH_EVENTS), (first + 1, layout.BATCH_OPERATION), (first + 2, layout.BATCH_EVENTS)]
    assert [(head.first_lsn, head.kind) for head in heads
            if head.kind in (layout.BATCH_EVENTS, layout.BATCH_OPERATION)] == wanted
    assert len(next(body for body, head in zip(batches, heads, strict=True) if head.kind == layout.BATCH_OPERATION)) <= 1024
    for daemon in (one.near, one.far):
        daemon.stop()  # a journal is read from outside
        records = json.loads(one.cli(daemon, "journal", "dump", daemon.folder / "journal", "--json"))["records"]
        assert [(record["first_lsn"], record["kind"]) for record in records
                if record["kind"] in ("events", "operation") and record["first_lsn"] >= first] == [
            (first, "events"), (first + 1, "operation"), (first + 2, "events")], daemon.name
        daemon.start()
    one.check()
