"""``pyrepl wait``: until secondaries hold what was written, or an LSN is performed here or there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from pyrepl.cli import sizes
from pyrepl.cli.connection import asks_daemon
from pyrepl.cli.names import GROUP, offer_in
from pyrepl.cli.outcome import json_option
from pyrepl.cli.progress import Progress, progress_option
from pyrepl.errors import Refused

if TYPE_CHECKING:
    from pyrepl.remote import RemoteLink, RemoteNode


if TYPE_CHECKING:
    TargetType = click.ParamType[str | int]
else:
    TargetType = click.ParamType


class Target(TargetType):
    """``synced``, ``applied`` or an LSN."""

    name = "synced|applied|LSN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        if value in ("synced", "applied") or isinstance(value, int):
            return value  # type: ignore[no-any-return]
        if not str(value).isdecimal():
            self.fail(f"{value!r}: wait for synced, for applied, or for an LSN", param, ctx)
        return int(value)


@click.command()
@click.argument("group", type=GROUP)
@click.argument("target", type=Target(), metavar="{synced|applied|LSN}",
                shell_complete=offer_in(also=("synced", "applied")))
@click.option("--link", "name", metavar="LINK", help="At the secondary of this link; else all links, or here.",
              shell_complete=offer_in("link"))
@click.option("--timeout", type=sizes.seconds, help="Seconds to wait at most, 0 to look only; without it for ever.")
@progress_option
@json_option
@asks_daemon
def wait(
    node: RemoteNode, group: str, target: str | int, name: str | None, timeout: float | None, wanted: bool,
    as_json: bool,
) -> None:
    """Waits until something is so, and ends with 11 if the time is over before; with 5 if the link is refused then, or
    for 8 s. What was waited for goes on.

    synced: the secondary is consistent and durably holds all that was written before this command. applied: all that
    was written before it is performed on the stores. An LSN: everything up to it is performed.

    \b
    Example:
      pyrepl wait db synced --timeout 10m
      pyrepl wait db applied --link paris
      pyrepl wait db 4711 --link paris --timeout 30s
    """
    begin = time.monotonic()
    found = node.group(group)
    if target == "synced":
        links = [found.link(name)] if name is not None else found.links
        if not links:
            raise Refused(f"group {group!r} has no links: nothing can be synced", reason="empty")
        reached = None
        for one in links:
            left = None if timeout is None else max(0.0, timeout - (time.monotonic() - begin))
            there = synced(f"{group}/{one.name}", one, left, wanted=wanted)["durable_lsn"]
            reached = there if reached is None else min(reached, there)
    else:
        lsn = target if isinstance(target, int) else None
        reached = found.wait(lsn, where=name or "primary", timeout=timeout)
    assert reached is not None
    if as_json:
        from pyrepl.cli import output

        output.write(output.Waited(group=group, reached=reached, seconds=time.monotonic() - begin))
    else:
        word = "synced" if target == "synced" else "applied"
        click.echo(f"{group}: {word} up to LSN {reached}{f' at {name}' if name else ''}")


def synced(label: str, link: RemoteLink, timeout: float | None, *, wanted: bool) -> dict[str, Any]:
    """Waits for one link, with progress; its status then."""
    most = 0
    with Progress(f"synchronizing {label}", None, wanted=wanted) as progress:

        def show(status: dict[str, Any]) -> None:
            nonlocal most
            left = status["divergent_bytes"] + status["lag_bytes"]
            most = max(most, left)
            progress.reach(most - left, most, f"{label}: {status['state']}")

        return link.wait_synced(timeout, progress=show)
