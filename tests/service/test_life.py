"""The process: signals, systemd's protocol, crashes, reloads, logs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyrepl
from pyrepl.errors import InUse, NotFound, PeerError, Refused
from pyrepl.service.daemon import LOOK
from pyrepl.service.health import Health
from pyrepl.service.notify import Notifier
from tests.support.ports import lasting_port

from .conftest import MIB, Daemon, until

ROOT = Path(__file__).resolve().parents[2]


class Systemd:
    """The receiving end of sd_notify: a real datagram socket."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + path[1:] if path.startswith("@") else path)
        self._socket.settimeout(0.05)
        self.told: list[tuple[float, str]] = []
        self._over = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._over:
            try:
                text = self._socket.recv(65536).decode()
            except TimeoutError:
                continue
            self.told += [(time.monotonic(), line) for line in text.split("\n")]

    def lines(self, word: str) -> list[str]:
        return [line for _, line in self.told if line.startswith(word)]

    def times(self, word: str) -> list[float]:
        return [at for at, line in self.told if line.startswith(word)]

    def close(self) -> None:
        self._over = True
        self._thread.join()
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    receiver = Systemd(str(tmp_path / "notify"))
    yield receiver
    receiver.close()


# ---------------------------------------------------------------- systemd


def test_ready_status_watchdog_reload_and_stop(daemons: Callable[..., Daemon], systemd: Systemd) -> None:
    daemon = daemons()
    daemon.start(NOTIFY_SOCKET=systemd.path, WATCHDOG_USEC="1600000")
    until(lambda: len(systemd.lines("WATCHDOG=1")) >= 6, "the watchdog is fed")
    assert systemd.lines("STATUS=opening ") and systemd.lines("READY=1") == ["READY=1"]
    until(lambda: "STATUS=0 groups" in systemd.lines("STATUS="), "people see the state")
    ready = systemd.times("READY=1")[0]
    fed = [at for at in systemd.times("WATCHDOG=1") if at > ready]
    assert all(second - first < 1.6 for first, second in zip(fed, fed[1:], strict=False))  # noqa: RUF007
    daemon.reload()
    until(lambda: len(systemd.lines("READY=1")) == 2, "the reload has ended")
    order = [line for _, line in systemd.told if line.startswith(("RELOADING=", "MONOTONIC_USEC=", "READY="))]
    assert order[1:] == ["RELOADING=1", order[2], "READY=1"]
    at = int(order[2].removeprefix("MONOTONIC_USEC=")) / 1e6
    assert abs(at - time.clock_gettime(time.CLOCK_MONOTONIC)) < 60
    assert daemon.stop() == 0
    until(lambda: systemd.lines("STOPPING=1") and systemd.lines("EXTEND_TIMEOUT_USEC="), "what it said last has been read")
    assert systemd.lines("STOPPING=1") == ["STOPPING=1"]


def test_abstract_socket_and_a_watchdog_for_somebody_else(daemons: Callable[..., Daemon]) -> None:
    receiver = Systemd(f"@pyrepl-test-{os.getpid()}")
    try:
        daemon = daemons()
        daemon.start(NOTIFY_SOCKET=receiver.path, WATCHDOG_USEC="100000", WATCHDOG_PID="1")
        until(lambda: receiver.lines("READY=1"), "ready")
        assert daemon.stop() == 0
    finally:
        receiver.close()


@pytest.mark.parametrize(("environment", "seconds"), [
    ({}, None),
    ({"WATCHDOG_USEC": "3000000"}, 3.0),
    ({"WATCHDOG_USEC": "0"}, None),
    ({"WATCHDOG_USEC": "soon"}, None),
    ({"WATCHDOG_USEC": "-5"}, None),
    ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
    ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
])
def test_the_watchdog_that_is_meant(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environment).watchdog_seconds == seconds


def test_nobody_listens(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "none")}):
        notifier = Notifier(environment)
        notifier.ready()
        notifier.close()
        notifier.close()


def test_children_do_not_inherit_the_notification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/none")
    monkeypatch.setenv("WATCHDOG_USEC", "5")
    Notifier()
    assert "NOTIFY_SOCKET" not in os.environ and "WATCHDOG_USEC" not in os.environ


