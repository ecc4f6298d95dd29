"""``pyrepl verify`` between two daemons: what it says, writes and ends with, and that it repairs what differs, only that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from pyrepl.cli import output
from tests.cli.conftest import COMMAND, environment

REGION = 65536


def flip(path: Path, offset: int) -> None:
    """One bit of a device is another than what was written there."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.fixture
def written(berlin, paris, pair) -> str:
    """A synced pair whose volume holds noise at both sites, and is shown from the secondary's own device."""
    berlin.ok("volume", "write", f"{pair}/data", input=os.urandom(4 << 20))
    berlin.ok("wait", pair, "applied", "--link", "paris", "--timeout", "30")
    return pair


def device(daemon, group: str) -> Path:
    """Where the volume's content is at that site."""
    status = daemon.json(output.GroupShow, "group", "show", group)
    return Path(next(store.path for store in status.group.stores if store.name == "data"))


def sent(daemon, group: str) -> int:
    """Bytes of regions that were copied over the link."""
    return int(daemon.json(output.GroupShow, "group", "show", group).group.links[0].bytes_sent.copied)


def test_equal(berlin, written) -> None:
    text = berlin.ok("verify", written)
    assert text.startswith(f"{written} as of LSN ") and "\n  paris: equal; 4 MiB compared, " in text
    found = berlin.json(output.Verified, "verify", written, "--link", "paris", "--no-repair")
    (link,) = found.links
    assert (link.name, link.state, link.reason, link.extents) == ("paris", "equal", None, [])
    assert (link.compared, link.different, link.known_to_differ) == (4 << 20, 0, 0) and 0 < link.bytes_on_wire < 1024


def test_a_planted_difference_is_found_and_repaired(berlin, paris, written) -> None:
    """On the secondary's real device, below everything: the command finds it, moves that region, and nothing else."""
    path, copied = device(paris, written), sent(berlin, written)
    flip(path, 5 * REGION + 1000)
    done = berlin("verify", written, "--no-repair")
    assert done.returncode == 1 and not done.stderr
    assert "  paris: 64 KiB differ; 4 MiB compared, " in done.stdout
    assert f"\n    data: 64 KiB from {5 * REGION} on\n" in done.stdout
    assert sent(berlin, written) == copied  # only found
    lsn = is_told(berlin, written)
    assert berlin.stop(signal.SIGKILL) == -signal.SIGKILL  # it is durable when the command has ended
    berlin.start()
    berlin.ok("wait", written, "synced", "--timeout", "60")
    assert berlin.json(output.GroupShow, "group", "show", written).group.links[0].found_different.lsn == lsn
    copied = sent(berlin, written)  # since this start
    told = berlin.fails(5, "migrate", written, "--to", "paris")
    assert f"differs from this one in 64 KiB, as the verification at LSN {lsn} found" in told and "with force" in told
    assert "with force" in berlin.fails(5, "demote", written)
    done = berlin("verify", written, "--json")
    assert done.returncode == 1
    (link,) = json.loads(done.stdout)["links"]
    assert (link["state"], link["different"]) == ("repaired", REGION)
    assert link["extents"] == [{"store": "data", "offset": 5 * REGION, "length": REGION}]
    assert REGION <= sent(berlin, written) - copied <= REGION + 4096
    assert berlin.json(output.GroupShow, "group", "show", written).group.links[0].found_different is None
    berlin.ok("status", written, "--check")
    assert jobs(berlin, written)[-1].result == "64 KiB differed at paris, repaired"
    berlin.ok("verify", written)
    assert jobs(berlin, written)[-1].result is None
    berlin.ok("wait", written, "applied", "--link", "paris", "--timeout", "30")
    assert path.read_bytes()[:4 << 20] == device(berlin, written).read_bytes()[:4 << 20]


def jobs(daemon, group: str) -> list[output.Job]:
    """Of that group."""
    return list(daemon.json(output.JobList, "job", "list", group).jobs)


