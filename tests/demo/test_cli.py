"""The command line from outside: its own process for exit status, click's runner where nothing else differs."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import pyrepl
from pyrepl import cli, inspection
from pyrepl._core import layout
from pyrepl._core.device import FileDevice
from pyrepl.cli import main, sizes
from pyrepl.errors import Corrupt, DeviceError, NotFound
from pyrepl.journal import Journal

MIB = 1 << 20


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def journal_of(folder: Path, *, closed: bool = True) -> tuple[str, pyrepl.Node]:
    """A journal with writes, a snapshot and a restore in it."""
    path = str(folder / "db.journal")
    node = pyrepl.Node.open(str(folder / "node"), create=True)
    group = node.create_group("db", journal=path, journal_size=32 * MIB)
    data = group.add_volume("data", size=4 * MIB)
    data.write(0, b"before".ljust(4096, b"."))
    data.snapshot("monday")
    data.write(0, b"after".ljust(4096, b"."))
    data.restore("monday")
    data.write(8192, bytes(range(256)) * 16)
    data.flush()
    if closed:
        node.close()
    return path, node


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return journal_of(tmp_path)[0]


# ---- help and version


def test_every_command_has_help_with_an_example() -> None:
    def walk(command: click.Command, path: list[str]) -> int:
        result = run(*path, "--help")
        assert result.exit_code == 0
        assert "Example:" in result.output, path
        assert f"pyrepl {' '.join(path)}".strip() in result.output, path
        if isinstance(command, click.Group):
            with click.Context(command) as ctx:
                names = command.list_commands(ctx)
                found = [(name, command.get_command(ctx, name)) for name in names]
                return 1 + sum(walk(inner, [*path, name]) for name, inner in found if inner)
        return 1

    assert walk(main, []) >= 6


def test_list_of_commands_is_that_of_the_modules() -> None:
    """One file for each noun: a file that makes a command of its own is in the list, and is called as the noun is."""
    folder = Path(cli.__file__).parent
    making = {path.stem for path in folder.glob("*.py") if re.search(r"^@click\.(group|command)\(", path.read_text(), re.M)}
    verbs = {"__init__", "data", "rewind"}  # of volume
    assert making - verbs == {module for module, _, _ in cli.COMMANDS.values()}
    others = {name: module for name, (module, _, _) in cli.COMMANDS.items() if name != module}
    roles = dict.fromkeys(("demote", "migrate", "promote", "resolve", "takeover"), "roles")
    assert others == {"wait": "waiting", "set": "sets", "verify": "verification", **roles}

def test_version() -> None:
    assert run("--version").output.startswith("pyrepl-volume ")
    verbose = run("--version", "-v").output
    for word in ("engine", "crc32c", "kernel", "numpy", "disk 1, wire 1"):
        assert word in verbose


def test_unknown_command_is_a_usage_error() -> None:
    assert run("no-such").exit_code == 2


def test_doctor() -> None:
    result = run("doctor", "--json")
    told = json.loads(result.output)
    states = {answer["name"]: answer["state"] for answer in told["answers"]}
    assert {"platform", "engine", "loop devices", "direct I/O", "installation"} <= set(states)
    assert result.exit_code == (1 if "bad" in states.values() else 0)
    assert "engine" in run("doctor").output


def test_doctor_sees_two_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"pyrepl": ["pyrepl", "pyrepl-volume"]})
    result = run("doctor")
    assert result.exit_code == 1
    assert "two owners" in result.output and "pip uninstall pyrepl" in result.output


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("64K", 65536), ("64k", 65536), ("256MiB", 256 * MIB), ("1G", 1 << 30), ("2TB", 2 << 40), ("512B", 512)],
)
def test_sizes(text: str, count: int) -> None:
    assert sizes.size(text) == count


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5G", "1 M M", "9" * 30])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter):
        sizes.size(text)


def test_errors_become_exit_status() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from pyrepl.cli import main; main()", "journal", "check", "/nonexistent/journal"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == NotFound.exit_status
    assert done.stderr.startswith("pyrepl: there is no")
    assert "Traceback" not in done.stderr


def test_what_the_system_refuses_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/dev/sdz")

    monkeypatch.setattr("pyrepl.cli.doctor.answers", refuse)
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == DeviceError.exit_status
    assert "pyrepl: doctor: /dev/sdz: Permission denied: run as a user who may use it" in done.output


# ---- journal


def test_dump_shows_operations_between_their_neighbours(journal: str) -> None:
    result = run("journal", "dump", journal, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert told["schema"] == 1 and told["superblock"]["name"] == "db"
    assert {"data", "monday"} == {store["name"] for store in told["checkpoint"]["stores"]}
    order = [
        (record["kind"], record.get("operation", {}).get("op"))
        for record in told["records"]
        if record["kind"] in ("events", "operation")
    ]
    assert order == [
        ("operation", "add-volume"),
        ("events", None),
        ("operation", "snapshot"),
        ("events", None),
        ("operation", "copy"),
        ("events", None),
    ]
    lsns = [record["first_lsn"] for record in told["records"] if record["kind"] in ("events", "operation")]
    assert lsns == list(range(1, 7))
    positions = [record["position"] for record in told["records"]]
    assert positions == sorted(positions) and positions[0] == told["superblock"]["first_position"]
    assert not [record for record in told["records"] if "problem" in record]


def test_operation_record_holds_no_volume_data(journal: str) -> None:
    records = json.loads(run("journal", "dump", journal, "--json").output)["records"]
    assert all(record["payload_bytes"] <= 4096 for record in records if record["kind"] == "operation")


def test_dump_says_where_and_why_it_ends(tmp_path: Path) -> None:
    path = crashed(tmp_path)
    told = json.loads(run("journal", "dump", path, "--json").output)
    assert told["end_reason"] and told["findings"] == []
    assert f"the log ends at {told['end_position']} ({told['end_reason']})" in run("journal", "dump", path).output
    block = told["superblock"]
    hurt = told["records"][2]["position"]
    flip(path, block["log_offset"] + hurt % block["log_size"] + 10)
    done = run("journal", "dump", path)
    assert f"the log ends at {hurt}" in done.output and "corrupt: the log is damaged at" in done.output


def test_dump_as_text(journal: str) -> None:
    result = run("journal", "dump", journal)
    assert result.exit_code == 0
    assert "events 2..2" in result.output and "snapshot" in result.output and "note performed" in result.output


def test_sound_journal(journal: str) -> None:
    result = run("journal", "check", journal)
    assert result.exit_code == 0 and result.output.startswith("sound: ")
    assert json.loads(run("journal", "check", journal, "--json").output)["sound"] is True


def test_check_and_dump_change_nothing(journal: str) -> None:
    before = Path(journal).read_bytes()
    run("journal", "check", journal)
    run("journal", "dump", journal)
    assert Path(journal).read_bytes() == before


def flip(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x40]))


def crashed(tmp_path: Path) -> str:
    """The journal of a node that was never closed: recovery would read its log."""
    path, node = journal_of(tmp_path, closed=False)
    copy = str(tmp_path / "copy.journal")
    Path(copy).write_bytes(Path(path).read_bytes())
    node.close()
    return copy


def test_journal_of_a_crash_is_sound(tmp_path: Path) -> None:
    told = json.loads(run("journal", "check", crashed(tmp_path), "--json").output)
    assert told["sound"], told
    assert told["records"] > 0


def test_every_damaged_record_below_a_durable_mark_is_corruption(tmp_path: Path) -> None:
    path = crashed(tmp_path)
    whole = Path(path).read_bytes()
    with FileDevice(path, writable=False, exclusive=False) as device:
        found = Journal.find(device)
    told = json.loads(run("journal", "check", path, "--json").output)
    records = json.loads(run("journal", "dump", path, "--json").output)
    start = records["checkpoint"]["scan_position"]
    durable = max(record["durable"] for record in records["records"])
    below = [record for record in records["records"] if start <= record["position"] < durable]
    assert below, told
    for record in below:
        flip(path, found.log_offset + record["position"] % found.log_size + 70)
        result = run("journal", "check", path)
        assert result.exit_code == Corrupt.exit_status, record
        assert f"damaged at position {record['position']}" in result.output
        Path(path).write_bytes(whole)


def test_two_damaged_superblocks_are_no_journal(journal: str) -> None:
    for offset in (40, Path(journal).stat().st_size - layout.BLOCK + 40):
        flip(journal, offset)
    result = run("journal", "check", journal)
    assert result.exit_code == Corrupt.exit_status
    assert result.output.startswith("corrupt: ") and "the other copy will do" not in result.output


@pytest.mark.parametrize("copy", [0, -1])
def test_one_damaged_superblock_is_reported_and_the_other_used(journal: str, copy: int) -> None:
    offset = 40 if copy == 0 else Path(journal).stat().st_size - layout.BLOCK + 40
    flip(journal, offset)
    result = run("journal", "check", journal)
    assert result.exit_code == Corrupt.exit_status
    assert result.output.startswith("damaged: the superblock")
    assert run("journal", "dump", journal).exit_code == 0


def test_what_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "noise"
    path.write_bytes(os.urandom(MIB))
    for verb in ("check", "dump"):
        result = run("journal", verb, str(path))
        assert result.exit_code == Corrupt.exit_status, result.output


@pytest.mark.parametrize("verb", ["check", "dump"])
@pytest.mark.parametrize("length", [0, 1, 4096, 8191])
def test_what_is_too_short_for_a_journal(tmp_path: Path, verb: str, length: int) -> None:
    path = tmp_path / "short"
    path.write_bytes(bytes(length))
    done = run("journal", verb, str(path))
    assert done.exit_code == Corrupt.exit_status
    assert f"it is {length} bytes long" in done.output


def test_no_valid_checkpoint(journal: str) -> None:
    with FileDevice(journal, writable=False, exclusive=False) as device:
        areas = Journal.find(device).superblock["area_offset"]
    for offset in areas:
        flip(journal, offset + 20)
    result = run("journal", "check", journal)
    assert result.exit_code == Corrupt.exit_status and "no valid checkpoint" in result.output


def test_journal_in_use_is_checked_without_disturbing_it(tmp_path: Path) -> None:
    """A live journal is sound every time that one looks, whatever is being written."""
    path, node = journal_of(tmp_path, closed=False)
    stop = threading.Event()

    def write() -> None:
        volume = node.group("db").volume("data")
        block = os.urandom(65536)
        while not stop.is_set():
            for offset in range(0, 4 * MIB, 65536):
                volume.write(offset, block)
            volume.flush()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            result = run("journal", "check", path)
            assert result.exit_code == 0, result.output
            assert run("journal", "dump", path).exit_code == 0
    finally:
        stop.set()
        writer.join()
        node.close()


def test_what_was_only_being_written_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two reads a record and a later one that calls it durable can both appear: a second look settles it."""
    journal = crashed(tmp_path)
    looks: list[int] = []
    scan = inspection.scan_log

    def racing(device: FileDevice, *, position: int, chain: int, **rest: int) -> Any:
        looks.append(position)
        if len(looks) == 1:
            return [], position, chain, 2, position + 4096
        return scan(device, position=position, chain=chain, **rest)

    monkeypatch.setattr(inspection, "scan_log", racing)
    with FileDevice(journal, writable=False, exclusive=False) as device:
        verdict = inspection.check(device)
    assert len(looks) > 1 and looks[0] == looks[1]
    assert verdict.findings == [] and verdict.records > 0


def test_reader_that_is_overtaken_begins_again(journal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log moved on under the reader: that is no damage, the newest checkpoint says so."""
    newest = inspection._checkpoint
    found: list[int] = []

    def moving(of: Journal) -> Any:
        checkpoint = newest(of)
        found.append(1)
        if len(found) == 1:
            return checkpoint._replace(scan_position=checkpoint.scan_position - 4096, scan_chain=1)
        return checkpoint

    monkeypatch.setattr(inspection, "_checkpoint", moving)
    with FileDevice(journal, writable=False, exclusive=False) as device:
        assert inspection.check(device).findings == []
    assert len(found) == 3
