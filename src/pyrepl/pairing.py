"""Introducing two sites to each other: what a group is said to be, and why two do not match.

Pure; decides only the words and the match of stores by name and size at first pairing.
"""

from __future__ import annotations

from pyrepl.catalog import VOLUME, Catalog, Store
from pyrepl.items import StoreInfo
from pyrepl.protocol import messages


def mismatch(catalog: Catalog, stores: list[StoreInfo]) -> str:
    """Why these cannot be the secondary's volumes for this group's; empty: they match."""
    ours = {store.name: store for store in catalog if store.kind == VOLUME}
    theirs = {store.name: store for store in stores}
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            return f"the secondary has no volume {name!r}: add it there with {ours[name].size} bytes"
        if name not in ours:
            return (
                f"the secondary has a volume {name!r} that this group does not have: add it here with "
                f"{theirs[name].size} bytes, or remove it there (`pyrepl volume remove`)"
            )
        if ours[name].size != theirs[name].size:
            return (
                f"volume {name!r} is {ours[name].size} bytes long here and {theirs[name].size} at the secondary: "
                f"resize it here, or remove it there (`pyrepl volume remove`) and add it with the size that it has here"
            )
    return ""


def info_of(store: Store) -> StoreInfo:
    """A store as a peer is told of it."""
    return StoreInfo(store.id, store.name, store.kind, store.size, store.origin)


def introduce(catalog: Catalog) -> list[StoreInfo]:
    """All of them."""
    return [info_of(store) for store in catalog]


def describe_limits(limits: messages.Limits) -> str:
    """For people, in a refusal."""
    return (f"alignment {limits.alignment}, region size {limits.region_size}, largest event {limits.max_event}, "
            f"largest batch {limits.max_payload}")
