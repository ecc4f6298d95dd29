"""``pyrepl keys``: a node's key and certificate for TLS, made and looked at.

Decides what a node's certificate says. It is self-signed: two nodes trust each other by each having the other's
certificate in its trust file, so no authority stands above them. It is therefore its own authority (CA:TRUE), which
also lets foreign clients that know nothing of pinning verify it. The private key never leaves its file.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import click

from pyrepl.cli.outcome import json_option
from pyrepl.errors import Corrupt, Exists, NotFound, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, GeneralName

    from pyrepl.cli import output

KEY, CERTIFICATE = "node.key", "node.crt"
MOST_DAYS = 36500


@click.group()
def keys() -> None:
    """The node's key and certificate, for TLS with NBD clients; links between nodes have no TLS yet.

    \b
    Example:
      pyrepl keys create /etc/pyrepl --name berlin --host berlin.example
      pyrepl keys show /etc/pyrepl/node.crt
    """


@keys.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--name", required=True, metavar="NAME", help="Of the node; stands in the certificate.")
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="Where clients reach it. Repeatable.")
@click.option("--days", type=click.IntRange(1, MOST_DAYS), metavar="DAYS", default=3650, show_default=True,
              help="Of validity.")
@json_option
def create(folder: str, name: str, hosts: tuple[str, ...], days: int, as_json: bool) -> None:
    """Makes FOLDER/node.key and FOLDER/node.crt: an elliptic-curve key (P-256) and a certificate that it signs.

    Both files have mode 0600, and belong to whoever calls this: run it as the daemon's user. Files that exist are not
    overwritten. A client that is to trust the node needs the certificate; the key stays here.

    \b
    Example:
      pyrepl keys create /etc/pyrepl --name berlin --host berlin.example --host 192.0.2.7
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    paths = [os.path.join(folder, file) for file in (KEY, CERTIFICATE)]
    for path in paths:
        if os.path.lexists(path):
            raise Exists(f"{path} exists: a key is not overwritten; move it away, or give another folder", path=path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(key, name, [_host(host) for host in hosts], days)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write_new(paths[0], pem)
    try:
        _write_new(paths[1], certificate.public_bytes(serialization.Encoding.PEM))
    except BaseException:
        os.unlink(paths[0])
        raise
    _show(paths[1], [certificate], as_json=as_json)


@keys.command()
@click.argument("certificate", type=click.Path(dir_okay=False))
@json_option
def show(certificate: str, as_json: bool) -> None:
    """What a certificate says: name, hosts, validity, fingerprint. Of a trust file, each in turn.

    \b
    Example:
      pyrepl keys show /etc/pyrepl/node.crt
    """
    from cryptography import x509

    try:
        with open(certificate, "rb") as file:
            found = x509.load_pem_x509_certificates(file.read())
    except FileNotFoundError:
        raise NotFound(f"there is no {certificate}", path=certificate) from None
    except ValueError:
        raise Corrupt(f"{certificate} holds no certificate in PEM form", path=certificate) from None
    _show(certificate, found, as_json=as_json)


def _certificate(key: EllipticCurvePrivateKey, name: str, hosts: list[GeneralName], days: int) -> Certificate:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    from pyrepl.catalog import check_name

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, check_name(name)[:64])])
    now = datetime.datetime.now(datetime.UTC)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of two sites differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(both, critical=False)
        .add_extension(own, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), *hosts]), critical=False)
    )
    return builder.sign(key, hashes.SHA256())


def _host(text: str) -> GeneralName:
    import ipaddress

    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    if not text or not text.isascii() or not all(c.isalnum() or c in "-._*" for c in text):
        raise UsageError(f"--host {text!r} is neither a host name nor an address", host=text)
    return x509.DNSName(text)


def _write_new(path: str, data: bytes) -> None:
    """A file that nobody else may read, durable; never one that exists."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Exists(f"{path} exists: a key is not overwritten", path=path) from None
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def _show(path: str, certificates: list[Certificate], *, as_json: bool) -> None:
    from pyrepl.cli import output

    told = [_described(path, one) for one in certificates]
    if as_json:
        output.write(output.CertificateList(certificates=told))
        return
    for number, one in enumerate(told):
        valid = " to ".join(time.strftime("%Y-%m-%d", time.gmtime(when)) for when in (one.not_before, one.not_after))
        click.echo(("\n" if number else "") + f"certificate  {path}")
        click.echo(f"name         {one.name or '-'}")
        click.echo(f"hosts        {', '.join(one.hosts) or '-'}")
        click.echo(f"valid        {valid}")
        click.echo(f"SHA-256      {one.fingerprint}")


def _described(path: str, certificate: Certificate) -> output.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    from pyrepl.cli import output

    common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [str(one.value) for one in names]
    except x509.ExtensionNotFound:
        hosts = []
    return output.Certificate(
        path=path,
        name=str(common[0].value) if common else None,
        hosts=hosts,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )
