"""``pyrepl mark``: a message at one point of the order.

Decides that a hook of this site which did not do its work is a failure of the command. What a hook is, and what ends
it, is ``pyrepl.runtime.hooks``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from pyrepl.cli.connection import asks_daemon
from pyrepl.cli.names import GROUP
from pyrepl.cli.outcome import FAILED, operation_options, tell

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode

GOING_WELL = ("queued", "running", "done")  # states of a hook


@click.command()
@click.argument("group", type=GROUP)
@click.argument("name")
@click.option("--payload", default="", help="Up to 4096 bytes of text that travel with it.")
@operation_options
@asks_daemon
def mark(
    node: RemoteNode, group: str, name: str, payload: str, no_wait: bool, timeout: float | None, as_json: bool
) -> None:
    """Puts a named mark at this point of the order. It changes nothing and passes every site.

    Standard error says if a hook of this site for the mark could not be started, has failed, or was ended before it
    was done; if it has failed or its time was over the command ends with 1. A hook that does not hold may still wait
    or run then: "status" has what came of it.

    \b
    Example:
      pyrepl mark db before-upgrade --payload "release 4.2"
    """
    found = node.group(group)
    result = found.mark(name, os.fsencode(payload), wait=not no_wait, timeout=timeout)
    tell(result, group, f"mark {name} in {group}", as_json=as_json)
    if no_wait:
        return
    runs = [run for run in found.status().get("hooks") or ()
            if run["lsn"] == result.lsn and run["state"] not in GOING_WELL]
    for run in runs:
        text = f": {run['text']}" if run["text"] else ""
        status = f" with exit status {run['exit_status']}" if run["exit_status"] is not None else ""
        click.echo(f"the hook of this site at mark {name} (LSN {run['lsn']}) {run['state']}{status}{text}", err=True)
    if any(run["state"] in ("failed", "timed-out") for run in runs):
        click.get_current_context().exit(FAILED)
