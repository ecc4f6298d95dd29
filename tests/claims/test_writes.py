"""Claims 15 to 21: writes are data, and only what was not copied is copied."""

from __future__ import annotations

import pyrepl
from pyrepl._core import batch, layout
from pyrepl.demo.proxy import Proxy
from tests.support.cable import HEADER
from tests.support.clients import until
from tests.support.model import content
from tests.support.rig import BLOCK, COMMAND, LINK, MIB, REGION, WAIT, framing


def test_claim_15_and_16_writes_are_data_not_operations(rig, times):
    one = rig(v=64 * MIB)
    total, payload, before = times(1024) * MIB, 0, one.near.operation_counts()
    with one.measured() as wire:
        while payload < total:
            length = one.rng.randrange(1, 17) * BLOCK
            one.write("v", one.rng.randrange((64 * MIB - length) // BLOCK) * BLOCK, length)
            payload += length
            if payload // (64 * MIB) != (payload - length) // (64 * MIB):
                one.drain()  # the journal must hold what is unsent, or regions are copied
    assert wire.counts.copied == wire.counts.operations == 0 and one.near.operation_counts() == before
    assert payload <= wire.counts.writes and wire.forward - wire.counts.signs <= payload + framing(payload)
    one.check_both()
    volume = one.near.volume("v")
    with one.measured() as wire:
        for call in (volume.zero, volume.discard) * 8:
            offset = one.rng.randrange(63) * MIB
            one.model.wrote(call(offset, MIB), "v", offset, MIB, 0)
    assert wire.counts.copied == wire.counts.operations == 0 and wire.forward - wire.counts.signs <= 16 * COMMAND
    one.check_both()


def test_claim_17_and_18_so_are_writes_to_a_snapshot(rig):
    one = rig(v=64 * MIB)
    one.fill("v", 0, 64 * MIB)
    one.snapshot("v", "k")
    one.drain()
    frames, before = [], one.near.operation_counts()

    def keep(kind: int, frame: bytes) -> bool:
        frames.append(frame[HEADER:]) if kind == layout.FRAME_BATCH and frame[HEADER + 6] == layout.BATCH_EVENTS else None
        return True

    one.cable.tap = keep
    with one.measured() as wire:
        payload = one.fill("k", 0, 64 * MIB, step=REGION)
    assert {record.store for body in frames for record in batch.records(body)} == {one.near.store("k").id}
    assert wire.counts.copied == wire.counts.operations == 0 and one.near.operation_counts() == before
    assert payload <= wire.counts.writes and wire.forward - wire.counts.signs <= payload + framing(payload)
    one.check_both()


PRIMARY = """
import os, sys, pyrepl
from tests.support.model import content
with pyrepl.Node.open(sys.argv[1]) as node:
    group = node.group("db")
    volume, link = group.volume("v"), group.link("far")
    link.wait_synced(60)
    os.write(1, b"ready\\n")
    while link.status()["connected"]:
        pass
    stamp, unsent = int(sys.argv[2]), int(sys.argv[3])
    for n in range(unsent):
        if n % (unsent // 3) == 0:
            k = n // (unsent // 3)
            operation = (lambda: volume.snapshot("late"), lambda: volume.restore("k", extent=(0, 1 << 20)),
                         lambda: group.store("k").refresh())[k]
            os.write(1, b"op %d %d\\n" % (operation().lsn, k))
        stamp += 1
        lsn = volume.write(n << 20, content(stamp, n << 8, 256))
        os.write(1, b"w %d %d %d\\n" % (lsn, n << 20, stamp))
    group.flush()
    os.write(1, b"done\\n")
    os.read(0, 1)
"""
UNSENT = 12  # MiB, a multiple of 3


def killed_primary(one, python, program=PRIMARY):
    """The primary as a process of its own, cut off, with UNSENT MiB and three operations that S lacks; then killed.
    What it said goes to the model; the LSN up to which S has everything."""
    one.fill("v", 0, 64 * MIB)
    one.snapshot("v", "k")
    sent = one.drain()
    one.near_node.close()
    process = python(program, str(one.folder / "near"), str(one.stamp), str(UNSENT))
    assert process.stdout.readline() == "ready\n"
    one.proxy.cut()
    for line in process.stdout:
        what, *numbers = line.split()
        if what == "done":
            break
        if what == "w":
            lsn, offset, one.stamp = map(int, numbers)
            one.model.wrote(lsn, "v", offset, MIB, one.stamp)
        else:
            lsn, k = map(int, numbers)
            match k:
                case 0:
                    one.model.made(lsn, {"late": "v"})
                case 1:
                    one.model.copied(lsn, "v", "k", 0, MIB)
                case _:
                    one.model.copied(lsn, "k", "v", 0, None)
    process.kill()
    process.wait()
    return sent


def test_claim_20_only_what_was_not_copied(rig, python):
    one = rig(v=64 * MIB)
    sent = killed_primary(one, python)
    before = one.unseen = one.proxy.counts().forward
    operations = one.proxy.counts()
    one.near_node = pyrepl.Node.open(one.folder / "near")
    one.near = one.near_node.group("db")
    one.link = one.near.link("far")
    one.proxy.mend()
    one.check_both()
    counts = one.proxy.counts().since(operations)
    status = one.link.status()
    assert one.near.wait() == sent + UNSENT + 3 and status["bytes_sent"]["copied"] == counts.copied == 0
    assert counts.operations <= 3 * COMMAND
    assert one.proxy.counts().forward - before - counts.signs <= UNSENT * MIB + framing(UNSENT * MIB) + 3 * COMMAND
    print(f"claim 20: {counts.forward} bytes for {UNSENT * MIB} unsent and three operations; shipping their changes too "
          f"{(UNSENT + 129) * MIB}, all of it {64 * MIB}")


def test_claim_20_after_a_takeover_too(rig, python):
    """S takes over from P, which was killed with 12 MiB and three operations unsent, and writes 3 MiB; P returns."""
    one = rig(v=64 * MIB)
    third = 'volume.restore("k", extent=(40 << 20, 1 << 20))'  # a refresh of "k" would count with all of "k"
    killed_primary(one, python, PRIMARY.replace('group.store("k").refresh()', third))
    leader = one.far
    leader.takeover()
    for n in range(20, 23):
        leader.volume("v").write(n * MIB, content(1 << 20, n << 8, 256))
    one.near_node = pyrepl.Node.open(one.folder / "near")
    one.near = one.near_node.group("db")
    lost = one.near.volume("v").read(0, 64 * MIB)
    one.near.demote(force=True)
    with Proxy(one.near_node.listen("127.0.0.1", 0)) as line:
        link = leader.add_link("home", f"127.0.0.1:{line.port}")
        link.wait_synced(60)
        leader.wait(where="home", timeout=60)
        counts = line.counts()
    assert leader.volume("v").read(0, 12 * MIB) != lost[: 12 * MIB]
    for store in (*leader.volumes, *leader.snapshots):
        assert one.near.store(store.name).digest(0, 64 * MIB) == store.digest(0, 64 * MIB), store.name
    until(lambda: one.near.status()["protective"] is None, "the protective snapshot goes when it is not needed any more", WAIT)
    kept = {snapshot.origin: snapshot for snapshot in one.near.kept}
    assert set(kept) == {"v", "late"} and kept["v"].read(0, 64 * MIB) == lost
    assert 0 < counts.copied <= (UNSENT + 1) * MIB + framing((UNSENT + 1) * MIB), "what P wrote, and its third operation"
    moved = counts.forward - counts.signs
    assert moved <= (UNSENT + 1 + 3) * MIB + framing((UNSENT + 4) * MIB) + 3 * COMMAND
    print(f"claim 20, after a takeover: {moved} bytes for {UNSENT} MiB and three operations lost and 3 MiB written since; "
          f"all of it {128 * MIB}")


WRITTEN = 40  # MiB


def test_claim_21_an_early_snapshot(rig):
    """S makes the snapshot at once, P when 40 MiB more were written: just those make S's equal, once."""
    one = rig(v=64 * MIB)
    one.fill("v", 0, 64 * MIB)
    one.drain()
    before = one.proxy.counts()
    with one.near.volume("v").begin_snapshot("s") as early:
        one.model.nothing(early.lsn, "early")
        assert early.wait(WAIT) == [LINK] and [store.name for store in one.far.snapshots] == []
        for n in range(WRITTEN):
            one.write("v", n * MIB, MIB)
        one.drain()
        assert one.proxy.counts().since(before).copied == 0
        before = one.proxy.counts()
        made = early.perform()
        one.model.made(made.lsn, {"s": "v"})
        one.check_both()
    counts = one.proxy.counts().since(before)
    moved = counts.forward - counts.signs
    assert WRITTEN * MIB <= counts.copied <= WRITTEN * MIB + framing(WRITTEN * MIB)
    assert moved <= counts.copied + framing(counts.copied) + 4 * COMMAND
    print(f"claim 21: {moved} bytes for {WRITTEN} MiB that changed between the two, of a snapshot of 64 MiB")


def test_claim_21_an_early_restore(rig):
    """S restores at once; 40 MiB are written; P restores. While S has restored and P has not, nothing of the volume is
    copied; then just what was written is, once."""
    one = rig(v=64 * MIB)
    one.fill("v", 0, 64 * MIB)
    one.snapshot("v", "s")
    one.fill("v", 0, 64 * MIB)
    one.drain()
    before = one.proxy.counts()
    with one.near.volume("v").begin_restore("s") as early:
        one.model.nothing(early.lsn, "early")
        early.wait(WAIT)
        # Readers find what was before; that S has restored is seen by what need not be copied afterwards.
        assert one.far.volume("v").digest(0, 64 * MIB) == one.near.volume("v").digest(0, 64 * MIB)
        assert not one.far.status()["consistent"] and one.link.status()["state"] == "resyncing"
        for n in range(WRITTEN):
            one.write("v", n * MIB, MIB)
        last = one.near.flush()
        one.link.wait_applied(last, WAIT)
        assert one.proxy.counts().since(before).copied == 0
        before = one.proxy.counts()
        made = early.perform()
        one.model.copied(made.lsn, "v", "s", 0, None)
        one.check_both()
    counts = one.proxy.counts().since(before)
    moved = counts.forward - counts.signs
    assert WRITTEN * MIB <= counts.copied <= WRITTEN * MIB + framing(WRITTEN * MIB)
    assert moved <= counts.copied + framing(counts.copied) + 4 * COMMAND
    print(f"claim 21: {moved} bytes for {WRITTEN} MiB that changed between the two, of a restore of 64 MiB")


def test_claim_21_early_of_several_volumes(rig):
    """S makes snapshots of three volumes at once, P when 40 MiB more were written to two of them, all three at one LSN; then
    the same with a restore. What was written makes S's equal, once."""
    names = ("v", "w", "x")
    one = rig(**dict.fromkeys(names, 32 * MIB))
    for name in names:
        one.fill(name, 0, 32 * MIB)
    one.drain()
    for what in ("snapshot", "restore"):
        before = one.proxy.counts()
        with one.near.begin_snapshot("s") if what == "snapshot" else one.near.begin_restore("s") as early:
            for lsn in range(early.lsn - 2, early.lsn + 1):
                one.model.nothing(lsn, "early")
            assert early.wait(WAIT) == [LINK]
            for n in range(WRITTEN // 2):
                one.write("v", n * MIB, MIB)
                one.write("x", (31 - n) * MIB, MIB)
            one.link.wait_applied(one.near.flush(), WAIT)
            assert one.proxy.counts().since(before).copied == 0
            before = one.proxy.counts()
            made = early.perform()
            if what == "snapshot":
                one.model.made(made.lsn, {f"{name}-s": name for name in names})
            else:
                one.model.did(made.lsn, "restore", lambda stores: stores.update({n: stores[f"{n}-s"].copy() for n in names}))
            one.check_both()
        counts = one.proxy.counts().since(before)
        moved = counts.forward - counts.signs
        assert WRITTEN * MIB <= counts.copied <= WRITTEN * MIB + framing(WRITTEN * MIB)
        assert moved <= counts.copied + framing(counts.copied) + 4 * COMMAND
        print(f"claim 21: {moved} bytes for {WRITTEN} MiB that changed between the two, of a {what} of {3 * 32} MiB")
