"""What goes wrong for users: each class of error reached for real, its exit status, and a sentence that helps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from pyrepl import errors
from pyrepl.cli import main
from tests.cli.conftest import COMMAND, MIB, Daemon, environment, pyrepl


def start(*arguments, **more):
    """A pyrepl process that goes on."""
    return subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=environment(**more))


# ---- one for each class


def test_not_found(berlin, group):
    for arguments in (["group", "show", "nothing"], ["volume", "read", f"{group}/nothing"], ["link", "pause", f"{group}/nothing"],
                      ["volume", "add", "nothing/data", "--size", "1M"], ["snapshot", "delete", f"{group}/nothing"],
                      ["volume", "restore", f"{group}/data", "nothing", "--force"], ["wait", "nothing", "applied"],
                      ["status", "nothing"], ["mark", "nothing", "m"], ["operation", "list", "nothing"],
                      ["volume", "remove", f"{group}/nothing", "--force"]):
        assert "nothing" in berlin.fails(errors.NotFound.exit_status, *arguments)


def test_exists(berlin, group):
    assert "has a group" in berlin.fails(errors.Exists.exit_status, "group", "create", group, "--journal", f"{berlin.folder}/x",
                                         "--journal-size", "16M")
    assert not Path(f"{berlin.folder}/x").exists()
    berlin.ok("snapshot", "create", f"{group}/data", "twice")
    assert "choose another name" in berlin.fails(errors.Exists.exit_status, "snapshot", "create", f"{group}/data", "twice")
    assert berlin("volume", "add", f"{group}/twice", "--size", "1M").returncode == errors.Exists.exit_status


def test_refused(berlin, paris, pair):
    told = paris.fails(errors.Refused.exit_status, "snapshot", "create", f"{pair}/data", "here")
    assert "is a secondary here: write, and make operations, at its primary" in told
    assert "is a secondary here" in paris.fails(errors.Refused.exit_status, "volume", "write", f"{pair}/data", input=b"x")
    assert "secondary" in paris.fails(errors.Refused.exit_status, "link", "add", f"{pair}/back", berlin.address,
                                     "--mode", "sync")


def test_in_use(berlin, group, tmp_path):
    device = tmp_path / "device"
    device.write_bytes(bytes(MIB))
    berlin.ok("volume", "add", f"{group}/one", "--device", str(device))
    told = berlin.fails(errors.InUse.exit_status, "volume", "add", f"{group}/two", "--device", str(device))
    assert str(device) in told


def test_device_error(berlin, tmp_path):
    told = berlin.fails(errors.DeviceError.exit_status, "group", "create", "g", "--journal", str(tmp_path / "no" / "folder"),
                        "--journal-size", "16M")
    assert str(tmp_path / "no" / "folder") in told


def test_corrupt(daemons, tmp_path):
    """A group whose journal was damaged meanwhile: the daemon runs, every verb on the group says why it does not."""
    daemon = daemons("killed-rome")
    damaged, healthy = daemon.new_group(), daemon.new_group()
    daemon.stop()
    path = f"{daemon.folder}/{damaged}.journal"
    size = os.path.getsize(path)
    with open(path, "r+b") as journal:
        for offset in (0, size - 4096):
            journal.seek(offset)
            journal.write(os.urandom(4096))
    daemon.start()
    for arguments in (["volume", "read", f"{damaged}/data"], ["snapshot", "create", damaged, "s"], ["wait", damaged, "applied"],
                      ["mark", damaged, "m"], ["link", "pause", f"{damaged}/paris"], ["operation", "list", damaged]):
        assert path in daemon.fails(errors.Corrupt.exit_status, *arguments)
    assert f"{damaged}  unknown  failed: " in daemon.ok("status", damaged)
    assert daemon.ok("volume", "list").splitlines()[1].startswith(f"{healthy}/data")
    done = daemon("status", "--check")
    assert done.returncode == 2 and done.stdout.startswith(f"CRITICAL: {damaged} failed: ")


def test_timeout(berlin, pair):
    berlin.ok("link", "pause", f"{pair}/paris")
    berlin.ok("mark", pair, "m")
    assert "it goes on" in berlin.fails(errors.WaitTimeout.exit_status, "wait", pair, "applied", "--link", "paris", "--timeout", "0")
    assert "it goes on" in berlin.fails(errors.WaitTimeout.exit_status, "wait", pair, "synced", "--timeout", "0.2s")


def test_peer_error_when_the_daemon_dies(daemons):
    """A wait that nobody will answer any more ends with a sentence, not with a hang."""
    daemon = daemons("killed-oslo")
    group = daemon.new_group()
    daemon.ok("link", "add", f"{group}/far", "127.0.0.1:1")
    waiting = start("wait", group, "synced", "--progress", PYREPL_SOCKET=daemon.socket)
    assert waiting.stderr is not None
    assert waiting.stderr.readline().startswith(f"{group}/far: ")  # it waits
    daemon.stop(signal.SIGKILL)
    out, told = waiting.communicate(timeout=60)
    assert waiting.returncode == errors.PeerError.exit_status and not out
    told = told.splitlines()[-1]
    assert told.startswith("pyrepl: ") and "connection" in told
    told = daemon.fails(errors.PeerError.exit_status, "status")
    assert told == f"pyrepl: no daemon listens at {daemon.socket}: start pyrepld, or give --socket\n"
    daemon.start()
    assert daemon.ok("volume", "list", group)


# ---- the daemon cannot be asked


def test_no_daemon(tmp_path):
    for path in (tmp_path / "nothing.sock", tmp_path / "no" / "folder"):
        done = pyrepl("status", "--socket", str(path))
        assert done.returncode == errors.PeerError.exit_status
        assert done.stderr == f"pyrepl: no daemon listens at {path}: start pyrepld, or give --socket\n" and done.stdout == ""


def test_the_default_socket_and_the_ways_to_name_another(berlin, tmp_path):
    assert "/run/pyrepl/control.sock" in pyrepl("--help").stdout
    wrong = str(tmp_path / "wrong")
    assert pyrepl("--socket", berlin.socket, "group", "list").returncode == 0
    assert pyrepl("group", "list", "--socket", berlin.socket).returncode == 0
    assert pyrepl("group", "list", PYREPL_SOCKET=berlin.socket).returncode == 0
    assert pyrepl("--socket", wrong, "group", "list", "--socket", berlin.socket, PYREPL_SOCKET=wrong).returncode == 0
    assert pyrepl("--socket", berlin.socket, "group", "list", PYREPL_SOCKET=wrong).returncode == 0
    assert pyrepl("group", "list", "--socket", wrong, PYREPL_SOCKET=berlin.socket).returncode == errors.PeerError.exit_status


def test_a_socket_that_is_none(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for path in (str(file), "x" * 200):
        done = pyrepl("status", "--socket", path)
        assert done.returncode in (2, 8) and path[:50] in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_user_who_may_not():
    """Somebody who is neither root, nor the daemon's user, nor in the group of the socket."""
    # They may not be able to read this Python: what is needed is loaded by asking once as root.
    become = ("import os; from pyrepl.cli import main; main(['status'], standalone_mode=False); os.setgroups([]); "
              "os.setgid(65534); os.setuid(65534); " + COMMAND)
    with tempfile.TemporaryDirectory(prefix="pyrepl-") as folder:
        os.chmod(folder, 0o755)
        daemon = Daemon(Path(folder) / "d", "guarded")
        try:
            os.chmod(daemon.folder, 0o755)
            done = subprocess.run([sys.executable, "-c", become, "status"], check=False, capture_output=True, text=True,
                                  env=environment(PYREPL_SOCKET=daemon.socket))
            assert daemon.ok("status")
        finally:
            daemon.stop()
    assert done.returncode == errors.Refused.exit_status and done.stdout.count("no groups") == 1, done.stderr
    assert done.stderr.startswith(f"pyrepl: this user may not use {daemon.socket}")


