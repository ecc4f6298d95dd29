"""Plug-ins as programs: what a user writes, how a site finds it, and the thread in which it runs, for a bounded time.

A plug-in is a subclass of :class:`Operation` that a distribution makes known by an entry point of the group
``pyrepl.operations``. Each site loads its own. It runs in a thread of its own while the applier stands; when its time
is over it is left alone: what it still holds refuses it from then on, and nobody looks at what it does. Decides when a
plug-in is missing, given up, or failed. Must not know what follows from that (``workshop``).
"""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrepl import operations
from pyrepl.catalog import check_name
from pyrepl.errors import NotFound, PyreplError, Refused, UsageError

if TYPE_CHECKING:
    from pyrepl.operations import Perform
    from pyrepl.workshop import Bench

GROUP = "pyrepl.operations"  # of entry points
SECONDS = 60.0  # that a plug-in has, if it says nothing else
LONGEST = 600.0
_loaded: dict[str, type[Operation]] = {}  # by name: what was loaded once stays what it is


class Footprint(NamedTuple):
    """What a plug-in reads and writes: stores by name, or (name, extent) of whole regions.

    It can read what it writes, too. What is not named here is refused to it.
    """

    reads: tuple[str | tuple[str, tuple[int, int]], ...] = ()
    writes: tuple[str | tuple[str, tuple[int, int]], ...] = ()


class WorkStore:
    """A store as a plug-in is given it: what it shows at the place of the operation, and what was written here since.

    Nobody else sees what is written until the operation is performed. Any thread may call, while the plug-in runs.
    """

    def __init__(self, bench: Bench, run: _Run) -> None:
        self._bench, self._run = bench, run
        self.name: str = bench.name
        self.size: int = bench.size

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of it.

        Raises:
            UsageError: not inside what the footprint names.
        """
        with self._run.using():
            return self._bench.read(offset, length)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Overwrites bytes of it.

        Raises:
            UsageError: not inside what the footprint says is written.
        """
        with self._run.using():
            self._bench.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        """Writes zeros."""
        while length > 0:
            count = min(length, 1 << 20)
            self.write(offset, bytes(count))
            offset, length = offset + count, length - count


class Operation:
    """An operation that users of the package write. It is performed at every site, at its one place in the order.

    It must do the same everywhere: what it writes, and its digest, may depend on its arguments and on what the stores
    that it is given show, and on nothing else (no clock, no random numbers, no files, no order of threads). What it
    did is compared with the primary's at every secondary; where that differs, the data are sent.

    Its arguments are what ``vars`` says of it (names with an underscore in front are its own business), and its class
    is called with them at each site: ``__init__`` takes them by name.
    """

    version: int = 1
    """Sites whose plug-ins of one name have another version do not perform each other's operations."""
    seconds: float = SECONDS
    """The time that it has, at most 600: a primary's that is not done then has failed."""

    def footprint(self) -> Footprint:
        """What it reads and writes; known from its arguments alone."""
        raise NotImplementedError(f"{type(self).__name__} has no footprint()")

    def perform(self, stores: Mapping[str, WorkStore]) -> None:
        """Does it, with nothing but the stores of its footprint. An exception ends it, and nothing was changed."""
        raise NotImplementedError(f"{type(self).__name__} has no perform()")

    def digest(self) -> bytes:
        """What it did, in at most 64 bytes; asked after :meth:`perform`."""
        return b""


def arguments_of(operation: Operation) -> dict[str, Any]:
    """Its arguments by name."""
    return {name: value for name, value in vars(operation).items() if not name.startswith("_")}


def name_of(plugin: type[Operation]) -> str:
    """The name of the entry point by which every site finds this class.

    Raises:
        UsageError: there is none.
    """
    known = next((name for name, found in _loaded.items() if found is plugin), "")
    if known:
        return known
    value = f"{plugin.__module__}:{plugin.__qualname__}"
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.value.replace(" ", "") == value:
            return check_name(entry.name)
    raise UsageError(
        f"no entry point of the group {GROUP!r} names {value!r}: a secondary could not find it. Let a distribution "
        f"that is installed at every site declare it", plugin=value)


def load(name: str) -> type[Operation]:
    """The plug-in of that name.

    Raises:
        NotFound: there is none here.
        UsageError: it cannot be loaded, or is no plug-in.
    """
    if name in _loaded:
        return _loaded[name]
    found = [*importlib.metadata.entry_points(group=GROUP, name=name)]
    if not found:
        raise NotFound(f"there is no plug-in {name!r} here: install the distribution that declares it in the group "
                       f"{GROUP!r} of entry points", plugin=name)
    try:
        plugin = found[0].load()
    except Exception as error:
        raise UsageError(f"plug-in {name!r} ({found[0].value}) cannot be loaded: {type(error).__name__}: {error}",
                         plugin=name) from error
    if not isinstance(plugin, type) or not issubclass(plugin, Operation):
        raise UsageError(f"plug-in {name!r} ({found[0].value}) is not a subclass of pyrepl.Operation", plugin=name)
    seconds, version = plugin.seconds, plugin.version
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= LONGEST:
        raise UsageError(f"plug-in {name!r}: seconds={seconds!r}: above 0, at most {LONGEST:g}", plugin=name)
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version < 1 << 31:
        raise UsageError(f"plug-in {name!r}: version={version!r}: a whole number from 0 on", plugin=name)
    _loaded[name] = plugin
    return plugin


