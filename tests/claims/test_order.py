"""Claims 6 to 14: what the secondary shows is a moment of the primary's order, and operations have their place in it."""

from __future__ import annotations

import json
import threading
from functools import partial

from click.testing import CliRunner

from pyrepl._core import batch, layout
from pyrepl.cli import main
from tests.support.cable import HEADER, Gate
from tests.support.rig import COMMAND, LINK, MIB, REGION, WAIT


def test_claim_06_in_the_same_flow(rig, times):
    """One writer stamps v and k from one counter; the link is cut at random; S always has a prefix of that counter."""
    one = rig(v=MIB)
    one.fill("v", 0, MIB)
    one.snapshot("v", "k")
    one.drain()
    looks, first = [], one.stamp
    with one.writers(["v", "k"], pause=0.0005, size=8192) as writers:
        for _ in range(times(200)):
            one.near.wait(one.near.wait(), where=LINK, timeout=WAIT)  # it is connected again, and S has moved on
            writers.more(one.rng.randrange(1, 30))
            one.proxy.cut()
            looks.append(one.look())
            one.proxy.mend()
    one.check_both()
    one.judge(looks)
    for lsn, stores in looks:
        last = max(int(found.max()) for found in stores.values())
        assert last <= first or lsn == first + 1 + (last - first) + 1, "the stamps over v and k are a prefix"
    assert len({lsn for lsn, _ in looks}) > len(looks) // 2


def test_claim_08_every_represented_moment_is_exact(rig, times):
    """S is held at random positions while writes and operations go on, and now and then it is restarted unreachable."""
    one = rig(v=MIB, w=MIB, journal=512 * MIB)  # an overflow would make S inconsistent, and then it shows no moment
    one.fill("v", 0, MIB)
    one.snapshot("v", "k")
    one.drain()
    looks, resting, stopping = [], [], threading.Event()

    def operate() -> None:
        n = 0
        while not stopping.wait(0.002):
            n += 1
            one.snapshot("w", f"s{n}", wait=False)
            one.restore("v", "k", (REGION * (n % 8), REGION * 4), wait=False)
            one.copy_range("v", "k", REGION * (n % 12), REGION * 2)
            if n > 4:
                one.delete(f"s{n - 4}")

    operator = threading.Thread(target=operate)
    operator.start()
    try:
        with one.writers(["v", "w", "k"], threads=2, pause=0.001, size=16384) as writers:
            for n in range(times(200)):
                writers.more(one.rng.randrange(1, 20))
                one.cable.hold()
                looks.append(one.look())
                one.cable.release()
                if n % 10 == 9:
                    one.close_far()
                    one.open_far(listen=False)
                    lsn = one.far.wait()
                    resting.append(one.look())
                    assert resting[-1][0] == lsn == one.far.wait(), "it stands still"
                    one.listen_far()
                    one.near.wait(one.near.wait(), where=LINK, timeout=WAIT)  # how far S is behind has a bound
    finally:
        stopping.set()
        operator.join()
    one.check_both()
    one.judge(looks + resting)
    assert len({lsn for lsn, _ in looks}) > len(looks) // 2 and resting


def test_claim_09_ordered_operations(rig, times):
    one = rig(v=2 * MIB)
    for n in range(times(100)):
        end = REGION * (32 + n)
        steps = [partial(one.write, "v", 0, MIB), partial(one.snapshot, "v", f"a{n}"), partial(one.write, "v", REGION, MIB),
                 partial(one.restore, "v", f"a{n}", (REGION * 2, REGION * 5)), partial(one.write, "v", REGION * 4, REGION),
                 partial(one.snapshot, "v", f"b{n}"), partial(one.resize, "v", end + REGION), partial(one.write, "v", end, REGION)]
        for step in steps:
            match one.rng.randrange(12):
                case 0 | 1:
                    one.proxy.cut()
                    one.proxy.mend()
                case 2 if one.rng.random() < 0.5:
                    one.close_far()
                    one.open_far()
                case 3 if one.rng.random() < 0.5:
                    one.reopen_near()
            step()
        one.check_both()
        one.delete(f"a{n}")
        one.delete(f"b{n}")
    one.check_both()


def test_claim_10_at_the_very_place(rig, times):
    """LSNs n, n + 1, n + 2: a write, a restore, a write that overlaps its target. S stops after each."""
    one = rig(v=MIB)
    one.fill("v", 0, MIB)
    one.snapshot("v", "k")
    for _ in range(times(100)):
        one.drain()
        before = one.near.wait()
        one.cable.tap = gate = Gate(before)
        lsns = [one.write("v", 0, REGION * 2), one.restore("v", "k").lsn, one.write("v", REGION, REGION * 2)]
        one.near.flush()
        assert lsns == [before + 1, before + 2, before + 3]
        looks = [one.look()]
        for lsn in lsns:
            gate.open(lsn)
            one.near.wait(lsn, where=LINK, timeout=WAIT)
            looks.append(one.look())
        assert [lsn for lsn, _ in looks] == [before, *lsns], "S stopped after each of them"
        one.judge(looks)
        assert (looks[2][1]["v"] == looks[2][1]["k"]).all(), "never the later write under the operation"
        gate.open()
        one.cable.tap = None


