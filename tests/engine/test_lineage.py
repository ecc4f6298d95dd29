"""Lineage against the functions of the executable specification (link_model.py), written out here as they stand
there."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrepl.errors import InternalError
from pyrepl.lineage import Lineage, common, is_valid


def generation(n):
    return bytes([n]) * 16


def identity(lineage, lsn):
    for name, start in reversed(lineage):
        if lsn > start:
            return name
    return lineage[0][0]


def slow_common(a, lsn_a, b, lsn_b):
    """The last LSN at which both name the same event, going up one by one."""
    if a[0] != b[0]:
        return -1
    last = 0
    for lsn in range(1, min(lsn_a, lsn_b) + 1):
        mine = [g for g in a if g[1] < lsn]
        theirs = [g for g in b if g[1] < lsn]
        if mine != theirs:
            break
        last = lsn
    return last


@st.composite
def lineages(draw):
    starts = sorted(draw(st.lists(st.integers(0, 12), min_size=0, max_size=4)))
    names = draw(st.permutations(range(1, 7)))
    return [(generation(0), 0)] + [(generation(n), s) for n, s in zip(names, starts, strict=False)]


@settings(max_examples=100, deadline=None)
@given(lineages(), st.integers(0, 15))
def test_at_and_reached(pairs, lsn):
    lineage = Lineage(pairs)
    assert lineage.at(lsn) == identity(pairs, lsn)
    assert lineage.reached(lsn).pairs == tuple(p for p in pairs if p[1] <= lsn)
    assert Lineage.decode(lineage.encode()) == lineage
    assert lineage.starts_with(lineage.reached(lsn))


@settings(max_examples=100, deadline=None)
@given(lineages(), lineages(), st.integers(0, 15), st.integers(0, 15))
def test_common(a, b, lsn_a, lsn_b):
    assert common(Lineage(a), lsn_a, Lineage(b), lsn_b) == slow_common(a, lsn_a, b, lsn_b)
    assert common(Lineage(b), lsn_b, Lineage(a), lsn_a) == slow_common(a, lsn_a, b, lsn_b)


def test_nothing_in_common():
    assert common(Lineage([(generation(1), 0)]), 5, Lineage([(generation(2), 0)]), 5) == -1


def test_a_generation_begins():
    lineage = Lineage([(generation(1), 0)]).begin(generation(2), 7)
    assert lineage.generation == generation(2) and lineage.start == 7
    assert (lineage.at(7), lineage.at(8)) == (generation(1), generation(2))
    assert common(lineage, 9, Lineage([(generation(1), 0)]), 8) == 7


@pytest.mark.parametrize("pairs", [
    [], [(b"short", 0)], [(generation(1), 0), (generation(1), 1)], [(generation(1), 5), (generation(2), 4)],
    [(generation(1), -1)], [(generation(1), 1 << 63)],
])
def test_what_is_no_lineage(pairs):
    assert not is_valid(pairs)
    with pytest.raises(InternalError):
        Lineage(pairs)
