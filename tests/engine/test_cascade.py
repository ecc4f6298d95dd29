"""A secondary with a link of its own, in simulation, against the truth: stories with cuts of each link and power cuts of
each site (model, "Cascade")."""

import random
from contextlib import suppress

import pytest

from pyrepl import operations
from pyrepl._core import view
from pyrepl.errors import PyreplError
from pyrepl.intake import Intake
from pyrepl.link import Link
from pyrepl.outgoing import Plan
from pyrepl.site import Site
from tests.engine.test_early import EarlyPair
from tests.support.chain import Chain, Direct
from tests.support.pair import REGION, Pair
from tests.support.plugs import Plugs, random_work
from tests.support.simulation import add_image, entropy_of, small_options

WEIGHTS = {"write": 20, "operate": 5, "talk": 12, "talk on": 12, "cut": 1, "cut on": 1, "crash": 0.7, "checkpoint": 2, "fold": 0.7,
           "fold on": 0.4, "shorten": 0.4, "shorten on": 0.3, "doubt": 0.5, "apply": 4, "check": 3}


@pytest.fixture
def chain():
    made = []

    def make(*args, **options):
        made.append(Chain(*args, **options))
        return made[-1]
    yield make
    for one in made:
        one.close()


def fold(site):
    for link in site.followers:
        link.fold(site.window.state().applied_position)


def shorten(site):
    """The same, with a backlog that is too long for a checkpoint: stores are made and dropped."""
    for link in site.followers:
        link.ledger._share = lambda: 0
        link.fold(site.window.state().applied_position)
        del link.ledger._share


def turn(one, what):
    rng = one.rng
    match what:
        case "write":
            one.random_write()
        case "operate":
            one.random_operation()
        case "talk":
            one.talk(one, rng.choice((1, 5, 20)))
        case "talk on":
            one.talk(one.hop, rng.choice((1, 5, 20)))
        case "cut":
            one.cut()
        case "cut on":
            one.hop.cut()
        case "crash":
            one.crash(rng.randrange(3))
        case "checkpoint":
            rng.choice((one.a, one.b, one.c)).checkpoint()
        case "fold" if one.session is None:
            one.settle(one.a)
            fold(one.a)
        case "fold on" if one.hop.link.peer is not None:
            one.settle(one.b)
            fold(one.b)
        case "shorten" if one.session is None and one.hop.link.peer is not None:  # else what it prepared does not fit
            one.settle(one.a)
            shorten(one.a)
        case "shorten on" if one.hop.session is None and one.hop.link.peer is not None:
            one.settle(one.b)
            shorten(one.b)
        case "doubt" if one.session is None:
            one.link.add_all()
        case "apply":
            one.settle(one.a)
        case "check":
            one.check()
            assert one.differs_beyond() == []


@pytest.mark.parametrize("seed", range(40))
def test_stories_end_with_three_equal_sites(chain, seed):
    one = chain(seed)
    for _ in range(5):
        one.random_write()
    one.pair_up()
    if seed % 3:
        one.heal()
    weights = {what: weight * one.rng.choice([0.2, 1, 1, 3]) for what, weight in WEIGHTS.items()}
    for _ in range(300):
        what = one.rng.choices(list(weights), list(weights.values()))[0]
        try:
            turn(one, what)
        except Exception as error:
            error.add_note(f"seed {seed}, at {what}")
            raise
    one.heal()
    assert [error for error in one.hop.errors if "tries again" not in error] == []


