"""Claims 12, 13 and 26: strict order, and sets of operations at one point; by the API, and by daemons and the command line."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pyrepl.errors import Refused, UsageError
from tests.support.cable import Cable, Gate
from tests.support.daemons import Daemon
from tests.support.rig import COMMAND, LINK, MIB, REGION, WAIT

VOLUMES = [f"v{number}" for number in range(8)]


def restore_all(one: Any) -> Any:
    """An unordered set: each volume from its snapshot."""
    with one.near.unordered() as ops:
        for volume in VOLUMES:
            ops.restore(volume, f"{volume}-k")

    def step(stores):
        for volume in VOLUMES:
            stores[volume][:] = stores[f"{volume}-k"]

    one.model.did(ops.result.lsn, "set of restores", step)
    return ops.result


def test_claim_12_all_ordered(rig):
    """Eight threads submit 50 operations to a group of strict order: one order, the same at both sites, and no set."""
    one = rig(ordering="strict", v=4 * MIB, w=4 * MIB)
    one.fill("v", 0, 4 * MIB)
    one.snapshot("v", "k")
    numbers, lsns, lock, errors = iter(range(50)), [], threading.Lock(), []

    def submit() -> None:
        try:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                offset = REGION * (number % 50)
                match number % 5:
                    case 0:
                        result = one.snapshot("w", f"s{number}", wait=False)
                    case 1:
                        result = one.restore("v", "k", (offset, REGION * 8), wait=False)
                    case 2:
                        result = one.copy_range("v", "w", offset, REGION * 4)
                    case 3:
                        result = one.refresh("k", "v")
                    case _:
                        result = one.mark(f"m{number}")
                one.write("v", offset, REGION)
                with lock:
                    lsns.append(result.lsn)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(set(lsns)) == 50
    one.check_both()  # the contents are those of that one order
    near, far = ([(each["lsn"], each["kind"]) for each in group.operations()] for group in (one.near, one.far))
    assert [each for each in near if each[0] in lsns] == [each for each in far if each[0] in lsns]
    assert [lsn for lsn, _ in far if lsn in lsns] == sorted(lsns)
    before = one.near.wait()
    with pytest.raises(Refused, match="made with strict ordering: each operation has a place of its own") as caught, \
            one.near.unordered() as ops:
        ops.snapshot("v", "a")
        ops.snapshot("w", "b")
    assert caught.value.reason == "ordering" and one.near.wait() == before


def test_claim_13_unordered_set_at_one_point(rig, times):
    """Write, set of eight restores, write that overlaps: S stops after each. None of the set before the first write, none after
    the second; and members that are in each other's way are refused."""
    one = rig(**dict.fromkeys(VOLUMES, MIB))
    for volume in VOLUMES:
        one.fill(volume, 0, MIB)
    one.group_snapshot("k")
    for _ in range(times(60)):
        for volume in VOLUMES:
            one.write(volume, one.rng.randrange(8) * REGION, REGION * 2)
        one.drain()
        before = one.near.wait()
        one.cable.tap = gate = Gate(before)
        lsns = [one.write("v3", 0, REGION * 2), restore_all(one).lsn, one.write("v5", REGION, REGION * 2)]
        one.near.flush()
        assert lsns == [before + 1, before + 2, before + 3]
        looks = [one.look()]
        for lsn in lsns:
            gate.open(lsn)
            one.near.wait(lsn, where=LINK, timeout=WAIT)
            looks.append(one.look())
        assert [lsn for lsn, _ in looks] == [before, *lsns], "S stopped after each of them"
        one.judge(looks)
        for volume in VOLUMES:
            moments = [stores[volume] for _, stores in looks]
            assert (moments[2] == looks[2][1][f"{volume}-k"]).all(), "all of the set at its place"
            assert volume == "v3" or (moments[1] == moments[0]).all(), "nothing of it before"
            assert volume == "v5" or (moments[3] == moments[2]).all()
        gate.open()
        one.cable.tap = None
    lsn = one.check_both()
    for group in (one.near, one.far):
        told = next(each for each in reversed(group.operations()) if each["kind"] == "set")
        assert [member["kind"] for member in told["members"]] == ["restore"] * 8
    with pytest.raises(UsageError, match=r"number 1 \(restore\) writes store 'v0', which number 2 \(snapshot\) reads"), \
            one.near.unordered() as ops:
        ops.restore("v0", "v0-k")
        ops.snapshot("v0", "x")
    assert one.near.wait() == lsn


