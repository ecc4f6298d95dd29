"""``pyrepl mark``: a message at one point of the order."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from pyrepl.cli.connection import asks_daemon
from pyrepl.cli.names import GROUP
from pyrepl.cli.outcome import operation_options, tell

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode


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

    \b
    Example:
      pyrepl mark db before-upgrade --payload "release 4.2"
    """
    result = node.group(group).mark(name, os.fsencode(payload), wait=not no_wait, timeout=timeout)
    tell(result, group, f"mark {name} in {group}", as_json=as_json)
