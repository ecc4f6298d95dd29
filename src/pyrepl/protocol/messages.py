"""The control messages of a link: small typed values, strictly decoded, every name and list bounded.

Decides what can be said and how much of it. Must not know when it may be said (``session``), nor what it leads to
(``link``, ``replica``). Arguments are ids, numbers and names: no path, command or clock value travels.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from pyrepl._core import layout
from pyrepl.errors import ProtocolError
from pyrepl.items import MOST_REFUSALS, FoundDifferent, Refusal, StoreInfo, Tail

MOST_GENERATIONS = 1024
MOST_PATH = 16  # sites above one that is fed
MOST_SIBLINGS = 8  # other secondaries of the same site of which one hears: each costs a ledger
MOST_CONTROL = 64 * 1024  # bytes of the body of a control frame
MOST_PROBED = 64 << 20  # bytes that the regions of one probe may have: what a secondary reads for it
MOST_DIGESTS = 1024  # in the answer to one probe: 16 KiB
MOST_ASKED = 4  # probes that may be unanswered
DIGEST = 16  # bytes of an XXH3-128
MOST_HELLO = 256 * 1024  # MAX_STORES stores of about 100 bytes, with names of 255 bytes some fewer

Uuid = Annotated[bytes, Meta(min_length=16, max_length=16)]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Small = Annotated[int, Meta(ge=0, lt=1 << 32)]
Name = Annotated[str, Meta(max_length=255, pattern=r"\A[A-Za-z0-9_][A-Za-z0-9._-]*\Z")]
Code = Annotated[str, Meta(max_length=32, pattern=r"\A[a-z-]+\Z")]
Text = Annotated[str, Meta(max_length=1024)]
Pairs = Annotated[list[tuple[Uuid, Count]], Meta(min_length=1, max_length=MOST_GENERATIONS)]
Stores = Annotated[list[StoreInfo], Meta(max_length=layout.MAX_STORES)]

REFUSALS = (
    "version",  # no wire version in common
    "group",  # the other site holds another group
    "identity",  # not the node that was paired, or this very node
    "role",  # the other site is a primary itself
    "alignment", "region-size", "limits",  # of the group, fixed when it was made
    "stores",  # first pairing: names or sizes that do not match
    "lineage",  # histories that have nothing in common, or a position that cannot follow
    "busy",  # not now: try again later
    "space",  # no room for what a resync overwrites
    "failed",  # the group has failed there: it goes on when it was opened again
    "state",  # closing, or held up
)
"""The closed list of reasons in a REFUSE; the last four pass by themselves."""
PASSING = ("busy", "space", "failed", "state")


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all messages."""


class Limits(Message, frozen=True):
    """What was fixed when the group was made; equal at both sites. In bytes."""

    alignment: Small
    region_size: Small
    max_event: Small
    max_payload: Small


class Hello(Message, frozen=True):
    """The primary introduces itself."""

    versions: Annotated[list[Small], Meta(min_length=1, max_length=16)]
    group: Uuid
    group_name: Name
    node: Uuid
    link: Name
    limits: Limits
    mode: Code
    lineage: Pairs
    lsn: Count  # up to which it could send now
    stores: Stores
    overrules: bool = False  # the secondary is told to lose what only it has, even if that is a split brain
    asks: bool = False  # it was started, and writes only when all its peers have answered
    path: Annotated[list[Uuid], Meta(max_length=MOST_PATH)] = []  # it is a secondary: who feeds it, nearest first
    turns: Count = 0  # of this site, as in a welcome


class Welcome(Message, frozen=True):
    """The secondary answers with where it stands. ``group`` None: fresh, to be paired."""

    version: Small
    session: Small
    group: Uuid | None
    node: Uuid
    limits: Limits
    lineage: Pairs | None
    lsn: Count  # everything up to it is durable there
    applied: Count
    item: Count  # number of the last item it holds
    consistent: bool
    stores: Stores
    yields: bool = False  # it was told to lose what only it has, even if that is a split brain
    refusals: Annotated[list[Refusal], Meta(max_length=MOST_REFUSALS)] = []  # since it was last consistent
    turns: Count = 0  # how often another node has come to feed it in place of the one before
    tail: Tail | None = None  # it was the primary, or fed beside the one who asks: what that one may lack
    different: FoundDifferent | None = None  # what a primary has told it of itself


