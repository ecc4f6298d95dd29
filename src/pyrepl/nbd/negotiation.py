"""The negotiation of one NBD connection, without I/O: bytes in, bytes out, until the client has chosen an export.

    GREETING ──(client flags)──▶ OPTIONS ──GO / EXPORT_NAME──▶ CHOSEN      (transmission: _core.nbdio)
                                    │  └──STARTTLS──▶ TLS: a new negotiation begins inside the tunnel, nothing is kept
                                    └──ABORT, misuse, too much──▶ ENDED

Decides every answer before the transmission phase and what a client may cost until then. Must not know sockets, nor
what an export is made of: it is given a :class:`Catalogue`. Source: the protocol's public description, doc/proto.md of
NetworkBlockDevice/nbd; fixed newstyle only.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from enum import Enum
from typing import NamedTuple, Protocol

import msgspec

from pyrepl.errors import NotFound, PyreplError

GREETING = b"NBDMAGICIHAVEOPT"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
REPLY_MAGIC = 0x3E889045565A9
FIXED_NEWSTYLE, NO_ZEROES = 1, 2  # handshake flags, of server and client alike

MOST_OPTIONS = 64
MOST_BYTES = 16 << 10  # of all options together: what a client costs before it is served
MOST_NAME = 255
PROTOCOL_NAME = 4096  # a longer string breaks the protocol
MOST_QUERIES = 64
PAYLOAD = 32 << 20  # bytes: largest request

_OPTION = struct.Struct(">QII")
_REPLY = struct.Struct(">QIII")


class Option(int, Enum):
    """What a client may ask for."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Answer(int, Enum):
    """Types of replies; errors have the top bit."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    UNSUPPORTED = 0x80000001
    POLICY = 0x80000002
    INVALID = 0x80000003
    TLS_REQUIRED = 0x80000005
    UNKNOWN = 0x80000006
    SHUTDOWN = 0x80000007
    TOO_BIG = 0x80000009


class Flag(int, Enum):
    """Transmission flags."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    SEND_FLUSH = 4
    SEND_FUA = 8
    SEND_TRIM = 32
    SEND_WRITE_ZEROES = 64
    SEND_DF = 128
    CAN_MULTI_CONN = 256
    SEND_CACHE = 1024
    SEND_FAST_ZERO = 2048


INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is told of an export. ``size`` and ``preferred`` in bytes; ``contexts``: of metadata, by name."""

    size: int
    read_only: bool
    preferred: int
    description: str = ""
    contexts: tuple[str, ...] = ()

    def flags(self, *, structured: bool) -> int:
        """Transmission flags. Several connections see one another's writes and flushes: there is one journal."""
        common = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_FUA | Flag.CAN_MULTI_CONN | Flag.SEND_CACHE
        if structured:
            common |= Flag.SEND_DF  # only of these can there be several chunks
        if self.read_only:
            return common | Flag.READ_ONLY
        return common | Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES | Flag.SEND_FAST_ZERO


class Catalogue(Protocol):
    """What the negotiation asks the server."""

    def names(self) -> Iterable[str]:
        """Of all exports, for LIST."""

    def shape(self, name: str) -> Shape:
        """The export of this name ("": the only one there is).

        Raises:
            NotFound: there is none, or not for this client.
            PyreplError: it cannot be served now; the text says why.
        """


class State(Enum):
    """Where a connection is."""

    GREETING = "greeting"
    OPTIONS = "options"
    TLS = "tls"
    CHOSEN = "chosen"
    ENDED = "ended"


class Choice(NamedTuple):
    """What the client has chosen: the export, its shape, and the contexts by their numbers."""

    name: str
    shape: Shape
    structured: bool
    contexts: dict[int, str]


