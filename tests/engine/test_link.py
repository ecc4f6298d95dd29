"""A link and a replica over pipes that lose and chop bytes, between two real sites in simulation, against the truth."""

import msgspec
import pytest

from pyrepl import items, operations
from pyrepl._core import batch, layout, stream
from pyrepl.errors import InternalError, PeerError, ProtocolError, Refused, UsageError
from pyrepl.lineage import KEPT
from pyrepl.link import Link
from pyrepl.options import LinkOptions
from pyrepl.protocol.messages import Ack, Close, Heartbeat, Hello, Paired, Refuse, Welcome
from pyrepl.protocol.session import Batch, Session, Side, State
from pyrepl.replica import Replica
from tests.support.pair import REGION, Pair
from tests.support.simulation import World, create_site, entropy_of, small_options

WEIGHTS = {"write": 20, "operate": 5, "send": 20, "deliver": 16, "ack": 10, "hear": 10, "flush": 8, "apply": 6, "checkpoint": 2,
           "cut": 2, "connect": 6, "crash": 1, "check": 2}


@pytest.fixture
def pair():
    made = []

    def make(*args, **options):
        made.append(Pair(*args, **options))
        return made[-1]
    yield make
    for one in made:
        one.close()


def turn(one, what):
    """One step of a story."""
    rng = one.rng
    match what:
        case "write":
            one.random_write()
        case "operate":
            one.random_operation()
        case "send":
            one.send()
        case "deliver":
            one.deliver(rng.choice([1, 50, 1000, 100000]))
        case "ack":
            one.acknowledge(rng.random() < 0.7)
        case "hear":
            one.hear(rng.choice([1, 50, 1000, 100000]))
        case "flush":
            one.flush()
        case "apply":
            one.settle(one.a)
        case "checkpoint":
            rng.choice((one.a, one.b)).checkpoint()
        case "fold":  # as a checkpoint does when the journal is full
            one.settle(one.a)
            one.link.fold(one.a.window.state().applied_position)
        case "cut":
            one.cut()
        case "connect":
            if one.session is None:
                one.connect()
        case "crash":
            one.crash(rng.randrange(2))
        case "check":
            one.check()


def tell(one, steps, **changes):
    """A random story, then healing."""
    weights = {what: weight * one.rng.choice([0.2, 1, 1, 3]) for what, weight in {**WEIGHTS, **changes}.items()}
    for _ in range(steps):
        turn(one, one.rng.choices(list(weights), list(weights.values()))[0])
    one.heal()
    assert [error for error in one.errors if "tries again" not in error] == []  # a refusal heals, and would hide a mistake


@pytest.mark.parametrize("seed", range(12))
def test_stories_with_cuts_and_power_losses(pair, seed):
    tell(pair(seed), 120)


@pytest.mark.parametrize("seed", range(100, 116))
def test_stories_in_which_the_journal_overflows(pair, seed):
    tell(pair(seed), 120, fold=5, checkpoint=6)


def test_first_synchronization(pair):
    one = pair(1)
    for _ in range(10):
        one.random_write()
    assert one.link.status()["state"] == "connecting"
    one.heal()
    status = one.link.status()
    assert status["state"] == "streaming" and status["divergent_bytes"] == status["lag_events"] == 0
    assert one.b.group_id == one.a.group_id and one.b.fed_by == one.a.node_id and one.link.peer == one.b.node_id


def test_a_short_outage_costs_no_copy(pair):
    """Resume is a matter of events: nothing that both sites hold is copied again, whoever was down."""
    one = pair(2)
    one.heal()
    for fault in (lambda: one.cut(), lambda: one.crash(1), lambda: one.crash(0)):
        before = dict(one.link.bytes_sent) if fault is not None else {}
        for _ in range(5):
            one.random_write()
        one.flush()
        fault()
        for _ in range(5):
            one.random_write()
        if one.link.bytes_sent["copied"] < before["copied"]:
            before = dict.fromkeys(before, 0)  # the primary was opened anew, and counts anew
        one.heal()
        assert one.link.bytes_sent["copied"] == before["copied"]
        assert one.link.status()["reason"] == ""


