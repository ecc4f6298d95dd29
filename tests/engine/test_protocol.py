"""The protocol without a connection: the table, every frame in every state, cuts, corruption, limits."""

import contextlib
import struct
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrepl._core import layout
from pyrepl._core.crc32c import crc32c
from pyrepl.errors import InternalError, ProtocolError
from pyrepl.items import StoreInfo
from pyrepl.protocol import frames, messages
from pyrepl.protocol.messages import Ack, Close, Digests, Forget, Heartbeat, Hello, Pair, Paired, Probe, Refuse, Welcome
from pyrepl.protocol.session import FROM_PRIMARY, FROM_SECONDARY, Batch, Session, Side, State

U = bytes(range(16))
LIMITS = messages.limits(4096, 65536)
LINEAGE = [(U, 0)]
STORES = [StoreInfo(1, "data", "volume", 1 << 20, 0)]
SAMPLES = {
    "Hello": Hello(versions=[1], group=U, group_name="db", node=U, link="paris", limits=LIMITS, mode="async", lineage=LINEAGE,
                   lsn=7, stores=STORES),
    "Welcome": Welcome(version=1, session=77, group=None, node=U, limits=LIMITS, lineage=None, lsn=0, applied=0, item=0,
                       consistent=False, stores=STORES),
    "Refuse": Refuse(code="stores", text="no"),
    "Pair": Pair(group=U, node=U, lineage=LINEAGE, lsn=7, stores=STORES),
    "Paired": Paired(lsn=7),
    "Ack": Ack(received=3, durable=2, received_lsn=9, durable_lsn=8, applied_lsn=7, item=1, consistent=True),
    "Heartbeat": Heartbeat(number=1),
    "Close": Close(code="stop", text=""),
    "Probe": Probe(lsn=7, store=1, first=0, count=64, per=64),
    "Digests": Digests(lsn=7, store=1, first=0, digests=bytes(16), problem=""),
    "Forget": Forget(lsn=7),
    "Batch": None,
}
TYPE = {name: messages.NUMBERS[type(message)] if message is not None else frames.BATCH for name, message in SAMPLES.items()}


def frame_of(name, sequence=0, session=0):
    message = SAMPLES[name]
    if message is None:
        return frames.pack(frames.BATCH, 200, 0, sequence, session) + bytes(200)
    kind, body = messages.encode(message)
    return frames.pack(kind, len(body), crc32c(body), sequence, session) + body


def in_state(side, state):
    session = Session(side)
    session.state = state
    return session


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("name", SAMPLES)
def test_every_frame_in_every_state(side, state, name):
    table = FROM_SECONDARY if side is Side.PRIMARY else FROM_PRIMARY
    session = in_state(side, state)
    expected = table[state].get(TYPE[name])
    if expected is None:
        with pytest.raises(ProtocolError):
            session.receive_bytes(frame_of(name))
        assert (session.state, session.received) == (state, 0)
    else:
        (received,) = session.receive_bytes(frame_of(name))
        assert received == SAMPLES[name] or isinstance(received, Batch)
        assert (session.state, session.received) == (expected, 1)


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("name", SAMPLES)
def test_what_may_be_said(side, state, name):
    session = in_state(side, state)
    table = FROM_PRIMARY if side is Side.PRIMARY else FROM_SECONDARY
    expected = table[state].get(TYPE[name])
    say = (lambda: session.send_batch(200)) if name == "Batch" else (lambda: session.send(SAMPLES[name]))
    if expected is None:
        with pytest.raises(InternalError):
            say()
        assert (session.state, session.sent) == (state, 0)
    else:
        say()
        assert (session.state, session.sent) == (expected, 1)


def test_the_tables_fit_together():
    """Whatever one side may send from a state that both are in, the other may receive in it; every state ends."""
    for table in (FROM_PRIMARY, FROM_SECONDARY):
        assert set(table) == set(State)
        for state, row in table.items():
            assert all(kind in messages.TYPES or kind == frames.BATCH for kind in row)
            assert state is State.CLOSED or State.CLOSED in {*row.values(), *FROM_PRIMARY[state].values(), *FROM_SECONDARY[state].values()} \
                or state is State.NEW


