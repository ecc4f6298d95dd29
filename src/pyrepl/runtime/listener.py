"""The secondary's end of links in production: accepts, lets a primary feed the group that it names, acknowledges.

One thread accepts, one for each connection receives, and acknowledges what is little; one more acknowledges what is
much, and shows that this site is alive. Decides time limits, how many may knock, and who acknowledges; whether a
primary may feed a group is the replica's decision (``replica``).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pyrepl.errors import PeerError, ProtocolError, PyreplError, Refused
from pyrepl.protocol.messages import Hello
from pyrepl.protocol.session import Session, Side, State
from pyrepl.replica import Replica
from pyrepl.runtime.transport import Connection
from pyrepl.seams import Entropy

MOST_KNOCKING = 64  # connections that have not said a good hello yet
HANDSHAKE = 10.0  # seconds from accept to the end of the handshake
PROMPT = 256 << 10
"""Bytes of batches that the thread which took them in makes durable and acknowledges itself: one write of the log, and
nobody else wakes up for it. More than that goes on coming in while it is written."""
SOON = 0.02  # seconds until the applied position is looked at again while it is behind


class Failed(NamedTuple):
    """A group of this node that has failed: it is fed again when it was opened again."""

    name: str
    group_id: bytes | None  # None: not known, for it could not be opened, or is a fresh one
    why: str


class Listener:
    """Listens at one address for the primaries of all groups of a node.

    Args:
        sites: the groups of this node now; called for each hello.
        failed: those of them that have failed.
        entropy: for session numbers.
        allow: node ids that may pair with a fresh group; None: anybody who reaches the address.
        heartbeat: seconds between two of ours.
        dead: seconds of silence after which a primary is given up.
        on_received: called with the site after a batch came in, to wake its applier.
    """

    def __init__(self, sites: Callable[[], Iterable[Any]], entropy: Entropy, *, allow: set[bytes] | None = None,
                 heartbeat: float = 1.0, dead: float = 5.0, on_received: Callable[[Any], None] | None = None,
                 failed: Callable[[], Iterable[Failed]] = tuple) -> None:
        self._sites, self._failed = sites, failed
        self._entropy = entropy
        self._allow = allow
        self._heartbeat, self._dead = heartbeat, dead
        self._on_received = on_received
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._feeds: dict[int, Feed] = {}  # by id() of the site: the connection that feeds it
        self._threads: set[Feed] = set()
        self._knocking = 0
        self._stopping = False
        self._acceptor: threading.Thread | None = None
        self.bytes_received = self.bytes_sent = 0  # of ended connections, framing included
        self.refused: list[str] = []  # the last reasons, newest last

    def start(self, host: str, port: int) -> tuple[str, int]:
        """Listens; returns the address, with the port that was chosen for 0.

        Raises:
            OSError: the address cannot be had.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.create_server((host, port), family=family, backlog=MOST_KNOCKING)
        self._socket = sock
        self._acceptor = threading.Thread(target=self._accept, args=(sock,), name="pyrepl-accept", daemon=True)
        self._acceptor.start()
        name = sock.getsockname()
        return str(name[0]), int(name[1])

    def stop(self) -> None:
        """Ends all connections and threads; harmless the second time."""
        self._stopping = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            if self._acceptor is not None:
                self._acceptor.join()
            self._socket.close()
            self._socket = None
        with self._lock:
            feeds = list(self._threads)
        for feed in feeds:
            feed.end()

    def drop(self, site: Any) -> None:
        """Ends the connection that feeds this site, if there is one; its threads are gone on return."""
        with self._lock:
            feed = self._feeds.pop(id(site), None)
        if feed is not None:
            feed.end()

    def feed(self, site: Any) -> Feed | None:
        """The connection that feeds this site now."""
        with self._lock:
            return self._feeds.get(id(site))

    # ---- threads

    def _accept(self, sock: socket.socket) -> None:
        while not self._stopping:
            try:
                peer, _ = sock.accept()
            except OSError:
                if self._stopping:
                    return
                time.sleep(0.05)  # out of descriptors, or the peer is gone already
                continue
            with self._lock:
                full = self._knocking >= MOST_KNOCKING
                self._knocking += not full
            if full or self._stopping:
                peer.close()
                continue
            feed = Feed(self, Connection(peer, dead=self._dead))
            with self._lock:
                self._threads.add(feed)
            feed.start()

    def _find(self, hello: Hello) -> Any:
        failed = list(self._failed())
        sites = list(self._sites())
        failed += self._failed()  # before and after: whatever fails or is opened again meanwhile, it is found
        for site in sites:
            if site.group_id == hello.group:
                return site
        for group in failed:
            if hello.group == group.group_id or (group.group_id is None and hello.group_name == group.name):
                raise Refused(
                    f"{group.why}. Open it again on that node (pyrepl group open {group.name}) when the cause is gone: "
                    f"then the link goes on by itself",
                    reason="failed",
                    retryable=True,
                )
        for site in sites:
            if site.name == hello.group_name:  # fresh, or another group of that name: the replica says which
                return site
        for group in failed:
            if group.name == hello.group_name:
                raise Refused(
                    f"this node holds another group under the name {group.name!r}, which has failed", reason="group"
                )
        raise Refused(
            "this node has no group of that identity or name: create it there with role secondary", reason="group"
        )

    def _seat(self, site: Any, feed: Feed) -> None:
        """The newest connection of a group wins, when the older one is fenced."""
        while True:
            with self._lock:
                older = self._feeds.get(id(site))
                if older is None or older is feed:
                    self._feeds[id(site)] = feed
                    return
            older.end()
            with self._lock:
                if self._feeds.get(id(site)) is older:
                    del self._feeds[id(site)]

    def _known(self) -> None:
        with self._lock:
            self._knocking -= 1

    def _ended(self, feed: Feed) -> None:
        with self._lock:
            self._threads.discard(feed)
            self._feeds = {key: other for key, other in self._feeds.items() if other is not feed}
            self.bytes_received += feed.connection.bytes_received
            self.bytes_sent += feed.connection.bytes_sent
            if feed.error:
                self.refused = [*self.refused[-15:], feed.error]


