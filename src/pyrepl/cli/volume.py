"""``pyrepl volume``: volumes of a group, as operations in the order of its writes. Their data: cli.data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from pyrepl.cli import sizes
from pyrepl.cli.connection import asks_daemon, local
from pyrepl.cli.data import compare, read, write
from pyrepl.cli.names import GROUP, VOLUME, VOLUME_OR_GROUP, Named, offer_in, within
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
from pyrepl.cli.rewind import rewind
from pyrepl.cli.stores import list_stores, volumes_of

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode


@click.group()
def volume() -> None:
    """Volumes: what applications read and write.

    A volume is named GROUP/VOLUME. What changes it is an operation: it has its place in the order of the group's
    writes, and is performed at every secondary at exactly that place.

    \b
    Example:
      pyrepl volume add db/data --device /dev/sdb
      pyrepl volume list db
    """


for command in (read, write, compare, rewind):
    volume.add_command(command)


@volume.command()
@click.argument("volume", type=VOLUME)
@click.option("--device", type=click.Path(), help="A block device or an existing file.")
@click.option("--size", type=sizes.size, help="Whole regions. Without it: the size of the device, rounded down.")
@click.option("--zero", is_flag=True, help="The volume shows zeros, whatever the device holds.")
@force_option
@operation_options
@asks_daemon
def add(
    node: RemoteNode, volume: Named, device: str | None, size: int | None, zero: bool, force: bool, no_wait: bool,
    timeout: float | None, as_json: bool,
) -> None:
    """A volume enters the group: on a device of its own, or in a sparse file of the node.

    Without --device the node makes a sparse file, and --size says how long it is. What a device holds is the volume's
    content at a primary. With --zero it is not: it is lost, and nothing need be copied to the secondaries.

    At a secondary that is not paired yet this prepares the volume that the primary has under the same name and size.
    What the device holds is OVERWRITTEN with the primary's content when that pairs; from then on, volumes come from the
    primary. Where a device's content would be lost, one that is not blank wants --force.

    \b
    Example:
      pyrepl volume add db/data --device /dev/sdb
      pyrepl volume add db/scratch --size 10G
    """
    group = node.group(volume.group)
    made = group.add_volume(volume.name, local(device), size=size, zero=zero, force=force, wait=not no_wait,
                            timeout=timeout)
    if made.result is not None:
        tell(made.result, volume.group, f"volume {volume} added", as_json=as_json)
    else:
        told = f", whose content then overwrites what {local(device)} holds" if device is not None else ""
        told = f"volume {volume} prepared: {sizes.human(made.size)}, waiting for its primary{told}"
        _fresh(volume, made.size, "prepared", told, as_json=as_json)


def _fresh(volume: Named, size: int, state: Literal["prepared", "taken-back"], told: str, *, as_json: bool) -> None:
    """What was done to a volume of a secondary that is not paired yet."""
    if as_json:
        from pyrepl.cli import output

        output.write(output.Prepared(group=volume.group, volume=volume.name, size=size, state=state))
    else:
        click.echo(told)


@volume.command("list")
@click.argument("group", type=GROUP, required=False)
@json_option
@asks_daemon
def list_(node: RemoteNode, group: str | None, as_json: bool) -> None:
    """The volumes of a group, or of all groups.

    \b
    Example:
      pyrepl volume list
      pyrepl volume list db --json
    """
    list_stores(node, group, "volume", as_json=as_json)


@volume.command()
@click.argument("volume", type=VOLUME)
@force_option
@operation_options
@asks_daemon
def remove(
    node: RemoteNode, volume: Named, force: bool, no_wait: bool, timeout: float | None, as_json: bool
) -> None:
    """The volume leaves the group, at every site. Its snapshots stay and keep their content.

    What a device holds stays on it, but is nothing that the group knows of; a sparse file of the node is deleted. At a
    secondary that is not paired yet this takes back a volume that was added there with the wrong size or device; once
    it is paired, volumes go at the primary.

    \b
    Example:
      pyrepl volume remove db/scratch --force
    """
    group = node.group(volume.group)
    target = group.volume(volume.name)
    size = target.size
    if group.role != "secondary":  # there nothing of it is lost: it was only prepared, or the engine refuses
        loss = f"volume {volume} ({sizes.human(size)}) leaves the group; what no snapshot holds is lost"
        destroys(loss, force=force, unless=f"pyrepl snapshot create {volume} NAME",
                 clients=clients_of(node, volume.group, {volume.name}))
    result = target.remove(force=force, wait=not no_wait, timeout=timeout)
    if result is None:
        _fresh(volume, size, "taken-back", f"volume {volume}: taken back", as_json=as_json)
        return
    tell(result, volume.group, f"volume {volume} removed", as_json=as_json)


@volume.command()
@click.argument("volume", type=VOLUME)
@click.argument("size", type=sizes.size)
@force_option
@verify_option
@operation_options
@asks_daemon
def resize(
    node: RemoteNode, volume: Named, size: int, force: bool, verify: bool, no_wait: bool,
    timeout: float | None, as_json: bool
) -> None:
    """The volume becomes SIZE long; what is added reads as zeros, what is cut off is lost.

    SIZE is whole regions of the group (64 KiB, unless it was made otherwise), and not longer than the device.

    \b
    Example:
      pyrepl volume resize db/data 2T
    """
    target = node.group(volume.group).volume(volume.name)
    before = target.size
    if size < before:
        from pyrepl.catalog import check_size

        check_size(size, node.group(volume.group).region_size)  # what makes it impossible comes before what it costs
        loss = f"volume {volume} would lose its last {sizes.human(before - size)}"
        destroys(loss, force=force, unless=f"pyrepl snapshot create {volume} NAME",
                 clients=clients_of(node, volume.group, {volume.name}))
    result = target.resize(size, force=force, verify=verify, wait=not no_wait, timeout=timeout)
    tell(result, volume.group, f"volume {volume} resized to {sizes.human(size)}", as_json=as_json)


@volume.command()
@click.argument("volume", type=VOLUME_OR_GROUP)
@click.argument("snapshot", shell_complete=offer_in("snapshot", "image"))
@click.option("--offset", type=sizes.size, help="Restore from here on only; a multiple of the region size.")
@click.option("--length", type=sizes.size, help="Restore so much only; a multiple of the region size.")
@force_option
@early_option
@verify_option
@operation_options
@asks_daemon
def restore(
    node: RemoteNode, volume: Named, snapshot: str, offset: int | None, length: int | None, force: bool, early: bool,
    verify: bool, no_wait: bool, timeout: float | None, as_json: bool,
) -> None:
    """The volume shows again what SNAPSHOT shows, at once; no data move over the links.

    Of a GROUP: all its volumes, at one point, what the snapshot SNAPSHOT of the group shows; all of them, or none.

    SNAPSHOT may be an image too (pyrepl image). What was written to the volume since is lost, unless a snapshot holds
    it. Programs that use the volume must not have it open: their caches know nothing of the restore.

    \b
    Example:
      pyrepl snapshot create db/data before-restore
      pyrepl volume restore db/data monday --force
      pyrepl volume restore db monday --force       # db/data from data-monday, db/logs from logs-monday
    """
    if not volume.name:
        if offset is not None or length is not None:
            raise click.UsageError("--offset and --length are of one volume: name it GROUP/VOLUME")
        group = node.group(volume.group)
        loss = f"volumes {volumes_of(group)} of {group.name}: what was written since snapshot {snapshot!r} is lost"
        destroys(loss, force=force, unless=f"pyrepl snapshot create {group.name} NAME",
                 clients=clients_of(node, group.name, {one.name for one in group.volumes}))
        restored = group.restore(snapshot, verify=verify, early=early, wait=not no_wait, timeout=timeout)
        if early:
            tell_early(restored)
        what = f"{len(restored.members)} volumes of {group.name} restored from {snapshot}"
        tell(restored, group.name, what, as_json=as_json)
        return
    target = node.group(volume.group).volume(volume.name)
    part = offset is not None or length is not None
    first = offset or 0
    count = length if length is not None else target.size - first
    what = f"{sizes.human(count)} of volume {volume} from {first} on" if part else f"volume {volume}"
    source = within(volume.group, snapshot)
    image = _is_image(node, volume.group, source)
    if not image:
        node.group(volume.group).store(source)  # what makes it impossible comes before what it costs
    since = _is_made_of(node, volume, source)  # else all of it is replaced, by an image or what another store showed
    held = f"what was written since snapshot {snapshot!r}" if since else "what it holds now"
    loss = f"{what}: {held} is lost"
    destroys(loss, force=force, unless=f"pyrepl snapshot create {volume} NAME",
             clients=clients_of(node, volume.group, {volume.name}))
    result = target.restore(
        source, extent=(first, count) if part else None, verify=verify, early=early, wait=not no_wait, timeout=timeout
    )
    if early:
        tell_early(result)
    tell(result, volume.group, f"{what} restored from {source}", as_json=as_json, image=image)


@volume.command()
@click.argument("volume", type=VOLUME)
@click.argument("source", shell_complete=offer_in("volume", "snapshot", "image"))
@force_option
@verify_option
@operation_options
@asks_daemon
def synchronize(
    node: RemoteNode, volume: Named, source: str, force: bool, verify: bool, no_wait: bool,
    timeout: float | None, as_json: bool
) -> None:
    """The volume becomes equal to SOURCE, a store or image of the same group and size; no data move over the links.

    \b
    Example:
      pyrepl volume synchronize db/test data --force
    """
    target = node.group(volume.group).volume(volume.name)
    loss = f"volume {volume} becomes equal to {source!r}, and what it holds now is lost"
    destroys(loss, force=force, unless=f"pyrepl snapshot create {volume} NAME",
             clients=clients_of(node, volume.group, {volume.name}))
    name = within(volume.group, source)
    image = _is_image(node, volume.group, name)
    result = target.synchronize(name, verify=verify, wait=not no_wait, timeout=timeout)
    tell(result, volume.group, f"volume {volume} synchronized from {source}", as_json=as_json, image=image)


def _is_made_of(node: RemoteNode, volume: Named, name: str) -> bool:
    """Whether the store of that name is a snapshot of this volume."""
    stores = node.group(volume.group).status()["stores"]
    return any((one["name"], one["origin"]) == (name, volume.name) for one in stores)


def _is_image(node: RemoteNode, group: str, name: str) -> bool:
    return any(one["name"] == name for one in node.group(group).status().get("images") or ())
