"""Whether a node really works: the applier of every group answers.

A question is put between two steps of each group's applier, by a thread of its own, for an applier that hangs answers
nobody. A group that has failed is not asked: it says so itself, and a restart of all groups would not heal its disk.
Decides what "alive" means to systemd's watchdog. Must not know systemd.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyrepl.group import Group
    from pyrepl.node import Node

EVERY = 0.5  # seconds between an answer and the next question


class Health:
    """Asks the groups of a node until :meth:`stop`.

    Args:
        node: its groups may come and go.
        patience: seconds without an answer after which a group counts as hanging.
    """

    def __init__(self, node: Node, patience: float) -> None:
        self._node = node
        self._patience = patience
        self._answered: dict[Group, float] = {}
        self._stopping = threading.Event()

    def hanging(self) -> list[str]:
        """The names of the groups whose applier does not answer; empty: all is well. Groups that are new are asked
        from here on."""
        now = time.monotonic()
        for group in self._node.groups:
            if group not in self._answered and group.fault is None:
                self._answered[group] = now
                name = f"pyrepl-health-{group.name}"
                threading.Thread(target=self._ask, args=(group,), name=name, daemon=True).start()
        return [
            group.name
            for group, answered in list(self._answered.items())
            if now - answered > self._patience and group.fault is None
        ]

    def stop(self) -> None:
        """Asks no more."""
        self._stopping.set()

    def _ask(self, group: Group) -> None:
        while not self._stopping.is_set():
            try:
                group.site.exclusive(int)  # nothing, between two steps
            except Exception:
                break  # it has failed, or was closed
            self._answered[group] = time.monotonic()
            self._stopping.wait(EVERY)
        self._answered.pop(group, None)
