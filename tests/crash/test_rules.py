"""Each rule of docs/ordering.md that Python code keeps, switched off alone in that code: the power-loss stories must notice.

A rule is switched off by changing its line. Where the line is not found the rule has moved: change the table here.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import Any

import pytest

from pyrepl import recovery
from pyrepl.applier import Applier
from pyrepl.journal import Journal
from pyrepl.site import Site
from tests.support.story import Story, Violation

SEEDS = range(300, 340)

OFF: dict[str, tuple[Any, str, list[tuple[str, str]]]] = {
    "journal_first": (
        Applier,
        "apply",
        [
            ("self.window.make_durable(state.end_position)", "self.window.write_out(state.end_position)"),
            ("self.epoch.gather(position, state.durable_position, limit)", "self.epoch.gather(position, state.end_position, limit)"),
        ],
    ),
    "epoch_flush": (Applier, "_stage", [("self.stores.flush()", "pass")]),
    "epoch_note": (Applier, "_stage", [("self.window.make_durable(", "(")]),
    "op_flush": (Applier, "_perform", [("self.stores.flush()", "pass")]),
    "op_durable": (Applier, "_perform", [("self.window.make_durable(", "(")]),
    "ckpt_flush": (Site, "_checkpoint", [("self.stores.flush()", "pass")]),
    "ckpt_fence": (Journal, "write_checkpoint", [("self.device.flush()", "pass")]),
    "ckpt_area": (Journal, "write_checkpoint", [("[sequence % 2]", "[0]")]),
    "rec_flush_journal": (recovery, "recover", [("journal.device.flush()", "pass")]),
}


def switch_off(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the function that keeps the rule by one that does not."""
    owner, name, changes = OFF[rule]
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    for old, new in changes:
        assert source.count(old) == 1, f"{rule}: {old!r} is not in {name}"
        source = source.replace(old, new)
    module = owner if inspect.ismodule(owner) else sys.modules[owner.__module__]
    assert rule in inspect.getsource(module), f"{module.__name__} does not name the rule {rule}"
    space: dict[str, Any] = dict(vars(module))
    exec(compile("from __future__ import annotations\n" + source, f"<without {rule}>", "exec"), space)
    monkeypatch.setattr(owner, name, space[name])
    if inspect.ismodule(owner):
        monkeypatch.setattr("pyrepl.site.recover", space[name])


def broken_at() -> int | None:
    """The first seed whose story does not hold."""
    for seed in SEEDS:
        sector, alignment = ((512, 512), (512, 4096), (4096, 4096))[seed % 3]
        try:
            Story(seed, sector_size=sector, alignment=alignment, region_size=(4096, 8192)[seed % 2]).run(
                steps=160, crash_rate=0.2, some=3
            )
        except Violation:
            return seed
    return None


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", OFF)
def test_stories_notice_that_the_rule_is_off(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    switch_off(rule, monkeypatch)
    assert broken_at() is not None, f"{len(SEEDS)} stories hold without {rule}"
