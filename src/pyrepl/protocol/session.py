"""One connection: bytes to meaning and back, and the table of what may come when. No I/O.

    primary                         secondary
    Hello               ->
                        <-          Welcome, or Refuse
    Pair (if it is fresh) ->
                        <-          Paired, or Refuse
    Batch ...           ->                              one for each frame; heartbeats between, both ways
                        <-          Ack ...
    Probe ...           ->                              of a verification, between batches
                        <-          Digests ...         one for each probe, in their order
    Forget              ->
    Close               <->         Close, or just the end

A session reads a header (:meth:`Session.take_header`), then its body (:meth:`Session.take_body`), so that whoever moves
the bytes can put a batch where it belongs without a copy. An illegal frame is a ProtocolError and changes nothing; the
caller closes.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from pyrepl._core.crc32c import crc32c
from pyrepl.errors import ProtocolError, check
from pyrepl.protocol import frames, messages
from pyrepl.protocol.frames import BATCH, HEADER, Frame
from pyrepl.protocol.messages import (
    Ack,
    Close,
    Digests,
    Forget,
    Heartbeat,
    Hello,
    Message,
    Pair,
    Paired,
    Probe,
    Refuse,
    Welcome,
)


class Side(Enum):
    """Who we are on this connection."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


class State(Enum):
    """Where the conversation stands; the same word on both sides."""

    NEW = "new"  # nothing was said
    GREETED = "greeted"  # the hello is out
    WELCOMED = "welcomed"  # the secondary has said where it stands
    PAIRING = "pairing"  # the pair is out
    OPEN = "open"
    CLOSED = "closed"


_H, _W, _R, _P, _D, _A, _B, _C = (
    messages.NUMBERS[kind] for kind in (Hello, Welcome, Refuse, Pair, Paired, Ack, Heartbeat, Close)
)
_Q, _S, _F = (messages.NUMBERS[kind] for kind in (Probe, Digests, Forget))
_ENDS = {_C: State.CLOSED}

FROM_PRIMARY: dict[State, dict[int, State]] = {
    State.NEW: {_H: State.GREETED},
    State.GREETED: _ENDS,
    State.WELCOMED: {_P: State.PAIRING, BATCH: State.OPEN, _B: State.OPEN, **_ENDS},
    State.PAIRING: _ENDS,
    State.OPEN: {BATCH: State.OPEN, _B: State.OPEN, _Q: State.OPEN, _F: State.OPEN, **_ENDS},
    State.CLOSED: {},
}
FROM_SECONDARY: dict[State, dict[int, State]] = {
    State.NEW: {_R: State.CLOSED},
    State.GREETED: {_W: State.WELCOMED, _R: State.CLOSED, **_ENDS},
    State.WELCOMED: _ENDS,
    State.PAIRING: {_D: State.OPEN, _R: State.CLOSED, **_ENDS},
    State.OPEN: {_A: State.OPEN, _B: State.OPEN, _S: State.OPEN, _R: State.CLOSED, **_ENDS},
    State.CLOSED: {},
}
"""(state, frame type) -> state, by who sends. What is not in the table is illegal."""


class Batch(NamedTuple):
    """A batch as it came: travel part, descriptors and payload in one piece. Not judged yet."""

    data: memoryview


Received = Message | Batch


