"""Exports, events, metrics, groups that come and go, progress, completion: what remains of the commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import msgspec
import pytest

from pyrepl import errors
from pyrepl.cli import output
from tests.cli.conftest import COMMAND, environment, pyrepl

MIB = 1 << 20
SYSTEM = {"PATH": "/usr/bin:/bin"}


# ---- exports


@pytest.fixture(scope="module")
def exporter(daemons):
    """A daemon that serves NBD."""
    daemon = daemons("bern")
    daemon.stop()
    daemon.configure(f'[nbd]\nlisten = ["unix:{daemon.folder}/nbd.sock"]\n')
    daemon.start()
    return daemon


def test_exports(exporter):
    group = exporter.new_group()
    exporter.ok("snapshot", "create", f"{group}/data", "monday")
    assert exporter.ok("export", "list") == "no exports\n"
    assert exporter.ok("export", "start", "data", f"{group}/data") == f"export data: {group}/data\n"
    exporter.ok("export", "start", "monday", f"{group}/monday", "--read-only")
    told = {one.name: one for one in exporter.json(output.ExportList, "export", "list").exports}
    assert (told["data"].store, told["data"].read_only, told["data"].size, told["data"].state) == ("data", False, 4 * MIB, "serving")
    assert told["monday"].read_only and told["data"].clients == 0
    assert exporter.ok("export", "list").splitlines()[0].split()[:2] == ["EXPORT", "STORE"]
    assert exporter("export", "start", "data", f"{group}/data").returncode == errors.Exists.exit_status
    assert exporter("export", "start", "other", f"{group}/nothing").returncode == errors.NotFound.exit_status
    exporter.stop()
    exporter.start()
    assert {one.name for one in exporter.json(output.ExportList, "export", "list").exports} == {"data", "monday"}
    exporter.ok("export", "stop", "data")
    exporter.ok("export", "stop", "monday")
    assert exporter("export", "stop", "data").returncode == errors.NotFound.exit_status


def has_nbdsh():
    """nbdsh is a script for the system's Python, whichever comes first in our PATH."""
    return shutil.which("nbdsh") and not subprocess.run(["nbdsh", "-c", "h"], check=False, capture_output=True, env=SYSTEM).returncode