def test_an_operation_ships_no_data(pair):
    """INV-3: a snapshot and a restore of everything cost a few hundred bytes."""
    one = pair(3, regions=40)
    one.write(1, 0, one.some_bytes(40 * REGION))
    one.heal()
    before = dict(one.link.bytes_sent)
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["monday"]))
    one.write(1, 0, one.some_bytes(REGION))
    one.operate(operations.restore(one.a.end.catalog, "a", "monday", None, None, region_size=REGION))
    one.heal()
    after = one.link.bytes_sent
    assert after["copied"] == before["copied"]
    assert after["operations"] - before["operations"] < 1000
    assert after["events"] - before["events"] < REGION + 1000


def test_an_overflow_copies_only_what_changed(pair):
    one = pair(4, regions=40)
    one.heal()
    one.cut()
    before = one.link.bytes_sent["copied"]
    for region in (3, 4, 5, 20):
        one.write(2, region * REGION, bytes([region]) * REGION)
    one.operate(operations.snapshot(one.a.end.catalog, ["b"], ["s"]))
    one.settle(one.a)
    one.link.fold(one.a.window.state().applied_position)
    assert len(one.link.ledger.backlog) == 2 and one.link.status()["backlog_bytes"] == 4 * REGION
    one.connect()
    for _ in range(6):  # nothing of a fold is said before a checkpoint holds it
        one.deliver()
        one.hear()
        out = one.link.stream.plan(one.a.window.state().durable_position)
        if out is None:
            break
        one.to_b += b"".join(bytes(buffer) for buffer in out.buffers)
    assert one.link.wants_checkpoint and one.link.stream.ahead.lsn == one.link.base.lsn
    one.a.checkpoint()
    assert not one.link.wants_checkpoint
    one.heal()
    copied = one.link.bytes_sent["copied"] - before
    assert 8 * REGION <= copied < 9 * REGION  # the volume's and its snapshot's, nothing else


def test_zero_regions_cost_no_payload(pair):
    one = pair(5, regions=300)
    one.heal()
    assert one.link.bytes_sent["copied"] < 600 * 64


def test_what_was_folded_after_it_was_sent_is_not_copied(pair):
    """L5: the events arrive after all."""
    one = pair(6)
    one.heal()
    copied = one.link.bytes_sent["copied"]
    one.connect()
    one.deliver()
    one.hear()
    for _ in range(4):
        one.random_write()
    one.flush()
    while one.send():
        pass
    one.settle(one.a)
    one.link.fold(one.a.window.state().applied_position)
    assert one.link.ledger.backlog
    for _ in range(3):
        one.random_write()
    one.heal()
    assert not one.link.ledger.backlog and one.link.bytes_sent["copied"] == copied


def test_a_skip_that_arrived_and_was_not_acknowledged(pair):
    """What a skip passed over differs, whether the secondary was heard to have taken it or not."""
    for restart in (False, True):
        one = pair(14)
        one.heal()
        one.cut()
        for region in range(3):
            one.write(1, region * REGION, bytes([region + 1]) * REGION)
        one.settle(one.a)
        one.link.fold(one.a.window.state().applied_position)
        one.a.checkpoint()
        one.connect()
        one.deliver()
        one.hear()
        while not one.link.ledger.backlog[0].sent:
            assert one.send()
        one.deliver()
        assert one.b.end.lsn == one.lsn and not one.b.end.consistent
        if restart:
            one.crash(0)
        one.cut()
        one.heal()


def test_a_new_generation_is_announced_in_the_stream(pair):
    """A secondary that is behind the restart of its primary hears of the generation where it begins."""
    one = pair(15)
    one.heal()
    one.cut()
    one.random_write()
    one.flush()
    one.crash(0)
    one.random_write()
    one.flush()
    one.crash(0)
    one.random_write()
    one.heal()
    assert one.errors == [] and one.b.end.lineage == one.a.lineage and len(one.a.lineage) >= 3


