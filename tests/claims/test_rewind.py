"""Rewind beyond one site: under load, on both sites of a link, and when a process is killed in the middle of it."""

from __future__ import annotations

import signal

import pytest

import pyrepl
from tests.support.model import stamps
from tests.support.rig import COMMAND, MIB, REGION

SIZE = 8 * MIB

KILLED = """
import os, signal, sys, pyrepl
from pyrepl import rewinding
rewinding.TELL_EVERY = 0.0
def kill(told):
    if told["phase"] == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
with pyrepl.Node.open(sys.argv[1]) as node:
    node.group("db").volume("v").rewind(int(sys.argv[2]), "back", progress=kill)
"""


def test_any_lsn_under_load_is_the_same_at_both_sites(rig, times):
    one = rig(v=SIZE, w=SIZE)
    one.fill("v", 0, SIZE)
    with one.writers(["v", "w"], threads=2, size=2 * REGION, pause=0.01) as writers:
        writers.more(50)
        one.snapshot("v", "monday")
        writers.more(50)
        one.restore("v", "monday", extent=(0, SIZE // 2))
        writers.more(50)
        end = one.near.site.window.state().end_lsn
        targets = sorted({one.rng.randrange(2, end + 1) for _ in range(times(50))} | {end})
        made = {lsn: one.near.volume("v").rewind(lsn, f"back-{lsn}") for lsn in targets}
        writers.more(20)
    one.drain()
    for lsn, wanted in one.model.walk(targets):
        far = one.far.volume(made[lsn].name)
        for back in (made[lsn], far):
            assert (stamps(back.read(0, back.size)) == wanted["v"]).all(), f"seed {one.seed}: LSN {lsn}, {back}"
        assert far.digest(0, SIZE) == made[lsn].digest(0, SIZE)


def test_what_a_snapshot_shows_crosses_the_wire_as_a_command(rig):
    one = rig(v=SIZE)
    one.fill("v", 0, SIZE)
    lsn = one.snapshot("v", "monday").lsn
    one.fill("v", 0, SIZE)
    one.drain()
    with one.measured() as wire:
        made = one.near.volume("v").rewind(lsn, "back")
    assert made.result.details == {"to_lsn": lsn, "bytes_written": 0}
    assert wire.counts.writes == wire.counts.copied == 0 and wire.forward - wire.counts.signs <= 2 * COMMAND
    assert one.far.volume("back").digest(0, SIZE) == one.near.store("monday").digest(0, SIZE)


@pytest.mark.parametrize("phase", ["trace", "build", "fill"])
def test_killed_in_the_middle_nothing_is_left_at_either_site(rig, python, phase):
    one = rig(v=SIZE)
    one.fill("v", 0, SIZE)
    lsn = one.write("v", REGION, 4096)
    one.fill("v", 0, SIZE)
    one.drain()
    one.near_node.close()
    program = python(KILLED, str(one.folder / "near"), str(lsn), phase)
    assert program.wait(60) == -signal.SIGKILL
    one.near_node = pyrepl.Node.open(one.folder / "near")
    one.near = one.near_node.group("db")
    one.link = one.near.link("far")
    one.near.wait(where="far", timeout=60)
    for group in (one.near, one.far):
        assert [store["name"] for store in group.status()["stores"]] == ["v"]
        assert group.status()["views"] == []
    assert list((one.folder / "near").rglob("*rewind*")) == []
    back = one.near.volume("v").rewind(lsn, "back")
    assert (stamps(back.read(0, SIZE)) == one.model.at(lsn)["v"]).all()


def test_who_is_promoted_deletes_what_its_primary_left_unfinished(rig):
    from pyrepl import operations

    one = rig(v=SIZE)
    volume = one.near.volume("v")
    one.near.operate(lambda catalog: operations.rewind(catalog, volume.id, "back", SIZE, 1, [(volume.id, 0, 1)]))
    one.near.flush()
    one.near.wait(where="far", timeout=60)
    assert [store["kind"] for store in one.far.status()["stores"]] == ["volume", "unfinished"]
    one.near_node.close()
    one.far.takeover()
    one.far.wait()
    assert [store["name"] for store in one.far.status()["stores"]] == ["v"]
