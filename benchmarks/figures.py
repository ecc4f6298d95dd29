"""The figures of the closing notes, each measured and printed with what it is compared with.

    python benchmarks/figures.py restore      1 GiB changed under load, restored: bytes on the wire, time until usable
    python benchmarks/figures.py framing      4 KiB random writes, 32 in flight: bytes on the wire over their payload
    python benchmarks/figures.py write        the API against fio on the same file, in turn, and CPU for each write
    python benchmarks/figures.py sparse       a sparse volume of 1 TiB: snapshot, restore, clone, memory

Files lie in the folder that --dir names (default: the current one). The two sites are two processes; a proxy between
them counts bytes on its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import click

import pyrepl
from pyrepl.demo.proxy import Counts, Proxy

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def folder(parent: str) -> Iterator[Path]:
    path = tempfile.mkdtemp(prefix="pyrepl-figures-", dir=parent)
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def pair(path: Path, size: int, journal: int = GIB) -> Iterator[tuple[pyrepl.Group, pyrepl.Volume, Proxy]]:
    """A primary here, a secondary in a process of its own, the proxy between them; synchronized."""
    with pyrepl.Node.open(path / "second", create=True) as second:
        group = second.create_group(
            "figures", journal=str(path / "second.journal"), journal_size=journal, role="secondary"
        )
        group.add_volume("data", size=size)
    daemon = subprocess.Popen(
        [sys.executable, "-m", "pyrepl.service.daemon", "--state", str(path / "second"), "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
    )
    assert daemon.stdout is not None
    try:
        port = int(json.loads(daemon.stdout.readline())["listening"][0].rpartition(":")[2])
        with Proxy(("127.0.0.1", port)) as proxy, pyrepl.Node.open(path / "first", create=True) as first:
            group = first.create_group("figures", journal=str(path / "first.journal"), journal_size=journal)
            volume = group.add_volume("data", size=size)
            group.add_link("second", f"127.0.0.1:{proxy.port}").wait_synced(timeout=600)
            yield group, volume, proxy
    finally:
        daemon.terminate()
        daemon.wait()


def write_at_random(volume: pyrepl.Volume, rng: random.Random, count: int, length: int, depth: int = 32) -> None:
    block, flight = os.urandom(length), deque()
    for _ in range(count):
        flight.append(volume.submit_write(rng.randrange(volume.size // length) * length, block))
        if len(flight) >= depth:
            flight.popleft().wait()
    for ticket in flight:
        ticket.wait()


def settle(group: pyrepl.Group) -> None:
    """Everything written is in the stores of both sites."""
    lsn = group.flush()
    group.wait(lsn)
    group.wait(lsn, where="second", timeout=600)
    group.link("second").wait_synced(timeout=600)  # nothing is copied any more: a full journal folds


@click.group()
@click.option("--dir", "parent", default=".", show_default=True, type=click.Path(exists=True, file_okay=False))
@click.pass_context
def main(context: click.Context, parent: str) -> None:
    """Figures, measured."""
    context.obj = parent


@main.command()
@click.option("--changed", default=1280, show_default=True, help="MiB that are overwritten after the snapshot.")
@click.option("--rounds", default=5, show_default=True)
@click.pass_obj
def restore(parent: str, changed: int, rounds: int) -> None:
    """Restore what was changed under load."""
    with folder(parent) as path:
        _restore(path, changed, rounds)
        here, there = digests(path / "first"), digests(path / "second")
    say(f"  {len(here)} stores read from the devices of both sites: {'equal' if here == there else 'DIFFERENT'}")
    if here != there:
        raise SystemExit(1)


def _restore(path: Path, changed: int, rounds: int) -> None:
    with pair(path, 2 * GIB) as (group, volume, proxy):
        rng = random.Random(1)
        write_at_random(volume, rng, 512, MIB)
        kept = volume.snapshot("kept")
        regions = volume.size // (64 * KIB)
        usable, wire, bytes_changed, writes = [], [], [], 0
        for _ in range(rounds):
            for number in rng.sample(range(regions), min(changed * MIB // (64 * KIB), regions)):
                volume.submit_write(number * 64 * KIB, os.urandom(64 * KIB))
            settle(group)
            stop = threading.Event()

            def load(stop: threading.Event = stop) -> None:
                nonlocal writes
                block, mine = os.urandom(4096), random.Random(2)
                while not stop.wait(0.001):
                    volume.write(mine.randrange(volume.size // 4096) * 4096, block)
                    writes += 1

            writer = threading.Thread(target=load)
            writer.start()
            time.sleep(0.5)
            before: Counts = proxy.counts()
            started = time.perf_counter()
            result = volume.restore(kept)
            usable.append(time.perf_counter() - started)
            result.wait(where="second", timeout=600)
            crossed = proxy.counts().since(before)
            stop.set()
            writer.join()
            wire.append(crossed.total - crossed.writes - crossed.signs)
            bytes_changed.append(result.bytes_changed)
        settle(group)
    say(
        f"restore of {min(bytes_changed) / GIB:.2f} to {max(bytes_changed) / GIB:.2f} GiB, "
        f"{writes} writes beside it, {rounds} times:"
    )
    say(
        f"  usable after {', '.join(f'{1e3 * s:.1f}' for s in usable)} ms "
        f"(median {1e3 * statistics.median(usable):.1f})"
    )
    say(f"  on the wire besides the writers' own and acknowledgements: {max(wire)} bytes at most")


def digests(path: Path) -> dict[str, str]:
    """What every store of a node shows, read from its devices: the node is opened for it."""
    found = {}
    with pyrepl.Node.open(path) as node:
        group = node.group("figures")
        for store in [*group.volumes, *group.snapshots]:
            digest = hashlib.blake2b()
            for offset in range(0, store.size, 4 * MIB):
                digest.update(store.read(offset, min(4 * MIB, store.size - offset)))
            found[store.name] = digest.hexdigest()
    return found


@main.command()
@click.option("--count", default=100_000, show_default=True)
@click.pass_obj
def framing(parent: str, count: int) -> None:
    """Bytes on the wire over the payload."""
    with folder(parent) as path, pair(path, GIB) as (group, volume, proxy):
        before = proxy.counts()
        started = time.perf_counter()
        write_at_random(volume, random.Random(3), count, 4096)
        seconds = time.perf_counter() - started
        group.wait(group.flush(), where="second", timeout=600)
        crossed = proxy.counts().since(before)
    payload = count * 4096
    say(
        f"{count} random writes of 4 KiB, 32 in flight, {count / seconds:.0f}/s: {crossed.forward} bytes to the "
        f"secondary for {payload} of payload: {100 * (crossed.forward / payload - 1):.2f} % framing; "
        f"{100 * (crossed.total / payload - 1):.2f} % with acknowledgements"
    )


def fio(path: Path, depth: int, seconds: int) -> tuple[float, float]:
    """Random writes of 4 KiB by fio: (per second, CPU microseconds each)."""
    output = subprocess.run(
        [
            "fio",
            "--name=figures",
            f"--filename={path}",
            "--direct=1",
            "--rw=randwrite",
            "--bs=4k",
            f"--iodepth={depth}",
            "--ioengine=io_uring" if depth > 1 else "--ioengine=psync",
            f"--runtime={seconds}",
            "--time_based",
            "--size=1g",
            "--output-format=json",
        ],
        check=True,
        capture_output=True,
    ).stdout
    job = json.loads(output[output.index(b"{") :])["jobs"][0]
    iops = job["write"]["iops"]
    return iops, 1e4 * (job["usr_cpu"] + job["sys_cpu"]) / iops


@main.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=4, show_default=True)
@click.pass_obj
def write(parent: str, rounds: int, seconds: int) -> None:
    """The API against fio, in turn on the same file: a journal's log, and then fio on the volume's file."""
    rng = random.Random(4)
    rates: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with folder(parent) as path:
        plain = path / "plain"
        with plain.open("wb") as file:
            for _ in range(GIB // MIB):
                file.write(bytes(MIB))
            os.fsync(file.fileno())
        with pyrepl.Node.open(path / "node", create=True) as node:
            group = node.create_group("figures", journal=str(path / "journal"), journal_size=GIB)
            volume = group.add_volume("data", str(plain), size=GIB)
            places = [rng.randrange(GIB // 4096) * 4096 for _ in range(200_000)]
            block = os.urandom(4096)
            for _ in range(rounds):
                for depth in (1, 32):
                    group.wait(group.flush())
                    count, used, started = 0, cpu_seconds(), time.perf_counter()
                    flight: deque[pyrepl.Ticket] = deque()
                    while time.perf_counter() - started < seconds:
                        place = places[count % len(places)]
                        count += 1
                        if depth == 1:
                            volume.write(place, block)
                            continue
                        flight.append(volume.submit_write(place, block))
                        if len(flight) >= depth:
                            flight.popleft().wait()
                    for ticket in flight:
                        ticket.wait()
                    taken = time.perf_counter() - started
                    rates.setdefault(("api", depth), []).append((count / taken, 1e6 * (cpu_seconds() - used) / count))
                    group.wait(group.flush())
                    rates.setdefault(("fio", depth), []).append(fio(path / "fio", depth, seconds))
    for depth in (1, 32):
        api, peer = (statistics.median(rate for rate, _ in rates[who, depth]) for who in ("api", "fio"))
        costs = {who: statistics.median(cost for _, cost in rates[who, depth]) for who in ("api", "fio")}
        say(
            f"4 KiB random writes, {depth:2} in flight: API {api:.0f}/s ({1e6 / api:.0f} us each, "
            f"{costs['api']:.1f} us of CPU with applying) | fio {peer:.0f}/s ({costs['fio']:.1f} us of CPU) | "
            f"ratio {api / peer:.2f}"
        )


@main.command()
@click.pass_obj
def sparse(parent: str) -> None:
    """A sparse volume of 1 TiB."""

    def memory() -> float:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))

    with folder(parent) as path, pyrepl.Node.open(path / "node", create=True) as node:
        group = node.create_group("figures", journal=str(path / "journal"), journal_size=512 * MIB)
        before = memory()
        times: dict[str, list[float]] = {}

        def timed(name: str, call: object) -> None:
            started = time.perf_counter()
            call()  # type: ignore[operator]
            times.setdefault(name, []).append(1e3 * (time.perf_counter() - started))

        timed("add", lambda: group.add_volume("big", size=1 << 40))
        volume, rng = group.volume("big"), random.Random(5)
        for number in range(10):
            for _ in range(200):
                volume.write(rng.randrange(volume.size // 4096) * 4096, b"x" * 4096)
            group.wait(group.flush())
            timed("snapshot", lambda number=number: volume.snapshot(f"s{number}"))
            timed("restore", lambda number=number: volume.restore(f"s{rng.randrange(number + 1)}"))
            group.wait(group.flush())
        timed("clone", lambda: group.volume("big").clone("copy"))
        maps = group.site.stores.map_memory()
        say(
            "a sparse volume of 1 TiB with 10 snapshots, ms each: "
            + "; ".join(
                f"{name} {min(t):.1f} to {max(t):.1f} (median {statistics.median(t):.1f})" for name, t in times.items()
            )
        )
        say(f"  source maps {maps / MIB:.1f} MiB; process {memory():.0f} MiB, {before:.0f} before the volume")


if __name__ == "__main__":
    main()