@pytest.mark.parametrize("again", [False, True])
def test_a_secondary_that_lost_what_it_acknowledged_starts_over(pair, again):
    one = pair(7)
    one.heal()
    image = [one.worlds[1].settled()]
    one.cut()
    for _ in range(5):
        one.random_write()
    one.heal()
    one.cut()
    one.b.abandon()
    one.worlds[1] = image[0]
    one.reopen(1)
    one.connect()
    one.deliver()
    one.hear()
    assert "had acknowledged" in one.link.status()["last_error"] and one.link.wants_checkpoint
    if again:  # the connection breaks before a word of it was said: it stands there, and is consistent there
        one.connect()
        one.deliver()
        one.hear()
    one.heal()


def test_a_primary_that_lost_what_the_secondary_holds_leads_it_back(pair):
    one = pair(8)
    one.heal()
    one.cut()
    one.a.checkpoint()
    image = one.worlds[0].settled()
    lsn = one.lsn
    for _ in range(5):
        one.random_write()
    one.heal()
    one.cut()
    one.a.abandon()
    one.worlds[0] = image
    one.reopen(0)
    assert one.lsn == lsn
    for _ in range(3):
        one.random_write()
    one.connect()
    one.deliver()
    one.hear()
    assert "not in this group's history" in one.link.status()["last_error"]
    one.heal()


def test_a_volume_added_before_pairing(pair):
    """The link begins where the volumes match, and a checkpoint says so first."""
    one = pair(9)
    one.operate(operations.add_volume(one.a.end.catalog, "c", 3 * REGION, zero=True, region_size=REGION))
    one.b.intake.prepare_volume("c", 3 * REGION)
    one.flush()
    one.connect()
    one.deliver()
    one.hear()
    assert "tries again" in one.errors[-1] and one.link.wants_checkpoint
    one.a.checkpoint()
    one.heal()


def test_sync_promises_only_while_consistent(pair):
    one = pair(10, mode="sync")
    window = one.a.window
    assert one.link.status()["degraded"]
    one.heal()
    one.send()
    assert one.link.promises and not one.link.status()["degraded"]
    assert window.state().peer_lsn == one.lsn
    ticket = window.submit(1, 0, bytes(512))
    one.flush()
    assert not ticket.done()  # it is durable here, and waits for the other site
    while one.send():
        pass
    one.deliver()
    one.acknowledge()
    one.hear()
    assert ticket.done() and window.state().peer_lsn == ticket.lsn
    ticket = window.submit(1, 0, bytes(512))
    one.flush()
    assert not ticket.done()
    one.cut()
    assert ticket.done() and one.link.status()["degraded"]


def test_save_and_restore(pair):
    one = pair(11)
    one.heal()
    one.cut()
    for _ in range(5):
        one.random_write()
    one.settle(one.a)
    one.link.fold(one.a.window.state().applied_position)
    one.random_write()
    data = one.link.save()
    again = Link.restore(one.a, data)
    assert again.save() == data and all(piece.sent for piece in again.ledger.backlog)
    assert (again.position, again.peer, again.base.lsn) == (one.link.position, one.link.peer, one.link.base.lsn)


def test_verify_by_hand_copies_everything_again(pair):
    one = pair(12, regions=10)
    one.write(1, 0, one.some_bytes(10 * REGION))
    one.heal()
    before = one.link.bytes_sent["copied"]
    one.link.add_all(1)
    one.cut()
    one.heal()
    assert one.link.bytes_sent["copied"] - before >= 10 * REGION and not one.link.ledger.doubted


# ---------------------------------------------------------------- refusals of the handshake

def greet(one, **changes):
    """The hello of the link, changed; what the replica answers."""
    session = Session(Side.PRIMARY)
    one.link.connect(session)
    hello = Hello(versions=[1], group=one.a.group_id, group_name="g", node=one.a.node_id, link="paris",
                  limits=limits(),
                  mode="async", lineage=one.a.lineage.encode(), lsn=one.lsn, stores=[])
    far = Session(Side.SECONDARY)
    far.state = State.GREETED
    return Replica(one.b, far, entropy_of(1)).receive(msgspec.structs.replace(hello, **changes))