class Refuse(Message, frozen=True):
    """No, and why; the connection ends."""

    code: Code
    text: Text
    node: Uuid | None = None  # of a primary that holds the same group: which it is, and where it stands itself
    lineage: Pairs | None = None
    lsn: Count = 0
    asks: bool = False


class Pair(Message, frozen=True):
    """First pairing: the secondary is to adopt group, lineage and store ids."""

    group: Uuid
    node: Uuid
    lineage: Pairs
    lsn: Count
    stores: Stores


class Paired(Message, frozen=True):
    """It did, durably."""

    lsn: Count


class Ack(Message, frozen=True):
    """How far the secondary is. Frame counts: the frames numbered below it. LSNs and item: up to and including."""

    received: Count
    durable: Count
    received_lsn: Count
    durable_lsn: Count
    applied_lsn: Count
    item: Count  # the last durable one
    consistent: bool  # as of what is durable
    refusals: Annotated[list[Refusal], Meta(max_length=MOST_REFUSALS)] = []  # of what has become durable since the last


class Heartbeat(Message, frozen=True):
    """Still here. ``number`` counts the sender's heartbeats. ``stands``: of a secondary that performs nothing for want
    of room: why; it takes in what comes all the same, as far as its journal has room."""

    number: Count
    stands: Text = ""
    # From a primary, when it is news: all its other secondaries, each with the last LSN at which it is known to be an
    # earlier state of the primary, or 0.
    siblings: Annotated[list[tuple[Uuid, Count]], Meta(max_length=MOST_SIBLINGS)] | None = None


class Close(Message, frozen=True):
    """The connection ends in good order; ``code`` says why (``stop``, ``paused``, ``newer``, ``protocol``,
    ``failed``)."""

    code: Code
    text: Text


class Probe(Message, frozen=True):
    """The primary asks for digests of what a store shows as of a verification: one for each ``per`` regions of
    ``count`` from ``first`` on."""

    lsn: Count
    store: Small
    first: Count
    count: Small
    per: Small


class Digests(Message, frozen=True):
    """The answer: XXH3-128, 16 bytes each, the last of what is left; or none, and why."""

    lsn: Count
    store: Small
    first: Count
    digests: Annotated[bytes, Meta(max_length=DIGEST * MOST_DIGESTS)]
    problem: Text


class Forget(Message, frozen=True):
    """The comparison is over: nobody asks as of this LSN any more."""

    lsn: Count


TYPES: dict[int, type[Message]] = {1: Hello, 2: Welcome, 3: Refuse, 4: Pair, 5: Paired, 6: Ack, 7: Heartbeat, 8: Close,
                                   9: Probe, 10: Digests, 11: Forget}
NUMBERS: dict[type[Message], int] = {kind: number for number, kind in TYPES.items()}
LIMITS: dict[int, int] = {number: MOST_HELLO if kind in (Hello, Welcome, Pair) else MOST_CONTROL
                          for number, kind in TYPES.items()}

_encoder = msgspec.msgpack.Encoder()
_decoders = {number: msgspec.msgpack.Decoder(kind) for number, kind in TYPES.items()}


def encode(message: Message) -> tuple[int, bytes]:
    """The frame type and the body of a message.

    Raises:
        ProtocolError: it would be longer than its limit (too many stores with long names).
    """
    number = NUMBERS[type(message)]
    body = _encoder.encode(message)
    if len(body) > LIMITS[number]:
        raise ProtocolError(f"a {type(message).__name__} of {len(body)} bytes is longer than {LIMITS[number]}")
    return number, body


def decode(number: int, body: bytes | memoryview) -> Message:
    """The message of this frame type.

    Raises:
        ProtocolError: not one that this version knows. The text does not repeat what came.
    """
    try:
        return _decoders[number].decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the body of a {TYPES[number].__name__} is malformed: {str(error)[:120]}") from None


def limits(alignment: int, region_size: int) -> Limits:
    """The limits of a group as this version keeps them."""
    return Limits(
        alignment=alignment, region_size=region_size, max_event=layout.MAX_EVENT, max_payload=layout.MAX_PAYLOAD
    )