def test_an_applier_that_hangs_is_noticed(nodes: Any, tmp_path: Path) -> None:
    """A real applier that really hangs, and one beside it that does not; then it goes on."""
    node = nodes()
    node.create_group("well", tmp_path / "j1", journal_size=16 * MIB)
    group = node.create_group("stuck", tmp_path / "j2", journal_size=16 * MIB)
    health = Health(node, 0.5)
    release = threading.Event()
    hung = threading.Thread(target=lambda: group.site.exclusive(release.wait), daemon=True)
    try:
        assert health.hanging() == []
        hung.start()
        until(lambda: health.hanging() == ["stuck"], "it is noticed")
        release.set()
        until(lambda: health.hanging() == [], "it answers again")
    finally:
        release.set()
        health.stop()
    hung.join(60)


def test_a_group_that_failed_is_no_reason_to_kill_the_others(nodes: Any, tmp_path: Path) -> None:
    node = nodes()
    group = node.create_group("db", tmp_path / "j", journal_size=16 * MIB)
    health = Health(node, 0.2)
    assert health.hanging() == []
    with pytest.raises(ZeroDivisionError):
        group.site.exclusive(lambda: 1 / 0)
    until(lambda: group.fault is not None, "it has failed")
    time.sleep(0.5)
    assert health.hanging() == []
    health.stop()


def test_more_time_is_asked_for_only_while_something_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by looks, not by the clock: each look at the disk is counted, and so is each time that more is asked for."""
    from pyrepl.service import daemon
    from pyrepl.service.config import Config

    looks: list[float] = []
    asked: list[float] = []
    hangs = threading.Event()

    def blocks() -> int:
        looks.append(time.monotonic())
        return 0 if hangs.is_set() else len(looks)

    monkeypatch.setattr(daemon, "EXTEND_EVERY", 0.02)
    monkeypatch.setattr(daemon, "STUCK", 0.3)
    monkeypatch.setattr(daemon, "_blocks", blocks)
    process = daemon.Daemon(Config(state=str(tmp_path)), None)
    monkeypatch.setattr(process._notifier, "extend", lambda seconds: asked.append(seconds))
    with process._taking_long():
        until(lambda: len(asked) >= 20 and looks[-1] - looks[0] > 2 * daemon.STUCK, "more is asked for while blocks move")
        hangs.set()
        since, seen = time.monotonic(), len(looks)
        until(lambda: len(looks) > seen + 2 and looks[-2] > since + 2 * daemon.STUCK, "two looks at a disk that hangs")
        before, seen = len(asked), len(looks)
        until(lambda: len(looks) > seen + 5, "some more looks")
        assert len(asked) == before and set(asked) == {daemon.EXTEND_BY}
        hangs.clear()
        until(lambda: len(asked) > before, "it moves again")


def test_blocks_that_are_written_move(tmp_path: Path) -> None:
    from pyrepl.service import daemon

    before = daemon._blocks()
    with open(tmp_path / "file", "wb") as file:
        file.write(os.urandom(MIB))
        os.fsync(file.fileno())
    assert daemon._blocks() > before


# ---------------------------------------------------------------- the unit


def test_unit_file(tmp_path: Path) -> None:
    """systemd itself reads it without a complaint."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "pyrepld.service"
    text = (ROOT / "packaging" / "pyrepld.service").read_text()
    unit.write_text(text.replace("/opt/pyrepl/bin/pyrepld", shutil.which("true")))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "pyrepld" not in done.stderr, done.stderr
    security = subprocess.run(["systemd-analyze", "security", "--offline=yes", str(unit)], capture_output=True, text=True, check=False)
    if security.returncode and "offline" in security.stderr:
        pytest.skip("this systemd-analyze cannot judge a unit that is not loaded")
    level = re.search(r"exposure level for \S+: ([\d.]+)", security.stdout)
    assert level is not None and float(level[1]) <= 2.0


def test_unit_file_and_code_agree() -> None:
    from pyrepl.errors import Corrupt, Exists, UsageError
    text = (ROOT / "packaging" / "pyrepld.service").read_text()
    assert "Type=notify\n" in text and "ExecReload=/bin/kill -HUP $MAINPID" in text
    prevented = next(line for line in text.splitlines() if line.startswith("RestartPreventExitStatus="))
    assert prevented.partition("=")[2].split() == [str(kind.exit_status) for kind in (UsageError, Exists, Corrupt)]
    assert "graft packaging" in (ROOT / "MANIFEST.in").read_text()


