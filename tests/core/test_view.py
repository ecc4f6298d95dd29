"""Reading a store: against bytes, and at the moments at which a careless reader sees what never was."""

from __future__ import annotations

import errno
import gc
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrepl._core import view
from tests.support.devices import FailingDevice, MemoryDevice
from tests.support.examples import examples
from tests.support.site import Site

SIZE = 64 << 10


class Watched(MemoryDevice):
    """Calls `during` once, in the midst of a read: before the bytes are taken, or after."""

    during = None
    late = False
    reads = 0

    def do_read(self, offset, length):
        self.reads += 1
        call, self.during = self.during, None
        if call is not None and not self.late:
            call()
        data = super().do_read(offset, length)
        if call is not None and self.late:
            call()
        return data


@pytest.mark.parametrize("alignment", [512, 4096])
@settings(max_examples=examples(40), deadline=None)
@given(data=st.data())
def test_reads_are_those_of_a_bytearray(alignment, data):
    site = Site(3, size=SIZE, alignment=alignment)
    twin = {n: bytearray(SIZE) for n in (1, 2, 3)}
    blocks = SIZE // alignment

    def extent():
        first = data.draw(st.integers(0, blocks - 1))
        count = data.draw(st.integers(1, min(40, blocks - first)))
        return first * alignment, count * alignment

    for step in range(data.draw(st.integers(1, 14))):
        what = data.draw(st.sampled_from(["write", "zero", "unaligned", "apply", "copy", "read", "read"]))
        store = data.draw(st.integers(1, 3))
        offset, length = extent()
        if what == "write":
            new = bytes([step + 1]) * length
            site.window.write(store, offset, new)
            twin[store][offset : offset + length] = new
        elif what == "zero":
            site.window.zero(store, offset, length)
            twin[store][offset : offset + length] = bytes(length)
        elif what == "unaligned":
            offset += data.draw(st.integers(0, alignment - 1))
            length = min(data.draw(st.integers(1, 3 * alignment)), SIZE - offset)
            new = bytes([step + 101]) * length
            view.write_unaligned(site.window, site.stores, store, offset, new)
            twin[store][offset : offset + length] = new
        elif what == "apply":
            site.apply()
        elif what == "copy":
            target = data.draw(st.integers(2, 3))
            first = data.draw(st.integers(0, 7))
            count = data.draw(st.integers(1, 8 - first))
            site.copy(target, 1, first, count)
            twin[target][first * 8192 : (first + count) * 8192] = twin[1][first * 8192 : (first + count) * 8192]
        else:
            offset = data.draw(st.integers(0, SIZE))
            length = data.draw(st.integers(0, SIZE - offset))
            assert view.read(site.window, site.stores, store, offset, length) == twin[store][offset : offset + length]
    for store, want in twin.items():
        into = bytearray(SIZE + 1)
        view.readinto(site.window, site.stores, store, 0, memoryview(into)[1:])
        assert into[1:] == want
        site.apply()
        assert view.read(site.window, site.stores, store, 0, SIZE) == want


def test_more_pieces_than_go_out_at_once():
    """Every second block is in the window: half the blocks are I/Os of their own, more than one list of them."""
    size = 4 << 20
    site = Site(1, size=size)
    site.devices[1].data[:] = b"d" * size
    want = bytearray(b"d" * size)
    for block in range(0, 2400, 2):
        site.window.submit(1, block * 512, bytes([block % 251]) * 512)
        want[block * 512 : block * 512 + 512] = bytes([block % 251]) * 512
    assert view.read(site.window, site.stores, 1, 0, size) == want


def test_longer_than_one_look():
    size = 9 << 20
    site = Site(1, size=size, alignment=4096, region_size=65536)
    for at in range(0, size, 4096):
        site.devices[1].data[at : at + 8] = at.to_bytes(8, "little")
    for offset, length in ((0, size), (1, size - 1), (4095, size - 8000), (4096, 5 << 20)):
        assert view.read(site.window, site.stores, 1, offset, length) == site.devices[1].data[offset : offset + length]


def test_many_extents():
    """Regions of three sources in turn, more runs than the map is asked for at a time."""
    size = 1 << 20
    site = Site(3, size=size, region_size=4096)
    for n in (1, 2):
        site.devices[n].data[:] = bytes([n]) * size
    for region in range(256):
        if region % 3:
            site.repoint(region, 3, region % 3 - 1 and 1)
    want = b"".join(bytes([0, 0, 1][region % 3 : region % 3 + 1]) * 4096 for region in range(256))
    assert view.read(site.window, site.stores, 3, 0, size) == want
    assert view.read(site.window, site.stores, 3, 4000, size - 5000) == want[4000 : size - 1000]


# ---- the order of looks --------------------------------------------------------------------------------------------


