"""Which stores a group has, as of one place of its order: pure values that are the same at every site.

Decides what a name may be and how long a store may be. Must not know where a site keeps a store's bytes (that is a
:class:`Place`, local), what a site has beside them (:class:`View` and :class:`Image`, local), nor what an operation
does to the catalog (``operations``).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from typing import Annotated

import msgspec

from pyrepl._core import layout
from pyrepl.errors import Exists, NotFound, Refused, UsageError, some_of

VOLUME, SNAPSHOT = "volume", "snapshot"
UNFINISHED = "unfinished"  # a volume that is still being filled: it is found by its number only
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
MOST_VIEWS = 64
MOST_IMAGES = 16
# Slots are left for views, for images, for the scratch, and for deleted stores still shown by others.
MOST_STORES = layout.MAX_STORES - MOST_VIEWS - 64


class Store(msgspec.Struct, frozen=True, kw_only=True):
    """A volume, finished or not, or a snapshot. ``id`` is never used again in its group; ``origin`` is the store it was
    made from."""

    id: int
    name: str
    kind: str
    size: int
    origin: int = 0


class Place(msgspec.Struct, frozen=True):
    """Where this site keeps a store: the slot of its device in the table of stores, and the device's path."""

    slot: int
    path: str


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What one store showed at one LSN, kept by this site alone until it is closed. ``id`` is from
    ``layout.FIRST_LOCAL`` on and never used again at this site; ``store`` and ``name`` are those of the store then.
    ``label``: it is kept over restarts, with all others of that label; "": it ends with the process. ``source``: what
    showed that when it was made, if not the store: a part of the protective snapshot."""

    id: int
    store: int
    name: str
    size: int
    lsn: int
    label: str = ""
    source: int = 0


class ProtectiveSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The last consistent state of a secondary that is none now: where it stood (``item``: the number of the last one),
    its stores, and the views that show them (store -> view)."""

    lineage: list[tuple[bytes, int]]
    lsn: int
    item: int
    stores: list[Store]
    next_id: int
    views: dict[int, int]


class ImageKey(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An image as an operation names it: each site has a copy of its own under this name. ``digest``: SHA-256."""

    name: Annotated[str, msgspec.Meta(max_length=255)]
    size: int
    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image that is registered at this site. ``id`` is from the same range as that of a view. ``identity``: what the
    file was known by when its digest was made. ``leaving``: it is gone when nobody shows it any more."""

    id: int
    key: ImageKey
    slot: int
    path: str
    identity: tuple[int, ...]
    leaving: bool = False

    @property
    def name(self) -> str:
        return self.key.name


class Catalog:
    """The stores of a group by id."""

    def __init__(self, stores: dict[int, Store] | None = None, next_id: int = 1) -> None:
        self.stores = stores if stores is not None else {}
        self.next_id = next_id

    def copy(self) -> Catalog:
        """An independent catalog that is equal now (stores themselves are frozen)."""
        return Catalog(dict(self.stores), self.next_id)

    def __iter__(self) -> Iterator[Store]:
        return iter([*self.stores.values()])  # as they are now: another thread may make one meanwhile

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
            Refused: it is not finished (``reason="unfinished"``).
        """
        for store in self.stores.values():
            if store.name == name:
                if store.kind == UNFINISHED:
                    raise Refused(
                        f"{name!r} is still being made: it can be used when the rewind that makes it has ended",
                        reason="unfinished", name=name, retryable=True)
                return store
        some = some_of(s.name for s in self.stores.values() if s.kind != UNFINISHED)
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
