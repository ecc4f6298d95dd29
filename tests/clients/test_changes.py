"""Clients that stay attached while the volume is restored, and while roles change: the server stays up."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import clients
from tests.support.daemons import Export

MIB = 1 << 20
SIZE = 8 * MIB
PROGRAM = Path(__file__).with_name("libnbd_cases.py")


def start(case: str, **arguments: str) -> subprocess.Popen[str]:
    clients.need("libnbd for Python")
    return subprocess.Popen([str(clients.find("libnbd for Python")), str(PROGRAM), case, json.dumps(arguments)],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True)


def result(client: subprocess.Popen[str]) -> str:
    """What it printed; it must have ended well."""
    try:
        out, _ = client.communicate(timeout=60)
    finally:
        client.kill()
        client.wait()
    assert client.returncode == 0, out
    return out


def test_reading_while_the_volume_is_restored(exports, tmp_path):
    export, over = exports(SIZE), tmp_path / "over"
    for number in range(1, 5):
        export.volume.write(0, bytes([number]) * SIZE)
        export.volume.snapshot(f"{export.name}-{number}")
    watchers = [start("watching", rw=export.uri(transport), until=str(over)) for transport in ("unix", "tcp")]
    restored = 0
    begin = time.monotonic()
    while time.monotonic() < begin + 3 or (restored <= 20 and time.monotonic() < begin + 60):
        export.volume.restore(f"{export.name}-{restored % 4 + 1}")
        restored += 1
    over.touch()
    assert all(int(result(watcher)) == 4 for watcher in watchers)
    assert restored > 20
    for number in range(1, 5):
        export.volume.group.store(f"{export.name}-{number}").delete()


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_roles_change_under_a_client_that_stays(pairs, mode):
    """The primary steps down while a client writes; it can go on reading there, and others write at the new primary."""
    clients.need("qemu-io", "nbdinfo")
    pair = pairs(SIZE, mode)
    writer = start("outliving", rw=pair.export.uri())
    clients.until(lambda: pair.primary.client.export("data").status()["bytes_written"] > MIB, "the client writes")
    pair.group.demote()
    assert int(result(writer)) > 256
    there = pair.secondary.client.group("db")
    there.promote()
    clients.run("nbdinfo", "--is=read-only", pair.secondary.uri("data"), status=2)
    there.add_link("back", pair.primary.address, mode=mode)
    clients.run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 6M 1M", "-c", "flush", pair.secondary.uri("data"))
    there.link("back").wait_synced(timeout=60)
    there.wait(where="back", timeout=60)
    clients.run("nbdinfo", "--is=read-only", pair.export.uri())
    clients.run("qemu-io", "-r", "-f", "raw", "-c", "read -P 0x5a 6M 1M", pair.export.uri())
    clients.run("qemu-img", "compare", "-f", "raw", "-F", "raw", pair.export.uri(), pair.secondary.uri("data"))


def test_a_client_of_the_secondary_sees_one_moment(pairs):
    """What a secondary shows to a client is its store at one LSN, however long the client stays; the next sees more."""
    clients.need("nbdcopy")
    pair = pairs(SIZE, "sync")
    volume = pair.group.volume("data")
    volume.write(0, b"\x01" * SIZE)
    pair.settle()
    with Reader(pair.secondary.uri("data")) as reader:
        assert set(reader.read()) == {1}
        volume.write(0, b"\x02" * SIZE)
        pair.settle()
        assert set(reader.read()) == {1}
    clients.until(lambda: pair.secondary.client.export("data").status()["view_lsn"] is None, "what the one saw is given back")
    with Reader(pair.secondary.uri("data")) as reader:
        assert set(reader.read()) == {2}


class Reader:
    """A qemu-io that stays attached and is asked again and again."""

    def __init__(self, uri: str) -> None:
        clients.need("qemu-io")
        self._process = subprocess.Popen([str(clients.find("qemu-io")), "-r", "-f", "raw", uri], text=True, bufsize=1,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    def read(self) -> bytes:
        """Whether the first MiB is all 1 or all 2: that byte."""
        found = b""
        for pattern in (1, 2):
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(f"read -P {pattern} 0 1M\n")
            self._process.stdin.flush()
            lines = []
            while not any("ops;" in line for line in lines):
                lines.append(self._process.stdout.readline())
                assert lines[-1], "qemu-io has ended"
            if not any("verification failed" in line for line in lines):
                found += bytes([pattern])
        return found

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *args: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_an_export_in_use_is_not_stopped_by_accident(exports):
    export = exports(SIZE)
    with Reader(export.uri()) as reader:
        reader.read()
        with pytest.raises(Exception, match="force"):
            export.daemon.client.stop_export(export.name)
        assert export.daemon.client.export(export.name).status()["clients"] == 1
        again = Export(export.daemon, export.volume, f"{export.name}-again")
        clients.run("nbdinfo", again.uri())
        clients.until(lambda: export.daemon.client.export(again.name).status()["clients"] == 0, "nbdinfo has left")
        export.daemon.client.stop_export(again.name)
        clients.run("nbdinfo", again.uri(), status=1)