# ---------------------------------------------------------------- ends


def test_sigterm_applies_what_is_in_the_journal(daemons: Callable[..., Daemon]) -> None:
    """Writes that are not applied yet when the signal comes: afterwards the journal holds nothing that must be redone."""
    daemon = daemons().start()
    with daemon.connect() as node:
        group = node.create_group("db", daemon.folder / "j", journal_size=64 * MIB)
        data = group.add_volume("data", size=32 * MIB)
        content, unapplied = os.urandom(4 * MIB), 0
        for _ in range(20):  # until the signal comes in time to show something
            for number in range(6):
                data.write(number * 4 * MIB, content)
            status = group.status()
            unapplied = status["lsn"]["end"] - status["lsn"]["applied"]
            if unapplied:
                break
        assert daemon.stop() == 0
    assert unapplied > 0, "the signal came too late to show anything"
    from pyrepl._core.device import FileDevice
    from pyrepl.journal import Journal
    with FileDevice(str(daemon.folder / "j"), writable=False) as device:
        journal = Journal.find(device)
        checkpoint = journal.read_checkpoint()
        assert checkpoint.applied_lsn == status["lsn"]["end"]
    assert not os.path.exists(daemon.socket)
    daemon.start()
    with daemon.connect() as node:
        data = node.group("db").volume("data")
        assert all(data.read(number * 4 * MIB, 4 * MIB) == content for number in range(6))


def test_sigterm_while_clients_wait(daemon: Daemon, group: Any) -> None:
    """Who waits hears that the daemon stops; the daemon does not wait for it."""
    link = group.add_link("far", "127.0.0.1:1")
    told: list[Any] = []
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            link.wait_synced(None, told.append)
        except BaseException as error:
            ended.append(error)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    until(lambda: told, "the wait is under way")
    begin = time.monotonic()
    assert daemon.stop() == 0 and time.monotonic() - begin < 60
    waiter.join(60)
    assert isinstance(ended[0], Refused) and ended[0].reason == "closed" and ended[0].retryable


def test_sigkill_is_harmless(daemons: Callable[..., Daemon]) -> None:
    """Killed again and again while it is written to: the sockets are had again, and nothing that returned is lost."""
    daemon = daemons()
    daemon.configure(f'[nbd]\nlisten = ["unix:{daemon.folder}/nbd.sock"]\n[[export]]\nname = "data"\ngroup = "db"\nstore = "data"')
    daemon.start()
    with daemon.connect() as node:
        node.create_group("db", daemon.folder / "j", journal_size=16 * MIB).add_volume("data", size=MIB)
    written: dict[int, int] = {}
    index = number = 0
    for _ in range(4):
        with daemon.connect() as node:
            data = node.group("db").volume("data")
            for place, last in written.items():  # the one that was under way may be there, or not
                allowed = (last, number) if place == index else (last,)
                assert int.from_bytes(data.read(4096 * place, 8), "little") in allowed
            killer = threading.Timer(0.3, daemon.send, (signal.SIGKILL,))
            killer.start()
            with pytest.raises((PeerError, NotFound)):
                while True:
                    number += 1
                    index = number % 200
                    data.write(4096 * index, number.to_bytes(8, "little"))
                    written[index] = number
            killer.join()
        daemon.process.wait()
        assert os.path.exists(daemon.socket), "a killed process leaves its socket behind"
        daemon.process.stdout.close()
        daemon.start()
        assert daemon.ready["nbd"] == [f"unix:{daemon.folder}/nbd.sock"]
        until(lambda: _exports(daemon) == ["data"], "the export is back")
    assert daemon.stop() == 0 and not os.path.exists(f"{daemon.folder}/nbd.sock")


def _exports(daemon: Daemon) -> list[str]:
    with daemon.connect() as node:
        return [export.name for export in node.exports]