def limits(**changes):
    from pyrepl.protocol import messages
    return msgspec.structs.replace(messages.limits(512, REGION), **changes)


@pytest.mark.parametrize(("reason", "changes"), [
    ("version", {"versions": [2, 3]}), ("group", {"group": b"x" * 16}), ("identity", {"node": b"B" * 16}),
    ("identity", {"node": b"x" * 16}), ("alignment", {"limits": limits(alignment=4096)}),
    ("region-size", {"limits": limits(region_size=8192)}), ("limits", {"limits": limits(max_event=1)}),
    ("limits", {"limits": limits(max_payload=1)}), ("lineage", {"lineage": [(b"z" * 16, 0)]}),
])
def test_a_secondary_refuses(pair, reason, changes):
    one = pair(20)
    one.heal()
    one.cut()
    before = one.b.window.state()
    with pytest.raises(Refused) as caught:
        greet(one, **changes)
    assert caught.value.reason == reason
    assert one.b.window.state() == before
    assert greet(one)


def test_a_lineage_that_is_none(pair):
    one = pair(20)
    with pytest.raises(ProtocolError):
        greet(one, lineage=[(b"z" * 16, 1), (b"z" * 16, 2)])


def test_a_primary_is_not_fed(pair):
    one = pair(21)
    with pytest.raises(Refused) as caught:
        Replica(one.a, Session(Side.SECONDARY), entropy_of(1)).judge(Hello(
            versions=[1], group=one.a.group_id, group_name="g", node=b"x" * 16, link="l", limits=limits(), mode="async",
            lineage=one.a.lineage.encode(), lsn=0, stores=[]))
    assert caught.value.reason == "role"


def test_only_those_who_may_pair(pair):
    one = pair(22)
    far = Session(Side.SECONDARY)
    far.state = State.GREETED
    replica = Replica(one.b, far, entropy_of(1), allow={b"z" * 16})
    session = Session(Side.PRIMARY)
    hello = Session(Side.SECONDARY).receive_bytes(one.link.connect(session))[0]
    with pytest.raises(Refused) as caught:
        replica.judge(hello)
    assert caught.value.reason == "identity"


@pytest.mark.parametrize("what", ["size", "name", "more", "less"])
def test_stores_that_do_not_match(pair, what):
    one = pair(23, stores=False)
    sizes = {"data": 4 * REGION}
    for name, size in sizes.items():
        one.operate(operations.add_volume(one.a.end.catalog, name, size, zero=True, region_size=REGION))
    one.a.detach("paris")
    one.settle(one.a)
    one.a.attach(Link(one.a, "paris", address="b:1"))
    theirs = {"size": {"data": 5 * REGION}, "name": {"date": 4 * REGION}, "more": {"data": 4 * REGION, "x": REGION}, "less": {}}[what]
    for name, size in theirs.items():
        one.b.intake.prepare_volume(name, size)
    one.connect()
    one.deliver()
    one.hear()
    assert one.session is None and one.b.group_id is None and one.link.peer is None
    assert any(word in one.errors[-1] for word in ("bytes long", "no volume", "does not have"))
    # It is taken back there, added as it should be, and the link goes on.
    for name in theirs:
        one.b.intake.take_back_volume(name)
    one.b.intake.prepare_volume("data", 4 * REGION)
    one.heal()
    assert one.b.group_id == one.a.group_id and one.link.status()["consistent"]


def welcomed(one, **changes):
    one.cut()
    session = Session(Side.PRIMARY)
    one.session = session
    one.link.connect(session)
    point = one.b.end
    welcome = Welcome(version=1, session=9, group=one.a.group_id, node=one.b.node_id, limits=limits(), lineage=point.lineage.encode(),
                      lsn=point.lsn, applied=point.lsn, item=point.item, consistent=point.consistent, stores=[])
    session.state = State.WELCOMED
    return one.link.receive(msgspec.structs.replace(welcome, **changes))


