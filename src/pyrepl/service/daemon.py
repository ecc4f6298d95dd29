"""``pyrepld --state DIR --listen HOST:PORT``: a node as a service. Opens it, listens, says that it is ready, ends on a
signal.

Decides start and end of the process. Control socket, configuration file and systemd's notification are a later issue's.

Output: one JSON object per line on stdout: ``{"event": "ready", "pid": ..., "listening": ["127.0.0.1:7788"], "groups":
[...]}``
"""

from __future__ import annotations

import os
import signal
import sys

import click
import msgspec

from pyrepl.errors import PyreplError


def _say(**what: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
    sys.stdout.buffer.flush()


def _show(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def serve(state: str, listen: tuple[str, ...], create: bool) -> None:
    """Runs until SIGTERM or SIGINT, then closes the node: journals are applied, checkpoints taken."""
    # Blocked before any import can make a thread, so that all threads inherit it and sigwait alone gets them.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)

    from pyrepl.node import Node
    from pyrepl.runtime.transport import parse_address

    addresses = [parse_address(address) for address in listen]
    with Node.open(state, create=create) as node:
        listening = [_show(*node.listen(host, port)) for host, port in addresses]
        _say(
            event="ready",
            pid=os.getpid(),
            listening=listening,
            groups=[{"name": group.name, "state": group.state} for group in node.groups],
        )
        number = signal.sigwait(ends)
        _say(event="stopping", signal=signal.Signals(number).name)
    _say(event="stopped")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--state", required=True, metavar="DIR", help="The node's folder.")
@click.option(
    "--listen", multiple=True, metavar="HOST:PORT", help="Take connections of primaries here; port 0: any. Repeatable."
)
@click.option("--create", is_flag=True, help="Make the node if there is none.")
def main(state: str, listen: tuple[str, ...], create: bool) -> None:
    """Runs a node until SIGTERM, which drains and checkpoints.

    \b
    Example:
      pyrepld --state /var/lib/pyrepl --listen 127.0.0.1:7788
    """
    try:
        serve(state, listen, create)
    except PyreplError as error:
        click.echo(f"pyrepld: {error}", err=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
