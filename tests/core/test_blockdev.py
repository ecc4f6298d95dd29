"""Block and loop devices: what they say of themselves, attaching, and who uses them."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from pyrepl._core import blockdev
from pyrepl._core.device import FileDevice

SIZE = 2 << 20


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk"
    with open(path, "wb") as file:
        file.truncate(SIZE)
    return str(path)


@pytest.fixture
def attach():
    """blockdev.attach_loop whose devices are gone after the test."""
    if os.geteuid():
        pytest.skip("loop devices need root")
    made = []

    def attach_loop(path, **options):
        try:
            device = blockdev.attach_loop(path, **options)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENODEV):
                pytest.skip(f"no loop device to be had: {error}")
            raise
        made.append(device)
        return device

    yield attach_loop
    for device in made:
        try:
            blockdev.detach_loop(device)
        except OSError as error:
            assert error.errno == errno.ENXIO  # the test did it


@pytest.mark.parametrize("sector", [512, 4096])
def test_what_a_loop_device_says(attach, image, sector):
    device = attach(image, sector_size=sector)
    assert stat.S_ISBLK(os.stat(device).st_mode)
    assert blockdev.block_size(device) == SIZE
    assert blockdev.sector_size(device) == sector
    assert blockdev.physical_sector_size(device) >= sector
    fd = os.open(device, os.O_RDONLY)
    try:
        assert blockdev.block_size(fd) == SIZE
    finally:
        os.close(fd)


def test_what_is_written_there_is_in_the_file(attach, image):
    device = attach(image)
    with FileDevice(device) as disk:
        disk.write(4096, b"loop" * 1024)
        disk.flush()
    with open(image, "rb") as file:
        assert file.read(12288) == bytes(4096) + b"loop" * 1024 + bytes(4096)


def test_zero_out_and_discard(attach, image):
    device = attach(image)
    with FileDevice(device) as disk:
        disk.write(0, b"\xff" * 65536)
        disk.flush()
    blockdev.zero_out(device, 4096, 8192)
    blockdev.discard(device, 32768, 4096)
    with FileDevice(device) as disk:
        assert disk.read(0, 32768) == b"\xff" * 4096 + bytes(8192) + b"\xff" * 20480
        assert disk.read(36864, 28672) == b"\xff" * 28672
    for call in (blockdev.zero_out, blockdev.discard):
        for offset, length in ((0, 0), (-1, 512), (0, -1), (2**63, 512), (0, 2**64 - 1)):
            with pytest.raises(ValueError, match="must be below"):
                call(device, offset, length)
        with pytest.raises(OSError) as caught:
            call(device, 100, 512)
        assert caught.value.errno == errno.EINVAL and caught.value.filename == device
        with pytest.raises(OSError):
            call(device, SIZE, 2**62)


def test_read_only(attach, image):
    device = attach(image, writable=False)
    with pytest.raises(OSError) as caught:
        blockdev.zero_out(device, 0, 4096)
    assert caught.value.errno in (errno.EPERM, errno.EACCES, errno.EROFS, errno.EBADF)


def test_a_file_is_no_block_device(image):
    for call in (blockdev.block_size, blockdev.sector_size, blockdev.physical_sector_size):
        with pytest.raises(OSError) as caught:
            call(image)
        assert caught.value.errno == errno.ENOTTY and caught.value.filename == image
    with pytest.raises(OSError):
        blockdev.discard(image, 0, 4096)
    with pytest.raises(OSError):
        blockdev.detach_loop(image)


def test_what_cannot_be_attached(attach, image, tmp_path):
    for sector in (0, 256, 513, 8192, -512):
        with pytest.raises(ValueError, match="sector_size must be"):
            blockdev.attach_loop(image, sector_size=sector)
    with pytest.raises(FileNotFoundError):
        blockdev.attach_loop(str(tmp_path / "none"))
    if os.access("/dev/shm", os.W_OK):
        path = f"/dev/shm/pyrepl-blk-{os.getpid()}"
        try:
            with open(path, "wb") as file:
                file.truncate(SIZE)
            try:
                attach(path)  # newer kernels give tmpfs direct I/O
            except OSError as error:
                assert "direct I/O" in str(error)
            assert attach(path, direct=False)
        finally:
            os.unlink(path)


def test_detach(attach, image):
    device = attach(image)
    blockdev.detach_loop(device)
    with pytest.raises(OSError) as caught:
        blockdev.detach_loop(device)
    assert caught.value.errno == errno.ENXIO and caught.value.filename == device


def test_the_size_follows_the_file(attach, image):
    device = attach(image)
    os.truncate(image, SIZE * 2)
    assert blockdev.block_size(device) == SIZE
    assert blockdev.refresh_loop(device) == SIZE * 2


def test_every_free_loop_device_taken_by_others(monkeypatch, image):
    class Lib:
        def loop_free_number(self, control):
            return 0

        def loop_configure(self, *args):
            return -errno.EBUSY

    if os.geteuid() or not os.path.exists("/dev/loop-control"):
        pytest.skip("loop devices need root")
    monkeypatch.setattr(blockdev._blk, "lib", Lib(), raising=False)
    with pytest.raises(OSError) as caught:
        blockdev.attach_loop(image)
    assert caught.value.errno == errno.EBUSY and "taken by somebody else" in str(caught.value)


def test_a_loop_device_without_direct_io_is_let_go(monkeypatch, image):
    cleared = []

    class Lib:
        def loop_free_number(self, control):
            return 0

        def loop_configure(self, *args):
            return 0

        def loop_is_direct(self, loop):
            return 0

        def loop_clear(self, loop):
            cleared.append(loop)
            return 0

    if os.geteuid() or not os.path.exists("/dev/loop0"):
        pytest.skip("loop devices need root")
    monkeypatch.setattr(blockdev._blk, "lib", Lib(), raising=False)
    with pytest.raises(OSError, match="no direct I/O"):
        blockdev.attach_loop(image)
    assert len(cleared) == 1


# ---- who uses it ---------------------------------------------------------------------------------------------------


def test_a_loop_device_is_used_by_who_opened_it(attach, image):
    assert blockdev.in_use(image) is None
    device = attach(image)
    assert blockdev.in_use(image) == f"attached to {device}"
    assert blockdev.in_use(device) is None
    with FileDevice(device):
        assert "held by" in blockdev.in_use(device)
    assert blockdev.in_use(device) is None


def test_mounted_swap_and_held(attach, image, monkeypatch, tmp_path):
    """What the kernel would show, in its words."""
    device = attach(image)
    number = os.stat(device).st_rdev
    name = f"{os.major(number)}:{os.minor(number)}"
    real = blockdev.Path

    def with_file(file, text):
        fake = tmp_path / "fake"
        fake.write_text(text)
        return lambda path: fake if path == file else real(path)

    line = f"30 1 {name} / /mnt/my\\040disk rw - ext4 {device} rw\n"
    monkeypatch.setattr(blockdev, "Path", with_file("/proc/self/mountinfo", line))
    assert blockdev.in_use(device) == "mounted on /mnt/my disk"
    swaps = f"Filename Type Size Used Priority\n/no/such/file file 1 0 -2\n{device} partition 1 0 -2\n"
    monkeypatch.setattr(blockdev, "Path", with_file("/proc/swaps", swaps))
    assert blockdev.in_use(device) == "used as swap"
    (tmp_path / "sys" / name / "holders" / "dm-3").mkdir(parents=True)
    monkeypatch.setattr(blockdev, "Path", lambda path: tmp_path / "sys" if path == "/sys/dev/block" else real(path))
    assert blockdev.in_use(device) == "held by dm-3"
    (tmp_path / "sys" / name / "holders" / "dm-3").rmdir()
    part = tmp_path / "sys" / name / "loop0p1"
    part.mkdir()
    (part / "partition").write_text("1\n")
    (part / "dev").write_text("259:7\n")
    (tmp_path / "sys" / "259:7" / "holders" / "md0").mkdir(parents=True)
    assert blockdev.in_use(device) == "partition loop0p1 is held by md0"
    with pytest.raises(FileNotFoundError):
        blockdev.in_use(str(tmp_path / "none"))
