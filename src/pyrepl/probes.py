"""A verification as the primary's side of one link keeps it: what may differ anyway, what is asked, what came back.

    streamed   the operation takes its place in the stream; operations that follow may carry a difference on, from store
               to store
    resolved   the secondary has it, and everything before it with what came of that: D as of that place is no alarm
    ask        digests of regions of the secondary's view; at most MOST_ASKED at a time are unanswered
    spread     regions that differ as of the verification, as of a later place: the algebra of D, without what was
               overwritten since (a superset)

Decides what is asked when, and what a difference is as of now. Must not know threads, nor how digests are made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pyrepl._core.regions import RegionMap
from pyrepl.divergence import Divergence
from pyrepl.errors import ProtocolError
from pyrepl.knowledge import Knowledge, Performed
from pyrepl.operations import Compared, Effect, effects_there
from pyrepl.protocol import messages
from pyrepl.protocol.frames import HEADER
from pyrepl.protocol.messages import DIGEST, MOST_ASKED, Digests, Probe


class Asked(NamedTuple):
    """``count`` regions of a store from ``first`` on, one digest for each ``per`` of them."""

    store: int
    first: int
    count: int  # type: ignore[assignment]  # a field, although a tuple has a method of that name
    per: int


class Probing:
    """Of one verification on one link. Called with the link's guard held, as the link is."""

    def __init__(self, token: bytes, wake: Callable[[], None] = lambda: None) -> None:
        self.token = token
        self.wake = wake  # something has changed
        self.lsn = 0  # 0: the operation has not taken its place in the stream
        self.anyway: dict[int, RegionMap] = {}  # D at that place, as is known by now, of what the secondary has
        self.bytes_on_wire = 0
        self.problem = ""
        self.answers: dict[Asked, bytes] = {}
        self._sizes: dict[int, int] = {}  # in regions, of all stores at that place
        self._since: dict[int, Sequence[Effect]] = {}  # operations after it, by LSN
        self._waiting: deque[Asked] = deque()
        self._sent: deque[Asked] = deque()

    def streamed(self, effect: Performed, ahead: Knowledge, region_size: int) -> None:
        """An operation has taken its place in the stream; ``ahead`` knows it already."""
        operation = effect.operation
        if isinstance(operation, Compared) and operation.token == self.token:
            self.lsn = effect.lsn
            maps = ahead.divergence.maps
            self.anyway = {store: maps[store].copy() for store in operation.stores if store in maps}
            self._sizes = {store.id: store.size // region_size for store in ahead.catalog}
            self._since.clear()
        elif self.lsn:
            self._since[effect.lsn] = effects_there(operation, region_size)

    def resolved(self, effect: Performed, base: Knowledge) -> None:
        """It is known what came of an operation; ``base`` knows it already. What was refused, before it or of it, was
        not expected when it was streamed, and is no alarm either."""
        operation = effect.operation
        if isinstance(operation, Compared) and operation.token == self.token:
            maps = base.divergence.maps
            self.anyway = {store: maps[store].copy() for store in operation.stores if store in maps}

    def spread(self, store: int, different: RegionMap, lsn: int) -> dict[int, RegionMap]:
        """The regions that differ at ``lsn`` if these did as of the verification, by store."""
        divergence = Divergence({number: RegionMap(size) for number, size in self._sizes.items()})
        divergence.enter(store, different)
        for at in sorted(self._since):
            if at <= lsn:
                divergence.perform(self._since[at])
        return {number: regions for number, regions in divergence.maps.items() if regions}

    def missed(self, refused: set[int]) -> None:
        """A connection has ended before it was heard that operations were refused, of these LSNs. D as of the
        verification is not what it was thought to be, and nobody can tell now what it was."""
        if self.lsn and any(lsn <= self.lsn for lsn in refused):
            self.problem = (f"the connection ended before it was known that the operation at LSN {min(refused)} was "
                            f"not performed there; its data are on their way: verify again")
            self.wake()

    # ---- asking

    def ask(self, asked: Asked) -> None:
        """It is sent when it can be; the answer is in ``answers`` when it has come."""
        self._waiting.append(asked)

    def has_to_say(self) -> bool:
        """Whether a probe may be sent now."""
        return bool(self._waiting) and len(self._sent) < MOST_ASKED

    def say(self) -> Probe:
        """The next probe."""
        asked = self._waiting.popleft()
        self._sent.append(asked)
        probe = Probe(lsn=self.lsn, store=asked.store, first=asked.first, count=asked.count, per=asked.per)
        self.bytes_on_wire += HEADER + len(messages.encode(probe)[1])
        return probe

    def broken(self) -> None:
        """The connection has ended: what was not answered is asked again on the next."""
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()
        self.wake()

    def heard(self, answer: Digests) -> None:
        """An answer: to the oldest question.

        Raises:
            ProtocolError: it is none.
        """
        asked = self._sent[0] if self._sent else None
        if asked is None or (answer.lsn, answer.store, answer.first) != (self.lsn, asked.store, asked.first):
            raise ProtocolError("digests that nobody asked for")
        if not answer.problem and len(answer.digests) != -(-asked.count // asked.per) * DIGEST:
            raise ProtocolError(f"{len(answer.digests)} bytes of digests for {asked.count} regions")
        self._sent.popleft()
        self.bytes_on_wire += HEADER + len(messages.encode(answer)[1])
        if answer.problem:
            self.problem = answer.problem
        else:
            self.answers[asked] = answer.digests
        self.wake()
