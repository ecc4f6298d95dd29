"""``pyrepl export``: stores as block devices over NBD."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pyrepl.cli import sizes, tables
from pyrepl.cli.connection import asks_daemon
from pyrepl.cli.names import STORE, Named, offer_exports
from pyrepl.cli.outcome import json_option

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode


@click.group()
def export() -> None:
    """Exports: volumes and snapshots as block devices over NBD, on the addresses that the daemon's configuration names.

    \b
    Example:
      pyrepl export start data db/data
      nbdinfo nbd+unix:///data?socket=/run/pyrepl/nbd.sock
    """


@export.command()
@click.argument("name")
@click.argument("store", type=STORE)
@click.option("--read-only/--writable", default=None, help="Without either: writable where the group's role allows it.")
@click.option("--trial", is_flag=True,
              help="A writable copy of it for a test, which is gone when the export is stopped.")
@asks_daemon
def start(node: RemoteNode, name: str, store: Named, read_only: bool | None, trial: bool) -> None:
    """Exports a store under NAME, now and after every start of the daemon.

    A secondary shows its stores read-only. With --trial it shows what a takeover would find, writable, while
    replication goes on: what is written stands in files of the trial at this site, and never reaches the volume. The
    trials of a group are at one LSN, that at which the first of them was started, and are gone with the last, or with
    the daemon.

    \b
    Example:
      pyrepl export start data db/data
      pyrepl export start monday db/monday --read-only
      pyrepl export start test db/data --trial
    """
    made = node.start_export(name, store.group, store.name, read_only=read_only, trial=trial)
    told = f", a trial as of LSN {made.status()['view_lsn']}, until it is stopped" if trial else ""
    click.echo(f"export {name}: {store}{told}")


@export.command()
@click.argument("name", shell_complete=offer_exports)
@click.option("--force", is_flag=True, help="Although clients use it: their connections end.")
@asks_daemon
def stop(node: RemoteNode, name: str, force: bool) -> None:
    """Ends an export. While clients use it that is refused with 6, unless --force.

    \b
    Example:
      pyrepl export stop data
    """
    node.stop_export(name, force=force)
    click.echo(f"export {name}: stopped")


@export.command("list")
@json_option
@asks_daemon
def list_(node: RemoteNode, as_json: bool) -> None:
    """The exports of the node, with who uses them.

    \b
    Example:
      pyrepl export list
    """
    found = [one.status() for one in node.exports]
    if as_json:
        from pyrepl.cli import output

        output.write(output.ExportList(exports=[output.pick(output.Export, one) for one in found]))
        return
    rows = [
        [one["name"], f"{one['group']}/{one['store']}",
         "read-only" if one["read_only"] else "trial" if one["trial"] else "writable", one["state"],
         one["clients"], sizes.human(one["bytes_read"]), sizes.human(one["bytes_written"])]
        for one in found
    ]
    tables.show(["EXPORT", "STORE", "ACCESS", "STATE", "CLIENTS", "READ", "WRITTEN"], rows, none="no exports")
