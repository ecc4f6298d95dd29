"""``pyrepl mark`` where this site has hooks: what came of them is the command's business, if it waits."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pyrepl.cli import output
from tests.cli.conftest import Daemon

HOOKS = """
[[hook]]
mark = "bad"
program = ["/bin/sh", "-c", "echo no such luck; exit 3"]
hold = true
[[hook]]
mark = "late"
program = ["/bin/sh", "-c", "sleep 100"]
timeout = 0.5
hold = true
[[hook]]
mark = "ghost"
program = ["/nonexistent/hook"]
hold = true
[[hook]]
mark = "good"
program = ["/bin/true"]
hold = true
[[hook]]
mark = "beside"
program = ["/bin/sleep", "2"]
"""


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with hooks."""
    daemon = Daemon(tmp_path_factory.mktemp("hooked") / "berlin", "berlin")
    daemon.stop()
    daemon.configure(HOOKS)
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.mark.parametrize(("mark", "words"), [
    ("bad", "failed with exit status 3: no such luck"),
    ("late", "timed-out: it had not ended after 0.5 s"),
    ("ghost", "failed: /nonexistent/hook: No such file or directory"),
])
def test_a_hook_that_did_not_do_its_work(hooked: Daemon, mark: str, words: str) -> None:
    group = hooked.new_group()
    done = hooked("mark", group, mark)
    assert done.returncode == 1 and f"mark {mark} in {group}: performed at LSN 2" in done.stdout
    assert done.stderr == f"the hook of this site at mark {mark} (LSN 2) {words}\n"
    done = hooked("mark", group, mark, "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["state"] == "performed" and words in done.stderr
    done = hooked("mark", group, mark, "--no-wait")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("mark", ["good", "beside", "without-a-hook"])
def test_one_that_does_or_still_does_it(hooked: Daemon, mark: str) -> None:
    done = hooked("mark", hooked.new_group(), mark)
    assert (done.returncode, done.stderr) == (0, "")


def test_only_the_run_of_this_mark_counts(hooked: Daemon) -> None:
    group = hooked.new_group()
    assert hooked("mark", group, "bad").returncode == 1
    hooked.ok("mark", group, "good")
    runs = hooked.json(output.GroupShow, "group", "show", group).group.hooks
    assert [(run.mark, run.state) for run in runs] == [("bad", "failed"), ("good", "done")]
