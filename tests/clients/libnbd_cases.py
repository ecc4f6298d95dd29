"""What libnbd sees of a server: one function a case, run by a Python that has libnbd.

    python libnbd_cases.py CASE '{"rw": URI, "ro": URI, ...}'

``rw`` is an export of 8 MiB that may be written, ``ro`` one of the same size that may not, ``away`` one whose link "away"
never had a secondary. Imports nothing of pyrepl and nothing of the tests: this is a client.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import nbd

MIB = 1 << 20
SIZE = 8 * MIB
LOOSE = 0  # a client that sends what the server should refuse


@contextmanager
def connected(uri: str, *contexts: str, strict: int | None = None, prepare: Callable[[nbd.NBD], None] | None = None
              ) -> Iterator[nbd.NBD]:
    handle = nbd.NBD()
    for context in contexts:
        handle.add_meta_context(context)
    if strict is not None:
        handle.set_strict_mode(strict)
    if prepare is not None:
        prepare(handle)
    handle.connect_uri(uri)
    try:
        yield handle
    finally:
        if not (handle.aio_is_dead() or handle.aio_is_closed()):
            handle.shutdown()


@contextmanager
def haggling(uri: str) -> Iterator[nbd.NBD]:
    """A connection that is still in the phase of options."""
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(uri)
    try:
        yield handle
    finally:
        if handle.aio_is_negotiating():
            handle.opt_abort()


@contextmanager
def fails(*codes: int) -> Iterator[None]:
    try:
        yield
    except nbd.Error as error:
        assert error.errnum in codes, f"errno {error.errnum} ({errno.errorcode.get(error.errnum)}): {error}"
    else:
        raise AssertionError(f"it did not fail (with {[errno.errorcode[code] for code in codes]})")


def extents(handle: nbd.NBD, length: int, offset: int, context: str, flags: int = 0) -> list[tuple[int, int]]:
    """(bytes, flags) of one answer."""
    found: list[tuple[int, int]] = []

    def take(name: str, start: int, entries: list[int], error: object) -> int:
        if name == context:
            assert start == offset
            found.extend(zip(entries[0::2], entries[1::2], strict=True))
        return 0

    handle.block_status(length, offset, take, flags)
    return found


def whole_map(handle: nbd.NBD, context: str, size: int = SIZE) -> list[tuple[int, int, int]]:
    """(offset, bytes, flags) of all of it, neighbours that are alike in one."""
    runs: list[tuple[int, int, int]] = []
    offset = 0
    while offset < size:
        found = extents(handle, size - offset, offset, context)
        assert found, f"no extent at {offset}"
        for length, flags in found:
            assert length > 0
            if runs and runs[-1][2] == flags:
                runs[-1] = (runs[-1][0], runs[-1][1] + length, flags)
            else:
                runs.append((offset, length, flags))
            offset += length
    return runs


# ---- what is agreed


def agreement(rw: str, ro: str, **_: str) -> None:
    with connected(rw) as h:
        assert h.get_protocol() == "newstyle-fixed"
        assert h.get_structured_replies_negotiated()
        assert h.get_size() == SIZE
        assert not h.is_read_only() and not h.is_rotational()
        assert h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero() and h.can_fast_zero()
        assert h.can_cache() and h.can_df() and h.can_multi_conn()
        least, preferred, most = (h.get_block_size(kind) for kind in
                                  (nbd.SIZE_MINIMUM, nbd.SIZE_PREFERRED, nbd.SIZE_MAXIMUM))
        assert least in (0, 1) or SIZE % least == 0
        assert preferred >= 512 and preferred & (preferred - 1) == 0
        assert most >= 32 * MIB
    with connected(ro) as h:
        assert h.is_read_only() and h.get_size() == SIZE and h.can_flush() and h.can_multi_conn()


def simple_replies(rw: str, **_: str) -> None:
    """A client that does not ask for structured replies."""
    with connected(rw, strict=LOOSE, prepare=lambda h: h.set_request_structured_replies(False)) as h:
        assert not h.get_structured_replies_negotiated()
        data = os.urandom(3 * MIB)
        h.pwrite(data, MIB)
        h.flush()
        assert h.pread(len(data), MIB) == data
        with fails(errno.EINVAL):
            h.pread(4096, SIZE)
        assert h.pread(4096, MIB) == data[:4096]
        with fails(errno.EINVAL, errno.ENOTSUP):
            h.block_status(SIZE, 0, lambda *_: 0)


def old_client(rw: str, **_: str) -> None:
    """EXPORT_NAME: a client without fixed newstyle, which then cannot ask for anything."""
    with connected(rw, prepare=lambda h: h.set_handshake_flags(0)) as h:
        assert h.get_size() == SIZE
        h.pwrite(b"old" * 100, 77)
        assert h.pread(300, 77) == b"old" * 100


def tls_is_declined(rw: str, **_: str) -> None:
    """A server without certificates says no to STARTTLS, and goes on in plain text."""
    with connected(rw, prepare=lambda h: h.set_tls(nbd.TLS_ALLOW)) as h:
        assert not h.get_tls_negotiated()
        h.pread(512, 0)


# ---- options


def listing(rw: str, ro: str, away: str, **_: str) -> None:
    found: dict[str, str] = {}
    with haggling(rw) as h:
        h.opt_list(lambda name, description: found.update({name: description}) or 0)
    wanted = {uri.partition("?")[0].rpartition("/")[2] for uri in (rw, ro, away)}
    assert wanted <= set(found), f"{found} lacks some of {wanted}"


def info_and_go(rw: str, ro: str, **_: str) -> None:
    with haggling(ro) as h:
        h.opt_info()
        assert h.is_read_only() and h.get_size() == SIZE
        h.set_export_name(rw.partition("?")[0].rpartition("/")[2])
        h.opt_info()
        assert not h.is_read_only()
        h.set_export_name("there-is-none")
        with fails(errno.ENOENT):
            h.opt_info()
        with fails(errno.ENOENT):
            h.opt_go()
        h.set_export_name(rw.partition("?")[0].rpartition("/")[2])
        h.opt_go()
        h.pread(512, 0)
        h.shutdown()


def names(rw: str, **_: str) -> None:
    """Names that no export can have are refused, and the connection goes on."""
    mine = rw.partition("?")[0].rpartition("/")[2]
    with haggling(rw) as h:
        for name in ("", "..", "../" + mine, mine + "/", mine + "\n", "-" + mine, "\u00fc", "x" * 255, "x" * 256, "x" * 4096):
            h.set_export_name(name)
            with fails(errno.ENOENT, errno.EINVAL, errno.ERANGE, errno.ENAMETOOLONG, errno.E2BIG, errno.EOVERFLOW):
                h.opt_info()
        h.set_export_name(mine)
        h.opt_go()
        h.pread(512, 0)
        h.shutdown()


def contexts(rw: str, away: str, **_: str) -> None:
    def known(uri: str, *queries: str) -> set[str]:
        found: set[str] = set()
        with haggling(uri) as h:
            for query in queries:
                h.add_meta_context(query)
            h.opt_list_meta_context(lambda name: found.add(name) or 0)
        return found

    assert known(rw) == {"base:allocation"}
    assert known(away) == {"base:allocation", "x-pyrepl:diverged/away"}
    assert known(away, "base:") == {"base:allocation"}
    assert known(away, "x-pyrepl:") == {"x-pyrepl:diverged/away"}
    assert known(away, "qemu:dirty-bitmap:x", "base:nothing", "x-pyrepl:diverged/other") == set()
    with connected(away, "base:allocation", "x-pyrepl:diverged/away", "x-pyrepl:diverged/other") as h:
        assert h.can_meta_context("base:allocation") and h.can_meta_context("x-pyrepl:diverged/away")
        assert not h.can_meta_context("x-pyrepl:diverged/other")


def abort(rw: str, **_: str) -> None:
    with haggling(rw) as h:
        h.opt_abort()
        assert h.aio_is_closed() or h.aio_is_dead()
    with connected(rw) as h:
        h.pread(512, 0)


def many_options(rw: str, **_: str) -> None:
    """A client that haggles for ever is shown out; it hurts nobody else."""
    with connected(rw) as other, haggling(rw) as h:
        h.set_export_name("there-is-none")
        done = 0
        while done < 200 and not (h.aio_is_dead() or h.aio_is_closed()):
            try:
                h.opt_info()
            except nbd.Error:
                done += 1
        assert done < 100, "options without end"
        other.pread(512, 0)


# ---- requests


def unaligned(rw: str, **_: str) -> None:
    """Requests of any offset and length, against a copy in memory."""
    rng = random.Random(1)
    with connected(rw) as h:
        shadow = bytearray(os.urandom(SIZE))
        h.pwrite(bytes(shadow[:SIZE // 2]), 0)
        h.pwrite(bytes(shadow[SIZE // 2:]), SIZE // 2)
        for _number in range(400):
            length = rng.choice((1, 17, 511, 512, 513, 4095, 4096, 4097, 65536, 200_001))
            offset = rng.randrange(SIZE - length)
            what = rng.random()
            if what < 0.4:
                data = rng.randbytes(length)
                h.pwrite(data, offset, nbd.CMD_FLAG_FUA if rng.random() < 0.2 else 0)
                shadow[offset:offset + length] = data
            elif what < 0.55:
                h.zero(length, offset, nbd.CMD_FLAG_NO_HOLE if rng.random() < 0.5 else 0)
                shadow[offset:offset + length] = bytes(length)
            elif what < 0.6:
                h.flush()
            else:
                assert h.pread(length, offset) == shadow[offset:offset + length], f"{length} bytes at {offset}"
        assert h.pread(SIZE // 2, 0) == shadow[:SIZE // 2]
        assert h.pread(SIZE // 2, SIZE // 2) == shadow[SIZE // 2:]


def zeroing(rw: str, **_: str) -> None:
    """WRITE_ZEROES with each set of flags, and TRIM: zeros are read there, and nothing beside it changed."""
    with connected(rw) as h:
        for flags in (0, nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA,
                      nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE):
            for length, offset in ((4096, 65536), (1000, 70_001), (3 * MIB, MIB), (SIZE, 0)):
                h.pwrite(b"\xaa" * SIZE, 0)
                try:
                    h.zero(length, offset, flags)
                except nbd.Error as error:
                    assert flags & nbd.CMD_FLAG_FAST_ZERO and error.errnum == errno.ENOTSUP, f"{flags}: {error}"
                    assert h.pread(SIZE, 0) == b"\xaa" * SIZE, "a refusal that changed something"
                    continue
                data = h.pread(SIZE, 0)
                assert data[offset:offset + length] == bytes(length), f"flags {flags}, {length} at {offset}"
                assert data.count(b"\xaa") == SIZE - length
        h.pwrite(b"\xaa" * SIZE, 0)
        h.trim(MIB, MIB)
        h.trim(MIB, 4 * MIB, nbd.CMD_FLAG_FUA)
        h.trim(700, 3)
        data = h.pread(SIZE, 0)
        assert data[MIB:2 * MIB] == data[4 * MIB:5 * MIB] == bytes(MIB), "what was trimmed reads as zeros at both sites"
        assert set(data[3:703]) <= {0, 0xAA}
        assert set(data[:3] + data[703:MIB] + data[2 * MIB:4 * MIB] + data[5 * MIB:]) == {0xAA}


def bounds(rw: str, **_: str) -> None:
    """Past the end, too long, or empty: an error that says so, and the connection goes on."""
    with connected(rw, "base:allocation", strict=LOOSE) as h:
        h.pwrite(b"edge" * 1024, SIZE - 4096)
        reads, writes = (errno.EINVAL,), (errno.ENOSPC, errno.EINVAL)
        for offset in (SIZE, SIZE - 1, SIZE - 512, 1 << 40, (1 << 63) - 4096):
            with fails(*reads):
                h.pread(4096, offset)
            with fails(*writes):
                h.pwrite(b"x" * 4096, offset)
            with fails(*writes):
                h.zero(4096, offset)
            with fails(*writes):
                h.trim(4096, offset)
            with fails(*reads):
                h.cache(4096, offset)
            with fails(*reads):
                h.block_status(4096, offset, lambda *_: 0)
        with fails(*reads):
            h.pread(SIZE, 1)
        with fails(*writes):
            h.zero((1 << 32) - 1, 0)
        assert h.pread(4096, SIZE - 4096) == b"edge" * 1024


def too_long(rw: str, **_: str) -> None:
    """A read of more than a request may ask for is refused; the connection, or at least the server, goes on."""
    with connected(rw, strict=LOOSE) as h, fails(errno.EINVAL, errno.EOVERFLOW, errno.ENOMEM, errno.ENOTCONN):
        h.pread(48 * MIB, 0)
    with connected(rw) as h:
        h.pread(512, 0)


def wrong_flags(rw: str, **_: str) -> None:
    """Flags that a command has not."""
    with connected(rw, strict=LOOSE) as h:
        with fails(errno.EINVAL):
            h.pread(512, 0, 1 << 9)
        with fails(errno.EINVAL):
            h.pwrite(b"x" * 512, 0, 1 << 9)
        with fails(errno.EINVAL):
            h.flush(1 << 9)
        h.pread(512, 0)


def read_only(ro: str, **_: str) -> None:
    with connected(ro, "base:allocation", strict=LOOSE) as h:
        before = h.pread(SIZE, 0)
        for attempt in (lambda: h.pwrite(b"x" * 512, 0), lambda: h.pwrite(b"x" * 512, 0, nbd.CMD_FLAG_FUA),
                        lambda: h.zero(512, 0), lambda: h.trim(512, 0)):
            with fails(errno.EPERM):
                attempt()
        h.flush()
        h.cache(4096, 0)
        assert sum(length for _, length, _ in whole_map(h, "base:allocation")) == SIZE
        assert h.pread(SIZE, 0) == before


def caching(rw: str, **_: str) -> None:
    with connected(rw) as h:
        h.pwrite(b"c" * 8192, 100)
        h.cache(SIZE, 0)
        h.cache(1, 7)
        assert h.pread(8192, 100) == b"c" * 8192


def structured_reads(rw: str, **_: str) -> None:
    """Chunks cover the request once; with DF there is one."""
    with connected(rw) as h:
        data = os.urandom(SIZE)
        h.pwrite(data, 0)
        h.trim(2 * MIB, MIB)
        want = data[:MIB] + bytes(2 * MIB) + data[3 * MIB:]
        for length, offset in ((SIZE, 0), (3 * MIB + 1, 12345), (5, MIB - 2), (2 * MIB, MIB)):
            covered: list[tuple[int, int]] = []

            def take(part: bytes, start: int, kind: int, error: object, covered: list[tuple[int, int]] = covered) -> int:
                assert kind in (nbd.READ_DATA, nbd.READ_HOLE) and error.value == 0  # type: ignore[attr-defined]
                covered.append((start, len(part)))
                return 0

            assert h.pread_structured(length, offset, take) == want[offset:offset + length]
            covered.sort()
            assert covered[0][0] == offset and sum(part for _, part in covered) == length
            assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(covered))
            if length <= 64 << 10:
                covered.clear()
                assert h.pread_structured(length, offset, take, nbd.CMD_FLAG_DF) == want[offset:offset + length]
                assert len(covered) == 1


def allocation(rw: str, **_: str) -> None:
    """base:allocation: what is said to read as zeros does, all of it is described, REQ_ONE is one extent."""
    with connected(rw, "base:allocation") as h:
        h.pwrite(b"\x55" * SIZE, 0)
        h.flush()
        assert all(not flags & 2 for _, _, flags in whole_map(h, "base:allocation"))
        h.zero(2 * MIB, 2 * MIB)
        h.trim(MIB, 6 * MIB)
        h.pwrite(b"\x66" * 4096, 3 * MIB)
        data = h.pread(SIZE, 0)
        described = whole_map(h, "base:allocation")
        assert sum(length for _, length, _ in described) == SIZE
        for offset, length, flags in described:
            assert flags & ~3 == 0
            assert not flags & 2 or data[offset:offset + length] == bytes(length), f"{length} at {offset} are not zeros"
        holes = sum(length for _, length, flags in described if flags & 2)
        assert holes >= 2 * MIB, f"of 3 MiB that were zeroed {holes} are known as zeros"
        for offset in (0, 1, 4097, 2 * MIB - 1, 2 * MIB, SIZE - 1):
            one = extents(h, SIZE - offset, offset, "base:allocation", nbd.CMD_FLAG_REQ_ONE)
            assert len(one) == 1 and 0 < one[0][0] <= SIZE - offset
        assert extents(h, 1, 5, "base:allocation")[0][0] >= 1


def divergence(away: str, **_: str) -> None:
    """x-pyrepl:diverged/LINK beside base:allocation in one answer: a link that never had a secondary differs everywhere."""
    with connected(away, "base:allocation", "x-pyrepl:diverged/away") as h:
        assert whole_map(h, "x-pyrepl:diverged/away") == [(0, SIZE, 1)]
        assert sum(length for _, length, _ in whole_map(h, "base:allocation")) == SIZE
        seen: set[str] = set()
        h.block_status(SIZE, 0, lambda name, *_: seen.add(name) or 0)
        assert seen == {"base:allocation", "x-pyrepl:diverged/away"}


def in_flight(rw: str, **_: str) -> None:
    """Many requests at once, of all kinds; answers in whatever order."""
    rng = random.Random(2)
    with connected(rw) as h:
        blocks = {number: rng.randbytes(16384) for number in range(SIZE // 16384)}
        order = list(blocks)
        rng.shuffle(order)
        waiting: dict[int, object] = {}

        def settle(most: int) -> None:
            while len(waiting) > most:
                h.poll(-1)
                for cookie in [cookie for cookie in waiting if h.aio_command_completed(cookie)]:
                    del waiting[cookie]

        for number in order:
            buffer = nbd.Buffer.from_bytearray(bytearray(blocks[number]))
            waiting[h.aio_pwrite(buffer, number * 16384, flags=rng.choice((0, 0, 0, nbd.CMD_FLAG_FUA)))] = buffer
            if rng.random() < 0.1:
                waiting[h.aio_flush()] = None
            settle(63)
        settle(0)
        h.flush()
        reads = {}
        for number in order:
            reads[number] = nbd.Buffer(16384)
            waiting[h.aio_pread(reads[number], number * 16384)] = None
            settle(63)
        settle(0)
        assert all(bytes(reads[number].to_bytearray()) == blocks[number] for number in blocks)


def several_connections(rw: str, **_: str) -> None:
    """multi-conn: what one connection wrote the others read, and a flush on one counts for all."""
    with connected(rw) as a, connected(rw) as b, connected(rw) as c:
        for number in range(50):
            data = os.urandom(4096)
            (a, b)[number % 2].pwrite(data, number * 5000)
            (b, a)[number % 2].flush()
            assert c.pread(4096, number * 5000) == data


def leaving(rw: str, **_: str) -> None:
    """Clients that go without a word, with requests in flight."""
    for _number in range(20):
        h = nbd.NBD()
        h.connect_uri(rw)
        for at in range(32):
            h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(65536)), at * 65536)
            h.aio_pread(nbd.Buffer(65536), at * 65536)
        del h
    with connected(rw) as h:
        h.pwrite(b"still here", 5)
        assert h.pread(10, 5) == b"still here"


def watching(rw: str, until: str, **_: str) -> None:
    """Reads regions of one byte each while the volume is restored to snapshots of other bytes, until a file is there: no
    request fails, and no region shows two of them."""
    rng, seen = random.Random(3), set()
    with connected(rw) as h:
        while not os.path.exists(until):
            data = h.pread(65536, rng.randrange(SIZE // 65536) * 65536)
            assert data == data[:1] * 65536, f"a region that shows {set(data)}"
            seen.add(data[0])
    print(len(seen))


def outliving(rw: str, **_: str) -> None:
    """Writes until the server has lost the right to take writes: ESHUTDOWN; what was written can still be read then, on
    the same connection. Prints how many writes were taken."""
    with connected(rw) as h:
        count = 0
        while True:
            try:
                h.pwrite(count.to_bytes(8, "big") * 512, count % 1024 * 4096, nbd.CMD_FLAG_FUA)
            except nbd.Error as error:
                assert error.errnum == errno.ESHUTDOWN, str(error)
                break
            count += 1
        for attempt in (lambda: h.zero(4096, 0), lambda: h.trim(4096, 0)):
            with fails(errno.ESHUTDOWN):
                attempt()
        last = count - 1
        assert h.pread(4096, last % 1024 * 4096) == last.to_bytes(8, "big") * 512
    print(count)


CASES = [agreement, simple_replies, old_client, tls_is_declined, listing, info_and_go, names, contexts, abort, many_options,
         unaligned, zeroing, bounds, too_long, wrong_flags, read_only, caching, structured_reads, allocation, divergence,
         in_flight, several_connections, leaving]
OTHERS = [watching, outliving]  # that other tests run, with something going on beside them


if __name__ == "__main__":
    {case.__name__: case for case in [*CASES, *OTHERS]}[sys.argv[1]](**json.loads(sys.argv[2]))
