"""Operations whose source is an image, a third copy that each site has for itself: restore, synchronize, copy a range,
and clone.

An operation names the image, its size and its digest: a site whose image of that name is another one must not perform
it from there. Must not know which images a site has (``gallery``).
"""

from __future__ import annotations

import msgspec

from pyrepl.catalog import MOST_STORES, VOLUME, Catalog, ImageKey, Store, check_name, check_new_name
from pyrepl.errors import Exists, Refused, UsageError
from pyrepl.operations.base import CopiedImage, Created, Effect, Footprint, scope

VERBS = ("restore", "synchronize", "copy-range")


class CopyImage(msgspec.Struct, frozen=True, tag="copy-image", tag_field="op", forbid_unknown_fields=True):
    """``verb`` is one of VERBS; the scope is in regions."""

    verb: str
    target: int
    image: ImageKey
    first: int
    count: int

    @property
    def kind(self) -> str:
        return self.verb

    @property
    def blocks(self) -> list[int]:
        """Stores whose readers wait until it is performed."""
        return [self.target]

    @property
    def footprint(self) -> Footprint:
        return Footprint([], [self.target])

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        if self.verb not in VERBS:
            raise UsageError(f"not a copy of an image: {self.verb!r}")
        check_name(self.image.name)
        catalog[self.target]

    def apply(self, catalog: Catalog) -> None:
        """Changes no catalog."""

    def effects(self, region_size: int) -> list[Effect]:
        return [CopiedImage(self.target, self.image, self.first, self.count)]


class CloneImage(msgspec.Struct, frozen=True, tag="clone-image", tag_field="op", forbid_unknown_fields=True):
    """A new volume with the content of an image, as long as that is."""

    id: int
    name: str
    image: ImageKey

    @property
    def kind(self) -> str:
        return "clone"

    @property
    def blocks(self) -> list[int]:
        return [self.id]

    @property
    def footprint(self) -> Footprint:
        return Footprint([], [self.id])

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        check_name(self.image.name)
        check_new_name(catalog, self.name)
        if self.id in catalog or self.id < 1:
            raise Exists(f"store number {self.id} exists", store=self.id)
        if len(catalog.stores) >= MOST_STORES:
            raise Refused(
                f"a group holds at most {MOST_STORES} stores: delete some first", reason="limit", limit=MOST_STORES
            )

    def apply(self, catalog: Catalog) -> None:
        catalog.add(Store(id=self.id, name=self.name, kind=VOLUME, size=self.image.size))

    def effects(self, region_size: int) -> list[Effect]:
        count = self.image.size // region_size
        return [Created(self.id, count, True), CopiedImage(self.id, self.image, 0, count)]


def copy_image(
    verb: str,
    catalog: Catalog,
    target: str,
    image: ImageKey,
    offset: int | None = None,
    length: int | None = None,
    *,
    region_size: int,
) -> CopyImage:
    """The store ``target`` becomes equal to the image, whole or on a range of whole regions.

    Raises:
        NotFound, UsageError: no such store; the range is not made of whole regions, or not inside both.
    """
    into = catalog.by_name(target)
    source = Store(id=0, name=image.name, kind="image", size=image.size)
    return CopyImage(verb, into.id, image, *scope(into, source, offset, length, region_size))


def clone_image(catalog: Catalog, image: ImageKey, name: str) -> CloneImage:
    """A new volume ``name`` with the content of the image."""
    operation = CloneImage(catalog.next_id, name, image)
    operation.check(catalog)
    return operation
