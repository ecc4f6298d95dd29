"""Certificates and keys for TLS: which files may be used, and what a peer must show.

Decides: TLS 1.3 only, a key that others can read is refused, and with a CA both sides must have a certificate of it.
Must not know who listens or dials.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import msgspec

from pyrepl.errors import NotFound, Refused, UsageError

if TYPE_CHECKING:
    import ssl


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Paths of PEM files. With ``ca`` a client must show a certificate that it signed, else any client is let in."""

    certificate: str
    key: str
    ca: str | None = None

    def server_context(self) -> ssl.SSLContext:
        """For connections that are accepted.

        Raises:
            NotFound: a file is not there.
            Refused: others may read the key.
            UsageError: a file is not what it should be.
        """
        import ssl

        check_key(self.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.ca is not None:
                context.load_verify_locations(self.ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except FileNotFoundError as error:
            missing = next(path for path in (self.certificate, self.key, self.ca) if path and not os.path.exists(path))
            raise NotFound(f"there is no {missing}: give the path of a PEM file", path=missing) from error
        except (ssl.SSLError, OSError) as error:
            raise UsageError(
                f"{self.certificate} and {self.key} cannot be used for TLS: {error}: give a certificate, its key and "
                f"the CA's certificate as PEM files",
                certificate=self.certificate,
            ) from error
        return context


def check_key(path: str) -> None:
    """A private key: a file of ours (or root's) that nobody else can read.

    Raises:
        NotFound: it is not there.
        Refused: it is anything else; the text says what to do.
    """
    try:
        found = os.lstat(path)
    except OSError as error:
        raise NotFound(f"the key {path} cannot be read: {error.strerror}", path=path) from error
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"the key {path} is not a regular file: give the file itself", reason="key", path=path)
    if found.st_mode & 0o077 or found.st_uid not in (0, os.geteuid()):
        raise Refused(
            f"the key {path} can be read by others (mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}): "
            f"chmod 600 it, and make a new key if it was exposed",
            reason="key",
            path=path,
        )
    if found.st_size == 0:
        raise Refused(f"the key {path} is empty: make it again", reason="key", path=path)
