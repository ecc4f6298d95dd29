"""The stream by the run: batches out of a window and into another one, many at a time.

The twin is the slow way: one entry, one frame at a time.
"""

from __future__ import annotations

import contextlib
import mmap
import random
import socket
import threading

import pytest

from pyrepl._core import layout, stream
from pyrepl._core.stream import Inlet, Outlet, Reach
from tests.core.test_window import START, make
from tests.support import forge
from tests.support.devices import FailingDevice

BLOCK = 4096
MIB = 1 << 20
SESSION = 77
MOST = layout.FRAME_SIZE + BLOCK + layout.MAX_PAYLOAD
EVERYTHING = 1 << 62


def fill(window, batches, seed=1, longest=5):
    """Batches of random writes, each written before the next begins; durable."""
    rng = random.Random(seed)
    for _ in range(batches):
        for _ in range(rng.randrange(1, 6)):
            length = rng.randrange(1, longest) * BLOCK
            offset = rng.randrange(1000) * BLOCK
            window.submit(1, offset, rng.randbytes(length))
        window.commit_pending()
    window.make_durable(window.state().end_position)


def frames_of(window, position=0, sequence=0):
    """All batches of events from there on, the slow way."""
    made = b""
    while (entry := window.entry(position)) is not None:
        with entry:
            position = entry.next_position
            if entry.batch_kind == layout.BATCH_EVENTS:
                body = bytes(entry.head) + bytes(entry.payload)
                made += layout.pack_frame(
                    type=layout.FRAME_BATCH, length=len(body), sequence=sequence, session=SESSION
                ) + body
                sequence += 1
    return made


def reach_of(window, sequence=0, previous=None, lsn=0, session=SESSION, group=forge.GROUP, generation=forge.GENERATION):
    reach = Reach(alignment=4096)
    reach.begin(group, generation, session, sequence, lsn, previous)
    return reach


def same_events(one, other):
    def all_of(window):
        position, found = 0, []
        while (entry := window.entry(position)) is not None:
            with entry:
                found.append((entry.first_lsn, bytes(entry.head), bytes(entry.payload)))
                position = entry.next_position
        return found

    assert all_of(one) == all_of(other)


# ---------------------------------------------------------------- frames


