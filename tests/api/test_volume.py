"""Reading and writing through the public API: any offset and length, against a bytearray; and every refusal."""

from __future__ import annotations

import os
import random
import threading
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyrepl
from pyrepl.errors import DeviceError, NotFound, Refused, UsageError
from tests.support.examples import examples

MIB = 1 << 20
REGION = 64 * 1024
SIZE = 4 * MIB


@pytest.fixture
def volume(group):
    return group.add_volume("data", size=SIZE)


@pytest.fixture(params=[512, 4096])
def aligned(request, nodes, tmp_path):
    made = nodes().create_group("db", tmp_path / "journal", journal_size=16 * MIB, alignment=request.param)
    return made.add_volume("data", size=SIZE)


positions = st.integers(0, SIZE - 1) | st.integers(0, SIZE // 512 - 1).map(lambda n: n * 512)
lengths = st.integers(1, 10_000) | st.sampled_from([512, 4096, 8192, REGION, MIB, 2 * MIB + 512])
acts = st.tuples(st.sampled_from(["write", "submit", "zero", "discard", "read"]), positions, lengths, st.booleans())


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(acts, max_size=12), st.integers(0, 2**32))
def test_as_a_bytearray(aligned, story, seed):
    rng, twin = random.Random(seed), bytearray(aligned.read(0, SIZE))
    lsn = 0
    for act, offset, length, durable in story:
        length = min(length, SIZE - offset)
        if act == "read":
            assert aligned.read(offset, length) == twin[offset:offset + length]
            continue
        if act in ("zero", "discard"):
            twin[offset:offset + length] = bytes(length)
            after = getattr(aligned, act)(offset, length)
        else:
            data = rng.randbytes(length)
            twin[offset:offset + length] = data
            if act == "write":
                after = aligned.write(offset, data, fua=durable)
            else:
                after = aligned.submit_write(offset, data, fua=durable).wait(10)
        assert after > lsn
        lsn = after
    assert aligned.read(0, SIZE) == twin
    assert aligned.flush() >= lsn


def test_every_storage(storage, nodes):
    node = nodes()
    group = node.create_group("db", storage.device(16 * MIB), alignment=storage.alignment)
    volume = group.add_volume("data", storage.device(SIZE))
    assert volume.size == SIZE
    data = os.urandom(MIB + 5)
    volume.write(storage.alignment * 3 - 2, data)
    snapshot = volume.snapshot("before")
    volume.zero(0, SIZE)
    assert not any(volume.read(0, SIZE))
    volume.restore(snapshot)
    assert volume.read(storage.alignment * 3 - 2, len(data)) == data
    before = volume.read(0, SIZE)
    node.close()
    again = nodes().group("db").volume("data")
    assert again.read(0, SIZE) == before


def test_buffers_of_all_kinds(volume):
    array = np.arange(2048, dtype=np.uint16)
    volume.write(0, array)
    assert volume.read(0, 4096) == array.tobytes()
    volume.write(4096, memoryview(array)[:100])
    assert volume.read(4096, 200) == array[:100].tobytes()
    into = np.zeros(1000, dtype=np.uint32)
    assert volume.readinto(96, into) == 4000
    assert into.tobytes() == array.tobytes()[96:4096]
    target = bytearray(10)
    assert volume.readinto(4090, target) == 10
    assert target == array.tobytes()[4090:] + array.tobytes()[:4]


def test_a_buffer_may_be_used_again_when_submit_returns(volume):
    buffer = bytearray(4096)
    tickets = []
    for n in range(50):
        buffer[:] = bytes([n]) * 4096
        tickets.append(volume.submit_write(n * 4096, buffer))
    lsns = [ticket.wait() for ticket in tickets]
    assert lsns == sorted(lsns) == [ticket.lsn for ticket in tickets]
    assert all(ticket.done() for ticket in tickets)
    assert [volume.read(n * 4096, 1)[0] for n in range(50)] == list(range(50))