@pytest.mark.parametrize(("reason", "changes"), [
    ("version", {"version": 2}), ("limits", {"limits": limits(alignment=4096)}), ("identity", {"node": b"A" * 16}),
    ("identity", {"node": b"x" * 16}), ("identity", {"group": None}), ("group", {"group": b"x" * 16}),
    ("lineage", {"lineage": [(b"z" * 16, 0)]}),
])
def test_a_primary_refuses(pair, reason, changes):
    one = pair(24)
    one.heal()
    base = one.link.save()
    with pytest.raises(Refused) as caught:
        welcomed(one, **changes)
    assert caught.value.reason == reason
    one.cut()
    assert one.link.save() == base


def test_a_welcome_that_cannot_be(pair):
    one = pair(24)
    one.heal()
    for lineage in (None, [(b"z" * 16, 1), (b"z" * 16, 2)]):
        with pytest.raises(ProtocolError):
            welcomed(one, lineage=lineage)
    with pytest.raises(ProtocolError):
        one.link.receive(Batch(memoryview(b"x")))
    one.link.greeting._peer = b"x"
    with pytest.raises(ProtocolError, match="paired at"):
        one.link.receive(Paired(lsn=1 << 40))
    one.cut()


def test_refused_and_closed_by_the_peer(pair):
    one = pair(25)
    with pytest.raises(Refused) as caught:
        one.link.receive(Refuse(code="stores", text="no"))
    assert caught.value.reason == "stores" and not caught.value.retryable
    with pytest.raises(Refused) as caught:
        one.link.receive(Refuse(code="busy", text="later"))
    assert caught.value.retryable
    with pytest.raises(PeerError):
        one.link.receive(Close(code="stop", text=""))
    assert one.link.receive(Heartbeat(number=1)) == b""
    assert one.link.heartbeat() == b"" == one.link.close("stop", "")


# ---------------------------------------------------------------- acknowledgements and batches that cannot be

def flowing(one):
    """A pair in mid-stream, with something in flight."""
    one.heal()
    for _ in range(3):
        one.random_write()
    one.flush()
    while one.send():
        pass
    return one


@pytest.mark.parametrize("changes", [
    {"received": 1 << 40, "durable": 1 << 40}, {"durable": 0}, {"received": 0}, {"durable_lsn": 0}, {"durable_lsn": (1 << 63) - 1},
    {"item": 0}, {"item": 1 << 40}, {"received_lsn": (1 << 63) - 1}, {"received_lsn": 0},
])
def test_acknowledgements_that_cannot_be(pair, changes):
    one = flowing(pair(30))
    sent = one.session.sent
    one.deliver()
    one.b.window.make_durable(one.replica.pending)
    one.acknowledge()
    good = one.replica._told
    assert good.received == good.durable == sent
    one.to_a.clear()
    with pytest.raises(ProtocolError):
        one.link.receive(msgspec.structs.replace(good, **changes))


def test_acknowledgements_that_are_no_news(pair):
    one = flowing(pair(30))
    one.deliver()
    one.acknowledge()
    assert one.to_a
    one.hear()
    assert not one.link.stream.flight and one.link.stream.flight_bytes == 0
    one.acknowledge()
    assert not one.to_a


def batch_at(one, kind, records, **fields):
    """A batch of these records for the replica's place in the stream."""
    end = one.b.end
    values = {"group": one.b.group_id, "generation": end.lineage.generation, "first_lsn": end.lsn + (kind in (1, 2)), "alignment": 512,
              "item": end.item + 1 if kind in (3, 4) else 0, "previous": one.replica._previous if kind in (1, 2) else 0, **fields}
    return batch.encode(kind, records, **values)


