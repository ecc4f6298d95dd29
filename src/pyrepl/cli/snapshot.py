"""``pyrepl snapshot``: snapshots of stores and of whole groups, as operations in the order of the writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pyrepl.cli.connection import asks_daemon, local
from pyrepl.cli.names import DELETABLE_OR_GROUP, GROUP, SNAPSHOT_OR_GROUP, STORE_OR_GROUP, Named
from pyrepl.cli.outcome import (
    clients_of,
    destroys,
    early_option,
    force_option,
    json_option,
    operation_options,
    tell,
    tell_early,
    verify_option,
)
from pyrepl.cli.stores import is_wide, list_stores, volumes_of

if TYPE_CHECKING:
    from pyrepl.remote import RemoteGroup, RemoteNode, RemoteSnapshot
    from pyrepl.remote.kept import RemoteKeptSnapshot


@click.group()
def snapshot() -> None:
    """Snapshots: a store as it was at one point of the order. They can be read, written, refreshed, cloned.

    A snapshot costs nothing when it is made and moves no data over the links. It is named GROUP/SNAPSHOT.

    \b
    Example:
      pyrepl snapshot create db/data monday
      pyrepl volume restore db/data monday --force
    """


@snapshot.command()
@click.argument("store", type=STORE_OR_GROUP)
@click.argument("name")
@early_option
@verify_option
@operation_options
@asks_daemon
def create(
    node: RemoteNode, store: Named, name: str, early: bool, verify: bool, no_wait: bool,
    timeout: float | None, as_json: bool
) -> None:
    """A snapshot NAME of a store; or of all volumes of a group at one point, named VOLUME-NAME.

    \b
    Example:
      pyrepl snapshot create db/data monday
      pyrepl snapshot create db monday          # db/data-monday, db/logs-monday: one LSN
    """
    group = node.group(store.group)
    if store.name:
        made = group.store(store.name).snapshot(name, verify=verify, early=early, wait=not no_wait, timeout=timeout)
        assert made.result is not None
        if early:
            tell_early(made.result)
        tell(made.result, store.group, f"snapshot {store.group}/{name} of {store}", as_json=as_json)
        return
    result = group.snapshot(name, verify=verify, early=early, wait=not no_wait, timeout=timeout)
    if early:
        tell_early(result)
    names = ", ".join(f"{store.group}/{one}" for one in sorted(result.created))
    tell(result, store.group, f"snapshots {names}", as_json=as_json)


@snapshot.command("list")
@click.argument("group", type=GROUP, required=False)
@json_option
@asks_daemon
def list_(node: RemoteNode, group: str | None, as_json: bool) -> None:
    """The snapshots of a group, or of all groups, oldest first; then those that this site alone keeps.

    \b
    Example:
      pyrepl snapshot list db
    """
    list_stores(node, group, "snapshot", as_json=as_json)


@snapshot.command()
@click.argument("snapshot", type=SNAPSHOT_OR_GROUP)
@click.argument("name", required=False)
@force_option
@verify_option
@operation_options
@asks_daemon
def refresh(
    node: RemoteNode, snapshot: Named, name: str | None, force: bool, verify: bool, no_wait: bool,
    timeout: float | None, as_json: bool
) -> None:
    """The snapshot shows what its origin shows now; what it showed before is lost.

    Of a GROUP, with a NAME: those that a snapshot NAME of the group has made, at one point; all of them, or none.

    \b
    Example:
      pyrepl snapshot refresh db/nightly --force
      pyrepl snapshot refresh db nightly --force    # db/data-nightly, db/logs-nightly: one LSN
    """
    if is_wide(snapshot, name, "GROUP/SNAPSHOT"):
        assert name is not None
        group = node.group(snapshot.group)
        destroys(f"snapshots {volumes_of(group, name)} of {group.name}: the content that they have now is lost",
                 force=force, clients=clients_of(node, group.name, _wide(group, name)))
        refreshed = group.refresh(name, verify=verify, wait=not no_wait, timeout=timeout)
        what = f"{len(refreshed.members)} snapshots {name} of {group.name} refreshed"
        tell(refreshed, group.name, what, as_json=as_json)
        return
    target = _snapshot(node, snapshot)
    destroys(f"snapshot {snapshot}: the content that it has now is lost", force=force,
             unless=f"pyrepl snapshot create {snapshot} NAME",
             clients=clients_of(node, snapshot.group, {snapshot.name}))
    result = target.refresh(verify=verify, wait=not no_wait, timeout=timeout)
    tell(result, snapshot.group, f"snapshot {snapshot} refreshed", as_json=as_json)


@snapshot.command()
@click.argument("store", type=STORE_OR_GROUP)
@click.argument("name")
@click.option("--device", type=click.Path(), help="For the new volume, at this site; at least as long as the store.")
@click.option("--from", "snapshot", help="Of a group: clone its snapshot of this name, not what the volumes show now.")
@force_option
@verify_option
@operation_options
@asks_daemon
def clone(
    node: RemoteNode, store: Named, name: str, device: str | None, snapshot: str | None, force: bool, verify: bool,
    no_wait: bool, timeout: float | None, as_json: bool
) -> None:
    """A new volume NAME with the content of a snapshot, or of a volume; no data move over the links.

    Of a GROUP: new volumes VOLUME-NAME of all its volumes, at one point; all of them, or none.

    What a device holds is overwritten: one that is not blank wants --force.

    \b
    Example:
      pyrepl snapshot clone db/monday test
      pyrepl snapshot clone db/monday test --device /dev/sdd
      pyrepl snapshot clone db test --from monday   # db/data-test of data-monday, db/logs-test of logs-monday
    """
    if not store.name:
        if device is not None:
            raise click.UsageError("--device is for one volume: name the store GROUP/STORE")
        group = node.group(store.group)
        cloned = group.clone(name, snapshot=snapshot, verify=verify, wait=not no_wait, timeout=timeout)
        names = ", ".join(f"{group.name}/{one}" for one in sorted(cloned.created))
        of = group.name if snapshot is None else f"snapshot {snapshot} of {group.name}"
        tell(cloned, group.name, f"volumes {names} cloned from {of}", as_json=as_json)
        return
    if snapshot is not None:
        raise click.UsageError("--from is for a whole group: name the snapshot GROUP/SNAPSHOT")
    source = node.group(store.group).store(store.name)
    made = source.clone(name, local(device), force=force, verify=verify, wait=not no_wait, timeout=timeout)
    assert made.result is not None
    tell(made.result, store.group, f"volume {store.group}/{name} cloned from {store}", as_json=as_json)


@snapshot.command()
@click.argument("snapshot", type=DELETABLE_OR_GROUP)
@click.argument("name", required=False)
@force_option
@operation_options
@asks_daemon
def delete(
    node: RemoteNode, snapshot: Named, name: str | None, force: bool, no_wait: bool, timeout: float | None,
    as_json: bool,
) -> None:
    """The snapshot leaves the group, at every site: what it shows is lost. Clones keep their content.

    Of a GROUP, with a NAME: those that a snapshot NAME of the group has made; all of them, or none.

    Snapshots that were made of it keep their content, but can then not be refreshed. A snapshot that this site alone
    keeps (lost-GENERATION) shows what is nowhere else. Without --force it says what would be lost.

    \b
    Example:
      pyrepl snapshot delete db/monday --force
      pyrepl snapshot delete db monday --force      # db/data-monday, db/logs-monday
    """
    if is_wide(snapshot, name, "GROUP/SNAPSHOT"):
        assert name is not None
        group = node.group(snapshot.group)
        leaving = _wide(group, name)
        if not force:
            for one in leaving:
                _snapshot(node, Named(group.name, one))  # what makes it impossible comes before what it costs
        destroys(lambda: _loss(group, leaving), force=force, clients=clients_of(node, group.name, leaving))
        deleted = group.delete_snapshots(name, wait=not no_wait, timeout=timeout)
        what = f"{len(deleted.members)} snapshots {name} of {group.name} deleted"
        tell(deleted, group.name, what, as_json=as_json)
        return
    kept = {one.name: one for one in node.group(snapshot.group).kept}.get(snapshot.name)
    if kept is not None:
        of = f"{kept.origin} as of LSN {kept.lsn}"
        destroys(f"snapshot {snapshot}, {of}, is kept by this site alone: what it shows is lost", force=force)
        kept.delete()
        _forgotten(kept, as_json=as_json)
        return
    target = _snapshot(node, snapshot)
    group = node.group(snapshot.group)
    destroys(lambda: _loss(group, [snapshot.name]), force=force,
             clients=clients_of(node, snapshot.group, {snapshot.name}))
    result = target.delete(wait=not no_wait, timeout=timeout)
    tell(result, snapshot.group, f"snapshot {snapshot} deleted", as_json=as_json)


def _wide(group: RemoteGroup, name: str) -> list[str]:
    """The snapshots that a snapshot of the group has made."""
    return [f"{volume.name}-{name}" for volume in group.volumes]


def _loss(group: RemoteGroup, leaving: list[str]) -> str:
    """What deleting these snapshots loses, as a sentence without its full stop."""
    status = group.status()
    made = _made(group, leaving)
    told = [f"{group.name}/{name}{f' ({made[name]})' if name in made else ''}" for name in leaving]
    names = [link["name"] for link in status["links"]]
    text = f"{'snapshot' if len(told) == 1 else 'snapshots'} {', '.join(told)}: what "
    text += "it shows is lost" if len(told) == 1 else "they show is lost"
    text += f", here and at {', '.join(names)}" if names else ""
    text += "; clones and what was restored from it keep their content"
    held: dict[str, list[str]] = {}
    for store in status["stores"]:
        if store["kind"] == "snapshot" and store["origin"] in leaving and store["name"] not in leaving:
            held.setdefault(store["origin"], []).append(store["name"])
    for origin, names in held.items():
        text += f"; {origin} is the origin of {', '.join(names)}, which could not be refreshed any more"
    return text


def _made(group: RemoteGroup, names: list[str]) -> dict[str, str]:
    """When each of these snapshots was made, as far as that is known here; the journal is read only if it must be."""
    from pyrepl.cli.operation import when

    found: dict[str, str] = {}
    for earlier in (False, True):
        for one in group.operations(earlier):
            for name in {*one["created"], *(name for member in one["members"] for name in member["created"])}:
                time = when(one)
                found[name] = f"made at LSN {one['lsn']}{f', {time}' if time else ''}"
        if found.keys() >= set(names):
            break
    return found


def _forgotten(kept: RemoteKeptSnapshot, *, as_json: bool) -> None:
    if as_json:
        from pyrepl.cli import output

        output.write(output.KeptDeleted(group=kept.group.name, snapshot=kept.name))
        return
    click.echo(f"snapshot {kept.group.name}/{kept.name} is kept no longer")


def _snapshot(node: RemoteNode, named: Named) -> RemoteSnapshot:
    """The snapshot of that name.

    Raises:
        Refused: it is a volume.
    """
    from pyrepl.errors import Refused

    found = node.group(named.group).store(named.name)
    if found.kind != "snapshot":
        raise Refused(f"{named} is a {found.kind}, not a snapshot: see pyrepl {found.kind} --help", reason="kind")
    return found  # type: ignore[return-value]
