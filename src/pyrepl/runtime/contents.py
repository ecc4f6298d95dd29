"""What stands on a device that is about to be overwritten.

Decides what counts as empty: nothing but zeros in its first and last MiB, where file systems, partition tables and
volume managers say what they are. A short table gives the common ones their names; whatever else is there is "data".
Reads only. Must not know who wants to overwrite it.
"""

from __future__ import annotations

from contextlib import suppress

from pyrepl._core.device import Device, FileDevice
from pyrepl.border import typed
from pyrepl.errors import Corrupt, Refused
from pyrepl.journal import Journal
from pyrepl.options import MIB

MAGIC = (  # (what, where it stands, the bytes there); below zero: from the end. The more telling one first.
    ("a LUKS header", 0, b"LUKS\xba\xbe"),
    ("LVM (a physical volume)", 512, b"LABELONE"),
    ("LVM (a physical volume)", 0, b"LABELONE"),
    ("a member of an md array", 4096, b"\xfc\x4e\x2b\xa9"),
    ("a member of an md array", 0, b"\xfc\x4e\x2b\xa9"),
    ("a member of an md array", -8192, b"\xfc\x4e\x2b\xa9"),
    ("a btrfs file system", 0x10040, b"_BHRfS_M"),
    ("an xfs file system", 0, b"XFSB"),
    ("an ext file system", 0x438, b"\x53\xef"),
    ("an f2fs file system", 1024, b"\x10\x20\xf5\xf2"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("a FAT file system", 54, b"FAT"),
    ("a FAT file system", 82, b"FAT32"),
    ("a squashfs file system", 0, b"hsqs"),
    ("an ISO 9660 file system", 0x8001, b"CD001"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("a bcache device", 4096 + 24, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")),
    ("a Ceph device", 0, b"bluestore block device"),
    ("a partition table (GPT)", 512, b"EFI PART"),
    ("a partition table (GPT)", 4096, b"EFI PART"),
    ("a partition table (GPT)", -512, b"EFI PART"),
    ("a partition table (GPT)", -4096, b"EFI PART"),
    ("a partition table (MBR)", 510, b"\x55\xaa"),
)
_UBERBLOCKS = range(128 << 10, 256 << 10, 1024)  # of the first label of a zfs
_UBERBLOCK = bytes.fromhex("0cb1ba0000000000"), bytes.fromhex("0000000000bab10c")


def check_blank(device: Device) -> None:
    """Nothing stands on the device that somebody may miss.

    Raises:
        Refused: reason "force"; the text and ``found`` name what was found.
    """
    found = found_on(device)
    if found:
        raise Refused(
            f"{device.name} holds {found}, which would be overwritten: give another device, or, if what it holds may "
            f"be lost, repeat with force",
            reason="force",
            device=device.name,
            found=found,
        )


def check_path_blank(path: str) -> None:
    """The same of a path. Whoever uses it exclusively is a reason to refuse, too.

    Raises:
        Refused: see :func:`check_blank`.
        InUse, DeviceError: it cannot be read.
    """
    try:
        with FileDevice(path, writable=False) as device:
            check_blank(device)
    except OSError as error:
        raise typed(error, f"looking at {path}", device=path) from error


def found_on(device: Device) -> str:
    """What is there, as people name it; empty: nothing."""
    with suppress(Corrupt):
        name = bytes(Journal.find(device).superblock["name"]).rstrip(b"\0").decode(errors="replace")
        return f"the journal of a group {name!r}"
    size = device.size // device.sector_size * device.sector_size
    reach = min(size, MIB)
    first, last = device.read(0, reach), device.read(size - reach, reach)
    for what, where, magic in MAGIC:
        part, at = (first, where) if where >= 0 else (last, reach + where)
        if at >= 0 and part.startswith(magic, at):
            return what
    if any(first.startswith(_UBERBLOCK, at) for at in _UBERBLOCKS):
        return "a zfs pool's device"
    return "data" if first.strip(b"\0") or last.strip(b"\0") else ""


def blank(device: Device) -> None:
    """Makes the device one that nothing stands on; durable on return."""
    size = device.size // device.sector_size * device.sector_size
    reach = min(size, MIB)
    for offset in (0, size - reach):
        device.write(offset, bytes(reach))
    device.flush()


__all__ = ["MAGIC", "blank", "check_blank", "check_path_blank", "found_on"]
