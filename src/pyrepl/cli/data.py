"""``pyrepl volume read``, ``write`` and ``compare``: bytes of a store, through pipes and by digest.

Decides how a stream becomes writes, and how two contents are compared without moving them: by digests that the daemon
makes, a chunk at a time; only a chunk that differs is looked at byte by byte.
"""

from __future__ import annotations

import os
import stat
import sys
from typing import IO, TYPE_CHECKING, Protocol

import click

from pyrepl.cli import sizes
from pyrepl.cli.connection import asks_daemon
from pyrepl.cli.names import READABLE, STORE, Named
from pyrepl.cli.outcome import json_option
from pyrepl.cli.progress import Progress, progress_option
from pyrepl.errors import NotFound, UsageError
from pyrepl.runtime.streams import is_closed

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode
    from pyrepl.remote.stores import RemoteStore
    from pyrepl.remote.views import RemoteView

PIECE = 4 << 20  # bytes of one read or write, as many as go in one request
CHUNK = 16 << 20  # bytes of one digest
SHOWN = 64 << 10  # bytes looked at at a time for the first that differs


@click.command()
@click.argument("store", type=STORE)
@click.option("--offset", type=sizes.size, default="0", show_default=True, help="Where the first byte goes.")
@progress_option
@asks_daemon
def write(node: RemoteNode, store: Named, offset: int, wanted: bool) -> None:
    """Writes standard input into a volume or a snapshot, and flushes: what was written survives the loss of power.

    A file that would not fit is refused before anything is written; of a pipe, what fits is written, and then it
    fails. What stood there before is overwritten.

    \b
    Example:
      pyrepl volume write db/data < golden.img
      zstdcat backup.zst | pyrepl volume write db/data --offset 1G
    """
    if is_closed("stdin"):
        raise UsageError("standard input is closed: pyrepl volume write GROUP/STORE < FILE")
    source = sys.stdin.buffer
    if source.isatty():
        raise UsageError("standard input is a terminal: pyrepl volume write GROUP/STORE < FILE")
    target = node.group(store.group).store(store.name)
    room, total = target.size - offset, _rest_of(source)
    if room < 0 or (total is not None and total > room):
        what = f"offset {offset} is" if total is None else f"{total} bytes from offset {offset} on are"
        raise UsageError(f"{what} not inside {target.kind} {store}, which is {room + offset} bytes long: nothing was "
                         f"written")
    done = 0
    with Progress(f"writing {store}", total, wanted=wanted) as progress:
        while piece := source.read(PIECE):
            if len(piece) > room - done:
                target.flush()
                raise UsageError(
                    f"the input is longer than what is left of {target.kind} {store}: its first {done} bytes are "
                    f"written, the rest is not"
                )
            target.write(offset + done, piece)
            done += len(piece)
            progress.advance(len(piece))
        lsn = target.flush()
    click.echo(f"{sizes.human(done)} ({done} bytes) written to {store}, durable up to LSN {lsn}", err=True)


@click.command()
@click.argument("store", type=READABLE)
@click.option("--offset", type=sizes.size, default="0", show_default=True, help="Where to begin.")
@click.option("--length", type=sizes.size, help="How much; without it: up to the end of the store.")
@progress_option
@asks_daemon
def read(node: RemoteNode, store: Named, offset: int, length: int | None, wanted: bool) -> None:
    """Writes the content of a volume or snapshot to standard output.

    A volume that is written meanwhile is not read as of one moment; a snapshot is. At a secondary everything is read
    as of one moment: what has arrived there, or, while it is resynchronized, what its protective snapshot holds.

    \b
    Example:
      pyrepl volume read db/monday > monday.img
      pyrepl volume read db/data --length 4K | xxd | head
    """
    if is_closed("stdout"):
        raise UsageError("standard output is closed: pyrepl volume read GROUP/STORE > FILE")
    out = sys.stdout.buffer
    if out.isatty():
        raise UsageError("standard output is a terminal: pyrepl volume read GROUP/STORE > FILE")
    source: RemoteStore | RemoteView = _readable(node, store)
    group = node.group(store.group)
    if source.kind != "kept" and group.role == "secondary" and group.status()["group_id"]:  # else it is not fed yet
        source = click.get_current_context().with_resource(group.open_view(store.name))
    size = source.size
    count = length if length is not None else size - offset
    if count < 0 or offset > size or count > size - offset:
        raise UsageError(
            f"{max(count, 0)} bytes from offset {offset} on are not inside {store}, which is {size} bytes long"
        )
    with Progress(f"reading {store}", count, wanted=wanted) as progress:
        for start in range(offset, offset + count, PIECE):
            piece = source.read(start, min(PIECE, offset + count - start))
            out.write(piece)
            progress.advance(len(piece))
        out.flush()


