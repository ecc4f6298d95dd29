#!/usr/bin/env python3
"""Executable specification of the replication model (docs: the link).

Run it: ``python3 divergence_model.py [runs] [seed]`` explores random histories and
stops at the first one that breaks an invariant, printing the history.

A store is a list of REGIONS regions, a region a list of CELLS cells (the unit of a write
is a cell, so a write may cover a region whole or in part).  Site P is the primary, site S
the secondary.  The journal is the one total order of events at P; an event's index is its
LSN.  The link is a position p (all events up to p were performed at S, or folded) plus one
divergence map D[store] per store: a set of region numbers.

    INV-1  for every store x and region r not in D[x]:  S[x][r] == P(p)[x][r]
           where P(p) is the state of the primary after event p
    INV-2  when p is the journal's end and every D is empty, both sites are equal
    INV-3  a restore, snapshot, refresh or sync puts no region data on the link
    INV-4  after takeover and failback only regions of D were copied
"""
import copy
import random
import sys

REGIONS, CELLS = 5, 3


class Site:
    """The stores of one site: {name: [[cell]]}. Applying an event is deterministic."""

    def __init__(self, stores):
        self.stores = stores

    def apply(self, event):
        kind = event[0]
        if kind == "write":                      # (write, store, region, first, [cells])
            _, x, r, first, cells = event
            for i, c in enumerate(cells):
                self.stores[x][r][first + i] = c
        elif kind == "copy":                     # (copy, dst, src): snapshot, restore, refresh, sync
            _, y, x = event
            self.stores[y] = copy.deepcopy(self.stores[x])
        elif kind == "delete":
            self.stores.pop(event[1], None)


def perform(D, event):
    """How D changes when the event is performed at both sites, at the same point of the order."""
    kind = event[0]
    if kind == "write":
        _, x, r, first, cells = event
        if len(cells) == CELLS:
            D[x].discard(r)                      # the whole region was overwritten alike
    elif kind == "copy":
        _, y, x = event
        D[y] = set(D[x])                         # both destinations now mirror their own source
    elif kind == "delete":
        D.pop(event[1], None)


def fold(D, event):
    """How D changes when the event happened at one site only and is never sent as itself."""
    kind = event[0]
    if kind == "write":
        D.setdefault(event[1], set()).add(event[2])
    elif kind == "copy":                         # the destination changed where it was not told to
        D.setdefault(event[1], set()).update(range(REGIONS))
    elif kind == "delete":
        D.pop(event[1], None)


class Link:
    """P's view of S. The wire is exact here; loss is modelled by reconnect()."""

    def __init__(self, journal, states, S, D, p):
        self.journal, self.states, self.S, self.D, self.p = journal, states, S, D, p
        self.leaving = {}                        # (store, region) -> LSN at which it leaves D
        self.copied = []                         # every region shipped as data

    def check(self):
        P = self.states[self.p]
        for x, regions in P.items():
            for r in range(REGIONS):
                if r not in self.D.get(x, set()):
                    assert self.S.stores[x][r] == regions[r], f"INV-1 {x}[{r}] at {self.p}"
        if self.p == len(self.journal) and not any(self.D.values()):
            assert self.S.stores == P, "INV-2"

    def _arrive(self):
        for key, lsn in list(self.leaving.items()):
            if self.p >= lsn:
                self.D.get(key[0], set()).discard(key[1])
                del self.leaving[key]

    def stream(self):
        """Send the next event as itself."""
        if self.p == len(self.journal):
            return
        event = self.journal[self.p]
        self.S.apply(event)
        self.p += 1
        perform(self.D, event)
        if event[0] in ("copy", "delete"):       # what was on its way out may have come back
            for key in [k for k in self.leaving if k[0] == event[1]]:
                del self.leaving[key]
        self._arrive()

    def overflow(self):
        """The journal is about to lose what the link has not sent: writes are folded into D,
        operations are still sent, in order, as the commands that they are."""
        while self.p < len(self.journal):
            event = self.journal[self.p]
            if event[0] == "write":
                fold(self.D, event)
                self.leaving.pop((event[1], event[2]), None)
                self.p += 1
            else:
                self.stream()
        self._arrive()

    def copy_one(self, rng):
        """Send one region of D as data, read at the journal's end, placed at position p."""
        dirty = [(x, r) for x in self.D for r in self.D[x] if (x, r) not in self.leaving]
        dirty = [(x, r) for x, r in dirty if x in self.states[-1] and x in self.S.stores]
        if not dirty:
            return
        x, r = rng.choice(dirty)
        self.S.stores[x][r] = copy.deepcopy(self.states[-1][x][r])
        self.leaving[(x, r)] = len(self.journal)
        self.copied.append((x, r))
        self._arrive()


