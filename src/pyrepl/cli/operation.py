"""``pyrepl operation``: what was performed on a group."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from pyrepl.cli import sizes, tables
from pyrepl.cli.connection import asks_daemon
from pyrepl.cli.names import GROUP
from pyrepl.cli.outcome import json_option, shows_only
from pyrepl.errors import NotFound

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode


@click.group()
def operation() -> None:
    """Operations that were performed here since the daemon opened the group: the last 1024.

    Older ones stand in the journal as long as it holds them: --all of list reads it.

    \b
    Example:
      pyrepl operation list db
    """


@operation.command("list")
@click.argument("group", type=GROUP)
@click.option("--last", type=click.IntRange(min=1), metavar="COUNT", help="Only so many, the newest.")
@click.option("--all", "earlier", is_flag=True,
              help="Also those from before the daemon opened the group, as far as its journal holds them.")
@json_option
@asks_daemon
def list_(node: RemoteNode, group: str, last: int | None, earlier: bool, as_json: bool) -> None:
    """The operations of a group, oldest first. Of a set: the operations that it holds.

    TIME is when it got its place in the order, by the clock of the primary; TOOK, from there to its performance here.

    \b
    Example:
      pyrepl operation list db --last 10
    """
    of = node.group(group)
    found = of.operations(earlier)[-(last or 0):]
    if as_json:
        from pyrepl.cli import output, reports

        operations = [reports.performed(one, of.region_size) for one in found]
        output.write(output.OperationList(group=group, operations=operations))
        return
    rows = [
        [one["lsn"], when(one), _kind(one), _took(one), _bytes(one), ", ".join(one["created"]), _compared(one)]
        for one in found
    ]
    tables.show(["LSN", "TIME", "OPERATION", "TOOK", "CHANGED", "MADE", "COMPARED"], rows, none="no operations")


@operation.command()
@click.argument("group", type=GROUP)
@click.argument("lsn", type=click.IntRange(min=1), metavar="LSN")
@json_option
@asks_daemon
def show(node: RemoteNode, group: str, lsn: int, as_json: bool) -> None:
    """One operation, by its LSN: its arguments, when it was made, how long it took, what it changed, and what has
    become of it at the secondaries.

    \b
    Example:
      pyrepl operation show db 4711
    """
    of = node.group(group)
    one = next((one for one in of.operations() if one["lsn"] == lsn), None)
    if one is None:
        one = next((one for one in of.operations(True) if one["lsn"] == lsn), None)
    if one is None:
        raise NotFound(
            f"group {group!r}: no operation at LSN {lsn} is known here; it may be older than its journal, not "
            f"performed yet, or a write",
            lsn=lsn,
        )
    if as_json:
        from pyrepl.cli import output, reports

        output.write(output.OperationShow(group=group, operation=reports.performed(one, of.region_size)))
        return
    plain = shows_only(one["kind"], [member["kind"] for member in one["members"]])
    click.echo(f"{one['kind']} at LSN {lsn} of {group}: performed" + ("" if plain else f", {_bytes(one)} changed"))
    if one["bytes_avoided"] and not plain:
        click.echo(f"{sizes.human(one['bytes_avoided'])} kept off the links")
    for name, state in one["secondaries"].items():
        click.echo(f"{state} at {name}{', which got the data instead' if state == 'refused' else ''}")
    if one["created"]:
        click.echo(f"made {', '.join(one['created'])}")
    if one["time"] is not None:
        click.echo(f"given its place at {when(one)}" + (f", took {_took(one)}" if one["seconds"] is not None else ""))
    given = one["arguments"].get("members")
    for name, value in one["arguments"].items():
        if name != "members":
            click.echo(f"  {name}: {_plain(value)}")
    for number, member in enumerate(one["members"] or given or ()):
        if "bytes_changed" not in member:  # from before the daemon opened the group: what it came to is not known
            click.echo(f"  {_as_given(member)}")
            continue
        made = f", made {', '.join(member['created'])}" if member["created"] else ""
        failed = f", failed: {member['failed']}" if member["failed"] else ""
        said = f", digest {member['digest']}" if member["digest"] else ""
        words = f" ({_as_given(given[number])})" if given and number < len(given) else ""
        changed = f"{sizes.human(member['bytes_changed'])} changed"
        click.echo(f"  {member['kind']}{words}: {changed}{made}{said}{failed}")
    if one["digest"]:
        click.echo(f"digest {one['digest']}")
    if one["failed"]:
        click.echo(f"failed, and changed nothing at any site: {one['failed']}")
    if one["refused"]:
        click.echo(f"not all of it was performed at this site ({one['refused']}): the primary sends the data")
    if one["verified"] is not None:
        click.echo(f"compared with {_compared(one)}")


def _plain(value: Any) -> str:
    """An argument, for people: of a snapshot, what is made of what."""
    if isinstance(value, dict):
        return ", ".join(f"{name} of {of}" if isinstance(of, str) else f"{name}={_plain(of)}"
                         for name, of in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(one) for one in value)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def _as_given(member: dict[str, Any]) -> str:
    """The arguments of an operation of a set, in one line."""
    told = [_plain(value) if isinstance(value, dict) else f"{name} {_plain(value)}"
            for name, value in member.items() if name != "kind"]
    return ", ".join(told) or str(member["kind"])


def when(one: dict[str, Any]) -> str:
    """When an operation got its place, for people; empty: it is not known."""
    if one["time"] is None:
        return ""
    return datetime.fromtimestamp(one["time"]).astimezone().isoformat(sep=" ", timespec="milliseconds")


def _took(one: dict[str, Any]) -> str:
    if one["seconds"] is None:
        return ""
    return f"{1000 * one['seconds']:.1f} ms" if one["seconds"] < 1 else sizes.duration(one["seconds"])


def _bytes(one: dict[str, Any]) -> str:
    return sizes.human(one["bytes_changed"]) if one["bytes_changed"] is not None else "unknown"


def _compared(one: dict[str, Any]) -> str:
    """What came of comparing its result: "paris equal, rome failed"."""
    return ", ".join(f"{name} {link['state']}" for name, link in (one["verified"] or {}).items())


def _kind(one: dict[str, Any]) -> str:
    """What it is, and what of it was not performed: here, or at the end of a link."""
    given = one["arguments"].get("members", [])
    members = ", ".join(_named(member, of) for member, of in zip(one["members"], given, strict=False))
    if one["kind"] == "set":
        told = f"set: {members}" if members else "set"
    else:  # of a group-wide form all of them are the same
        told = _named(one, one["arguments"]) + (f" of {len(one['members'])} volumes" if members else "")
    instead = [name for name, state in one["secondaries"].items() if state == "refused"]
    if one["refused"]:
        told += " (data came instead)"
    elif instead:
        told += f" (data came instead at {', '.join(instead)})"
    return told


def _named(one: dict[str, Any], arguments: dict[str, Any]) -> str:
    """With the name of a plug-in, and whether it failed."""
    plugin = f" {arguments['plugin']}" if "plugin" in arguments else ""
    return f"{one['kind']}{plugin}{' (failed)' if one['failed'] else ''}"
