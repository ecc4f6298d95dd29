"""``pyrepl metrics``: the daemon's metrics, as its HTTP address would give them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pyrepl.cli.connection import asks_daemon

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode


@click.command()
@asks_daemon
def metrics(node: RemoteNode) -> None:
    """The node's metrics in the text form that Prometheus reads.

    \b
    Example:
      pyrepl metrics | grep pyrepl_link_
    """
    text = node.metrics()
    click.echo(text, nl=False)
