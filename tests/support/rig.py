"""Two nodes over real TCP, a counting proxy and a cable between them, and the model that knows what each store must hold.

What is done through a rig is done through the public API and told to the model with the LSN that came back.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import pyrepl
from pyrepl.demo.proxy import Counts, Proxy
from tests.support.cable import HEADER, Cable
from tests.support.model import BLOCK, REGION, Model, content, differences, stamps
from tests.support.ports import lasting_port

MIB = 1 << 20
WAIT = 60.0
LINK = "far"
COMMAND = 1024  # bytes that an operation may cost on the wire, both directions together


def framing(payload: int) -> int:
    """The most that ``payload`` bytes of writes may cost on the wire beside themselves."""
    return payload // 50 + 4096


class Wire:
    """What crossed between two moments, as the proxy and as the product count it."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.events = self.operations = self.copied = self.sent = 0

    @property
    def forward(self) -> int:
        """From the primary to the secondary."""
        return self.counts.forward


class Rig:
    """Group "db" at both nodes.

    Args:
        place: makes the device of a given size; None: files.
    """

    def __init__(self, folder: Path, volumes: dict[str, int], *, seed: int, journal: int = 128 * MIB,
                 place: Callable[[int], str] | None = None, mode: str = "async", synced: bool = True,
                 ordering: str = "relaxed") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        print(f"seed {seed}")
        self.folder, self.seed, self.rng = folder, seed, random.Random(seed)
        self.model, self.stamp = Model(), 0
        self.unseen = 0  # bytes that the counters of an earlier process of the primary had
        self._stamping = threading.Lock()
        self._cleanup = contextlib.ExitStack()
        self._place, self._ordering = place, ordering
        try:
            self.far_node, self.far = self._make("far", "secondary", volumes, journal)
            self.address = self.far_node.listen("127.0.0.1", lasting_port())
            self.cable = Cable(self.address)
            self._cleanup.callback(self.cable.close)
            self.proxy = self._cleanup.enter_context(Proxy(("127.0.0.1", self.cable.port)))
            self.near_node, self.near = self._make("near", "primary", volumes, journal)
            self._cleanup.callback(self._close_nodes)  # before the line between them
            self.link = self.near.add_link(LINK, f"127.0.0.1:{self.proxy.port}", mode=mode)
            if synced:
                self.drain()
        except BaseException:
            self.close()
            raise

    def _make(self, name: str, role: str, volumes: dict[str, int], journal: int) -> tuple[Any, Any]:
        node = pyrepl.Node.open(self.folder / name, create=True, name=name)
        self._cleanup.callback(node.close)
        if self._place is None:
            group = node.create_group("db", self.folder / f"{name}-journal", journal_size=journal, role=role,
                                      ordering=self._ordering)
        else:
            group = node.create_group("db", self._place(journal), role=role, ordering=self._ordering)
        for volume, size in volumes.items():
            made = group.add_volume(volume, self._place(size) if self._place is not None else None, size=size)
            if role == "primary":
                self.model.made(made.lsn, {volume: size})
        return node, group

    def _close_nodes(self) -> None:
        for node in (self.near_node, self.far_node):
            with contextlib.suppress(pyrepl.PyreplError):
                node.close()

    def close(self) -> None:
        self._cleanup.close()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    # ---- what is done, and told to the model

    def write(self, store: str, offset: int, length: int) -> int:
        """A stamped write of whole blocks, up to 1 MiB."""
        with self._stamping:
            self.stamp += 1
            stamp = self.stamp
        lsn = int(self.near.store(store).write(offset, content(stamp, offset // BLOCK, length // BLOCK)))
        self.model.wrote(lsn, store, offset, length, stamp)
        return lsn

    def fill(self, store: str, offset: int, length: int, step: int = MIB) -> int:
        """Writes all of a range; returns its length."""
        for at in range(offset, offset + length, step):
            self.write(store, at, min(step, offset + length - at))
        return length

    def snapshot(self, store: str, name: str, *, wait: bool = True) -> Any:
        made = self.near.store(store).snapshot(name, wait=wait)
        self.model.made(made.lsn, {name: store})
        return made

    def group_snapshot(self, name: str, *, wait: bool = True) -> Any:
        result = self.near.snapshot(name, wait=wait)
        self.model.made(result.lsn, {f"{volume.name}-{name}": volume.name for volume in self.near.volumes})
        return result

    def restore(self, volume: str, snapshot: str, extent: tuple[int, int] | None = None, *, wait: bool = True) -> Any:
        result = self.near.volume(volume).restore(snapshot, extent=extent, wait=wait)
        self.model.copied(result.lsn, volume, snapshot, *(extent or (0, None)))
        return result

    def refresh(self, snapshot: str, volume: str) -> Any:
        result = self.near.store(snapshot).refresh()
        self.model.copied(result.lsn, snapshot, volume, 0, None)
        return result

    def synchronize(self, target: str, source: str) -> Any:
        result = self.near.store(target).synchronize(source)
        self.model.copied(result.lsn, target, source, 0, None)
        return result

    def copy_range(self, source: str, target: str, offset: int, length: int) -> Any:
        result = self.near.copy_range(source, offset, target, offset, length)
        self.model.copied(result.lsn, target, source, offset, length)
        return result

    def resize(self, volume: str, size: int) -> Any:
        result = self.near.volume(volume).resize(size, force=True)
        self.model.resized(result.lsn, volume, size)
        return result

    def delete(self, store: str) -> Any:
        result = self.near.store(store).delete()
        self.model.deleted(result.lsn, store)
        return result

    def clone(self, store: str, name: str) -> Any:
        made = self.near.store(store).clone(name)
        self.model.made(made.lsn, {name: store})
        return made

    def mark(self, name: str) -> Any:
        result = self.near.mark(name)
        self.model.nothing(result.lsn, f"mark {name}")
        return result

    @contextlib.contextmanager
    def writers(self, stores: list[str], *, threads: int = 1, pause: float = 0.001, size: int = 65536,
                least: int = 4096) -> Iterator[Writers]:
        """Writes at random places of these stores go on meanwhile."""
        writers = Writers(self, stores, threads, pause, size, least)
        try:
            yield writers
        finally:
            writers.stop()

    # ---- waiting and judging

    def drain(self) -> int:
        """Until the far site has performed everything; the LSN."""
        lsn = self.near.wait()
        self.near.flush()
        self.link.wait_synced(WAIT)
        self.near.wait(lsn, where=LINK, timeout=WAIT)
        return int(lsn)

    def check(self, group: Any, lsn: int | None = None) -> int:
        """Every store of a site that stands still is what the model says for its LSN."""
        at = int(group.wait() if lsn is None else lsn)
        stores = {store.name: store for store in [*group.volumes, *group.snapshots]}
        wanted = self.model.at(at)
        assert set(stores) == set(wanted), f"at LSN {at}: {sorted(stores)}, and must be {sorted(wanted)}"
        wrong = [text for name, store in stores.items() if (text := differences(store, wanted[name]))]
        assert not wrong, f"seed {self.seed}: at LSN {at} of group {group.name!r} ({group.role}): {wrong}"
        return at

    def look(self, timeout: float = WAIT) -> tuple[int, dict[str, np.ndarray]]:
        """The stamps that every store of the far site shows at one LSN, whatever goes on. For :meth:`judge`."""
        deadline = time.monotonic() + timeout
        while True:
            assert time.monotonic() < deadline, "the far site is never looked at in one moment"
            with contextlib.ExitStack() as stack, contextlib.suppress(pyrepl.errors.NotFound):
                views = [stack.enter_context(self.far.open_view(store)) for store in [*self.far.volumes, *self.far.snapshots]]
                names = {store.name for store in [*self.far.volumes, *self.far.snapshots]}
                if len({view.lsn for view in views}) == 1 and names == {view.store.name for view in views}:
                    return views[0].lsn, {view.store.name: stamps(view.read(0, view.size)) for view in views}

    def judge(self, looks: list[tuple[int, dict[str, np.ndarray]]]) -> None:
        """What was seen at the far site is what the model says for those LSNs."""
        seen: dict[int, list[dict[str, np.ndarray]]] = {}
        for lsn, stores in looks:
            seen.setdefault(lsn, []).append(stores)
        for lsn, wanted in self.model.walk(seen):
            for stores in seen[lsn]:
                assert set(stores) == set(wanted), f"seed {self.seed}: at LSN {lsn}: {sorted(stores)}, and must be {sorted(wanted)}"
                for name, found in stores.items():
                    assert len(found) == len(wanted[name]) and (found == wanted[name]).all(), \
                        f"seed {self.seed}: at LSN {lsn} {name} differs in blocks {np.flatnonzero(found != wanted[name])[:8]}"

    def check_both(self) -> int:
        lsn = self.drain()
        assert self.check(self.near) == self.check(self.far) == lsn
        return lsn

    @contextlib.contextmanager
    def measured(self) -> Iterator[Wire]:
        """What crosses the wire meanwhile. The sites must be drained at the end; both counters must agree."""
        wire, before, told = Wire(), *self._settled()
        yield wire
        self.drain()
        counts, after = self._settled()
        wire.counts = counts.since(before)
        wire.sent = after["wire_bytes_sent"] - told["wire_bytes_sent"]
        wire.events, wire.operations, wire.copied = (
            after["bytes_sent"][kind] - told["bytes_sent"][kind] for kind in ("events", "operations", "copied"))
        assert wire.sent == wire.counts.forward, f"the product counts {wire.sent} bytes, the proxy {wire.counts.forward}"
        for kind, told_by, seen in (("events", wire.events, wire.counts.writes), ("operations", wire.operations, wire.counts.operations),
                                    ("copied", wire.copied, wire.counts.copied)):
            headers = seen - told_by  # the product counts the batches, the proxy the frames that they travel in
            assert headers >= 0 and headers % HEADER == 0, f"{kind}: the product counts {told_by} bytes, the proxy {seen}"

    def _settled(self) -> tuple[Counts, dict[str, Any]]:
        """Both counters at a moment when nothing is under way between them."""
        deadline = time.monotonic() + WAIT
        while True:
            first, status, second = self.proxy.counts(), self.link.status(), self.proxy.counts()
            if first == second and status["wire_bytes_sent"] == first.forward - self.unseen:
                return first, status
            assert time.monotonic() < deadline, f"the product counts {status['wire_bytes_sent']}, the proxy {first}"
            time.sleep(0.01)

    # ---- restarts

    def close_far(self) -> None:
        self.far_node.close()

    def open_far(self, *, listen: bool = True) -> None:
        """The far site again; without ``listen`` nobody reaches it, so it stands still at one LSN."""
        self.far_node = pyrepl.Node.open(self.folder / "far")
        self.far = self.far_node.group("db")
        if listen:
            self.listen_far()

    def listen_far(self) -> None:
        self.far_node.listen(*self.address)

    def reopen_near(self) -> None:
        self.near_node.close()
        self.near_node = pyrepl.Node.open(self.folder / "near")
        self.near = self.near_node.group("db")
        self.link = self.near.link(LINK)


class Writers:
    """Threads that write until they are stopped."""

    def __init__(self, rig: Rig, stores: list[str], threads: int, pause: float, size: int, least: int) -> None:
        self._rig, self._pause, self._size, self._least = rig, pause, size, least
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []
        self.waits: list[float] = []
        self.payload = self.count = 0
        self._threads = [threading.Thread(target=self._run, args=(stores, rig.rng.randrange(1 << 30)), name="writer")
                         for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, stores: list[str], seed: int) -> None:
        rng = random.Random(seed)
        sizes = {name: self._rig.near.store(name).size for name in stores}
        try:
            while not self._stopping.wait(self._pause):
                store = rng.choice(stores)
                length = rng.randrange(self._least, self._size + BLOCK, BLOCK) // BLOCK * BLOCK
                offset = rng.randrange((sizes[store] - length) // BLOCK) * BLOCK
                begin = time.monotonic()
                self._rig.write(store, offset, length)
                with self._lock:
                    self.waits.append(time.monotonic() - begin)
                    self.payload += length
                    self.count += 1
        except BaseException as error:
            self._errors.append(error)
            raise

    def more(self, count: int) -> None:
        """Returns when so many more writes have returned."""
        wanted, deadline = self.count + count, time.monotonic() + WAIT
        while self.count < wanted:
            assert not self._errors and time.monotonic() < deadline, self._errors
            time.sleep(0.001)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        assert not self._errors, self._errors


__all__ = ["BLOCK", "COMMAND", "LINK", "MIB", "REGION", "WAIT", "Rig", "Wire", "Writers", "framing"]
