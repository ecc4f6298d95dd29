"""Which stores a group has, as of one place of its order: pure values that are the same at every site.

Decides what a name may be and how long a store may be. Must not know where a site keeps a store's bytes (that is a
:class:`Place`, local), nor what an operation does to the catalog (``operations``).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator

import msgspec

from pyrepl._core import layout
from pyrepl.errors import Exists, NotFound, UsageError

VOLUME, SNAPSHOT = "volume", "snapshot"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
MOST_STORES = layout.MAX_STORES - 64  # slots are left for the scratch and for deleted stores still shown by others


class Store(msgspec.Struct, frozen=True, kw_only=True):
    """A volume or a snapshot. ``id`` is never used again in its group; ``origin`` is the store it was made from."""

    id: int
    name: str
    kind: str
    size: int
    origin: int = 0


class Place(msgspec.Struct, frozen=True):
    """Where this site keeps a store: the slot of its device in the table of stores, and the device's path."""

    slot: int
    path: str


class Catalog:
    """The stores of a group by id."""

    def __init__(self, stores: dict[int, Store] | None = None, next_id: int = 1) -> None:
        self.stores = stores if stores is not None else {}
        self.next_id = next_id

    def copy(self) -> Catalog:
        """An independent catalog that is equal now (stores themselves are frozen)."""
        return Catalog(dict(self.stores), self.next_id)

    def __iter__(self) -> Iterator[Store]:
        return iter(self.stores.values())

    def __contains__(self, store_id: int) -> bool:
        return store_id in self.stores

    def __getitem__(self, store_id: int) -> Store:
        try:
            return self.stores[store_id]
        except KeyError:
            raise NotFound(f"there is no store {store_id} in this group", store=store_id) from None

    def by_name(self, name: str) -> Store:
        """The store of that name.

        Raises:
            NotFound: there is none; the text lists some that there are.
        """
        for store in self.stores.values():
            if store.name == name:
                return store
        some = ", ".join(sorted(s.name for s in self.stores.values())[:5]) or "none"
        raise NotFound(f"there is no store {name!r} in this group (it has: {some})", name=name)

    def is_taken(self, name: str) -> bool:
        """Whether a store of that name exists."""
        return any(store.name == name for store in self.stores.values())

    def add(self, store: Store) -> None:
        """A store enters. The caller has checked that id and name are free."""
        self.stores[store.id] = store
        self.next_id = max(self.next_id, store.id + 1)

    def snapshots_of(self, store_id: int) -> list[Store]:
        """The stores that were made from this one, oldest first."""
        return [store for store in self.stores.values() if store.origin == store_id and store.kind == SNAPSHOT]


def whole(value: object) -> int | None:
    """The whole number that a caller gave, of Python's kind or another's (numpy); None: not one. True and 1.0 are
    none."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_name(name: str) -> str:
    """A name for a group, store, link or mark.

    Raises:
        UsageError: other characters than ``A-Za-z0-9._-``, a leading ``.`` or ``-``, empty, or over 255.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        shown = repr(name)[:60]
        raise UsageError(
            f"{shown} cannot be a name: 1 to 255 of A-Z a-z 0-9 . _ -, not beginning with . or -", name=shown
        )
    return name


def check_new_name(catalog: Catalog, name: str) -> str:
    """The same, and no store has it.

    Raises:
        Exists: the name is taken.
    """
    if catalog.is_taken(check_name(name)):
        raise Exists(f"a store named {name!r} exists in this group: choose another name or delete it first", name=name)
    return name


def check_size(size: int, region_size: int) -> int:
    """The size of a store in bytes: whole regions, below 2**56.

    Raises:
        UsageError: the text names the nearest size that would do.
    """
    count = whole(size)
    if count is None or count <= 0:
        raise UsageError(f"a store cannot be {size!r} bytes long: give a positive whole number of bytes", size=size)
    size = count
    if size % region_size:
        down = size // region_size * region_size
        raise UsageError(f"a store of {size} bytes is not made of whole regions of {region_size} bytes: "
                         f"the nearest sizes are {down} and {down + region_size}", size=size, region_size=region_size)
    if size >> 56:
        raise UsageError(f"a store of {size} bytes is too large: below 2**56", size=size)
    return size
