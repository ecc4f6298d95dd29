"""CRC32C (Castagnoli), as iSCSI and ext4 use it."""
from typing_extensions import Buffer

def crc32c(data: Buffer, value: int = 0, *, kernel: str | None = None) -> int:
    """The checksum of ``data`` after ``value`` (the checksum of what came before). ValueError: a kernel that cannot run here, or a
    value that is no checksum."""

def copy(target: Buffer, source: Buffer, value: int = 0, *, kernel: str | None = None) -> int:
    """Copies ``source`` into ``target``, which has as many bytes, and returns the checksum of the copy after ``value``. One pass.
    The two must not overlap. ValueError: lengths that differ, and as above."""

def kernels() -> list[str]:
    """The kernels that run on this CPU; the first is the reference. Of: scalar, sse4.2, vpclmul (AVX-512), armv8."""

def chosen() -> str:
    """The kernel that is used."""
