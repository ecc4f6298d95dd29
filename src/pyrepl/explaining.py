"""What an operation would change and cost, before it is made; nothing is changed by asking.

Decides when that is looked at: as of the journal's end when the question comes, once all of it is performed here. What
an operation changes here is told by the source maps, what it costs on a link by ``forecast``. It is an answer about
now: what is written or copied meanwhile can make it cheaper or dearer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyrepl import operations
from pyrepl.catalog import VOLUME, Catalog
from pyrepl.early import Part, check_source, plan_restores, plan_snapshots
from pyrepl.errors import NotFound, Refused, UsageError
from pyrepl.operations import TICKET, Operation
from pyrepl.site import STRICT
from pyrepl.unordered import Collected
from pyrepl.wide import wide

if TYPE_CHECKING:
    from pyrepl.attachment import Attachment
    from pyrepl.forecast import Cost, Forecast
    from pyrepl.group import Group
    from pyrepl.image import Image
    from pyrepl.volume import Snapshot, Store, Volume

TRIES = 8  # the journal drops what a forecast is about to read: so often it begins again


class Explanation(Collected):
    """Made by :meth:`Group.explain`: what one operation, or several as an unordered set, would change and cost."""

    def __init__(self, group: Group, *, timeout: float | None) -> None:
        super().__init__(group, timeout=timeout)
        self._early: list[Callable[[Catalog], list[Operation]]] = []  # what of an early operation travels
        self._result: dict[str, Any] | None = None

    @property
    def result(self) -> dict[str, Any]:
        """What it would change and cost; see :meth:`Group.explain`.

        Raises:
            UsageError: the block has not ended yet, or not well.
        """
        if self._result is None:
            raise UsageError("what operations would cost is known when their with block has ended, and not before")
        return self._result

    def early_snapshot(self, store: Store | str, name: str) -> None:
        """See :meth:`Store.snapshot`, with ``early=True``. Two commands travel; what changes at the store between the
        two is copied besides, and is not foreseen."""
        def begin(catalog: Catalog, ticket: bytes) -> operations.Early:
            return operations.early_snapshot(
                catalog, self._name(store, catalog), ticket, region_size=self._group.region_size)

        self._add_early(lambda catalog: operations.snapshot(catalog, [self._name(store, catalog)], [name]), begin, name)

    def early_restore(self, volume: Volume | str, snapshot: Snapshot | Image | str) -> None:
        """See :meth:`Volume.restore`, with ``early=True``. Two commands travel; what changes at the two stores between
        them is copied besides, and is not foreseen."""
        check_source(self._group, snapshot)
        source: Any = snapshot

        def begin(catalog: Catalog, ticket: bytes) -> operations.Early:
            return operations.early_restore(
                catalog, self._name(volume, catalog), self._name(source, catalog), ticket,
                region_size=self._group.region_size)

        self._add_early(
            lambda catalog: operations.restore(
                catalog, self._name(volume, catalog), self._name(source, catalog),
                region_size=self._group.region_size), begin)

    def _add_early(
        self, make: Callable[[Catalog], Operation], begin: Callable[[Catalog, bytes], operations.Early], name: str = ""
    ) -> None:
        def travels(catalog: Catalog) -> list[Operation]:
            early, beside = begin(catalog, bytes(TICKET)), catalog.copy()
            early.apply(beside)
            return [early, operations.adopt(beside, early, name)]

        self._add(make)
        self._early.append(travels)

    def add_volume(self, name: str, *, size: int, zero: bool = True) -> None:
        """See :meth:`Group.add_volume`. ``zero``: it shows zeros, as one without a device does; False: it is on a
        device, whose content the secondaries do not have."""
        self._add(lambda catalog: operations.add_volume(
            catalog, name, size, zero=zero, region_size=self._group.region_size))

    def snapshot_all(self, name: str, *, volumes: list[Volume | str] | None = None, early: bool = False) -> None:
        """See :meth:`Group.snapshot`. ``early``: as of :meth:`early_snapshot`; one command for each volume, and one."""
        def make(catalog: Catalog) -> Operation:
            chosen = volumes if volumes is not None else [entry.name for entry in catalog if entry.kind == VOLUME]
            origins = [self._name(volume, catalog) for volume in chosen]
            return operations.snapshot(catalog, origins, [f"{origin}-{name}" for origin in origins])

        self._add(make)
        if early:
            self._early.append(_travel(lambda catalog: plan_snapshots(self._group, catalog, name, volumes)))

    def restore_all(self, name: str, *, volumes: list[Volume | str] | None = None, early: bool = False) -> None:
        """See :meth:`Group.restore`. ``early``: as of :meth:`early_restore`; one command for each volume, and one."""
        self._add(wide(self._group, "restore", name, volumes))
        if early:
            self._early.append(_travel(lambda catalog: plan_restores(self._group, catalog, name, volumes)))

    def refresh_all(self, name: str, *, volumes: list[Volume | str] | None = None) -> None:
        """See :meth:`Group.refresh`."""
        self._add(wide(self._group, "refresh", name, volumes))

    def clone_all(
        self, name: str, *, snapshot: str | None = None, volumes: list[Volume | str] | None = None
    ) -> None:
        """See :meth:`Group.clone`."""
        self._add(wide(self._group, "clone", name, volumes, snapshot))

    def delete_all(self, name: str, *, volumes: list[Volume | str] | None = None) -> None:
        """See :meth:`Group.delete_snapshots`."""
        self._add(wide(self._group, "delete", name, volumes))

    def mark(self, name: str, payload: bytes = b"") -> None:
        """See :meth:`Group.mark`."""
        self._add(lambda _: operations.mark(name, payload))

    def __enter__(self) -> Explanation:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not self._open:
            return
        self._open = False
        if kind is None:
            if self._early and len(self._makers) > 1:
                raise UsageError("an early operation is no member of a set: ask for it alone")
            early = self._early[0] if self._early else None
            self._result = explain(self._group, self._makers, early, self._timeout)


def _travel(plan: Callable[[Catalog], list[Part]]) -> Callable[[Catalog], list[Operation]]:
    """What travels of an early operation of several volumes."""
    def travels(catalog: Catalog) -> list[Operation]:
        beside, begun = catalog.copy(), list[tuple[operations.Early, str]]()
        for number, part in enumerate(plan(catalog), 1):
            begun.append((part.begin(beside, number.to_bytes(TICKET, "big")), part.name))
            begun[-1][0].apply(beside)
        return [*(early for early, _ in begun), operations.adopt_all(beside, begun)]

    return travels


def explain(
    group: Group, makers: list[Callable[[Catalog], Operation]],
    early: Callable[[Catalog], list[Operation]] | None, timeout: float | None,
) -> dict[str, Any]:
    """See :meth:`Group.explain`. ``early``: what travels, if that is not the operation itself."""
    lsn = group.wait(timeout=timeout)
    try:
        return _explain(group, makers, early, lsn)
    except Exception as error:
        raise group.failure(error, f"group {group.name!r}: explaining an operation") from error


def _explain(
    group: Group, makers: list[Callable[[Catalog], Operation]],
    early: Callable[[Catalog], list[Operation]] | None, lsn: int,
) -> dict[str, Any]:
    site = group.site
    catalog = site.end.catalog.copy()
    operation = makers[0](catalog) if len(makers) == 1 else operations.unordered(catalog, makers)
    if site.ordering == STRICT and operations.is_unordered(operation):
        raise Refused(
            f"group {group.name!r} was made with strict ordering, and refuses a set: ask for one operation",
            reason="ordering",
        )
    travels = [operation] if early is None else early(catalog)
    effects = operation.effects(group.region_size)
    try:
        changed = int(site.exclusive(lambda: site.shelf.count_changed(effects))) * group.region_size
    except KeyError as error:
        raise NotFound(f"store {error} was deleted meanwhile, or is not made yet: ask again") from error
    return {
        "lsn": lsn,
        "kind": operation.kind,
        "bytes_changed": changed,
        "links": [_on_link(group, link, travels, lsn, changed) for link in group.links],
    }


def _on_link(group: Group, link: Attachment, travels: list[Operation], lsn: int, changed: int) -> dict[str, Any]:
    status = link.status()
    cost = _cost(link, travels, lsn)
    size = group.region_size
    return {
        "name": link.name,
        "state": status["state"],
        "consistent": status["consistent"],
        "performed_as": cost.performed_as,
        "command_bytes": cost.command_bytes,
        "lag_bytes": status["lag_bytes"],
        "divergent_bytes": cost.before * size,
        "divergent_bytes_after": cost.after * size,
        "bytes_added": cost.added * size,
        "bytes_removed": cost.removed * size,
        "bytes_if_refused": cost.refused * size if cost.refused is not None else None,
        "last_refused": next(iter(status["refused"][-1:]), None) if cost.refused is not None else None,
        "bytes_avoided": changed,
        "unsettles": cost.unsettles,
    }


def _cost(link: Attachment, travels: list[Operation], lsn: int) -> Cost:
    for _ in range(TRIES):
        forecast: Forecast = link.forecast()
        try:
            forecast.reach(lsn)
        except LookupError:
            continue
        return forecast.cost(*travels)
    raise Refused(
        f"the journal drops what link {link.name!r} lacks faster than it is read: ask again",
        reason="busy",
        retryable=True,
    )