class Session:
    """One end of one connection."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.state = State.NEW
        self.id = 0  # given by the secondary in its welcome; every frame after that carries it
        self.sent = 0  # frames, which is the number of the next
        self.received = 0
        self.bytes_sent = 0  # of control frames and headers: the framing
        self._partial = bytearray()
        self._awaited: Frame | None = None

    @property
    def fresh(self) -> bool:
        """Whether the handshake has still to end."""
        return self.state not in (State.OPEN, State.CLOSED)

    @property
    def at_frame(self) -> bool:
        """Whether what comes next is the beginning of a frame."""
        return self._awaited is None and not self._partial

    # -- out

    def send(self, message: Message) -> bytes:
        """The frame of a message.

        Raises:
            InternalError: it may not be said now.
        """
        kind, body = messages.encode(message)
        state = self._out.get(self.state, {}).get(kind)
        if state is None:
            check(False, f"a {type(message).__name__} may not be sent in state {self.state.value}")
        header = frames.pack(kind, len(body), crc32c(body), self.sent, self.id)
        self._advance_out(state, message, HEADER + len(body))
        return header + body

    def send_batch(self, length: int) -> bytes:
        """The header of the frame of a batch of this length; the caller sends the batch right after it."""
        state = self._out.get(self.state, {}).get(BATCH)
        check(state is not None, f"a batch may not be sent in state {self.state.value}")
        check(0 < length <= frames.MOST_BATCH, f"a batch of {length} bytes does not fit a frame")
        header = frames.pack(BATCH, length, 0, self.sent, self.id)
        self._advance_out(state, None, HEADER)
        return header

    def send_batches(self, count: int) -> int:
        """So many batches are sent by the run, in frames that are numbered from the one returned."""
        state = self._out.get(self.state, {}).get(BATCH)
        check(state is not None, f"a batch may not be sent in state {self.state.value}")
        first = self.sent
        self.state = State.OPEN
        self.sent += count
        self.bytes_sent += HEADER * count
        return first

    # -- in

    def take_header(self, header: bytes | memoryview) -> Frame:
        """Judges the header of the next frame; its body of ``length`` bytes is to follow.

        Raises:
            ProtocolError: malformed, out of sequence, too long, or not what may come now.
        """
        frame = frames.unpack(header, self.received, self.id)
        if frame.type not in self._in.get(self.state, {}):
            raise ProtocolError(f"a {frame.name} may not come in state {self.state.value}")
        self._awaited = frame
        return frame

    def take_body(self, body: bytes | memoryview) -> Received:
        """The body of the frame whose header was taken.

        Raises:
            ProtocolError: its checksum or its content is not what it must be.
        """
        frame = self._awaited
        if frame is None or len(body) != frame.length:
            raise ProtocolError("a body without its header")
        received: Received
        if frame.type == BATCH:
            received = Batch(memoryview(body))
        else:
            frames.check_body(frame, body)
            received = messages.decode(frame.type, body)
        self._awaited = None
        self.state = self._in[self.state][frame.type]
        self.received += 1
        if isinstance(received, Welcome):
            self.id = received.session
        return received

    def took_batches(self, sequence: int) -> None:
        """Batches were judged and taken in natively, each the next one and of this session: ``sequence`` is the number
        of the frame that comes now."""
        check(self.state is State.OPEN and self.at_frame, "batches are taken by the run in an open stream")
        self.received = sequence

    def receive_bytes(self, data: bytes | memoryview) -> list[Received]:
        """The same for bytes in any chunks (tests and simulations; production takes frames in place)."""
        return list(self.each(data))

    def each(self, data: bytes | memoryview) -> Iterator[Received]:
        """One frame after the other, as far as these bytes go."""
        self._partial += data
        while True:
            if self._awaited is None:
                if len(self._partial) < HEADER:
                    return
                self.take_header(bytes(self._partial[:HEADER]))
                del self._partial[:HEADER]
            frame = self._awaited
            if frame is None or len(self._partial) < frame.length:
                return
            body = bytes(self._partial[: frame.length])
            del self._partial[: frame.length]
            yield self.take_body(body)

    def close(self) -> None:
        """The connection has ended."""
        self.state = State.CLOSED

    # -- inside

    @property
    def _out(self) -> dict[State, dict[int, State]]:
        return FROM_PRIMARY if self.side is Side.PRIMARY else FROM_SECONDARY

    @property
    def _in(self) -> dict[State, dict[int, State]]:
        return FROM_SECONDARY if self.side is Side.PRIMARY else FROM_PRIMARY

    def _advance_out(self, state: State | None, message: Message | None, framing: int) -> None:
        assert state is not None
        self.state = state
        self.sent += 1
        self.bytes_sent += framing
        if isinstance(message, Welcome):
            self.id = message.session