def test_an_unaligned_ticket_is_done(volume):
    ticket = volume.submit_write(3, b"abc")
    assert ticket.done() and ticket.wait(0) == ticket.lsn
    assert volume.read(2, 5) == b"\0abc\0"


@pytest.mark.parametrize("offset", [SIZE, SIZE - 4095, 2**62, 2**63 - 4096, 2**63, 2**64 - 4096, 2**64 - 1, 2**64, 2**80])
def test_outside(volume, offset):
    before = volume.group.wait()
    for call in (lambda: volume.read(offset, 4096), lambda: volume.readinto(offset, bytearray(4096)),
                 lambda: volume.write(offset, bytes(4096)), lambda: volume.submit_write(offset, bytes(4096)),
                 lambda: volume.zero(offset, 4096), lambda: volume.discard(offset, 4096)):
        with pytest.raises(UsageError, match=f"which is {SIZE} bytes long"):
            call()
    assert volume.group.wait() == before


@pytest.mark.parametrize(("offset", "length"), [(0, 2**63), (0, 2**64 - 1), (4096, 2**64 - 4096), (0, SIZE + 1)])
def test_too_long(volume, offset, length):
    for call in (volume.read, volume.zero, volume.discard):
        with pytest.raises(UsageError, match="bytes long"):
            call(offset, length)


@pytest.mark.parametrize(("offset", "length"), [
    (-1, 1), (0, -1), ("0", 1), (None, 1), (0, "4096"), (0.0, 4096), (1.5, 1), (0, 4096.0), (True, 1), (np.float64(4096), 1),
])
def test_not_a_number_of_bytes(volume, offset, length):
    for call in (volume.read, volume.zero):
        with pytest.raises(UsageError, match="whole numbers"):
            call(offset, length)
    if length == 1:
        with pytest.raises(UsageError, match="whole numbers"):
            volume.write(offset, b"x")


@pytest.mark.parametrize("offset", [0.0, 4096.0, 1.5, None, "0", True, False, np.float64(0), -4096])
def test_not_an_offset(volume, offset):
    before = volume.flush()
    for call in (lambda: volume.write(offset, bytes(4096)), lambda: volume.submit_write(offset, bytes(4096)),
                 lambda: volume.readinto(offset, bytearray(4096)), lambda: volume.discard(offset, 4096)):
        with pytest.raises(UsageError, match="whole numbers"):
            call()
    assert volume.flush() == before


def test_nothing(volume):
    assert volume.read(5, 0) == b"" and volume.readinto(SIZE, bytearray()) == 0
    for call in (lambda: volume.write(0, b""), lambda: volume.zero(0, 0), lambda: volume.submit_write(4096, b"")):
        with pytest.raises(UsageError, match="empty"):
            call()


def test_not_a_buffer(volume):
    with pytest.raises(UsageError, match="int has no buffer"):
        volume.write(0, 5)
    with pytest.raises(UsageError, match="str has no buffer"):
        volume.submit_write(0, "text")
    with pytest.raises(UsageError, match="NoneType has no buffer"):
        volume.readinto(0, None)
    with pytest.raises(UsageError, match="not contiguous"):
        volume.write(0, memoryview(bytes(8192))[::2])
    with pytest.raises(UsageError, match="cannot be written to"):
        volume.readinto(0, bytes(4096))
    assert not any(volume.read(0, 8192))


def test_of_a_deleted_store(group, volume):
    snapshot = volume.snapshot("s")
    snapshot.delete()
    volume.snapshot("s")  # another store of the same name is not the same store
    for call in (lambda: snapshot.read(0, 1), lambda: snapshot.write(0, bytes(4096)), lambda: snapshot.write(1, b"x"),
                 lambda: snapshot.zero(0, 1), lambda: snapshot.size, lambda: snapshot.readinto(0, bytearray(1)),
                 snapshot.refresh, snapshot.delete, lambda: snapshot.submit_write(0, bytes(4096)),
                 lambda: volume.restore(snapshot)):
        with pytest.raises(NotFound, match="deleted"):
            call()