def test_a_daemon_that_was_stopped_goes_on(daemon: Daemon, group: Any) -> None:
    """For longer than it waits for a signal: what the interpreter then gives for one is none."""
    for number in (signal.SIGSTOP, signal.SIGCONT):
        daemon.send(number)
        time.sleep(LOOK * 1.5)
    assert daemon.process.poll() is None
    group.volume("data").write(0, b"x")
    assert daemon.stop() == 0


def test_hooks_of_the_configuration(daemons: Callable[..., Daemon]) -> None:
    """Two daemons: each runs its own program where the mark passes; one that is killed while it is held runs it again,
    before anything that follows is performed."""
    here, there = daemons("here"), daemons("there")
    script = here.folder / "hook"
    script.write_text('#!/bin/sh\necho "$PYREPL_GROUP $PYREPL_MARK $PYREPL_LSN $PYREPL_ROLE $(cat)" >> "$1"\n'
                      'while [ ! -e "$2" ]; do sleep 0.05; done\n')
    script.chmod(0o755)

    def table(daemon: Daemon, extra: str) -> str:
        return f'[[hook]]\nmark = "noon"\nprogram = ["{script}", "{daemon.folder}/ran", "{daemon.folder}/go"]\n{extra}'

    here.configure(table(here, ""))
    there.configure(table(there, 'hold = true\ntimeout = 60\ngroup = "db"'), top=f'listen = ["127.0.0.1:{lasting_port()}"]')
    for daemon in (here, there):
        daemon.start()
    with here.connect() as near:
        with there.connect() as far:
            far.create_group("db", there.folder / "j", journal_size=16 * MIB, role="secondary").add_volume("data", size=MIB)
        group = near.create_group("db", here.folder / "j", journal_size=16 * MIB)
        data = group.add_volume("data", size=MIB)
        group.add_link("paris", there.ready["listening"][0]).wait_synced(30)
        (here.folder / "go").touch()
        lsn = group.mark("noon", b"hello").lsn
        data.write(0, b"after")
        ran = there.folder / "ran"
        until(lambda: ran.exists() and ran.read_text().endswith("\n"), "the secondary has begun its hook")
        assert (there.folder / "ran").read_text() == f"db noon {lsn} secondary hello\n"
        with there.connect() as far:
            (run,) = far.group("db").status()["hooks"]
            assert (run["state"], run["hold"], far.group("db").applied_lsn) == ("running", True, lsn - 1)
        there.kill()
        there.configure(table(there, "hold = true\ntimeout = 60"), top=f'listen = ["{there.ready["listening"][0]}"]')
        there.start()
        until(lambda: len((there.folder / "ran").read_text().splitlines()) == 2, "it runs again")
        with there.connect() as far:
            assert far.group("db").applied_lsn == lsn - 1
            (there.folder / "go").touch()
            group.wait(where="paris", timeout=30)
            assert far.group("db").volume("data").read(0, 5) == b"after"
            assert far.group("db").status()["hooks"][0]["state"] == "done"
        until(lambda: group.status()["hooks"][0]["state"] == "done", "that of the primary has ended")
        assert (here.folder / "ran").read_text() == f"db noon {lsn} primary hello\n"


def test_a_second_daemon(daemons: Callable[..., Daemon]) -> None:
    """On the same node, and on another node with the same socket: both are refused and hurt nobody."""
    first, second = daemons("first").start(), daemons("second")
    shutil.copy(first.file, second.file)
    with pytest.raises(AssertionError, match=rf"is open in process {first.pid}"):
        second.start()
    assert second.process.wait(60) == InUse.exit_status
    second.process.stdout.close()
    second.socket = first.socket
    second.configure()
    with pytest.raises(AssertionError, match=r"another process listens there"):
        second.start()
    assert second.process.wait(60) == InUse.exit_status
    with first.connect() as node:
        assert node.status()["groups"] == []


def test_something_else_where_the_socket_should_be(daemons: Callable[..., Daemon]) -> None:
    daemon = daemons()
    Path(daemon.socket).write_text("precious")
    with pytest.raises(AssertionError, match=r"something that is no socket stands there"):
        daemon.start()
    assert Path(daemon.socket).read_text() == "precious"


def test_a_socket_that_was_replaced_is_not_removed(daemon: Daemon) -> None:
    os.rename(daemon.socket, daemon.socket + ".old")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(daemon.socket)
        other.listen()
        assert daemon.stop() == 0
        assert os.path.exists(daemon.socket)


