"""What was given to a daemon, as the command line shows it."""

from __future__ import annotations

from pyrepl.cli import output


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
