"""Every number of layout.h for Python, taken from the header by the compiler, and the structs that Python packs itself.

Decides nothing: layout.h does. Must not know what a field means.
"""
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t

from pyrepl._core.crc32c import crc32c


cdef extern from *:
    """
    #include "layout.h"
    #include <stddef.h>
    typedef struct pr_field { const char *name; size_t offset, size, item; } pr_field;
    #define F(s, f, t) {#f, offsetof(struct s, f), sizeof ((struct s *)0)->f, sizeof(t)}
    static const pr_field PR_FIELDS_SUPERBLOCK[] = {
        F(pr_superblock, magic, uint8_t),
        F(pr_superblock, version, uint32_t),
        F(pr_superblock, block_size, uint32_t),
        F(pr_superblock, journal, uint8_t),
        F(pr_superblock, node, uint8_t),
        F(pr_superblock, device_size, uint64_t),
        F(pr_superblock, area_offset, uint64_t),
        F(pr_superblock, area_size, uint64_t),
        F(pr_superblock, log_offset, uint64_t),
        F(pr_superblock, log_size, uint64_t),
        F(pr_superblock, alignment, uint32_t),
        F(pr_superblock, region_size, uint32_t),
        F(pr_superblock, max_event, uint32_t),
        F(pr_superblock, max_payload, uint32_t),
        F(pr_superblock, created_ns, uint64_t),
        F(pr_superblock, name, uint8_t),
        F(pr_superblock, reserved, uint8_t),
        F(pr_superblock, crc, uint32_t),
        {0}};
    static const pr_field PR_FIELDS_CHECKPOINT[] = {
        F(pr_checkpoint, magic, uint8_t),
        F(pr_checkpoint, version, uint32_t),
        F(pr_checkpoint, body_crc, uint32_t),
        F(pr_checkpoint, journal, uint8_t),
        F(pr_checkpoint, sequence, uint64_t),
        F(pr_checkpoint, body_length, uint64_t),
        F(pr_checkpoint, scan_position, uint64_t),
        F(pr_checkpoint, scan_chain, uint64_t),
        F(pr_checkpoint, applied_position, uint64_t),
        F(pr_checkpoint, applied_lsn, uint64_t),
        F(pr_checkpoint, note_position, uint64_t),
        F(pr_checkpoint, durable_position, uint64_t),
        F(pr_checkpoint, reserved, uint8_t),
        F(pr_checkpoint, crc, uint32_t),
        {0}};
    static const pr_field PR_FIELDS_LOCAL[] = {
        F(pr_local, magic, uint32_t),
        F(pr_local, version, uint16_t),
        F(pr_local, kind, uint8_t),
        F(pr_local, note, uint8_t),
        F(pr_local, position, uint64_t),
        F(pr_local, chain, uint64_t),
        F(pr_local, durable, uint64_t),
        F(pr_local, seed, uint64_t),
        F(pr_local, length, uint32_t),
        F(pr_local, body_length, uint32_t),
        F(pr_local, body_crc, uint32_t),
        F(pr_local, reserved, uint32_t),
        F(pr_local, crc, uint32_t),
        {0}};
    static const pr_field PR_FIELDS_TRAVEL[] = {
        F(pr_travel, magic, uint32_t),
        F(pr_travel, version, uint16_t),
        F(pr_travel, kind, uint8_t),
        F(pr_travel, flags, uint8_t),
        F(pr_travel, group, uint8_t),
        F(pr_travel, generation, uint8_t),
        F(pr_travel, first_lsn, uint64_t),
        F(pr_travel, count, uint32_t),
        F(pr_travel, payload_length, uint32_t),
        F(pr_travel, previous, uint64_t),
        F(pr_travel, item, uint64_t),
        F(pr_travel, read_end, uint64_t),
        F(pr_travel, reserved, uint8_t),
        F(pr_travel, crc, uint32_t),
        {0}};
    static const pr_field PR_FIELDS_RECORD[] = {
        F(pr_record, kind, uint8_t),
        F(pr_record, flags, uint8_t),
        F(pr_record, reserved0, uint16_t),
        F(pr_record, store, uint32_t),
        F(pr_record, offset, uint64_t),
        F(pr_record, length, uint32_t),
        F(pr_record, crc, uint32_t),
        F(pr_record, payload, uint32_t),
        F(pr_record, reserved1, uint32_t),
        {0}};
    static const pr_field PR_FIELDS_FRAME[] = {
        F(pr_frame, magic, uint32_t),
        F(pr_frame, version, uint16_t),
        F(pr_frame, type, uint16_t),
        F(pr_frame, length, uint32_t),
        F(pr_frame, body_crc, uint32_t),
        F(pr_frame, sequence, uint64_t),
        F(pr_frame, session, uint32_t),
        F(pr_frame, crc, uint32_t),
        {0}};
    static const pr_field PR_FIELDS_MAP_ENTRY[] = {
        F(pr_map_entry, first, uint64_t),
        F(pr_map_entry, count, uint64_t),
        F(pr_map_entry, slot, uint32_t),
        F(pr_map_entry, source, uint32_t),
        {0}};
    """
    ctypedef struct pr_field:
        const char *name
        size_t offset, size, item
    const pr_field PR_FIELDS_SUPERBLOCK[]
    const pr_field PR_FIELDS_CHECKPOINT[]
    const pr_field PR_FIELDS_LOCAL[]
    const pr_field PR_FIELDS_TRAVEL[]
    const pr_field PR_FIELDS_RECORD[]
    const pr_field PR_FIELDS_FRAME[]
    const pr_field PR_FIELDS_MAP_ENTRY[]
    const uint64_t PR_BLOCK
    const uint64_t PR_DISK_VERSION
    const uint64_t PR_WIRE_VERSION
    const uint64_t PR_MAX_EVENT
    const uint64_t PR_MAX_PAYLOAD
    const uint64_t PR_MAX_RECORDS
    const uint64_t PR_MAX_NOTE
    const uint64_t PR_MAX_UNFLUSHED
    const uint64_t PR_MAX_STORES
    const uint64_t PR_MAX_REGION
    const uint64_t PR_SOURCE_ZERO
    const uint64_t PR_LOCAL_MAGIC
    const uint64_t PR_TRAVEL_MAGIC
    const uint64_t PR_FRAME_MAGIC
    const uint64_t PR_FRAME_BATCH
    const uint64_t PR_RECORD_BATCH
    const uint64_t PR_RECORD_NOTE
    const uint64_t PR_BATCH_EVENTS
    const uint64_t PR_BATCH_OPERATION
    const uint64_t PR_BATCH_COPIED
    const uint64_t PR_BATCH_ITEM
    const uint64_t PR_WRITE
    const uint64_t PR_ZERO
    const uint64_t PR_DISCARD
    const uint64_t PR_OPERATION