# ---- interrupted, cut off


def test_ctrl_c(berlin, pair):
    berlin.ok("link", "pause", f"{pair}/paris")
    berlin.ok("mark", pair, "m")
    waiting = start("wait", pair, "synced", "--progress", PYREPL_SOCKET=berlin.socket)
    assert waiting.stderr is not None
    assert "paused" in waiting.stderr.readline()  # it waits
    waiting.send_signal(signal.SIGINT)
    out, told = waiting.communicate(timeout=60)
    assert waiting.returncode == 130 and not out and told.splitlines()[-1] == "pyrepl: interrupted"
    assert "Traceback" not in told
    assert berlin.ok("status", pair)  # the daemon minds its own business


@pytest.mark.parametrize("command", [["volume", "read"], ["volume", "list"]])
def test_broken_pipe_is_quiet(berlin, command):
    group = berlin.new_group(size="64M") if command[1] == "read" else berlin.new_group()
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [*command, f"{group}/data" if command[1] == "read" else group]
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True,
                          check=False, env=environment(PYREPL_SOCKET=berlin.socket), timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(("arguments", "closed", "status"), [
    ("status", ">&-", 0), ("status --json", ">&-", 0), ("status", "<&- >&- 2>&-", 0), ("status nothing", "<&- >&- 2>&-", 3),
    ("volume list", ">&-", 0), ("--help", ">&-", 0), ("snapshot create {}/data made", "<&- >&-", 0),
    ("volume read {}/data", ">&-", 2), ("volume write {}/data", "<&-", 2), ("volume write {}/data", "<&- >&- 2>&-", 2),
])
def test_a_standard_stream_that_is_closed(berlin, group, arguments, closed, status):
    words = arguments.format(group).split()
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", COMMAND, *words], capture_output=True,
                          text=True, check=False, env=environment(PYREPL_SOCKET=berlin.socket), stdin=subprocess.DEVNULL, timeout=60)
    assert (done.returncode, done.stdout) == (status, "") and "Traceback" not in done.stderr, done.stderr
    if status == 2 and "2>" not in closed:
        assert "is closed: pyrepl volume" in done.stderr
    if "create" in words:
        assert f"{group}/made" in berlin.ok("snapshot", "list", group)