def test_name_of_the_node(daemons: Callable[..., Daemon]) -> None:
    daemon = daemons()
    daemon.configure(top='name = "paris"')
    daemon.start()
    assert daemon.stop() == 0
    daemon.process.stdout.close()
    daemon.configure(top='name = "rome"')
    with pytest.raises(AssertionError, match=r"is called 'paris', the configuration says 'rome'"):
        daemon.start()


def test_a_group_that_cannot_be_opened_does_not_hinder_the_others(daemons: Callable[..., Daemon]) -> None:
    daemon = daemons().start()
    with daemon.connect() as node:
        for name in ("bad", "good"):
            node.create_group(name, daemon.folder / name, journal_size=16 * MIB).add_volume("data", size=MIB)
    assert daemon.stop() == 0
    daemon.process.stdout.close()
    with open(daemon.folder / "bad", "r+b") as journal:
        journal.write(bytes(16 * MIB))
    daemon.start()
    assert daemon.ready["groups"] == [{"name": "bad", "state": "failed"}, {"name": "good", "state": "active"}]
    daemon.await_line("ERROR", "group bad cannot be used")
    with daemon.connect() as node:
        bad, good = node.groups
        assert bad.state == "failed" and isinstance(bad.fault, pyrepl.errors.Corrupt) and bad.status()["error"]
        for call in (bad.check, lambda: bad.role, lambda: bad.volumes, lambda: bad.snapshot("x"), bad.flush):
            with pytest.raises(pyrepl.errors.Corrupt):
                call()
        good.volume("data").write(0, b"x")
        assert 'pyrepl_group_state{group="bad",state="failed"} 1.0' in node.metrics()


# ---------------------------------------------------------------- reload


def test_sighup_changes_exports_and_the_level(daemons: Callable[..., Daemon]) -> None:
    daemon = daemons()
    first = f'[nbd]\nlisten = ["unix:{daemon.folder}/a.sock"]\n[[export]]\nname = "one"\ngroup = "db"\nstore = "data"\n'
    daemon.configure(first)
    daemon.start()
    daemon.await_line("WARNING", "export one cannot begin yet")
    with daemon.connect() as node:
        group = node.create_group("db", daemon.folder / "j", journal_size=16 * MIB)
        group.add_volume("data", size=MIB)
        until(lambda: [export.name for export in node.exports] == ["one"], "it begins when its store is there")
        group.volume("data").snapshot("quiet")
        assert not any("event=operation" in line for line in daemon.lines())
        daemon.configure(
            f'[nbd]\nlisten = ["unix:{daemon.folder}/b.sock", "127.0.0.1:0"]\n[metrics]\nlisten = "127.0.0.1:0"\n'
            f'[log]\nlevel = "debug"\n[limits]\nconnections = 2\n'
            f'[[export]]\nname = "two"\ngroup = "db"\nstore = "quiet"\nread_only = true\n', top="insecure = true")
        logged = daemon.reload()
        assert not any("ERROR" in line or "not taken over" in line for line in logged)
        assert [(export.name, export.store, export.read_only) for export in node.exports] == [("two", "quiet", True)]
        assert not os.path.exists(f"{daemon.folder}/a.sock") and os.path.exists(f"{daemon.folder}/b.sock")
        assert len(node.status()["nbd"]) == 2
        group.volume("data").snapshot("loud")
        daemon.await_line("DEBUG", "event=operation", "loud")
        daemon.await_line("event=listening", "protocol=http")
        with daemon.connect(), pytest.raises(Refused, match=r"as many connections"):
            daemon.connect()
        daemon.configure(first)
        daemon.reload()
        assert [export.name for export in node.exports] == ["one"]


