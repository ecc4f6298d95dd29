"""Lineage against the functions of the executable specification (link_model.py), written out here as they stand
there."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrepl.errors import InternalError
from pyrepl.lineage import KEPT, Lineage, common, is_valid
from tests.support.simulation import World, create_site, open_site


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


# ---- roots


@st.composite
def long_pair(draw):
    """Two histories that begin alike, each with what it has pruned, in one go or several."""
    def more(first, start, names):
        pairs = list(first)
        for name in names:
            start += draw(st.integers(0, 3))
            pairs.append((generation(name), start))
        return pairs, start

    trunk, end = more([(generation(0), 0)], 0, range(1, draw(st.integers(1, 9))))
    made = []
    for names in (range(20, 20 + draw(st.integers(0, 5))), range(40, 40 + draw(st.integers(0, 5)))):
        pairs, last = more(trunk[:draw(st.integers(1, len(trunk)))], end, names)
        lsn = max(last, pairs[-1][1]) + draw(st.integers(0, 3))
        pruned = Lineage(pairs)
        for _ in range(draw(st.integers(0, 2))):
            pruned = pruned.pruned(draw(st.integers(0, 30)), draw(st.integers(1, 6)))
        made.append((Lineage(pairs), pruned, lsn))
    return made


@settings(max_examples=600, deadline=None)
@given(long_pair())
def test_a_root_never_changes_where_two_histories_part(made):
    """Rule lineage_root: the fork is the same, or there is none that anybody could name."""
    (a, pruned_a, lsn_a), (b, pruned_b, lsn_b) = made
    fork = common(a, lsn_a, b, lsn_b)
    found = common(pruned_a, lsn_a, pruned_b, lsn_b)
    assert found in (fork, -1)
    assert common(pruned_b, lsn_b, pruned_a, lsn_a) == found
    kept = {pair for pair in pruned_a.pairs[1:]} & {pair for pair in pruned_b.pairs[1:]}
    if kept & set(a.pairs) & set(b.pairs) and a.pairs[1:2] == b.pairs[1:2]:
        alike = next((i for i, (x, y) in enumerate(zip(a.pairs, b.pairs, strict=False)) if x != y), min(len(a), len(b)))
        if any(pair in kept for pair in a.pairs[:alike]):
            assert found == fork, "a generation that both have kept"
    if found >= 0:
        assert pruned_a.tail(lsn_a, found) == a.tail(lsn_a, found) or len(pruned_a.pairs) < 2 or found < pruned_a.pairs[1][1]
        assert pruned_a.starts_with(pruned_b) == a.starts_with(b)


def test_folding_again_is_folding_at_once():
    lineage = Lineage([(generation(n), 3 * n) for n in range(20)])
    at_once = lineage.pruned(60, 5)
    assert len(at_once) == 6 and at_once.pairs[1:] == lineage.pairs[15:] and at_once.pairs[0][1] == 0
    assert lineage.pruned(60, 12).pruned(60, 8).pruned(60, 5) == at_once
    assert lineage.pruned(20, 5).pairs[1:] == lineage.pairs[7:], "what begins later is not folded"
    assert lineage.pruned(60, 20) is lineage and lineage.pruned(60, 19) is lineage
    assert at_once.generation == lineage.generation and at_once.at(58) == lineage.at(58)
    other = Lineage([*lineage.pairs[:10], (generation(99), 27), *lineage.pairs[10:]])
    assert common(at_once, 60, other, 60) == -1, "another generation among those that are folded"
    assert common(at_once, 60, lineage, 60) == 60 and common(at_once, 60, Lineage(lineage.pairs[:15]), 44) == -1


def test_a_checkpoint_may_have_folded_what_the_log_still_tells():
    """Started and killed again and again, with a checkpoint but before anything is stepped: the notes of generations that the
    checkpoint has folded stand behind where its scan begins, and do not begin a second time."""
    world = World()
    site = create_site(world, 3, journal_size=6 << 20)
    known = [*site.end.lineage.pairs]
    for number in range(KEPT + 30):
        site.checkpoint()
        site.abandon()
        site = open_site(world, 100 + number)
        known.append(site.end.lineage.pairs[-1])
        assert len(site.end.lineage) <= KEPT + 2
        if number % 50 == 49 or number > KEPT + 20:
            told = Lineage(known)
            assert site.end.lineage.starts_with(told) and told.starts_with(site.end.lineage), number
    assert site.end.lineage.pairs[0] != tuple(known[0]), "some are folded"
    site.close()