def arriving(one, kind, records, **fields):
    """What the replica says to a batch of these records at its place in the stream."""
    data = batch_at(one, kind, records, **fields)
    before = one.b.window.state()
    try:
        one.replica._batch(memoryview(data))
    except (ProtocolError, Refused):
        assert one.b.window.state() == before
        raise


def taken(one, kind, records, **fields):
    """Whether such a batch is taken in by the run."""
    data = batch_at(one, kind, records, **fields)
    reach = one.replica.reach()
    count = stream.take(one.b.window, reach, stream.pack_frame(layout.FRAME_BATCH, len(data), 0, one.far.received, one.far.id) + data)
    one.replica.took(reach)
    return count > 0


def item(value):
    return [(layout.OPERATION, 0, 0, items.encode(value))]


def test_batches_that_may_come(pair):
    one = flowing(pair(31))
    one.deliver()
    arriving(one, layout.BATCH_EVENTS, [(layout.ZERO, 1, 0, 512)])
    arriving(one, layout.BATCH_OPERATION, [(layout.OPERATION, 0, 0, operations.encode(operations.Copy("restore", 1, 2, 5, 1)))])
    arriving(one, layout.BATCH_ITEM, item(items.Consistent()))
    arriving(one, layout.BATCH_COPIED, [(layout.ZERO, 1, 0, REGION)], read_end=9)
    assert not one.b.end.consistent
    one.b.window.make_durable(one.b.window.state().end_position)


ZERO = (layout.ZERO, 1, 0, 512)
BAD_BATCHES = {
    "gap": (1, [ZERO], {"first_lsn": 1 << 40}), "repeat": (1, [ZERO], {"first_lsn": 1}), "lsn 0": (1, [ZERO], {"first_lsn": 0}),
    "lsn 2**64 - 1": (1, [ZERO], {"first_lsn": (1 << 64) - 1}),
    "generation": (1, [ZERO], {"generation": b"z" * 16}), "group": (1, [ZERO], {"group": b"z" * 16}),
    "previous": (1, [ZERO], {"previous": 12345}), "an item number": (1, [ZERO], {"item": 5}),
    "no such store": (1, [(layout.ZERO, 999, 0, 512)], {}), "past the end": (1, [(layout.ZERO, 1, 1 << 30, 512)], {}),
    "across the end": (1, [(layout.ZERO, 1, 5 * REGION + 3584, 1024)], {}),
    "overflow": (1, [(layout.ZERO, 1, (1 << 64) - 512, 512)], {}),
    "not an operation": (2, [(layout.OPERATION, 0, 0, b"\xc1")], {}),
    "an operation that cannot be": (2, [(layout.OPERATION, 0, 0, operations.encode(operations.Delete(999)))], {}),
    **{
        what: (2, [(layout.OPERATION, 0, 0, operations.encode(forged))], {})
        for what, forged in {
            "a restore past the end": operations.Copy("restore", 1, 2, 5, 1 << 20),
            "a restore from before the start": operations.Copy("restore", 1, 2, -1, 2),
            "a restore of nothing": operations.Copy("restore", 1, 2, 0, 0),
            "a restore beyond 2**63": operations.Copy("restore", 1, 2, 1, (1 << 63) - 1),
            "a restore from no store": operations.Copy("restore", 1, 99, 0, 1),
            "a copy by another verb": operations.Copy("steal", 1, 2, 0, 1),
            "zeros past the end": operations.Zero(1, 0, 1 << 20),
            "zeros before the start": operations.Zero(1, -1, 1),
            "zeros of nothing": operations.Zero(1, 0, 0),
            "an odd resize": operations.Resize(1, REGION + 1),
            "a resize to nothing": operations.Resize(1, 0),
            "a resize below nothing": operations.Resize(1, -REGION),
            "a resize to 2**56": operations.Resize(1, 1 << 56),
            "a volume of an odd size": operations.AddVolume(77, "x", 5, True),
            "a volume of no size": operations.AddVolume(77, "x", 0, True),
            "a volume of 2**56 bytes": operations.AddVolume(77, "x", 1 << 56, True),
            "a volume of number 2**32": operations.AddVolume(1 << 32, "x", REGION, True),
            "a volume with the number of a view": operations.AddVolume(layout.FIRST_LOCAL, "x", REGION, True),
        }.items()
    },
    "item gap": (4, item(items.Consistent()), {"item": 1 << 40}), "item repeat": (4, item(items.Consistent()), {"item": 1}),
    "item elsewhere": (4, item(items.Consistent()), {"first_lsn": 1}), "not an item": (4, [(layout.OPERATION, 0, 0, b"\xc1")], {}),
    "copy elsewhere": (3, [(layout.ZERO, 1, 0, REGION)], {"first_lsn": 1}), "half a region": (3, [(layout.ZERO, 1, 0, 512)], {}),
    "copy outside": (3, [(layout.ZERO, 1, 6 * REGION, REGION)], {}), "copy of no store": (3, [(layout.ZERO, 99, 0, REGION)], {}),
    "drop of no store": (4, item(items.Drop(999)), {}),
    "make again": (4, item(items.Make(items.StoreInfo(1, "x", "volume", REGION, 0))), {}),
    "name taken": (4, item(items.Make(items.StoreInfo(77, "a", "volume", REGION, 0))), {}),
    "odd size": (4, item(items.Make(items.StoreInfo(77, "x", "volume", 5, 0))), {}),
    "no size": (4, item(items.Make(items.StoreInfo(77, "x", "volume", 0, 0))), {}),
    "id 0": (4, item(items.Make(items.StoreInfo(0, "x", "volume", REGION, 0))), {}),
    "id 2**32": (4, item(items.Make(items.StoreInfo(1 << 32, "x", "volume", REGION, 0))), {}),
    "id of a view": (4, item(items.Make(items.StoreInfo(layout.FIRST_LOCAL, "x", "volume", REGION, 0))), {}),
    "skip back": (4, item(items.Skip(0, [(b"z" * 16, 0)])), {}),
    "skip elsewhere": (4, item(items.Skip(1 << 40, [(b"z" * 16, 0)])), {}),
    "fork elsewhere": (4, item(items.Fork([(b"z" * 16, 0)], 1 << 40)), {"first_lsn": 1 << 40}),
}