class WorkingChain(Chain):
    """Plug-ins that one site or the other does not come to the same with, images that one or the other lacks."""

    def __init__(self, seed):
        super().__init__(seed)
        for number, (world, site) in enumerate(zip(self.worlds, (self.a, self.b, self.c), strict=True)):
            def wrong(salt, number=number):
                roll = random.Random(salt + bytes([number])).random() if number else 1
                return "missing" if roll < 0.1 else "writes" if roll < 0.2 else ""
            world.plugins = site.plugins = Plugs(seed, wrong)
        self.keys = []
        for name, where in (("all", (0, 1, 2)), ("not-b", (0, 2)), ("not-c", (0, 1)), ("only-a", (0,))):
            content = self.rng.randbytes(6 * REGION)
            for number in where:
                key = add_image((self.a, self.b, self.c)[number], self.worlds[number], name, content)
            self.keys.append(key)
            self.contents[key.digest] = content

    def random_operation(self):
        catalog, roll = self.a.end.catalog, self.rng.random()
        if not catalog.stores or roll < 0.4:
            return super().random_operation()
        if roll < 0.7:
            return self.operate(random_work(self.rng, catalog, REGION))
        self.settle(self.a)  # the room of a checkpoint for outcomes, too
        store = self.rng.choice(list(catalog))
        count = self.rng.randrange(1, min(store.size // REGION, 6) + 1)
        with suppress(PyreplError):
            return self.operate(operations.copy_image("restore", catalog, store.name, self.rng.choice(self.keys), 0, count * REGION,
                                                      region_size=REGION))


@pytest.mark.parametrize("seed", range(100, 124))
def test_stories_with_what_a_site_cannot_do(seed):
    """What the middle refuses the last site performs, and the other way round."""
    one = WorkingChain(seed)
    try:
        one.pair_up()
        one.heal()
        weights = {**WEIGHTS, "operate": 10, "fold": 0.3}
        for _ in range(200):
            what = one.rng.choices(list(weights), list(weights.values()))[0]
            try:
                turn(one, what)
            except Exception as error:
                error.add_note(f"seed {seed}, at {what}")
                raise
        one.heal()
        assert [error for error in one.hop.errors if "again" not in error] == []
    finally:
        one.close()


class EarlyChain(Chain, EarlyPair):
    """Operations that the two secondaries perform early."""


@pytest.mark.parametrize("seed", range(400, 424))
def test_stories_with_early_operations(seed):
    """D of the second link goes by the same rules, whatever the middle is sent between the two commands."""
    one = EarlyChain(seed)
    try:
        one.pair_up()
        one.heal()
        weights = {**WEIGHTS, "begin": 4, "end": 4, "fold": 2, "crash": 0.3}
        for _ in range(200):
            what = one.rng.choices(list(weights), list(weights.values()))[0]
            try:
                one.act(what) if what in ("begin", "end") else turn(one, what)
            except Exception as error:
                error.add_note(f"seed {seed}, at {what}")
                raise
        one.finish()
        one.heal()
        assert [error for error in one.hop.errors if "again" not in error] == []
    finally:
        one.close()


def test_an_early_snapshot_whose_volume_is_skipped_meanwhile(chain):
    """The middle is sent what changed beside the order: that is in no event that the last site performs."""
    one = EarlyChain(19)
    try:
        one.pair_up()
        one.heal()
        early = one.begin_snapshot("a")
        one.heal()
        one.cut()
        one.write(1, 0, b"new data" * (REGION // 8))
        one.settle(one.a)
        fold(one.a)
        one.adopt(early, "s")
        one.heal()
    finally:
        one.close()


def test_a_skip_past_where_the_last_site_stands(chain):
    """The primary brought that further than the middle, which was away, and skips to the middle what lies between: the middle
    does not take it for one that stands where the skip ends."""
    one = chain(20)
    one.pair_up()
    one.heal()
    one.hop.cut()
    one.cut()
    one.a.attach(Link(one.a, "direct", address="c:1"))
    direct = Direct(one, 20)
    for _ in range(5):
        one.random_write()
    for _ in range(300):
        one.talk(direct)
    assert one.c.end.lsn == one.lsn > one.b.end.lsn and one.c.end.consistent
    direct.cut()
    for _ in range(5):
        one.random_write()
    one.settle(one.a)
    one.link.fold(one.a.window.state().applied_position)
    for _ in range(300):
        one.talk(one)
        one.settle(one.b)
    assert one.b.here.consistent and one.b.end.lsn == one.lsn > one.c.end.lsn
    one.heal()
    assert one.hop.errors == []


def test_what_the_middle_is_sent_beside_the_order_reaches_the_last(chain):
    """The first link overflows; what is skipped to the middle is skipped to the last one, and copied there once."""
    one = chain(1)
    one.pair_up()
    one.heal()
    one.cut()
    one.write(1, 0, b"x" * REGION)
    one.write(1, 3 * REGION, b"y" * 512)
    one.settle(one.a)
    fold(one.a)
    before = one.hop.link.bytes_sent["copied"]
    one.heal()
    assert REGION * 2 <= one.hop.link.bytes_sent["copied"] - before < REGION * 3


def test_a_skip_after_which_nothing_differs(chain):
    """What was skipped belonged to a store that is deleted since: the last site is told that it is consistent all the
    same."""
    one = chain(8)
    one.pair_up()
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["short"]))
    one.heal()
    one.cut()
    one.write(one.a.end.catalog.by_name("short").id, 0, b"s" * REGION)
    one.operate(operations.delete(one.a.end.catalog, "short"))
    one.settle(one.a)
    fold(one.a)
    before = one.hop.link.bytes_sent["copied"]
    one.heal()
    assert one.hop.link.bytes_sent["copied"] == before


def test_an_operation_is_performed_at_the_last_site_as_itself(chain):
    one = chain(2)
    one.pair_up()
    one.heal()
    before = one.hop.link.bytes_sent["copied"]
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["s"]))
    one.write(1, 0, b"z" * 512)
    one.operate(operations.restore(one.a.end.catalog, "a", "s", None, None, region_size=REGION))
    one.heal()
    assert one.hop.link.bytes_sent["copied"] == before and one.hop.link.bytes_sent["operations"] > 0


