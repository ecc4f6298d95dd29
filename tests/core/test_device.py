"""Devices: files and loop devices through each engine, against a bytearray; devices in Python; what is refused."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrepl._core import blockdev
from pyrepl._core.buffers import Buffer
from pyrepl._core.device import Device, FileDevice, PythonDevice, probe
from tests.support.devices import FailingDevice, MemoryDevice, RecordingDevice
from tests.support.examples import examples

SIZE = 4 << 20
ENGINES = ["io_uring", "threads"]


def needs(engine: str) -> None:
    if engine == "io_uring" and probe()[0] != "io_uring":
        pytest.skip(f"no io_uring here: {probe()[1]}")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk"
    with open(path, "wb") as file:
        file.truncate(SIZE)
    return str(path)


@pytest.fixture(params=["file", 512, 4096], ids=["file", "loop512", "loop4096"])
def path(request, image):
    """A file, and loop devices of both sector sizes."""
    if request.param == "file":
        yield image
        return
    if os.geteuid():
        pytest.skip("loop devices need root")
    try:
        loop = blockdev.attach_loop(image, sector_size=request.param)
    except OSError as error:
        pytest.skip(f"no loop device to be had: {error}")
    yield loop
    blockdev.detach_loop(loop)


def fresh(length: int, seed: int) -> bytes:
    return (seed.to_bytes(4, "little") * (length // 4 + 1))[:length]


@pytest.mark.parametrize("engine", ENGINES)
def test_lists_do_what_a_bytearray_does(path, engine):
    needs(engine)
    with FileDevice(path, engine=engine) as device:
        assert device.engine == engine and device.size == SIZE
        sector, twin = device.sector_size, bytearray(SIZE)

        @settings(max_examples=examples(25), deadline=None)
        @given(
            st.lists(
                st.tuples(st.sampled_from(["write", "zero", "read"]), st.integers(0, 200), st.integers(1, 40)),
                min_size=1,
                max_size=200,
            )
        )
        def run(wanted):
            ios, used, reads = [], set(), []
            for n, (kind, first, count) in enumerate(wanted):  # one list has no order: what it writes must not overlap
                blocks = set(range(first, first + count))
                if used & blocks:
                    continue
                used |= blocks
                offset, length = first * sector, count * sector
                if kind == "zero":
                    twin[offset : offset + length] = bytes(length)
                    ios.append((kind, offset, length, False))
                    continue
                memory = memoryview(Buffer(length))
                if kind == "write":
                    memory[:] = fresh(length, n + 1)
                    twin[offset : offset + length] = memory
                else:
                    reads.append((memory, bytes(twin[offset : offset + length])))
                ios.append((kind, offset, memory, n % 7 == 0))
            assert device.perform(ios) == [0] * len(ios)
            assert all(bytes(memory) == want for memory, want in reads)

        run()
        assert device.read(0, SIZE) == bytes(twin)
        device.flush()
    with FileDevice(path) as again:
        assert again.read(0, SIZE) == bytes(twin)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_list_far_longer_than_the_depth(image, engine):
    needs(engine)
    with FileDevice(image, engine=engine, depth=5) as device:
        memory = memoryview(Buffer(SIZE))
        memory[:] = bytes(i // 512 % 251 for i in range(0, SIZE, 1))
        order = [n * 577 % 1024 for n in range(1024)]
        assert (
            device.perform([("write", n * 4096, memory[n * 4096 : (n + 1) * 4096], False) for n in order]) == [0] * 1024
        )
        back = memoryview(Buffer(SIZE))
        assert device.perform([("read", n * 4096, back[n * 4096 : (n + 1) * 4096], False) for n in order]) == [0] * 1024
        assert back == memory
        assert device.bytes_written == device.bytes_read == SIZE


@pytest.mark.parametrize("engine", ENGINES)
def test_many_threads_share_a_device(image, engine):
    needs(engine)
    wrong = []
    with FileDevice(image, engine=engine) as device:

        def work(k):
            memory, back = memoryview(Buffer(65536)), memoryview(Buffer(65536))
            for turn in range(10):
                memory[:] = bytes([k * 11 + turn]) * 65536
                base = k * 65536
                parts = [(base + i * 4096, slice(i * 4096, (i + 1) * 4096)) for i in range(16)]
                codes = device.perform([("write", at, memory[part], False) for at, part in parts])
                codes += device.perform([("read", at, back[part], False) for at, part in parts])
                if any(codes) or back != memory:
                    wrong.append((k, turn, codes))

        threads = [threading.Thread(target=work, args=(k,)) for k in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("length", [512, 1536, 65536, (4 << 20) - 512])
def test_python_memory_of_any_alignment(image, length):
    with FileDevice(image) as device:
        data = os.urandom(length)
        device.write(512, memoryview(b"x" + data)[1:], fua=True)
        assert device.read(512, length) == data
        into = bytearray(length + 3)
        device.readinto(512, memoryview(into)[3:])
        assert into[3:] == data


def test_zero_and_discard(path):
    with FileDevice(path) as device:
        device.write(0, b"\xff" * 65536)
        device.zero(8192, 16384)
        assert device.read(0, 65536) == b"\xff" * 8192 + bytes(16384) + b"\xff" * 40960
        device.discard(32768, 8192)
        assert device.read(40960, 24576) == b"\xff" * 24576
        device.zero(0, 0)
        device.discard(0, 0)
        device.flush()


def test_zeros_where_the_file_system_cannot(tmp_path):
    """tmpfs has no FALLOC_FL_ZERO_RANGE: zeros are written."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or not os.access(shm, os.W_OK):
        pytest.skip("no tmpfs at /dev/shm")
    path = shm / f"pyrepl-test-{os.getpid()}"
    try:
        path.write_bytes(b"\xff" * (3 << 20))
        with FileDevice(str(path), direct=False) as device:
            device.zero(512, (2 << 20) + 512)
            assert device.read(0, 3 << 20) == b"\xff" * 512 + bytes((2 << 20) + 512) + b"\xff" * ((1 << 20) - 1024)
            device.discard(2 << 20, 1 << 20)
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("offset", "length"),
    [(1, 512), (0, 513), (SIZE, 512), (SIZE - 512, 1024), (2**63, 512), (2**64 - 512, 512), (2**64, 512), (-512, 512)],
)
def test_misuse_is_refused_before_the_disk(image, offset, length):
    with FileDevice(image) as device:
        for call in (
            lambda: device.read(offset, length),
            lambda: device.readinto(offset, bytearray(length)),
            lambda: device.write(offset, bytes(length)),
            lambda: device.zero(offset, length),
            lambda: device.discard(offset, length),
        ):
            with pytest.raises(ValueError):
                call()
        for length in (-512, 2**63, 2**64 - 512, 2**64):
            with pytest.raises(ValueError):
                device.read(0, length)
        assert device.bytes_read == device.bytes_written == 0