class ThreeLinks:
    """Four daemons: a primary and three secondaries, the third behind a cable that can be held."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, size: int) -> None:
        self.near, *self.far = (Daemon(folder / name, name) for name in ("near", "far1", "far2", "far3"))
        for daemon in (self.near, *self.far):
            stack.callback(daemon.close)
            self.cli(daemon, "group", "create", "db", "--journal", daemon.folder / "journal", "--journal-size", "32M",
                     "--role", "primary" if daemon is self.near else "secondary")
            for volume in VOLUMES:
                self.cli(daemon, "volume", "add", f"db/{volume}", "--size", size)
        self.cables = []
        for daemon in self.far:
            host, port = daemon.address.rsplit(":", 1)
            self.cables.append(Cable((host, int(port))))
            stack.callback(self.cables[-1].close)
            self.do("link", "add", f"db/{daemon.name}", f"127.0.0.1:{self.cables[-1].port}", "--wait", "--timeout", 60)

    def cli(self, daemon: Daemon, *arguments: object, data: bytes = b"", status: int = 0) -> bytes:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                       "PYREPL_SOCKET": str(daemon.control)}
        program = "from pyrepl.cli import main; main(prog_name='pyrepl')"
        done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], input=data, capture_output=True,
                              check=False, timeout=120, env=environment)
        assert done.returncode == status, f"pyrepl {arguments}: {done.returncode} {done.stderr.decode()}"
        return done.stdout if status == 0 else done.stderr

    def do(self, *arguments: object, data: bytes = b"", status: int = 0) -> bytes:
        return self.cli(self.near, *arguments, data=data, status=status)

    def sent(self) -> list[dict[str, int]]:
        return [link["bytes_sent"] for link in json.loads(self.do("link", "list", "db", "--json"))["links"]]

    def shown(self, daemon: Daemon, store: str) -> bytes:
        return self.cli(daemon, "volume", "read", f"db/{store}")


@pytest.mark.timeout(300)
def test_claim_26_unordered_set_at_one_point_in_a_system(tmp_path):
    """Claim 13 by four daemons and the command line; the third secondary is behind, and gets the same record."""
    with contextlib.ExitStack() as stack:
        one = ThreeLinks(tmp_path, stack, 4 * REGION)
        old, new = ({volume: os.urandom(4 * REGION) for volume in VOLUMES} for _ in range(2))
        for volume in VOLUMES:
            one.do("volume", "write", f"db/{volume}", data=old[volume])
        one.do("snapshot", "create", "db", "k")
        for volume in VOLUMES:
            one.do("volume", "write", f"db/{volume}", data=new[volume])
        one.do("wait", "db", "synced", "--timeout", 60)
        end = json.loads(one.do("status", "db", "--json"))["groups"][0]["lsn"]["end"]
        one.cables[2].tap = gate = Gate(end)
        before = one.sent()
        members = [f"restore {volume} {volume}-k" for volume in VOLUMES]
        told = one.do("set", "db", *members, "snapshot v0 x", "--force", status=2).decode()
        assert "number 1 (restore) writes store 'v0', which number 9 (snapshot) reads" in told
        done = json.loads(one.do("set", "db", *members, "--force", "--json"))
        assert (done["kind"], done["lsn"], len(done["members"])) == ("set", end + 1, 8)
        one.do("volume", "write", "db/v5", data=b"after")
        wanted = {**old, "v5": b"after" + old["v5"][5:]}
        for daemon in one.far[:2]:
            one.do("wait", "db", "applied", "--link", daemon.name, "--timeout", 60)
            assert {volume: one.shown(daemon, volume) for volume in VOLUMES} == wanted, daemon.name
        assert {volume: one.shown(one.far[2], volume) for volume in VOLUMES} == new, "it is behind: nothing of the set"
        gate.open(end + 1)
        one.do("wait", "db", end + 1, "--link", "far3", "--timeout", 60)
        assert {volume: one.shown(one.far[2], volume) for volume in VOLUMES} == old, "all of the set, and nothing after it"
        gate.open()
        one.do("wait", "db", "synced", "--timeout", 60)
        assert {volume: one.shown(one.far[2], volume) for volume in VOLUMES} == wanted
        listed = [json.loads(one.cli(daemon, "operation", "list", "db", "--json"))["operations"][-1]
                  for daemon in (one.near, *one.far)]
        assert all((each["kind"], each["lsn"], each["members"]) == ("set", end + 1, done["members"]) for each in listed)
        after = one.sent()
        records = [b["operations"] - a["operations"] for a, b in zip(before, after, strict=True)]
        assert 0 < records[0] <= COMMAND and records[0] == records[1], "one record, sent to each"
        assert records[2] % records[0] == 0, "once more if the link lost patience meanwhile"
        assert all(b["copied"] == a["copied"] for a, b in zip(before, after, strict=True))