def until_copied(one):
    """One copied region has arrived in the middle, and is durable there."""
    before = one.replica.bytes_received["copied"] if one.replica is not None else 0
    for _ in range(200):
        one.talk(one)
        if one.replica.bytes_received["copied"] > before:
            one.flush_of(one.hop)
            return
    raise AssertionError("nothing is copied")


def test_nothing_is_copied_on_before_the_middle_is_consistent(chain):
    """The last site stays consistent, and goes on, while the middle is resynchronized (L6)."""
    one = chain(3, regions=24)
    one.pair_up()
    one.heal()
    one.cut()
    one.link.add_all()
    until_copied(one)
    assert not one.b.end.consistent
    before = one.hop.link.bytes_sent["copied"]
    one.write(1, 0, b"w" * 512)
    one.hop.link.add_all()
    for _ in range(100):
        one.talk(one.hop)
        one.settle(one.c)
    assert one.hop.link.bytes_sent["copied"] == before and one.c.end.consistent
    assert "not consistent itself" in one.hop.link.status()["reason"]
    one.heal()
    assert one.hop.link.bytes_sent["copied"] > before


def test_a_copy_is_void_if_something_came_beside_the_order_meanwhile(chain):
    """Rule cascade_pass: what was read may hold a part of it, which the link has not passed."""
    one = chain(4)
    one.pair_up()
    one.heal()
    one.hop.link.add_all()
    plan = None
    for _ in range(100):
        one.flush_of(one.hop)
        plan = one.hop.link.stream.plan(one.b.window.state().durable_position)
        if isinstance(plan, Plan) and plan.step is not None:
            break
        if isinstance(plan, Plan):
            plan.fetch()
            plan = one.hop.link.stream.place(plan)
        if plan is not None:
            one.hop.to_b += b"".join(bytes(buffer) for buffer in plan.buffers)
        one.hop.deliver()
        one.hop.acknowledge()
        one.hop.hear()
    assert isinstance(plan, Plan) and plan.step is not None
    one.cut()
    one.link.add_all()
    until_copied(one)
    plan.fetch()
    assert one.hop.link.stream.place(plan) is None
    one.heal()


def begin_resync(one, what):
    """The first link skips a region to the middle: the skip is there, and durable, but no copied region is."""
    one.cut()
    one.write(1, 0, what * REGION)
    one.settle(one.a)
    fold(one.a)
    for _ in range(200):
        if one.session is None:
            one.connect()
        one.flush()
        if not one.b.end.consistent:
            break
        one.send()
        one.deliver()
        one.acknowledge()
        one.hear()
    one.flush_of(one.hop)
    assert one.b.end.lsn == one.lsn and not one.b.end.consistent and one.replica.bytes_received["copied"] == 0


