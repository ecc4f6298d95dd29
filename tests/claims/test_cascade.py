"""Beyond the claims: a chain of three daemons, driven by the command line alone; the bytes on its last link are counted by a
proxy between the two."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from pyrepl.demo.proxy import Proxy
from tests.support.clients import until
from tests.support.daemons import Daemon
from tests.support.rig import COMMAND, MIB, framing

SIZE = 8 * MIB
_RUN = "from pyrepl.cli import main; main(prog_name='pyrepl')"


class Chain:
    """Berlin feeds Paris, Paris feeds Rome; what the volume must show is kept beside."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.sites = {name: Daemon(folder / name, name) for name in ("berlin", "paris", "rome")}
        for daemon in self.sites.values():
            stack.callback(daemon.close)
        host, port = self.sites["rome"].address.rsplit(":", 1)
        self.line = stack.enter_context(Proxy((host, int(port))))
        for name, daemon in self.sites.items():
            self.do(name, "group", "create", "db", "--journal", daemon.folder / "journal", "--journal-size", "64M", "--role",
                    "primary" if name == "berlin" else "secondary")
            self.do(name, "volume", "add", "db/v", "--size", SIZE)
        self.ids = {name: self.ask(name, "status")["node"]["node_id"][:8] for name in self.sites}
        self.content = bytearray(SIZE)
        self.do("berlin", "link", "add", "db/paris", self.sites["paris"].address, "--wait", "--timeout", 60)
        self.do("paris", "link", "add", "db/rome", f"127.0.0.1:{self.line.port}", "--wait", "--timeout", 60)

    def do(self, site: str, *arguments: object, data: bytes = b"") -> bytes:
        """The output of one ``pyrepl`` process, which must do its work."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                       "PYREPL_SOCKET": str(self.sites[site].control)}
        done = subprocess.run([sys.executable, "-c", _RUN, *map(str, arguments)], input=data, capture_output=True, check=False,
                              timeout=120, env=environment)
        assert done.returncode == 0, f"pyrepl {arguments}: {done.returncode} {done.stderr.decode()}"
        return done.stdout

    def ask(self, site: str, *arguments: object) -> Any:
        """Its JSON."""
        return json.loads(self.do(site, *arguments, "--json"))

    def status(self, site: str) -> Any:
        return self.ask(site, "status", "db")["groups"][0]

    def headline(self, site: str) -> list[str]:
        """The lines that a person reads first, without figures."""
        lines = self.do(site, "status", "db").decode().splitlines()
        end = next(n for n, line in enumerate(lines) if line.startswith("  group "))
        return [re.sub(r"(, at LSN \d+)? \([^()]*\)$", "", line) for line in lines[:end]]

    def write(self, leader: str, offset: int, length: int) -> None:
        data = os.urandom(length)
        self.do(leader, "volume", "write", "db/v", "--offset", offset, data=data)
        self.content[offset:offset + length] = data

    def arrive(self, *way: tuple[str, str]) -> int:
        """All that the first of these (site, link) has is performed at the end of the last link; its LSN."""
        lsn = self.status(way[0][0])["lsn"]["end"]
        for site, link in way:
            self.do(site, "wait", "db", "synced", "--link", link, "--timeout", 60)
            self.do(site, "wait", "db", lsn, "--link", link, "--timeout", 60)
        return int(lsn)

    def check(self, *sites: str) -> None:
        for site in sites:
            assert self.do(site, "volume", "read", "db/v") == self.content, site


def test_a_chain_of_three_daemons(tmp_path):
    """Commands arrive at the last site without data; the middle is killed and comes back; the first is gone and the middle leads:
    the last goes on, and nothing is copied to it."""
    with contextlib.ExitStack() as stack:
        one = Chain(tmp_path, stack)
        down = (("berlin", "paris"), ("paris", "rome"))
        assert one.headline("berlin") == ["db  primary  → paris  consistent, up to date"]
        assert one.headline("paris") == [f"db  secondary  consistent, fed by its primary, node {one.ids['berlin']}",
                                         "               → rome  consistent, up to date"]
        assert one.headline("rome") == [f"db  secondary  consistent, fed by node {one.ids['paris']}, a secondary itself"]
        assert [node[:8] for node in one.status("rome")["above"]] == [one.ids["berlin"]]

        before = one.line.counts()
        one.write("berlin", 0, SIZE)
        one.do("berlin", "snapshot", "create", "db/v", "monday")
        monday = bytes(one.content)
        one.write("berlin", 0, 5 * MIB)
        one.arrive(*down)
        sent = one.line.counts().since(before)
        assert sent.copied == 0 and SIZE + 5 * MIB <= sent.writes <= SIZE + 5 * MIB + framing(SIZE + 5 * MIB)

        before = one.line.counts()
        one.do("berlin", "volume", "restore", "db/v", "monday", "--force")
        one.content[:] = monday
        lsn = one.arrive(*down)
        restored = one.line.counts().since(before)
        assert restored.writes == restored.copied == 0 < restored.operations <= COMMAND
        one.check(*one.sites)
        listed = [one.ask(site, "operation", "list", "db")["operations"][-2:] for site in one.sites]
        assert all([(entry["lsn"], entry["kind"]) for entry in each] == [(entry["lsn"], entry["kind"]) for entry in listed[0]]
                   for each in listed) and listed[0][-1]["lsn"] == lsn

        before = one.line.counts()
        one.write("berlin", 0, MIB)
        one.sites["paris"].kill()
        one.write("berlin", MIB, MIB)
        until(lambda: "is not connected" in one.headline("rome")[0], "the last site says that nobody feeds it", 60)
        assert one.status("rome")["consistent"]
        one.sites["paris"].start()
        one.arrive(*down)
        killed = one.line.counts().since(before)
        assert killed.copied == 0 and 2 * MIB <= killed.writes <= 3 * MIB + framing(3 * MIB)
        one.check(*one.sites)

        one.sites["berlin"].kill()
        until(lambda: not one.status("paris")["primary_connected"], "the first site is gone", 60)
        before = one.line.counts()
        one.do("paris", "takeover", "db", "--force")
        one.write("paris", 3 * MIB, MIB)
        one.arrive(("paris", "rome"))
        led = one.line.counts().since(before)
        assert led.copied == 0 and MIB <= led.writes <= MIB + framing(MIB)
        assert one.headline("paris") == ["db  primary  → rome  consistent, up to date"]
        assert one.headline("rome") == ["db  secondary  consistent"] and one.status("rome")["above"] == []
        one.check("paris", "rome")
        print(f"beyond: restore at the last of three sites: {restored.operations} B as a command, {restored.total} B in all on its "
              f"link; after SIGKILL of the middle {killed.copied} B copied, after its takeover {led.copied} B; violations: 0")
