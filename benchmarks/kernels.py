"""The native kernels beside the peers that a user would pick: CRC32C, batches, region maps (P14 to P16 of the goals).

For asv; ``python -m benchmarks.kernels`` measures everything in turn in one process and prints medians and ratios.
Checking a result is part of what is timed, for the peer as well. A peer that is not installed is named and left out.
"""

from __future__ import annotations

import importlib
import itertools
import statistics
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pyrepl._core import batch, crc32c, layout
from pyrepl._core.regions import RegionMap

KIB, MIB = 1 << 10, 1 << 20
REGIONS = 16 * MIB
RANGES = 10**6
STEPS = 1000
SEED = 12


def peer(module: str) -> Any:
    """The module of a peer; asv skips a benchmark whose setup raises NotImplementedError."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise NotImplementedError(f"the peer {module} is not installed") from None


def expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise AssertionError(f"{found} instead of {wanted}")


class Crc32c:
    """One sum; the work is the same for all."""

    params = (["chosen", *crc32c.kernels(), "copy", "google_crc32c"], [4 * KIB, 64 * KIB, MIB])
    param_names = ("kernel", "bytes")

    def setup(self, kernel: str, length: int) -> None:
        data = np.random.default_rng(SEED).bytes(length)
        target = bytearray(length)
        self.wanted = crc32c.crc32c(data, kernel="scalar")
        self.run: Callable[[], int]
        if kernel == "google_crc32c":
            google = peer("google_crc32c")
            if google.implementation != "c":
                raise NotImplementedError("the peer google_crc32c is here without its C library")
            self.run = lambda: google.value(data)
        elif kernel == "copy":
            self.run = lambda: crc32c.copy(target, data)
        elif kernel == "chosen":
            self.run = lambda: crc32c.crc32c(data)
        else:
            self.run = lambda: crc32c.crc32c(data, kernel=kernel)

    def time_sum(self, kernel: str, length: int) -> None:
        expect(self.run(), self.wanted)


class Batches:
    """What travels, encoded and judged as the protocol does it: 1 MiB of 16 KiB writes, or 122 zeros without data."""

    params = (["payload", "no payload"],)
    param_names = ("records",)
    ids: dict[str, Any] = {"group": bytes(16), "generation": bytes(16), "first_lsn": 1, "alignment": 4096}  # noqa: RUF012

    def setup(self, records: str) -> None:
        data = np.random.default_rng(SEED).bytes(16 * KIB)
        if records == "payload":
            self.records = [(layout.WRITE, 1, index * len(data), data) for index in range(MIB // len(data))]
        else:
            self.records = [(layout.ZERO, 1, index * 4096, 4096) for index in range(layout.MAX_RECORDS)]
        self.encoded = batch.encode(layout.BATCH_EVENTS, self.records, **self.ids)
        broken = bytearray(self.encoded)
        broken[-1] ^= 1
        expect(batch.judge(bytes(broken), alignment=4096) != 0, True)

    def time_encode(self, records: str) -> None:
        expect(len(batch.encode(layout.BATCH_EVENTS, self.records, **self.ids)), len(self.encoded))

    def time_judge(self, records: str) -> None:
        expect(batch.judge(self.encoded, alignment=4096), 0)

    def time_encode_and_judge(self, records: str) -> None:
        expect(batch.judge(batch.encode(layout.BATCH_EVENTS, self.records, **self.ids), alignment=4096), 0)


class Marks:
    """A million ranges of 1 to 32 regions. numpy and the others have no call for many ranges: theirs is a loop."""

    params = (["pyrepl", "numpy", "bitarray", "pyroaring"],)
    param_names = ("peer",)
    number, repeat, timeout = 1, 3, 300

    def setup(self, who: str) -> None:
        random = np.random.default_rng(SEED)
        first = random.integers(0, REGIONS - 32, RANGES, dtype=np.uint64)
        count = random.integers(1, 33, RANGES, dtype=np.uint64)
        self.pairs = np.stack([first, count], axis=1)
        self.list = list(zip(first.tolist(), (first + count).tolist(), strict=True))
        steps = np.zeros(REGIONS + 1, np.int32)
        np.add.at(steps, first, 1)
        np.add.at(steps, first + count, -1)
        self.wanted = int(np.count_nonzero(np.cumsum(steps[:-1])))
        if who in ("bitarray", "pyroaring"):
            self.peer = peer(who)

    def time_mark(self, who: str) -> None:
        if who == "pyrepl":
            regions = RegionMap(REGIONS)
            regions.mark_ranges(self.pairs)
            expect(regions.count(), self.wanted)
        elif who == "numpy":
            bits = np.zeros(REGIONS, bool)
            for first, end in self.list:
                bits[first:end] = True
            expect(int(np.count_nonzero(bits)), self.wanted)
        elif who == "bitarray":
            array = self.peer.bitarray(REGIONS)
            for first, end in self.list:
                array[first:end] = 1
            expect(array.count(), self.wanted)
        else:
            bitmap = self.peer.BitMap()
            for first, end in self.list:
                bitmap.add_range(first, end)
            expect(len(bitmap), self.wanted)


class TwoMaps:
    """Maps of 16 Mi regions, a part of them marked at random. numpy: one byte per region; packed: numpy on words."""

    params = (["pyrepl", "numpy", "packed", "bitarray", "pyroaring"], [0.0001, 0.01, 0.5])
    param_names = ("peer", "marked")
    timeout = 300

    def setup(self, who: str, marked: float) -> None:
        random = np.random.default_rng(SEED)
        bits, other = (random.random(REGIONS) < marked for _ in range(2))
        edges = np.flatnonzero(np.diff(np.concatenate([[0], bits.view(np.int8), [0]])))
        self.wanted_runs = [(int(a), int(b - a)) for a, b in edges[: 2 * STEPS].reshape(-1, 2)]
        self.wanted_count, self.wanted_union = int(bits.sum()), int((bits | other).sum())
        packed = [np.packbits(one, bitorder="little") for one in (bits, other)]
        self.map: Any
        self.other: Any
        if who == "pyrepl":
            self.map, self.other = (
                RegionMap.decode(bytes([2]) + struct.pack("<Q", REGIONS) + one.tobytes()) for one in packed
            )
        elif who == "numpy":
            self.map, self.other = bits, other
        elif who == "packed":
            self.map, self.other = (one.view(np.uint64) for one in packed)
        elif who == "bitarray":
            module = peer(who)
            self.map, self.other = (module.bitarray(endian="little") for _ in range(2))
            self.map.frombytes(packed[0].tobytes())
            self.other.frombytes(packed[1].tobytes())
        else:
            module = peer(who)
            self.map, self.other = (module.BitMap(np.flatnonzero(one).astype(np.uint32)) for one in (bits, other))

    def counted(self, who: str) -> int:
        if who == "numpy":
            return int(np.count_nonzero(self.map))
        if who == "packed":
            return int(np.bitwise_count(self.map).sum())
        return int(len(self.map) if who == "pyroaring" else self.map.count())


class Runs(TwoMaps):
    """The next run, from where the one before ended. Of those that have that question."""

    params = (["pyrepl", "numpy", "bitarray"], TwoMaps.params[1])

    def runs(self, who: str) -> Iterator[tuple[int, int]]:
        at = 0
        if who == "pyrepl":
            while (run := self.map.next_run(at)) is not None:
                yield run
                at = run[0] + run[1]
        elif who == "bitarray":
            while (first := self.map.find(1, at)) >= 0:
                end = self.map.find(0, first)
                at = end if end >= 0 else REGIONS
                yield first, at - first
        else:
            while at < REGIONS and self.map[first := at + int(self.map[at:].argmax())]:
                at = first + (int(self.map[first:].argmin()) or REGIONS - first)
                yield first, at - first

    def time_next_run(self, who: str, marked: float) -> None:
        """As many as there are, at most 1000."""
        expect(deque(itertools.islice(self.runs(who), STEPS), maxlen=1).pop(), self.wanted_runs[-1])


class Counts(TwoMaps):
    """How many regions are marked."""

    def time_count(self, who: str, marked: float) -> None:
        expect(self.counted(who), self.wanted_count)


class Unions(TwoMaps):
    """In place: from the second time on work and result are the same. The result is looked at after the last."""

    def time_union(self, who: str, marked: float) -> None:
        if who == "pyrepl":
            self.map.union(self.other)
        elif who in ("numpy", "packed"):
            np.bitwise_or(self.map, self.other, out=self.map)
        else:
            self.map |= self.other
        self.done = True

    def teardown(self, who: str, marked: float) -> None:
        if hasattr(self, "done"):
            expect(self.counted(who), self.wanted_union)


# ---- all of them in turn, beside each other ----


def once(bench: Any, name: str, arguments: tuple[Any, ...]) -> float:
    """Seconds of one call; short ones are repeated for five milliseconds."""
    method, count = getattr(bench, name), 1
    while True:
        before = time.perf_counter()
        for _ in range(count):
            method(*arguments)
        spent = time.perf_counter() - before
        if spent > 0.005:
            return spent / count
        count *= 4


def in_turn(kind: type, name: str, cases: list[tuple[Any, ...]], rounds: int) -> dict[tuple[Any, ...], float]:
    """Medians: each round measures every case once, so that a disturbance meets all of them."""
    benches, seconds = {}, {case: [] for case in cases}  # type: ignore[var-annotated]
    for case in cases:
        bench = kind()
        try:
            bench.setup(*case)
            getattr(bench, name)(*case)
            benches[case] = bench
        except NotImplementedError as reason:
            sys.stderr.write(f"{kind.__name__}.{name}{case}: left out, {reason}\n")
    for _ in range(rounds):
        for case, bench in benches.items():
            seconds[case].append(once(bench, name, case))
    for case, bench in benches.items():
        if hasattr(bench, "teardown"):
            bench.teardown(*case)
    return {case: statistics.median(seconds[case]) for case in benches}


def main() -> None:
    say = sys.stdout.write
    for length in Crc32c.params[1]:
        medians = in_turn(Crc32c, "time_sum", [(kernel, length) for kernel in Crc32c.params[0]], 15)
        for (kernel, _), took in medians.items():
            say(f"crc32c     {length:8} bytes  {kernel:14} {took * 1e6:10.2f} us {length / took / 1e9:8.2f} GB/s\n")
    for name in ("time_encode", "time_judge", "time_encode_and_judge"):
        medians = in_turn(Batches, name, [(records,) for records in Batches.params[0]], 15)
        rate, each = MIB / medians["payload",] / 1e9, medians["no payload",] / layout.MAX_RECORDS * 1e9
        say(f"batch      {name[5:]:17} {rate:8.2f} GB/s of payload {each:8.1f} ns for a record without\n")
    medians = in_turn(Marks, "time_mark", [(who,) for who in Marks.params[0]], 3)
    for (who,), took in medians.items():
        say(f"mark       10**6 ranges      {who:10} {took * 1e3:10.3f} ms {took / medians['pyrepl',]:10.2f} x ours\n")
    for kind, name in ((Runs, "time_next_run"), (Counts, "time_count"), (Unions, "time_union")):
        for marked in TwoMaps.params[1]:
            medians = in_turn(kind, name, [(who, marked) for who in kind.params[0]], 9)
            ours = medians["pyrepl", marked]
            for (who, _), took in medians.items():
                say(f"{name[5:]:10} {marked:6.2%} marked  {who:10} {took * 1e6:12.2f} us {took / ours:10.2f} x ours\n")


if __name__ == "__main__":
    main()