def say_all(one):
    """All that the second link has to say has arrived, and was heard."""
    for _ in range(40):
        one.talk(one.hop)
        one.settle(one.c)
    while one.hop.send():
        pass
    one.hop.deliver()
    one.settle(one.c)
    one.hop.acknowledge()
    one.hop.hear()


def test_the_last_site_is_not_called_consistent_before_the_middle_is(chain):
    """D knows of nothing yet (L6); nor when the middle is consistent, and the link has not passed what has made it so: the
    sender looked at the journal's end before that."""
    one = chain(17)
    one.pair_up()
    one.heal()
    one.talk(one.hop)
    begin_resync(one, b"n")
    say_all(one)
    link = one.hop.link
    assert one.c.end.lsn == one.lsn and not one.c.end.consistent and link.stream.ahead.is_equal() and not link.stream.flight
    looked = one.b.window.state().durable_position
    assert link.stream.next_out(looked) is None
    for _ in range(300):
        one.talk(one)
        one.settle(one.b)
    one.flush_of(one.hop)
    assert one.b.here.consistent and one.b.intake.items_until > looked
    assert link.stream.next_out(looked) is None
    one.heal()


@pytest.mark.parametrize("what", ["copy", "checkpoint"])
def test_while_something_comes_beside_the_order(chain, monkeypatch, what):
    """It can be read, and be applied, before it counts as come: nothing is copied then, and a checkpoint that is taken then
    says that it has come (rule cascade_pass)."""
    one = chain(18)
    one.pair_up()
    one.write(1, 0, b"as it is" * (6 * REGION // 8))
    one.heal()
    one.hop.link.add_all()
    plan, seen = None, []
    while not (isinstance(plan, Plan) and plan.step is not None):
        plan = one.hop.link.stream.plan(one.b.window.state().durable_position)
        if isinstance(plan, Plan) and plan.step is None:
            plan.fetch()
            one.hop.link.stream.place(plan)
    one.link.add_all()  # over the connection that there is: no fork comes before the first region
    came = type(one.b.end).take_copied

    def take_copied(point, number):
        if not seen and point is one.b.end:
            position = one.b.window.state().end_position
            seen.append(position)
            if what == "copy":
                plan.fetch()
                assert one.hop.link.stream.place(plan) is None
            else:
                while one.b.applier.apply():
                    pass
                one.b.checkpoint()
                left = one.worlds[1].settled()
                site = Site.open(left.device("journal"), node_id=b"B" * 16, placement=left, entropy=entropy_of(1), options=small_options())
                assert site.intake.items_until >= position
                site.abandon()
        came(point, number)

    monkeypatch.setattr(type(one.b.end), "take_copied", take_copied)
    for _ in range(200):
        one.talk(one)
        if seen:
            break
    assert seen
    monkeypatch.undo()
    one.heal()


def test_where_it_was_passed_to_is_known_after_a_start(chain):
    """Rule cascade_pass: the place is in the checkpoint, and what came later is found in the log."""
    for checkpoint in (False, True):
        one = chain(5, regions=24)
        one.pair_up()
        one.heal()
        one.cut()
        one.link.add_all()
        until_copied(one)
        wanted = one.b.intake.items_until
        assert wanted > one.hop.link.base.position
        if checkpoint:
            one.settle(one.b)
            one.b.checkpoint()
        one.b.window.make_durable(one.b.window.state().end_position)
        one.cut()
        one.hop.cut()
        one.b.abandon()
        one.reopen(1)
        assert one.b.intake.items_until == wanted
        one.heal()


def lead_elsewhere(one):
    """The primary is gone; a copy of the middle as it was at some event has taken over, and goes on from there.

    Returns: what is to be called when the middle has gone on: it makes the other one the chain's primary.
    """
    then = one.worlds[1].settled()
    lsn, stores = one.b.here.lsn, dict(one.truth)

    def lead():
        one.cut()
        one.a.abandon()
        one.worlds[0] = then
        one.a = Site.open(then.device("journal"), node_id=b"D" * 16, placement=then, entropy=entropy_of(one.seed), adopt=True,
                          options=small_options())
        assert one.a.roles.take_lead(alone=True) == lsn
        one.lsn, one.truth = lsn, {at: known for at, known in stores.items() if at <= lsn}
        one.a.attach(Link(one.a, "paris", address="b:1"))

    return lead


def test_who_greets_while_the_middle_is_led_elsewhere_is_told_to_try_again(chain, monkeypatch):
    """What its link knows is about to be forgotten: no stream begins by that."""
    one = chain(21)
    one.pair_up()
    one.heal()
    lead = lead_elsewhere(one)
    for _ in range(10):
        one.random_write()
    for _ in range(100):
        one.talk(one)
        one.talk(one.hop)
    lead()
    one.random_write()
    begin_again, seen = Intake._begin_again, []

    def greet(intake):
        one.hop.connect()
        one.hop.deliver()
        one.hop.hear()
        seen.append(one.hop.link.is_open)
        begin_again(intake)

    monkeypatch.setattr(Intake, "_begin_again", greet)
    one.heal()
    assert seen == [False] and any("led elsewhere" in error for error in one.hop.errors)


@pytest.mark.parametrize("behind", [False, True])
def test_a_fork_takes_both_back(chain, behind):
    """Another secondary, which had less, leads: the middle goes back, and so does the last site, wherever it stood
    (rule cascade_turn)."""
    one = chain(6)
    one.pair_up()
    one.heal()
    lead = lead_elsewhere(one)
    if behind:
        one.hop.cut()
    for _ in range(30):
        one.random_write()
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["lost"]))
    for _ in range(200):
        one.talk(one)
        if not behind:
            one.talk(one.hop)
    lead()
    for _ in range(10):
        one.random_write()
    one.operate(operations.snapshot(one.a.end.catalog, ["b"], ["other"]))
    one.heal()
    assert one.b.fed_by == b"D" * 16 and one.c.fed_by == b"B" * 16


