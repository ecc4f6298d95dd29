"""nbdinfo and nbdsh: what is offered, as people and programs ask for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import clients

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _programs():
    clients.need("nbdinfo")


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_one_export(exports, transport):
    export = exports(8 * MIB)
    told = json.loads(clients.run("nbdinfo", "--json", export.uri(transport)))
    assert (told["protocol"], told["TLS"], told["structured"]) == ("newstyle-fixed", False, True)
    (only,) = told["exports"]
    assert only["export-name"] == export.name and only["export-size"] == 8 * MIB
    assert "base:allocation" in only["contexts"] and not only["is_read_only"] and not only["is_rotational"]
    assert all(only[f"can_{what}"] for what in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"))
    assert clients.run("nbdinfo", "--size", export.uri(transport)).strip() == str(8 * MIB)
    for question in ("--can=flush", "--can=fua", "--can=multi-conn", "--can=structured-reply"):
        clients.run("nbdinfo", question, export.uri(transport))
    clients.run("nbdinfo", "--is=read-only", export.uri(transport), status=2)


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_list(exports, transport):
    some = [exports(MIB), exports(2 * MIB, read_only=True)]
    told = json.loads(clients.run("nbdinfo", "--list", "--json", some[0].uri(transport, name="")))
    listed = {one["export-name"]: one for one in told["exports"]}
    for export in some:
        assert listed[export.name]["export-size"] == export.size
        assert listed[export.name]["is_read_only"] == (export is some[1])


def test_map(exports):
    export = exports(8 * MIB)
    export.volume.write(0, b"\x11" * (8 * MIB))
    export.volume.zero(2 * MIB, 2 * MIB)
    told = json.loads(clients.run("nbdinfo", "--map", "--json", export.uri()))
    assert sum(run["length"] for run in told) == 8 * MIB
    zeros = [run for run in told if run["type"] & 2]
    assert sum(run["length"] for run in zeros) == 2 * MIB and zeros[0]["offset"] == 2 * MIB


def test_map_of_what_differs(away):
    """A link that never had a secondary: all of it differs."""
    (run,) = json.loads(clients.run("nbdinfo", "--map=x-pyrepl:diverged/away", "--json", away.uri()))
    assert (run["offset"], run["length"], run["type"]) == (0, away.size, 1)


def test_there_is_no_such_export(exports):
    export = exports(MIB)
    assert "for export: there-is-none" in clients.run("nbdinfo", export.uri(name="there-is-none"), status=1)
    clients.run("nbdinfo", export.uri())


def test_nbdsh(exports):
    """The shell of libnbd, as an administrator would use it."""
    clients.need("nbdsh", "libnbd for Python")
    export = exports(MIB)
    python = Path(str(clients.find("libnbd for Python")))  # nbdsh takes the first in PATH
    out = clients.run("nbdsh", "--base-allocation", "-u", export.uri(), "-c", "h.pwrite(b'hello' * 100, 1000)", "-c",
                      "h.flush(); print(h.pread(5, 1000)); print(h.get_size()); h.zero(10, 1000)", "-c", "print(h.pread(5, 1000))", env={"PATH": f"{python.parent}:/usr/bin:/bin"})
    assert out.split("\n")[:3] == ["bytearray(b'hello')", str(MIB), "bytearray(b'\\x00\\x00\\x00\\x00\\x00')"]
    assert export.volume.read(1005, 10) == b"\0" * 5 + b"hello"