class Liar(list):
    """Says 1, and gives all."""

    def __len__(self):
        return 1


def test_a_list_is_as_long_as_what_it_gives(image):
    with FileDevice(image) as device:
        memory = [memoryview(Buffer(4096)) for _ in range(100)]
        ios = [("read", 4096 * n, one, False) for n, one in enumerate(memory)]
        assert device.perform(Liar(ios)) == [0] * 100


def test_a_list_with_one_wrong_io_is_not_begun(image):
    with FileDevice(image) as device:
        good, memory = memoryview(Buffer(4096)), memoryview(Buffer(8192))
        good[:] = b"g" * 4096
        bad = [
            ("write", 100, good, False),
            ("write", SIZE, good, False),
            ("write", 2**64 - 4096, good, False),
            ("write", 0, memory[1:4097], False),  # memory is not aligned
            ("write", 0, memory[:100], False),
            ("write", 0, memory[:0], False),
            ("zero", 0, 2**64 - 512, False),
            ("zero", 512, 2**63, False),
        ]
        for one in bad:
            assert device.perform([("write", 0, good, False), one]) == [-errno.ECANCELED, -errno.EINVAL]
        assert device.perform([]) == []
        assert device.read(0, 4096) == bytes(4096)
        with pytest.raises(KeyError):
            device.perform([("write", 0, good, False), ("erase", 0, good, False)])


def test_who_has_it_is_said(path):
    with FileDevice(path):
        with pytest.raises(OSError, match="in use") as caught:
            FileDevice(path)
        assert caught.value.errno == errno.EBUSY and caught.value.filename == path
        with FileDevice(path, exclusive=False, writable=False) as reader:
            assert reader.read(0, 4096) == bytes(4096)
    with FileDevice(path):
        pass


