"""The commands of the tutorial, as they stand in it, in a shell with a home of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyrepl._core import blockdev
from tests.support import clients

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.device, pytest.mark.timeout(150, method="signal")]  # a signal, so that mounts are taken away


@pytest.fixture
def home(tmp_path: Path):
    """A home in which nothing stays mounted or attached, whatever the commands did."""
    if reason := clients.why_no_mounts():
        pytest.skip(reason)
    clients.need("nbdfuse", "fusermount3", "mkfs.ext4", "e2fsck")
    yield tmp_path
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in sorted((place for place in mounts if place.startswith(str(tmp_path))), reverse=True):
        clients.run("umount", "-l", place, status=None)
    for name in ("loop", "copy-loop"):
        kept = tmp_path / "pyrepl-tutorial" / name
        with contextlib.suppress(OSError):  # detached by the commands
            blockdev.detach_loop(kept.read_text().strip())


def test_the_tutorial_does_what_it_says(home: Path) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text()
    script = "set -eu\n" + "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"], "/usr/sbin", "/sbin"])
    log = home / "log"
    with log.open("wb") as output:
        shell = subprocess.Popen(["bash", "-c", script], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                 env={**os.environ, "HOME": str(home), "PATH": path}, start_new_session=True)
        try:
            status = shell.wait(120)
        finally:
            with contextlib.suppress(ProcessLookupError):  # all of its session have ended
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    told = log.read_text()
    assert status == 0, told[-4000:]
    assert told.count("the books of Monday") == 2
    assert "restored from monday" in told
    assert not (home / "pyrepl-tutorial").exists()