def test_an_event_that_is_applied_while_the_device_is_read():
    """read_overlay: the write had returned; the device was read before it went home, the window looked into after."""
    site = Site(1, size=SIZE, device=Watched)
    site.devices[1].data[:] = b"o" * SIZE
    site.window.write(1, 0, b"n" * 512)
    site.devices[1].late = True
    site.devices[1].during = site.apply
    assert view.read(site.window, site.stores, 1, 0, 1024) == b"n" * 512 + b"o" * 512
    assert site.window.state().applied_lsn == 1


@pytest.mark.parametrize("late", [False, True])
def test_a_region_that_moves_while_the_device_is_read(late):
    """read_recheck: the snapshot's content moved to its own device, and the volume's device was overwritten."""
    site = Site(2, size=SIZE, device=Watched)
    site.devices[1].data[:] = b"o" * SIZE
    site.copy(2, 1, 0, 8)

    def overwrite():
        site.window.write(1, 0, b"n" * 16384)
        site.apply()

    site.devices[1].during, site.devices[1].late = overwrite, late
    assert view.read(site.window, site.stores, 2, 0, SIZE) == b"o" * SIZE
    assert site.devices[1].reads == 2  # the regions that stayed
    assert site.devices[2].reads == 1
    assert view.read(site.window, site.stores, 1, 0, 16384) == b"n" * 16384


def test_a_source_that_goes_away_and_comes_back():
    """read_version: the same source before and after, and still something else in between."""
    site = Site(2, size=SIZE, device=Watched)
    site.devices[1].data[:] = b"o" * SIZE
    site.copy(2, 1, 0, 8)

    def there_and_back():
        site.window.write(1, 0, b"x" * 8192)
        site.apply()
        site.copy(2, 1, 0, 1)
        site.devices[1].data[:8192] = b"y" * 8192  # as another write would have left it, map alike

    site.devices[1].during, site.devices[1].late = there_and_back, True
    assert site.stores.source(2, 0) == 1
    assert view.read(site.window, site.stores, 2, 0, 8192) == b"y" * 8192
    assert site.stores.source(2, 0) == 1 and site.devices[1].reads == 2


def test_a_device_that_leaves_while_it_is_read():
    """Its store is deleted and its last user moved off: the reader's copy of the map still names it."""
    site = Site(2, size=SIZE, device=Watched)
    site.devices[1].data[:] = b"o" * SIZE
    site.copy(2, 1, 0, 8)
    stores, window = site.stores, site.window

    def leave():
        device = site.devices[1]
        for region in range(8):
            site._own(2, region)
        stores.drop_map(1)
        stores.remove(1)
        device.data[:] = b"!" * SIZE
        device.close()
        del site.devices[1], device
        gc.collect()

    site.devices[1].during = leave
    assert view.read(window, stores, 2, 0, SIZE) == b"o" * SIZE
    assert stores.slots() == [2]


def test_an_error_of_a_device_that_is_not_the_source_any_more():
    class Gone(Watched):
        def do_read(self, offset, length):
            super().do_read(offset, length)
            raise OSError(errno.ENODEV, "pulled")

    class Any(Watched):
        pass

    kinds = iter([Gone, Any])
    site = Site(2, size=SIZE, device=lambda *args: next(kinds)(*args))
    site.stores.copy(2, 1, 0, 8)

    def move():
        site.devices[2].data[:] = b"m" * SIZE
        site.repoint(0, 2, 2, 8)

    site.devices[1].during = move
    assert view.read(site.window, site.stores, 2, 0, SIZE) == b"m" * SIZE
    with pytest.raises(OSError) as caught:
        view.read(site.window, site.stores, 1, 0, SIZE)
    assert caught.value.errno == errno.ENODEV and caught.value.filename == "disk1"
    assert isinstance(caught.value.__cause__, OSError) and "pulled" in str(caught.value.__cause__)


def test_a_read_waits_for_an_operation_on_its_store():
    site = Site(2, size=SIZE)
    site.devices[1].data[:] = b"1" * SIZE
    lsn = site.window.submit_operation(b"copy", blocks=[2], sizes=[], dropped=[])
    got = []
    reader = threading.Thread(target=lambda: got.append(view.read(site.window, site.stores, 2, 0, 512)))
    reader.start()
    assert view.read(site.window, site.stores, 1, 0, 512) == b"1" * 512  # of another store: does not wait
    reader.join(0.2)
    assert reader.is_alive() and not got
    site.stores.copy(2, 1, 0, 8)
    site.apply()
    reader.join(20)
    assert got == [b"1" * 512] and site.window.state().applied_lsn == lsn


def test_reads_while_everything_moves():
    """Each block holds one byte throughout each write: a reader must never see a mixture or an old value after a new
    one."""
    site = Site(2, size=SIZE)
    site.window.write(1, 0, b"\1" * SIZE)
    site.copy(2, 1, 0, 8)
    stop, wrong = threading.Event(), []
    floor = [1]

    def reader():
        while not stop.is_set():
            low = floor[0]
            seen = view.read(site.window, site.stores, 1, 0, SIZE)
            snap = view.read(site.window, site.stores, 2, 0, SIZE)
            blocks = [seen[at : at + 512] for at in range(0, SIZE, 512)]
            if any(len(set(block)) != 1 or block[0] < low for block in blocks) or set(snap) != {1}:
                wrong.append((low, sorted({block[0] for block in blocks}), set(snap)))
                return

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for thread in threads:
        thread.start()
    for value in range(2, 120):
        site.window.write(1, 0, bytes([value]) * SIZE)
        floor[0] = value
        site.apply()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- unaligned writes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alignment", [512, 4096])