def test_frames_are_those_of_the_layout():
    for values in ((16, 5000, 0, 0, 0), (6, 1, 2**32 - 1, 2**64 - 1, 2**32 - 1)):
        kind, length, body_crc, sequence, session = values
        header = stream.pack_frame(*values)
        assert header == layout.pack_frame(type=kind, length=length, body_crc=body_crc, sequence=sequence, session=session)
        assert stream.unpack_frame(header) == values
    for number in range(layout.FRAME_SIZE * 8):
        wrong = bytearray(header)
        wrong[number // 8] ^= 1 << number % 8
        with pytest.raises(ValueError, match="magic|version|checksum"):
            stream.unpack_frame(wrong)
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        stream.unpack_frame(header[:-1])


# ---------------------------------------------------------------- out


@pytest.mark.parametrize("where", ["in the window", "read back"])
def test_a_lot_is_what_the_entries_are(where):
    _, window = make()
    fill(window, 300, longest=4)
    want, end = frames_of(window), window.state().durable_position
    if where == "read back":
        window.applied(end, window.state().durable_lsn)
        assert window.state().ring_used == 0
    got, position, sequence, lsn, lots = b"", 0, 0, 0, 0
    outlet = Outlet(window)
    while outlet.fetch(position, end, 1 << 18):
        assert outlet.count <= stream.LOT and outlet.first_lsn == lsn + 1
        marks = outlet.marks()
        outlet.seal(sequence, SESSION)
        assert outlet.length == sum(length + layout.FRAME_SIZE for length, *_ in marks)
        for number, (length, last, behind, longest) in enumerate(marks):
            with window.entry(position) as entry:
                assert (length, last, behind) == (len(entry.head) + len(entry.payload), entry.last_lsn, entry.next_position)
                assert outlet.head(number) == bytes(entry.head)
                assert longest == max(e[3] if isinstance(e[3], int) else len(e[3]) for e in forge.parse(
                    bytes(64) + bytes(entry.head).ljust(BLOCK - 64, b"\0") + bytes(entry.payload))["events"])
            position, lsn, sequence = behind, last, sequence + 1
        got += bytes(outlet)
        lots += 1
    assert got == want and position == end and 1 < lots < 100
    outlet.release()
    outlet.release()
    with pytest.raises(IndexError):
        outlet.head(0)


def test_a_lot_ends_before_what_is_no_event_of_its_generation():
    _, window = make()
    fill(window, 3, seed=1)
    note = window.state().end_position
    window.append_note(5, b"note")
    fill(window, 2, seed=2)
    operation = window.state().end_position
    window.submit_operation(b"op", blocks=[], sizes=[], dropped=[])
    window.commit_pending()
    third = window.state().end_position
    fill(window, 2, seed=3)
    second = window.state().end_position
    window.set_generation(b"f" * 16, forge.GROUP)
    fill(window, 4, seed=4)
    end = window.state().durable_position
    for _ in ("in the window", "read back"):
        outlet = Outlet(window)
        assert outlet.fetch(0, end, EVERYTHING) == 3 and outlet.marks()[-1][2] == note
        assert outlet.fetch(note, end, EVERYTHING) == 0, "a note is the caller's"
        assert outlet.fetch(operation, end, EVERYTHING) == 0, "an operation is the caller's"
        assert outlet.fetch(third, end, EVERYTHING) == 2 and outlet.marks()[-1][2] == second
        assert outlet.fetch(second, end, EVERYTHING) == 4 and outlet.marks()[-1][2] == end
        assert outlet.fetch(second, end - BLOCK, EVERYTHING) == 3, "what ends behind the limit is not durable"
        assert outlet.fetch(end, end, EVERYTHING) == 0
        with pytest.raises(ValueError, match="outside its bounds"):
            outlet.fetch(end + BLOCK, end, EVERYTHING)
        outlet.release()
        window.applied(end, window.state().durable_lsn)
    window.set_tail(note)
    with pytest.raises(ValueError, match="outside its bounds"):
        outlet.fetch(0, end, EVERYTHING)


def test_a_long_record_and_a_bad_one_are_left_to_the_entry():
    device, window = make()
    window.write(1, 0, bytes(3 * MIB))
    fill(window, 2)
    end = window.state().durable_position
    outlet = Outlet(window)
    assert outlet.fetch(0, end, 1) == 1, "the first goes, however long"
    outlet.release()
    window.applied(end, window.state().durable_lsn)
    with window.entry(0) as entry:
        behind = entry.next_position
    assert behind > MIB and outlet.fetch(0, end, EVERYTHING) == 0
    assert outlet.fetch(behind, end, EVERYTHING) >= 1
    first = outlet.marks()[0][2]
    outlet.release()
    device.write(START + first, b"x" * 512)
    assert outlet.fetch(behind, end, EVERYTHING) == 1, "up to the bad one"
    assert outlet.fetch(first, end, EVERYTHING) == 0
    with pytest.raises(ValueError, match="not a valid record"):
        window.entry(first)


def test_reading_back_fails():
    device = FailingDevice(size=START + 16 * MIB, kind="read", beyond=0)
    _, window = make(device)
    fill(window, 3)
    end = window.state().durable_position
    window.applied(end, window.state().durable_lsn)
    with pytest.raises(OSError):
        Outlet(window).fetch(0, end, EVERYTHING)


def reader_of(sock, count, got):
    while len(got) < count:
        got += sock.recv(1 << 16)


def test_a_lot_is_sent_whole_by_small_pieces():
    _, window = make()
    fill(window, 60)
    outlet = Outlet(window)
    outlet.fetch(0, window.state().durable_position, EVERYTHING)
    outlet.seal(5, SESSION)
    want = bytes(outlet)
    near, far = socket.socketpair()
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        got = bytearray()
        thread = threading.Thread(target=reader_of, args=(far, len(want), got))
        thread.start()
        assert outlet.send(near.fileno(), 60000, 60000) == len(want)
        thread.join(20)
        assert bytes(got) == want and outlet.length == 0


def test_a_peer_that_does_not_read_holds_no_memory_and_is_given_up():
    _, window = make()
    fill(window, 60)
    end = window.state().durable_position
    outlet = Outlet(window)
    outlet.fetch(0, end, EVERYTHING)
    outlet.seal(0, SESSION)
    want = bytes(outlet)
    window.applied(end, window.state().durable_lsn)
    assert window.state().ring_used > 0, "the lot pins it"
    near, far = socket.socketpair()
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with pytest.raises(TimeoutError):
            outlet.send(near.fileno(), 1, 50)
        assert window.state().ring_used == 0, "what could not be sent was copied away"
        got = bytearray()
        thread = threading.Thread(target=reader_of, args=(far, len(want), got))
        thread.start()
        outlet.send(near.fileno(), 1, 60000)
        thread.join(20)
        assert bytes(got) == want
        far.close()
        outlet.fetch(0, end, EVERYTHING)
        outlet.seal(0, SESSION)
        with pytest.raises(OSError):
            for _ in range(100):
                outlet.seal(0, SESSION)
                outlet.send(near.fileno(), 100, 100)


# ---------------------------------------------------------------- in


def test_what_is_taken_is_what_was_sent():
    _, one = make()
    fill(one, 50)
    data = frames_of(one)
    for seed in range(8):
        rng = random.Random(seed)
        _, other = make()
        reach, held, total = reach_of(other), b"", 0
        while len(held) < len(data) - total:
            held += data[total + len(held):][:rng.choice([1, 33, 5000, 200000])]
            count = stream.take(other, reach, held)
            held, total = held[count:], total + count
            if count == 0 and len(held) > MOST:
                break
        assert total == len(data) == reach.bytes and reach.batches == reach.sequence == 50
        assert reach.lsn == one.state().end_lsn == other.state().end_lsn
        assert reach.position == other.state().end_position
        other.make_durable(reach.position)
        same_events(one, other)


def reseal(frame, **fields):
    """The same batch in a frame with other fields."""
    values = layout.unpack_frame(frame[:layout.FRAME_SIZE])
    return layout.pack_frame(**{**{k: values[k] for k in ("type", "length", "body_crc", "sequence", "session")}, **fields}) + frame[
        layout.FRAME_SIZE:]


def framed(records, **fields):
    head, payload = forge.batch(records, **fields)
    return layout.pack_frame(type=16, length=len(head + payload), sequence=0, session=SESSION) + head + payload


ZERO = [(forge.ZERO, 1, 0, BLOCK)]
DATA = [(forge.WRITE, 1, 0, b"d" * BLOCK)]
OTHERS = {
    "frame: sequence": lambda: reseal(framed(ZERO), sequence=1),
    "frame: session": lambda: reseal(framed(ZERO), session=1),
    "frame: a message": lambda: reseal(framed(ZERO), type=6),
    "frame: with a checksum": lambda: reseal(framed(ZERO), body_crc=1),
    "frame: its own checksum": lambda: framed(ZERO)[:31] + b"!" + framed(ZERO)[32:],
    "frame: longer than its batch": lambda: reseal(framed(ZERO) + bytes(32), length=len(framed(ZERO))),
    "frame: shorter than its batch": lambda: reseal(framed(DATA), length=len(framed(DATA)) - 64),
    "frame: of nothing": lambda: layout.pack_frame(type=16, length=1, sequence=0, session=SESSION) + b"x" * 200,
    "frame: longer than any": lambda: layout.pack_frame(type=16, length=1 << 31, sequence=0, session=SESSION) + bytes(200),
    "an operation": lambda: framed([(forge.OP, 0, 0, b"op")], kind=forge.OPERATION),
    "copied regions": lambda: framed(ZERO, kind=forge.COPIED, item=1),
    "an item": lambda: framed([(forge.OP, 0, 0, b"it")], kind=forge.ITEM, item=1),
    "events with an item's number": lambda: framed(ZERO, item=1),
    "events with a read's end": lambda: framed(ZERO, read_end=1),
    "a gap": lambda: framed(ZERO, first_lsn=2),
    "again": lambda: framed(ZERO, first_lsn=0),
    "another generation": lambda: framed(ZERO, generation=b"z" * 16),
    "another group": lambda: framed(ZERO, group=b"z" * 16),
    "another batch before": lambda: framed(ZERO, previous=4),
    "checksum of the head": lambda: framed(ZERO, crc=1),
    "checksum of the payload": lambda: framed(DATA)[:-1] + b"!",
    "no such store": lambda: framed([(forge.ZERO, 9, 0, BLOCK)]),
    "a store of this site": lambda: framed([(forge.ZERO, layout.FIRST_LOCAL, 0, BLOCK)]),
    "past the end": lambda: framed([(forge.ZERO, 1, 64 * MIB, BLOCK)]),
    "across the end": lambda: framed([(forge.ZERO, 1, 64 * MIB - BLOCK, 2 * BLOCK)]),
    "the second one lies outside": lambda: framed([*ZERO, (forge.ZERO, 1, 64 * MIB, BLOCK)]),
    "not aligned": lambda: framed([(forge.ZERO, 1, 512, BLOCK)]),
    "no records": lambda: framed([]),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_not_taken_changes_nothing(what):
    _, window = make(stores=((1, 64 * MIB), (layout.FIRST_LOCAL, MIB)))
    before = window.state()
    reach = reach_of(window, previous=3)
    good = framed(DATA, previous=3)
    assert stream.take(window, reach, OTHERS[what]()) == 0
    assert (reach.batches, reach.sequence, reach.lsn, reach.previous) == (0, 0, 0, 3) and window.state() == before
    assert stream.take(window, reach, good) == len(good), "the same window takes what is right"


def test_what_there_is_no_room_for_waits():
    _, window = make(log=MIB, reserve=0)
    reach = reach_of(window)
    sent, lsn, previous = 0, 0, None
    while True:
        head, payload = forge.batch([(forge.WRITE, 1, 0, bytes(64 * BLOCK))], first_lsn=lsn + 1)
        frame = layout.pack_frame(type=16, length=len(head + payload), sequence=sent, session=SESSION) + head + payload
        reach.begin(forge.GROUP, forge.GENERATION, SESSION, sent, lsn, previous)
        if not stream.take(window, reach, frame):
            break
        sent, lsn = sent + 1, lsn + 1
    assert sent in (3, 4)
    window.make_durable(window.state().end_position)
    window.applied(window.state().end_position, lsn)
    window.set_tail(window.state().end_position)
    assert stream.take(window, reach, frame) == len(frame)


def test_a_window_that_failed_says_so():
    _, window = make()
    window.fail(5)
    with pytest.raises(OSError):
        stream.take(window, reach_of(window), framed(ZERO))


@contextlib.contextmanager
def inlet_of(sock):
    memory = memoryview(mmap.mmap(-1, 2 * MOST))
    yield Inlet(sock.fileno(), memory), memory


@pytest.mark.parametrize("seed", range(4))
def test_an_inlet_takes_runs_and_leaves_the_rest(seed):
    """Frames of all kinds in random pieces; batches are taken by the run, others one by one, whatever their lengths."""
    rng = random.Random(seed)
    _, one = make()
    fill(one, 40, longest=30)
    parts, position, sequence = [], 0, 0
    while (entry := one.entry(position)) is not None:
        with entry:
            position = entry.next_position
            body = bytes(entry.head) + bytes(entry.payload)
        parts.append(layout.pack_frame(type=16, length=len(body), sequence=sequence, session=SESSION) + body)
        sequence += 1
        if rng.random() < 0.3:
            body = rng.randbytes(rng.randrange(1, 300))
            parts.append(stream.pack_frame(7, len(body), 0, sequence, SESSION) + body)
            sequence += 1
    data, messages = b"".join(parts), [part for part in parts if part[6] == 7]
    near, far = socket.socketpair()
    _, other = make()

    def send():
        at = 0
        while at < len(data):
            count = rng.choice([1, 7, 32, 4096, 300000])
            near.sendall(data[at:at + count])
            at += count
        near.shutdown(socket.SHUT_WR)

    with near, far, inlet_of(far) as (inlet, memory):
        thread = threading.Thread(target=send)
        thread.start()
        reach, number, lsn, previous, seen = reach_of(other), 0, 0, None, []
        with pytest.raises(EOFError):
            while True:
                reach.begin(forge.GROUP, forge.GENERATION, SESSION, number, lsn, previous)
                if inlet.take(other, reach, 1 << 20, 1 << 16):
                    number, lsn, previous = reach.sequence, reach.lsn, reach.previous
                    continue
                at = inlet.fill(layout.FRAME_SIZE)
                length = layout.FRAME_SIZE + stream.unpack_frame(memory[at:at + layout.FRAME_SIZE])[1]
                at = inlet.fill(length)
                assert inlet.is_whole and inlet.at_hand >= length
                seen.append(bytes(memory[at:at + length]))
                inlet.skip(length)
                number += 1
        thread.join(20)
        assert seen == messages and inlet.received == len(data) and inlet.at_hand == 0 and not inlet.is_whole
    other.make_durable(other.state().end_position)
    same_events(one, other)


def test_an_inlet_says_what_it_lacks():
    near, far = socket.socketpair()
    _, window = make()
    with near, far, inlet_of(far) as (inlet, _):
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, (0).to_bytes(8, "little") + (20000).to_bytes(8, "little"))
        near.sendall(framed(ZERO)[:40])
        reach = reach_of(window)
        with pytest.raises(BlockingIOError):
            inlet.take(window, reach, 1 << 20, 0)
        with pytest.raises(BlockingIOError):
            inlet.fill(41)
        inlet.fill(40)
        with pytest.raises(ValueError, match="41 bytes are not at hand"):
            inlet.skip(41)
        with pytest.raises(ValueError, match="do not fit"):
            inlet.fill(1 << 30)
        near.sendall(framed(ZERO)[40:])
        assert inlet.take(window, reach, 1 << 20, 0) and reach.batches == 1
        window.fail(5)
        near.sendall(framed(ZERO, first_lsn=2)[:0] + reseal(framed(ZERO, first_lsn=2), sequence=1))
        reach.begin(forge.GROUP, forge.GENERATION, SESSION, 1, 1, None)
        with pytest.raises(OSError, match="Input/output"):
            inlet.take(window, reach, 1 << 20, 0)
    with pytest.raises(ValueError, match="longest frame"):
        Inlet(0, bytearray(100))
    with pytest.raises(ValueError, match="16 bytes"):
        Reach(alignment=512).begin(b"short", bytes(16), 0, 0, 0, None)


def test_what_is_appended_quietly_is_durable_by_one_write():
    """Else by a write and a flush, and the committer is woken for it."""
    _, window = make()
    near, far = socket.socketpair()
    with near, far, inlet_of(far) as (inlet, _):
        near.sendall(framed(DATA))
        reach = reach_of(window)
        assert inlet.take(window, reach, 1 << 20, 1 << 20)
        assert window.state().written_position == 0
        window.make_durable(reach.position)
        state = window.state()
        assert state.durable_position == reach.position and (state.commits, state.flushes) == (1, 0)
        head, payload = forge.batch(DATA, first_lsn=2, previous=reach.previous)
        near.sendall(layout.pack_frame(type=16, length=len(head + payload), sequence=1, session=SESSION) + head + payload)
        reach.begin(forge.GROUP, forge.GENERATION, SESSION, 1, 1, reach.previous)
        assert inlet.take(window, reach, 1 << 20, 0)
        committer = threading.Thread(target=window.run_committer, daemon=True)
        committer.start()
        assert window.wait_written(reach.position - 1, 20) == reach.position
        window.make_durable(reach.position)
        assert window.state().flushes == 1
    window.close()
    committer.join(20)


def test_who_waits_for_a_far_position_sleeps_on():
    """One waits for the next record, another for many: a commit wakes the first only."""
    _, window = make()
    woken = []

    def wait(beyond):
        window.wait_written(beyond, 20)
        woken.append(beyond)

    threads = [threading.Thread(target=wait, args=(beyond,)) for beyond in (0, 20 * BLOCK)]
    for thread in threads:
        thread.start()
    window.write(1, 0, bytes(BLOCK))
    threads[0].join(20)
    assert woken == [0] and threads[1].is_alive()
    for number in range(12):
        window.write(1, number * BLOCK, bytes(BLOCK))
    threads[1].join(20)
    assert woken == [0, 20 * BLOCK]


def test_a_window_and_its_lot_may_go_in_any_order():
    _, window = make()
    fill(window, 2)
    outlet = Outlet(window)
    outlet.fetch(0, window.state().durable_position, EVERYTHING)
    window.close()
    del window
    assert outlet.count == 2