def test_sighup_names_what_is_not_taken_over(daemons: Callable[..., Daemon]) -> None:
    daemon = daemons().start()
    with daemon.connect() as node:
        old = daemon.socket
        daemon.socket += "2"
        daemon.configure('group = "root"\n[log]\nlevel = "debug"', top='listen = ["127.0.0.1:0"]')
        daemon.socket = old
        logged = daemon.reload()
        assert any("SIGHUP: listen has changed, which needs a restart of the daemon" in line for line in logged)
        assert any("SIGHUP: control.group has changed" in line for line in logged)
        assert any("SIGHUP: control.socket has changed" in line for line in logged)
        assert any("was taken over, but for 3 things named above" in line for line in logged)
        assert not any("SIGHUP: log" in line for line in logged)
        assert node.status()["listening"] == []
        again = daemon.reload()
        assert any("SIGHUP: listen has changed" in line for line in again), "it is said until it is so"
        daemon.configure()
        assert any(line.endswith("node.toml was taken over") for line in daemon.reload())


def test_sighup_with_mistakes_changes_nothing(daemons: Callable[..., Daemon]) -> None:
    daemon = daemons().start()
    daemon.configure("[nbd]\nfoo = 1\n[log]\nlevel = 'debug'")
    logged = daemon.reload()
    assert any("nothing is taken over, all goes on as before" in line and "nbd.foo: unknown key" in line for line in logged)
    with daemon.connect() as node:
        node.status()
    daemon.file.unlink()
    assert any("there is no such file" in line for line in daemon.reload())
    assert daemon.stop() == 0


def test_sighup_with_certificates_that_cannot_be_used_keeps_what_is_served(daemons: Callable[..., Daemon]) -> None:
    daemon = daemons()
    path = f"{daemon.folder}/nbd.sock"
    daemon.configure(f'[nbd]\nlisten = ["unix:{path}"]\n')
    daemon.start()

    def greeting() -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            return client.recv(8)

    assert greeting() == b"NBDMAGIC"
    daemon.configure(f'[nbd]\nlisten = ["unix:{path}"]\ncertificate = "/missing/cert.pem"\nkey = "/missing/key.pem"\n')
    assert any("SIGHUP: not taken over: nbd: the key /missing/key.pem" in line for line in daemon.reload())
    assert greeting() == b"NBDMAGIC"


def test_sighup_leaves_an_export_with_clients(daemons: Callable[..., Daemon]) -> None:
    if shutil.which("nbdcopy") is None:
        pytest.skip("nbdcopy is not installed")
    daemon = daemons()
    path = f"{daemon.folder}/nbd.sock"
    table = f'[nbd]\nlisten = ["unix:{path}"]\n'
    daemon.configure(table + '[[export]]\nname = "data"\ngroup = "db"\nstore = "data"\n')
    daemon.start()
    with daemon.connect() as node:
        node.create_group("db", daemon.folder / "j", journal_size=16 * MIB).add_volume("data", size=MIB)
        until(lambda: node.exports, "the export has begun")
        # It stays until somebody reads what it writes: more than a pipe holds.
        client = subprocess.Popen(["nbdcopy", f"nbd+unix:///data?socket={path}", "-"], stdout=subprocess.PIPE)
        try:
            until(lambda: node.export("data").clients == 1, "the client is attached")
            daemon.configure(table)
            assert any("SIGHUP: not taken over: export data" in line and "client" in line for line in daemon.reload())
            assert node.export("data").clients == 1
        finally:
            assert client.communicate(timeout=60)[0] == bytes(MIB)
        until(lambda: node.export("data").clients == 0, "the client has left")
        assert client.returncode == 0
        assert not any("not taken over" in line for line in daemon.reload()) and node.exports == []


def test_sighup_without_a_file(tmp_path: Path, python: Any) -> None:
    daemon = python("import sys; from pyrepl.service.daemon import main; main(sys.argv[1:])", "--state", str(tmp_path / "n"),
                    "--create", "--socket", str(tmp_path / "c.sock"))
    daemon.stdout.readline()
    os.kill(daemon.pid, signal.SIGHUP)
    with pyrepl.connect(tmp_path / "c.sock") as node:
        assert node.status()["groups"] == []
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait(60) == 0


# ---------------------------------------------------------------- the process itself


def test_levels_for_the_journal(daemons: Callable[..., Daemon]) -> None:
    daemon = daemons()
    daemon.start(JOURNAL_STREAM="8:1")
    with daemon.connect() as node:
        group = node.create_group("db", daemon.folder / "j", journal_size=16 * MIB)
        group.mark("m")
    assert daemon.stop() == 0
    lines = daemon.lines()
    assert lines and all(re.match(r"<[3-7]>[a-z]+: ", line) for line in lines)
    assert any(line.startswith("<5>audit: user=") for line in lines)
    assert any(line.startswith("<6>daemon: node ") for line in lines)


