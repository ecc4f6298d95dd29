"""Beyond the claims: operations in every state of the link, a restore that shrinks what differs, a fan-out in different states."""

from __future__ import annotations

import collections
import time
from contextlib import ExitStack

import pyrepl
from tests.support.model import stamps
from tests.support.rig import LINK, MIB, REGION, WAIT, framing

SIZE = 4 * MIB


def until(true, seconds=WAIT):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def any_operation(one, made):
    """One of those that there are, on stores that there are; its kind."""
    rng, near = one.rng, one.near
    volumes = [volume.name for volume in near.volumes if volume.size == SIZE]
    snapshots = [snapshot.name for snapshot in near.snapshots]
    kinds = ["snapshot", "synchronize", "copy-range", "mark"] + ["restore", "restore", "refresh", "delete"] * bool(snapshots)
    kind = "delete" if len(snapshots) > 8 else rng.choice(kinds)
    first = rng.randrange(SIZE // REGION)
    extent = (first * REGION, rng.randrange(1, SIZE // REGION - first + 1) * REGION)
    match kind:
        case "snapshot":
            made.append(len(made))
            one.snapshot(rng.choice(volumes), f"s{len(made)}")
        case "restore":
            one.restore(rng.choice(volumes), rng.choice(snapshots), rng.choice([None, extent]))
        case "refresh":
            name = rng.choice(snapshots)
            origin = next(store["origin"] for store in near.status()["stores"] if store["name"] == name)
            if origin is None:
                return None
            one.refresh(name, origin)
        case "synchronize":
            target, source = rng.sample([*volumes, *snapshots], 2)
            one.synchronize(target, source)
        case "copy-range":
            source, target = rng.sample([*volumes, *snapshots], 2)
            one.copy_range(source, target, *extent)
        case "delete":
            one.delete(rng.choice(snapshots))
        case _:
            one.mark(f"m{one.stamp}")
    return kind


def test_a_delayed_secondary_shows_what_was_before_a_mistake(rig):
    """In mode sync, with a delay of an hour: writers do not notice, the mistake is durable there, and what was before it can be
    read there. A restart keeps that. Without the delay, and after a takeover, everything is performed."""
    one = rig(a=SIZE, b=SIZE, mode="sync")
    far = one.far
    one.drain()
    until(lambda: far.site.is_settled)  # that it is consistent comes behind the last event, and would wait with it
    far.set_delay(3600)
    before = far.applied_lsn
    good = far.volume("a").read(0, SIZE)
    one.fill("a", 0, SIZE)  # the mistakes: it is overwritten, and what is left of the group removed
    near_volume = one.near.volume("b")
    near_volume.remove(force=True)
    status = one.link.wait_synced(WAIT)
    assert status["durable_lsn"] == one.near.status()["lsn"]["end"] and not status["degraded"] and status["consistent"]
    assert status["applied_lsn"] == before == far.applied_lsn
    for _ in range(2):
        assert [volume.name for volume in far.volumes] == ["a", "b"] and far.volume("b").size == SIZE
        assert far.volume("a").read(0, SIZE) == good
        with far.open_view(far.volume("b")) as view:
            assert view.lsn == before and len(view.read(0, SIZE)) == SIZE
        told = far.status()["delay"]
        assert told["seconds"] == 3600 and told["waiting_bytes"] > SIZE and told["shortened"] is None
        one.close_far()
        one.open_far()
        far = one.far
        one.link.wait_synced(WAIT)
    far.set_delay(0)
    one.link.wait_applied(one.near.status()["lsn"]["end"], WAIT)
    assert [volume.name for volume in far.volumes] == ["a"] and far.volume("a").read(0, SIZE) == one.near.volume("a").read(0, SIZE)
    far.set_delay(3600)
    good = one.near.volume("a").read(0, SIZE)
    one.fill("a", 0, SIZE)
    want = one.near.volume("a").read(0, SIZE)
    one.link.wait_synced(WAIT)
    assert far.volume("a").read(0, SIZE) == good
    one.link.pause()
    until(lambda: not one.link.status()["connected"])
    until(lambda: not any(feed.is_open for feed in far.feeds(far.site)))
    far.takeover()
    assert far.volume("a").read(0, SIZE) == want and far.delay == 3600
    far.volume("a").write(0, b"x" * 4096)
    assert far.volume("a").read(0, 4096) == b"x" * 4096


def test_a_trial_at_a_secondary_while_replication_goes_on(rig):
    """The test of a failover: all volumes of a secondary as of one LSN, written, snapshotted and restored while writers at the
    primary go on. Nothing of it reaches either site, and it is gone with its space when it is closed."""
    one = rig(a=SIZE, b=SIZE)
    with one.writers(["a", "b"]):
        lsn, _ = one.look()
        with one.far.open_trial() as trial:
            assert trial.lsn >= lsn and [volume.name for volume in trial.volumes] == ["a", "b"]
            shown = {volume.name: volume.read(0, SIZE) for volume in trial.volumes}
            seen = trial.lsn, {name: stamps(data) for name, data in shown.items()}
            a, b = trial.volume("a"), trial.volume("b")
            a.write(100, b"tried")  # not aligned
            b.zero(0, 2 * REGION)
            saved = a.snapshot("before")
            a.write(SIZE - 4096, b"x" * 4096, fua=True)
            a.restore(saved)
            b.synchronize("a")
            shown["a"] = shown["a"][:100] + b"tried" + shown["a"][105:]
            told = one.far.status()["trials"]
            assert [entry["lsn"] for entry in told] == [trial.lsn] and told[0]["space"] > 0 and told[0]["error"] is None
            first = one.near.status()["lsn"]["end"]
            until(lambda: one.far.applied_lsn > first)  # replication goes on
            assert a.read(0, SIZE) == b.read(0, SIZE) == shown["a"]
            assert one.far.role == "secondary" and one.far.status()["consistent"]
    assert trial.closed and one.far.status()["trials"] == [] and one.far.status()["views"] == []
    assert not list((one.folder / "far").rglob("trials/*"))
    one.judge([seen])
    one.check_both()


def test_operations_in_every_state_of_the_link(rig, times):
    """While the link is down, paused with an overflowed journal, or copies slowly. After each round both sites hold what the
    model says, store by store."""
    one = rig(a=SIZE, b=SIZE, c=SIZE, journal=16 * MIB)
    counts, kinds, made = collections.Counter(), collections.Counter(), []
    rounds = times(60)
    for number in range(rounds):
        state = ("down", "overflowed", "resyncing")[number % 3]
        if state == "down":
            one.proxy.cut()
            until(lambda: not one.link.status()["connected"])
        else:
            one.link.pause()
            for _ in range(5):
                for volume in "abc":
                    one.fill(volume, 0, SIZE)
            one.near.wait()
        if state == "resyncing":
            one.link.set(bandwidth=64 * 1024)
            one.link.resume()
            until(lambda: one.link.status()["state"] == "resyncing")
        for _ in range(16):
            word = one.link.status()["state"]
            kind = any_operation(one, made)
            if kind is not None:
                counts[word] += 1
                kinds[kind] += 1
            for _ in range(one.rng.randrange(4)):
                volume, length = one.rng.choice("abc"), one.rng.randrange(1, 32) * 4096
                one.write(volume, one.rng.randrange((SIZE - length) // 4096) * 4096, length)
        assert state != "resyncing" or one.link.status()["state"] == "resyncing", "it was over before the operations were"
        one.proxy.mend()
        one.link.set(bandwidth=0)
        one.link.resume()
        one.check_both()  # a violation raises
    total = sum(counts.values())
    print(f"beyond: {total} operations, {dict(counts)} by state of the link, {dict(kinds)} by kind; violations: 0 in {rounds} rounds")
    assert counts["resyncing"] >= 4 * rounds and counts["paused"] >= 4 * rounds and total >= 15 * rounds


def test_a_restore_shrinks_what_differs(rig, size):
    """60 % were overwritten while the link was away, and the journal has forgotten it. The snapshot is at both sites: the
    restore is the command, and nothing of what was overwritten is ever sent."""
    lost = size * 6 // 10 // MIB * MIB
    one = rig(v=size, journal=16 * MIB)
    one.fill("v", 0, size)
    one.snapshot("v", "k")
    one.drain()
    one.link.pause()
    one.fill("v", 0, lost)
    kept = one.fill("v", lost, 4 * MIB)
    for _ in range(3):
        kept = one.fill("v", lost, 4 * MIB)
    one.near.wait()
    with one.near.explain() as ops:
        ops.restore("v", "k")
    told = ops.result["links"][0]
    assert told["divergent_bytes"] == told["bytes_removed"] >= lost - 16 * MIB > 0 and told["divergent_bytes_after"] == 0
    with one.measured() as wire:
        one.restore("v", "k")
        one.link.resume()
    one.check_both()
    assert wire.counts.copied == 0 and wire.counts.operations == told["command_bytes"]
    assert wire.counts.writes <= 16 * MIB + framing(16 * MIB)
    print(f"beyond: {lost + 4 * kept} bytes were overwritten; {told['bytes_removed']} that differed are never sent, "
          f"{wire.counts.writes} of the journal are, the command has {wire.counts.operations}")


def test_three_secondaries_in_different_states(rig, tmp_path):
    """One streams, one copies slowly, one stands still; operations go on. Each is explained for each link; then all are equal."""
    one = rig(v=SIZE, w=SIZE, journal=16 * MIB)
    groups, links = {"far": one.far}, {"far": one.link}
    with ExitStack() as stack:
        for name in ("rome", "oslo"):
            node = stack.enter_context(pyrepl.Node.open(tmp_path / name, create=True, name=name))
            group = groups[name] = node.create_group("db", tmp_path / f"{name}-journal", journal_size=16 * MIB, role="secondary")
            for volume in "vw":
                group.add_volume(volume, size=SIZE)
            links[name] = one.near.add_link(name, "{}:{}".format(*node.listen("127.0.0.1")))
            links[name].wait_synced(WAIT)
        one.fill("v", 0, SIZE)
        one.snapshot("v", "k")
        for link in links.values():
            link.wait_synced(WAIT)
        for name in ("rome", "oslo"):
            links[name].pause()
        stood = int(groups["oslo"].wait())
        for _ in range(6):
            one.fill("w", 0, SIZE)
            one.link.wait_synced(WAIT)  # the journal is to overflow for the others alone
        one.near.wait()
        links["rome"].set(bandwidth=32 * 1024)
        links["rome"].resume()
        until(lambda: links["rome"].status()["state"] == "resyncing")
        counts, made = collections.Counter(), []
        for _ in range(20):
            for name, link in links.items():
                counts[name, link.status()["state"]] += 1
            any_operation(one, made)
            one.write("v", one.rng.randrange(SIZE // 4096) * 4096, 4096)
        with one.near.explain() as ops:
            ops.restore("v", "k") if "k" in [store.name for store in one.near.snapshots] else ops.mark("m")
        told = {link["name"]: link for link in ops.result["links"]}
        assert told["far"]["divergent_bytes"] == 0 and told["oslo"]["state"] == "paused"
        assert len({link["command_bytes"] for link in told.values()}) == 1
        assert one.check(groups["oslo"], stood) == stood, "who stands still shows the moment at which it stands"
        links["rome"].set(bandwidth=0)
        links["oslo"].resume()
        lsn = one.check_both()
        for name in ("rome", "oslo"):
            links[name].wait_synced(WAIT)
            one.near.wait(lsn, where=name, timeout=WAIT)
            assert one.check(groups[name]) == lsn
        states = {f"{name} {state}": count for (name, state), count in counts.items()}
        assert counts["far", "streaming"] and counts["rome", "resyncing"] and counts["oslo", "paused"]
        print(f"beyond: operations by link and its state {states}; violations: 0; the group's link is {LINK}")