def run(seed):
    rng = random.Random(seed)
    fresh = iter(range(1, 10**9))
    names = ["vol", "img", "snap1", "snap2"]

    def blank():
        return {n: [[0] * CELLS for _ in range(REGIONS)] for n in ("vol", "img")}

    P, journal, history = Site(blank()), [], []
    states = [copy.deepcopy(P.stores)]
    S = Site(blank())
    if rng.random() < 0.5:                       # an initial sync: nothing is known to be equal
        S.stores["vol"] = [[next(fresh)] * CELLS for _ in range(REGIONS)]
        D = {"vol": set(range(REGIONS)), "img": set()}
    else:
        D = {"vol": set(), "img": set()}
    link = Link(journal, states, S, D, 0)

    def happen(event):
        P.apply(event)
        journal.append(event)
        states.append(copy.deepcopy(P.stores))

    def random_event():
        if rng.random() < 0.65:
            x = rng.choice(sorted(P.stores))
            n = rng.choice([1, 2, CELLS])
            first = rng.randrange(CELLS - n + 1)
            return ("write", x, rng.randrange(REGIONS), first, [next(fresh) for _ in range(n)])
        if rng.random() < 0.15 and len(P.stores) > 2:
            return ("delete", rng.choice([x for x in P.stores if x not in ("vol", "img")]))
        return ("copy", rng.choice(names), rng.choice(sorted(P.stores)))

    early = None                                 # (dst, src, LSN) performed at S, not yet at P
    for _ in range(rng.randrange(5, 60)):
        roll = rng.random()
        if roll < 0.35:
            event = random_event()
            if early and event[0] == "copy" and event[1] == early[0]:
                continue
            if early and event[0] == "delete" and event[1] in early[:2]:
                continue
            if early and event[0] == "copy" and early[1] == event[1]:
                continue
            if early and event[0] == "write" and event[1] == early[0]:
                continue
            happen(event)
            history.append(event)
        elif roll < 0.70:
            link.stream()
            history.append(("stream", link.p))
        elif roll < 0.90:
            link.copy_one(rng)
            history.append(("copy_one", dict(link.D)))
        elif roll < 0.95:
            link.overflow()
            history.append(("overflow",))
        try:
            link.check()
        except AssertionError as error:
            print(f"seed {seed}: {error}")
            for h in history:
                print("  ", h)
            raise SystemExit(1)

    # Primary fails. Either its storage is attached elsewhere and the rest is streamed (claim 20) ...
    if rng.random() < 0.5:
        before = len(link.copied)
        while link.p < len(journal):
            link.stream()
        while any(link.D.values()):
            link.copy_one(rng)
        link.check()
        assert S.stores == P.stores, f"seed {seed}: drained, yet not equal"
        return len(link.copied) - before
    # ... or S takes over at p and P comes back later as its secondary (failback).
    if any(D.values()):
        return 0                                 # S is inconsistent: takeover is refused
    t = link.p
    lost = {}
    for event in journal[t:]:
        fold(lost, event)
    back_journal, back_states = [], [copy.deepcopy(S.stores)]
    backD = {x: set(lost.get(x, ())) for x in S.stores}
    for x in list(P.stores):                     # stores that S never had: configuration diverged
        if x not in S.stores:
            del P.stores[x]
    for x in S.stores:
        if x not in P.stores:
            P.stores[x] = [[None] * CELLS for _ in range(REGIONS)]
            backD[x] = set(range(REGIONS))
    back = Link(back_journal, back_states, P, backD, 0)
    allowed = {(x, r) for x in backD for r in backD[x]}
    for _ in range(rng.randrange(0, 8)):
        x = rng.choice(sorted(S.stores))
        event = ("write", x, rng.randrange(REGIONS), 0, [next(fresh)])
        S.apply(event)
        back_journal.append(event)
        back_states.append(copy.deepcopy(S.stores))
    while back.p < len(back_journal) or any(back.D.values()):
        back.stream() if rng.random() < 0.5 else back.copy_one(rng)
        back.check()
    assert P.stores == S.stores, f"seed {seed}: failback left a difference"
    assert set(back.copied) <= allowed, f"seed {seed}: INV-4"
    return len(back.copied)


def run_early(seed):
    """Claim 21: an operation is performed at S first (at e) and at P later (at n); what P wrote to
    the source in between is all that the destination can differ in."""
    rng = random.Random(seed)
    fresh = iter(range(1, 10**9))
    vol = [[0] * CELLS for _ in range(REGIONS)]
    P, S = {"vol": copy.deepcopy(vol)}, {"vol": copy.deepcopy(vol)}
    S["snap"] = copy.deepcopy(S["vol"])          # at e, on the secondary
    since = set()
    for _ in range(rng.randrange(0, 6)):         # between e and n: streamed as any write
        r, c, v = rng.randrange(REGIONS), rng.randrange(CELLS), next(fresh)
        P["vol"][r][c] = S["vol"][r][c] = v
        since.add(r)
    P["snap"] = copy.deepcopy(P["vol"])          # at n, on the primary
    for r in range(REGIONS):
        assert r in since or P["snap"][r] == S["snap"][r], f"seed {seed}: early"
    for r in since:
        S["snap"][r] = copy.deepcopy(P["snap"][r])
    assert P == S


if __name__ == "__main__":
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20000
    base = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for seed in range(base, base + runs):
        run(seed)
        run_early(seed)
    print(f"{runs} histories, 0 violations")