def test_nothing_of_it_reaches_a_core_file(daemon: Daemon) -> None:
    limits = Path(f"/proc/{daemon.pid}/limits").read_text()
    assert re.search(r"Max core file size\s+0\s+0", limits)
    # What cannot be dumped belongs to root in /proc, whoever runs it; and says so itself.
    assert os.stat(f"/proc/{daemon.pid}/mem").st_uid == 0


def test_descriptors_do_not_leak(daemon: Daemon, node: Any, group: Any) -> None:
    def count() -> int:
        return len(os.listdir(f"/proc/{daemon.pid}/fd"))
    group.volume("data").snapshot("warm").delete()
    before = count()
    for _ in range(30):
        with daemon.connect() as other:
            other.status()
    until(lambda: count() <= before + 1, "all are given back")


def test_the_filter_of_the_unit_lets_the_daemon_work(daemons: Callable[..., Daemon], tmp_path: Path) -> None:
    """All system calls that a daemon makes, start to end, with everything configured: the unit allows each."""
    for tool in ("strace", "systemd-analyze"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    import grp
    daemon = daemons()
    daemon.configure(f'group = "{grp.getgrgid(os.getegid()).gr_name}"\n[nbd]\nlisten = ["unix:{daemon.folder}/nbd.sock", "127.0.0.1:0"]\n'
                     f'[metrics]\nlisten = "127.0.0.1:0"\n[[export]]\nname = "data"\ngroup = "db"\nstore = "data"',
                     top='listen = ["127.0.0.1:0"]')
    daemon.start()
    trace = tmp_path / "trace"
    if subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False, timeout=20).returncode:
        pytest.skip("this process may not trace others")
    assert daemon.stop() == 0
    daemon.process.stdout.close()
    daemon.wrapper = ["strace", "-f", "-qq", "-e", "signal=none", "-o", str(trace)]
    daemon.start(PATH=os.environ["PATH"])
    with daemon.connect() as node:
        group = node.create_group("db", daemon.folder / "j", journal_size=16 * MIB)
        data = group.add_volume("data", size=MIB)
        data.write(0, b"x" * 100000)
        data.snapshot("monday")
        group.add_link("far", daemon.ready["listening"][0])
        group.flush()
        until(lambda: node.exports, "the export has begun")
        node.metrics()
    [child] = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGHUP)
    daemon.await_line("was taken over", seconds=60)
    os.kill(int(child), signal.SIGTERM)
    assert daemon.process.wait(60) == 0
    used = set(re.findall(r"^\d+ +(?:<\.\.\. )?([a-z]\w*)(?:\(| resumed)", trace.read_text(), flags=re.MULTILINE))
    assert len(used) > 30
    # What systemd does itself before it starts the filter, and what every program's start needs, is always allowed.
    assert used - allowed() - {"execve", "exit", "exit_group", "rt_sigreturn", "restart_syscall"} == set()


def allowed() -> set[str]:
    """The system calls of the unit's filter, sets resolved by systemd itself."""
    known: set[str] = set()
    for line in (ROOT / "packaging" / "pyrepld.service").read_text().splitlines():
        if line.startswith("SystemCallFilter="):
            names = line.partition("=")[2]
            calls = {call for name in names.removeprefix("~").split() for call in _resolved(name)}
            known = known - calls if names.startswith("~") else known | calls
    return known


def _resolved(name: str) -> set[str]:
    if not name.startswith("@"):
        return {name}
    told = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True).stdout
    lines = [line.strip() for line in told.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return {call for line in lines for call in _resolved(line)}


def test_a_folder_that_everybody_may_change_is_refused(daemons: Callable[..., Daemon]) -> None:
    """It names the files and devices that the daemon opens."""
    daemon = daemons().start()
    assert daemon.stop() == 0
    (daemon.folder / "node").chmod(0o777)
    with pytest.raises(AssertionError, match="everybody may change it: chmod o-w"):
        daemon.start()
    (daemon.folder / "node").chmod(0o700)
    assert daemon.start().stop() == 0
