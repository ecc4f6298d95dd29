"""A group comes to be: its journal is formatted, or found and recovered.

Decides what is undone when that fails, and that a group which cannot be recovered is a failed group, not an error of
its node. What a site is made of is ``site``'s.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyrepl.border import typed
from pyrepl.errors import Exists
from pyrepl.group import Group
from pyrepl.journal import Journal
from pyrepl.options import SiteOptions
from pyrepl.runtime.contents import check_blank
from pyrepl.runtime.hooks import Hook
from pyrepl.runtime.placement import PATIENCE, FilePlacement, check_free, left_of, make_journal, open_patiently
from pyrepl.site import Site

Emit = Callable[[dict[str, Any]], None]


def create_group(
    name: str,
    journal: str,
    *,
    journal_size: int | None,
    role: str,
    ordering: str,
    node_id: bytes,
    folder: Path,
    options: SiteOptions,
    force: bool,
    emit: Emit,
    hooks: Sequence[Hook] = (),
) -> Group:
    """Formats a journal; see :meth:`Node.create_group`."""
    made = False
    try:
        left = left_of("", folder)
        if left:
            raise Exists(
                f"{folder} holds files of a group {name!r} that this node has forgotten, as {left[0]}: import its "
                f"journal (`pyrepl group import`), move them away, or choose another name",
                name=name,
            )
        if journal_size is not None:
            make_journal(journal, journal_size)
            made = True
        check_free(journal)
        device = open_patiently(journal, 0.0)
        try:
            if not force:
                check_blank(device)
            placement = FilePlacement(folder, alignment=options.alignment)
            site = Site.create(
                device,
                name=name,
                node_id=node_id,
                role=role,
                options=options,
                placement=placement,
                entropy=os.urandom,
                created_ns=time.time_ns(),
                ordering=ordering,
            )
        except BaseException:
            device.close()
            raise
        return Group(name, site=site, placement=placement, emit=emit, hooks=hooks)
    except BaseException as error:
        if made:
            os.unlink(journal)
        if isinstance(error, Exception):
            raise typed(error, f"making group {name!r} on {journal}", group=name) from error
        raise


def open_group(
    name: str,
    journal: str,
    *,
    node_id: bytes,
    folder: Path,
    emit: Emit,
    adopt: bool = False,
    ask: bool = False,
    hooks: Sequence[Hook] = (),
) -> Group:
    """Recovers a group. One that cannot be is returned failed: every call raises why. ``adopt``, ``ask``: see
    Site."""
    placement = FilePlacement(folder, alignment=4096)
    try:
        device = open_patiently(journal, PATIENCE)
        try:
            placement = FilePlacement(folder, alignment=Journal.find(device).alignment)
            site = Site.open(device, node_id=node_id, placement=placement, entropy=os.urandom, adopt=adopt,
                             ask=ask)
        except BaseException:
            device.close()
            raise
        shelf = site.shelf
        placement.sweep(
            {place.path for place in shelf.places.values()}
            | set(shelf.zombies.values())
            | set(shelf.graveyard)
            | ({shelf.scratch.path} if shelf.scratch is not None else set())
        )
        group = Group(name, site=site, placement=placement, emit=emit, hooks=hooks)
        group.abandon_unfinished()
        return group
    except Exception as error:
        placement.close()
        fault = typed(error, f"opening group {name!r} on {journal}", group=name)
        fault.__cause__ = error
        traceback.clear_frames(error.__traceback__)  # they hold the devices that were opened so far
        emit({"event": "group-failed", "group": name, "error": fault.code, "text": str(fault)})
        return Group(name, site=None, placement=placement, emit=emit, fault=fault)