def test_after_close(group, volume):
    ticket = volume.submit_write(0, bytes(4096))
    group.close()
    group.close()
    assert ticket.lsn
    for call in (lambda: volume.read(0, 1), lambda: volume.write(0, bytes(4096)), lambda: volume.zero(0, 1),
                 lambda: volume.submit_write(0, bytes(4096)), lambda: volume.readinto(0, bytearray(1)), volume.flush,
                 lambda: volume.snapshot("s"), lambda: group.volume("data"), lambda: group.volumes, group.wait,
                 lambda: group.mark("m"), lambda: group.add_volume("x", size=REGION), lambda: group.links):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.reason == "closed"
    assert group.state == "closed" and group.status()["state"] == "closed"


def test_a_secondary_is_read_only(nodes, tmp_path):
    group = nodes().create_group("db", tmp_path / "j", journal_size=16 * MIB, role="secondary")
    volume = group.add_volume("data", size=SIZE)
    assert not any(volume.read(0, SIZE))
    for call in (lambda: volume.write(0, bytes(4096)), lambda: volume.write(1, b"x"), lambda: volume.zero(0, SIZE),
                 lambda: volume.submit_write(0, bytes(4096)), lambda: volume.snapshot("s"), lambda: group.mark("m"),
                 lambda: volume.discard(0, 1), lambda: volume.resize(2 * SIZE), lambda: group.add_link("x", "127.0.0.1:1")):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.reason == "role"


def test_from_many_threads(volume):
    lsns: list[int] = []
    errors: list[BaseException] = []

    def work(number):
        try:
            mine = []
            for n in range(200):
                offset = (number * 200 + n) % 512 * 4096 + number * 3
                mine.append(volume.write(offset, bytes([number + 1]) * (7 if n % 5 else 4096)))
                if n % 50 == 0:
                    volume.flush()
                    volume.group.mark(f"t{number}-{n}")
                volume.read(offset, 1)
            lsns.extend(mine)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(set(lsns)) == len(lsns) == 1200


def test_a_failed_group_raises_its_error_everywhere(nodes, group, volume):
    events = group_events = nodes("other").events()  # of another node: must stay empty
    snapshot = volume.snapshot("s")
    group.site.window.fail(5)
    with pytest.raises(DeviceError, match="failed") as first:
        volume.write(0, bytes(4096))
    for call in (lambda: volume.read(0, 1), lambda: volume.write(1, b"x"), volume.flush, lambda: snapshot.delete(),
                 lambda: volume.zero(0, 1), lambda: group.volume("data"), lambda: group.wait(1), lambda: group.mark("m")):
        with pytest.raises(DeviceError) as caught:
            call()
        assert caught.value is not first.value and str(caught.value) == str(first.value)
    assert group.state == "failed" and group.status()["error"] == str(first.value)
    assert caught.value.errno == 5 and caught.value.context["group"] == "db"
    group.close()
    group_events.close()
    assert events.get(timeout=0) is None


def test_what_failed_in_the_background_is_heard_of(nodes, tmp_path, monkeypatch):
    node = nodes()
    events = node.events()
    group = node.create_group("db", tmp_path / "journal", journal_size=16 * MIB)
    volume = group.add_volume("data", size=SIZE)

    def step():
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(group.site, "step", step)
    with suppress(pyrepl.errors.InternalError):  # the step may fail before it
        volume.write(0, bytes(4096))
    for event in events:
        if event["event"] == "group-failed":
            break
    assert event["group"] == "db" and event["error"] == "internal" and "a bug" in event["text"]
    with pytest.raises(pyrepl.errors.InternalError, match="a bug"):
        volume.read(0, 1)
