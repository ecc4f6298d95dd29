"""The command: ``python -m benchmarks.peers --dir DIR [P1 P2 P3 P5]``."""

from __future__ import annotations

import functools
import json
import signal
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.peers import ours, report, rigs
from benchmarks.peers.works import WORKS, Sample, lacking, perform

MIB = 1 << 20


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("works", nargs=-1, type=click.Choice([*WORKS, "memory", "cli"]))
@click.option(
    "--dir",
    "folder",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder on the disk that is measured; everything is removed again.",
)
@click.option("--seconds", default=30.0, show_default=True, help="Of each load.")
@click.option("--rounds", default=3, show_default=True, help="How often each rig runs, in turn.")
@click.option("--size", default=1024, show_default=True, metavar="MIB", help="Of a volume.")
@click.option("--journal", default=4096, show_default=True, metavar="MIB", help="Of each site's journal.")
@click.option("--memory-seconds", default=600.0, show_default=True, help="Of the load of memory.")
@click.option("--memory-size", default=1 << 20, show_default=True, metavar="MIB", help="Of its sparse volume.")
@click.option("--memory-journal", default=1024, show_default=True, metavar="MIB", help="Of each journal of it.")
@click.option("--cli-rounds", default=20, show_default=True, help="How often each command of cli runs.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def main(
    works: tuple[str, ...],
    folder: Path,
    seconds: float,
    rounds: int,
    size: int,
    journal: int,
    memory_seconds: float,
    memory_size: int,
    memory_journal: int,
    cli_rounds: int,
    as_json: bool,
) -> None:
    """Runs one work on pyrepl and on its peers, in turn, and prints ratios. Without names: P1 P2 P3 P5.

    \b
    Example:
      python -m benchmarks.peers --dir /var/tmp --seconds 10 P1 P5
      python -m benchmarks.peers --dir /var/tmp memory cli
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    console = Console(width=None if sys.stdout.isatty() else 180)
    tell = functools.partial(click.echo, err=True)
    rigs.Pyrepl.journal = journal * MIB
    chosen = [WORKS[name] for name in works or WORKS if name in WORKS]
    absent = {work.name: lacking(work) for work in chosen}
    samples: list[Sample] = []
    for work in chosen:
        mine = list(perform(work, folder, size * MIB, seconds=seconds, rounds=rounds, say=tell))
        samples += mine
        if not as_json:
            report.print_table(work, report.rows(mine), absent[work.name], console)
    own: dict[str, Any] = {}
    if "memory" in works:
        own["memory"] = ours.memory(
            folder, seconds=memory_seconds, size=memory_size * MIB, journal=memory_journal * MIB, say=tell
        )
    if "cli" in works:
        own["cli"] = ours.commands(folder, rounds=cli_rounds, say=tell)
    if as_json:
        told = report.as_json(samples, absent, seconds=seconds, rounds=rounds, size=size * MIB)
        click.echo(json.dumps({**told, **own}, indent=2))
    else:
        report.print_own(own, console)


if __name__ == "__main__":
    main()
