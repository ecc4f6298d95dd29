"""fio as the load: the same jobs for every target, a file or an NBD export.

Decides the options of fio, and what of its answer counts.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple


class Job(NamedTuple):
    """One load. ``rate``: requests per second at most; 0: as many as it can. ``align``: bytes that offsets are
    multiples of; 0: of ``block``."""

    name: str
    rw: str
    block: int
    depth: int
    seconds: float
    rate: int = 0
    align: int = 0

    @property
    def direction(self) -> str:
        return "read" if "read" in self.rw else "write"


class Outcome(NamedTuple):
    """What fio saw: requests, seconds, latencies in microseconds, its own CPU seconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    worst: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def run(target: Path | str, job: Job, size: int, log: Path) -> Outcome:
    """Runs the job on a file (io_uring, O_DIRECT) or on an NBD URI.

    Raises:
        RuntimeError: fio failed; the text is its own.
    """
    where = (
        ["--ioengine=nbd", f"--uri={target}"]
        if isinstance(target, str)
        else ["--ioengine=io_uring", f"--filename={target}", "--direct=1"]
    )
    done = subprocess.run(
        [
            "fio",
            f"--name={job.name}",
            *where,
            f"--rw={job.rw}",
            f"--bs={job.block}",
            f"--iodepth={job.depth}",
            f"--size={size}",
            f"--runtime={job.seconds}",
            "--time_based",
            "--norandommap",
            "--output-format=json",
            *([f"--rate_iops={job.rate}"] if job.rate else []),
            *([f"--blockalign={job.align}"] if job.align else []),
        ],
        capture_output=True,
        cwd=log.parent,
        check=False,
        timeout=job.seconds + 300,
    )
    text = done.stdout.decode(errors="replace")
    if done.returncode != 0 or "{" not in text:
        raise RuntimeError(f"fio on {target}: {done.stderr.decode(errors='replace').strip() or text.strip()}")
    answer: dict[str, Any] = json.loads(text[text.index("{") :])["jobs"][0]
    if answer["error"]:
        raise RuntimeError(f"fio on {target}: error {answer['error']}")
    side = answer[job.direction]
    latency = side["clat_ns"]
    seconds = side["runtime"] / 1000
    return Outcome(
        requests=side["total_ios"],
        seconds=seconds,
        p50=latency["percentile"]["50.000000"] / 1000,
        p99=latency["percentile"]["99.000000"] / 1000,
        worst=latency["max"] / 1000,
        cpu_seconds=(answer["usr_cpu"] + answer["sys_cpu"]) / 100 * seconds,
    )
