"""What was given to a daemon, as the command line shows it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from pyrepl.cli import output

from .conftest import COMMAND, environment


def test_list_and_show(berlin, group):
    berlin.ok("snapshot", "create", f"{group}/data", "tuesday")
    berlin.fails(4, "snapshot", "create", f"{group}/data", "tuesday")
    made, failed = berlin.json(output.JobList, "job", "list", group, "--last", "2").jobs
    assert (made.verb, made.state, made.user) == ("store.snapshot", "done", "root") and made.lsn
    assert (failed.state, failed.code) == ("failed", "exists") and "tuesday" in failed.error
    assert berlin.json(output.JobList, "job", "list", group, "--running").jobs == []
    title, *rows = berlin.ok("job", "list", group).splitlines()
    assert title.split() == ["JOB", "TIME", "USER", "GROUP", "COMMAND", "TOOK", "OUTCOME"]
    assert "store.snapshot store=data name=tuesday" in rows[-1] and rows[-1].endswith("failed: exists")
    assert rows[-2].endswith("done")
    assert berlin.json(output.JobShow, "job", "show", str(made.id)).job == made
    told = berlin.ok("job", "show", str(made.id))
    assert f"store.snapshot of {group}: done" in told and f"`pyrepl operation show {group} {made.lsn}`" in told
    assert f"exists: {failed.error}" in berlin.ok("job", "show", str(failed.id))
    assert "no job 99999999 is known" in berlin.fails(3, "job", "show", "99999999")
    assert berlin.ok("job", "list", "nothing-of-that-name") == "no jobs\n"


def test_a_set_is_short_in_the_list(berlin, group):
    """Its kinds, or how many; all of it is shown with the job alone."""
    berlin.ok("set", group, "snapshot data one", "snapshot data two")
    assert "members=snapshot,snapshot" in berlin.ok("job", "list", group).splitlines()[-1]
    berlin.ok("set", group, *(f"snapshot data s{number}" for number in range(9)))
    *_, row = berlin.ok("job", "list", group).splitlines()
    assert "members=9" in row and "store" not in row
    berlin.ok("mark", group, "m", "--payload", "x" * 1000)
    assert len(berlin.ok("job", "list", group).splitlines()[-1]) < 250
    (last,) = berlin.json(output.JobList, "job", "list", group, "--last", "2").jobs[:1]
    assert '"name": "s8"' in berlin.ok("job", "show", str(last.id))


def test_one_that_was_interrupted(daemons, tmp_path):
    """As people see it: that it was, and where to look for what it had done."""
    killed = daemons("killed-jobs")
    group = killed.new_group()
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 64 << 30)  # its digest takes more than a minute
    command = subprocess.Popen([sys.executable, "-c", COMMAND, "image", "add", f"{group}/large", str(tmp_path / "large")],
                               env=environment(PYREPL_SOCKET=killed.socket), stderr=subprocess.DEVNULL)
    end, kept = time.monotonic() + 60, killed.folder / "node" / "jobs"
    while not kept.exists() or "group.add_image" not in kept.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    killed.stop(signal.SIGKILL)
    command.wait(60)
    killed.start()
    (one,) = killed.json(output.JobList, "job", "list", group, "--last", "1").jobs
    assert (one.verb, one.state, one.seconds, one.code) == ("group.add_image", "interrupted", None, None)
    assert killed.ok("job", "list", group).splitlines()[-1].endswith("interrupted")
    told = killed.ok("job", "show", str(one.id))
    assert f"group.add_image of {group}: interrupted" in told and "took" not in told
    assert f"the daemon ended before it was over: `pyrepl operation list {group} --all` tells" in told