def test_claim_11_the_command_is_in_the_stream(rig):
    one = rig(v=MIB)
    one.fill("v", 0, MIB)
    one.snapshot("v", "k")
    one.drain()
    one.cable.tap = gate = Gate()
    first = one.write("v", 0, REGION)
    operation = one.restore("v", "k").lsn
    last = one.write("v", REGION, REGION)
    one.drain()
    batches = [frame[HEADER:] for kind, frame in gate.frames if kind == layout.FRAME_BATCH]
    heads = [batch.head(body) for body in batches]
    order = [(head.first_lsn, head.kind) for head in heads if head.kind in (layout.BATCH_EVENTS, layout.BATCH_OPERATION)]
    assert order == [(first, layout.BATCH_EVENTS), (operation, layout.BATCH_OPERATION), (last, layout.BATCH_EVENTS)]
    command = next(body for body, head in zip(batches, heads, strict=True) if head.kind == layout.BATCH_OPERATION)
    assert len(command) <= COMMAND
    for journal in ("near-journal", "far-journal"):
        shown = CliRunner().invoke(main, ["journal", "dump", str(one.folder / journal), "--json"])
        records = [record for record in json.loads(shown.stdout)["records"]
                   if record["kind"] in ("events", "operation") and record["first_lsn"] >= first]
        assert [(record["first_lsn"], record["kind"]) for record in records] == [
            (first, "events"), (operation, "operation"), (last, "events")], journal
    robbed = []

    def rob(kind: int, frame: bytes) -> bool:
        is_command = kind == layout.FRAME_BATCH and frame[HEADER + 6] == layout.BATCH_OPERATION
        robbed.append(1) if is_command else None
        return not is_command

    one.cable.tap = rob
    connections, before = one.link.status()["connections"], one.write("v", 0, REGION)
    one.restore("v", "k")
    one.write("v", REGION, REGION)
    one.near.flush()
    deadline = threading.Event()
    for _ in range(600):
        if one.link.status()["connections"] >= connections + 3:
            break
        deadline.wait(0.05)
    assert len(robbed) >= 2 and one.link.status()["connections"] >= connections + 3, "S ends each robbed connection"
    assert one.look()[0] == before, "S stops before what is missing"
    one.cable.tap = None
    one.check_both()


def test_claim_14_by_executing_commands(rig):
    """One of each: S lists the same operations with the same LSNs and figures, and nothing of them came as data."""
    one = rig(v=2 * MIB, w=2 * MIB)
    one.fill("v", 0, 2 * MIB)
    one.fill("w", 0, 2 * MIB)
    one.drain()
    begin = one.near.wait()
    with one.measured() as wire:
        done = [one.snapshot("v", "k"), one.group_snapshot("all"), one.restore("w", "w-all", (0, REGION)), one.synchronize("w", "v"),
                one.restore("v", "k"), one.refresh("k", "v"), one.copy_range("v", "w", REGION, REGION), one.clone("k", "c"),
                one.resize("c", 3 * MIB), one.mark("m"), one.delete("w-all")]
    near, far = ([entry for entry in group.operations() if entry["lsn"] > begin] for group in (one.near, one.far))
    assert [entry["lsn"] for entry in far] == [result.lsn for result in done]
    for entry in (*near, *far):
        if entry["kind"] == "copy-range":  # of what w shows of v already, unless the mover of that site has made it w's own
            assert entry.pop("bytes_changed") in (0, REGION)
    own = ("seconds", "bytes_avoided", "secondaries")  # of each site; time, arguments, figures and names are the same
    assert [{key: entry[key] for key in entry if key not in own} for entry in near] == \
        [{key: entry[key] for key in entry if key not in own} for entry in far]
    assert near[2]["arguments"] == {"target": "w", "source": "w-all", "first": 0, "count": 1}
    times = [entry["time"] for entry in far]
    assert times == sorted(times) and all(0 <= entry["seconds"] < WAIT for entry in [*near, *far])
    assert all(entry["secondaries"] == {LINK: "performed"} for entry in near)
    assert all(entry["bytes_avoided"] == entry["bytes_changed"] for entry in near if "bytes_changed" in entry)
    assert wire.counts.writes == wire.counts.copied == 0 and wire.counts.operations <= COMMAND * len(done)
    one.check_both()
