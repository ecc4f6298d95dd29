"""A node process of the demo: ``python -m pyrepl.demo.agent``. Commands in, answers out, one JSON object a line.

It uses the public API and nothing else, as an appliance would. It ends when its input ends, so it cannot outlive its
parent.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pyrepl
from pyrepl.demo import content
from pyrepl.errors import PyreplError, UsageError

GROUP = "demo"
DEPTH = 16  # writes in flight while bulk data are written


class Agent:
    """The commands: each public method that does not begin with ``_`` is one; its result is the answer."""

    def __init__(self) -> None:
        self._node: Any = None
        self._group: Any = None
        self._writer: content.Writer | None = None
        self._history: list[content.Acknowledged] = []

    # -- the node

    def open(self, path: str) -> dict[str, Any]:
        """Opens the node in this folder, or makes it; a group that it has is opened too."""
        self._node = pyrepl.Node.open(path, create=True)
        names = [group.name for group in self._node.groups]
        if GROUP in names:
            self._group = self._node.group(GROUP)
        return {"groups": names}

    def listen(self, port: int) -> dict[str, Any]:
        """Takes connections on loopback."""
        return {"address": list(self._node.listen("127.0.0.1", port))}

    def create(
        self, journal: str, journal_size: int | None, role: str, alignment: int, force: bool = False
    ) -> dict[str, Any]:
        """Makes the group; with ``force`` on a device that holds something, which is lost."""
        self._group = self._node.create_group(
            GROUP, journal=journal, journal_size=journal_size, role=role, alignment=alignment, force=force
        )
        return {}

    def add_volume(self, name: str, device: str, size: int) -> dict[str, Any]:
        """A volume on this device, whose content is lost."""
        volume = self._group.add_volume(name, device, size=size, force=True)
        return {"size": volume.size}

    def close(self) -> dict[str, Any]:
        """Closes everything."""
        if self._writer is not None:
            self.stop_writer()
        if self._node is not None:
            self._node.close()
            self._node = self._group = None
        return {}

    # -- data

    def fill(self, volume: str, source: str, first: int, length: int) -> dict[str, Any]:
        """Writes this part of the volume from an image; what is zero in the image is zeroed."""
        target = self._group.volume(volume)
        data = 0
        flight: list[Any] = []
        for offset, chunk in content.chunks(source, target.size, first, length):
            if any(chunk):
                flight.append(target.submit_write(offset, chunk))
                data += len(chunk)
            else:
                target.zero(offset, len(chunk))
            if len(flight) >= DEPTH:
                flight.pop(0).wait()
        for ticket in flight:
            ticket.wait()
        target.flush()
        return {"bytes": data}

    def overwrite(self, volume: str, share: float, seed: int) -> dict[str, Any]:
        """Overwrites this share of the volume, in random places, with bytes that do not compress."""
        target, rng = self._group.volume(volume), random.Random(seed)
        places = list(range(0, target.size, content.CHUNK))
        rng.shuffle(places)
        flight: list[Any] = []
        written = 0
        for offset in places[: math.ceil(share * len(places))]:
            length = min(content.CHUNK, target.size - offset)
            flight.append(target.submit_write(offset, rng.randbytes(length)))
            written += length
            if len(flight) >= DEPTH:
                flight.pop(0).wait()
        for ticket in flight:
            ticket.wait()
        target.flush()
        return {"bytes": written}

    def start_writer(self, volume: str, rate: float, seed: int) -> dict[str, Any]:
        """Stamped blocks at random places, so many a second, until stop_writer."""
        target = self._group.volume(volume)
        self._writer = content.Writer(target.write, target.size // content.BLOCK, rate, seed)
        self._writer.start()
        return {}

    def written(self) -> dict[str, Any]:
        """How much the writer has written so far."""
        return {"bytes": (len(self._writer.history) if self._writer else 0) * content.BLOCK}

    def stop_writer(self) -> dict[str, Any]:
        """Stops the writer; its acknowledged writes are kept for judge."""
        writer, self._writer = self._writer, None
        if writer is None:
            raise UsageError("no writer is running: start it first")
        writer.stop()
        self._history += writer.history
        return {"writes": len(writer.history), "slowest": writer.slowest}

    # -- operations

    def snapshot(self, volume: str, name: str) -> dict[str, Any]:
        """A snapshot, performed when this returns."""
        snapshot = self._group.volume(volume).snapshot(name)
        return {
            "lsn": snapshot.lsn, "bytes_changed": snapshot.bytes_changed, "bytes_avoided": snapshot.bytes_avoided
        }

    def restore(self, volume: str, name: str) -> dict[str, Any]:
        """The volume shows the snapshot again when this returns; ``seconds`` is until a read had shown it."""
        target = self._group.volume(volume)
        before = time.monotonic()
        result = target.restore(name)
        target.read(0, content.BLOCK)
        seconds = time.monotonic() - before
        return {
            "lsn": result.lsn,
            "bytes_changed": result.bytes_changed,
            "bytes_avoided": result.bytes_avoided,
            "seconds": seconds,
        }

    # -- the link

    def add_link(self, name: str, address: str, mode: str) -> dict[str, Any]:
        """Attaches a secondary."""
        self._group.add_link(name, address, mode=mode)
        return {}

    def wait_synced(self, name: str, timeout: float) -> dict[str, Any]:
        """Returns when the secondary is consistent and has all that was written before the call."""
        self._group.link(name).wait_synced(timeout=timeout)
        return {}

    def link_status(self, name: str) -> dict[str, Any]:
        """What the primary knows of the link."""
        return dict(self._group.link(name).status())

    def wait_applied(self, lsn: int | None, link: str | None, timeout: float) -> dict[str, Any]:
        """Returns when the event (None: all up to now) is performed here (no link), or at the link's secondary."""
        self._group.wait(lsn, where=link or "primary", timeout=timeout)
        return {}

    def status(self) -> dict[str, Any]:
        """The group's status."""
        return dict(self._group.status())

    # -- judging

    def stores(self) -> dict[str, Any]:
        """The digest of every store, read through this site's read path."""
        import xxhash

        digests = {}
        for store in [*self._group.volumes, *self._group.snapshots]:
            digest = xxhash.xxh3_128()
            for offset in range(0, store.size, content.CHUNK):
                digest.update(store.read(offset, min(content.CHUNK, store.size - offset)))
            digests[store.name] = digest.hexdigest()
        return {"digests": digests}

    def judge(self, volume: str, source: str, snapshot: int, restore: int) -> dict[str, Any]:
        """Whether every acknowledged write shows that should, and everything else is the input."""
        target = self._group.volume(volume)
        show = content.expected(self._history, snapshot, restore)
        verdict = content.judge(target.read, source, target.size, show)
        return {"acknowledged": len(self._history), "showing": len(show), "lost": verdict.lost, "wrong": verdict.wrong}


def _answer(commands: dict[str, Callable[..., dict[str, Any]]], line: str) -> dict[str, Any]:
    request = json.loads(line)
    try:
        return commands[request.pop("do")](**request)
    except PyreplError as error:
        return {"error": error.code, "text": str(error)}
    except Exception as error:
        import traceback

        traceback.print_exc()
        return {"error": "internal", "text": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Serves commands until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent ends us in order
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints must not be taken for an answer
    agent = Agent()
    commands = {name: getattr(agent, name) for name in dir(Agent) if not name.startswith("_")}
    try:
        for line in sys.stdin:
            answers.write(json.dumps(_answer(commands, line), default=repr) + "\n")
            answers.flush()
    finally:
        agent.close()


if __name__ == "__main__":
    main()
