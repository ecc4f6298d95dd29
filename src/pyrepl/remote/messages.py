"""What travels on the control socket: typed, frozen, strictly decoded values.

    client                                server
    Hello(version)                  ->
                                    <-    Welcome(version, ...), or Failure and the end
    a Request, perhaps a payload    ->
                                    <-    Progress, any number of them
                                    <-    Answer, perhaps a payload; or Failure

One request at a time on one connection; who wants more opens more. A client that ends the connection ends the waiting,
never the operation.

Decides the words of the protocol and how errors travel. Must not know sockets or nodes.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar, Union

import msgspec

from pyrepl import errors
from pyrepl.errors import ProtocolError, PyreplError, Refused, UsageError
from pyrepl.remote.requests import REQUESTS, Request, answer_type, verb
from pyrepl.remote.values import Failure, Value

VERSION = 1

A = TypeVar("A")


class Hello(Value, frozen=True, kw_only=True, tag="hello", tag_field="verb"):
    """The first frame of a client."""

    version: int


class Welcome(Value, frozen=True, kw_only=True, tag="welcome"):
    """The first frame of a server."""

    version: int
    node: str
    program: str


class Progress(Value, frozen=True, kw_only=True, tag="progress"):
    """It goes on: a status, or an event."""

    told: dict[str, Any]


class Answer(Value, frozen=True, kw_only=True, tag="answer"):
    """It is done."""

    value: Any = None


Reply = Welcome | Progress | Answer | Failure

_encoder = msgspec.msgpack.Encoder()
_replier = msgspec.msgpack.Encoder(enc_hook=str)  # of a context: what has no form of its own travels as its text
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_CLASSES: dict[str, type[PyreplError]] = {getattr(errors, name).code: getattr(errors, name) for name in errors.__all__}


@cache
def _requests() -> msgspec.msgpack.Decoder[Hello | Request[Any]]:
    """Made when the first is decoded: a client never does, and each command would wait for it."""
    return msgspec.msgpack.Decoder(Union[(Hello, *REQUESTS)])


def encode_request(request: Hello | Request[Any]) -> bytes:
    """The body of a request.

    Raises:
        UsageError: an argument that cannot travel.
    """
    try:
        return _encoder.encode(request)
    except (TypeError, OverflowError, ValueError, RecursionError) as error:
        raise UsageError(f"an argument cannot be sent to the daemon: {error}") from error


def decode_request(body: bytes) -> Hello | Request[Any]:
    """What a client asks.

    Raises:
        UsageError: no request of this version, or an argument of another type. The text names the field.
    """
    try:
        return _requests().decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"not a request of version {VERSION}: {str(error)[:200]}") from None


def encode_reply(reply: Reply) -> bytes:
    """The body of a reply."""
    return _replier.encode(reply)


def decode_reply(body: bytes) -> Reply:
    """What a server says.

    Raises:
        ProtocolError: no reply of this version.
    """
    try:
        return _replies.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the daemon's answer is of another version: {str(error)[:200]}") from None


def decode_answer(request: Request[A], answer: Answer) -> A:
    """The value of the answer to this request.

    Raises:
        ProtocolError: of another type than this version expects.
    """
    try:
        value: A = msgspec.convert(answer.value, answer_type(type(request)))
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the daemon's answer to {verb(type(request))} is of another version: {error}") from None
    return value


def failure_of(error: PyreplError) -> Failure:
    """How an error travels."""
    number, filename = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    return Failure(
        code=error.code,
        text=error.text,
        retryable=error.retryable,
        context=error.context,
        errno=number,
        filename=None if filename is None else str(filename),
    )


def error_of(failure: Failure) -> PyreplError:
    """The error that travelled: of the same class, with the same attributes."""
    error = _CLASSES.get(failure.code, PyreplError)(failure.text)
    error.retryable, error.context = failure.retryable, dict(failure.context)
    if isinstance(error, Refused):
        error.reason = str(failure.context.get("reason", error.reason))
    if isinstance(error, OSError) and failure.errno is not None:
        error.errno, error.filename = failure.errno, failure.filename
    return error