class Content(Protocol):
    """What can be compared."""

    @property
    def size(self) -> int:
        """Bytes."""

    def digest(self, offset: int, length: int) -> bytes:
        """Of the range."""

    def read(self, offset: int, length: int) -> bytes:
        """Its bytes."""


def _readable(node: RemoteNode, named: Named) -> RemoteStore:
    """A store, or what the site keeps under that name."""
    group = node.group(named.group)
    try:
        return group.store(named.name)
    except NotFound:
        kept = {one.name: one for one in group.kept}
        if named.name not in kept:
            raise
        return kept[named.name]


class Image:
    """A file at this side of the control socket."""

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # until the command ends
        except FileNotFoundError:
            raise NotFound(f"there is no {path}", path=path) from None
        self.size = os.lseek(self._fd, 0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of the range."""
        return os.pread(self._fd, length, offset)

    def digest(self, offset: int, length: int) -> bytes:
        """XXH3-128 of the range."""
        import xxhash

        state = xxhash.xxh3_128()
        for start in range(offset, offset + length, PIECE):
            state.update(self.read(start, min(PIECE, offset + length - start)))
        return state.digest()


@click.command()
@click.argument("left", type=READABLE)
@click.argument("right")
@json_option
@progress_option
@asks_daemon
def compare(node: RemoteNode, left: Named, right: str, as_json: bool, wanted: bool) -> None:
    """Whether two stores hold the same bytes, or a store and a file. Ends with 1 if not, and says where first.

    RIGHT is GROUP/STORE, or a file whose path begins with / or a dot. The daemon digests its stores (XXH3-128); no
    data leave it but the chunk that differs. What is written meanwhile may be taken for a difference: compare
    snapshots of a volume that is in use.

    \b
    Example:
      pyrepl volume compare db/data db/monday
      pyrepl volume compare db/monday ./golden.img && echo equal
    """
    one: Content = _readable(node, left)
    if right.startswith(("/", ".")):
        other: Content = Image(right)
    else:
        named = STORE.convert(right, None, click.get_current_context())
        other = _readable(node, named)
    common = min(one.size, other.size)
    first = None
    with Progress(f"comparing {left} and {right}", common, wanted=wanted) as progress:
        for start in range(0, common, CHUNK):
            length = min(CHUNK, common - start)
            if one.digest(start, length) != other.digest(start, length):
                first = _first_difference(one, other, start, length)
                if first is not None:
                    break
            progress.advance(length)
    if first is None and one.size != other.size:
        first = common
    if as_json:
        from pyrepl.cli import output

        output.write(
            output.Compared(left=str(left), right=right, equal=first is None, compared=common, first_difference=first)
        )
    elif first is None:
        click.echo(f"equal: {left} and {right}, {sizes.human(common)}")
    elif first == common:
        click.echo(f"different: {left} is {one.size} bytes long, {right} is {other.size}; equal as far as both reach")
    else:
        click.echo(f"different: {left} and {right}, first at byte {first}")
    click.get_current_context().exit(0 if first is None else 1)


def _first_difference(one: Content, other: Content, start: int, length: int) -> int | None:
    """Where the first byte differs; None: they became equal meanwhile."""
    for offset in range(start, start + length, SHOWN):
        count = min(SHOWN, start + length - offset)
        ours, theirs = one.read(offset, count), other.read(offset, count)
        if ours != theirs:
            return offset + next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return None


def _rest_of(source: IO[bytes]) -> int | None:
    """Bytes up to the end of a file; None for a pipe."""
    try:
        found = os.fstat(source.fileno())
    except (OSError, ValueError):
        return None
    return max(0, found.st_size - source.tell()) if stat.S_ISREG(found.st_mode) else None


__all__ = ["compare", "read", "write"]
