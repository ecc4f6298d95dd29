"""The primary's end of a link in production: dials, sends, hears, and dials again.

One thread dials and sends, one more for each connection receives. Decides waiting, back-off and when the log is made
durable for the link's sake; what is sent is the link's decision (``link``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from pyrepl._core.window import WindowState
from pyrepl.errors import PeerError, ProtocolError, PyreplError, Refused
from pyrepl.link import SYNC, Link
from pyrepl.outgoing import Out, Plan
from pyrepl.protocol.messages import Ack
from pyrepl.protocol.session import Session, Side
from pyrepl.runtime.bucket import Bucket
from pyrepl.runtime.transport import Connection
from pyrepl.seams import Entropy

FLUSH_EVERY = 0.005
"""Seconds between two flushes of the log that an async link asks for: a flush costs about a millisecond of the disk,
and the secondary is behind by no more than this for it. A sync link's writers wait for it: there it is at once."""
WAKE = 0.02  # seconds until the sender looks again while it waits for an acknowledgement or a checkpoint
IDLE = 0.2  # seconds until it looks for stop and pause while nothing is written
PAUSED = 10.0  # seconds that pause waits for the connection to end; one that hangs is cut long before
REFUSED = 5.0  # seconds until a refusal is asked about again
PASSES = 10.0  # seconds in which a refusal that passes by itself (busy) is nothing that anybody need hear of


