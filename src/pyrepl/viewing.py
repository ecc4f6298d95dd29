"""The views of a group as it opens and closes them for its users: one after the other.

Decides which handle a view has, and that closing one of a group that is over is no error. Must not know how a view is
kept (``views``), nor how it is read (``volume``).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pyrepl.errors import PyreplError
from pyrepl.volume import Store, View

if TYPE_CHECKING:
    from pyrepl.catalog import View as ViewEntry
    from pyrepl.group import Group


class Viewing:
    """Of one group."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._lock = threading.Lock()

    def open(self, store: Store | str) -> View:
        """See :meth:`Group.open_view`."""
        group = self._group
        group.check()
        with group.border("opening a view"), self._lock:
            name = group.name_of(store, group.site.visible)
            found = group.store(name)
            made = group.site.views.open(found.id)
        return View(group, found, made)

    def open_all(self, stores: list[int]) -> list[ViewEntry]:
        """Views of these stores, by number, at one LSN: all of them, or none."""
        self._group.check()
        with self._group.border("opening views"), self._lock:
            return self._group.site.views.open_all(stores)

    def close(self, view: View) -> None:
        """See :meth:`View.close`."""
        try:
            with self._group.border(f"closing view {view.name!r}"), self._lock:
                self._group.site.views.close(view.id)
        except PyreplError:
            if self._group.fault is None:
                raise  # else a start closes what is open

    def close_all(self, views: list[ViewEntry]) -> None:
        """Harmless the second time, and after the group was closed."""
        for entry in views:
            self.close(View(self._group, None, entry))
