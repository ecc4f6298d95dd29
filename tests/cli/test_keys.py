"""``pyrepl keys``: files that nobody else may read, never overwritten, and certificates that TLS accepts at both ends."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import threading

import pytest

from pyrepl.cli import output
from pyrepl.errors import Corrupt, DeviceError, Exists, NotFound
from tests.cli.conftest import pyrepl


def create(folder, *options):
    done = pyrepl("keys", "create", str(folder), *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def contexts(folder, trusted, purpose):
    context = ssl.create_default_context(purpose, cafile=trusted / "node.crt")
    context.load_cert_chain(folder / "node.crt", folder / "node.key")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def handshake(server, client, name):
    """Runs one over a pair of sockets; what each said was wrong."""
    ours, theirs = socket.socketpair()
    wrong = []

    def serve():
        try:
            with server.wrap_socket(ours, server_side=True) as sock:
                sock.recv(1)
        except OSError as error:
            wrong.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(theirs, server_hostname=name) as sock:
            sock.sendall(b"x")
            sock.recv(1)  # TLS 1.3: only here does a client hear that it was refused
    except OSError as error:
        wrong.append(error)
    finally:
        theirs.close()
        thread.join()
        ours.close()
    return wrong


def test_files_are_private(tmp_path):
    folder = tmp_path / "new" / "folder"
    text = create(folder, "--name", "berlin", "--host", "berlin.example", "--host", "192.0.2.7", "--days", "30")
    for name in ("node.key", "node.crt"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "hosts        berlin, berlin.example, 192.0.2.7" in text and "PRIVATE" not in text
    assert sorted(os.listdir(folder)) == ["node.crt", "node.key"]


@pytest.mark.parametrize("there", ["node.key", "node.crt"])
def test_nothing_is_overwritten(tmp_path, there):
    (tmp_path / there).write_text("precious")
    done = pyrepl("keys", "create", str(tmp_path), "--name", "berlin")
    assert done.returncode == Exists.exit_status and "not overwritten" in done.stderr
    assert os.listdir(tmp_path) == [there] and (tmp_path / there).read_text() == "precious"


def test_a_dangling_link_is_no_way_around(tmp_path):
    (tmp_path / "node.key").symlink_to(tmp_path / "elsewhere")
    assert pyrepl("keys", "create", str(tmp_path), "--name", "berlin").returncode == Exists.exit_status
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("options", [["--name", "a b"], ["--name", ""], ["--name", "x", "--host", "no host"], ["--name", "x", "--host", ""],
                                     ["--name", "x", "--days", "0"], ["--name", "x", "--days", "-1"], ["--name", "ü"], []])
def test_what_cannot_be(tmp_path, options):
    done = pyrepl("keys", "create", str(tmp_path / "k"), *options)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert not (tmp_path / "k" / "node.key").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = pyrepl("keys", "create", str(tmp_path / "file" / "folder"), "--name", "x")
    assert done.returncode == DeviceError.exit_status and "Traceback" not in done.stderr


def test_two_nodes_that_trust_each_other(tmp_path):
    berlin, paris = tmp_path / "berlin", tmp_path / "paris"
    create(berlin, "--name", "berlin")
    create(paris, "--name", "paris")
    server = contexts(paris, berlin, ssl.Purpose.CLIENT_AUTH)
    assert handshake(server, contexts(berlin, paris, ssl.Purpose.SERVER_AUTH), "paris") == []
    assert handshake(server, contexts(berlin, paris, ssl.Purpose.SERVER_AUTH), "rome")  # not its name


def test_a_node_that_nobody_trusts(tmp_path):
    berlin, paris, rome = tmp_path / "berlin", tmp_path / "paris", tmp_path / "rome"
    for folder in (berlin, paris, rome):
        create(folder, "--name", folder.name)
    server = contexts(paris, berlin, ssl.Purpose.CLIENT_AUTH)
    assert handshake(server, contexts(rome, paris, ssl.Purpose.SERVER_AUTH), "paris")
    assert handshake(contexts(rome, berlin, ssl.Purpose.CLIENT_AUTH), contexts(berlin, paris, ssl.Purpose.SERVER_AUTH), "paris")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_agrees(tmp_path):
    text = create(tmp_path, "--name", "berlin", "--host", "::1")
    seen = subprocess.run(["openssl", "x509", "-in", tmp_path / "node.crt", "-noout", "-text", "-fingerprint", "-sha256"],
                          capture_output=True, text=True, check=True).stdout
    assert "CA:TRUE" in seen and "prime256v1" in seen and "DNS:berlin, IP Address:0:0:0:0:0:0:0:1" in seen
    fingerprint = seen.rsplit("=", 1)[1].strip().replace(":", "").lower()
    assert fingerprint in text
    subprocess.run(["openssl", "verify", "-CAfile", tmp_path / "node.crt", tmp_path / "node.crt"], capture_output=True, check=True)
    key = subprocess.run(["openssl", "pkey", "-in", tmp_path / "node.key", "-pubout"], capture_output=True, check=True).stdout
    own = subprocess.run(["openssl", "x509", "-in", tmp_path / "node.crt", "-noout", "-pubkey"], capture_output=True, check=True).stdout
    assert key == own


def test_show(tmp_path):
    create(tmp_path / "a", "--name", "berlin")
    create(tmp_path / "b", "--name", "paris")
    both = tmp_path / "trust.crt"
    both.write_bytes((tmp_path / "a/node.crt").read_bytes() + (tmp_path / "b/node.crt").read_bytes())
    done = pyrepl("keys", "show", str(both), "--json")
    import msgspec

    told = msgspec.json.decode(done.stdout, type=output.CertificateList, strict=True)
    assert [one.name for one in told.certificates] == ["berlin", "paris"]
    assert told.certificates[0].not_after - told.certificates[0].not_before == pytest.approx(3650 * 86400 + 3600)
    assert json.loads(done.stdout)["schema"] == 1
    assert pyrepl("keys", "show", str(both)).stdout.count("SHA-256") == 2
    done = pyrepl("keys", "create", str(tmp_path / "c"), "--name", "rome", "--json")
    assert msgspec.json.decode(done.stdout, type=output.CertificateList, strict=True).certificates[0].hosts == ["rome"]


def test_show_of_what_is_none(tmp_path):
    assert pyrepl("keys", "show", str(tmp_path / "missing")).returncode == NotFound.exit_status
    (tmp_path / "noise").write_bytes(os.urandom(1000))
    assert pyrepl("keys", "show", str(tmp_path / "noise")).returncode == Corrupt.exit_status
    create(tmp_path / "k", "--name", "x")
    done = pyrepl("keys", "show", str(tmp_path / "k/node.key"))
    assert done.returncode == Corrupt.exit_status and "PRIVATE" not in done.stderr + done.stdout