def test_another_process_is_kept_out(image):
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from pyrepl._core.device import FileDevice as F; d = F({image!r}); print(1, flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout.readline() == b"1\n"
        with pytest.raises(OSError, match="in use by another process"):
            FileDevice(image)
    finally:
        child.communicate(b"\n", timeout=20)
    FileDevice(image).close()


def test_what_cannot_be_opened(tmp_path, image):
    with pytest.raises(FileNotFoundError):
        FileDevice(str(tmp_path / "none"))
    for odd in (str(tmp_path), "/dev/null"):
        with pytest.raises(OSError, match="neither a regular file nor a block device"):
            FileDevice(odd)
    for wrong in ({"engine": "magic"}, {"depth": 0}, {"depth": 129}):
        with pytest.raises(ValueError, match="must be"):
            FileDevice(image, **wrong)
    with pytest.raises(ValueError, match="null byte"):
        FileDevice(image + "\0")
    with FileDevice(image) as device, pytest.raises(ValueError, match="opened already"):
        device.__init__(image)


def test_a_device_that_is_read_only(image):
    with FileDevice(image, writable=False) as device:
        with pytest.raises(OSError) as caught:
            device.write(0, bytes(512))
        assert caught.value.errno == errno.EBADF and caught.value.filename == image
        assert device.failed == 0


def test_a_file_that_shrank_behind_our_back(image):
    with FileDevice(image) as device:
        os.truncate(image, 4096)
        assert device.read(0, 4096) == bytes(4096)
        for offset, length in ((8192, 4096), (0, 8192), (0, 512 << 10)):  # beyond the end, across it, and as a list
            with pytest.raises(OSError) as caught:
                device.read(offset, length)
            assert caught.value.errno == errno.EIO


def test_after_close(image):
    device = FileDevice(image)
    device.write(0, bytes(512))
    device.close()
    device.close()
    for call in (
        lambda: device.read(0, 512),
        lambda: device.write(0, bytes(512)),
        device.flush,
        lambda: device.resize(512),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.ESHUTDOWN
    blank = FileDevice.__new__(FileDevice)
    assert blank.engine == "" and blank.size == 0
    blank.close()


def test_close_waits_for_calls_that_are_inside(image):
    """The number of a closed descriptor may be another file's: no call may be in between."""
    for _ in range(20):
        device = FileDevice(image)
        started, codes = threading.Event(), []
        memory = [memoryview(Buffer(4096)) for _ in range(64)]

        def work(device=device, started=started, codes=codes, memory=memory):
            while True:
                result = set(device.perform([("read", n * 4096, memory[n], False) for n in range(64)]))
                codes.append(result)
                started.set()
                if result != {0}:
                    return

        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        device.close()
        thread.join()
        assert codes[-1] == {-errno.ESHUTDOWN}


def test_resize(image):
    with FileDevice(image) as device:
        device.resize(SIZE + 8192)
        assert device.size == os.stat(image).st_size == SIZE + 8192
        device.write(SIZE, b"a" * 8192)
        device.resize(SIZE)
        device.resize(SIZE + 8192)
        assert device.read(SIZE, 8192) == bytes(8192)
        for wrong in (-512, 100, 2**63, 2**64):
            with pytest.raises(ValueError):
                device.resize(wrong)
    with MemoryDevice(size=8192) as memory:
        memory.resize(16384)
        assert memory.size == 16384 and memory.read(8192, 8192) == bytes(8192)
        with pytest.raises(ValueError):
            memory.resize(1)
    with pytest.raises(NotImplementedError):
        Device().resize(0)


def test_a_block_device_has_the_size_that_it_has(image):
    if os.geteuid():
        pytest.skip("loop devices need root")
    try:
        loop = blockdev.attach_loop(image)
    except OSError as error:
        pytest.skip(f"no loop device to be had: {error}")
    try:
        with FileDevice(loop) as device:
            with pytest.raises(OSError) as caught:
                device.resize(SIZE * 2)
            assert caught.value.errno == errno.ENOSPC and device.size == SIZE
            os.truncate(image, SIZE * 2)
            assert blockdev.refresh_loop(loop) == SIZE * 2
            device.resize(SIZE * 2)
            assert device.read(SIZE, 4096) == bytes(4096)
    finally:
        blockdev.detach_loop(loop)


# ---- when a flush is needed ----------------------------------------------------------------------------------------


def flushes(device: RecordingDevice) -> int:
    return sum(one.what == "flush" for one in device.log)


def test_flush_only_what_needs_it():
    device = RecordingDevice()
    device.flush()
    assert flushes(device) == 1  # a process before this one may have written
    device.flush()
    device.read(0, 512)
    device.flush()
    assert flushes(device) == 1
    device.write(0, b"a" * 512)
    device.flush()
    device.flush()
    device.zero(0, 512)
    device.flush()
    device.discard(0, 512)
    device.flush()
    assert flushes(device) == device.flushes == 4


def test_a_write_that_ends_while_a_flush_runs_is_not_covered_by_it():
    """It was begun before the flush and complete after it: its own flush must reach the disk."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(RecordingDevice):
        def do_write(self, ios):
            inside.set()
            assert go_on.wait(20)
            super().do_write(ios)

    device = Slow()
    writer = threading.Thread(target=device.write, args=(0, b"w" * 512))
    writer.start()
    assert inside.wait(20)
    device.flush()
    go_on.set()
    writer.join()
    device.flush()
    assert [one.what for one in device.log] == ["flush", "write", "flush"]
    assert device.crash(len(device.log))[:512] == b"w" * 512


def test_a_failed_flush_is_final():
    device = FailingDevice("bad", kind="flush", calls=[1], code=errno.ENOSPC)
    device.flush()
    device.write(0, b"a" * 512)
    with pytest.raises(OSError) as caught:
        device.flush()
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == "bad" and device.failed == errno.ENOSPC
    assert isinstance(caught.value.__cause__, OSError) and "flush 1 of bad" in str(caught.value.__cause__)
    with pytest.raises(OSError):
        device.flush()
    with pytest.raises(OSError) as caught:
        device.write(0, b"b" * 512)
    assert caught.value.errno == errno.EIO
    assert device.read(0, 512) == b"a" * 512
    assert device.counts["flush"] == 2 and device.counts["write"] == 1


def test_a_failed_fua_write_holds_a_failed_flush():
    for fua in (False, True):
        device = FailingDevice(calls=[0])
        with pytest.raises(OSError):
            device.write(0, bytes(512), fua=fua)
        assert device.failed == (errno.EIO if fua else 0)


# ---- devices in Python ---------------------------------------------------------------------------------------------


def test_writes_of_a_list_arrive_together():
    device = RecordingDevice(sector_size=4096)
    data = [memoryview(Buffer(4096)) for _ in range(4)]
    for n, memory in enumerate(data):
        memory[:] = bytes([n + 1]) * 4096
    codes = device.perform(
        [
            ("write", 0, data[0], False),
            ("write", 8192, data[1], True),
            ("zero", 16384, 4096, False),
            ("read", 0, data[3], False),
            ("discard", 4096, 4096, False),
            ("write", 4096, data[2], False),
        ]
    )
    assert codes == [0] * 6 and bytes(data[3]) == b"\1" * 4096
    assert [(one.what, one.offset, one.fua, one.together) for one in device.log] == [
        ("write", 0, False, 1),
        ("write", 8192, True, 1),
        ("write", 16384, False, 1),
        ("read", 0, False, 0),
        ("discard", 4096, False, 0),
        ("write", 4096, False, 2),
    ]
    assert device.crash(6)[:12288] == bytes(8192) + b"\2" * 4096
    assert device.crash(6, lambda i: True)[:12288] == b"\1" * 4096 + b"\3" * 4096 + b"\2" * 4096


class Raises(MemoryDevice):
    error: BaseException = RuntimeError("broken")

    def do_read(self, offset, length):
        raise self.error

    def do_discard(self, offset, length):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("broken"), errno.EIO),
        (KeyboardInterrupt(), errno.EIO),
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError("no number"), errno.EIO),
        (OSError(99999, "no such number"), errno.EIO),
    ],
)
def test_what_python_raises_is_the_cause(error, code):
    device = Raises("py")
    device.error = error
    for call in (device.read, device.discard):
        with pytest.raises(OSError) as caught:
            call(0, 512)
        assert caught.value.errno == code and caught.value.filename == "py" and caught.value.__cause__ is error


def test_the_rest_of_a_list_is_done_and_each_has_its_result():
    device = FailingDevice(kind="read", calls=[1])
    data = [memoryview(Buffer(512)) for _ in range(3)]
    assert device.perform([("read", 0, memory, False) for memory in data]) == [0, -errno.EIO, 0]


def test_a_read_of_the_wrong_length():
    class Short(MemoryDevice):
        def do_read(self, offset, length):
            return b"short"

    with pytest.raises(OSError) as caught:
        Short().read(0, 512)
    assert "5 bytes instead of 512" in str(caught.value.__cause__)


def test_methods_that_are_missing():
    device = PythonDevice("bare", 4096)
    assert device.engine == "python"
    for call in (
        lambda: device.read(0, 512),
        lambda: device.write(0, bytes(512)),
        lambda: device.discard(0, 512),
        device.flush,
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EIO
        if device.failed == 0:
            assert isinstance(caught.value.__cause__, NotImplementedError)


@pytest.mark.parametrize(("size", "sector"), [(4096, 1024), (100, 512), (4096 + 512, 4096), (-512, 512), (2**63, 512)])
def test_sizes_that_cannot_be(size, sector):
    with pytest.raises(ValueError):
        PythonDevice("odd", size, sector)


def test_a_device_that_was_never_made_is_shut():
    class Lazy(PythonDevice):
        def __init__(self):
            pass

    device = Lazy()
    assert device.size == 0
    with pytest.raises(OSError) as caught:
        device.flush()
    assert caught.value.errno == errno.ESHUTDOWN


# ---- where io_uring is blocked -------------------------------------------------------------------------------------

BLOCKED = """
import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
NUMBER, ERRNO = {number}, 1  # EPERM
code = [(0x20, 0, 0, 0), (0x15, 0, 1, NUMBER), (0x06, 0, 0, 0x00050000 | ERRNO), (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
filter = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(program))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter, 0, 0) == 0, ctypes.get_errno()
from pyrepl._core.device import FileDevice, probe
from pyrepl._core.buffers import Buffer
print(probe())
d = FileDevice({path!r})
assert d.engine == "threads"
m = [memoryview(Buffer(4096)) for _ in range(100)]
for n, one in enumerate(m):
    one[:] = bytes([n]) * 4096
assert d.perform([("write", n * 4096, one, False) for n, one in enumerate(m)]) == [0] * 100
assert d.read(0, 409600) == b"".join(m)
d.close()
try:
    FileDevice({path!r}, engine="io_uring")
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize(("number", "step"), [(425, "io_uring_setup"), (426, "io_uring_enter")])
def test_io_uring_blocked_by_a_filter(image, number, step):
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        pytest.skip("the filter is written for 64 bits")
    script = BLOCKED.format(number=number, path=image)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    if probe()[0] == "io_uring":
        assert f"('threads', '{step}: EPERM (Operation not permitted)')" in done.stdout
    assert "was asked for, but the kernel refuses it" in done.stdout


@pytest.mark.parametrize("engine", ENGINES)
def test_a_child_has_rings_and_threads_of_its_own(image, engine):
    needs(engine)
    with FileDevice(image, engine=engine) as device:
        memory = [memoryview(Buffer(4096)) for _ in range(16)]
        ios = [("read", n * 4096, one, False) for n, one in enumerate(memory)]
        assert set(device.perform(ios)) == {0}
        child = os.fork()
        if not child:
            os._exit(0 if set(device.perform(ios)) == {0} else 1)
        assert set(device.perform(ios)) == {0}
        assert os.waitpid(child, 0)[1] == 0


# ---- buffers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "length", [1, 512, 4096, 4097, 65536, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, 8 << 20, (8 << 20) + 1]
)
def test_buffers_are_aligned_and_their_own(length):
    held = [Buffer(length) for _ in range(3)]
    views = [memoryview(one) for one in held]
    for n, view in enumerate(views):
        assert len(held[n]) == view.nbytes == length and not view.readonly
        assert ctypes.addressof(ctypes.c_char.from_buffer(view)) % 4096 == 0
        view[:] = bytes([n + 1]) * length
    assert [view[0] for view in views] == [view[length - 1] for view in views] == [1, 2, 3]


def test_lengths_that_cannot_be():
    for wrong in (0, -1, 2**46, 2**63, 2**64):
        with pytest.raises(ValueError):
            Buffer(wrong)
    with pytest.raises(MemoryError):
        Buffer(2**46 - 1)


def test_the_pool_is_bounded():
    """What is given back beyond the bound goes to the system."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    held = [Buffer(4 << 20) for _ in range(32)]
    for one in held:
        memory = memoryview(one)
        memory[:] = bytes(4 << 20)
    del memory, one
    assert resident() > before + (96 << 20)
    held.clear()
    assert resident() < before + (48 << 20)
