"""``pyrepl explain``: what a command would change here and cost on each link, before it is given.

Decides which commands make an operation, and how their arguments are told to :meth:`Group.explain`. They are parsed by
the commands themselves, so that what stands after ``explain`` is what will be given without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pyrepl.cli import sizes
from pyrepl.cli.connection import connect, socket_of, socket_option
from pyrepl.cli.names import within
from pyrepl.cli.outcome import json_option
from pyrepl.cli.perform import arguments
from pyrepl.cli.sets import Member
from pyrepl.cli.stores import is_wide
from pyrepl.errors import UsageError

if TYPE_CHECKING:
    from pyrepl.remote.group import RemoteGroup
    from pyrepl.remote.sets import RemoteExplanation

Tell = Callable[["RemoteGroup", "RemoteExplanation", dict[str, Any]], None]


def check_early(given: dict[str, Any], *, part: bool = False) -> None:
    """As the command itself would refuse it."""
    if given["verify"] or part:
        what = "the part" if part else "--verify"
        raise UsageError(f"--early is of a whole store, and is not compared: leave {what} out")


def check_wide(given: dict[str, Any]) -> None:
    """As the command itself would refuse it."""
    if given.get("offset") is not None or given.get("length") is not None:
        raise UsageError("--offset and --length are of one store: name it GROUP/STORE")
    if given["early"]:
        check_early(given)


def _volume_add(group: RemoteGroup, ops: RemoteExplanation, given: dict[str, Any]) -> None:
    if given["size"] is None:
        raise UsageError("pyrepl explain volume add: give --size; the device is not looked at")
    ops.add_volume(given["volume"].name, size=given["size"], zero=given["zero"] or given["device"] is None)


def _volume_restore(group: RemoteGroup, ops: RemoteExplanation, given: dict[str, Any]) -> None:
    volume, offset, length = given["volume"], given["offset"], given["length"]
    if not volume.name:
        check_wide(given)
        ops.restore_all(given["snapshot"], early=given["early"])
        return
    extent = None
    if offset is not None or length is not None:
        first = offset or 0
        extent = (first, length if length is not None else group.volume(volume.name).size - first)
    source = within(volume.group, given["snapshot"])
    if given["early"]:
        check_early(given, part=extent is not None)
        ops.early_restore(volume.name, source)
    else:
        ops.restore(volume.name, source, extent=extent)


def _snapshot_create(group: RemoteGroup, ops: RemoteExplanation, given: dict[str, Any]) -> None:
    if given["store"].name and given["early"]:
        check_early(given)
        ops.early_snapshot(given["store"].name, given["name"])
    elif given["store"].name:
        ops.snapshot(given["store"].name, given["name"])
    else:
        check_wide(given)
        ops.snapshot_all(given["name"], early=given["early"])


def _snapshot_refresh(group: RemoteGroup, ops: RemoteExplanation, given: dict[str, Any]) -> None:
    if is_wide(given["snapshot"], given["name"], "GROUP/SNAPSHOT"):
        ops.refresh_all(given["name"])
    else:
        ops.refresh(given["snapshot"].name)


def _snapshot_delete(group: RemoteGroup, ops: RemoteExplanation, given: dict[str, Any]) -> None:
    if is_wide(given["snapshot"], given["name"], "GROUP/SNAPSHOT"):
        ops.delete_all(given["name"])
    else:
        ops.delete(given["snapshot"].name)


def _snapshot_clone(group: RemoteGroup, ops: RemoteExplanation, given: dict[str, Any]) -> None:
    if given["store"].name:
        ops.clone(given["store"].name, given["name"])
    else:
        ops.clone_all(given["name"], snapshot=given["snapshot"])


def _set(group: RemoteGroup, ops: RemoteExplanation, given: dict[str, Any]) -> None:
    for text in given["members"]:
        Member(group.name, text).add(ops, force=True)


EXPLAINED: dict[str, Tell] = {
    "volume add": _volume_add,
    "volume remove": lambda group, ops, given: ops.remove(given["volume"].name, force=True),
    "volume resize": lambda group, ops, given: ops.resize(given["volume"].name, given["size"], force=True),
    "volume restore": _volume_restore,
    "volume synchronize": lambda group, ops, given: ops.synchronize(
        given["volume"].name, within(given["volume"].group, given["source"])
    ),
    "snapshot create": _snapshot_create,
    "snapshot refresh": _snapshot_refresh,
    "snapshot clone": _snapshot_clone,
    "snapshot delete": _snapshot_delete,
    "image clone": lambda group, ops, given: ops.clone(given["image"].name, given["name"]),
    "perform": lambda group, ops, given: ops.perform(given["plugin"], arguments(given["given"])),
    "mark": lambda group, ops, given: ops.mark(given["name"], os.fsencode(given["payload"])),
    "set": _set,
}


BY_GROUP = ("mark", "perform", "set")  # are given a group, and no store


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("operation", nargs=-1, required=True, type=click.UNPROCESSED, metavar="OPERATION...")
@json_option
@socket_option
@click.pass_context
def explain(ctx: click.Context, operation: tuple[str, ...], as_json: bool, socket: str | None) -> None:
    """What OPERATION would change here and cost on each link. Nothing is done.

    OPERATION is the command that would make it, as it would be given: volume add, remove, resize, restore or
    synchronize, snapshot create, refresh, clone or delete, image clone, perform, mark, or set, with its arguments. It
    needs no --force here.

    Whether a secondary has an image or a plug-in is known when it is asked to use it: so both are said, the command
    and the data that it gets instead.

    \b
    Example:
      pyrepl explain volume restore db/data monday
      pyrepl explain --json snapshot create db before-upgrade
      pyrepl explain set db "restore data monday" "restore logs logs-monday"
    """
    name, given = _parse(ctx, list(operation))
    named = next(value for value in given.values() if hasattr(value, "group") or name in BY_GROUP)
    group_name = given["group"] if name in BY_GROUP else named.group
    with connect(socket_of(ctx, socket or given["socket"])) as node:
        group = node.group(group_name)
        with group.explain(timeout=given["timeout"]) as ops:
            EXPLAINED[name](group, ops, given)
        told = ops.result
    if as_json or given["as_json"]:
        from pyrepl.cli import output

        links = [
            output.pick(output.LinkCost, link,
                        last_refused=output.Refused(**link["last_refused"]) if link["last_refused"] else None)
            for link in told["links"]
        ]
        output.write(output.pick(output.Explanation, told, group=group_name, links=links))
        return
    early = ("two commands" if named.name else "commands") if given.get("early") else ""
    click.echo(f"{told['kind']} in {group_name}: {sizes.human(told['bytes_changed'])} would change here")
    for link in told["links"]:
        click.echo(f"  → {link['name']}  {_line(link, told['kind'], early=early)}")
    if not told["links"]:
        click.echo("  no links")


def _line(link: dict[str, Any], kind: str, *, early: str) -> str:
    """``early``: what travels of an early operation; empty: it is none."""
    human = sizes.human
    if link["performed_as"] == "command":
        what = early or "a command"
        parts = [f"{link['state']}: {what} of {human(link['command_bytes'])}"]
        if link["bytes_if_refused"] is not None:
            last = link["last_refused"]
            known = f" (the last that it has refused is at LSN {last['lsn']}: {last['reason']})" if last else ""
            parts.append(f"or {human(link['bytes_if_refused'])} of data if it cannot perform it{known}")
    else:
        parts = [f"{link['state']}: with the first synchronization"]
    if link["bytes_added"]:
        parts.append(f"{human(link['bytes_added'])} more to copy")
    if link["bytes_removed"]:
        parts.append(f"{human(link['bytes_removed'])} less to copy")
    if link["divergent_bytes"] or link["divergent_bytes_after"]:
        parts.append(f"{human(link['divergent_bytes_after'])} differ then, {human(link['divergent_bytes'])} without it")
    if link["unsettles"]:
        parts.append("not consistent for a while")
    if early:
        parts.append("and what changes until it is performed here")
        if kind == "restore":
            what = "the whole volume" if early == "two commands" else "each volume, whole,"
            parts.append(f"or {what} if it is given up")
    return f"{', '.join(parts)}; shipping would be {human(link['bytes_avoided'])}"


def _parse(ctx: click.Context, words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command that these words are, and what it was given."""
    path: list[str] = []
    command: click.Command = ctx.find_root().command
    while isinstance(command, click.Group):
        inner = command.get_command(ctx, words[0]) if words else None
        if inner is None or words[0] == "explain":
            break
        path.append(words.pop(0))
        command = inner
    name = " ".join(path)
    if name not in EXPLAINED:
        shown = " ".join([*path, *words[:1]])
        raise UsageError(f"{shown!r} makes no operation: give one of {', '.join(EXPLAINED)}")
    return name, command.make_context(name, words, parent=ctx).params
