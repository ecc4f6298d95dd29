"""Canaries: a private key, and what volumes hold, are found nowhere but in their files.

A daemon is run through everything that has to do with them, mistakes included, at the log level that says most; then all
that it and the command line said is searched for both, raw, in hex and in base64.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import resource
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyrepl
from pyrepl.errors import PyreplError
from tests.nbd.test_server import attach, attach_tls
from tests.support.nbd_client import FUA, STATUS

from .conftest import MIB, Daemon, until

_COMMAND = "from pyrepl.cli import main; main(prog_name='pyrepl')"
LEAST = 12  # bytes in a row that count as found


def spellings(secret: bytes) -> Iterator[bytes]:
    """What to look for: the bytes, and any twelve of them in a row as hex or base64 would show them."""
    yield secret
    for at in range(0, len(secret) - LEAST + 1):
        piece = secret[at : at + LEAST]
        yield piece
        yield piece.hex().encode()
        yield piece.hex().upper().encode()
        for encoded in (base64.b64encode(piece), base64.urlsafe_b64encode(piece)):  # each alignment has its turn
            yield encoded.rstrip(b"=")


class Ears:
    """Collects what is said, and searches it."""

    def __init__(self, **secrets: bytes) -> None:
        self.needles = {needle: name for name, secret in secrets.items() for needle in spellings(secret)}
        self.heard: list[tuple[str, bytes]] = []

    def hear(self, where: str, said: object) -> None:
        self.heard.append((where, said if isinstance(said, bytes) else str(said).encode("utf-8", "surrogateescape")))

    def found(self) -> list[str]:
        """Where something secret was said. One pass of windows, for there are thousands of needles."""
        hits = []
        lengths = {len(needle) for needle in self.needles}
        for where, said in self.heard:
            for length in lengths:
                windows = {said[at : at + length] for at in range(len(said) - length + 1)}
                hits += [f"{self.needles[needle]} in {where}" for needle in windows & self.needles.keys()]
        return hits


def scalar(key: Path) -> bytes:
    """The secret number of an EC key."""
    text = subprocess.run(["openssl", "ec", "-in", str(key), "-noout", "-text"], capture_output=True, text=True, check=True).stdout
    return bytes.fromhex(re.sub(r"[^0-9a-f]", "", text.split("priv:")[1].split("pub:")[0])).lstrip(b"\0")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with server.key and server.crt, made by the command line."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing: apt-get install openssl")
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    return folder


def test_the_search_finds_what_is_there() -> None:
    secret = os.urandom(40)
    for said in (secret, b"x" + secret[3:20] + b"y", secret.hex(), secret[5:].hex().upper(), base64.b64encode(secret), repr(secret.hex()),
                 base64.b64encode(b"x" + secret), base64.b64encode(b"xy" + secret), base64.urlsafe_b64encode(secret)):
        ears = Ears(canary=secret)
        ears.hear("here", said)
        assert ears.found(), said
    ears = Ears(canary=secret)
    ears.hear("here", os.urandom(100_000))
    ears.hear("here", os.urandom(50_000).hex())
    assert ears.found() == []


def test_nothing_secret_is_said(daemons: Callable[..., Daemon], keys: Path, tmp_path: Path) -> None:
    content = os.urandom(48)
    here, there = daemons("here"), daemons("there")

    def command(*words: object, daemon: Daemon = here, data: bytes = b"", must: bool = True) -> bytes:
        done = subprocess.run([sys.executable, "-c", _COMMAND, *map(str, words)], input=data, capture_output=True, check=False, timeout=120,
                              env={**os.environ, "PYREPL_SOCKET": daemon.socket, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
        assert not must or done.returncode == 0, done.stderr
        if "read" not in words:  # which is asked for content
            ears.hear(" ".join(map(str, words)), done.stdout + b"\n" + done.stderr)
        return done.stdout

    ears = Ears(content=content)
    command("keys", "create", keys, "--name", "here", "--host", "127.0.0.1")
    key, certificate = keys / "node.key", keys / "node.crt"
    ears.needles |= Ears(key=scalar(key), pem=b"".join(key.read_bytes().splitlines()[1:-1])).needles
    command("keys", "show", certificate)
    nbd = f'[nbd]\nlisten = ["127.0.0.1:0", "unix:{tmp_path}/nbd"]\ncertificate = "{certificate}"\nkey = "{key}"\nca = "{certificate}"\n'
    log = '[log]\nlevel = "debug"\n[metrics]\nlisten = "127.0.0.1:0"\n'
    here.configure(nbd + log)
    there.configure(log, top='listen = ["127.0.0.1:0"]')
    for daemon in (here, there):
        daemon.start()
        ears.hear("stdout", daemon.ready)
    with here.connect() as node, there.connect() as far:
        far.create_group("db", there.folder / "j", journal_size=16 * MIB, role="secondary").add_volume("data", size=MIB)
        command("group", "create", "db", "--journal", here.folder / "j", "--journal-size", "16M")
        command("volume", "add", "db/data", "--size", "1M")
        group = node.group("db")
        command("link", "add", "db/there", there.ready["listening"][0], "--wait", "--timeout", "60")
        command("export", "start", "data", "db/data")
        with contextlib.closing(node.events()):
            context = ssl.create_default_context(cafile=str(certificate))
            context.load_cert_chain(certificate, key)
            client = attach_tls(here.ready["nbd"][0], "data", context, contexts=["base:allocation"])
            for at in range(0, 64 << 10, 4096):
                client.write(at, (content * 100)[:4096], flags=FUA)
            assert client.call(STATUS, 0, MIB).error == 0
            assert client.read(0, 48) == content
            command("volume", "write", "db/data", "--offset", "128K", data=content * 1000)
            command("snapshot", "create", "db", "before")
            command("mark", "db", "here")
            command("wait", "db", "synced", "--timeout", "60s")
            assert far.group("db").volume("data").read(0, 48) == content
            # what goes wrong
            with pytest.raises((ssl.SSLError, OSError, LookupError)):
                attach_tls(here.ready["nbd"][0], "data", ssl.create_default_context(cafile=str(certificate)))
            with pytest.raises((OSError, LookupError, AssertionError)):
                attach(f"unix:{tmp_path}/nbd", "data").write(0, content)
            for words in (["volume", "write", "db/none"], ["volume", "write", "db/data", "--offset", "100M"]):
                command(*words, data=content * 100, must=False)
            for call in (lambda: group.volume("data").write(MIB, content), lambda: group.volume("data").write(-1, content),
                         lambda: far.group("db").volume("data").write(0, content),
                         lambda: node.listen_nbd("0.0.0.0:0")):
                with pytest.raises(PyreplError) as caught:
                    call()
                ears.hear("exception", f"{caught.value!r} {caught.value} {vars(caught.value)}")
            broken = tmp_path / "broken.key"
            broken.write_bytes(key.read_bytes().replace(b"PRIVATE", b"SECRET"))
            broken.chmod(0o600)
            loose = tmp_path / "loose.key"
            loose.write_bytes(key.read_bytes())
            loose.chmod(0o644)
            pasted = f'[nbd]\nlisten = ["127.0.0.1:0"]\ncertificate = "{certificate}"\nkey = """{key.read_text()}"""\n'
            swapped = f'[nbd]\nlisten = ["127.0.0.1:0"]\ncertificate = """{key.read_text()}"""\nkey = "{key}"\n'
            bare = f'[nbd]\nkey = {key.read_text()}\n'
            array = f'[nbd]\nkey = {key.read_text().splitlines()}\n'
            unknown = f'[nbd]\n"{key.read_text().splitlines()[1]}" = 1\n'
            mistakes = [nbd.replace(str(key), str(broken)), nbd.replace(str(key), str(loose)), pasted, swapped, bare, array]
            for mistake in [*mistakes, nbd]:
                here.configure(mistake + log)
                ears.hear("reload", "\n".join(here.reload()))
            assert sum("not taken over" in line or "nothing is taken over" in line for line in here.lines()) == len(mistakes)
            assert unknown  # a key of the file is named in its error, as it must be: it is no place for a secret
            for words in (["status"], ["status", "--json"], ["volume", "list", "--json"], ["export", "list", "--json"], ["metrics"], ["link", "list"],
                          ["group", "show", "db"], ["operation", "list", "db"], ["status", "--check"]):
                command(*words, must=False)
            ears.hear("status", node.status())
            ears.hear("exports", [export.status() for export in node.exports])
            ears.hear("metrics", node.metrics())
        for daemon in (here, there):
            for file in ("cmdline", "environ", "status", "limits", "comm"):
                ears.hear(f"/proc/{file}", Path(f"/proc/{daemon.pid}/{file}").read_bytes())
            assert resource.prlimit(daemon.pid, resource.RLIMIT_CORE) == (0, 0)
        client.sock.close()
        until(lambda: node.export("data").clients == 0, "the client has left")
    for daemon in (here, there):
        assert daemon.stop() == 0
        ears.hear("stdout", daemon.process.stdout.read())
        ears.hear("log", daemon.log.read_bytes())
        command("journal", "check", daemon.folder / "j")
        command("journal", "dump", daemon.folder / "j")
        for file in (daemon.folder / "node").rglob("*"):
            if file.is_file() and file.suffix != ".img":
                ears.hear(f"file {file.name}", file.read_bytes())
    said = sum(len(what) for _, what in ears.heard)
    assert said > 20_000 and "audit" in here.log.read_text()
    assert ears.found() == []
    assert pyrepl.__version__