BLOCK = PR_BLOCK
DISK_VERSION = PR_DISK_VERSION
WIRE_VERSION = PR_WIRE_VERSION
MAX_EVENT = PR_MAX_EVENT
MAX_PAYLOAD = PR_MAX_PAYLOAD
MAX_RECORDS = PR_MAX_RECORDS
MAX_NOTE = PR_MAX_NOTE
MAX_UNFLUSHED = PR_MAX_UNFLUSHED
MAX_STORES = PR_MAX_STORES
MAX_REGION = PR_MAX_REGION
SOURCE_ZERO = PR_SOURCE_ZERO
LOCAL_MAGIC = PR_LOCAL_MAGIC
TRAVEL_MAGIC = PR_TRAVEL_MAGIC
FRAME_MAGIC = PR_FRAME_MAGIC
FRAME_BATCH = PR_FRAME_BATCH
RECORD_BATCH = PR_RECORD_BATCH
RECORD_NOTE = PR_RECORD_NOTE
BATCH_EVENTS = PR_BATCH_EVENTS
BATCH_OPERATION = PR_BATCH_OPERATION
BATCH_COPIED = PR_BATCH_COPIED
BATCH_ITEM = PR_BATCH_ITEM
WRITE = PR_WRITE
ZERO = PR_ZERO
DISCARD = PR_DISCARD
OPERATION = PR_OPERATION


cdef list table(const pr_field *f):
    """The fields of a struct: (name, offset, size, size of one item)."""
    rows = []
    while f.name != NULL:
        rows.append((f.name.decode(), f.offset, f.size, f.item))
        f += 1
    return rows


_FIELDS = {
    "superblock": table(PR_FIELDS_SUPERBLOCK),
    "checkpoint": table(PR_FIELDS_CHECKPOINT),
    "local": table(PR_FIELDS_LOCAL),
    "travel": table(PR_FIELDS_TRAVEL),
    "record": table(PR_FIELDS_RECORD),
    "frame": table(PR_FIELDS_FRAME),
    "map_entry": table(PR_FIELDS_MAP_ENTRY),
}
_SIZES = {name: rows[-1][1] + rows[-1][2] for name, rows in _FIELDS.items()}
SUPERBLOCK_SIZE = _SIZES["superblock"]
CHECKPOINT_SIZE = _SIZES["checkpoint"]
LOCAL_SIZE = _SIZES["local"]
TRAVEL_SIZE = _SIZES["travel"]
RECORD_SIZE = _SIZES["record"]
FRAME_SIZE = _SIZES["frame"]
MAP_ENTRY_SIZE = _SIZES["map_entry"]
_MAGICS = {"superblock": b"PYREPLSB", "checkpoint": b"PYREPLCK", "frame": FRAME_MAGIC}
_VERSIONS = {"superblock": DISK_VERSION, "checkpoint": DISK_VERSION, "frame": WIRE_VERSION}


def fields(struct_name):
    return [(name, offset, size) for name, offset, size, _ in _FIELDS[struct_name]]


def _pack(struct_name, values):
    data = bytearray(_SIZES[struct_name])
    values = {"magic": _MAGICS[struct_name], "version": _VERSIONS[struct_name], **values}
    for name, offset, size, item in _FIELDS[struct_name]:
        if name in ("crc", "reserved"):
            continue
        value = values.pop(name, 0)
        if isinstance(value, tuple):
            packed = b"".join(one.to_bytes(item, "little") for one in value)
        elif isinstance(value, int):
            packed = value.to_bytes(size, "little")
        else:
            packed = bytes(value) if item == 1 else b""
        if len(packed) > size or (item != 1 and len(packed) != size):
            raise ValueError(f"{struct_name}.{name} has {size} bytes, not {len(packed)}")
        data[offset:offset + len(packed)] = packed
    if values:
        raise ValueError(f"{struct_name} has no field {sorted(values)[0]!r}")
    data[-4:] = crc32c(bytes(data[:-4])).to_bytes(4, "little")
    return bytes(data)


def _unpack(struct_name, data):
    data = bytes(data)
    if len(data) != _SIZES[struct_name]:
        raise ValueError(f"a {struct_name} has {_SIZES[struct_name]} bytes, not {len(data)}")
    values = {}
    for name, offset, size, item in _FIELDS[struct_name]:
        raw = data[offset:offset + size]
        if name == "reserved":
            reserved = raw
        elif size == item:
            values[name] = int.from_bytes(raw, "little")
        elif item == 1:
            values[name] = raw
        else:
            values[name] = tuple(int.from_bytes(raw[i:i + item], "little") for i in range(0, size, item))
    if values["magic"] != _MAGICS[struct_name]:
        raise ValueError(f"no {struct_name}: the magic is wrong")
    if values.pop("crc") != crc32c(data[:-4]):
        raise ValueError(f"the checksum of the {struct_name} is wrong")
    if values["version"] != _VERSIONS[struct_name]:
        raise ValueError(f"version {values['version']} of the {struct_name} cannot be read: this is version {_VERSIONS[struct_name]}")
    if struct_name != "frame" and any(reserved):
        raise ValueError(f"reserved bytes of the {struct_name} are not zero")
    return values


def pack_superblock(**values):
    return _pack("superblock", values)


def unpack_superblock(data):
    return _unpack("superblock", data)


def pack_checkpoint(**values):
    return _pack("checkpoint", values)


def unpack_checkpoint(data):
    return _unpack("checkpoint", data)


def pack_frame(**values):
    return _pack("frame", values)


def unpack_frame(data):
    return _unpack("frame", data)