# ---- nonsense


@pytest.mark.parametrize("size", ["-1", "0", "1.5.5G", "1.5G", "", "G", "1X", "0x10", "99999999999999999999", "1 M M", "1e3", "٣"])
def test_bad_sizes(berlin, group, size):
    done = berlin.invoke("volume", "add", f"{group}/new", "--size", size)
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert berlin.invoke("volume", "resize", f"{group}/data", size).exit_code == 2


def test_a_size_that_the_device_does_not_have(berlin, group, tmp_path):
    device = tmp_path / "device"
    device.write_bytes(bytes(MIB))
    done = berlin.invoke("volume", "add", f"{group}/new", "--device", str(device), "--size", "1T")
    assert done.exit_code in (errors.Refused.exit_status, errors.UsageError.exit_status) and str(device) in done.output
    berlin.ok("volume", "add", f"{group}/small", "--device", str(device))
    done = berlin.invoke("volume", "resize", f"{group}/small", "1T")
    assert done.exit_code in (errors.Refused.exit_status, errors.UsageError.exit_status), done.output
    assert berlin.invoke("volume", "add", f"{group}/odd", "--size", "100").exit_code == 2


NAMES = ["", ".", "..", "-x", ".x", "a/b", "a b", "ü", "a\nb", "x" * 256, "a\x00b", "\udcff", "a%b", "*"]


@pytest.mark.parametrize("name", NAMES)
def test_bad_names(berlin, group, name):
    for arguments in (["snapshot", "create", f"{group}/data", "--", name], ["mark", group, "--", name],
                      ["snapshot", "clone", f"{group}/data", "--", name],
                      ["volume", "add", "--size", "1M", "--", f"{group}/{name}"],
                      ["group", "create", "--journal", f"{berlin.folder}/bad", "--journal-size", "16M", "--", name]):
        done = berlin.invoke(*arguments)
        assert done.exit_code == 2, (arguments, done.output)
        assert ("Traceback" not in done.output and done.exception is None) or isinstance(done.exception, SystemExit)
    assert not os.path.exists(f"{berlin.folder}/bad")


@pytest.mark.parametrize("argument", ["data", "/data", "db/", "a/b/c", "", "/"])
def test_what_is_no_store(berlin, argument):
    done = berlin.invoke("volume", "read", "--", argument)
    assert done.exit_code == 2 and "is not GROUP/STORE" in done.output


def test_addresses_that_are_none(berlin, group):
    for address in ("nowhere", "host:", "host:0", "host:99999", "[::1", ""):
        done = berlin.invoke("link", "add", f"{group}/far", address)
        assert done.exit_code == 2, (address, done.output)
    assert berlin.ok("link", "list", group) == "no links\n"


def test_terminals_are_no_files(berlin, group):
    """Bytes of a volume belong on no terminal, and nobody types them in."""
    import pty

    master, slave = pty.openpty()
    try:
        for verb in ("read", "write"):
            done = subprocess.run([sys.executable, "-c", COMMAND, "volume", verb, f"{group}/data"], stdin=slave, stdout=slave,
                                  stderr=subprocess.PIPE, text=True, check=False, timeout=60,
                                  env=environment(PYREPL_SOCKET=berlin.socket))
            assert done.returncode == 2 and "is a terminal" in done.stderr
    finally:
        os.close(master)
        os.close(slave)


def test_two_at_once(berlin, group):
    """Two that want the same name: one gets it."""
    done = []

    def create():
        done.append(berlin("snapshot", "create", f"{group}/data", "once"))

    threads = [threading.Thread(target=create) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.returncode for one in done) == [0, errors.Exists.exit_status]


def test_an_argument_that_is_not_text(berlin, group):
    """Bytes that are no UTF-8, as a shell passes them on."""
    done = subprocess.run([sys.executable, "-c", COMMAND, "snapshot", "create", f"{group}/data", b"\xff\xfe"], check=False,
                          capture_output=True, text=True, env=environment(PYREPL_SOCKET=berlin.socket))
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr


def test_no_class_of_error_is_left_out():
    """Each has a test above by its exit status; the rest cannot be had from outside, and says why here."""
    text = Path(__file__).read_text()
    outside = {
        "PyreplError": "the root: never raised itself",
        "UsageError": "2, as click's own, in most tests here",
        "ProtocolError": "a PeerError with the same status: a peer that sends nonsense is no user's command",
        "InternalError": "an invariant that does not hold",
        "Diverged": "raised between sites; a command sees a link that is refused (5)",
    }
    for name in errors.__all__:
        assert name in outside or f"errors.{name}.exit_status" in text, name


def test_every_class_ends_the_command_with_its_status(monkeypatch):
    """That the table is used for all of them, also for those that nothing outside can cause."""
    for name in errors.__all__:
        kind = getattr(errors, name)

        def fail(*_, kind=kind):
            raise kind("this happened: do that")

        monkeypatch.setattr("pyrepl.cli.doctor.answers", fail)
        done = CliRunner().invoke(main, ["doctor"])
        assert (done.exit_code, done.output) == (kind.exit_status, "pyrepl: this happened: do that\n")