class Dialer:
    """Keeps one link connected until :meth:`stop`.

    Args:
        link: its ``guard`` is used as it is: a real lock, shared by all links of the site.
        entropy: for the jitter of the back-off.
        judge_lag: called whenever the secondary may have got further, or writers: whether these have to wait.
    """

    def __init__(self, link: Link, entropy: Entropy, judge_lag: Callable[[], None] = lambda: None) -> None:
        self.link = link
        self._judge_lag = judge_lag
        self._entropy = entropy
        self._stopping = False
        self._hurried = False
        self._wake = threading.Event()
        self._connection: Connection | None = None
        self._dialled = self._wanted  # by which the connection, or the attempt at one, was begun
        self._bucket = Bucket(link.options.bandwidth)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"pyrepl-send-{link.name}", daemon=True)
        self.bytes_sent = self.bytes_received = 0  # of ended connections, framing included
        self.failure: BaseException | None = None  # ours: the link has stopped
        self._erred: float | None = None  # when the link's last error came, seconds since 1970
        self._busy_since: float | None = None  # the first of the refusals in a row that pass by themselves
        self._refused_since: float | None = None  # the first of all in a row, seconds since 1970

    # ---- from any thread

    def start(self) -> None:
        """Begins to dial."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the connection in good order and the threads; harmless the second time."""
        self._stopping = True
        self._nudge()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def pause(self) -> None:
        """Ends the connection until :meth:`resume`; it has ended on return, unless the peer hangs. It stays paused over
        a restart once a checkpoint was taken."""
        with self.guard:
            self.link.paused = True
        self._nudge()
        deadline = time.monotonic() + PAUSED
        while self._connection is not None and self.link.paused and time.monotonic() < deadline:
            time.sleep(0.002)

    def resume(self) -> None:
        """Dials again."""
        with self.guard:
            self.link.paused = False
        self._wake.set()

    def changed(self) -> None:
        """The link's options or address are others: they hold from here on. Another address ends the connection and
        makes another; another time of silence, too, for who waits on the socket already has the old one."""
        self._bucket.set_rate(self.link.options.bandwidth)
        self._nudge()

    def status(self) -> dict[str, Any]:
        """The link's status, and what crossed the wire in all."""
        with self.guard:
            status = self.link.status()
        connection = self._connection
        status["wire_bytes_sent"] = self.bytes_sent + (connection.bytes_sent if connection else 0)
        status["wire_bytes_received"] = self.bytes_received + (connection.bytes_received if connection else 0)
        status["last_error_time"] = self._erred if status["last_error"] else None
        status["refused_since"] = self._refused_since if status["last_error"] else None
        if self.failure is not None:
            status["last_error_time"], status["refused_since"] = self._erred, None
            status["state"], status["last_error"] = "down", f"the link has failed: {self.failure}"
        return status

    @property
    def local_host(self) -> str:
        """The address of this machine by which it reaches the secondary; empty: there is no connection."""
        connection = self._connection
        try:
            return connection.local_host if connection is not None else ""
        except OSError:  # it ends just now
            return ""

    def hurry(self) -> None:
        """Dials at once, however long it would have waited."""
        self._hurried = True
        self._wake.set()

    def redial(self) -> None:
        """Ends the connection, if there is one, and dials at once."""
        self.hurry()
        connection = self._connection
        if connection is not None:
            connection.shutdown()

    def wake(self) -> None:
        """The link has something to say."""
        self._wake.set()

    @property
    def guard(self) -> AbstractContextManager[Any]:
        """The link's."""
        return self.link.guard

    def _nudge(self) -> None:
        self._wake.set()
        connection = self._connection
        if connection is not None and not self._is_wanted():
            # The sender says goodbye if it is free to; a send that hangs is ended by the shutdown that follows.
            timer = threading.Timer(0.5, connection.shutdown)
            timer.daemon = True
            timer.start()

    def _is_wanted(self) -> bool:
        """Whether the connection, or the attempt at one, is to go on."""
        return (not self._stopping and not self.link.paused and self._wanted == self._dialled
                and not self.link.is_stale)

    @property
    def _wanted(self) -> tuple[str, float]:
        return self.link.address, self.link.options.dead

    # ---- the sender's thread

    def _run(self) -> None:
        try:
            delay = self.link.options.backoff_first
            while not self._stopping:
                if self.link.paused:
                    with self.guard:
                        self.link.disconnect(state="paused")
                    self._sleep(IDLE)
                    continue
                before, asks_first = self.link.connections, self.link.asks_first
                wait = self._connect_once()
                if self.link.connections > before and not asks_first:
                    delay = self.link.options.backoff_first
                jitter = 0.5 + int.from_bytes(self._entropy(2), "little") / 131072
                self._sleep(max(wait, delay) * jitter)
                moved = self._wanted != self._dialled
                delay = self.link.options.backoff_first if moved else min(delay * 2, self.link.options.backoff_most)
        except BaseException as error:
            self.failure, self._erred = error, time.time()
            with self.guard:
                self.link.disconnect(f"the link has failed: {error}", "down")
            if not isinstance(error, Exception):
                raise

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        link, paused = self.link, self.link.paused
        while not self._stopping and link.paused == paused and (left := end - time.monotonic()) > 0:
            if self._wanted != self._dialled or self._hurried:
                break
            self._wake.wait(left)
            self._wake.clear()
        self._hurried = False

    def _connect_once(self) -> float:
        """One connection from dialling to its end; seconds to wait at least before the next."""
        link, receiver = self.link, None
        error, state, wait = "", "down", 0.0
        if link.wants_checkpoint:
            link.site.checkpoint()
        self._dialled = address, dead = self._wanted
        try:
            connection = self._connection = Connection.dial(
                address, dead=dead, bucket=self._bucket, wanted=self._is_wanted
            )
        except OSError as problem:
            self._busy_since = self._refused_since = None
            with self.guard:
                self._erred = time.time()
                link.disconnect(f"{address}: {problem.strerror or problem}", "down")
            return 0.0
        session = Session(Side.PRIMARY)
        self._error = None
        try:
            with self.guard:
                hello = link.connect(session)
            connection.send(hello)
            if not self._is_wanted():
                self._nudge()  # whoever asked for it saw no connection yet
            deadline = time.monotonic() + 10.0
            while not link.is_open:
                message = connection.receive(session, self.guard, deadline)
                with self.guard:
                    answer = link.receive(message)
                if answer:
                    connection.send(answer)
            connection.greeted()
            self._erred = time.time()  # the link has one, if more is lost than was known
            if not link.asks_first:  # else it is refused again, or takes what it could not take before
                self._busy_since = self._refused_since = None
            receiver = threading.Thread(target=self._receive, args=(connection, session), daemon=True,
                                        name=f"pyrepl-hear-{link.name}")
            receiver.start()
            self._stream(connection)
            if self._error is not None:
                raise self._error
            with self.guard:
                goodbye = link.close("paused" if link.paused else "stop", "")
            connection.send(goodbye)
        except Refused as problem:
            error, state = problem.text, self._state_after(problem)
            wait = 0.0 if problem.retryable else REFUSED
            self._say_why(connection, "refused", problem)
        except ProtocolError as problem:
            error = problem.text
            self._say_why(connection, "protocol", problem)
        except (OSError, PeerError) as problem:
            error = str(problem)
        finally:
            connection.shutdown()
            if receiver is not None:
                receiver.join()
            with self.guard:
                self._erred = time.time() if error else self._erred
                link.disconnect(error, state)
            self._connection = None
            self.bytes_sent += connection.bytes_sent
            self.bytes_received += connection.bytes_received
            connection.close()
        return wait

    def _state_after(self, refusal: Refused) -> str:
        """What a refusal makes of the link. One that passes by itself is none before it has lasted."""
        self._refused_since = self._refused_since if self._refused_since is not None else time.time()
        if not refusal.retryable:
            self._busy_since = None
            return "diverged" if refusal.reason == "lineage" else "refused"
        now = time.monotonic()
        self._busy_since = self._busy_since if self._busy_since is not None else now
        return "refused" if now - self._busy_since > PASSES else "connecting"

    def _say_why(self, connection: Connection, code: str, error: PyreplError) -> None:
        try:
            with self.guard:
                goodbye = self.link.close(code, error.text)
            connection.send(goodbye)
        except (OSError, PeerError):
            pass  # it hears why from nobody then

    def _stream(self, connection: Connection) -> None:
        link, window = self.link, self.link.site.window
        next_heartbeat = time.monotonic()
        flushed = 0.0
        while self._is_wanted() and self._error is None:
            now = time.monotonic()
            if now >= next_heartbeat:
                with self.guard:
                    frame = link.heartbeat()
                connection.send(frame)
                next_heartbeat = now + link.options.heartbeat
            self._wake.clear()
            self._judge_lag()
            state = window.state()
            with self.guard:
                probe = link.probe()
                steady = link.stream.is_steady(state.durable_position)
            if probe:
                connection.send(probe)
            if not steady and self._send_one(connection, state):
                continue
            if state.written_position > state.durable_position:
                rest = 0.0 if link.mode == SYNC else flushed + FLUSH_EVERY - now
                if rest > 0 and self._wake.wait(rest):
                    continue  # an acknowledgement is no reason to flush sooner
                window.make_durable(window.state().written_position)
                flushed = time.monotonic()
                continue
            self._rest(state, next_heartbeat - now)

    def _rest(self, state: WindowState, until_heartbeat: float) -> None:
        """Nothing can be sent: waits for what may change that."""
        link = self.link
        with self.guard:
            wants_checkpoint = link.wants_checkpoint
            steady = link.stream.is_steady(state.durable_position)
        if wants_checkpoint:
            link.site.checkpoint()
        elif steady:
            link.site.window.wait_written(state.written_position, max(0.001, min(until_heartbeat, IDLE)))
        else:
            self._wake.wait(WAKE)  # acknowledgements set it

    def _send_one(self, connection: Connection, state: WindowState) -> bool:
        """Sends the next frame; False: there is none now."""
        link = self.link
        with self.guard:
            plan: Out | Plan | None = link.stream.plan(state.durable_position)
        if isinstance(plan, Plan):
            step = plan.step
            plan.fetch()
            with self.guard:
                out = link.stream.place(plan)
            if out is None:
                return step is None  # a note was passed, or it was folded: plan again; a copy that is void can wait
        else:
            out = plan
        if out is None:
            return False
        connection.send_out(out)
        return True

    # ---- the receiver's thread

    def _receive(self, connection: Connection, session: Session) -> None:
        try:
            while True:
                message = connection.receive(session, self.guard)
                while isinstance(message, Ack) and connection.has_more:
                    later = connection.receive(session, self.guard)
                    if message.refusals or not isinstance(later, Ack):  # else it says all that this one does
                        with self.guard:
                            self.link.receive(message)
                    message = later
                with self.guard:
                    self.link.receive(message)
                self._judge_lag()
                self._wake.set()
        except Exception as error:
            self._error = error
        finally:
            connection.shutdown()
            self._wake.set()
