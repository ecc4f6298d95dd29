"""Aligned memory from the pool."""

class Buffer:
    """Writable memory of `length` bytes, aligned to 4096, through the buffer protocol (memoryview(b)). Contents are
    arbitrary
    until written. ValueError: a length that cannot be; MemoryError."""
    def __init__(self, length: int) -> None: ...
    def __len__(self) -> int: ...