def test_the_middle_leads_from_its_protective_snapshot(chain):
    """Nothing is known of the last site any more, wherever that stands."""
    one = chain(7, regions=24)
    one.pair_up()
    one.heal()
    one.cut()
    for _ in range(40):
        one.random_write()
    one.settle(one.a)
    fold(one.a)
    until_copied(one)
    for _ in range(100):
        one.talk(one.hop)
    assert not one.b.end.consistent and not one.c.end.consistent
    one.cut()
    lsn = one.b.roles.take_lead(alone=True)
    for store, content in one.truth[lsn].items():
        assert view.read(one.b.window, one.b.stores, store, 0, len(content)) == content
    for _ in range(4000):
        one.talk(one.hop)
        one.settle(one.c)
        if one.hop.link.status()["synced"]:
            break
    assert one.c.here.consistent and one.c.here.lsn == lsn
    one.hop.compare(one.truth[lsn])


@pytest.mark.parametrize("seed", range(200, 216))
def test_the_middle_leads_after_any_story(seed):
    """It goes on with its link, wherever the last site stands, and whether it is consistent or goes back."""
    one = Chain(seed, regions=12)
    try:
        one.pair_up()
        one.heal()
        for _ in range(120):
            turn(one, one.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0])
        one.cut()
        assert one.b.end.consistent or one.b.protective.snapshot is not None
        lsn = one.b.roles.take_lead(alone=True)
        two = object.__new__(Pair)
        two.__dict__.update(one.hop.__dict__, a=one.b, b=one.c, worlds=one.worlds[1:], contents={}, lsn=lsn,
                            truth={at: stores for at, stores in one.truth.items() if at <= lsn}, fresh=10 ** 6)
        for _ in range(20):
            two.random_write()
            if two.session is not None and two.link.is_stale:
                two.cut("stale")
        if two.link.wants_checkpoint:
            two.a.checkpoint()
        two.heal()
    finally:
        one.close()