def conversation():
    """All bytes of a conversation in order: (side that sends, bytes)."""
    one, two = Session(Side.PRIMARY), Session(Side.SECONDARY)
    said = []

    def pass_on(sender, receiver, data):
        said.append((sender.side, data))
        return receiver.receive_bytes(data)
    pass_on(one, two, one.send(SAMPLES["Hello"]))
    pass_on(two, one, two.send(SAMPLES["Welcome"]))
    pass_on(one, two, one.send(SAMPLES["Pair"]))
    pass_on(two, one, two.send(SAMPLES["Paired"]))
    pass_on(one, two, one.send_batch(200) + bytes(200))
    pass_on(two, one, two.send(SAMPLES["Ack"]))
    pass_on(one, two, one.send(SAMPLES["Heartbeat"]))
    pass_on(two, one, two.send(SAMPLES["Heartbeat"]))
    pass_on(one, two, one.send(SAMPLES["Close"]))
    assert one.state is two.state is State.CLOSED
    assert one.id == two.id == 77
    return said


def test_a_conversation_cut_at_every_byte():
    """Whatever has arrived is whole frames in order; a cut shows as nothing more, never as something else."""
    said = conversation()
    for side, other in ((Side.PRIMARY, Side.SECONDARY), (Side.SECONDARY, Side.PRIMARY)):
        bytes_in = b"".join(data for who, data in said if who is other)
        ends, at = [], 0
        for who, data in said:
            if who is other:
                at += len(data)
                ends.append(at)
        for cut in range(len(bytes_in) + 1):
            session = Session(side)
            received = []
            session.state = State.GREETED if side is Side.PRIMARY else State.NEW
            stops = sorted({cut, *range(0, cut, 97), *(end for end in ends if end < cut)})  # the peer waits for each answer
            for start, stop in pairwise(stops):
                for message in session.receive_bytes(bytes_in[start:stop]):
                    received.append(message)
                    if isinstance(message, Hello):
                        session.state = State.WELCOMED
                        session.id = 77
                    if isinstance(message, Welcome):
                        session.state = State.PAIRING
                    if isinstance(message, Pair):
                        session.state = State.OPEN
            assert len(received) == sum(end <= cut for end in ends)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_any_chunking(sizes):
    session = in_state(Side.SECONDARY, State.OPEN)
    data = b"".join(frame_of(name, i) for i, name in enumerate(["Batch", "Heartbeat", "Batch", "Batch", "Heartbeat"]))
    received, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        received += session.receive_bytes(data[at:at + size])
        at, turn = at + size, turn + 1
    assert [type(r) for r in received] == [Batch, Heartbeat, Batch, Batch, Heartbeat]


FRAME_FIELDS = layout.fields("frame")


@pytest.mark.parametrize("field", [name for name, _, _ in FRAME_FIELDS])
@pytest.mark.parametrize("reseal", [False, True])
def test_each_header_field_corrupt(field, reseal):
    """A wrong field closes the connection: by the header's checksum, and, where the checksum is made right, by the
    field itself."""
    data = bytearray(frame_of("Heartbeat", 5, 9))
    _, offset, size = next(f for f in FRAME_FIELDS if f[0] == field)
    for value in (0, 1, 255, (1 << 8 * size) - 1, 1 << (8 * size - 1), 1 << 31, 1 << 63):
        new = (value % (1 << 8 * size)).to_bytes(size, "little")
        if new == data[offset:offset + size]:
            continue
        bad = bytearray(data)
        bad[offset:offset + size] = new
        if reseal and field != "crc":
            bad[28:32] = struct.pack("<I", crc32c(bytes(bad[:28])))
        session = in_state(Side.SECONDARY, State.OPEN)
        session.received, session.id = 5, 9
        if reseal and field == "length" and 0 < value % (1 << 32) <= messages.MOST_CONTROL and value % (1 << 32) > len(data) - 32:
            assert session.receive_bytes(bytes(bad)) == []  # it waits for the rest, which never comes
            continue
        with pytest.raises(ProtocolError):
            session.receive_bytes(bytes(bad))
        assert session.state is State.OPEN and session.received == 5


def test_every_flipped_bit_is_noticed():
    data = frame_of("Heartbeat")
    for bit in range(len(data) * 8):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            in_state(Side.SECONDARY, State.OPEN).receive_bytes(bytes(bad))


@pytest.mark.parametrize("kind", [*messages.TYPES, frames.BATCH])
def test_lengths_at_the_limit(kind):
    most = frames.MOST_BATCH if kind == frames.BATCH else messages.LIMITS[kind]
    for length, good in ((0, False), (1, True), (most - 1, True), (most, True), (most + 1, False), (1 << 31, False), ((1 << 32) - 1, False)):
        header = frames.pack(kind, length, 0, 0, 0)
        if good:
            assert frames.unpack(header, 0, 0).length == length
        else:
            with pytest.raises(ProtocolError, match="long"):
                frames.unpack(header, 0, 0)


def test_sequence_gap_repeat_and_wrap():
    for sequence in (0, 2, 1 << 63, (1 << 64) - 1):
        session = in_state(Side.SECONDARY, State.OPEN)
        session.received = 1
        with pytest.raises(ProtocolError, match="frame number"):
            session.receive_bytes(frame_of("Heartbeat", sequence))


