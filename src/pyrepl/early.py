"""Early operations as users of the package hold them: secondaries perform it first, the primary when it is told to.

Decides how long somebody waits, and that what is not performed is given up. What it means is ``operations.early``, what
differs behind it ``knowledge``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pyrepl import operations
from pyrepl.errors import NotFound, PyreplError, Refused, UsageError, WaitTimeout
from pyrepl.image import Image
from pyrepl.results import OperationResult, check_timeout
from pyrepl.roles import PRIMARY

if TYPE_CHECKING:
    from pyrepl.catalog import Catalog
    from pyrepl.group import Group
    from pyrepl.volume import Snapshot, Store, Volume

LOOK_EVERY = 0.005  # seconds between two looks at what secondaries have performed


class EarlyOperation:
    """A snapshot or a restore that the secondaries perform before this site does. Made by
    :meth:`Store.begin_snapshot` and :meth:`Volume.begin_restore`; a context manager, which gives it up if it was not
    performed. A restart of this site gives it up, too.

    Attributes:
        lsn: where secondaries perform it.
        kind: ``snapshot`` or ``restore``.
    """

    def __init__(self, store: Store, begin: Callable[[Catalog, bytes], operations.Early], name: str = "") -> None:
        self._store, self._name = store, name
        group = self._group = store.group
        ticket, made = os.urandom(16), list[operations.Early]()

        def make(catalog: Catalog) -> operations.Early:
            made[:] = [begin(catalog, ticket)]
            return made[0]

        result = group.operate(make, wait=False)
        self._early = made[0]
        self._over = False
        self.lsn = result.lsn
        self.kind = "restore" if self._early.target else "snapshot"
        group.flush()  # only what is durable is sent

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
            Exists, NotFound, UsageError: the name is taken; a store is gone, or was resized: give it up.
        """
        if self._over:
            raise Refused(f"the {self.kind} at LSN {self.lsn} was performed here or given up", reason="state",
                          lsn=self.lsn)
        result = self._group.operate(lambda catalog: operations.adopt(catalog, self._early, self._name), wait=False)
        self._over = True
        if wait:
            result.wait(PRIMARY, timeout)
        return result

    def at_once(self, *, wait: bool, timeout: float | None) -> OperationResult:
        """Waits for the secondaries, then performs it; given up if that cannot be.

        Raises:
            WaitTimeout: the secondaries have not performed it in time: it was given up; or this site has not.
            Refused, Exists, NotFound, UsageError: as of :meth:`perform`; it was given up.
        """
        with self:
            then = "it is given up: nothing is performed here, what secondaries have done is taken back"
            if self.kind == "restore":
                then += ", by copying the whole volume to each that has performed it"
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
        with suppress(NotFound):  # another site has led meanwhile, and has given it up
            self._group.operate(lambda catalog: operations.forgo(catalog, self._early), wait=False)
        self._over = True

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

    def begin(catalog: Catalog, ticket: bytes) -> operations.Early:
        operations.snapshot(catalog, [group.name_of(store, catalog)], [name])  # what it will need is there now
        return operations.early_snapshot(
            catalog, group.name_of(store, catalog), ticket, region_size=group.region_size)

    return EarlyOperation(store, begin, name)


def begin_restore(volume: Volume, snapshot: Snapshot | Image | str) -> EarlyOperation:
    """See :meth:`Volume.begin_restore`."""
    group = volume.group
    check_source(group, snapshot)
    return EarlyOperation(
        volume,
        lambda catalog, ticket: operations.early_restore(
            catalog, group.name_of(volume, catalog), group.name_of(snapshot, catalog), ticket,  # type: ignore[arg-type]
            region_size=group.region_size),
    )


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
