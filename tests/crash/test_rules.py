"""The rules of the crash model, one by one switched off in the engine: power loss must then be found out by the enumerator.

The names are those of the model (docs/recovery.md lists where the code keeps each). A rule that cannot be missed here is either
not needed or not tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pyrepl import notes
from pyrepl._core.device import Device
from pyrepl._core.window import Entry
from pyrepl.applier import Applier
from pyrepl.catalog import Catalog
from pyrepl.journal import Journal
from pyrepl.operations import Effect
from pyrepl.site import Site
from tests.support.simulation import SimulatedDevice
from tests.support.story import Story

SEEDS = range(1000, 1040)


def is_found_out() -> bool:
    for seed in SEEDS:
        try:
            Story(seed).run(160, 0.15, 3)
        except Exception:  # whatever it is that fails
            return True
    return False


def stage(*, flush: bool = True, note: bool = True, durable: bool = True) -> Callable[[Applier, int], None]:
    """Applier._stage with rules left out."""
    def run(self: Applier, number: int) -> None:
        if self.epoch.copy(number) and flush:
            self.stores.flush()
        body = self.epoch.note(number)
        if body and note:
            position = self.window.append_note(notes.MAP, body)
            if durable:
                self.window.make_durable(position)
        self.epoch.repoint(number)
    return run


def perform(*, flush: bool = True, durable: bool = True) -> Callable[..., int]:
    """Applier._perform with rules left out."""
    def run(self: Applier, entry: Entry, body: bytes, effects: list[Effect], catalog: Catalog, *, is_item: bool) -> int:
        names = {store.id: store.name for store in catalog}
        placed, scratch, size = self.shelf.prepare(effects, self.site.reserved, names)
        if flush:
            self.stores.flush()
        note = notes.Performed(entry.next_position, entry.last_lsn, is_item, body, placed, scratch, size)
        position = self.window.append_note(notes.PERFORMED, notes.encode(note))
        if durable:
            self.window.make_durable(position)
        changed = self.shelf.perform(effects, placed, scratch, size)
        for p in placed:
            self.site.reserved.pop(p.store, None)
        return changed
    return run


def checkpoint_in_one_area(self: Journal, body: bytes, **numbers: int) -> int:
    first = self.superblock["area_offset"][0]
    self.superblock = {**self.superblock, "area_offset": (first, first)}
    return write_checkpoint(self, body, **numbers)


class Unflushed:
    """A device whose flush is left out."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)

    def flush(self) -> None:
        """Nothing."""


def checkpoint_not_durable(self: Journal, body: bytes, **numbers: int) -> int:
    device = self.device
    self.device = Unflushed(device)  # type: ignore[assignment]
    try:
        return write_checkpoint(self, body, **numbers)
    finally:
        self.device = device


def flush_only_journal(self: SimulatedDevice) -> None:
    self.world.tick("flush", self.name)
    if self.name == "journal":
        self.disk.flush()


def flush_only_stores(self: SimulatedDevice) -> None:
    self.world.tick("flush", self.name)
    if self.name != "journal":
        self.disk.flush()


def tail_before(self: Site) -> None:
    """Site._checkpoint with the tail moved before the checkpoint is durable, and the space used at once."""
    self.window.set_tail(self.window.state().applied_position)
    for _ in range(self.journal.log_size // 4096 // 4):
        state = self.window.state()
        if state.end_position - state.tail_position > self.journal.log_size // 2:
            break
        self.window.write_out(self.window.append_note(99, b"use the space"))
    checkpoint(self)


write_checkpoint = Journal.write_checkpoint
checkpoint = Site._checkpoint

RULES: dict[str, tuple[type, str, Any]] = {
    "epoch_flush, mover_flush": (Applier, "_stage", stage(flush=False)),
    "full_note": (Applier, "_stage", stage(note=False)),
    "epoch_note, mover_note": (Applier, "_stage", stage(durable=False)),
    "op_flush": (Applier, "_perform", perform(flush=False)),
    "op_durable": (Applier, "_perform", perform(durable=False)),
    "ckpt_area": (Journal, "write_checkpoint", checkpoint_in_one_area),
    "ckpt_fence": (Journal, "write_checkpoint", checkpoint_not_durable),
    "ckpt_flush": (SimulatedDevice, "do_flush", flush_only_journal),
    "journal_first, acknowledged flush": (SimulatedDevice, "do_flush", flush_only_stores),
    "tail_after": (Site, "_checkpoint", tail_before),
}


def test_nothing_is_found_with_all_rules_on() -> None:
    assert not is_found_out()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", RULES)
def test_rule_off_is_found_out(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, broken = RULES[rule]
    monkeypatch.setattr(owner, name, broken)
    assert is_found_out(), f"{rule} is off, and {len(SEEDS)} histories did not notice"
