"""Lineages: which history a site's position belongs to, and how far two histories agree.

An event is named by (generation, LSN). A site that becomes able to append begins a generation; its lineage is the list
of (generation, LSN after which it begins). Decides nothing about who leads; knows no journal. Values are frozen.

    root   a lineage does not grow for ever: of more than KEPT generations the oldest are folded into one pair, a digest
           of them all in place of a generation. Folding more later is the same as folding all of it at once. So a
           lineage with a root is compared with one that still has those generations, or an older root: what the root
           stands for is equal to the last pair, or it is not. Rule lineage_root: whatever was folded and when, two
           lineages have the fork that they have unfolded; or none, where it lies in what one has folded
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from pyrepl.errors import check

KEPT = 512  # generations, the newest; messages and items have room for twice as many
Pairs = list[tuple[bytes, int]]


class Lineage:
    """A frozen list of (generation: 16 bytes, start LSN), starts never falling.

    Raises:
        InternalError: empty, a generation that is not 16 bytes or comes twice, starts that fall.
    """

    __slots__ = ("_starts", "pairs")

    pairs: tuple[tuple[bytes, int], ...]

    def __init__(self, pairs: Iterable[tuple[bytes, int]]) -> None:
        self.pairs = tuple((bytes(generation), start) for generation, start in pairs)
        self._starts = [start for _, start in self.pairs]
        check(is_valid(self.pairs), "a lineage is a list of distinct generations of 16 bytes whose starts do not fall")

    @property
    def generation(self) -> bytes:
        """The last generation: what is appended now belongs to it."""
        return self.pairs[-1][0]

    @property
    def start(self) -> int:
        """The LSN after which the last generation begins."""
        return self.pairs[-1][1]

    def at(self, lsn: int) -> bytes:
        """The generation of the event at this LSN: the last one that begins before it."""
        return self.pairs[max(0, bisect_left(self._starts, lsn) - 1)][0]

    def reached(self, lsn: int) -> Lineage:
        """The part that a site at this position has reached: the first generation, and all that begin at or before
        it."""
        return Lineage(self.pairs[: max(1, bisect_right(self._starts, lsn))])

    def begin(self, generation: bytes, lsn: int) -> Lineage:
        """The lineage of a site that begins a generation after this LSN."""
        return Lineage((*self.pairs, (generation, lsn)))

    def pruned(self, lsn: int, keep: int = KEPT) -> Lineage:
        """The same with a root in place of the oldest, so that ``keep`` remain beside it; none is folded that begins
        after this LSN."""
        count = min(len(self.pairs) - keep, bisect_right(self._starts, lsn))
        if count < 2:
            return self
        root = self.pairs[0][0]
        for generation, start in self.pairs[1:count]:
            root = _folded(root, generation, start)
        return Lineage(((root, self.start_of_all), *self.pairs[count:]))

    @property
    def start_of_all(self) -> int:
        """The LSN after which the first generation begins."""
        return self.pairs[0][1]

    def _count_folded(self, root: bytes) -> int:
        """How many of the first generations this root stands for; 0: it is none of this lineage."""
        own = self.pairs[0][0]
        for count, (generation, start) in enumerate(self.pairs[1:], 2):
            own = _folded(own, generation, start)
            if own == root:
                return count
        return 0

    def aligned(self, other: Lineage) -> tuple[int, int] | None:
        """How many of the first pairs of the two stand for the same generations; None: nothing is known to."""
        if self.pairs[0] == other.pairs[0]:
            return 1, 1
        if count := other._count_folded(self.pairs[0][0]):
            return 1, count
        if count := self._count_folded(other.pairs[0][0]):
            return count, 1
        return None

    @property
    def generations(self) -> set[bytes]:
        """All of them."""
        return {generation for generation, _ in self.pairs}

    def tail(self, lsn: int, fork: int) -> set[bytes]:
        """The generations of the events after ``fork`` that a site at ``lsn`` of this lineage holds."""
        ends = [*self._starts[1:], lsn]
        return {
            generation
            for (generation, start), end in zip(self.pairs, ends, strict=True)
            if max(start, fork) < min(end, lsn)
        }

    def starts_with(self, other: Lineage) -> bool:
        """Whether ``other`` is an earlier part of this one."""
        at = self.aligned(other)
        if at is None:
            return False
        rest = other.pairs[at[1]:]
        return self.pairs[at[0] : at[0] + len(rest)] == rest

    def encode(self) -> Pairs:
        """As a list of pairs, for messages, items and checkpoints."""
        return list(self.pairs)

    @classmethod
    def decode(cls, pairs: Iterable[tuple[bytes, int]]) -> Lineage:
        """From a list of pairs (a peer's was judged before: :func:`is_valid`)."""
        return cls((bytes(generation), int(start)) for generation, start in pairs)

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lineage) and self.pairs == other.pairs

    def __hash__(self) -> int:
        return hash(self.pairs)

    def __repr__(self) -> str:
        return "Lineage(" + ", ".join(f"{generation.hex()[:8]}@{start}" for generation, start in self.pairs) + ")"


def is_valid(pairs: Iterable[tuple[bytes, int]]) -> bool:
    """Whether a peer's list of pairs is a lineage: for the judge of messages and items."""
    pairs = list(pairs)
    generations = {generation for generation, _ in pairs}
    starts = [start for _, start in pairs]
    return (
        len(pairs) > 0
        and len(generations) == len(pairs)
        and all(len(generation) == 16 for generation in generations)
        and all(0 <= start < 1 << 63 for start in starts)
        and starts == sorted(starts)
    )


def common(a: Lineage, lsn_a: int, b: Lineage, lsn_b: int) -> int:
    """The fork: the last position that a site at ``lsn_a`` of lineage ``a`` and one at ``lsn_b`` of ``b`` have in
    common; -1 if the two have no generation in common, or only such as one of them has folded."""
    at = a.aligned(b)
    if at is None:
        return -1
    i, j = at
    while i < len(a) and j < len(b) and a.pairs[i] == b.pairs[j]:
        i, j = i + 1, j + 1
    if (i, j) == at != (1, 1):
        return -1  # where the root of one ends, and nobody can say in which generation what follows it was written
    end_a = a.pairs[i][1] if i < len(a) else lsn_a
    end_b = b.pairs[j][1] if j < len(b) else lsn_b
    return min(end_a, end_b, lsn_a, lsn_b)


def _folded(root: bytes, generation: bytes, start: int) -> bytes:
    return hashlib.sha256(root + generation + start.to_bytes(8, "little")).digest()[:16]