class Negotiation:
    """One connection, or the part of it inside the tunnel.

    Args:
        catalogue: the exports.
        tls: this server has certificates, so STARTTLS is answered.
        secure: the tunnel is up; without it a server with ``tls`` offers nothing else.
    """

    def __init__(self, catalogue: Catalogue, *, tls: bool = False, secure: bool = False) -> None:
        self._catalogue = catalogue
        self._tls = tls
        self._secure = secure
        self._buffer = bytearray()
        self._taken = 0  # bytes of greeting and options
        self._options = 0
        self._no_zeroes = False
        self._structured = False
        self._contexts: tuple[str, dict[int, str]] = ("", {})
        self.state = State.GREETING
        self.choice: Choice | None = None
        self.reason = ""  # why it ended

    def inside(self) -> Negotiation:
        """The negotiation inside the tunnel: the client begins again with its options, and nothing of before counts."""
        inner = Negotiation(self._catalogue, tls=True, secure=True)
        inner.state, inner._no_zeroes, inner._taken = State.OPTIONS, self._no_zeroes, self._taken
        return inner

    def greet(self) -> bytes:
        """What the server says first."""
        return GREETING + struct.pack(">H", FIXED_NEWSTYLE | NO_ZEROES)

    def receive(self, data: bytes) -> bytes:
        """Takes what the client sent, in pieces of any length; what is to be sent. Look at ``state`` then."""
        if self.state is State.ENDED:
            return b""
        self._buffer += data
        answer = bytearray()
        while self.state in (State.GREETING, State.OPTIONS):
            piece = self._greeting() if self.state is State.GREETING else self._option()
            if piece is None:
                break
            answer += piece
        return bytes(answer)

    @property
    def rest(self) -> bytes:
        """What was sent behind the last option: nothing, in a connection that is in order."""
        return bytes(self._buffer)

    # ---- inside

    def _end(self, reason: str) -> bytes:
        self.state, self.reason = State.ENDED, reason
        self._buffer.clear()
        return b""

    def _greeting(self) -> bytes | None:
        if len(self._buffer) < 4:
            return None
        (flags,) = struct.unpack_from(">I", self._buffer)
        del self._buffer[:4]
        self._taken += 4
        if flags & ~(FIXED_NEWSTYLE | NO_ZEROES):
            return self._end("client flags that the protocol does not have")
        self._no_zeroes = bool(flags & NO_ZEROES)
        self.state = State.OPTIONS
        return b""

    def _option(self) -> bytes | None:
        if len(self._buffer) < _OPTION.size:
            return None
        magic, number, length = _OPTION.unpack_from(self._buffer)
        if magic != OPTION_MAGIC:
            return self._end("not an option")
        if length > MOST_BYTES - self._taken - _OPTION.size:
            self._end(f"more than {MOST_BYTES} bytes of options")
            return _reply(number, Answer.TOO_BIG, b"this server takes no more than 16 KiB of options")
        if len(self._buffer) < _OPTION.size + length:
            return None
        data = bytes(self._buffer[_OPTION.size : _OPTION.size + length])
        del self._buffer[: _OPTION.size + length]
        self._taken += _OPTION.size + length
        self._options += 1
        if self._options > MOST_OPTIONS:
            return self._end(f"more than {MOST_OPTIONS} options")
        if self._tls and not self._secure and number not in (Option.STARTTLS, Option.ABORT):
            if number == Option.EXPORT_NAME:
                return self._end("an export without TLS")
            return _reply(number, Answer.TLS_REQUIRED, b"this server wants TLS: send STARTTLS first")
        handler = self._HANDLERS.get(number)
        if handler is None:
            return _reply(number, Answer.UNSUPPORTED, b"this server does not know this option")
        return handler(self, number, data)

    def _export_name(self, _: int, data: bytes) -> bytes:
        """The old way: no error can be told, the connection just ends."""
        try:
            name, shape = self._find(data)
        except _Bad as error:
            return self._end(error.text)
        self._choose(name, shape)
        told = struct.pack(">QH", shape.size, shape.flags(structured=self._structured))
        return told if self._no_zeroes else told + bytes(124)

    def _abort(self, number: int, _: bytes) -> bytes:
        self._end("the client changed its mind")
        return _reply(number, Answer.ACK)

    def _list(self, number: int, data: bytes) -> bytes:
        if data:
            return _reply(number, Answer.INVALID, b"LIST takes no data")
        names = [name.encode() for name in self._catalogue.names()]
        listed = b"".join(_reply(number, Answer.SERVER, struct.pack(">I", len(name)) + name) for name in names)
        return listed + _reply(number, Answer.ACK)

    def _starttls(self, number: int, data: bytes) -> bytes:
        if data:
            return _reply(number, Answer.INVALID, b"STARTTLS takes no data")
        if self._secure:
            return _reply(number, Answer.INVALID, b"TLS is in use already")
        if not self._tls:
            return _reply(number, Answer.POLICY, b"this server has no certificate")
        if self._buffer:
            return self._end("plain text behind STARTTLS")
        self.state = State.TLS
        return _reply(number, Answer.ACK)

    def _info(self, number: int, data: bytes) -> bytes:
        """INFO and GO."""
        try:
            raw, wanted = _cut_info(data)
            name, shape = self._find(raw)
        except _Bad as error:
            return _reply(number, error.answer, error.text.encode())
        told = struct.pack(">HQH", INFO_EXPORT, shape.size, shape.flags(structured=self._structured))
        parts = [_reply(number, Answer.INFO, told)]
        if INFO_NAME in wanted:
            parts.append(_reply(number, Answer.INFO, struct.pack(">H", INFO_NAME) + name.encode()))
        if INFO_DESCRIPTION in wanted and shape.description:
            parts.append(_reply(number, Answer.INFO, struct.pack(">H", INFO_DESCRIPTION) + shape.description.encode()))
        if INFO_BLOCK_SIZE in wanted or number == Option.GO:
            sizes = struct.pack(">HIII", INFO_BLOCK_SIZE, 1, shape.preferred, PAYLOAD)
            parts.append(_reply(number, Answer.INFO, sizes))
        if number == Option.GO:
            self._choose(name, shape)
        return b"".join(parts) + _reply(number, Answer.ACK)

    def _structured_reply(self, number: int, data: bytes) -> bytes:
        if data:
            return _reply(number, Answer.INVALID, b"STRUCTURED_REPLY takes no data")
        self._structured = True
        return _reply(number, Answer.ACK)

    def _meta_context(self, number: int, data: bytes) -> bytes:
        """LIST_META_CONTEXT and SET_META_CONTEXT."""
        setting = number == Option.SET_META_CONTEXT
        if setting:
            self._contexts = ("", {})
        if not self._structured:
            return _reply(number, Answer.INVALID, b"contexts want structured replies: ask for these first")
        try:
            raw, queries = _cut_queries(data)
            name, shape = self._find(raw)
        except _Bad as error:
            return _reply(number, error.answer, error.text.encode())
        if setting:
            chosen = [context for context in shape.contexts if context in queries]
        else:
            chosen = [c for c in shape.contexts if not queries or any(_asks_for(query, c) for query in queries)]
        numbered = {shape.contexts.index(context) + 1: context for context in chosen}
        if setting:
            self._contexts = (name, numbered)
        answers = [
            _reply(number, Answer.META_CONTEXT, struct.pack(">I", key if setting else 0) + context.encode())
            for key, context in numbered.items()
        ]
        return b"".join(answers) + _reply(number, Answer.ACK)

    def _find(self, raw: bytes) -> tuple[str, Shape]:
        if len(raw) > PROTOCOL_NAME:
            raise _Bad(Answer.INVALID, "a name longer than the protocol's 4096 bytes")
        if len(raw) > MOST_NAME:
            raise _Bad(Answer.TOO_BIG, f"names here have at most {MOST_NAME} bytes")
        try:
            name = raw.decode()
            return name, self._catalogue.shape(name)
        except (NotFound, UnicodeDecodeError):
            raise _Bad(Answer.UNKNOWN, "there is no such export here") from None
        except PyreplError as error:
            raise _Bad(Answer.SHUTDOWN, error.text[:1024]) from error

    def _choose(self, name: str, shape: Shape) -> None:
        contexts = self._contexts[1] if self._contexts[0] == name else {}
        self.choice = Choice(name, shape, self._structured, contexts)
        self.state = State.CHOSEN

    _HANDLERS: dict[int, Callable[[Negotiation, int, bytes], bytes]] = {  # noqa: RUF012
        Option.EXPORT_NAME: _export_name,
        Option.ABORT: _abort,
        Option.LIST: _list,
        Option.STARTTLS: _starttls,
        Option.INFO: _info,
        Option.GO: _info,
        Option.STRUCTURED_REPLY: _structured_reply,
        Option.LIST_META_CONTEXT: _meta_context,
        Option.SET_META_CONTEXT: _meta_context,
    }