def is_told(berlin, group: str) -> int:
    """A difference that was found, and is not repaired, is seen wherever somebody looks; the LSN as of which."""
    different = berlin.json(output.GroupShow, "group", "show", group).group.links[0].found_different
    assert different.bytes == REGION
    words = f"64 KiB found different at LSN {different.lsn}, not repaired"
    first, *details = berlin.ok("status", group).splitlines()
    assert words in first and any(words in line and f"`pyrepl verify {group} --link paris`" in line for line in details)
    checked = berlin("status", group, "--check")
    assert checked.returncode == 1 and checked.stdout.startswith(f"WARNING: {group} → paris {words}")
    assert "64 KiB found" in berlin.ok("link", "list", group)
    (metric,) = (line for line in berlin.ok("metrics").splitlines()
                 if line.startswith("pyrepl_link_found_different_bytes") and group in line)
    assert float(metric.split()[-1]) == REGION
    job = jobs(berlin, group)[-1]
    assert (job.verb, job.state, job.result) == ("group.verify", "done", "64 KiB differ at paris")
    assert berlin.ok("job", "list", group).splitlines()[-1].endswith("done: 64 KiB differ at paris")
    assert berlin.ok("job", "show", str(job.id)).startswith(f"group.verify of {group}: done: 64 KiB differ at paris\n")
    assert "compared with paris different" in berlin.ok("operation", "show", group, str(different.lsn))
    assert berlin.ok("operation", "list", group).splitlines()[-1].endswith("paris different")
    return int(different.lsn)


def test_the_secondary_says_so_and_wants_force_to_lead(berlin, paris, written) -> None:
    """It knows by itself: its primary may be gone when somebody looks."""
    flip(device(paris, written), 5 * REGION + 1000)
    assert berlin("verify", written, "--no-repair").returncode == 1
    end = time.monotonic() + 30
    while (found := paris.json(output.GroupShow, "group", "show", written).group.found_different) is None:
        assert time.monotonic() < end, "it is not told"
    assert found == berlin.json(output.GroupShow, "group", "show", written).group.links[0].found_different
    assert berlin.json(output.GroupShow, "group", "show", written).group.found_different is None
    words = f"64 KiB found different at LSN {found.lsn}, not repaired"
    first, *details = paris.ok("status", written).splitlines()
    assert f"consistent, {words}" in first and any(
        f"{words}, " in line and f"`pyrepl verify {written}` at its primary repairs that" in line for line in details)
    checked = paris("status", written, "--check")
    assert checked.returncode == 1 and checked.stdout.startswith(f"WARNING: {written} {words}")
    berlin.ok("link", "pause", f"{written}/paris")
    while paris.json(output.GroupShow, "group", "show", written).group.primary_connected:
        assert time.monotonic() < end, "it hears that its primary is gone"
    year = time.strftime("%Y", time.localtime(found.time))
    told = paris.fails(5, "promote", written, "--alone")
    assert f"in 64 KiB, as the verification at LSN {found.lsn} found at {year}-" in told and "repeat it with force" in told
    told = paris.fails(2, "takeover", written)
    assert f"{words} ({year}-" in told and "and the content of this site counts then" in told and "would go on from LSN" in told
    assert paris.json(output.GroupShow, "group", "show", written).group.role == "secondary"
    paris.ok("takeover", written, "--force")
    after = paris.json(output.GroupShow, "group", "show", written).group
    assert (after.role, after.found_different) == ("primary", None)


def test_it_is_a_comparison_of_the_devices(berlin, paris, written) -> None:
    """It is the primary's device that was damaged: the secondary differs all the same, and is made equal to it."""
    flip(device(berlin, written), 0)
    assert "64 KiB differed, and are repaired" in berlin("verify", written, "--repair").stdout
    berlin.ok("verify", written)  # what was repaired arrived before it
    berlin.ok("wait", written, "applied", "--link", "paris", "--timeout", "60")
    assert device(paris, written).read_bytes()[:REGION] == device(berlin, written).read_bytes()[:REGION]


def test_progress_is_told(berlin, written) -> None:
    done = berlin("verify", written, "--progress")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1].startswith(f"verifying {written}: ")
    assert not berlin("verify", written).stderr


