"""Volumes and snapshots in lists: what the daemon's status says of them, as a table or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyrepl.cli import sizes, tables
from pyrepl.errors import UsageError

if TYPE_CHECKING:
    from pyrepl.cli.names import Named
    from pyrepl.remote import RemoteGroup, RemoteNode


def is_wide(named: Named, name: str | None, form: str) -> bool:
    """Whether a verb is meant for a whole group: GROUP and a NAME, instead of one store.

    Raises:
        UsageError: neither the one nor the other.
    """
    if bool(named.name) == (name is not None):
        given = f"{named} {name}" if named.name else named.group
        raise UsageError(f"{given}: write {form}, or GROUP NAME for what a snapshot NAME of the group has made")
    return name is not None


def volumes_of(group: RemoteGroup, name: str = "") -> str:
    """The volumes of a group, or their snapshots of a name, for people."""
    return ", ".join(f"{volume.name}-{name}" if name else volume.name for volume in group.volumes) or "none"


def statuses(node: RemoteNode, group: str | None) -> list[dict[str, Any]]:
    """The status of this group, or of all."""
    if group is not None:
        return [node.group(group).status()]
    groups: list[dict[str, Any]] = node.status()["groups"]
    return groups


def list_stores(node: RemoteNode, group: str | None, kind: str, *, as_json: bool) -> None:
    """Writes the stores of a kind."""
    found = [
        (status["group"], store)
        for status in statuses(node, group)
        for store in (*(status.get("stores") or ()), *(status.get("kept") or ()))
        if store["kind"] == kind or (kind, store["kind"]) == ("snapshot", "kept")
    ]
    if as_json:
        from pyrepl.cli import output

        stores = [output.pick(output.StoreEntry, store, group=name) for name, store in found]
        output.write(output.StoreList(stores=stores))
        return
    differs = any(store["diverged"] for _, store in found)
    rows = [
        [f"{name}/{store['name']}", sizes.human(store["size"]), *([store.get("origin")] if kind == "snapshot" else []),
         *([", ".join(store["diverged"])] if differs else []), store.get("path")]
        for name, store in found
    ]
    titles = [kind.upper(), "SIZE", *(["OF"] if kind == "snapshot" else []), *(["DIVERGED"] if differs else []),
              "DEVICE"]
    tables.show(titles, rows, none=f"no {kind}s")