def test_neighbours_in_one_block_do_not_lose_each_others_bytes(alignment):
    """Without holding the edge blocks one writer's old bytes overwrite the other's new ones."""
    site = Site(1, size=SIZE, alignment=alignment)
    width = 100

    def work(k):
        for turn in range(1, 6):
            at = k * width
            view.write_unaligned(site.window, site.stores, 1, at, bytes([k * 10 + turn]) * width, fua=turn == 5)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = b"".join(bytes([k * 10 + 5]) * width for k in range(12))
    assert view.read(site.window, site.stores, 1, 0, 1200) == want
    site.apply()
    assert view.read(site.window, site.stores, 1, 0, 1200) == want
    # Nothing is held any more:
    site.window.write(1, 0, bytes(SIZE))


def test_an_unaligned_write_longer_than_a_piece():
    size = 10 << 20
    site = Site(1, size=size, alignment=4096, region_size=65536)
    site.devices[1].data[:] = b"d" * size
    lsn = view.write_unaligned(site.window, site.stores, 1, 5, b"w" * (9 << 20), fua=True)
    assert lsn == site.window.state().durable_lsn >= 9
    assert view.read(site.window, site.stores, 1, 0, size) == b"d" * 5 + b"w" * (9 << 20) + b"d" * ((1 << 20) - 5)


def test_edges_are_let_go_when_reading_them_fails():
    site = Site(1, size=SIZE, device=lambda *args: FailingDevice(*args, kind="read", calls=[0]))
    with pytest.raises(OSError, match="disk1"):
        view.write_unaligned(site.window, site.stores, 1, 10, b"abc")
    assert view.write_unaligned(site.window, site.stores, 1, 10, b"abc") == 1
    site.window.write(1, 0, bytes(512))


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length"),
    [(-1, 1), (0, -1), (SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (2**63, 0), (2**64 - 1, 1), (1, 2**64 - 1)],
)
def test_ranges_outside(offset, length):
    site = Site(1, size=SIZE)
    with pytest.raises(ValueError):
        view.read(site.window, site.stores, 1, offset, length)
    if 0 <= length < 2**32:
        with pytest.raises(ValueError):
            view.readinto(site.window, site.stores, 1, offset, bytearray(length))
        with pytest.raises(ValueError):
            view.write_unaligned(site.window, site.stores, 1, offset, bytes(length))


@pytest.mark.parametrize("number", [0.0, 1.5, "0", None, True])
def test_what_is_no_whole_number(number):
    site = Site(1, size=SIZE)
    for call in (
        lambda: view.read(site.window, site.stores, 1, number, 512),
        lambda: view.read(site.window, site.stores, 1, 0, number),
        lambda: view.readinto(site.window, site.stores, 1, number, bytearray(512)),
        lambda: view.write_unaligned(site.window, site.stores, 1, number, b"x"),
        lambda: site.window.write(1, number, bytes(4096)),
        lambda: site.window.submit(1, number, bytes(4096)),
    ):
        with pytest.raises(TypeError, match="whole number"):
            call()
    assert site.window.state().end_lsn == 0


def test_what_is_not_there():
    site = Site(1, size=SIZE)
    for call in (
        lambda: view.read(site.window, site.stores, 9, 0, 512),
        lambda: view.readinto(site.window, site.stores, 9, 0, bytearray(512)),
        lambda: view.write_unaligned(site.window, site.stores, 9, 0, b"x"),
    ):
        with pytest.raises(LookupError):
            call()
    with pytest.raises(ValueError, match="nothing to write"):
        view.write_unaligned(site.window, site.stores, 1, 0, b"")
    with pytest.raises(BufferError):
        view.readinto(site.window, site.stores, 1, 0, b"read only")
    with pytest.raises(TypeError):
        view.read(None, site.stores, 1, 0, 512)
    assert view.read(site.window, site.stores, 1, 5, 0) == b""
    site.window.set_store(7, SIZE)  # the window knows it, the table does not
    with pytest.raises(LookupError):
        view.read(site.window, site.stores, 7, 0, 512)
    site.window.set_store(1, SIZE * 2)
    with pytest.raises(ValueError, match="outside"):
        view.read(site.window, site.stores, 1, SIZE, 512)


def test_after_the_window_was_closed():
    site = Site(1, size=SIZE)
    site.window.close()
    site.window.submit
    try:
        assert view.read(site.window, site.stores, 1, 0, 512) == bytes(512)
    except OSError as error:
        assert error.errno == errno.ESHUTDOWN
