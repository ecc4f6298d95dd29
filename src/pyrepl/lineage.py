"""Lineages: which history a site's position belongs to, and how far two histories agree.

An event is named by (generation, LSN). A site that becomes able to append begins a generation; its lineage is the list
of (generation, LSN after which it begins). Decides nothing about who leads; knows no journal. Values are frozen.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from pyrepl.errors import check

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
        return self.pairs[: len(other.pairs)] == other.pairs

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
    common; -1 if the two have no generation in common."""
    k = 0
    while k < min(len(a), len(b)) and a.pairs[k] == b.pairs[k]:
        k += 1
    if k == 0:
        return -1
    end_a = a.pairs[k][1] if k < len(a) else lsn_a
    end_b = b.pairs[k][1] if k < len(b) else lsn_b
    return min(end_a, end_b, lsn_a, lsn_b)
