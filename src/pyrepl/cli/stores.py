"""Volumes and snapshots in lists: what the daemon's status says of them, as a table or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyrepl.cli import sizes, tables

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode


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