@pytest.mark.parametrize("what", BAD_BATCHES)
def test_batches_that_a_secondary_refuses(pair, what):
    one = flowing(pair(32))
    one.deliver()
    kind, records, fields = BAD_BATCHES[what]
    assert not taken(one, kind, records, **fields), "what is wrong is left to the one who says so"
    with pytest.raises((ProtocolError, Refused)):
        arriving(one, kind, records, **fields)


def test_batches_by_the_run_and_one_by_one(pair):
    """Both ways lead to the same place, and each goes on where the other stopped."""
    one = flowing(pair(32))
    one.deliver()
    for _ in range(2):
        lsn = one.b.end.lsn
        assert taken(one, layout.BATCH_EVENTS, [(layout.ZERO, 1, 0, 512), (layout.ZERO, 1, 512, 512)])
        assert one.b.end.lsn == one.b.window.state().end_lsn == lsn + 2
        arriving(one, layout.BATCH_EVENTS, [(layout.ZERO, 1, 0, 512)])
        assert one.b.end.lsn == lsn + 3
        assert not taken(one, layout.BATCH_ITEM, item(items.Consistent())), "an item is no event"
    one.b.window.make_durable(one.replica.pending)
    one.acknowledge()
    assert one.replica._told.durable_lsn == one.b.end.lsn


def test_nothing_before_the_fork(pair):
    one = flowing(pair(33))
    one.deliver()
    one.replica._forked = False
    for kind, records in ((1, [ZERO]), (3, [(layout.ZERO, 1, 0, REGION)]), (4, item(items.Consistent()))):
        with pytest.raises(ProtocolError, match="before the fork"):
            arriving(one, kind, records)