@pytest.mark.skipif(not has_nbdsh(), reason="nbdsh (libnbd) is not installed")
def test_an_export_in_use_is_not_stopped_without_force(exporter):
    group = exporter.new_group()
    exporter.ok("export", "start", "used", f"{group}/data")
    client = subprocess.Popen(["nbdsh", "-u", f"nbd+unix:///used?socket={exporter.folder}/nbd.sock", "-c",
                               "h.pwrite(b'over nbd', 0); print('attached', flush=True); import sys; sys.stdin.readline()"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=SYSTEM)
    try:
        assert client.stdout is not None and client.stdout.readline() == "attached\n"
        told = exporter.json(output.ExportList, "export", "list").exports[0]
        assert (told.clients, told.bytes_written) == (1, 8)
        assert "used" in exporter.fails(errors.InUse.exit_status, "export", "stop", "used")
        exporter.ok("export", "stop", "used", "--force")
    finally:
        client.kill()
        client.communicate()
    assert exporter("volume", "read", f"{group}/data", "--length", "8").stdout == "over nbd"


@pytest.mark.skipif(not has_nbdsh(), reason="nbdsh (libnbd) is not installed")
def test_what_loses_something_names_who_is_attached_to_it(exporter):
    group = exporter.new_group()
    exporter.ok("snapshot", "create", f"{group}/data", "monday")
    exporter.ok("snapshot", "create", group, "wide")
    for store in ("data", "monday", "data-wide"):
        exporter.ok("export", "start", f"of-{store}", f"{group}/{store}")
    exporter.ok("export", "start", "idle", f"{group}/data")
    clients = [
        subprocess.Popen(["nbdsh", "-u", f"nbd+unix:///of-{store}?socket={exporter.folder}/nbd.sock", "-c",
                          "print('attached', flush=True); import sys; sys.stdin.readline()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=SYSTEM)
        for store in ("data", "data", "monday", "data-wide")
    ]
    volume = f"export of-data of {group}/data (2 clients)"
    monday, wide = f"export of-monday of {group}/monday (1 client)", f"export of-data-wide of {group}/data-wide (1 client)"
    try:
        for client in clients:
            assert client.stdout is not None and client.stdout.readline() == "attached\n"
        for words, who in (
            (["volume", "restore", f"{group}/data", "monday"], [volume]), (["volume", "restore", group, "wide"], [volume]),
            (["volume", "synchronize", f"{group}/data", "monday"], [volume]), (["volume", "resize", f"{group}/data", "64K"], [volume]),
            (["volume", "remove", f"{group}/data"], [volume]), (["snapshot", "refresh", f"{group}/monday"], [monday]),
            (["snapshot", "refresh", group, "wide"], [wide]), (["snapshot", "delete", f"{group}/monday"], [monday]),
            (["snapshot", "delete", group, "wide"], [wide]), (["group", "delete", group], [volume, monday, wide]),
            (["set", group, "restore data monday", "delete data-wide"], [volume, wide]),
        ):
            told = exporter.fails(errors.UsageError.exit_status, *words)
            assert f"; clients are attached to it: {', '.join(who)}: give --force" in told, words
    finally:
        for client in clients:
            client.kill()
            client.communicate()
    assert "clients" not in exporter.fails(errors.UsageError.exit_status, "volume", "remove", f"{group}/data")


def test_delete_of_a_snapshot_says_what_is_lost(exporter):
    group = exporter.new_group()
    made = exporter.json(output.Operation, "snapshot", "create", f"{group}/data", "monday")
    told = exporter.fails(errors.UsageError.exit_status, "snapshot", "delete", f"{group}/monday")
    assert f"snapshot {group}/monday (made at LSN {made.lsn}, 20" in told and "what it shows is lost; clones" in told and "--force" in told
    assert [store.name for store in exporter.json(output.StoreList, "snapshot", "list", group).stores] == ["monday"]
    exporter.stop()
    exporter.start()  # then its operation stands in the journal alone
    assert f"(made at LSN {made.lsn}, 20" in exporter.fails(errors.UsageError.exit_status, "snapshot", "delete", f"{group}/monday")
    exporter.ok("snapshot", "delete", f"{group}/monday", "--force")
    assert exporter.json(output.StoreList, "snapshot", "list", group).stores == []


# ---- events, metrics


def test_events(berlin):
    listening = subprocess.Popen([sys.executable, "-c", COMMAND, "events", "--json", "--count", "3"], stdout=subprocess.PIPE,
                                 text=True, env=environment(PYREPL_SOCKET=berlin.socket))
    human = subprocess.Popen([sys.executable, "-c", COMMAND, "events"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env=environment(PYREPL_SOCKET=berlin.socket))
    heard = heard_from(berlin, human, listening)
    lines = listening.communicate(timeout=60)[0].splitlines()
    assert listening.returncode == 0 and len(lines) == 3
    told = [msgspec.json.decode(line, type=output.Event, strict=True) for line in lines]
    assert all(one.schema == 1 and abs(one.time - time.time()) < 60 for one in told)
    assert {one.event for one in told} <= {"operation", "group-created"}
    human.send_signal(signal.SIGINT)
    assert human.wait(60) == 130
    human.communicate()
    assert "operation  kind mark  lsn " in heard


def heard_from(daemon, process, counting):
    """What the first has told when it has told of some marks and the other has ended, for nobody knows when they begin
    to listen."""
    group = daemon.new_group()
    lines = []

    def read():
        for line in process.stdout:
            lines.append(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    deadline = time.monotonic() + 60
    while sum("mark" in line for line in lines) < 3 or counting.poll() is None:
        assert time.monotonic() < deadline
        assert daemon.invoke("mark", group, "m").exit_code == 0
    return "".join(lines)


def test_events_end_with_the_daemon(daemons):
    daemon = daemons("killed-narvik")
    listening = subprocess.Popen([sys.executable, "-c", COMMAND, "events"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                 env=environment(PYREPL_SOCKET=daemon.socket))
    group = daemon.new_group()
    deadline = time.monotonic() + 60
    assert listening.stdout is not None
    os.set_blocking(listening.stdout.fileno(), False)
    while not listening.stdout.readline():
        assert time.monotonic() < deadline
        daemon.invoke("mark", group, "m")
    daemon.stop()
    listening.communicate(timeout=60)
    assert listening.returncode == 0
    daemon.start()


def test_metrics(berlin, pair):
    text = berlin.ok("metrics")
    assert "# TYPE pyrepl_" in text
    assert f'group="{pair}"' in text


# ---- groups that come and go


def test_delete_says_what_is_lost(berlin, group):
    told = berlin.fails(2, "group", "delete", group)
    assert "1 store and its journal are lost" in told and "--force" in told
    assert berlin.ok("group", "show", group)
    berlin.ok("group", "delete", group, "--force")
    assert berlin("group", "show", group).returncode == errors.NotFound.exit_status


def test_import(daemons, tmp_path):
    """A group whose devices another machine sees now."""
    left, right = daemons("killed-genf"), daemons("lausanne")
    group = left.new_group(volume=False)
    device = tmp_path / "device"
    device.write_bytes(bytes(MIB))
    left.ok("volume", "add", f"{group}/data", "--device", str(device))
    left.ok("volume", "write", f"{group}/data", input=b"moved")
    journal = f"{left.folder}/{group}.journal"
    assert right("group", "import", journal).returncode == errors.InUse.exit_status
    left.stop()
    told = right.fails(errors.Refused.exit_status, "group", "import", journal)
    assert "belongs to another node" in told
    shown = right.json(output.GroupShow, "group", "import", journal, "--force").group
    assert (shown.name, shown.state, [store.path for store in shown.stores]) == (group, "active", [str(device)])
    assert right("volume", "read", f"{group}/data", "--length", "5").stdout == "moved"
    assert right("group", "import", journal).returncode == errors.Exists.exit_status
    assert right("group", "import", str(tmp_path / "device2")).returncode in (errors.NotFound.exit_status, errors.DeviceError.exit_status)


# ---- progress


def test_progress_is_on_standard_error_and_only_where_it_is_wanted(berlin, group):
    quiet = berlin("volume", "compare", f"{group}/data", f"{group}/data")
    assert quiet.stderr == ""
    told = berlin("volume", "compare", f"{group}/data", f"{group}/data", "--progress")
    assert told.stdout == quiet.stdout and told.stderr == f"comparing {group}/data and {group}/data: 4 MiB of 4 MiB (100 %)\n"
    told = berlin("volume", "read", f"{group}/data", "--progress")
    assert len(told.stdout) == 4 * MIB and told.stderr.endswith("4 MiB of 4 MiB (100 %)\n")
    told = berlin("volume", "write", f"{group}/data", "--progress", input=b"x" * MIB)
    assert told.stderr.splitlines()[0] == f"writing {group}/data: 1 MiB"


def test_progress_on_a_terminal_leaves_nothing_behind(berlin, group):
    import pty

    master, slave = pty.openpty()
    done = subprocess.run([sys.executable, "-c", COMMAND, "volume", "compare", f"{group}/data", f"{group}/data"], stderr=slave,
                          stdout=subprocess.PIPE, text=True, check=True, env=environment(PYREPL_SOCKET=berlin.socket, TERM="xterm"))
    os.close(slave)
    text = b""
    try:
        while piece := os.read(master, 65536):
            text += piece
    except OSError:
        pass
    os.close(master)
    assert b"comparing" in text and text.rstrip().endswith(b"\x1b[2K")  # the bar was there, and is wiped
    assert done.stdout.startswith("equal: ")


# ---- completion


PATIENT = f"from pyrepl.cli import names; names.COMPLETION_SECONDS = 60.0; {COMMAND}"  # it is half a second for people


def completed(daemon, line, shell="bash", code=PATIENT):
    """What a shell is offered after this line."""
    words = line.split(" ")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120,
                          env=environment(_PYREPL_COMPLETE=f"{shell}_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1),
                                          PYREPL_SOCKET=daemon.socket))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return {offer.split(",", 1)[1] for offer in done.stdout.splitlines() if offer}


def test_completion_of_commands_and_options(berlin):
    assert completed(berlin, "pyrepl sn") == {"snapshot"}
    assert {"create", "clone"} == completed(berlin, "pyrepl snapshot c")
    assert "--timeout" in completed(berlin, "pyrepl snapshot create --t")


def test_completion_of_names(berlin, pair):
    berlin.ok("snapshot", "create", f"{pair}/data", "monday")
    assert pair in completed(berlin, f"pyrepl status {pair[:5]}")
    assert completed(berlin, f"pyrepl volume read {pair}/") == {f"{pair}/data", f"{pair}/monday"}
    assert completed(berlin, f"pyrepl volume resize {pair}/") == {f"{pair}/data"}
    assert completed(berlin, f"pyrepl snapshot delete {pair}/") == {f"{pair}/monday"}
    assert completed(berlin, f"pyrepl snapshot create {pair}") == {pair, f"{pair}/data", f"{pair}/monday"}
    assert completed(berlin, f"pyrepl link pause {pair}/") == {f"{pair}/paris"}


def test_completion_of_names_in_a_group_that_was_named_before(berlin, pair, group):
    berlin.ok("snapshot", "create", f"{pair}/data", "tuesday")
    berlin.ok("export", "start", f"exp-{pair}", f"{pair}/data")
    assert completed(berlin, f"pyrepl wait {pair} ") == {"synced", "applied"} and completed(berlin, f"pyrepl wait {pair} s") == {"synced"}
    assert completed(berlin, f"pyrepl resolve {pair} --loser ") == {"here", "paris"}
    for line in ("migrate {} --to ", "verify {} --link ", "wait {} synced --link "):
        assert completed(berlin, "pyrepl " + line.format(pair)) == {"paris"}
        assert completed(berlin, "pyrepl " + line.format(group)) == set()
    assert completed(berlin, f"pyrepl volume restore {pair}/data ") == {"tuesday"}
    assert completed(berlin, f"pyrepl volume synchronize {pair}/data ") == {"data", "tuesday"}
    assert f"exp-{pair}" in completed(berlin, "pyrepl export stop exp-")
    berlin.ok("export", "stop", f"exp-{pair}")


def test_completion_waits_for_nobody(daemons):
    """A daemon that hangs costs half a second, one that is not there nothing."""
    daemon = daemons("killed-alta")
    group = daemon.new_group()
    assert completed(daemon, f"pyrepl status {group[:3]}") == {group}
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        assert completed(daemon, f"pyrepl status {group[:3]}", code=COMMAND) == set()
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    daemon.stop()
    assert completed(daemon, f"pyrepl status {group[:3]}") == set()
    daemon.start()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell, tmp_path):
    done = pyrepl("completion", shell)
    assert done.returncode == 0 and "_PYREPL_COMPLETE" in done.stdout
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(done.stdout)
        subprocess.run([shell, "-n", str(script)], check=True)
    assert pyrepl("completion", "cmd").returncode == 2


def test_bash_completes(berlin, pair, tmp_path):
    """With bash itself, from the script to the offer."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "pyrepl"
    command.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c \"{PATIENT}\" \"$@\"\n")
    command.chmod(0o755)
    line = f"pyrepl volume resize {pair}/"
    code = (f"source <(pyrepl completion bash)\nCOMP_WORDS=({line})\nCOMP_CWORD=3\n_pyrepl_completion pyrepl\n"
            'printf "%s\\n" "${COMPREPLY[@]}"\n')
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False,
                          env=environment(PYREPL_SOCKET=berlin.socket, PATH=f"{folder}:{os.environ['PATH']}"))
    assert done.stdout == f"{pair}/data\n", done.stderr


# ---- how it feels


def test_status_loads_little(berlin, group):
    """Counted in modules, not in milliseconds, which are noise on a shared machine."""
    code = ("import sys\nfrom pyrepl.cli import main\ntry: main(['status'], prog_name='pyrepl')\nexcept SystemExit: pass\n"
            "print(*sys.modules, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env=environment(PYREPL_SOCKET=berlin.socket))
    heavy = {"numpy", "rich", "asyncio", "prometheus_client", "cryptography", "ssl", "xxhash", "pyrepl.node", "pyrepl.group"}
    assert group in done.stdout and not heavy & set(done.stderr.split())


def test_help_needs_no_daemon():
    done = pyrepl("--help", PYREPL_SOCKET="/nonexistent")
    assert done.returncode == 0 and "Commands:" in done.stdout
    assert pyrepl("volume", "restore", "--help", PYREPL_SOCKET="/nonexistent").returncode == 0
    assert pyrepl().stdout == done.stdout


def test_real_output_is_what_the_structs_say(berlin, pair, tmp_path):
    """Outputs that need no daemon too: strictly decoded, no field more and none less."""
    journal = f"{berlin.folder}/{pair}.journal"
    for kind, arguments in ((output.JournalCheck, ["journal", "check", journal]), (output.JournalDump, ["journal", "dump", journal]),
                            (output.Doctor, ["doctor"])):
        text = pyrepl(*arguments, "--json").stdout
        assert json.loads(text).keys() == set(kind.__struct_fields__)
        msgspec.json.decode(text, type=kind, strict=True)
