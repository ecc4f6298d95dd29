"""Rules of docs/ordering.md that Python code keeps, each switched off alone in that code: the stories must notice.

A rule is switched off by changing its line. Where the line is not found the rule has moved: change the table here.
"""

from __future__ import annotations

import inspect
import random
import sys
import textwrap
from typing import Any

import pytest

from pyrepl.applier import Applier
from pyrepl.journal import Journal
from pyrepl.site import Site
from pyrepl.views import Views
from tests.support.simulation import Disk, World, open_site
from tests.support.story import Story, ViewStory, Violation

SEEDS = range(300, 340)

OFF: dict[str, tuple[type, str, list[tuple[str, str]]]] = {
    "journal_first": (
        Applier,
        "apply",
        [
            ("self.window.make_durable(state.end_position)", "self.window.write_out(state.end_position)"),
            ("(position, min(old, state.durable_position), limit)", "(position, state.end_position, limit)"),
        ],
    ),
    "epoch_flush": (Applier, "_stage", [("self.stores.flush()", "pass")]),
    "epoch_note": (Applier, "_stage", [("self.window.make_durable(", "(")]),
    "op_flush": (Applier, "_perform", [("self.stores.flush()", "pass")]),
    "op_durable": (Applier, "_perform", [("self.window.make_durable(", "(")]),
    "ckpt_flush": (Site, "_checkpoint", [("self.stores.flush()", "pass")]),
    "ckpt_fence": (Journal, "write_checkpoint", [("self.device.flush()", "pass")]),
    "ckpt_area": (Journal, "write_checkpoint", [("[sequence % 2]", "[0]")]),
    "view_note": (Views, "_open_all", [("site.window.make_durable(", "(")]),
}


def switch_off(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the function that keeps the rule by one that does not."""
    owner, name, changes = OFF[rule]
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    for old, new in changes:
        assert source.count(old) == 1, f"{rule}: {old!r} is not in {name}"
        source = source.replace(old, new)
    module = sys.modules[owner.__module__]
    assert rule in inspect.getsource(module), f"{module.__name__} does not name the rule {rule}"
    space: dict[str, Any] = dict(vars(module))
    exec(compile("from __future__ import annotations\n" + source, f"<without {rule}>", "exec"), space)
    monkeypatch.setattr(owner, name, space[name])


def broken_at(story: type[Story]) -> int | None:
    """The first seed whose story does not hold."""
    for seed in SEEDS:
        sector, alignment = ((512, 512), (512, 4096), (4096, 4096))[seed % 3]
        try:
            story(seed, sector_size=sector, alignment=alignment, region_size=(4096, 8192)[seed % 2]).run(
                steps=160, crash_rate=0.2, some=3
            )
        except Violation:
            return seed
    return None


def killed(world: World) -> World:
    """What a killed process leaves: everything that it wrote can be read, and is still only as durable as it was."""
    left = World(sector_size=world.sector_size)
    for path, disk in world.disks.items():
        copy = left.disks[path] = Disk(len(disk.now))
        copy.now, copy.stable, copy.since = bytearray(disk.now), bytearray(disk.stable), list(disk.since)
    return left


def recover_under_fire(story: Story, rng: random.Random) -> None:
    """Recovers from a kill; the power fails in between, and what is left must be a state of the group."""
    world, problems = killed(story.world), list[Violation]()

    def on_tick(what: str, path: str) -> None:
        if what == "read" or problems or rng.random() > 0.1:
            return
        for image in world.images(rng, 1):
            try:
                story.check(image, rng, again=False)
            except Violation as error:
                problems.append(error)

    world.on_tick = on_tick
    site = open_site(world, rng.getrandbits(32), options=story.options)
    try:
        story.drain(site)
    finally:
        site.abandon()
    if problems:
        raise problems[0]


def broken_after_a_kill(seeds: range) -> int | None:
    """The first seed with which a power loss during the recovery from a kill leaves what is no state of the group."""
    for seed in seeds:
        story, rng = Story(seed), random.Random(seed)
        try:
            for _ in range(40):
                story.act()
                recover_under_fire(story, rng)
        except Violation:
            return seed
        finally:
            story.site.abandon()
    return None


@pytest.mark.timeout(300)
def test_power_loss_after_a_kill() -> None:
    assert broken_after_a_kill(range(400, 402)) is None


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", OFF)
def test_stories_notice_that_the_rule_is_off(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    switch_off(rule, monkeypatch)
    story = ViewStory if OFF[rule][0] is Views else Story
    assert broken_at(story) is not None, f"{len(SEEDS)} stories hold without {rule}"
