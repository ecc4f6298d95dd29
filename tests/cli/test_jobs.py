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