@pytest.mark.parametrize("seed", range(300, 308))
def test_who_fed_it_meanwhile_makes_what_was_known_void(seed):
    """The primary feeds the last site past the middle, skips what that lacks, and is cut off: the middle, which has all
    of those events, does not take them for performed there."""
    one = Chain(seed)
    try:
        one.pair_up()
        one.heal()
        one.a.attach(Link(one.a, "direct", address="c:1"))
        direct = Direct(one, seed)
        one.hop.cut()
        for _ in range(60):  # it is paired: both know the last site
            one.talk(direct)
        assert one.c.fed_by == b"A" * 16 and one.c.end.consistent
        direct.cut()
        for _ in range(60):
            one.talk(one.hop)
        assert one.c.fed_by == b"B" * 16
        one.hop.cut()
        for _ in range(12):
            one.random_write()
        one.settle(one.a)
        direct.link.fold(one.a.window.state().applied_position)  # ... and the first link does not skip them
        one.talk(one, 60)
        for _ in range(400):
            one.talk(direct)
            if not one.c.end.consistent:
                break
        assert not one.c.end.consistent and one.c.end.lsn > 0
        direct.cut()
        if seed % 2:  # it is counted in a checkpoint
            one.flush_of(one.hop)
            one.c.window.make_durable(one.c.window.state().end_position)
            one.c.abandon()
            turns = one.c.turns
            one.reopen(2)
            assert one.c.turns == turns > 0
        one.heal()
    finally:
        one.close()


def test_what_came_beside_the_order_is_no_tail(chain):
    """A site that has led, and steps down, does not tell as all that it changed what its journal does not tell."""
    one = chain(9)
    one.pair_up()
    one.heal()
    one.hop.cut()
    assert one.hop.link.ledger.tail() is not None
    one.cut()
    one.link.add_all()
    for _ in range(300):
        one.talk(one)
        one.settle(one.b)
    assert one.b.here.consistent and one.hop.link.ledger.tail() is None
    one.heal()
    one.hop.cut()
    one.b.checkpoint()
    assert one.hop.link.ledger.tail() is not None


@pytest.mark.parametrize("heard", ["nothing", "all but the answer"])
def test_a_store_is_made_anew_in_the_middle(chain, monkeypatch, heard):
    """It bears the number that the old one bears at the last site still, and another size: that is made anew too, whether
    the last site was away, or has done it and the middle did not hear."""
    one = chain(10)
    one.pair_up()
    one.heal()
    one.cut()
    if heard == "nothing":
        one.hop.cut()
    for _ in range(5):
        one.random_write()
    while one.b.end.lsn < one.lsn:
        one.talk(one)
    one.cut()
    one.operate(operations.resize(one.a.end.catalog, "a", 9 * REGION, force=True, region_size=REGION))
    one.random_write()
    one.settle(one.a)
    monkeypatch.setattr(one.link.ledger, "_share", lambda: 0)  # a backlog that is too long for a checkpoint
    fold(one.a)
    for _ in range(300):
        one.talk(one)
        one.settle(one.b)
        made = one.c.end.catalog.stores.get(1)
        if heard != "nothing" and (made is None or made.size != 9 * REGION):  # no further than that
            one.flush_of(one.hop)
            one.hop.send()
            one.hop.deliver()
            one.settle(one.c)
    assert one.b.here.consistent
    assert one.c.end.catalog.by_name("a").size == (6 if heard == "nothing" else 9) * REGION
    one.hop.cut()
    one.heal()
    assert one.c.end.catalog.by_name("a").size == 9 * REGION and one.hop.errors == []


def test_a_site_that_has_more_is_not_taken_back(chain):
    """The middle would feed the last site, which the primary has brought further: it waits until it is as far itself."""
    one = chain(11)
    one.pair_up()
    one.heal()
    one.hop.cut()
    one.cut()
    one.a.attach(Link(one.a, "direct", address="c:1"))
    direct = Direct(one, 11)
    for _ in range(10):
        one.random_write()
    for _ in range(300):
        one.talk(direct)
    assert one.c.end.lsn == one.lsn > one.b.end.lsn
    direct.cut()
    for _ in range(20):
        one.talk(one.hop)
    assert one.c.end.lsn == one.lsn and one.c.end.consistent and not one.c.views.opened
    assert any("waits until its own primary" in error for error in one.hop.errors)
    one.heal()
    assert one.hop.link.bytes_sent["copied"] == 0 or one.c.end.consistent


