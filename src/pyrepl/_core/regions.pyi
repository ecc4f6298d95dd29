"""RegionMap: one bit per region."""
from collections.abc import Iterator

import numpy as np
from typing_extensions import Buffer

class RegionMap:
    """Which regions of a store are marked. Regions are numbered from 0. Arguments out of range raise ValueError.
    A map has one owner at a time; it takes no lock. Its bits can be read as a buffer, too (see array)."""
    size: int
    def __init__(self, size: int, *, marked: bool = False) -> None:
        """A map of `size` regions, at most 2**40, all clear or all marked. What is never marked takes no memory. MemoryError."""
    def mark(self, first: int, count: int = 1) -> None: ...
    def clear(self, first: int, count: int = 1) -> None: ...
    def mark_ranges(self, ranges: Buffer) -> None:
        """Marks many: a C-contiguous buffer of uint64 pairs (first, count). ValueError: one is outside, and none was marked."""
    def __contains__(self, region: int) -> bool: ...
    def __bool__(self) -> bool: ...
    def count(self) -> int: ...
    def next_run(self, start: int = 0, most: int = ...) -> tuple[int, int] | None:
        """The next marked run at or after `start`, at most `most` regions: (first, count)."""
    def runs(self) -> Iterator[tuple[int, int]]:
        """The runs in ascending order: (first, count)."""
    def union(self, other: RegionMap) -> None:
        """Marks what is marked in `other`. Sizes may differ: the common part."""
    def subtract(self, other: RegionMap) -> None:
        """Clears what is marked in `other`. Sizes may differ."""
    def copy_range(self, other: RegionMap, first: int, count: int) -> None:
        """On the range, become equal to `other`; where that ends it counts as clear."""
    def copy(self) -> RegionMap: ...
    def resize(self, size: int) -> None:
        """What is added is clear. BufferError: an array of this map is still alive."""
    def array(self) -> np.ndarray:
        """The bits as a read-only uint64 array without a copy (bit i of word i // 64). While it lives the map keeps its size."""
    def encode(self) -> bytes:
        """The map as bytes, as runs or as bits, whichever is shorter: 9 bytes if it is empty. The first byte is the version."""
    @staticmethod
    def decode(data: Buffer) -> RegionMap:
        """ValueError: malformed, or of a later version. The size stands in the bytes, so the caller compares it with the store's."""
    def __eq__(self, other: object) -> bool: ...