def test_what_cannot_be_compared(berlin, paris, group, written) -> None:
    assert "nothing to verify" in berlin.fails(5, "verify", group)
    assert "secondary" in paris.fails(5, "verify", written)
    assert "no link 'rome'" in berlin.fails(3, "verify", written, "--link", "rome")
    assert "no group 'nothing'" in berlin.fails(3, "verify", "nothing")
    berlin.ok("link", "pause", f"{written}/paris")
    done = berlin("verify", written)
    assert done.returncode == 8 and "paris: not compared: not connected: the link is paused; 0 B compared" in done.stdout
    berlin.ok("link", "resume", f"{written}/paris")
    berlin.ok("wait", written, "synced", "--timeout", "30")
    berlin.ok("verify", written)


def test_operations_with_their_result_compared(berlin, paris, written) -> None:
    """--verify: what the operation has written is compared, repaired alone, and told by the command and by the list."""
    text = berlin.ok("snapshot", "create", f"{written}/data", "monday", "--verify")
    assert ": performed at LSN " in text and "\n  paris: equal; 4 MiB compared, " in text
    made = berlin.json(output.Operation, "snapshot", "create", written, "all", "--verify")
    assert [(link.name, link.state, link.compared) for link in made.verified] == [("paris", "equal", 4 << 20)]
    assert berlin.json(output.Operation, "snapshot", "create", f"{written}/data", "plain").verified is None
    copied = sent(berlin, written)
    flip(device(paris, written), 9 * REGION)  # which all snapshots show, too
    done = berlin("volume", "restore", f"{written}/data", "monday", "--offset", "512K", "--length", "256K", "--force", "--verify",
                  "--json")
    restored = msgspec.json.decode(done.stdout, type=output.Operation, strict=True)
    (link,) = restored.verified or ()
    assert (done.returncode, link.state, link.compared, link.different) == (1, "repaired", 256 << 10, REGION)
    assert [(one.store, one.offset, one.length) for one in link.extents] == [("data", 9 * REGION, REGION)]
    assert REGION <= sent(berlin, written) - copied <= REGION + 4096
    listed = {one.lsn: one for one in berlin.json(output.OperationList, "operation", "list", written).operations}
    assert [(one.link, one.state, one.different) for one in listed[restored.lsn].verified or ()] == [("paris", "repaired", REGION)]
    assert listed[1].verified is None
    assert berlin.ok("operation", "list", written).splitlines()[-1].split()[-2:] == ["paris", "repaired"]
    assert "compared with paris repaired" in berlin.ok("operation", "show", written, str(restored.lsn))
    berlin.ok("link", "pause", f"{written}/paris")
    done = berlin("volume", "synchronize", f"{written}/data", "monday", "--force", "--verify")
    assert done.returncode == 8 and "paris: not compared: not connected" in done.stdout
    berlin.ok("link", "resume", f"{written}/paris")


def test_a_result_is_compared_although_nobody_waits(berlin, paris, written) -> None:
    made = berlin.json(output.Operation, "snapshot", "create", f"{written}/data", "later", "--verify", "--no-wait")
    assert made.verified is not None
    end = time.monotonic() + 30
    while (berlin.json(output.OperationShow, "operation", "show", written, str(made.lsn)).operation.verified or ())[0].state != "equal":
        assert time.monotonic() < end
    assert "without" not in berlin.ok("verify", written)


def test_nothing_to_compare_with(berlin, group) -> None:
    assert "has no link" in berlin.fails(5, "snapshot", "create", f"{group}/data", "monday", "--verify")
    assert "no snapshots" in berlin.ok("snapshot", "list", group)


def test_a_command_that_is_interrupted_ends_the_comparison(berlin, paris, written) -> None:
    """The secondary is held still, so that the comparison cannot end; another one is refused until the command is
    gone, and good when both go on."""
    os.kill(paris.pid, signal.SIGSTOP)
    try:
        command = subprocess.Popen([sys.executable, "-c", COMMAND, "verify", written, "--progress"], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, env=environment(PYREPL_SOCKET=berlin.socket))
        assert command.stderr is not None
        assert command.stderr.readline().startswith(b"verifying ")
        assert "being verified already" in berlin.fails(5, "verify", written)
        command.send_signal(signal.SIGKILL)
        command.communicate()
        end = time.monotonic() + 60
        while "being verified already" in berlin("verify", written, "--timeout", "0").stderr:
            assert time.monotonic() < end
    finally:
        os.kill(paris.pid, signal.SIGCONT)
    berlin.ok("wait", written, "synced", "--timeout", "30")
    berlin.ok("verify", written)
