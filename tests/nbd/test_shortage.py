"""The transmission phase where memory or the journal's room is short: an error that says so, and the next request goes well.

Memory is short in a process of its own, by a limit of its address space: what is asked for then is more than it can have
(every allocation of that size is a mapping of its own: what was freed before, or put aside for a thread, does not serve it).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nbd.test_transmission import applied, attached
from tests.support import nbd_client as nbd
from tests.support.nbd_client import NO_HOLE, ZEROES
from tests.support.site import Site

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]

HUNGRY = """
import resource, sys
from pathlib import Path
from tests.nbd.test_transmission import attached
from tests.support.nbd_client import READ, WRITE
from tests.support.site import Site

MIB, size = 1 << 20, 16 << 20
site = Site(1, size=size, region_size=1 << 16)
with attached(site, size=size, structured=sys.argv[1] == "structured") as served:
    client = served.client
    small = [client.pack(READ, n * 4096, 512) for n in range(64)]  # all threads are there afterwards
    client.sock.sendall(b"".join(packed for packed, _ in small))
    assert not any(client.reply().error for _ in small)
    client.write(4096, b"before" * 100)
    asked = {
        "one": [client.pack(READ, 0, MIB + 4096)],
        "long": [client.pack(READ, 0, 4 * MIB)],
        "several": [client.pack(READ, n * MIB // 2, MIB // 2) for n in range(8)],
        "merged": [client.pack(WRITE, 5 * MIB + 1, data=b"m" * (MIB - 2))],
    }
    client.write(8 * MIB, b"x" * MIB)  # whatever a write needs besides is there
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MIB // 4, before[1]))
    try:
        errors = {}
        for what, packed in asked.items():
            client.sock.sendall(b"".join(part for part, _ in packed))
            errors[what] = [client.reply().error for _ in packed]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    print(errors)
    assert client.read(4096, 600) == b"before" * 100
    assert client.read(5 * MIB, MIB) == bytes(MIB), "a write that was refused changed nothing"
    client.write(5 * MIB + 1, b"m" * (MIB - 2))
    assert client.read(5 * MIB, MIB) == b"\\0" + b"m" * (MIB - 2) + b"\\0" and len(client.read(0, 4 * MIB)) == 4 * MIB
    print(served.connection.counts()["errors"])
"""
ENOMEM = 12
ONE_HEAP = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


@pytest.mark.parametrize("replies", ["simple", "structured"])
def test_no_memory_for_a_request_is_its_error_and_nobody_elses(replies):
    done = subprocess.run([sys.executable, "-c", HUNGRY, replies], cwd=ROOT, capture_output=True, text=True, timeout=nbd.PATIENCE,
                          env={**os.environ, **ONE_HEAP, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    errors, count = done.stdout.splitlines()
    found = eval(errors)
    assert {what: set(all_) for what, all_ in found.items()} == {"one": {ENOMEM}, "long": {ENOMEM}, "several": {ENOMEM}, "merged": {ENOMEM}}
    assert int(count) == sum(map(len, found.values()))


def test_writes_longer_than_the_journal_go_in_pieces():
    """Each has its place when there is room: somebody must apply."""
    site = Site(1, size=4 * MIB, region_size=1 << 16, log_size=MIB)
    with applied(site), attached(site, size=4 * MIB) as served:
        data = os.urandom(3 * MIB - 5)
        served.client.write(1, data)
        assert served.client.call(ZEROES, MIB, MIB, flags=NO_HOLE).error == 0
        assert served.client.read(1, 3 * MIB - 5) == data[: MIB - 1] + bytes(MIB) + data[2 * MIB - 1 :]
