"""Samples as a table for people and as JSON for programs.

Decides how rounds become one row: medians, the least and the most beside them, and ratios of medians to the raw file.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.peers.rigs import Raw
from benchmarks.peers.works import Sample, Work

SCHEMA = 1
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Row:
    """All rounds of one load on one rig. ``of_raw``: the median rate over the raw file's; None: that did not run."""

    work: str
    load: str
    rig: str
    rounds: int
    rate: float
    least: float
    most: float
    of_raw: float | None
    p50_us: float
    p99_us: float
    worst_us: float
    cpu_us: float
    load_cpu_us: float
    caught_up: float
    wire: float | None
    peak_rss: int
    equal: bool | None


def rows(samples: Sequence[Sample]) -> list[Row]:
    """In the order in which they first ran, those of one load together."""
    grouped: dict[tuple[str, str], dict[str, list[Sample]]] = {}
    for sample in samples:
        grouped.setdefault((sample.work, sample.load), {}).setdefault(sample.rig, []).append(sample)
    found = []
    for (work, load), by_rig in grouped.items():
        raw = by_rig.get(Raw.name)
        reference = statistics.median(sample.rate for sample in raw) if raw else None
        for rig, runs in by_rig.items():

            def median(field: str, runs: list[Sample] = runs) -> float:
                return statistics.median(getattr(sample, field) for sample in runs)

            rate = median("rate")
            wires = [sample.wire for sample in runs if sample.wire is not None]
            found.append(
                Row(
                    work=work,
                    load=load,
                    rig=rig,
                    rounds=len(runs),
                    rate=rate,
                    least=min(sample.rate for sample in runs),
                    most=max(sample.rate for sample in runs),
                    of_raw=rate / reference if reference else None,
                    p50_us=median("p50_us"),
                    p99_us=median("p99_us"),
                    worst_us=max(sample.worst_us for sample in runs),
                    cpu_us=median("cpu_us"),
                    load_cpu_us=median("load_cpu_us"),
                    caught_up=median("caught_up"),
                    wire=statistics.median(wires) if wires else None,
                    peak_rss=max(sample.peak_rss for sample in runs),
                    equal=None if any(sample.equal is None for sample in runs) else all(s.equal for s in runs),
                )
            )
    return found


def print_table(work: Work, table_rows: Iterable[Row], absent: dict[str, list[str]], console: Console) -> None:
    """One table for a work; what was missing below it."""
    table = Table(title=f"{work.name}: {work.title}", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("load", "rig"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "req/s", "least..most", "of raw", "p50 us", "p99 us", "CPU us", "fio us", "behind s", "wire", "RSS MiB", "equal"
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    last = None
    for row in table_rows:
        if last not in (None, row.load):
            table.add_section()
        last = row.load
        table.add_row(
            row.load,
            row.rig,
            f"{row.rate:.0f}",
            f"{row.least:.0f}..{row.most:.0f}",
            "" if row.of_raw is None else f"{row.of_raw:.2f}",
            f"{row.p50_us:.0f}",
            f"{row.p99_us:.0f}",
            f"{row.cpu_us:.1f}",
            f"{row.load_cpu_us:.1f}",
            f"{row.caught_up:.2f}",
            "" if row.wire is None else f"{row.wire:.3f}",
            f"{row.peak_rss / MIB:.0f}",
            {None: "", True: "yes", False: "NO"}[row.equal],
        )
    console.print(table)
    for rig, programs in absent.items():
        console.print(f"  missing: {rig}: {', '.join(programs)}", highlight=False)


def print_own(own: dict[str, Any], console: Console) -> None:
    """The figures of ``ours``."""
    if (memory := own.get("memory")) is not None:
        table = Table(title="memory: resident MiB of each daemon", box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("daemon")
        for heading in ("idle", "with its group", "peak", "when all is done"):
            table.add_column(heading, justify="right")
        for name, figures in memory["daemons"].items():
            table.add_row(name, *(f"{value / MIB:.0f}" for value in figures.values()))
        console.print(table)
        console.print(
            f"  {memory['writes']} writes in {memory['seconds']:.0f} s ({memory['writes_per_second']:.0f}/s), the "
            f"secondaries {memory['caught_up_seconds']:.1f} s behind at the end, the one that is away lacks "
            f"{memory['away_divergent_bytes'] / MIB:.0f} MiB",
            highlight=False,
        )
    if (commands := own.get("cli")) is not None:
        table = Table(title="cli: wall time, ms", box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("command")
        for heading in ("median", "least", "most"):
            table.add_column(heading, justify="right")
        for name, figures in commands.items():
            table.add_row(name, *(f"{figures[key]:.0f}" for key in ("median_ms", "least_ms", "most_ms")))
        console.print(table)


def machine() -> dict[str, Any]:
    """What a reader of the figures must know of where they come from."""
    return {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": list(os.getloadavg()),
    }


def as_json(samples: Sequence[Sample], absent: dict[str, dict[str, list[str]]], **options: Any) -> dict[str, Any]:
    """Everything: rows, and the samples that they are made from."""
    return {
        "schema": SCHEMA,
        "machine": machine(),
        "options": options,
        "missing": absent,
        "rows": [dataclasses.asdict(row) for row in rows(samples)],
        "samples": [dataclasses.asdict(sample) for sample in samples],
    }