class Feed:
    """One connection from a primary."""

    def __init__(self, listener: Listener, connection: Connection) -> None:
        self.listener = listener
        self.connection = connection
        self.session = Session(Side.SECONDARY)
        self.replica: Replica | None = None
        self.error = ""
        self._lock = threading.Lock()  # the session's: the reader takes frames in, both send
        self._voice = threading.Lock()  # held from making a frame to sending it: they go out in their order
        self._arrived = threading.Event()
        self._asked = threading.Event()
        self._prober: threading.Thread | None = None
        self._over = False
        self._thread = threading.Thread(target=self._run, name="pyrepl-feed", daemon=True)

    def _is_over(self) -> bool:
        return self._over

    @property
    def is_open(self) -> bool:
        """Whether the primary is connected and the handshake is over."""
        return not self._over and self.session.state is State.OPEN

    @property
    def link(self) -> str:
        """The name of the link, at its own site."""
        return self.replica.link if self.replica is not None else ""

    @property
    def owes(self) -> bool:
        """Whether the primary has still to be told that something is durable here."""
        return self.is_open and self.replica is not None and self.replica.owes

    def start(self) -> None:
        """Begins the handshake."""
        self._thread.start()

    def cut(self) -> None:
        """Ends the connection, and waits for nothing."""
        self.connection.shutdown()

    def end(self) -> None:
        """Ends the connection; its threads are gone on return."""
        self._over = True
        self._arrived.set()
        self._asked.set()
        self.connection.shutdown()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        acknowledger, node = None, b""
        knocking = True
        try:
            deadline = time.monotonic() + HANDSHAKE
            hello = self.connection.receive(self.session, self._lock, deadline)
            assert isinstance(hello, Hello)  # nothing else may come in state new
            node = hello.node
            site = self.listener._find(hello)
            self.replica = replica = Replica(site, self.session, self.listener._entropy, allow=self.listener._allow)
            replica.judge(hello)
            self.listener._seat(site, self)
            site.intake.ends = self._is_over
            self.connection.send(replica.receive(hello))
            while self.session.fresh:
                message = self.connection.receive(self.session, self._lock, deadline)
                answer = replica.receive(message)
                if answer:
                    self.connection.send(answer)
            self.listener._known()
            knocking = False
            self.listener._find(hello)  # it may have failed since, and cut the connections that it knew
            self.connection.greeted()
            acknowledger = threading.Thread(
                target=self._acknowledge, args=(site, replica), name="pyrepl-ack", daemon=True
            )
            acknowledger.start()
            while not self._over:
                reach = replica.reach()
                if reach is None or not self.connection.take(site.window, reach, PROMPT):
                    replica.receive(self.connection.receive(self.session, self._lock))
                    if replica.is_asked:
                        self._look(replica)
                    self._arrived.set()
                else:
                    replica.took(reach)
                    if reach.bytes > PROMPT:
                        self._arrived.set()
                    elif reach.batches:
                        site.window.make_durable(reach.position)
                        self._tell(replica)
                if self.listener._on_received is not None:
                    self.listener._on_received(site)
        except ProtocolError as error:
            self._say_why("protocol", error)
        except PeerError as error:
            self.error = "" if error.context.get("reason") in ("stop", "paused") else error.text
        except PyreplError as error:
            if self.replica is not None:
                self.replica.site.roles.sent_away(error.text, node, time.time())
            self._say_why(getattr(error, "reason", "failed"), error)
        except OSError as error:
            self.error = str(error)
        finally:
            self._over = True
            self._arrived.set()
            self.connection.shutdown()
            self._asked.set()
            for thread in (acknowledger, self._prober):
                if thread is not None:
                    thread.join()
            if knocking:
                self.listener._known()
            if self.replica is not None and self.replica.site.intake.ends == self._is_over:
                self.replica.site.intake.ends = None  # this connection, and its buffers, go
            self.session.close()
            self.listener._ended(self)
            self.connection.close()

    def _look(self, replica: Replica) -> None:
        """Wakes the thread that digests, which there is from the first probe on."""
        self._asked.set()
        if self._prober is None:
            self._prober = threading.Thread(target=self._probe, args=(replica,), name="pyrepl-probe", daemon=True)
            self._prober.start()

    def _probe(self, replica: Replica) -> None:
        try:
            while not self._over:
                self._asked.clear()
                while not self._over and replica.look():
                    self._arrived.set()
                if not self._over:
                    self._asked.wait(1.0)
        except Exception as error:
            self.error = self.error or str(error)
            self._over = True
            self.connection.shutdown()

    def _say_why(self, code: str, error: PyreplError) -> None:
        self.error = error.text
        try:
            with self._voice, self._lock:
                replica = (
                    self.replica if self.replica is not None else Replica(None, self.session, self.listener._entropy)
                )
                handshake = self.session.state in (State.NEW, State.GREETED, State.PAIRING)
                frame = (
                    replica.refuse(error)
                    if handshake and isinstance(error, Refused)
                    else replica.close(code, error.text)
                )
                self.connection.send(frame)
        except (OSError, PeerError):
            pass  # it hears why from nobody then

    def _tell(self, replica: Replica, *, heartbeat: bool = False) -> None:
        """Says how far this site is, if that is news."""
        with self._voice:
            with self._lock:
                frame = replica.acknowledge() if self.session.state is State.OPEN else b""
                if heartbeat and self.session.state is State.OPEN:
                    frame += replica.heartbeat()
                while answer := replica.answer():
                    frame += answer
            if frame:
                self.connection.send(frame)

    def _acknowledge(self, site: Any, replica: Replica) -> None:
        """Makes durable what has arrived, says so, and shows that this site is alive."""
        window = site.window
        next_heartbeat = time.monotonic()
        try:
            while not self._over:
                self._arrived.clear()
                pending = replica.pending
                if window.state().durable_position < pending:
                    window.make_durable(pending)  # what arrives meanwhile is the next one's: acknowledgements coalesce
                now = time.monotonic()
                due = now >= next_heartbeat
                self._tell(replica, heartbeat=due)
                if due:
                    next_heartbeat = now + self.listener._heartbeat
                state = window.state()
                behind = state.applied_lsn < state.end_lsn
                if replica.pending == pending:
                    self._arrived.wait(min(SOON, next_heartbeat - now) if behind else max(0.001, next_heartbeat - now))
        except Exception as error:
            self.error = self.error or str(error)
        finally:
            self._over = True
            self.connection.shutdown()
