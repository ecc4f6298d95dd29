"""How an operation gets its place in the order of a group: who may give one, and one at a time.

Decides what is looked at before, and that devices which an operation brings are given back if it is not admitted. Must
not know what an operation means (``operations``), nor how it is performed (``applier``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from pyrepl.catalog import Catalog
from pyrepl.errors import PyreplError, Refused
from pyrepl.operations import Operation
from pyrepl.results import OperationResult, check_timeout
from pyrepl.roles import PRIMARY
from pyrepl.runtime.placement import FilePlacement, path_of
from pyrepl.site import Admission

if TYPE_CHECKING:
    from pyrepl.group import Group

T = TypeVar("T")


class Admissions:
    """Of one group, whose ``admission`` is the lock."""

    def __init__(self, group: Group, placement: FilePlacement) -> None:
        self._group = group
        self._placement = placement
        self._refused: Counter[str] = Counter()  # operations by kind that were not admitted

    def operate(
        self,
        make: Callable[[Catalog], Operation],
        devices: Mapping[str, str] | None,
        verify: bool,
        wait: bool,
        timeout: float | None,
    ) -> OperationResult:
        """See :meth:`Group.operate`."""
        group = self._group
        group.check()
        check_timeout(timeout)
        site = group.site
        group.require_primary()
        if verify:
            return group.comparisons.operate(make, devices, wait, timeout)
        kind = "none"

        def admit(paths: dict[str, str]) -> Admission:
            nonlocal kind
            operation = make(site.end.catalog)
            kind = operation.kind
            return site.admit(operation, paths)

        try:
            with group.border("admitting an operation"):
                with group.admission:
                    admission = self.reserving(devices, admit)
                group.hurry()
                site.window.commit(admission.lsn)
        except PyreplError:
            with group.admission:
                self._refused[kind] += 1
            raise
        result = OperationResult(group, admission)
        group.emit(
            {
                "event": "operation",
                "group": group.name,
                "kind": result.kind,
                "lsn": result.lsn,
                "created": sorted(result.created),
            }
        )
        if wait:
            result.wait(timeout=timeout)
        return result

    def reserving(self, devices: Mapping[str, str] | None, admit: Callable[[dict[str, str]], T]) -> T:
        """Takes given devices before the admission, and gives them back if it fails. With the lock."""
        paths = {name: path_of(path, "device") for name, path in (devices or {}).items()}
        taken: list[str] = []
        try:
            for path in paths.values():
                self._placement.take(path)
                taken.append(path)
            return admit(paths)
        except BaseException:
            for path in taken:
                self._placement.give_back(path)
            raise

    def counts(self) -> dict[tuple[str, str], int]:
        """See :meth:`Group.operation_counts`."""
        performed = {(kind, "performed"): count for kind, count in self._group.site.applier.performed.copy().items()}
        return performed | {(kind, "refused"): count for kind, count in self._refused.copy().items()}

    def refusal(self, asking: bool) -> Refused:
        """Why events cannot get their place at this site: it does not lead. ``asking``: not yet."""
        group = self._group
        site = group.site
        if asking:
            return Refused(
                f"group {group.name!r} was started as primary, and asks first whether another site leads meanwhile: "
                f"{', '.join(site.roles.awaited) or 'all'} did not answer yet (see the status of the links). "
                f"It leads when all have; to promote it alone (`pyrepl promote {group.name} --alone`) asks nobody",
                reason="asking",
                retryable=True,
                group=group.name,
            )
        changing = site.role == PRIMARY  # it begins to lead, or steps down
        what = "is changing its role here: try again" if changing else (
            "is a secondary here: write, and make operations, at its primary")
        return Refused(f"group {group.name!r} {what}", reason="role", retryable=changing, group=group.name)