def test_another_session():
    with pytest.raises(ProtocolError, match="session"):
        in_state(Side.SECONDARY, State.OPEN).receive_bytes(frame_of("Heartbeat", 0, 8))


@pytest.mark.parametrize("kind", [0, 12, 15, 17, 255, 65535])
def test_unknown_types(kind):
    with pytest.raises(ProtocolError, match="does not know"):
        frames.unpack(frames.pack(kind, 10, 0, 0, 0), 0, 0)


def test_a_batch_has_no_frame_checksum():
    with pytest.raises(ProtocolError, match="its own"):
        frames.unpack(frames.pack(frames.BATCH, 10, 1, 0, 0), 0, 0)


BAD = {
    "names": lambda m: {**m, "group_name": "../x"}, "newline": lambda m: {**m, "group_name": "db\n"},
    "long name": lambda m: {**m, "group_name": "a" * 256}, "empty name": lambda m: {**m, "group_name": ""},
    "dash": lambda m: {**m, "link": "-x"}, "unicode": lambda m: {**m, "link": "\u00e9"},
    "nul": lambda m: {**m, "link": "a\0"}, "short uuid": lambda m: {**m, "group": b"x"},
    "negative": lambda m: {**m, "lsn": -1}, "large": lambda m: {**m, "lsn": 1 << 63}, "float": lambda m: {**m, "lsn": 1.0},
    "bool": lambda m: {**m, "lsn": True},
    "unknown field": lambda m: {**m, "path": "/etc/passwd"}, "no generations": lambda m: {**m, "lineage": []},
    "many versions": lambda m: {**m, "versions": list(range(17))}, "missing": lambda m: {k: v for k, v in m.items() if k != "node"},
    "many stores": lambda m: {**m, "stores": [(1, "a", "volume", 1, 0)] * (layout.MAX_STORES + 1)},
    "long kind": lambda m: {**m, "stores": [(1, "a", "v" * 17, 1, 0)]}, "text lsn": lambda m: {**m, "lsn": "7"},
}


@pytest.mark.parametrize("what", BAD)
def test_malformed_hello(what):
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(SAMPLES["Hello"]))
    number = TYPE["Hello"]
    assert messages.decode(number, msgspec.msgpack.encode(fields)) == SAMPLES["Hello"]
    with pytest.raises(ProtocolError, match="malformed"):
        messages.decode(number, msgspec.msgpack.encode(BAD[what](fields)))


@pytest.mark.parametrize("siblings", [[(U, 1)] * (messages.MOST_SIBLINGS + 1), [(b"x", 1)], [(U, -1)], [(U, 1 << 63)], [U], U])
def test_siblings_that_cannot_be(siblings):
    most = Heartbeat(number=1, siblings=[(U, 7)] * messages.MOST_SIBLINGS)
    assert messages.decode(*messages.encode(most)) == most
    with pytest.raises(ProtocolError, match="malformed"):
        messages.decode(TYPE["Heartbeat"], msgspec.msgpack.encode({"number": 1, "siblings": siblings}))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(messages.TYPES)), st.binary(max_size=300))
def test_random_bodies(kind, body):
    with contextlib.suppress(ProtocolError):
        messages.decode(kind, body)


def test_a_wrong_body_changes_nothing():
    session = in_state(Side.SECONDARY, State.OPEN)
    body = b"\xc1\xff"
    with pytest.raises(ProtocolError, match="malformed"):
        session.receive_bytes(frames.pack(TYPE["Heartbeat"], len(body), crc32c(body), 0, 0) + body)
    assert (session.state, session.received) == (State.OPEN, 0)


def test_a_body_without_its_header():
    with pytest.raises(ProtocolError, match="without its header"):
        in_state(Side.SECONDARY, State.OPEN).take_body(b"x")


def test_too_much_to_say():
    stores = [StoreInfo(i, "n" * 255, "volume", 1 << 40, 0) for i in range(1, layout.MAX_STORES + 1)]
    hello = msgspec.structs.replace(SAMPLES["Hello"], stores=stores)
    with pytest.raises(ProtocolError, match="longer"):
        messages.encode(hello)
    assert len(messages.encode(msgspec.structs.replace(hello, stores=stores[:900]))[1]) <= messages.MOST_HELLO
    with pytest.raises(InternalError):
        in_state(Side.PRIMARY, State.OPEN).send_batch(frames.MOST_BATCH + 1)
    with pytest.raises(InternalError):
        in_state(Side.PRIMARY, State.OPEN).send_batch(0)
