"""Early operations as users of the package hold them: secondaries perform it first, the primary when it is told to.

Decides how long somebody waits, and that what is not performed is given up. What it means is ``operations.early``, what
differs behind it ``knowledge``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pyrepl import operations
from pyrepl.catalog import VOLUME, check_name
from pyrepl.errors import NotFound, PyreplError, Refused, UsageError, WaitTimeout
from pyrepl.image import Image
from pyrepl.results import OperationResult, check_timeout
from pyrepl.roles import PRIMARY

if TYPE_CHECKING:
    from pyrepl.catalog import Catalog
    from pyrepl.group import Group
    from pyrepl.volume import Snapshot, Store, Volume

LOOK_EVERY = 0.005  # seconds between two looks at what secondaries have performed


class Part(NamedTuple):
    """What of an early operation is done to one store: how it is begun, given a ticket; the name of the snapshot."""

    begin: Callable[[Catalog, bytes], operations.Early]
    name: str


class EarlyOperation:
    """A snapshot or a restore that the secondaries perform before this site does, of a store or of several volumes.
    Made by :meth:`Store.begin_snapshot`, :meth:`Volume.begin_restore`, :meth:`Group.begin_snapshot` and
    :meth:`Group.begin_restore`; a context manager, which gives it up if it was not performed. A restart of this site
    gives it up, too.

    Attributes:
        lsn: where secondaries perform it; of several volumes, the last of them: they stand one after the other.
        kind: ``snapshot`` or ``restore``.
    """

    def __init__(
        self, group: Group, plan: Callable[[Catalog], Sequence[Part]], *, wide: bool = False,
        told: Callable[[OperationResult], None] | None = None,
    ) -> None:
        """``plan``: judges all parts, and tells them; all of them are begun, or none. ``wide``: they are performed as
        one of the group. ``told``: completes the result."""
        self._group, self._wide, self._told = group, wide, told
        self._early: list[tuple[operations.Early, str]] = []
        self._left: list[operations.Early] = []  # that would have to be given up
        self._over = False
        try:
            self.lsn = self._begin(plan)
            group.flush()  # only what is durable is sent
        except BaseException:
            with suppress(PyreplError):
                self.cancel()
            raise
        self.kind = "restore" if self._early[0][0].target else "snapshot"

    def _begin(self, plan: Callable[[Catalog], Sequence[Part]]) -> int:
        parts, lsn, number = list[Part](), 0, 0
        while not parts or number < len(parts):
            made = list[operations.Early]()

            def make(catalog: Catalog, number: int = number, made: list[operations.Early] = made) -> operations.Early:
                if not number:
                    parts[:] = plan(catalog)
                made[:] = [parts[number].begin(catalog, os.urandom(operations.TICKET))]
                return made[0]

            lsn = self._group.operate(make, wait=False).lsn
            self._early.append((made[0], parts[number].name))
            self._left.append(made[0])
            number += 1
        return lsn

    @property
    def is_over(self) -> bool:
        """Whether it was performed here, or given up."""
        return self._over

    def wait(self, timeout: float | None = None) -> list[str]:
        """Returns when every secondary that is connected has performed it; the names of their links. One that is not
        connected performs it in its place in the order, just before what follows.

        Raises:
            WaitTimeout: the text says who has not.
        """
        return self._wait(timeout, "it goes on")

    def _wait(self, timeout: float | None, then: str) -> list[str]:
        check_timeout(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._group.check()
            links = [link.status() for link in self._group.links]
            late = [link for link in links if link["connected"] and link["applied_lsn"] < self.lsn]
            if not late:
                return [link["name"] for link in links if link["connected"]]
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeout(
                    f"group {self._group.name!r}: link {late[0]['name']!r} has not performed the {self.kind} at LSN "
                    f"{self.lsn} after {timeout:g} s (a site that is delayed performs it later); {then}",
                    lsn=self.lsn, link=late[0]["name"])
            time.sleep(LOOK_EVERY)

    def perform(self, *, wait: bool = True, timeout: float | None = None) -> OperationResult:
        """This site performs it. What changed at its stores since :attr:`lsn` is copied to the secondaries, and nothing
        else.

        Raises:
            Refused: it was performed or given up.
            Exists, NotFound, UsageError: the name is taken; a store is gone, or was resized: give it up. Of several
                volumes, none was performed.
        """
        if self._over or len(self._left) < len(self._early):
            raise Refused(f"the {self.kind} at LSN {self.lsn} was performed here or given up", reason="state",
                          lsn=self.lsn)
        result = self._group.operate(self._adopt, wait=False)
        self._over = True
        if self._told is not None:
            self._told(result)
        if wait:
            result.wait(PRIMARY, timeout)
        return result

    def _adopt(self, catalog: Catalog) -> operations.Operation:
        if self._wide:
            return operations.adopt_all(catalog, self._early)
        return operations.adopt(catalog, *self._early[0])

    def at_once(self, *, wait: bool, timeout: float | None) -> OperationResult:
        """Waits for the secondaries, then performs it; given up if that cannot be.

        Raises:
            WaitTimeout: the secondaries have not performed it in time: it was given up; or this site has not.
            Refused, Exists, NotFound, UsageError: as of :meth:`perform`; it was given up.
        """
        with self:
            then = "it is given up: nothing is performed here, what secondaries have done is taken back"
            if self.kind == "restore":
                what = "each volume, whole," if len(self._early) > 1 else "the whole volume"
                then += f", by copying {what} to each that has performed it"
            early = self._wait(timeout, then)
            result = self.perform(wait=wait, timeout=timeout)
            result.details = {"early": len(early)}
            return result

    def cancel(self) -> None:
        """It will not be performed here: what secondaries have done is taken back. Of a restore by copying, the whole
        volume, to each that has performed it. Harmless when it is over."""
        if self._over:
            return
        if self._group.role != PRIMARY:
            self._over = True  # whoever leads now gives it up
            return
        failed: PyreplError | None = None
        for early in [*self._left]:
            try:
                self._forgo(early)
            except PyreplError as error:
                failed = failed or error  # the others are given up all the same
            else:
                self._left.remove(early)
        if failed is not None:
            raise failed
        self._over = True

    def _forgo(self, early: operations.Early) -> None:
        with suppress(NotFound):  # another site has led meanwhile, and has given it up
            self._group.operate(lambda catalog: operations.forgo(catalog, early), wait=False)

    def __enter__(self) -> EarlyOperation:
        return self

    def __exit__(self, *args: object) -> None:
        try:
            self.cancel()
        except PyreplError:
            if args[0] is None:
                raise

    def __repr__(self) -> str:
        return f"<EarlyOperation {self.kind} at LSN {self.lsn} of group {self._group.name!r}>"


def begin_snapshot(store: Store, name: str) -> EarlyOperation:
    """See :meth:`Store.begin_snapshot`."""
    group = store.group

    def plan(catalog: Catalog) -> list[Part]:
        operations.snapshot(catalog, [group.name_of(store, catalog)], [name])  # what it will need is there now
        return [Part(lambda catalog, ticket: operations.early_snapshot(
            catalog, group.name_of(store, catalog), ticket, region_size=group.region_size), name)]

    return EarlyOperation(group, plan)


def begin_snapshots(
    group: Group, name: str, volumes: Sequence[Volume | str] | None, told: Callable[[OperationResult], None]
) -> EarlyOperation:
    """See :meth:`Group.begin_snapshot`."""
    return EarlyOperation(group, lambda catalog: plan_snapshots(group, catalog, name, volumes), wide=True, told=told)


def begin_restores(group: Group, name: str, volumes: Sequence[Volume | str] | None) -> EarlyOperation:
    """See :meth:`Group.begin_restore`."""
    return EarlyOperation(group, lambda catalog: plan_restores(group, catalog, name, volumes), wide=True)


def plan_snapshots(group: Group, catalog: Catalog, name: str, volumes: Sequence[Volume | str] | None) -> list[Part]:
    """The parts of an early snapshot of these volumes, or of all.

    Raises:
        Refused: there is no volume; too many stores.
        NotFound, Exists, UsageError: no such volume; a name is taken, or none; one is given twice.
    """
    check_name(name)
    chosen = _chosen(group, catalog, volumes)
    if not chosen:
        raise Refused(f"group {group.name!r} has no volume to take a snapshot of: add one first", reason="empty")
    names = [f"{volume}-{name}" for volume in chosen]
    operations.snapshot(catalog, chosen, names)  # what it will need is there now
    operations.check_adopted(len(catalog.stores) + len(chosen), len(chosen))
    return [Part(_begin_snapshot(group, volume), full) for volume, full in zip(chosen, names, strict=True)]


def plan_restores(group: Group, catalog: Catalog, name: str, volumes: Sequence[Volume | str] | None) -> list[Part]:
    """The parts of an early restore of these volumes, or of all, from their snapshots of that name.

    Raises:
        Refused, NotFound, UsageError: as of a restore of the group.
    """
    check_name(name)
    chosen = _chosen(group, catalog, volumes)
    operations.restore_all(catalog, name, chosen, region_size=group.region_size)
    return [Part(_begin_restore(group, volume, f"{volume}-{name}"), "") for volume in chosen]


def _chosen(group: Group, catalog: Catalog, volumes: Sequence[Volume | str] | None) -> list[str]:
    if volumes is None:
        return [entry.name for entry in catalog if entry.kind == VOLUME]
    return [group.name_of(volume, catalog) for volume in volumes]


def _begin_snapshot(group: Group, volume: str) -> Callable[[Catalog, bytes], operations.Early]:
    return lambda catalog, ticket: operations.early_snapshot(catalog, volume, ticket, region_size=group.region_size)


def _begin_restore(group: Group, volume: str, snapshot: str) -> Callable[[Catalog, bytes], operations.Early]:
    return lambda catalog, ticket: operations.early_restore(
        catalog, volume, snapshot, ticket, region_size=group.region_size)


def begin_restore(volume: Volume, snapshot: Snapshot | Image | str) -> EarlyOperation:
    """See :meth:`Volume.begin_restore`."""
    group = volume.group
    check_source(group, snapshot)
    return EarlyOperation(group, lambda catalog: [Part(_begin_restore(
        group, group.name_of(volume, catalog), group.name_of(snapshot, catalog)), "")])  # type: ignore[arg-type]


def check_source(group: Group, snapshot: Snapshot | Image | str) -> None:
    """Whether a volume can be restored from it early.

    Raises:
        UsageError: it is an image.
    """
    if isinstance(snapshot, Image) or snapshot in group.site.gallery.images:
        raise UsageError("an image is not restored from early: each site has its own")


def check_early(*, verify: bool, part: bool = False) -> None:
    """Whether an operation can be early.

    Raises:
        UsageError: no.
    """
    if verify or part:
        raise UsageError("an early operation is of a whole store, and is not compared: leave "
                         f"{'verify' if verify else 'the extent'} out")
