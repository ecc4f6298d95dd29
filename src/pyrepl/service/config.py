"""The configuration of a node: a TOML file, strictly read, every mistake named by file, line and key.

Decides which keys there are, what they may be, and which of them a running daemon takes over (RELOADABLE). Knows
nothing of the node that runs by it. ``docs/daemon.md`` has the table of all keys; a test holds it beside the structs.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NoReturn, get_args, get_type_hints

import msgspec
from msgspec import Meta

from pyrepl.catalog import check_name
from pyrepl.errors import DeviceError, NotFound, PyreplError, UsageError
from pyrepl.remote.node import SOCKET
from pyrepl.runtime.addresses import refuse_routable
from pyrepl.runtime.hooks import TIMEOUT, Hook
from pyrepl.runtime.transport import parse_address
from pyrepl.service.toml_lines import Path, line_of, repeated

MOST_BYTES = 256 * 1024  # of the file

RELOADABLE = ("insecure", "export", "nbd", "metrics", "log", "limits")
"""Tables and keys that SIGHUP takes over; others need a restart."""


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file. A key that it does not have is an error."""


class ControlTable(Table, frozen=True, kw_only=True):
    """The control socket."""

    socket: str = SOCKET
    """Its path; "": there is none."""
    group: str | None = None
    """Members of this group of users may control the node; else only root and the daemon's user."""


class NbdTable(Table, frozen=True, kw_only=True):
    """The NBD server."""

    listen: tuple[str, ...] = ()
    """unix:/path or host:port."""
    certificate: str | None = None
    key: str | None = None
    ca: str | None = None


class ExportTable(Table, frozen=True, kw_only=True):
    """A store that NBD clients see."""

    name: str
    group: str
    store: str
    read_only: bool | None = None


class HookTable(Table, frozen=True, kw_only=True):
    """What this site does where a mark passes."""

    mark: str
    program: tuple[str, ...]
    group: str | None = None
    timeout: float = TIMEOUT
    hold: bool = False


class MetricsTable(Table, frozen=True, kw_only=True):
    """Metrics over HTTP."""

    listen: str | None = None


