"""NBD over TLS with foreign clients: libnbd's (GnuTLS) and QEMU's, with and without a certificate of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import pytest

from pyrepl.runtime.certificates import TlsFiles
from tests.support import clients

MIB = 1 << 20
SIZE = 8 * MIB


class Papers(NamedTuple):
    """Certificates of a test: the server's files, and a folder for each client, as libnbd and QEMU expect them."""

    server: TlsFiles
    client: Path
    stranger: Path


def sign(folder: Path, name: str, authority: str, *extensions: str) -> tuple[Path, Path]:
    """A key, and a certificate that the authority signed."""
    key, request, certificate, words = (folder / f"{name}{end}" for end in (".key", ".csr", ".pem", ".ext"))
    words.write_text("\n".join(extensions) + "\n")
    clients.run("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
    clients.run("openssl", "x509", "-req", "-in", request, "-CA", folder / f"{authority}.pem", "-CAkey", folder / f"{authority}.key",
                "-CAcreateserial", "-days", "2", "-extfile", words, "-out", certificate)
    key.chmod(0o600)
    return key, certificate


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    clients.need("openssl", "nbdinfo")
    folder = tmp_path_factory.mktemp("papers")
    for authority in ("authority", "other"):
        clients.run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={authority}",
                    "-keyout", folder / f"{authority}.key", "-out", folder / f"{authority}.pem")
    key, certificate = sign(folder, "server", "authority", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                            "extendedKeyUsage=serverAuth")
    for name, authority in (("client", "authority"), ("stranger", "other")):
        mine = folder / f"{name}-files"
        mine.mkdir()
        for source, target in zip(sign(folder, name, authority, "extendedKeyUsage=clientAuth"),
                                  ("client-key.pem", "client-cert.pem"), strict=True):
            os.link(source, mine / target)
        os.link(folder / "authority.pem", mine / "ca-cert.pem")
    return Papers(TlsFiles(certificate=str(certificate), key=str(key), ca=str(folder / "authority.pem")),
                  folder / "client-files", folder / "stranger-files")


@pytest.fixture
def secure(daemon, papers):
    """An address with TLS, and that wants to know its clients."""
    address = daemon.client.listen_nbd("127.0.0.1:0", tls=papers.server)
    yield address
    daemon.client.stop_nbd(address)


def test_libnbd_over_tls(exports, secure, papers, tmp_path):
    clients.need("nbdcopy")
    export, image = exports(SIZE), tmp_path / "image"
    image.write_bytes(os.urandom(SIZE))
    uri = f"nbds://{secure}/{export.name}?tls-certificates={papers.client}"
    told = json.loads(clients.run("nbdinfo", "--json", uri))
    assert told["TLS"] is True and told["exports"][0]["export-size"] == SIZE
    clients.run("nbdcopy", "--connections=4", image, uri)
    assert export.volume.read(0, SIZE) == image.read_bytes()
    clients.run("nbdcopy", uri, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == image.read_bytes()


def test_nobody_gets_in_without_a_certificate(exports, secure, papers):
    export = exports(SIZE)
    clients.run("nbdinfo", f"nbd://{secure}/{export.name}", status=1)
    clients.run("nbdinfo", "--list", f"nbd://{secure}", status=1)
    clients.run("nbdinfo", f"nbds://{secure}/{export.name}?tls-certificates={papers.stranger}", status=1)
    clients.run("nbdinfo", f"nbds://{secure}/{export.name}?tls-certificates={papers.client}")


def test_qemu_over_tls(exports, secure, papers):
    clients.need("qemu-img")
    export = exports(SIZE)
    export.volume.write(MIB, b"\x77" * MIB)
    host, _, port = secure.rpartition(":")
    image = f"driver=nbd,server.type=inet,server.host={host},server.port={port},export={export.name},tls-creds=tls"
    told = clients.run("qemu-img", "map", "--object", f"tls-creds-x509,id=tls,endpoint=client,dir={papers.client}",
                       "--output=json", "--image-opts", image)
    assert sum(run["length"] for run in json.loads(told)) == SIZE
