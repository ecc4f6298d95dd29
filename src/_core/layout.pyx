"""Every number of layout.h for Python, taken from the header by the compiler, and the structs that Python packs itself.

Decides nothing: layout.h does. Must not know what a field means.
"""
from libc.stddef cimport size_t
from libc.stdint cimport uint64_t

import struct

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
        F(pr_superblock, first_position, uint64_t),
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
        F(pr_travel, time_ns, uint64_t),
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
    const uint64_t PR_FIRST_LOCAL
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
FIRST_LOCAL = PR_FIRST_LOCAL
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
_LETTERS = {1: "B", 2: "H", 4: "I", 8: "Q"}


def fields(struct_name):
    if struct_name not in _FIELDS:
        raise ValueError(f"no struct {struct_name!r}: there are {', '.join(_FIELDS)}")
    return [(name, offset, size) for name, offset, size, _ in _FIELDS[struct_name]]


def _format(size, item):
    """The letters of one field for the module struct: a number, bytes, or a tuple of numbers."""
    if size == item:
        return _LETTERS[item]
    return f"{size}s" if item == 1 else f"{size // item}{_LETTERS[item]}"


_FORMATS = {name: "".join(_format(size, item) for _, _, size, item in _FIELDS[name]) for name in _MAGICS}
_PACKERS = {name: struct.Struct("<" + letters) for name, letters in _FORMATS.items()}
_NAMES = {name: [field for field, *_ in _FIELDS[name]] for name in _MAGICS}
_TUPLES = {name: {field: size // item for field, _, size, item in _FIELDS[name] if size > item > 1} for name in _MAGICS}
_BYTES = {name: {field: size for field, _, size, item in _FIELDS[name] if size > item == 1} for name in _MAGICS}
_SUMS = {name: _SIZES[name] - 4 for name in _MAGICS}  # the checksum is the last field of each


cdef bytes pack(str struct_name, dict values):
    values = {"magic": _MAGICS[struct_name], "version": _VERSIONS[struct_name], **values}
    cdef dict tuples = _TUPLES[struct_name], lengths = _BYTES[struct_name]
    flat = []
    for name in _NAMES[struct_name]:
        if name in lengths:
            value = bytes(memoryview(values.pop(name, b""))) if name != "reserved" else b""
            if len(value) > lengths[name]:
                raise ValueError(f"{struct_name}.{name} has {lengths[name]} bytes, not {len(value)}")
            flat.append(value)
        elif name in tuples:
            several = tuple(values.pop(name, (0,) * tuples[name]))
            if len(several) != tuples[name]:
                raise ValueError(f"{struct_name}.{name} has {tuples[name]} numbers, not {len(several)}")
            flat += several
        else:
            flat.append(values.pop(name, 0) if name != "crc" else 0)
    if values:
        raise ValueError(f"{struct_name} has no field {sorted(values)[0]!r} that can be given")
    try:
        data = _PACKERS[struct_name].pack(*flat)
    except struct.error as error:
        raise ValueError(f"{struct_name}: a number that its field has no room for: {error}") from None
    data = data[:_SUMS[struct_name]]
    return data + crc32c(data).to_bytes(4, "little")


cdef dict unpack(str struct_name, object data):
    data = bytes(memoryview(data))
    if len(data) != _SIZES[struct_name]:
        raise ValueError(f"a {struct_name} has {_SIZES[struct_name]} bytes, not {len(data)}")
    flat = _PACKERS[struct_name].unpack(data)
    cdef dict tuples = _TUPLES[struct_name], values = {}
    cdef Py_ssize_t at = 0
    for name in _NAMES[struct_name]:
        if name in tuples:
            values[name] = flat[at:at + tuples[name]]
            at += tuples[name]
        else:
            values[name] = flat[at]
            at += 1
    if values["magic"] != _MAGICS[struct_name]:
        raise ValueError(f"no {struct_name}: the magic is wrong")
    if values["version"] != _VERSIONS[struct_name]:
        raise ValueError(f"version {values['version']} of the {struct_name} cannot be read: "
                         f"this is version {_VERSIONS[struct_name]}")
    if values.pop("crc") != crc32c(data[:_SUMS[struct_name]]):
        raise ValueError(f"the checksum of the {struct_name} is wrong")
    if any(values.pop("reserved", b"")):
        raise ValueError(f"reserved bytes of the {struct_name} are not zero")
    return values


def pack_superblock(**values):
    return pack("superblock", values)


def unpack_superblock(data):
    return unpack("superblock", data)


def pack_checkpoint(**values):
    return pack("checkpoint", values)


def unpack_checkpoint(data):
    return unpack("checkpoint", data)


def pack_frame(**values):
    return pack("frame", values)


def unpack_frame(data):
    return unpack("frame", data)