class LogTable(Table, frozen=True, kw_only=True):
    """The log."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class LimitsTable(Table, frozen=True, kw_only=True):
    """What clients of the control socket may take."""

    connections: Annotated[int, Meta(ge=1, le=1024)] = 64
    requests_per_second: Annotated[int, Meta(ge=1, le=100_000)] = 100


class Config(Table, frozen=True, kw_only=True):
    """The whole file."""

    state: str
    name: str | None = None
    create: bool = False
    listen: tuple[str, ...] = ()
    insecure: bool = False
    control: ControlTable = ControlTable()
    nbd: NbdTable = NbdTable()
    metrics: MetricsTable = MetricsTable()
    log: LogTable = LogTable()
    limits: LimitsTable = LimitsTable()
    export: tuple[ExportTable, ...] = ()
    hook: tuple[HookTable, ...] = ()

    def hooks_of(self, group: str) -> list[Hook]:
        """Those of the group of that name: its own before those of any group."""
        tables = sorted(self.hook, key=lambda table: table.group is None)
        chosen = {table.mark: table for table in reversed(tables) if table.group in (None, group)}
        return [Hook(table.mark, table.program, table.timeout, table.hold) for table in chosen.values()]


class _Mistake(Exception):
    """Something is wrong with the value at a path."""

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(text)
        self.path = path


def load(path: str) -> Config:
    """Reads and checks a file; nothing is opened or made by it.

    Raises:
        NotFound, DeviceError: it cannot be read.
        UsageError: a mistake in it; text and context name file, line and key.
    """
    text = _text(path)
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        _refuse_syntax(path, text, error)
    try:
        config = msgspec.convert(raw, type=Config, strict=True)
        for mistake in mistakes(config):
            raise mistake
    except msgspec.ValidationError as error:
        where, what = _understood(error)
        _refuse(path, text, where, what)
    except _Mistake as mistake:
        _refuse(path, text, mistake.path, str(mistake))
    return config


def mistakes(config: Config) -> Iterator[_Mistake]:
    """What is wrong with values whose types are right."""
    if not config.state.startswith("/"):
        yield _Mistake(("state",), f"{config.state!r} is not a whole path: it must begin with /")
    if config.name is not None:
        yield from _judged(("name",), check_name, config.name)
    yield from _listeners(config)
    if config.control.socket and not config.control.socket.startswith("/"):
        yield _Mistake(("control", "socket"), f"{config.control.socket!r} is not a whole path: it must begin with /")
    if len(os.fsencode(config.control.socket)) > 107:
        yield _Mistake(("control", "socket"), "longer than the 107 bytes that a unix socket's path may have")
    if config.control.group == "":
        yield _Mistake(("control", "group"), "empty: name a group of users, or leave it out")
    yield from _exports(config)
    yield from _hooks(config)


def _listeners(config: Config) -> Iterator[_Mistake]:
    for number, address in enumerate(config.listen):
        where: Path = ("listen", number)
        yield from _judged(where, parse_address, address)
        yield from _judged(where, _not_routable, address, config.insecure, "replication")
        if address in config.listen[:number] and not address.endswith(":0"):
            yield _Mistake(where, f"{address!r} stands there twice")
    nbd = config.nbd
    if (nbd.certificate is None) != (nbd.key is None):
        missing = "certificate" if nbd.certificate is None else "key"
        yield _Mistake(("nbd",), f"{missing} is missing: TLS needs certificate and key")
    if nbd.ca is not None and nbd.certificate is None:
        yield _Mistake(("nbd", "ca"), "without certificate and key: give them too")
    for key in ("certificate", "key", "ca"):
        file = getattr(nbd, key)
        if file is not None and not file.startswith("/"):  # not repeated here: it may be the key itself
            yield _Mistake(("nbd", key), "not a whole path: give that of the file, beginning with /, not what it holds")
    for number, address in enumerate(nbd.listen):
        where = ("nbd", "listen", number)
        if address.startswith("unix:"):
            if not address.startswith("unix:/"):
                yield _Mistake(where, f"{address!r} is not a whole path: it must begin with unix:/")
        else:
            yield from _judged(where, parse_address, address)
            yield from _judged(where, _not_routable, address, config.insecure or nbd.certificate is not None, "NBD")
        if address in nbd.listen[:number] and not address.endswith(":0"):
            yield _Mistake(where, f"{address!r} stands there twice")
    if config.metrics.listen is not None:
        yield from _judged(("metrics", "listen"), parse_address, config.metrics.listen)
        yield from _judged(("metrics", "listen"), _not_routable, config.metrics.listen, config.insecure, "HTTP")


def _hooks(config: Config) -> Iterator[_Mistake]:
    for number, table in enumerate(config.hook):
        for key, values in (("mark", (table.mark, ("/",))), ("program", ("*", table.program)),
                            ("timeout", ("*", ("/",), table.timeout))):
            try:
                Hook(*values)
            except UsageError as error:
                yield _Mistake(("hook", number, key), str(error))
        if table.group is not None:
            yield from _judged(("hook", number, "group"), check_name, table.group)
        if (table.group, table.mark) in [(other.group, other.mark) for other in config.hook[:number]]:
            yield _Mistake(("hook", number, "mark"), f"there is a hook of mark {table.mark!r} already for these groups")


def _exports(config: Config) -> Iterator[_Mistake]:
    names = [export.name for export in config.export]
    for number, export in enumerate(config.export):
        for key in ("name", "group", "store"):
            yield from _judged(("export", number, key), check_name, getattr(export, key))
        if export.name in names[:number]:
            yield _Mistake(("export", number, "name"), f"there is an export {export.name!r} already")


def _judged(where: Path, judge: Any, *arguments: Any) -> Iterator[_Mistake]:
    try:
        judge(*arguments)
    except PyreplError as error:
        yield _Mistake(where, error.text)


def _not_routable(address: str, insecure: bool, what: str) -> None:
    refuse_routable(*parse_address(address), insecure=insecure, what=what)


def frozen_changes(old: Config, new: Config) -> list[str]:
    """The keys that differ and that a running daemon does not take over."""
    changed = []
    for field in Config.__struct_fields__:
        before, now = getattr(old, field), getattr(new, field)
        if field in RELOADABLE or before == now:
            continue
        if isinstance(now, msgspec.Struct):  # a table: its keys
            changed += [f"{field}.{key}" for key in now.__struct_fields__ if getattr(before, key) != getattr(now, key)]
        else:
            changed.append(field)
    return changed


# ---------------------------------------------------------------- the file


def _text(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{path}: not a file", file=path)
            if status.st_mode & stat.S_IWOTH:
                raise UsageError(f"{path}: everybody may change it: chmod o-w {path}", file=path)
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(f"{path}: there is no such file", file=path) from None
    except OSError as error:
        if isinstance(error, PyreplError):
            raise
        raise DeviceError(f"{path}: cannot be read: {error.strerror}", file=path) from error
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path}: longer than {MOST_BYTES} bytes", file=path)
    for mark, what in ((b"\xef\xbb\xbf", "a byte order mark"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if data.startswith(mark):
            _refuse_line(path, 1, "", f"begins with {what}: save it as UTF-8 without a byte order mark")
    if b"\r" in data:
        line = data.count(b"\n", 0, data.index(b"\r")) + 1
        _refuse_line(path, line, "", "ends with a carriage return: save the file with Unix line ends")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _refuse_line(path, line, "", "is not UTF-8")


def _understood(error: msgspec.ValidationError) -> tuple[Path, str]:
    """Where, and what, in our words."""
    text, _, place = str(error).partition(" - at `$")
    path = tuple(
        int(index) if index else key for key, index in re.findall(r"\.?([^.\[\]`]+)|\[(\d+)\]", place.removesuffix("`"))
    )
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", text):
        known = ", ".join(_keys_at(path))
        return (*path, match[1]), f"unknown key; the keys here are: {known}"
    if match := re.fullmatch(r"Object missing required field `(.*)`", text):
        return path, f"{match[1]} is missing"
    if match := re.fullmatch(r"Invalid enum value '(.*)'", text):
        return path, f"{match[1]!r}: must be one of {', '.join(_words_at(path))}"
    words = {"`object`": "a table", "`array`": "a list", "`str`": "a string", "`int`": "a whole number",
             "`bool`": "true or false", "`float`": "a number", "`null`": "nothing"}  # fmt: skip
    text = text.replace(" | null`", "`")
    for word, ours in words.items():
        text = text.replace(word, ours)
    return path, text[:1].lower() + text[1:]


def _keys_at(path: Path) -> list[str]:
    return list(_table_at(path).__struct_fields__)


def _words_at(path: Path) -> list[str]:
    """What a key may say that is one of several words."""
    return list(get_args(get_type_hints(_table_at(path[:-1]))[str(path[-1])]))


def _table_at(path: Path) -> Any:
    kind: Any = Config
    for part in path:
        if isinstance(part, int):
            continue
        kind = {"control": ControlTable, "nbd": NbdTable, "export": ExportTable, "hook": HookTable,
                "metrics": MetricsTable, "log": LogTable, "limits": LimitsTable}[part]  # fmt: skip
    return kind


def _refuse(file: str, text: str, path: Path, what: str) -> NoReturn:
    _refuse_line(file, line_of(text, path), _shown(path), what)


def _shown(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _refuse_syntax(file: str, text: str, error: Exception) -> NoReturn:
    words = str(error)
    twice = repeated(text)
    if words.startswith(("Cannot overwrite", "Cannot declare", "Cannot mutate")) and twice is not None:
        _refuse_line(file, twice[1], _shown(twice[0]), "given twice")
    match = re.search(r"\(at line (\d+), column (\d+)\)", words)
    line = int(match[1]) if match else text.count("\n") + 1
    what = re.sub(r" \(at .*\)$", "", words)
    _refuse_line(file, line, "", f"not TOML: {what[:1].lower()}{what[1:]}")


def _refuse_line(file: str, line: int, key: str, what: str) -> NoReturn:
    named = f"{key}: " if key else ""
    raise UsageError(f"{file}:{line}: {named}{what}", file=file, line=line, key=key)