def test_a_batch_that_is_not_whole(pair):
    one = flowing(pair(34))
    one.deliver()
    data = bytearray(batch.encode(1, [(layout.WRITE, 1, 0, bytes(512))], group=one.b.group_id,
                                  generation=one.b.end.lineage.generation, first_lsn=one.b.end.lsn + 1, alignment=512))
    for bad in (data[:-1], data + b"x", data[:100], data[:-1] + b"\1"):
        with pytest.raises(ProtocolError, match="not whole"):
            one.replica._batch(memoryview(bytes(bad)))


def test_messages_for_the_other_side(pair):
    one = pair(35)
    replica = Replica(one.b, Session(Side.SECONDARY), entropy_of(1))
    with pytest.raises(ProtocolError, match="no sense"):
        replica.receive(Ack(received=0, durable=0, received_lsn=0, durable_lsn=0, applied_lsn=0, item=0, consistent=False))
    with pytest.raises(PeerError):
        replica.receive(Close(code="stop", text=""))
    with pytest.raises(ProtocolError, match="no sense"):
        one.link.receive(Batch(memoryview(b"x")))


# ---------------------------------------------------------------- options

def test_options(pair):
    with pytest.raises(UsageError, match="heartbeat"):
        LinkOptions(heartbeat=0.0)
    with pytest.raises(UsageError, match="dead"):
        LinkOptions(heartbeat=5.0, dead=5.0)
    with pytest.raises(UsageError, match="mode"):
        Link(pair(36).a, "x", address="y", mode="often")


def test_a_log_that_lost_what_a_link_needs(pair):
    one = pair(37)
    one.heal()
    one.random_write()
    one.flush()
    plan = one.link.stream.plan(one.a.window.state().durable_position)
    plan.entry = None
    with pytest.raises(InternalError, match="not sent"):
        one.link.stream.place(plan)


def test_two_sites_of_the_same_node(pair):
    one = pair(38)
    world = World()
    site = create_site(world, 5, role="secondary", node=b"A" * 16, options=small_options(), journal_size=12 << 20)
    far = Session(Side.SECONDARY)
    far.state = State.GREETED
    hello = Session(Side.SECONDARY).receive_bytes(one.link.connect(Session(Side.PRIMARY)))[0]
    with pytest.raises(Refused, match="very node"):
        Replica(site, far, entropy_of(1)).judge(hello)
    site.abandon()


def start_again(one, times):
    """The primary ends in good order, or is killed, and is started, so many times; now and then something is written."""
    one.cut()
    for number in range(times):
        if number % 7 == 0:
            one.random_write()
            one.flush()
        if number % 5:
            one.a.abandon()
        else:
            one.a.close()
        one.reopen(0)


def test_more_starts_than_a_lineage_keeps(pair):
    """A secondary that is there now and then follows as ever, and nothing is copied; a lineage does not grow for ever."""
    one = pair(71, regions=2)
    one.heal()
    first = one.a.end.lineage
    for _ in range(3):
        start_again(one, 200)
        copied = one.link.bytes_sent["copied"]
        one.heal()
        assert one.link.bytes_sent["copied"] == copied, "it was only away"
        assert len(one.a.end.lineage) <= KEPT + 2 and len(one.b.end.lineage) <= KEPT + 2
        one.crash(1)
    assert len(one.a.end.lineage) > KEPT and one.a.end.lineage.aligned(first) is None
    one.a.checkpoint()
    before = one.a.end.lineage
    one.crash(0)
    assert one.a.end.lineage.starts_with(before), "a recovery finds the lineage that it was"


def test_a_secondary_that_was_away_for_too_many_starts(pair):
    """It is told so, nothing of it changes, and one that is made anew is copied."""
    one = pair(72, regions=2)
    one.heal()
    start_again(one, KEPT + 40)
    held = one.b.end.lsn
    for _ in range(3):
        one.connect()
        one.deliver()
        one.hear()
        assert "nothing in common" in one.errors[-1] and "make the group anew" in one.errors[-1]
        one.cut()
    assert one.b.end.lsn == held and one.b.here.consistent
