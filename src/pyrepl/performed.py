"""The operations of a group as they are listed: what was performed, when, from what, and what came of it elsewhere.

Decides how an operation is told. Those since the group was opened are the applier's results, with figures; the earlier
ones are read from the journal, which knows what, when, and what came of plug-ins, and no figures. Must not know how
operations are admitted.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyrepl import operations
from pyrepl.catalog import Catalog
from pyrepl.errors import PyreplError
from pyrepl.history import History
from pyrepl.operations import Created

if TYPE_CHECKING:
    from pyrepl.group import Group

_TOLD = ("state", "reason", "regions_compared", "regions_different")  # of a comparison, for each link


def performed(group: Group) -> list[dict[str, Any]]:
    """Since the group was opened, oldest first; see :meth:`Group.operations`."""
    names = {store.id: store.name for store in group.entries()}
    outcomes = group.attachments.outcomes()
    return [
        {
            "lsn": result.lsn,
            "kind": result.kind,
            "time": result.time_ns / 1e9 if result.time_ns else None,
            "seconds": result.seconds,
            "arguments": result.arguments,
            "bytes_changed": result.bytes_changed,
            "bytes_avoided": result.bytes_avoided,
            "secondaries": outcomes(result.lsn, result.refused_at),
            "refused": result.refused or None,
            "digest": result.digest.hex() or None,
            "failed": result.failed or None,
            "created": [names[store] for store in result.created if store in names],
            "members": [
                {
                    "kind": member.kind,
                    "bytes_changed": member.bytes_changed,
                    "digest": member.digest.hex() or None,
                    "failed": member.failed or None,
                    "created": [names[store] for store in member.created if store in names],
                }
                for member in result.members
            ],
            "verified": _verified(group, result.lsn),
        }
        for result in list(group.site.applier.results.values())
    ]


def written_down(group: Group) -> list[dict[str, Any]]:
    """All that the journal holds, as far as it can be read back, oldest first."""
    site, found = group.site, list[dict[str, Any]]()

    history = History.find(site.journal, site.write_out)
    secondaries = group.attachments.outcomes()
    present = {entry.id: entry.name for entry in group.entries()}
    names = {entry.id: entry.name for entry in site.end.catalog}
    held = [(one, one.operation) for one in history.batches_back() if one.operation is not None]
    outcomes = history.outcomes() if any(operations.works(operation) for _, operation in held) else {}
    for _, operation in held:
        made = Catalog()
        with suppress(PyreplError, LookupError):  # it changes a store that is not here: it made none
            operation.apply(made)
        names |= {store.id: store.name for store in made if store.id not in names}
    for one, operation in reversed(held):
        effects = operation.effects(group.region_size)
        created = {effect.store for effect in effects if isinstance(effect, Created)}
        came = outcomes.get(one.first_lsn, [])
        of = came[0] if came and isinstance(operations.plain(operation), operations.Perform) else operations.Outcome()
        found.append({
            "lsn": one.first_lsn,
            "kind": operation.kind,
            "time": one.time_ns / 1e9 if one.time_ns else None,
            "seconds": None,
            "arguments": operations.arguments(operations.plain(operation), names),
            "bytes_changed": None,
            "bytes_avoided": None,
            "secondaries": secondaries(one.first_lsn),
            "refused": None,
            "digest": of.said.hex() or None,
            "failed": of.failed or None,
            "created": [name for store, name in present.items() if store in created],
            "members": [],
            "verified": None,
        })
    return found


def _verified(group: Group, lsn: int) -> dict[str, Any] | None:
    links = group.comparisons.links(lsn)
    if links is None:
        return None
    return {name: {key: one[key] for key in _TOLD} for name, one in links.items()}
