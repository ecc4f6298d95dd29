"""A node process that is going to be killed: ``python node_under_fire.py primary|secondary FOLDER PORT EXPECTED SEED``.

The primary first checks what its parent knows to have been acknowledged, then writes stamped blocks from several threads and
says each acknowledged one in a line of its own, written by one ``write`` call: what stands in the pipe had been returned. Now and
then it takes a snapshot of a second volume, overwrites the volume and restores it: the volume must show again what it showed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import sys
import threading
import time

import pyrepl

BLOCKS, SIZE, WRITERS = 256, 4096, 2


def say(**what: object) -> None:
    os.write(1, (json.dumps(what) + "\n").encode())


def stamped(block: int, stamp: int) -> bytes:
    return struct.pack("<QQ", block, stamp) * (SIZE // 16)


def stamp_of(data: bytes, block: int) -> int:
    """The stamp of a block; -1 if it is a mixture or another block's; 0 if nothing was written."""
    if data == bytes(SIZE):
        return 0
    found, stamp = struct.unpack_from("<QQ", data)
    return stamp if data == stamped(found, stamp) and found == block else -1


def check(volume: pyrepl.Volume, expected: dict[int, int]) -> dict[int, int]:
    """The stamps that stand there. Exits with a sentence if one is older than what was acknowledged, or torn."""
    data, found = volume.read(0, BLOCKS * SIZE), {}
    for block in range(BLOCKS):
        stamp = stamp_of(data[block * SIZE:(block + 1) * SIZE], block)
        if stamp < expected.get(block, 0):
            say(lost=f"block {block} has stamp {stamp}, acknowledged was {expected[block]}")
            sys.exit(3)
        found[block] = stamp
    return found


def write(volume: pyrepl.Volume, writer: int, stamps: dict[int, int], seed: int) -> None:
    rng = random.Random(seed * WRITERS + writer)
    mine = range(writer, BLOCKS, WRITERS)
    stamp = max(stamps.values(), default=0)
    while True:
        stamp += 1
        block = rng.choice(mine)
        if rng.random() < 0.5:
            volume.write(block * SIZE, stamped(block, stamp), fua=rng.random() < 0.1)
        else:
            volume.submit_write(block * SIZE, stamped(block, stamp)).wait()
        say(written=[block, stamp])
        time.sleep(0.002)  # likewise


def operate(volume: pyrepl.Volume, group: pyrepl.Group, seed: int) -> None:
    rng, number = random.Random(seed), 0
    while True:
        number += 1
        for snapshot in group.snapshots:
            snapshot.delete()
        base = rng.randbytes(volume.size)
        volume.write(0, base)
        kept = volume.snapshot(f"kept-{seed}-{number}")
        volume.write(rng.randrange(8) * 8192, rng.randbytes(volume.size // 2))
        volume.restore(kept)
        if volume.read(0, volume.size) != base:
            say(lost=f"the volume is not what it was when snapshot {kept.name} was taken")
            os._exit(3)
        say(restored=number)
        time.sleep(0.01)  # so that the journal does not overflow while the secondary is down more often than up


def digest(store: pyrepl.Volume | pyrepl.Snapshot) -> str:
    return hashlib.sha256(store.read(0, store.size)).hexdigest()


def main() -> None:
    role, folder, port, expected, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]), int(sys.argv[5])
    with pyrepl.Node.open(folder) as node:
        group = node.group("fire")
        if role == "secondary":
            node.listen("127.0.0.1", port)
            say(ready=True)
        else:
            stamps = check(group.volume("stamped"), {int(block): stamp for block, stamp in expected.items()})
            say(ready=True)
            if seed:
                for writer in range(WRITERS):
                    threading.Thread(target=write, args=(group.volume("stamped"), writer, stamps, seed), daemon=True).start()
                threading.Thread(target=operate, args=(group.volume("operated"), group, seed), daemon=True).start()
        for line in sys.stdin:
            if line == "status\n":
                say(status=group.link("other").status() if role == "primary" else {})
            elif line == "sync\n":
                group.link("other").wait_synced(timeout=60)
                group.wait(where="other", timeout=60)
                say(synced=True)
            elif line == "digests\n":
                stores = [*group.volumes, *group.snapshots]
                say(digests={store.name: digest(store) for store in stores})
            elif line == "end\n":
                break
            time.sleep(0)


if __name__ == "__main__":
    main()
