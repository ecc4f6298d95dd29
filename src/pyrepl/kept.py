"""Snapshots that one site keeps by itself, over restarts: what it showed before it had to go back to another history.

Decides how users of the package hold them: read-only, named ``<store>-<label>``, until they are deleted. They are in no
stream and in no catalog. When something is kept is ``roles``' decision, how it is kept is ``views``'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrepl.errors import NotFound, some_of
from pyrepl.volume import View, digest_of

if TYPE_CHECKING:
    from pyrepl.catalog import View as ViewEntry
    from pyrepl.group import Group

KEPT = "kept"


def kept_of(group: Group) -> list[KeptSnapshot]:
    """See :attr:`Group.kept`."""
    from pyrepl.views import PROTECTIVE

    group.check()
    views, protective = group.site.views, group.site.protective.status() is not None  # else it is about to go
    entries = (*views.kept(), *(views.kept(PROTECTIVE) if protective else ()))
    return [KeptSnapshot(group, entry) for entry in entries]


def find_kept(group: Group, name: str) -> KeptSnapshot:
    """See :meth:`Group.kept_snapshot`."""
    kept = {snapshot.name: snapshot for snapshot in kept_of(group)}
    try:
        return kept[name]
    except (KeyError, TypeError):
        some = some_of(kept)
        raise NotFound(f"group {group.name!r} has no kept snapshot {name!r} (it has: {some})", name=name) from None


class KeptSnapshot(View):
    """What a store showed at one LSN of a history that this site has left. Found by :attr:`Group.kept`.

    Attributes:
        id: its number, at this site only.
        origin: name of the store, then.
        label: of all that was kept at the same moment: ``lost-<generation>``.
        lsn: the last event that it shows, in the history that was left.
        size: bytes.
    """

    kind = KEPT

    def __init__(self, group: Group, entry: ViewEntry) -> None:
        super().__init__(group, None, entry)
        self.origin = entry.name
        self.label = entry.label

    @property
    def name(self) -> str:
        """``<store>-<label>``."""
        return f"{self.origin}-{self.label}"

    @property
    def device(self) -> str | None:
        """The path of its device at this site."""
        place = self._site.shelf.places.get(self.id)
        return place.path if place is not None else None

    def digest(self, offset: int, length: int) -> bytes:
        """XXH3-128 of ``length`` bytes from ``offset`` on, 16 bytes. Errors as of :meth:`read`."""
        return digest_of(self, offset, length)

    def delete(self) -> None:
        """It is kept no longer, at this site; its space is given back. Harmless the second time."""
        self.close()

    def __repr__(self) -> str:
        return f"<KeptSnapshot {self.name!r} of group {self._group.name!r}>"
