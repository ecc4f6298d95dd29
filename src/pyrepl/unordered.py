"""Operations that a caller collects in a ``with`` block: a set, which is admitted as one event when the block ends.

Decides nothing of what its members mean, nor whether they can stand together (``operations.sets``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pyrepl import operations
from pyrepl.catalog import Catalog
from pyrepl.errors import UsageError
from pyrepl.image import copy_from, image_key
from pyrepl.plugin import maker as plugin_maker

if TYPE_CHECKING:
    from pyrepl.group import Group
    from pyrepl.image import Image
    from pyrepl.operations import Operation
    from pyrepl.results import OperationResult
    from pyrepl.runtime.plugins import Operation as PluginOperation
    from pyrepl.volume import Extent, Snapshot, Store, Volume


class Collected:
    """Operations that are wanted. Its methods take stores or their names, as those of the stores do, and only note what
    is wanted: everything is checked when the block ends."""

    def __init__(self, group: Group, *, timeout: float | None) -> None:
        self._group = group
        self._timeout = timeout
        self._makers: list[Callable[[Catalog], Operation]] = []
        self._open = True

    def snapshot(self, store: Store | str, name: str) -> None:
        """A snapshot of the store. See :meth:`Volume.snapshot`."""
        self._add(lambda catalog: operations.snapshot(catalog, [self._name(store, catalog)], [name]))

    def clone(self, store: Store | Image | str, name: str) -> None:
        """A new volume with the content of the store or image, in a file of the node's own at each site."""
        def make(catalog: Catalog) -> Operation:
            image = image_key(self._group, store, catalog)
            if image is not None:
                return operations.clone_image(catalog, image, name)
            return operations.clone(catalog, self._name(store, catalog), name)  # type: ignore[arg-type]
        self._add(make)

    def restore(
        self, volume: Volume | str, snapshot: Snapshot | Image | str, *, extent: Extent | tuple[int, int] | None = None
    ) -> None:
        """See :meth:`Volume.restore`."""
        try:
            offset, length = (None, None) if extent is None else extent
        except (TypeError, ValueError):
            raise UsageError(f"extent={extent!r}: give pyrepl.Extent(offset, length)") from None
        self._add(lambda catalog: copy_from(
            self._group, "restore", catalog, self._name(volume, catalog), snapshot, offset, length))

    def refresh(self, snapshot: Snapshot | str) -> None:
        """See :meth:`Snapshot.refresh`."""
        self._add(lambda catalog: operations.refresh(
            catalog, self._name(snapshot, catalog), region_size=self._group.region_size))

    def synchronize(self, target: Store | str, source: Store | Image | str) -> None:
        """See :meth:`Volume.synchronize`."""
        self._add(lambda catalog: copy_from(
            self._group, "synchronize", catalog, self._name(target, catalog), source))

    def copy_range(self, source: Store | Image | str, target: Store | str, offset: int, length: int) -> None:
        """The range of ``target`` becomes equal to the same range of ``source``. See :meth:`Group.copy_range`."""
        self._add(lambda catalog: copy_from(
            self._group, "copy-range", catalog, self._name(target, catalog), source, offset, length))

    def resize(self, volume: Volume | str, size: int, *, force: bool = False) -> None:
        """See :meth:`Volume.resize`."""
        self._add(lambda catalog: operations.resize(
            catalog, self._name(volume, catalog), size, force=force, region_size=self._group.region_size))

    def remove(self, volume: Volume | str, *, force: bool = False) -> None:
        """See :meth:`Volume.remove`."""
        self._add(lambda catalog: operations.remove_volume(catalog, self._name(volume, catalog), force=force))

    def perform(self, operation: PluginOperation | str, arguments: Mapping[str, Any] | None = None) -> None:
        """See :meth:`Group.perform`."""
        self._add(plugin_maker(self._group, operation, arguments))

    def delete(self, snapshot: Snapshot | str) -> None:
        """See :meth:`Snapshot.delete`."""
        self._add(lambda catalog: operations.delete(catalog, self._name(snapshot, catalog)))

    def _name(self, store: Store | str, catalog: Catalog) -> str:
        return self._group.name_of(store, catalog)

    def _add(self, make: Callable[[Catalog], Operation]) -> None:
        if not self._open:
            raise UsageError("the with block of these operations has ended: begin another")
        self._makers.append(make)


class UnorderedSet(Collected):
    """Made by :meth:`Group.unordered`. It gets its one place in the order when the block ends."""

    def __init__(self, group: Group, *, verify: bool, wait: bool, timeout: float | None) -> None:
        super().__init__(group, timeout=timeout)
        self._verify, self._wait = verify, wait
        self._result: OperationResult | None = None

    @property
    def result(self) -> OperationResult:
        """The operation that the set became; its ``members`` are in the order of the calls.

        Raises:
            UsageError: the block has not ended yet, or not well.
        """
        if self._result is None:
            raise UsageError("the set has its place in the order when its with block has ended, and not before")
        return self._result

    def __enter__(self) -> UnorderedSet:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not self._open:
            return
        self._open = False
        if kind is None:
            self._result = self._group.operate(
                lambda catalog: operations.unordered(catalog, self._makers), verify=self._verify, wait=False)
            if self._wait:
                self._result.wait_all(self._timeout)
