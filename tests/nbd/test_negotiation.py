"""The negotiation byte for byte, without sockets: what is answered, what ends it, what it may cost.

Rules are those of doc/proto.md of NetworkBlockDevice/nbd; rows of reliability.md 4.1 are tests with the CVE's number.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyrepl.errors import NotFound, Refused
from pyrepl.nbd import negotiation
from pyrepl.nbd.negotiation import MOST_BYTES, MOST_OPTIONS, Answer, Flag, Negotiation, Option, Shape, State

OPTION = struct.Struct(">QII")
MAGIC = 0x49484156454F5054
FIXED, NO_ZEROES = 1, 2
LENGTHS = [0, 1, 5, 6, 7, 255, 256, 4096, 4097, MOST_BYTES - 20, MOST_BYTES - 19, MOST_BYTES, 2**31 - 1, 2**31, 2**32 - 1]
LINKS = ("x-pyrepl:diverged/paris", "x-pyrepl:diverged/rome")
VM = Shape(size=3 << 30, read_only=False, preferred=4096, description="volume vm of group db",
           contexts=("base:allocation", *LINKS))
SNAP = Shape(size=1 << 20, read_only=True, preferred=65536)


class Exports:
    """``vm`` and ``snap``; ``held`` cannot be shown, ``secret`` is not for this client."""

    def __init__(self):
        self.shapes = {"vm": VM, "snap": SNAP, "": VM, "n" * 255: SNAP}

    def names(self):
        return ["vm", "snap"]

    def shape(self, name):
        if name == "held":
            raise Refused("there is no consistent state to show yet: wait for the first synchronization", reason="view")
        if name in self.shapes:
            return self.shapes[name]
        raise NotFound(f"there is no export {name!r} (there are: vm, snap)")


def option(number, data=b"", length=None):
    return OPTION.pack(MAGIC, number, len(data) if length is None else length) + data


def info(name, *wanted, number=Option.GO, length=None, count=None):
    raw = name if isinstance(name, bytes) else name.encode()
    data = struct.pack(">I", len(raw) if length is None else length) + raw
    data += struct.pack(">H", len(wanted) if count is None else count)
    return option(number, data + b"".join(struct.pack(">H", item) for item in wanted))


def contexts(name, *queries, number=Option.SET_META_CONTEXT, length=None, count=None, query_length=None):
    raw = name.encode()
    data = struct.pack(">I", len(raw) if length is None else length) + raw
    data += struct.pack(">I", len(queries) if count is None else count)
    for query in queries:
        data += struct.pack(">I", len(query) if query_length is None else query_length) + query
    return option(number, data)


def replies(answer):
    """[(option, type, data)], and nothing is left over."""
    found = []
    while answer:
        magic, number, kind, length = struct.unpack_from(">QIII", answer)
        assert magic == 0x3E889045565A9 and len(answer) >= 20 + length
        found.append((number, kind, answer[20 : 20 + length]))
        answer = answer[20 + length :]
    return found


def begun(flags=FIXED | NO_ZEROES, **options):
    talk = Negotiation(Exports(), **options)
    assert talk.receive(struct.pack(">I", flags)) == b"" and talk.state is State.OPTIONS
    return talk


def only(answer):
    """The one reply: (type, data)."""
    ((_, kind, data),) = replies(answer)
    return kind, data


def ended(talk):
    assert talk.state is State.ENDED and talk.reason and talk.choice is None
    assert talk.receive(option(Option.LIST) * 3) == b"" and talk.rest == b""
    return True


# ---- the beginning


def test_the_greeting():
    assert Negotiation(Exports()).greet() == b"NBDMAGICIHAVEOPT\x00\x03"


@pytest.mark.parametrize("flags", [0, FIXED, NO_ZEROES, FIXED | NO_ZEROES])
def test_client_flags_of_the_protocol(flags):
    begun(flags)


@pytest.mark.parametrize("flags", [4, 8, 0x10000, 0x80000000, 0xFFFFFFFF, FIXED | 4])
def test_unknown_client_flags_end_it(flags):
    talk = Negotiation(Exports())
    assert talk.receive(struct.pack(">I", flags) + option(Option.LIST)) == b"" and ended(talk)


def test_oldstyle_and_other_protocols_end_it():
    for hello in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"SSH-2.0-x\r\n", b"NBDMAGIC"):
        talk = Negotiation(Exports())
        assert talk.receive(hello) == b"" and ended(talk)


def test_a_wrong_magic_ends_it():
    talk = begun()
    assert talk.receive(OPTION.pack(MAGIC ^ 1, Option.LIST, 0)) == b"" and ended(talk)


# ---- every option in every state

NUMBERS = [*Option, 0, 4, 11, 12, 255, 2**31, 2**32 - 1]
GOOD = {  # what each option looks like when it is in order
    Option.EXPORT_NAME: option(Option.EXPORT_NAME, b"vm"),
    Option.INFO: info("vm", number=Option.INFO),
    Option.GO: info("vm"),
    Option.LIST_META_CONTEXT: contexts("vm", number=Option.LIST_META_CONTEXT),
    Option.SET_META_CONTEXT: contexts("vm", b"base:allocation"),
}


def good(number):
    return GOOD.get(number, option(number))


PLAIN = {  # without certificates: the last answer, and the state after it
    Option.EXPORT_NAME: (None, State.CHOSEN), Option.ABORT: (Answer.ACK, State.ENDED), Option.LIST: (Answer.ACK, State.OPTIONS),
    Option.STARTTLS: (Answer.POLICY, State.OPTIONS), Option.INFO: (Answer.ACK, State.OPTIONS), Option.GO: (Answer.ACK, State.CHOSEN),
    Option.STRUCTURED_REPLY: (Answer.ACK, State.OPTIONS), Option.LIST_META_CONTEXT: (Answer.INVALID, State.OPTIONS),
    Option.SET_META_CONTEXT: (Answer.INVALID, State.OPTIONS),
}  # fmt: skip
BEFORE_TLS = {Option.EXPORT_NAME: (None, State.ENDED), Option.ABORT: (Answer.ACK, State.ENDED), Option.STARTTLS: (Answer.ACK, State.TLS)}
INSIDE_TLS = {**PLAIN, Option.STARTTLS: (Answer.INVALID, State.OPTIONS)}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("where", ["plain", "before-tls", "inside-tls", "structured"])
def test_every_option_in_every_state(where, number):
    talk = begun(tls=where.endswith("tls"))
    table, otherwise = PLAIN, (Answer.UNSUPPORTED, State.OPTIONS)
    if where == "before-tls":
        table, otherwise = BEFORE_TLS, (Answer.TLS_REQUIRED, State.OPTIONS)
    elif where == "inside-tls":
        assert only(talk.receive(option(Option.STARTTLS))) == (Answer.ACK, b"")
        talk, table = talk.inside(), INSIDE_TLS
    elif where == "structured":
        talk.receive(option(Option.STRUCTURED_REPLY))
        table = {**PLAIN, Option.LIST_META_CONTEXT: (Answer.ACK, State.OPTIONS), Option.SET_META_CONTEXT: (Answer.ACK, State.OPTIONS)}
    answer = talk.receive(good(number))
    kind, state = table.get(number, otherwise)
    assert talk.state is state
    if kind is None:
        assert answer == (struct.pack(">QH", VM.size, VM.flags(structured=where == "structured")) if state is State.CHOSEN else b"")
    else:
        got = replies(answer)
        assert got[-1][1] == kind and all(reply[0] == number for reply in got)
    assert (talk.choice is not None) == (state is State.CHOSEN)


@pytest.mark.parametrize("number", NUMBERS)
def test_options_before_the_client_flags_end_it(number):
    talk = Negotiation(Exports())
    assert talk.receive(good(number)) == b"" and ended(talk)


@pytest.mark.parametrize("number", [Option.LIST, Option.STRUCTURED_REPLY, Option.STARTTLS])
def test_data_where_there_may_be_none(number):
    talk = begun(tls=number == Option.STARTTLS)
    assert only(talk.receive(option(number, b"x")))[0] == Answer.INVALID and talk.state is State.OPTIONS
    assert talk.receive(option(number))  # and it goes on


def test_abort_may_carry_data():
    talk = begun()
    assert only(talk.receive(option(Option.ABORT, b"so long"))) == (Answer.ACK, b"") and ended(talk)


def test_nothing_is_answered_behind_a_choice():
    talk = begun()
    talk.receive(info("vm") + option(Option.LIST))
    assert talk.state is State.CHOSEN and talk.rest == option(Option.LIST)
    assert talk.receive(b"more") == b""


# ---- what each says


def test_list():
    talk = begun()
    assert [(kind, data) for _, kind, data in replies(talk.receive(option(Option.LIST)))] == [
        (Answer.SERVER, b"\0\0\0\2vm"), (Answer.SERVER, b"\0\0\0\4snap"), (Answer.ACK, b"")]


def test_export_name_with_and_without_zeros():
    for flags, zeros in ((FIXED, bytes(124)), (FIXED | NO_ZEROES, b"")):
        talk = begun(flags)
        want = struct.pack(">QH", VM.size, VM.flags(structured=False)) + zeros
        assert talk.receive(option(Option.EXPORT_NAME, b"vm")) == want
        assert talk.choice == negotiation.Choice("vm", VM, False, {})


def test_export_name_of_nothing_ends_it_silently():
    for name in (b"missing", b"held", b"\xff\xfe", b"n" * 256, b"n" * 4097):
        talk = begun()
        assert talk.receive(option(Option.EXPORT_NAME, name)) == b"" and ended(talk)


def test_info_tells_all_that_is_wanted_and_go_chooses():
    for number, state in ((Option.INFO, State.OPTIONS), (Option.GO, State.CHOSEN)):
        talk = begun()
        got = replies(talk.receive(info("vm", 1, 2, 3, 77, number=number)))
        assert [data for _, kind, data in got if kind == Answer.INFO] == [
            struct.pack(">HQH", 0, VM.size, VM.flags(structured=False)), b"\0\1vm", b"\0\2volume vm of group db",
            struct.pack(">HIII", 3, 1, 4096, 32 << 20)]
        assert got[-1] == (number, Answer.ACK, b"") and talk.state is state


def test_go_has_no_zeros_even_for_old_clients():
    talk = begun(FIXED)
    assert replies(talk.receive(info("vm")))[-1][1:] == (Answer.ACK, b"")


def test_the_default_export():
    for request in (info(""), option(Option.EXPORT_NAME)):
        talk = begun()
        talk.receive(request)
        assert talk.state is State.CHOSEN and talk.choice.shape == VM


def test_flags_that_are_told():
    always = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_FUA | Flag.CAN_MULTI_CONN | Flag.SEND_CACHE
    changes = Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES | Flag.SEND_FAST_ZERO
    for name, want in (("vm", always | changes), ("snap", always | Flag.READ_ONLY)):
        for structured in (False, True):  # "MUST leave SEND_DF clear if structured replies have not been negotiated"
            talk = begun()
            if structured:
                talk.receive(option(Option.STRUCTURED_REPLY))
            data = replies(talk.receive(info(name)))[0][2]
            assert struct.unpack(">HQH", data)[2] == want | (Flag.SEND_DF if structured else 0)


@pytest.mark.parametrize(("name", "answer"), [
    ("", Answer.ACK), ("n" * 255, Answer.ACK), ("n" * 256, Answer.TOO_BIG), ("n" * 4096, Answer.TOO_BIG),
    ("n" * 4097, Answer.INVALID), ("missing", Answer.UNKNOWN), ("held", Answer.SHUTDOWN), ("VM", Answer.UNKNOWN),
    ("vm\0", Answer.UNKNOWN), ("../vm", Answer.UNKNOWN), ("vm\n", Answer.UNKNOWN), ("é", Answer.UNKNOWN)])
@pytest.mark.parametrize("number", [Option.INFO, Option.GO, Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
def test_names(number, name, answer):
    talk = begun()
    talk.receive(option(Option.STRUCTURED_REPLY))
    asked = info(name, number=number) if number in (Option.INFO, Option.GO) else contexts(name, number=number)
    assert replies(talk.receive(asked))[-1][1] == answer
    assert talk.state is (State.CHOSEN if number == Option.GO and answer == Answer.ACK else State.OPTIONS)


def test_missing_and_forbidden_are_told_alike():
    answers = {begun().receive(info(name)) for name in ("missing", "secret", "another")}
    assert len(answers) == 1 and only(answers.pop())[0] == Answer.UNKNOWN


def test_a_name_that_is_no_utf8_is_an_unknown_one():
    assert begun().receive(info(b"\xff\xc0vm")) == begun().receive(info("missing"))


def test_an_export_that_is_held_says_why():
    assert only(begun().receive(info("held"))) == (
        Answer.SHUTDOWN, b"there is no consistent state to show yet: wait for the first synchronization")


# ---- contexts


@pytest.mark.parametrize(("queries", "found"), [
    ([], VM.contexts), ([b"base:allocation"], ["base:allocation"]), ([b"base:"], ["base:allocation"]),
    ([b"x-pyrepl:"], LINKS), ([b"x-pyrepl:diverged/"], LINKS), ([b"x-pyrepl:diverged/rome"], LINKS[1:]),
    ([b"base:", b"base:allocation", b"x-pyrepl:diverged/paris"], ["base:allocation", LINKS[0]]),
    ([b"base:alloc"], []), ([b"qemu:"], []), ([b""], []), ([b":"], []), ([b"base"], []), ([b"\xff:"], []), ([b"x" * 4096], [])])
def test_listing_contexts(queries, found):
    talk = begun()
    talk.receive(option(Option.STRUCTURED_REPLY))
    *listed, end = replies(talk.receive(contexts("vm", *queries, number=Option.LIST_META_CONTEXT)))
    assert [data for _, kind, data in listed] == [bytes(4) + name.encode() for name in found] and end[1:] == (Answer.ACK, b"")


@pytest.mark.parametrize(("queries", "chosen"), [
    ([], {}), ([b"base:"], {}), ([b"x-pyrepl:"], {}), ([b"base:nothing"], {}), ([b"base:allocation"], {1: "base:allocation"}),
    ([b"x-pyrepl:diverged/rome", b"base:allocation", b"x-y:z"], {1: "base:allocation", 3: LINKS[1]})])
def test_choosing_contexts(queries, chosen):
    """Wildcards select nothing; the ids are those that the client is told."""
    talk = begun()
    talk.receive(option(Option.STRUCTURED_REPLY))
    *told, end = replies(talk.receive(contexts("vm", *queries)))
    assert {struct.unpack_from(">I", data)[0]: data[4:].decode() for _, kind, data in told if kind == Answer.META_CONTEXT} == chosen
    assert end[1] == Answer.ACK
    talk.receive(info("vm"))
    assert talk.choice == negotiation.Choice("vm", VM, True, chosen)


def test_contexts_of_another_export_do_not_count():
    talk = begun()
    talk.receive(option(Option.STRUCTURED_REPLY) + contexts("vm", b"base:allocation") + info("snap"))
    assert talk.choice.name == "snap" and talk.choice.contexts == {}


@pytest.mark.parametrize("bad", [contexts("missing", b"base:allocation"), contexts("vm", b"base:allocation", count=2)])
def test_a_choice_of_contexts_that_fails_undoes_the_one_before(bad):
    talk = begun()
    talk.receive(option(Option.STRUCTURED_REPLY) + contexts("vm", b"base:allocation"))
    assert only(talk.receive(bad))[0] in (Answer.UNKNOWN, Answer.INVALID)
    talk.receive(info("vm"))
    assert talk.choice.contexts == {}


@pytest.mark.parametrize(("count", "answer"), [(63, Answer.ACK), (64, Answer.ACK), (65, Answer.TOO_BIG)])
def test_the_most_queries(count, answer):
    talk = begun()
    talk.receive(option(Option.STRUCTURED_REPLY))
    asked = contexts("vm", *[b"base:allocation"] * count)
    assert replies(talk.receive(asked))[-1][1] == answer and talk.state is State.OPTIONS


# ---- limits


@pytest.mark.parametrize("count", [MOST_OPTIONS - 1, MOST_OPTIONS, MOST_OPTIONS + 1])
def test_the_most_options(count):
    talk = begun()
    answer = talk.receive(option(99) * count)
    assert len(replies(answer)) == min(count, MOST_OPTIONS) and (talk.state is State.ENDED) == (count > MOST_OPTIONS)


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_the_most_bytes_of_options(over):
    """The client flags and all options together; what is behind the limit is not even looked at."""
    talk = begun()
    first = option(99, bytes(8000))
    second = option(Option.ABORT, bytes(MOST_BYTES + over - 4 - len(first) - OPTION.size))
    (_, kind, _), (number, last, _) = replies(talk.receive(first + second))
    assert (number, kind) == (Option.ABORT, Answer.UNSUPPORTED) and ended(talk)
    assert last == (Answer.TOO_BIG if over > 0 else Answer.ACK)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_length_of_an_option(number, length):
    """Nothing is waited for that will not be taken: a length beyond the limit is answered and ends it."""
    talk = begun()
    answer = talk.receive(option(number, length=length))
    if length > MOST_BYTES - 4 - OPTION.size:
        assert only(answer)[0] == Answer.TOO_BIG and ended(talk)
    elif length:
        assert answer == b"" and talk.state is State.OPTIONS and len(talk.rest) == OPTION.size
    else:
        assert talk.state is not State.GREETING


@pytest.mark.parametrize("number", [Option.INFO, Option.GO])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_length_of_a_name(number, length):
    talk = begun()
    kind, data = replies(talk.receive(info("vm", number=number, length=length)))[-1][1:]
    assert kind == Answer.INVALID and talk.state is State.OPTIONS


@pytest.mark.parametrize("count", [1, 2, 255, 32767, 32768, 65535])
def test_every_count_of_wanted_items(count):
    assert only(begun().receive(info("vm", count=count)))[0] == Answer.INVALID
    assert only(begun().receive(info("vm", 1, 1, 1, count=count)))[0] == Answer.INVALID


@pytest.mark.parametrize("number", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
@pytest.mark.parametrize("field", ["length", "count", "query_length"])
@pytest.mark.parametrize("value", LENGTHS)
def test_every_length_among_contexts(number, field, value):
    talk = begun()
    talk.receive(option(Option.STRUCTURED_REPLY))
    asked = contexts("vm", b"base:", b"x:", number=number, **{field: value})
    kind = replies(talk.receive(asked))[-1][1]
    too_big = field == "count" and value > 64
    assert kind == (Answer.TOO_BIG if too_big else Answer.INVALID) or (field == "length" and kind == Answer.TOO_BIG)
    assert talk.state is State.OPTIONS


def test_an_info_too_short_for_its_fields():
    whole = struct.pack(">I2sH", 2, b"vm", 0)
    for cut in range(len(whole)):
        assert only(begun().receive(option(Option.GO, whole[:cut])))[0] == Answer.INVALID
    assert only(begun().receive(option(Option.GO, whole + b"\0")))[0] == Answer.INVALID


# ---- TLS


def test_tls_begins_anew_and_keeps_nothing():
    talk = begun(tls=True)
    for early in (option(Option.STRUCTURED_REPLY), contexts("vm", b"base:allocation"), info("vm"), option(Option.LIST), option(99)):
        assert only(talk.receive(early))[0] == Answer.TLS_REQUIRED
    assert only(talk.receive(option(Option.STARTTLS))) == (Answer.ACK, b"") and talk.state is State.TLS
    inner = talk.inside()
    assert only(inner.receive(contexts("vm", b"base:allocation")))[0] == Answer.INVALID  # structured replies are not kept
    inner.receive(info("vm"))
    assert inner.choice == negotiation.Choice("vm", VM, False, {})


def test_starttls_twice():
    talk = begun(tls=True)
    talk.receive(option(Option.STARTTLS))
    inner = talk.inside()
    assert only(inner.receive(option(Option.STARTTLS)))[0] == Answer.INVALID and inner.state is State.OPTIONS


def test_bytes_count_on_both_sides_of_starttls():
    talk = begun(tls=True)
    talk.receive(option(99, bytes(10000)) + option(Option.STARTTLS))
    inner = talk.inside()
    assert only(inner.receive(option(99, length=10000)))[0] == Answer.TOO_BIG and ended(inner)


# ---- any bytes, in any pieces

NAMES = st.sampled_from(["vm", "snap", "", "missing", "held", "n" * 255, "n" * 256])
SENSE = st.one_of(
    st.sampled_from(NUMBERS).map(good),
    st.tuples(NAMES, st.lists(st.integers(0, 5), max_size=4), st.sampled_from([Option.INFO, Option.GO])).map(
        lambda t: info(t[0], *t[1], number=t[2])),
    st.tuples(NAMES, st.lists(st.sampled_from([b"base:", b"base:allocation", b"x-pyrepl:", b""]), max_size=4),
              st.sampled_from([Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])).map(lambda t: contexts(t[0], *t[1], number=t[2])),
    st.tuples(st.sampled_from(NUMBERS), st.binary(max_size=40)).map(lambda t: option(*t)),
    st.tuples(st.sampled_from(NUMBERS), st.sampled_from(LENGTHS)).map(lambda t: option(t[0], length=t[1])),
    st.integers(6000, 9000).map(lambda n: option(99, bytes(n))),
)
STREAMS = st.tuples(
    st.sampled_from([b"\0\0\0\3", b"\0\0\0\1", b"\0\0\0\0", b"\0\0\0\7", b""]), st.lists(SENSE, max_size=12), st.binary(max_size=40)
).map(lambda t: t[0] + b"".join(t[1]) + t[2])


@settings(max_examples=150, deadline=None)
@example(stream=b"\0\0\0\3" + option(99, bytes(16000)) + info("vm") * 30, tls=False, cuts=[])
@example(stream=b"\0\0\0\3" + option(Option.STARTTLS) + b"x", tls=True, cuts=[])
@given(stream=STREAMS, tls=st.booleans(), cuts=st.lists(st.integers(0, 300), max_size=8))
def test_pieces_make_no_difference(stream, tls, cuts):
    whole, single, pieces = (Negotiation(Exports(), tls=tls) for _ in range(3))
    answer = whole.receive(stream)
    bytewise = b"".join(single.receive(stream[i : i + 1]) for i in range(len(stream)))
    other, at = b"", 0
    for cut in cuts:
        other += pieces.receive(stream[at : at + cut])
        at += cut
    other += pieces.receive(stream[at:])
    if tls and State.TLS in (whole.state, single.state, pieces.state):
        return  # what is pipelined behind STARTTLS ends it only if it is there already: see below
    assert answer == bytewise == other
    for talk in (single, pieces):
        assert (talk.state, talk.choice, talk.reason, talk.rest) == (whole.state, whole.choice, whole.reason, whole.rest)


@settings(max_examples=300, deadline=None)
@given(stream=st.one_of(STREAMS, st.binary(max_size=300)), tls=st.booleans(), size=st.integers(1, 4096))
def test_any_bytes_raise_nothing_and_wait_in_bounds(stream, tls, size):
    talk = Negotiation(Exports(), tls=tls)
    for at in range(0, len(stream), size):
        answer = talk.receive(stream[at : at + size])
        if talk.state is not State.CHOSEN:
            replies(answer)
        if talk.state not in (State.GREETING, State.OPTIONS):
            break
        assert len(talk.rest) <= MOST_BYTES
    if talk.state is State.ENDED:
        assert talk.rest == b"" and talk.reason


def test_a_flood_is_not_kept():
    """64 MiB without an end, with headers that promise one."""
    talk, flood = begun(), option(99, length=8000) + bytes(8000 + 4096)
    sent = 0
    while talk.state is State.OPTIONS:
        talk.receive(flood[sent % len(flood) :][:4096])
        sent += 4096
        assert len(talk.rest) <= MOST_BYTES and sent < 64 << 20
    assert sent <= MOST_BYTES + 4096


# ---- what past mistakes of others teach (reliability.md 4.1)


def test_cve_2005_3534_a_length_beyond_the_buffer():
    for length in (MOST_BYTES, 2**31, 2**32 - 1):
        talk = begun()
        talk.receive(option(Option.GO, length=length) + bytes(8192))
        assert ended(talk)


def test_cve_2022_26495_a_name_length_that_wraps():
    for length in (2**32 - 1, 2**32 - 2, 2**32 - 4, 2**31):
        assert only(begun().receive(info("vm", length=length)))[0] == Answer.INVALID


def test_cve_2022_26496_discarded_input_is_not_read_into_something_small():
    """An unknown option as long as may be: taken, answered, and the next one is understood."""
    talk = begun()
    got = replies(talk.receive(option(4, b"\xff" * 8000) + option(Option.LIST)))
    assert [kind for _, kind, _ in got] == [Answer.UNSUPPORTED, Answer.SERVER, Answer.SERVER, Answer.ACK]


def test_cve_2017_15118_one_limit_for_names():
    assert only(begun().receive(info("n" * 4096)))[0] == Answer.TOO_BIG
    assert replies(begun().receive(info("n" * 255)))[-1][1] == Answer.ACK


def test_cve_2017_15119_gigabytes_are_not_read_to_be_dropped():
    talk = begun()
    assert only(talk.receive(option(99, length=2**32 - 1)))[0] == Answer.TOO_BIG and ended(talk)


CANARY = b"CANARY"


def test_cve_2020_10761_nothing_of_the_input_is_in_an_error():
    name = (CANARY * 900)[:4096].decode()
    for bad in (info(name), info(name[:255]), info(name + "xx"), info("vm", length=77) + CANARY, option(77, CANARY * 99),
                option(Option.LIST, CANARY), contexts(name[:255], CANARY), contexts("vm", CANARY, query_length=9999)):
        for structured in (False, True):
            talk = begun()
            if structured:
                talk.receive(option(Option.STRUCTURED_REPLY))
            answer = talk.receive(bad)
            assert CANARY not in answer
            assert all(len(data) <= 1024 for _, kind, data in replies(answer))


def test_cve_2017_7539_cut_at_every_byte():
    stream = struct.pack(">I", 3) + option(Option.STRUCTURED_REPLY) + contexts("vm", b"base:") + info("vm", 3)
    for end in range(len(stream)):
        talk = Negotiation(Exports())
        talk.receive(stream[:end])
        assert talk.state in (State.GREETING, State.OPTIONS) and talk.choice is None


def test_cve_2019_14850_nothing_is_opened_before_the_choice():
    asked = []

    class Watched(Exports):
        def shape(self, name):
            asked.append(name)
            return super().shape(name)

    talk = Negotiation(Watched(), tls=True)
    talk.receive(b"\0\0\0\3" + info("vm") + info("vm", number=Option.INFO) + option(Option.LIST) + option(Option.EXPORT_NAME, b"vm"))
    assert asked == [] and ended(talk)  # not even looked up without TLS


def test_cve_2021_3716_plain_text_behind_starttls_ends_it():
    for behind in (b"x", info("vm"), option(Option.ABORT)):
        talk = begun(tls=True)
        assert talk.receive(option(Option.STARTTLS) + behind) == b"" and ended(talk)
