"""A site in simulation: the same compiled extension over disks in memory that remember what a power loss could leave of them.

A :class:`World` holds the disks of one node and one clock of disk events. Each disk keeps what is *stable* (flushed) and the
writes since; :meth:`World.images` enumerates what a power loss at this instant can leave: for every disk independently none, all,
or some of the writes since its last flush, the last of them possibly torn at a sector.
"""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Callable, Collection, Iterator
from itertools import count

from pyrepl._core.device import PythonDevice
from pyrepl.catalog import ImageKey
from pyrepl.options import SiteOptions
from pyrepl.seams import NoPlugins, Plugins
from pyrepl.site import Site

SECTOR = 512
PAGE = 4096
ZEROS = bytes(PAGE)
NODE = b"n" * 16


class Disk:
    """Bytes, the part of them that is stable, and the writes since the last flush. Of pages that are never changed but replaced,
    so that a copy, and what a power loss may leave, costs next to nothing however large the disk is."""

    def __init__(self, size: int, content: bytes = b"") -> None:
        self.size = max(size, len(content))
        self.pages = [content[at:at + PAGE].ljust(PAGE, b"\0") for at in range(0, len(content), PAGE)]
        self.pages += [ZEROS] * (-(-self.size // PAGE) - len(self.pages))
        self.stable = self.pages.copy()
        self.since: list[tuple[int, bytes]] = []

    def read(self, offset: int, length: int) -> bytes:
        first, end = offset // PAGE, min(offset + length, self.size)
        lead = offset - first * PAGE
        return b"".join(self.pages[first:-(-end // PAGE)])[lead:lead + max(0, end - offset)]

    def write(self, offset: int, data: bytes) -> None:
        put(self.pages, offset, data)
        self.since.append((offset, data))

    def flush(self) -> None:
        for offset, data in self.since:
            put(self.stable, offset, data)
        self.since.clear()

    def resize(self, size: int) -> None:
        """It only grows."""
        self.size = max(self.size, size)
        more = [ZEROS] * (-(-self.size // PAGE) - len(self.pages))
        self.pages += more
        self.stable += more

    def rot(self, offset: int, data: bytes) -> None:
        """What nobody wrote is there."""
        put(self.pages, offset, data)
        put(self.stable, offset, data)

    def copy(self) -> Disk:
        left = Disk(0)
        left.size, left.pages, left.stable, left.since = self.size, self.pages.copy(), self.stable.copy(), self.since.copy()
        return left

    def settled(self) -> Disk:
        """The same, with everything in it durable."""
        return self._of(self.pages.copy())

    def _of(self, pages: list[bytes]) -> Disk:
        left = Disk(0)
        left.size, left.pages, left.stable = self.size, pages, pages.copy()
        return left

    def image(self, rng: random.Random, chance: float, tear: bool) -> Disk:
        """What a power loss may leave: each write since the last flush with that chance, some of them torn."""
        pages = self.stable.copy()
        for offset, data in self.since:
            if rng.random() >= chance:
                continue
            if tear and rng.random() < 0.3:
                sectors = len(data) // SECTOR
                for i in range(sectors):  # any subset of its sectors
                    if rng.random() < 0.5:
                        put(pages, offset + i * SECTOR, data[i * SECTOR:(i + 1) * SECTOR])
                continue
            put(pages, offset, data)
        return self._of(pages)


def put(pages: list[bytes], offset: int, data: bytes) -> None:
    """The data in pages that take the place of those there."""
    at = 0
    while at < len(data):
        number, lead = divmod(offset + at, PAGE)
        part = data[at:at + PAGE - lead]
        old = pages[number]
        pages[number] = part if len(part) == PAGE else old[:lead] + part + old[lead + len(part):]
        at += len(part)


class SimulatedDevice(PythonDevice):
    """The device seam over a :class:`Disk` of a world."""

    def __init__(self, world: World, path: str) -> None:
        disk = world.disks[path]
        super().__init__(path, disk.size, world.sector_size)
        self.world = world
        self.disk = disk

    def do_read(self, offset: int, length: int) -> bytes:
        self.world.tick("read", self.name)
        return self.disk.read(offset, length)

    def do_write(self, ios: list[tuple[int, bytes, bool]]) -> None:
        for offset, data, fua in ios:
            self.world.tick("write", self.name)
            self.disk.write(offset, bytes(data))
            if fua:
                self.disk.flush()

    def do_discard(self, offset: int, length: int) -> None:
        self.world.tick("write", self.name)
        self.disk.write(offset, bytes(length))

    def do_flush(self) -> None:
        self.world.tick("flush", self.name)
        if not self.world.lying:
            self.disk.flush()

    def do_resize(self, size: int) -> None:
        self.disk.resize(size)


class World:
    """The disks of one node. It is the placement of the site too: made devices are sparse, given ones are named ``given-...``."""

    def __init__(self, *, sector_size: int = 512, disks: dict[str, Disk] | None = None) -> None:
        self.disks = disks if disks is not None else {}
        self.sector_size = sector_size
        self.ticks = 0
        self.left = 1 << 60  # what is told of the space that there is
        self.lying = False  # flushes that do nothing: to see a test fail
        self.on_tick: Callable[[str, str], None] | None = None
        self.plugins: Plugins = NoPlugins()  # of the node

    def tick(self, what: str, path: str) -> None:
        self.ticks += 1
        if self.on_tick is not None:
            self.on_tick(what, path)

    def device(self, path: str) -> SimulatedDevice:
        return SimulatedDevice(self, path)

    # the placement of the site

    def create(self, name: str, store_id: int, size: int, taken: Collection[str] = ()) -> str:
        path = next(path for n in count() if (path := f"made-{store_id}-{name}{n or ''}") not in taken)
        self.disks[path] = Disk(size)
        return path

    def room(self, path: str = "") -> int:
        return self.left

    def open(self, path: str, size: int) -> SimulatedDevice:
        self.disks[path].resize(size)
        return self.device(path)

    def open_image(self, path: str, size: int) -> SimulatedDevice:
        if path not in self.disks:
            raise FileNotFoundError(2, "no such image", path)
        return self.device(path)

    def identify(self, path: str) -> tuple[int, ...]:
        if path not in self.disks:
            raise FileNotFoundError(2, "no such image", path)
        disk = self.disks[path]
        return (disk.size, zlib.crc32(disk.read(0, disk.size)))

    def digest(self, path: str, size: int) -> bytes:
        return hashlib.sha256(self.disks[path].read(0, size)).digest()

    def resize(self, path: str, size: int) -> None:
        self.disks[path].resize(size)

    def remove(self, path: str) -> None:
        if path.startswith("made-"):
            del self.disks[path]

    # what is left of it

    def settled(self) -> World:
        """What a killed process leaves, with everything in it durable."""
        return self._of({path: disk.settled() for path, disk in self.disks.items()})

    def killed(self) -> World:
        """What a killed process leaves: everything that it wrote can be read, and is still only as durable as it was."""
        return self._of({path: disk.copy() for path, disk in self.disks.items()})

    def _of(self, disks: dict[str, Disk]) -> World:
        left = World(sector_size=self.sector_size, disks=disks)
        left.plugins = self.plugins
        return left

    def images(self, rng: random.Random, some: int) -> Iterator[World]:
        """Worlds that a power loss now can leave: nothing of what was not flushed, all of it, and ``some`` mixtures."""
        fates = [(0.0, False), (1.0, False), *((rng.choice((0.2, 0.5, 0.8, 0.95)), True) for _ in range(some))]
        seen: list[dict[str, tuple[bytes, ...]]] = []
        for chance, tear in fates:
            disks = {path: disk.image(rng, chance, tear) for path, disk in self.disks.items()}
            mark = {path: tuple(disk.pages) for path, disk in disks.items()}  # compared page by page, and most are the same
            if mark not in seen:
                seen.append(mark)
                yield self._of(disks)


def add_image(site: Site, world: World, name: str, content: bytes) -> ImageKey:
    """The site registers an image whose file, in its world, holds this."""
    path = f"image-{name}-{site.views.next_id}"
    world.disks[path] = Disk(len(content), content)
    key = ImageKey(name, len(content), world.digest(path, len(content)))
    site.gallery.add(key, path, world.identify(path))
    return key


def entropy_of(seed: int) -> Callable[[int], bytes]:
    """The entropy seam from a seed."""
    return random.Random(seed).randbytes


def small_options(*, region_size: int = 4096, alignment: int = 512, **changes: int) -> SiteOptions:
    """Options with which everything happens often: small epochs, frequent checkpoints."""
    chosen = {"epoch_bytes": 4 * region_size, "move_bytes": 2 * region_size, "checkpoint_bytes": 64 * 1024,
              "area_bytes": 64 * 1024, "ring_bytes": 4 * (4 * 1024 * 1024 + 4096), **changes}
    return SiteOptions(region_size=region_size, alignment=alignment, **chosen)


def create_site(world: World, seed: int, *, journal_size: int = 640 * 1024, role: str = "primary", node: bytes = NODE,
                options: SiteOptions | None = None) -> Site:
    """A fresh site whose journal is the disk ``journal`` of the world."""
    world.disks["journal"] = Disk(journal_size)
    site = Site.create(world.device("journal"), name="g", node_id=node, role=role, options=options or small_options(),
                       placement=world, entropy=entropy_of(seed), created_ns=0)
    site.plugins = world.plugins
    return site


def open_site(world: World, seed: int, *, node: bytes = NODE, options: SiteOptions | None = None) -> Site:
    """Recovery of the site whose journal is in the world."""
    site = Site.open(world.device("journal"), node_id=node, placement=world, entropy=entropy_of(seed),
                     options=options or small_options())
    site.plugins = world.plugins
    return site
