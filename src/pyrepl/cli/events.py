"""``pyrepl events``: what happens at the node, as it happens."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from pyrepl.cli.connection import asks_daemon
from pyrepl.cli.outcome import json_option

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode


@click.command()
@click.option("--count", type=click.IntRange(min=1), metavar="COUNT", help="End after so many.")
@json_option
@asks_daemon
def events(node: RemoteNode, count: int | None, as_json: bool) -> None:
    """What happens at the node from now on, a line for each event, until Ctrl-C or the end of the daemon.

    \b
    Example:
      pyrepl events
      pyrepl events --json | jq 'select(.event == "group-failed")'
    """
    with closing(node.events()) as stream:
        for number, event in enumerate(stream, 1):
            _show(event, as_json=as_json)
            if number == count:
                return


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _show(event: dict[str, Any], *, as_json: bool) -> None:
    details = {key: value for key, value in event.items() if key not in ("time", "event", "group")}
    if as_json:
        from pyrepl.cli import output

        output.write(
            output.Event(time=event["time"], event=event["event"], group=event.get("group"), details=details)
        )
        return
    told = "  ".join(f"{key} {_plain(value)}" for key, value in details.items() if value not in (None, "", []))
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(event["time"]))
    click.echo(f"{stamp}  {event.get('group') or '-'}  {event['event']}  {told}".rstrip())