class Two(Pair):
    """Two sites of a chain that go on by themselves."""

    def connect(self):
        self.cut()
        if self.link.wants_checkpoint:
            self.a.checkpoint()
        super().connect()


def pair_of(one, above, below, worlds):
    two = object.__new__(Two)
    two.__dict__.update(one.hop.__dict__, a=above, b=below, worlds=worlds, contents={}, lsn=one.lsn, truth=dict(one.truth), fresh=10 ** 6)
    two.session = two.replica = None
    two.to_b, two.to_a, two.errors = bytearray(), bytearray(), []
    return two


@pytest.mark.parametrize("started", [False, True])
def test_the_last_site_leads_a_middle_that_was_not_consistent(started):
    """It stands where the last site stands, and lacks what it could not do: the last site, which has it, does not take it
    for its equal. ``started``: and does not forget that by a start."""
    one = WorkingChain(12)
    try:
        one.pair_up()
        one.heal()
        key = next(key for key in one.keys if key.name == "not-b")
        one.operate(operations.copy_image("restore", one.a.end.catalog, "a", key, 0, 6 * REGION, region_size=REGION))
        for _ in range(200):
            one.talk(one)
            one.talk(one.hop)
            if one.c.end.lsn == one.lsn:
                break
        one.settle(one.c)
        assert one.b.end.lsn == one.c.here.lsn == one.lsn and one.c.here.consistent and not one.b.end.consistent
        one.cut()
        one.hop.cut()
        one.b.detach("paris")
        one.c.roles.take_lead(alone=True)
        one.c.attach(Link(one.c, "paris", address="b:1"))
        if started:
            one.c.abandon()
            one.reopen(2)
        two = pair_of(one, one.c, one.b, [one.worlds[2], one.worlds[1]])
        two.write(2, 0, b"x" * 512)
        two.heal()
        assert two.link.bytes_sent["copied"] >= 6 * REGION
    finally:
        one.close()