def make(plugin: type[Operation], name: str, arguments: Mapping[str, Any]) -> Operation:
    """One with these arguments.

    Raises:
        UsageError: they are not those that it takes.
    """
    try:
        return plugin(**arguments)
    except Exception as error:
        raise UsageError(f"plug-in {name!r} cannot be made with the arguments {sorted(arguments)}: "
                         f"{type(error).__name__}: {error}", plugin=name) from error


Wanted = tuple[list[tuple[str, int | None, int | None]], list[tuple[str, int | None, int | None]]]


def touched_by(operation: Operation, name: str) -> Wanted:
    """Its footprint, as ``operations.perform`` takes it.

    Raises:
        UsageError: it is none.
    """
    try:
        reads, writes = operation.footprint()
        return [_wanted(one) for one in reads], [_wanted(one) for one in writes]
    except Exception as error:
        raise UsageError(f"the footprint of plug-in {name!r} is not a pyrepl.Footprint of stores by name, or of "
                         f"(name, (offset, length)): {type(error).__name__}: {error}", plugin=name) from error


def _wanted(one: Any) -> tuple[str, int | None, int | None]:
    if isinstance(one, str):
        return one, None, None
    name, (offset, length) = one
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is not the name of a store")
    return name, offset, length


class _Run:
    """See :class:`pyrepl.seams.Run`."""

    def __init__(self, work: Perform, benches: Mapping[str, Bench], hurry: Callable[[], None]) -> None:
        self.error, self.said = "", b""
        self._work, self._benches, self._hurry = work, benches, hurry
        self._over = threading.Event()
        self._using = threading.RLock()
        self._loaded = threading.Event()
        self._seconds = SECONDS
        self._ended = False
        threading.Thread(target=self._watch, name=f"pyrepl-plugin-{work.plugin}", daemon=True).start()

    @contextmanager
    def using(self) -> Iterator[None]:
        """Held while a store is used: whoever ends the run waits for that."""
        with self._using:
            if self._ended:
                raise Refused(f"plug-in {self._work.plugin!r} is over: it has no stores any more", reason="ended")
            yield

    def is_over(self) -> bool:
        return self._over.is_set()

    def wait(self) -> None:
        self._over.wait()

    def end(self) -> None:
        self._end("it was given up")

    def _end(self, error: str, said: bytes = b"") -> None:
        with self._using:
            if self._ended:
                return
            self._ended = True
            self.error, self.said = error, said
        self._over.set()

    def _watch(self) -> None:
        worker = threading.Thread(target=self._perform, daemon=True, name=f"pyrepl-work-{self._work.plugin}")
        worker.start()
        seconds = SECONDS
        if self._loaded.wait(SECONDS):
            seconds = self._seconds
            self._over.wait(seconds)
        if not self._over.is_set():
            self._end(f"plug-in {self._work.plugin!r} was not done after {seconds:g} s")
        self._hurry()

    def _perform(self) -> None:
        name, version = self._work.plugin, self._work.version
        try:
            plugin = load(name)
            if plugin.version != version:
                raise UsageError(f"plug-in {name!r} has version {plugin.version}, the operation means {version}")
            self._seconds = plugin.seconds
            self._loaded.set()
            operation = make(plugin, name, operations.decode_arguments(self._work.arguments))
            operation.perform({store: WorkStore(bench, self) for store, bench in self._benches.items()})
            said = operation.digest()
            if not isinstance(said, bytes) or len(said) > operations.MOST_DIGEST:
                raise UsageError(f"the digest of plug-in {name!r} is not bytes, at most {operations.MOST_DIGEST}")
        except NotFound:
            self._end(f"there is no plug-in {name!r} here")  # in words that may be told to another site
        except PyreplError as error:
            self._end(error.text)
        except BaseException as error:
            self._end(f"{type(error).__name__}: {error}")
        else:
            self._end("", said)
        self._loaded.set()


class InstalledPlugins:
    """Those that this Python has; see :class:`pyrepl.seams.Plugins`."""

    def __init__(self) -> None:
        self.hurry: Callable[[], None] = lambda: None  # the applier is to look again

    def begin(self, work: Perform, lsn: int, benches: Mapping[str, Bench]) -> _Run:
        return _Run(work, benches, self._tell)

    def _tell(self) -> None:
        self.hurry()


__all__ = [
    "Footprint",
    "InstalledPlugins",
    "Operation",
    "WorkStore",
    "arguments_of",
    "load",
    "make",
    "name_of",
    "touched_by",
]
