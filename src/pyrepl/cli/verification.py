"""``pyrepl verify``: whether the secondaries hold what the primary holds.

How it is found out: ``pyrepl.verifying``; how it is said, and the exit status: ``outcome``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pyrepl.cli import sizes
from pyrepl.cli.connection import asks_daemon
from pyrepl.cli.names import GROUP, offer_in
from pyrepl.cli.outcome import compared_lines, end_compared, json_option
from pyrepl.cli.progress import Progress, progress_option

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode


@click.command()
@click.argument("group", type=GROUP)
@click.option("--link", metavar="LINK", help="Only with the secondary of this link; else with all.",
              shell_complete=offer_in("link"))
@click.option("--repair/--no-repair", default=True,
              help="What differs, and nothing else, is copied to the secondary, and waited for; or only remembered.")
@click.option("--timeout", type=sizes.seconds, help="Seconds; a link that is not done by then has failed.")
@progress_option
@json_option
@asks_daemon
def verify(
    node: RemoteNode, group: str, link: str | None, repair: bool, timeout: float | None, wanted: bool, as_json: bool
) -> None:
    """Compares all volumes and snapshots with those of the secondaries. Ends with 1 if they differ anywhere.

    Each site digests what its stores show as of one point of the order (XXH3-128), so writes go on meanwhile and are
    never taken for a difference. Only digests cross the link, and the regions that differ, which are repaired at the
    secondary, unless --no-repair is given: then "status" shows what was found, at both sites, and the secondary leads
    only with --force ("migrate", "promote", "takeover"), until a verification finds it equal or repairs it. What a link
    has still to copy is left out, and counted. A link that is not connected for 10 s, or on which nothing moves for
    30 s, has failed. When the command is interrupted the comparison ends; a repair that has begun goes on.

    \b
    Example:
      pyrepl verify db --timeout 1h
      pyrepl verify db --link paris --no-repair --json
    """
    found = node.group(group)
    region = found.region_size
    with Progress(f"verifying {group}", None, wanted=wanted) as progress:

        def show(told: dict[str, Any]) -> None:
            links = told["links"].values()
            done = sum(one["regions_compared"] + one["regions_known_to_differ"] for one in links)
            progress.reach(done * region, sum(one["regions"] for one in links) * region)

        result = found.verify(repair=repair, link=link, timeout=timeout, progress=show)
    if as_json:
        _write(group, region, result)
    else:
        click.echo(f"{group} as of LSN {result['lsn']}")
        for name, one in result["links"].items():
            click.echo("\n".join(compared_lines(name, one, region)))
    end_compared(result["links"])


def _write(group: str, region: int, result: dict[str, Any]) -> None:
    from pyrepl.cli import output, reports

    links = [reports.verified(name, one, region) for name, one in result["links"].items()]
    output.write(output.Verified(group=group, lsn=result["lsn"], links=links))
