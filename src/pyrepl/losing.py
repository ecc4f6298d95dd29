"""What a site would lose if it were told to lose a split brain (:meth:`Group.loss`); nothing is changed by asking.

The journal of the site that loses tells it: the events after the fork. Of the other site this one knows only how far it
was when they met. Decides nothing; what is kept, and under which names, is ``roles``' decision.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyrepl._core import batch
from pyrepl.history import History, Overtaken

if TYPE_CHECKING:
    from pyrepl.group import Group


def loss(group: Group, loser: str) -> dict[str, Any]:
    """See :meth:`Group.loss`."""
    link = group.changeover.find_loser(loser)
    return _here(group) if link is None else _there(group, link.name, link.status()["peer"])


def _there(group: Group, link: str, node: str | None) -> dict[str, Any]:
    """The secondary of a link loses."""
    met = next((one for one in group.site.roles.split_brain() if one["node"] == node or one["link"] == link), None)
    known = {"fork_lsn": met["fork_lsn"], "lsn": met["there_lsn"]} if met is not None else {}
    return _unknown(link) | known


def _here(group: Group) -> dict[str, Any]:
    """This site loses."""
    site = group.site
    told = _unknown("here") | {"lsn": site.window.state().end_lsn}
    forks = [one["fork_lsn"] for one in site.roles.split_brain()]
    if not forks:
        return told
    fork = min(forks)
    told["fork_lsn"] = fork
    with suppress(Overtaken):  # writers are faster than who reads the journal: it is not told
        told |= _written(group, fork)
    told["kept"] = [f"{name}-{label}" for name, label in site.roles.tail_to_keep(fork)]
    return told


def _unknown(loser: str) -> dict[str, Any]:
    return {"loser": loser, "fork_lsn": None, "lsn": None, "since": None, "whole": False, "stores": None,
            "operations": None, "kept": None}  # fmt: skip


def _written(group: Group, fork: int) -> dict[str, Any]:
    """What stands in the journal after the fork."""
    site = group.site
    history = History.find(site.journal, site.write_out)
    stores: dict[int, int] = {}
    count, since = 0, 0
    for one in history.after(fork):
        since = since or one.time_ns
        if one.operation is not None:
            count += 1
            continue
        for lsn, record in enumerate(batch.records(one.head), one.first_lsn):
            if lsn > fork:
                stores[record.store] = stores.get(record.store, 0) + record.length
    names = {store.id: store.name for store in site.end.catalog}
    return {
        "since": since / 1e9 if since else None,
        "whole": history.first_lsn <= fork,
        "stores": [{"store": names.get(store, f"store {store}, deleted since"), "bytes": length}
                   for store, length in sorted(stores.items())],
        "operations": count,
    }
