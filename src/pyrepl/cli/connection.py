"""How a command reaches the daemon: which socket, and what is said if nobody listens there.

Decides where ``--socket`` may stand (before the command or after it) and that a connection ends with its command.
What goes over it is ``remote``'s. Nothing here is imported before a command that needs the daemon runs.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

from pyrepl.errors import PeerError, PyreplError

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode

P = ParamSpec("P")
R = TypeVar("R")


def socket_option(function: Any) -> Any:
    """The option ``--socket`` of a command; ``pyrepl`` itself has it too, with the default."""
    return click.option("--socket", metavar="PATH", help="The daemon's control socket.")(function)


def socket_of(ctx: click.Context, given: str | None) -> str:
    """The socket that was given with the command, with ``pyrepl`` itself, by the environment, or the default."""
    return given or str(ctx.find_root().params["socket"])


def connect(path: str, **options: Any) -> RemoteNode:
    """The node behind a control socket.

    Raises:
        PeerError: no daemon is there, or it does not answer.
        Refused: this user may not ask it.
    """
    import pyrepl

    try:
        return pyrepl.connect(path, **options)
    except PyreplError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError | ConnectionRefusedError):
            raise PeerError(f"no daemon listens at {path}: start pyrepld, or give --socket", path=path) from error
        raise


def asks_daemon(function: Callable[Concatenate[RemoteNode, P], R]) -> Callable[P, R]:
    """For a command that needs the daemon: it gets the node as its first argument, and the option ``--socket``."""

    @socket_option
    @functools.wraps(function)
    def command(*arguments: Any, socket: str | None, **options: Any) -> R:
        with connect(socket_of(click.get_current_context(), socket)) as node:
            return function(node, *arguments, **options)

    decorated: Callable[P, R] = command
    return decorated


def local(path: str | None) -> str | None:
    """A path as the daemon, which works in another folder, has to hear it."""
    return os.path.abspath(path) if path is not None else None