def spoil(one):
    """A region of a volume rots in the middle, and at the last site, which had it from there."""
    for world, site in ((one.worlds[1], one.b), (one.worlds[2], one.c)):
        world.disks[site.shelf.places[1].path].rot(3 * REGION, b"rotten!!" * (REGION // 8))
        assert view.read(site.window, site.stores, 1, 3 * REGION, 8) == b"rotten!!"


@pytest.mark.parametrize("wrong", ["missing", "fails", "says", "writes"])
def test_what_the_middle_cannot_do_the_last_site_does(wrong):
    """A plug-in: the last site is told what came of it at the primary, not what came of it in the middle; after a start of the
    middle too. It waits for no copy."""
    one = Chain(23)
    try:
        for number, (world, site) in enumerate(zip(one.worlds, (one.a, one.b, one.c), strict=True)):
            world.plugins = site.plugins = Plugs(23, lambda salt, number=number: wrong if number == 1 else "")
        one.pair_up()
        one.heal()
        one.hop.cut()
        work = None
        while not isinstance(work, operations.Perform) or operations.decode_arguments(work.arguments)["fails"] or not work.writes:
            work = random_work(one.rng, one.a.end.catalog, REGION)
        one.operate(work)
        one.settle(one.a)
        for _ in range(100):
            one.talk(one)
            one.settle(one.b)
            if one.b.here.lsn == one.lsn:
                break
        assert one.b.here.lsn == one.lsn and not one.b.here.consistent
        one.cut()
        one.flush_of(one.hop)
        one.b.abandon()
        one.reopen(1)
        before = one.hop.link.bytes_sent["copied"]
        for _ in range(100):
            one.talk(one.hop)
            one.settle(one.c)
        assert one.c.here.lsn == one.lsn and one.c.here.consistent and not one.b.here.consistent
        one.hop.compare(one.truth[one.lsn])
        assert one.hop.link.is_informed and not one.hop.link.status()["synced"]
        assert not one.hop.link.refused and one.hop.link.bytes_sent["copied"] == before
        one.heal()
    finally:
        one.close()


def test_what_is_repaired_in_the_middle_is_copied_on_after_a_break(chain):
    """The last site had from the middle what a verification has found there, and calls itself consistent: that word does
    not count for what the middle was sent."""
    one = chain(13)
    one.pair_up()
    one.write(1, 0, b"as it is" * (6 * REGION // 8))
    one.heal()
    before = one.hop.link.bytes_sent["copied"]
    spoil(one)
    one.hop.cut()
    one.link.add_all()
    one.cut()
    for _ in range(300):
        one.talk(one)
        one.settle(one.b)
    assert one.b.here.consistent and one.c.here.consistent
    for _ in range(300):
        one.talk(one.hop)
        one.settle(one.c)
    one.heal()
    assert one.hop.link.bytes_sent["copied"] - before >= 4 * REGION


def test_a_connection_over_which_the_journal_could_not_keep_it_is_void(chain):
    """The last site is connected, and slow: what was sent to it, and what it says of that, is of something else."""
    one = chain(22)
    one.pair_up()
    one.heal()
    one.talk(one.hop)
    one.random_write()
    for _ in range(20):
        one.talk(one)
    one.flush_of(one.hop)
    assert one.hop.send() and one.hop.link.stream.flight
    one.cut()
    one.link.add_all()
    for _ in range(300):
        one.talk(one)
        one.settle(one.b)
    one.flush_of(one.hop)
    fold(one.b)
    link = one.hop.link
    assert "journal could not keep" in link.ledger.resync_reason and link.is_stale and link.ledger.is_awaited
    base = link.base
    one.hop.deliver()
    one.settle(one.c)
    one.hop.acknowledge()
    one.hop.hear()
    assert link.base is base and link.base.lsn == one.b.here.lsn and link.stream.next_out(one.b.window.state().durable_position) is None
    one.heal()


def test_a_journal_that_cannot_keep_it_makes_the_word_of_the_last_site_void(chain):
    """The same, and the journal of the middle overflows before it was passed: everything is copied."""
    one = chain(14)
    one.pair_up()
    one.write(1, 0, b"as it is" * (6 * REGION // 8))
    one.heal()
    spoil(one)
    one.hop.cut()
    one.cut()
    one.link.add_all()
    for _ in range(300):
        one.talk(one)
        one.settle(one.b)
    assert one.b.here.consistent and one.c.here.lsn == one.b.here.lsn
    fold(one.b)
    assert "journal could not keep" in one.hop.link.ledger.resync_reason
    for _ in range(300):
        one.talk(one.hop)
        one.settle(one.c)
    one.heal()


def test_another_feeder_above_is_told_to_the_last_site(chain):
    """Else a loop would be built behind the back of a path that is outdated."""
    one = chain(15)
    one.pair_up()
    one.heal()
    assert one.c.above == [b"A" * 16] and not one.hop.link.is_stale
    one.b.roles.follow(b"A" * 16, [b"Z" * 16], 0)
    assert one.hop.link.is_stale
    one.cut()
    one.heal()
    assert one.c.above == [b"A" * 16] and one.b.above == []
    one.cut()
    one.b.roles.follow(b"A" * 16, [b"Z" * 16], 0)
    for _ in range(30):
        one.talk(one.hop)
    assert one.c.above == [b"A" * 16, b"Z" * 16]
    one.hop.cut()
    one.c.abandon()
    one.reopen(2)
    assert one.c.above == [b"A" * 16, b"Z" * 16]


def test_outcomes_of_plug_ins_that_a_checkpoint_cannot_keep(monkeypatch):
    """Nobody asks the middle whether it has room for them: the last site, which is away, begins again."""
    one = WorkingChain(16)
    try:
        one.pair_up()
        one.heal()
        one.hop.cut()
        for _ in range(4):
            one.operate(random_work(one.rng, one.a.end.catalog, REGION))
            one.settle(one.a)
        for _ in range(300):
            one.talk(one)
            one.settle(one.b)
        assert one.b.here.lsn == one.lsn and len(one.b.outcomes.known) == 4
        monkeypatch.setattr(one.b, "has_checkpoint_room", lambda more: more < 4 * 512)
        one.b.checkpoint()
        assert one.b.outcomes.known == {} and "outcomes" in one.hop.link.ledger.resync_reason
        monkeypatch.undo()
        one.heal()
    finally:
        one.close()
