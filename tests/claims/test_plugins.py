"""Claim 7: what an operation of the user's own sees at the secondary is what it saw at the primary, and what was there."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support.cable import Gate
from tests.support.model import BLOCK, REGION
from tests.support.plugin_cases import MEMBERS, Meets, Probe, install
from tests.support.rig import LINK, MIB, WAIT

KIB = 1024


def digest_of(stamps: np.ndarray) -> bytes:
    """SHA-256 of a store whose blocks have these stamps."""
    words = np.zeros((len(stamps), BLOCK // 16, 2), dtype="<u8")
    words[:, :, 0] = stamps[:, None]
    words[:, :, 1] = np.where(stamps == 0, 0, np.arange(len(stamps), dtype="<u8"))[:, None]
    return hashlib.sha256(words.tobytes()).digest()


def test_claim_07_same_state_when_performed(rig, times, request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``probe`` says the digest of v at its point, under load, with a secondary that falls behind by seconds: all digests are
    the same at both sites, and those of the model."""
    monkeypatch.syspath_prepend(install(tmp_path / "installed"))
    count, behind = times(1000), 25.0 if request.config.getoption("--long") else 2.5
    one = rig(v=2 * MIB)
    one.fill("v", 0, MIB)
    one.drain()
    results, copied = [], one.link.status()["bytes_sent"]["copied"]
    with one.writers(["v"], pause=0.01, size=16 * KIB):
        one.link.set(bandwidth=128 * KIB)
        deadline = time.monotonic() + 4 * WAIT
        while len(results) < count or far_age(one) < behind:  # as many, and until it is as far behind as it is to be
            assert time.monotonic() < deadline, f"{len(results)} probes, {far_age(one)} s behind"
            if len(results) < count:
                results.append(one.near.perform(Probe("v"), wait=False))
                one.model.nothing(results[-1].lsn, "probe")
            time.sleep(behind * 2 / count)
    one.link.set(bandwidth=0)
    for result in results:
        result.wait(timeout=WAIT)
    one.near.wait(results[-1].lsn, where=LINK, timeout=4 * WAIT)
    near = {result.lsn: result.digest for result in results}
    told = [each for each in one.far.operations() if each["kind"] == "perform"]
    print(f"{count} probes, the secondary up to {max(each['seconds'] for each in told):.1f} s behind")
    assert len(near) == len(told) == count and max(each["seconds"] for each in told) >= behind
    assert {each["lsn"]: each["digest"] for each in told} == {lsn: digest.hex() for lsn, digest in near.items()}
    wanted = {lsn: digest_of(stores["v"]) for lsn, stores in one.model.walk(near)}
    assert near == wanted, f"seed {one.seed}"
    assert len(set(near.values())) > count // 2, "it was written all the time"
    assert one.link.status()["refused"] == [] and one.link.status()["bytes_sent"]["copied"] == copied
    one.check_both()


def test_claim_13_members_that_work_overlap_at_both_sites(rig, times, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A set of eight plug-ins that take time, between two writes: each goes on only when all are under way, at P and at S. S stops
    after each event: nothing of the set before its place, all of it there, nothing of it over the write behind it."""
    monkeypatch.syspath_prepend(install(tmp_path / "installed"))
    volumes = [f"v{number}" for number in range(MEMBERS)]
    one = rig(**dict.fromkeys(volumes, MIB))
    for volume in volumes:
        one.fill(volume, 0, MIB)
    one.group_snapshot("k")
    for _ in range(times(30)):
        for volume in volumes:
            one.write(volume, one.rng.randrange(8) * REGION, REGION * 2)
        one.drain()
        before = one.near.wait()
        one.cable.tap = gate = Gate(before)
        first = one.write("v3", 0, REGION * 2)
        with one.near.unordered(wait=False) as ops:
            for volume in volumes:
                ops.perform(Meets(volume, f"{volume}-k"))
        one.model.did(ops.result.lsn, "set of plug-ins", restore_all)
        last = one.write("v5", REGION, REGION * 2)
        one.near.flush()
        assert [first, ops.result.lsn, last] == [before + 1, before + 2, before + 3]
        ops.result.wait(timeout=WAIT)
        assert [member.failed for member in ops.result.members] == [""] * MEMBERS
        looks = [one.look()]
        for lsn in (first, ops.result.lsn, last):
            gate.open(lsn)
            one.near.wait(lsn, where=LINK, timeout=WAIT)
            looks.append(one.look())
        assert [lsn for lsn, _ in looks] == [before, first, ops.result.lsn, last], "S stopped after each of them"
        one.judge(looks)
        gate.open()
        one.cable.tap = None
    assert one.link.status()["refused"] == [], "each was performed there, too"
    one.check_both()


def restore_all(stores) -> None:
    """What the set does, by the model."""
    for number in range(MEMBERS):
        stores[f"v{number}"][:] = stores[f"v{number}-k"]


def far_age(one) -> float:
    """Seconds since the oldest event that the secondary lacks."""
    return float(one.link.status()["lag_seconds"] or 0.0)
