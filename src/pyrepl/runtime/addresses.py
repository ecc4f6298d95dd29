"""Where this process may listen, and for whom: loopback and unix sockets, or everybody if it was said.

Decides which address is routable, and that a stale unix socket may be replaced. Must not know what listens there.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat

from pyrepl.errors import Exists, InUse, Refused, UsageError


def is_routable(host: str) -> bool:
    """Whether other machines may reach this address. A name counts as routable unless it is ``localhost``: what it
    means may change."""
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return True


def refuse_routable(host: str, port: int, *, insecure: bool, what: str) -> None:
    """Refuses a listener without TLS that other machines can reach.

    Raises:
        Refused: the text says how to allow it.
    """
    if is_routable(host) and not insecure:
        raise Refused(
            f"cannot listen on {show(host, port)}: {what} without TLS can be reached from other machines: use a "
            f"loopback address, or say insecure = true if the network is trusted",
            reason="insecure",
            host=host,
            port=port,
        )


def show(host: str, port: int) -> str:
    """As people write it: ``host:port``, ``[v6]:port``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind_unix(path: str, *, mode: int, group: int | None) -> socket.socket:
    """A listening unix socket; what a killed process left there is replaced once it is proved that nobody listens.

    Args:
        path: where; its folder exists.
        mode: of the socket's file.
        group: id of the group that owns it; None: the process's.

    Raises:
        InUse: somebody listens there.
        Exists: something that is no socket stands there.
        UsageError: it cannot be made there.
    """
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind(path)
        # Nobody can connect before listen(): there is no moment at which the mode is another.
        if group is not None:
            os.chown(path, -1, group)
        os.chmod(path, mode)
        sock.listen(1024)  # what comes at once waits; who accepts decides how many are served
    except OSError as error:
        sock.close()
        cause = InUse if error.errno == errno.EADDRINUSE else UsageError
        raise cause(f"cannot listen on {path}: {error.strerror or error}", path=path) from error
    except BaseException:
        sock.close()
        raise
    return sock


def unlink_own(path: str, sock: socket.socket) -> None:
    """Removes the file of a listening socket, if it is still that socket's."""
    with contextlib.suppress(OSError):
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with probe:
            sock.shutdown(socket.SHUT_RDWR)  # from here on nobody gets in by it
            probe.settimeout(1.0)
            code = probe.connect_ex(path)
        if code == errno.ECONNREFUSED:
            os.unlink(path)


def _remove_stale(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot listen on {path}: {error.strerror}", path=path) from error
    if not stat.S_ISSOCK(found.st_mode):
        raise Exists(f"cannot listen on {path}: something that is no socket stands there; give another path", path=path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(1.0)
        code = probe.connect_ex(path)
    if code != errno.ECONNREFUSED:
        raise InUse(f"cannot listen on {path}: another process listens there; end it, or give another path", path=path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