class _Bad(Exception):
    """An option that gets an error: which, and the words."""

    def __init__(self, answer: Answer, text: str) -> None:
        super().__init__(text)
        self.answer = answer
        self.text = text


def _reply(option: int, answer: Answer, data: bytes = b"") -> bytes:
    return _REPLY.pack(REPLY_MAGIC, option, answer, len(data)) + data


def _asks_for(query: str, context: str) -> bool:
    """Whether a query of LIST_META_CONTEXT means this context: by name, or by what it begins with ("base:")."""
    return context == query or (query.endswith((":", "/")) and context.startswith(query))


def _cut(data: bytes, at: int, length: int) -> bytes:
    if length > len(data) - at:
        raise _Bad(Answer.INVALID, "a length inside this option points outside it")
    return data[at : at + length]


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(_cut(data, at, size), "big")


def _cut_info(data: bytes) -> tuple[bytes, set[int]]:
    """Name and wanted items of INFO and GO."""
    length = _number(data, 0, 4)
    name = _cut(data, 4, length)
    count = _number(data, 4 + length, 2)
    if len(data) != 6 + length + 2 * count:
        raise _Bad(Answer.INVALID, "this option is not as long as it says")
    return name, {_number(data, 6 + length + 2 * i, 2) for i in range(count)}


def _cut_queries(data: bytes) -> tuple[bytes, list[str]]:
    """Name and queries of the two about metadata contexts."""
    length = _number(data, 0, 4)
    name = _cut(data, 4, length)
    count, at = _number(data, 4 + length, 4), 8 + length
    if count > MOST_QUERIES:
        raise _Bad(Answer.TOO_BIG, f"at most {MOST_QUERIES} queries")
    queries = []
    for _ in range(count):
        size = _number(data, at, 4)
        queries.append(_cut(data, at + 4, size).decode(errors="replace"))
        at += 4 + size
    if at != len(data):
        raise _Bad(Answer.INVALID, "this option is not as long as it says")
    return name, queries
