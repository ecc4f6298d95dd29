"""CRC32C (Castagnoli), as iSCSI and ext4 use it."""
from collections.abc import Buffer

def crc32c(data: Buffer, value: int = 0, *, kernel: str | None = None) -> int:
    """The checksum of ``data`` after ``value`` (the checksum of what came before). ValueError: a kernel that cannot run here."""

def kernels() -> list[str]:
    """The kernels that run on this CPU; the first is the reference."""

def chosen() -> str:
    """The kernel that is used."""
