"""SIGKILL in the middle of work: what was acknowledged is there, and the next process gets the node."""

from __future__ import annotations

import os
import signal

import pytest

MIB = 1 << 20
SIZE = 4 * MIB

WRITER = """
import sys, pyrepl
folder, size = sys.argv[1], 4 << 20
node = pyrepl.Node.open(folder, create=True)
if node.groups:
    group = node.group("db")
    volume = group.volume("data")
else:
    group = node.create_group("db", sys.argv[2], journal_size=None if len(sys.argv) > 3 else 16 << 20)
    volume = group.add_volume("data", *sys.argv[3:], size=size)
first = int.from_bytes(volume.read(0, 8), "little")
names = sorted(snapshot.name for snapshot in group.snapshots)
print("ready", first, flush=True)
n = first
while True:
    n += 1
    volume.write(n * 4096 % (size - 8192) // 4096 * 4096 + 4096, n.to_bytes(8, "little") * 512)
    volume.write(0, n.to_bytes(8, "little"))
    if n % 40 == 0:
        if n > 80:
            group.store(f"s{n - 80}").delete()
        volume.snapshot(f"s{n}")
    print(n, flush=True)
"""


@pytest.mark.parametrize("kind", ["file", pytest.param("loop", marks=pytest.mark.device)])
def test_killed_again_and_again(kind, tmp_path, python, nodes, request):
    given = []
    if kind == "loop":
        loop_device = request.getfixturevalue("loop_device")
        given = [loop_device(16 * MIB), loop_device(SIZE)]
    folder = tmp_path / "node"
    seen = 0
    for more in (100, 200, 30, 130):
        writer = python(WRITER, str(folder), *(given or [str(tmp_path / "journal")]))
        ready = writer.stdout.readline().split()
        assert ready[0] == "ready" and int(ready[1]) >= seen  # the process before was killed a moment ago
        for line in writer.stdout:
            seen = int(line)
            if seen >= int(ready[1]) + more:
                break
        os.kill(writer.pid, signal.SIGKILL)  # not waited for: the next process begins while this one dies
        for line in writer.stdout:
            seen = int(line)
    group = nodes("node").group("db")
    volume = group.volume("data")
    last = int.from_bytes(volume.read(0, 8), "little")
    assert seen <= last <= seen + 1
    newest: dict[int, int] = {}
    for n in range(1, seen + 1):
        newest[n * 4096 % (SIZE - 8192) // 4096 * 4096 + 4096] = n
    for offset, n in newest.items():
        found = int.from_bytes(volume.read(offset, 8), "little")
        assert found == n or found > seen
    for snapshot in group.snapshots:
        n = int(snapshot.name[1:])
        assert int.from_bytes(snapshot.read(0, 8), "little") == n
    assert 1 <= len(group.snapshots) <= 3


def test_a_program_that_never_closes_ends(tmp_path, python):
    code = """
import sys, pyrepl
node = pyrepl.Node.open(sys.argv[1], create=True)
volume = node.create_group("db", sys.argv[1] + "/j", journal_size=16 << 20).add_volume("data", size=1 << 20)
for n in range(200):
    volume.submit_write(n * 4096, bytes([n]) * 4096)
volume.flush()
print("bye", flush=True)
"""
    process = python(code, str(tmp_path / "node"))
    assert process.communicate(timeout=60)[0] == "bye\n"
    assert process.returncode == 0


HEAVY = """
import os, sys, threading, pyrepl
node = pyrepl.Node.open(sys.argv[1], create=True)
group = node.create_group("db", sys.argv[1] + "/journal", journal_size=1 << 30)
volume = group.add_volume("data", size=64 << 20)
def write(first):
    number = first
    while True:
        volume.write(number % 64 << 20, number.to_bytes(8, "little") * (1 << 17))
        os.write(1, b"%d\\n" % number)
        number += 4
for first in range(4):
    threading.Thread(target=write, args=(first,)).start()
"""


@pytest.mark.parametrize("writes", [80, 150, 260])
def test_a_killed_primary_whose_journal_is_far_ahead(writes, tmp_path, python, nodes):
    """A large journal holds more since the last checkpoint than fits the ring."""
    writer = python(HEAVY, str(tmp_path / "node"))
    seen = {}
    for line in writer.stdout:
        seen[int(line) % 64] = max(int(line), seen.get(int(line) % 64, 0))
        if int(line) >= writes:
            break
    os.kill(writer.pid, signal.SIGKILL)
    for line in writer.stdout:
        seen[int(line) % 64] = max(int(line), seen.get(int(line) % 64, 0))
    group = nodes("node").group("db")
    assert group.fault is None
    for place, number in seen.items():
        data = group.volume("data").read(place << 20, 1 << 20)
        found = int.from_bytes(data[:8], "little")
        assert found >= number and found % 64 == place and data == found.to_bytes(8, "little") * (1 << 17)
