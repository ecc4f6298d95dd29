"""``pyrepl volume rewind``: a new volume that shows what a volume showed at an earlier LSN or time."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from pyrepl.cli import sizes
from pyrepl.cli.connection import asks_daemon
from pyrepl.cli.names import VOLUME, Named
from pyrepl.cli.outcome import json_option
from pyrepl.cli.progress import Progress, progress_option

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode

    PointType = click.ParamType[int | datetime]
else:
    PointType = click.ParamType

PHASES = {"look": "looking through the journal", "trace": "finding what was shown", "build": "putting it together",
          "fill": "writing what no store shows"}


class Point(PointType):
    """An LSN, or a time as ISO 8601 writes it; without a time zone that of this machine."""

    name = "LSN|TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | datetime:
        if isinstance(value, int | datetime):
            return value
        if str(value).isdecimal():
            return int(value)
        try:
            return datetime.fromisoformat(str(value)).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither an LSN nor a time: write 4711, 2026-03-01T14:30 or 2026-03-01T13:30:00Z",
                      param, ctx)


@click.command()
@click.argument("volume", type=VOLUME)
@click.option("--to", "to", type=Point(), required=True, metavar="LSN|TIME",
              help="Everything up to this LSN; or up to the last one at or before this time.")
@click.option("--as", "name", required=True, metavar="NAME", help="Name of the new volume.")
@click.option("--timeout", type=sizes.seconds, help="Seconds; then it is given up, and nothing is left of it.")
@progress_option
@json_option
@asks_daemon
def rewind(
    node: RemoteNode, volume: Named, to: int | datetime, name: str, timeout: float | None, wanted: bool, as_json: bool
) -> None:
    """A new volume NAME that shows what VOLUME showed earlier. VOLUME stays as it is; NAME can be written.

    It is possible for every LSN that the journal and the group's stores still cover, across operations too; else the
    error says which they are. What stores show is taken over by a command, the rest is written to the new volume.
    Interrupted, it leaves nothing behind. A TIME is ISO 8601, by this machine's time zone unless it names another, and
    goes by the clock of the primary that wrote then.

    \b
    Example:
      pyrepl volume rewind db/data --to 4711 --as before
      pyrepl volume rewind db/data --to 2026-03-01T14:30 --as at-half-past-two
    """
    begin = time.monotonic()
    target = node.group(volume.group).volume(volume.name)
    with Progress(f"rewinding {volume}", None, wanted=wanted) as progress:

        def show(told: dict[str, Any]) -> None:
            progress.reach(told["bytes_done"], told["bytes_total"], f"{volume}: {PHASES[told['phase']]}")

        made = target.rewind(to, name, timeout=timeout, progress=show)
    assert made.result is not None
    details = made.result.details
    if as_json:
        from pyrepl.cli import output

        output.write(output.Rewound(
            group=volume.group, volume=volume.name, created=name, to_lsn=details["to_lsn"], lsn=made.lsn,
            bytes_written=details["bytes_written"], seconds=time.monotonic() - begin))
    else:
        click.echo(f"volume {volume.group}/{name} shows {volume} at LSN {details['to_lsn']}: complete at LSN "
                   f"{made.lsn}, {sizes.human(details['bytes_written'])} written")
