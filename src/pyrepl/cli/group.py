"""``pyrepl group``: groups of the node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from pyrepl.cli import headline, sizes, tables
from pyrepl.cli.connection import asks_daemon, local
from pyrepl.cli.names import GROUP
from pyrepl.cli.outcome import clients_of, destroys, force_option, json_option

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode


@click.group()
def group() -> None:
    """Groups: volumes and snapshots with one journal and one order of writes.

    \b
    Example:
      pyrepl group create db --journal /dev/nvme0n1p3
      pyrepl group list
    """


@group.command()
@click.argument("name")
@click.option("--journal", required=True, type=click.Path(), help="A block device, or a file.")
@click.option("--journal-size", type=sizes.size, help="Makes the journal's file, so long; it must not exist.")
@click.option(
    "--role", type=click.Choice(["primary", "secondary"]), default="primary", show_default=True,
    help="A secondary waits for the link of a primary, which pairs with it.",
)
@click.option("--region-size", type=sizes.size, default="64K", show_default=True,
              help="Granule of operations; the same at both sites.")
@click.option("--alignment", type=click.Choice(["512", "4096"]), default="4096", show_default=True,
              help="Of writes in the journal; the same at both sites.")
@click.option("--ordering", type=click.Choice(["relaxed", "strict"]), default="relaxed", show_default=True,
              help="strict: each operation has a place of its own, sets are refused.")
@click.option("--resume", type=click.Choice(["ask", "alone"]), default="ask", show_default=True,
              help="At a start: ask the peers who is primary, or be active alone.")
@click.option("--force", is_flag=True, help="Although something stands where the journal is to be: it is lost.")
@json_option
@asks_daemon
def create(
    node: RemoteNode, name: str, journal: str, journal_size: int | None, role: Literal["primary", "secondary"],
    region_size: int, alignment: str, ordering: Literal["relaxed", "strict"], resume: Literal["ask", "alone"],
    force: bool, as_json: bool,
) -> None:
    """Makes a group, whose journal is a block device or a file.

    A device or file that holds something (a file system, a partition table, the journal of another group, whatever is
    not zeros in its first and last MiB) is refused with its name: with --force that is lost. One that somebody uses is
    refused in any case.

    \b
    Example:
      pyrepl group create db --journal /dev/nvme0n1p3
      pyrepl group create db --journal /var/lib/pyrepl/db.journal --journal-size 4G --role secondary
    """
    path = local(journal)
    assert path is not None
    node.create_group(
        name, path, journal_size=journal_size, role=role, region_size=region_size, alignment=int(alignment),
        ordering=ordering, resume=resume, force=force,
    )
    _show(node.group(name).status(), as_json=as_json)


@group.command("import")
@click.argument("journal", type=click.Path())
@click.option("--resume", type=click.Choice(["ask", "alone"]), default="ask", show_default=True,
              help="At a start: ask the peers who is primary, or be active alone.")
@click.option("--force", is_flag=True, help="Although it belongs to another node, which must never open it again.")
@json_option
@asks_daemon
def import_(node: RemoteNode, journal: str, resume: Literal["ask", "alone"], force: bool, as_json: bool) -> None:
    """A group whose journal and devices this machine sees becomes one of this node's.

    The journal says all that there is to know. One that belongs to another node is refused: with --force this node
    takes it over, and the other must never open it again. Its secondaries go on with this node: the links are in the
    journal, and nothing is copied anew.

    \b
    Example:
      pyrepl group import /dev/nvme0n1p3
    """
    path = local(journal)
    assert path is not None
    _show(node.import_group(path, resume=resume, force=force).status(), as_json=as_json)


@group.command("open")
@click.argument("group", type=GROUP)
@json_option
@asks_daemon
def open_(node: RemoteNode, group: str, as_json: bool) -> None:
    """A group that has failed is opened again from its journal, when the cause is gone: a disk that was away is
    back. No other group is touched.

    All that was acknowledged is there. Exports are served again; NBD clients that are attached lose their connection.
    Links connect again, and a primary with links asks their secondaries first whether another site leads. If it cannot
    be opened, it stays failed, and this says why.

    \b
    Example:
      pyrepl group open db
    """
    _show(node.open_group(group).status(), as_json=as_json)


@group.command()
@click.argument("group", type=GROUP)
@force_option
@asks_daemon
def delete(node: RemoteNode, group: str, force: bool) -> None:
    """The group is no more at this node: its journal is made unreadable, files that the node made for it are removed.

    Devices that were given keep what is on them. Other sites are not told, and keep their copies. A group that has
    failed is only forgotten: journal and files stay as they are, those that are found are named, and `pyrepl group
    import` takes the group back.

    \b
    Example:
      pyrepl group delete test --force
    """
    status, clients = node.group(group).status(), clients_of(node, group)
    if status["state"] == "active":
        stores = sizes.counted(len(status.get("stores") or ()), "store")
        destroys(f"group {group} with {stores} and its journal are lost at this node", force=force, clients=clients)
    else:
        destroys(f"group {group} has failed, so nobody can see what it holds: this node forgets it, and leaves its "
                 f"journal and files where they are", force=force, unless=f"pyrepl group open {group}",
                 clients=clients)
    left = node.delete_group(group, force=force)
    click.echo(f"group {group}: {'deleted' if status['state'] == 'active' else 'forgotten'}")
    for path in left:
        click.echo(f"left as it is: {path}")


@group.command()
@click.argument("group", type=GROUP)
@click.option("--force", is_flag=True, help="Although it cannot take over then, until it is consistent again.")
@json_option
@asks_daemon
def unprotect(node: RemoteNode, group: str, force: bool, as_json: bool) -> None:
    """A secondary gives its protective snapshot up: the last consistent state, which it keeps while it is
    resynchronized, and to which a takeover goes back.

    Its space is given back. None is kept again until this secondary is consistent. It is also how a resync goes on
    that stands still because there is no room for the snapshot.

    \b
    Example:
      pyrepl group unprotect db --force
    """
    found = node.group(group)
    status = found.status()
    kept = status.get("protective")
    if status.get("role") == "secondary" and kept and not status["consistent"]:  # a primary is refused by the engine
        destroys(f"the protective snapshot of group {group}, of LSN {kept['lsn']}, is lost: it cannot take over here "
                 f"before it is consistent again", force=force)
    elif status.get("role") == "secondary" and status["consistent"]:
        destroys(f"group {group} is consistent, so it keeps no protective snapshot now: none will be kept when it is "
                 f"resynchronized next, and it could not take over until that is done", force=force)
    found.unprotect()
    _show(found.status(), as_json=as_json)


@group.command("list")
@json_option
@asks_daemon
def list_(node: RemoteNode, as_json: bool) -> None:
    """The groups of the node.

    \b
    Example:
      pyrepl group list --json | jq -r '.groups[].name'
    """
    groups = node.status()["groups"]
    if as_json:
        from pyrepl.cli import output, reports

        output.write(output.GroupList(groups=[reports.group(one) for one in groups]))
        return
    rows = []
    for one in groups:
        stores = one.get("stores") or []
        volumes = [store for store in stores if store["kind"] == "volume"]
        size = sum(store["size"] for store in volumes)
        rows.append([one["group"], one.get("role"), one["state"], len(volumes), len(stores) - len(volumes),
                     len(one["links"]), sizes.human(size)])
    tables.show(["GROUP", "ROLE", "STATE", "VOLUMES", "SNAPSHOTS", "LINKS", "SIZE"], rows, none="no groups")


@group.command()
@click.argument("group", type=GROUP)
@json_option
@asks_daemon
def show(node: RemoteNode, group: str, as_json: bool) -> None:
    """All that is known of one group: journal, positions, stores, links.

    \b
    Example:
      pyrepl group show db
    """
    _show(node.group(group).status(), as_json=as_json)


@group.command("set")
@click.argument("group", type=GROUP)
@click.option("--delay", type=sizes.limit_seconds, required=True, metavar="SECONDS",
              help="Of what arrives at this site while it is a secondary, until it is performed; none: at once.")
@asks_daemon
def set_(node: RemoteNode, group: str, delay: float) -> None:
    """Changes what is chosen for a group at this site, while it works. It holds at once, and over restarts.

    With a delay this site holds everything durably at once, and performs it later: until then its stores, read through
    an export, are what they were. So an operator's mistake at the primary can be looked at here as it was before. A
    takeover performs everything first. When the journal fills the delay is shortened, and status says so.

    \b
    Example:
      pyrepl group set db --delay 1h
      pyrepl group set db --delay none
    """
    changed = node.group(group)
    changed.set_delay(delay)
    seconds = changed.delay
    what = f"performs what arrives {sizes.duration(seconds)} after it was written" if seconds else (
        "performs what arrives at once")
    click.echo(f"group {group}: while it is a secondary this site {what}")


def _show(status: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        from pyrepl.cli import output, reports

        output.write(output.GroupShow(group=reports.group(status)))
    else:
        click.echo("\n".join([*headline.lines(status), *headline.detail(status)]))
