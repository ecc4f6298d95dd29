"""Rules of docs/ordering.md that Python code keeps, each switched off alone in that code: the stories must notice.

A rule is switched off by changing its line. Where the line is not found the rule has moved: change the table here.
"""

from __future__ import annotations

import inspect
import random
import sys
import textwrap
from contextlib import ExitStack
from typing import Any

import pytest

from pyrepl.applier import Applier
from pyrepl.greeting import Greeting
from pyrepl.intake import Intake
from pyrepl.journal import Journal
from pyrepl.knowledge import Knowledge
from pyrepl.ledger import Ledger
from pyrepl.link import Link
from pyrepl.roles import Roles
from pyrepl.siblings import Siblings
from pyrepl.site import Site
from pyrepl.stream import Stream
from pyrepl.views import Views
from tests.engine import test_cascade, test_siblings
from tests.support.chain import Chain
from tests.support.fan import Fan
from tests.support.simulation import open_site
from tests.support.story import Story, ViewStory, Violation

SEEDS = range(300, 340)

OFF: dict[str, tuple[type, str, list[tuple[str, str]]]] = {
    "journal_first": (
        Applier,
        "_apply",
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


def without(rule: str, change: tuple[type, str, list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces a function, or property, that keeps the rule by one that does not; the module that it is of."""
    owner, name, changes = change
    known = inspect.getattr_static(owner, name)
    source = textwrap.dedent(inspect.getsource(known.fget if isinstance(known, property) else known))
    for old, new in changes:
        assert source.count(old) == 1, f"{rule}: {old!r} is not in {name}"
        source = source.replace(old, new)
    module = sys.modules[owner.__module__]
    space: dict[str, Any] = dict(vars(module))
    exec(compile("from __future__ import annotations\n" + source, f"<without {rule}>", "exec"), space)
    monkeypatch.setattr(owner, name, space[name])
    return module


def switch_off(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches off a rule that its module names."""
    module = without(rule, OFF[rule], monkeypatch)
    assert rule in inspect.getsource(module), f"{module.__name__} does not name the rule {rule}"


# Of docs/model.md, section 8: what keeps D of a second link true, and the test of tests/engine/test_cascade.py that notices.
OFF_IN_A_CASCADE: dict[str, tuple[tuple[type, str, list[tuple[str, str]]], str]] = {
    "cascade_pass": (
        (Intake, "receive", [("self.items_until = after", "pass")]),
        "test_the_last_site_is_not_called_consistent_before_the_middle_is",
    ),
    "cascade_pass, while it comes": (
        (Stream, "_is_settled", [("not intake.is_coming and ", "")]),
        "test_while_something_comes_beside_the_order[copy]",
    ),
    "cascade_pass, in a checkpoint": (
        (Site, "_capture", [("self.window.state().applied_position if self.intake.is_coming else ", "")]),
        "test_while_something_comes_beside_the_order[checkpoint]",
    ),
    "cascade_turn": (
        (Intake, "_receive_item", [("self._turn()", "pass")]),
        "test_a_fork_takes_both_back",
    ),
    "L6: passed": (
        (Stream, "_is_settled", [(" and self.ahead.position >= intake.items_until", "")]),
        "test_the_last_site_is_not_called_consistent_before_the_middle_is",
    ),
    "L6: consistent itself": (
        (Stream, "_is_settled", [(" and self.site.is_settled", "")]),
        "test_nothing_is_copied_on_before_the_middle_is_consistent",
    ),
    "L6: nothing is copied": (
        (Stream, "_place_copy", [("link.is_stale or not self._is_settled", "link.is_stale")]),
        "test_a_copy_is_void_if_something_came_beside_the_order_meanwhile",
    ),
    "L6: nor called consistent": (
        (Stream, "_may_say_consistent", [("self._is_settled and ", "")]),
        "test_the_last_site_is_not_called_consistent_before_the_middle_is",
    ),
    "a skip goes on": (
        (Stream, "_pass", [("isinstance(item, items.Skip)", "False")]),
        "test_what_the_middle_is_sent_beside_the_order_reaches_the_last",
    ),
    "copied regions enter D": (
        (Knowledge, "_pass", [("divergence.enter(store, regions)", "pass")]),
        "test_what_the_middle_is_sent_beside_the_order_reaches_the_last",
    ),
    "a store that is made is in the catalog": (
        (Knowledge, "_pass", [("self.catalog.add(", "str(")]),
        "test_a_store_is_made_anew_in_the_middle",
    ),
    "a store that is dropped is not": (
        (Knowledge, "_pass", [("self.catalog.stores.pop(number, None)", "pass")]),
        "test_a_store_is_made_anew_in_the_middle",
    ),
    "what is dropped by the journal makes D everything": (
        (Ledger, "fold", [("return False", "pass")]),
        "test_a_journal_that_cannot_keep_it_makes_the_word_of_the_last_site_void",
    ),
    "the word of the last site does not count for that": (
        (Ledger, "pass_beside", [("if beside.runs", "if False")]),
        "test_what_is_repaired_in_the_middle_is_copied_on_after_a_break",
    ),
    "who went back knows nothing": (
        (Roles, "_take_lead", [("link.begin_again(", "str(")]),
        "test_the_middle_leads_from_its_protective_snapshot",
    ),
    "who fed it is counted": (
        (Roles, "_follow", [("self.site.turns += ", "")]),
        "test_who_fed_it_meanwhile_makes_what_was_known_void",
    ),
    "who was fed by another is not known": (
        (Greeting, "_resume", [("strange = ledger.peer is not None", "strange = False")]),
        "test_who_fed_it_meanwhile_makes_what_was_known_void",
    ),
    "who has more is not taken back": (
        (Greeting, "_resume", [("if self.path and welcome.lsn > here", "if False")]),
        "test_a_site_that_has_more_is_not_taken_back",
    ),
    "another feeder above is told": (
        (Link, "is_stale", [("(self.site.lineage, self._path)", "(self.site.lineage, self._told[1])")]),
        "test_another_feeder_above_is_told_to_the_last_site",
    ),
}


# Of docs/model.md, section 7, "Siblings", and the test of tests/engine/test_siblings.py that notices.
OFF_IN_A_FAN: dict[str, tuple[tuple[type, str, list[tuple[str, str]]], str]] = {
    "sibling_turn": (
        (Intake, "_turn", [("elif site.siblings.kept:", "elif False:")]),
        "test_a_fork_away_voids_it",
    ),
    "sibling_turn, with links": (
        (Intake, "_begin_again", [("self._forget_siblings()", "site.checkpoint()")]),
        "test_a_fork_away_voids_it_where_there_are_links_too",
    ),
    "sibling_turn, while it comes": (
        (Siblings, "_may_begin", [("intake.is_coming or ", "")]),
        "test_nothing_begins_while_a_fork_comes",
    ),
    "sibling_turn, before it is applied": (
        (Siblings, "_may_begin", [(" or site.window.state().applied_position < intake.items_until", "")]),
        "test_nothing_begins_before_a_fork_is_applied",
    ),
    "a state of the order": (
        (Siblings, "_may_begin", [("return site.here.consistent and site.end.consistent", "return True")]),
        "test_nothing_begins_at_one_that_is_not_consistent",
    ),
    "only the word of a sibling counts": (
        (Siblings, "_begin", [("turns = STRANGE", "turns = None")]),
        "test_one_that_is_not_consistent_is_copied_whole[True]",
    ),
    "... of whom nothing was kept, too": (
        (Siblings, "lead", [("site.remember(node, STRANGE)", "site.remember(node, None)")]),
        "test_one_that_is_not_consistent_is_copied_whole[False]",
    ),
    "who is in doubt is not told of": (
        (Siblings, "tell", [(" or ledger.doubted", "")]),
        "test_who_is_in_doubt_is_not_told_of[marked]",
    ),
    "... nor who was found different": (
        (Siblings, "tell", [(" or ledger.found_different is not None", "")]),
        "test_who_is_in_doubt_is_not_told_of[found]",
    ),
    "who has stepped down tells nothing": (
        (Siblings, "tell", [("return None", "pass")]),
        "test_one_that_has_stepped_down_tells_nothing_more[forgotten]",
    ),
    "who is not told of is dropped": (
        (Siblings, "settle", [(" or node not in wanted", "")]),
        "test_a_link_that_is_removed_ends_it",
    ),
    "who went back knows nothing": (
        (Siblings, "lead", [(" or returned", "")]),
        "test_the_new_leader_went_back_to_its_protective_snapshot[behind]",
    ),
    "a base does not go back": (
        (Siblings, "settle", [("if mark.lsn > link.base.lsn:", "if True:")]),
        "test_a_base_does_not_go_back_to_a_place_that_was_marked",
    ),
    "a base stands in the log": (
        (Ledger, "pass_to", [("self.base, known.position = known, position", "self.base = known")]),
        "test_a_base_passes_what_was_folded_before_it",
    ),
    "a base drops what was folded before it": (
        (Ledger, "pass_to", [("while self.backlog and", "while False and")]),
        "test_a_base_passes_what_was_folded_before_it",
    ),
    "a tail is told as it arrived": (
        (Ledger, "tail", [("if until is None else until", "")]),
        "test_what_is_not_applied_is_told_too",
    ),
}


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


def recover_under_fire(story: Story, rng: random.Random) -> None:
    """Recovers from a kill; the power fails in between, and what is left must be a state of the group."""
    world, problems = story.world.killed(), list[Violation]()

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


def holds(test: str, module: Any = test_cascade) -> bool:
    """Whether this test of the module holds, with all that it is parametrized with, or with what is named."""
    name, _, chosen = test.partition("[")
    function = getattr(module, name)
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    cases = [{marks[0].args[0]: value} for value in marks[0].args[1]] if marks else [{}]
    for case in cases:
        if chosen and [*map(str, case.values())] != [chosen.removesuffix("]")]:
            continue
        with pytest.MonkeyPatch.context() as own, ExitStack() as stack:
            def make(*args: Any, stack: ExitStack = stack, **options: Any) -> Chain:
                one = Chain(*args, **options)
                stack.callback(one.close)
                return one

            def make_fan(*args: Any, stack: ExitStack = stack, **options: Any) -> Fan:
                one = Fan(*args, **options)
                stack.callback(one.close)
                return test_siblings.ready(one)
            given = {"chain": make, "fan": make_fan, "monkeypatch": own, **case}
            try:
                function(**{name: given[name] for name in inspect.signature(function).parameters})
            except Exception:
                return False
    return True


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", OFF_IN_A_CASCADE)
def test_a_cascade_notices_that_the_rule_is_off(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test that is named fails without the rule. It holds with it: that it is run where it stands."""
    change, test = OFF_IN_A_CASCADE[rule]
    without(rule, change, monkeypatch)
    assert not holds(test), f"{test} holds without: {rule}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", OFF_IN_A_FAN)
def test_a_fan_notices_that_the_rule_is_off(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, test = OFF_IN_A_FAN[rule]
    assert holds(test, test_siblings), "what is run here is run as where it stands"
    without(rule, change, monkeypatch)
    assert not holds(test, test_siblings), f"{test} holds without: {rule}"


def test_the_rules_of_a_cascade_are_named_and_their_tests_hold() -> None:
    named = inspect.getsource(sys.modules["pyrepl.intake"])
    assert all(rule.split(",")[0] in named for rule in OFF_IN_A_CASCADE if rule.startswith("cascade_"))
    assert holds("test_a_site_that_has_more_is_not_taken_back"), "what is run here is run as where it stands"
