"""The demo's oracle is not blind: it sees a lost write, an undone write that shows, and any other difference."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from pyrepl.demo import content
from pyrepl.demo.content import BLOCK, Acknowledged, Verdict

SIZE = 2 << 20


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "source.img"
    path.write_bytes(random.Random(1).randbytes(SIZE - 5000))
    return str(path)


HISTORY = [
    Acknowledged(10, 1, 1),
    Acknowledged(11, 2, 2),
    Acknowledged(30, 2, 3),
    Acknowledged(31, 3, 4),
    Acknowledged(50, 4, 5),
    Acknowledged(51, 1, 6),
]


def test_writes_between_snapshot_and_restore_are_undone() -> None:
    assert content.expected(HISTORY, 20, 40) == {1: 6, 2: 2, 4: 5}


def volume(source: str, show: dict[int, int]) -> bytearray:
    data = bytearray(Path(source).read_bytes().ljust(SIZE, b"\0"))
    for block, counter in show.items():
        data[block * BLOCK : (block + 1) * BLOCK] = content.stamp(counter, block)
    return data


def verdict(source: str, data: bytearray, show: dict[int, int]) -> Verdict:
    return content.judge(lambda offset, length: bytes(data[offset : offset + length]), source, SIZE, show)


def test_judge(source: str) -> None:
    show = content.expected(HISTORY, 20, 40)
    assert verdict(source, volume(source, show), show) == (0, 0)
    assert verdict(source, volume(source, {**show, 4: 4}), show) == (1, 0), "an acknowledged write was lost"
    assert verdict(source, volume(source, {**show, 3: 4}), show) == (0, 1), "a write that was undone still shows"
    damaged = volume(source, show)
    damaged[300 * BLOCK + 7] ^= 1
    assert verdict(source, damaged, show) == (0, 1)


def test_stamps_differ() -> None:
    assert len({content.stamp(counter, block) for counter in range(4) for block in range(4)}) == 16
    assert len(content.stamp(2**63, 2**40)) == BLOCK


def test_writer_records_what_returned_and_reports_what_failed() -> None:
    written: dict[int, bytes] = {}
    enough = threading.Event()

    def write(offset: int, data: bytes) -> int:
        if len(written) >= 20:
            enough.set()
            raise OSError("the disk is gone")
        written[len(written) + 1] = data
        return len(written)

    writer = content.Writer(write, 64, 10000.0, 1)
    writer.start()
    assert enough.wait(60)
    with pytest.raises(OSError, match="disk is gone"):
        writer.stop()
    assert [entry.lsn for entry in writer.history] == list(range(1, 21))
    assert all(written[entry.lsn] == content.stamp(entry.counter, entry.block) for entry in writer.history)


@pytest.mark.parametrize("tool", ["with mkfs.ext4", "without"])
def test_image_is_made_of_real_files(tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if tool == "without":
        monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    path = tmp_path / "input.img"
    words = content.make_image(str(path), 16 << 20, str(tmp_path))
    data = path.read_bytes()
    assert len(data) == 16 << 20 and data.count(b"\0") < len(data)
    assert "Python tree" in words
    assert b"def " in data
    assert sorted(tmp_path.iterdir()) == [path]
