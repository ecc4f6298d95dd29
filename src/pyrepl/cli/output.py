"""What ``--json`` writes: one struct for each output, and nothing else is ever written.

Decides names, types and units, which are promises: ``docs/json.md`` is these structs in words, and a test compares
both, and real output, with them. A field that is added keeps ``SCHEMA``; one that goes or changes its meaning raises
it. Knows nothing of the daemon: the commands fill the structs.

Units are in the types (``Bytes``, ``Seconds`` ...). What is not known is null, never 0 or an empty text.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import click
import msgspec
from msgspec import Meta

SCHEMA = 1

Bytes = Annotated[int, Meta(extra={"unit": "bytes"})]
Seconds = Annotated[float, Meta(extra={"unit": "seconds"})]
Time = Annotated[float, Meta(extra={"unit": "seconds since 1970"})]
Lsn = Annotated[int, Meta(extra={"unit": "LSN"})]
Count = Annotated[int, Meta(extra={"unit": "count"})]

Role = Literal["primary", "secondary"]
GroupState = Literal["active", "failed", "closed"]
LinkState = Literal["connecting", "streaming", "resyncing", "refused", "paused", "diverged", "down"]
Mode = Literal["async", "sync"]
ThereState = Literal["performed", "refused", "pending"]
PerformedAs = Literal["command", "data"]
StoreKind = Literal["volume", "snapshot", "kept", "unfinished"]
OperationState = Literal["admitted", "performed"]
PreparedState = Literal["prepared", "taken-back"]
JobState = Literal["running", "done", "failed", "left", "interrupted"]
ImageState = Literal["ready", "changed", "missing", "leaving"]
ExportState = Literal["serving", "held", "gone"]
VerifiedState = Literal["comparing", "equal", "repaired", "different", "failed"]
HookState = Literal["queued", "running", "done", "failed", "timed-out", "released", "skipped", "ended"]
AnswerState = Literal["ok", "note", "bad"]


class Part(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A part of an output."""


class Output(msgspec.Struct, forbid_unknown_fields=True):
    """A whole output: one object, or one line of a stream. ``schema`` comes first."""

    schema: int = SCHEMA


# ---- status


class Store(Part):
    """A volume or a snapshot."""

    id: int
    name: str
    kind: StoreKind
    size: Bytes
    origin: str | None
    path: str | None
    diverged: list[str]


class BytesSent(Part):
    """What crossed a link since the group was opened, by kind."""

    events: Bytes
    operations: Bytes
    copied: Bytes
    items: Bytes
    control: Bytes


class Refused(Part):
    """An operation of which a secondary could not perform all, so that the data were sent."""

    lsn: Lsn
    reason: str


class FoundDifferent(Part):
    """What a verification has found different at a secondary, and was not to repair."""

    lsn: Lsn
    time: Time
    bytes: Bytes


class Link(Part):
    """A link as its primary sees it."""

    name: str
    address: str
    mode: Mode
    bandwidth: Bytes | None
    dead_seconds: Seconds
    most_lag_bytes: Bytes | None
    most_lag_seconds: Seconds | None
    state: LinkState
    connected: bool
    consistent: bool
    synced: bool
    degraded: bool
    holds_writers: bool
    peer: str | None
    lsn: Lsn
    received_lsn: Lsn
    durable_lsn: Lsn
    applied_lsn: Lsn
    lag_events: Count
    lag_bytes: Bytes
    lag_seconds: Seconds | None
    divergent_bytes: Bytes
    found_different: FoundDifferent | None
    backlog_bytes: Bytes
    in_flight_bytes: Bytes
    bytes_sent: BytesSent
    connections: Count
    stands: str | None
    reason: str | None
    last_error: str | None
    last_error_time: Time | None
    refused_since: Time | None
    refused: list[Refused]


class Positions(Part):
    """How far a site is: each at most the one before it, but that a journal may be durable beyond what is applied."""

    end: Lsn
    written: Lsn
    durable: Lsn
    applied: Lsn


class Journal(Part):
    """A group's journal: the log on its device."""

    path: str
    size: Bytes
    used: Bytes
    tail: int
    end: int
    engine: str
    checkpoints: Count


class Window(Part):
    """The end of the journal in memory."""

    size: Bytes
    used: Bytes
    batches: Count
    records: Count
    payload_bytes: Bytes
    commits: Count
    flushes: Count


class Delay(Part):
    """How much later than the primary this site performs, while it is a secondary."""

    seconds: Seconds
    waiting_bytes: Bytes
    oldest: Time | None
    shortened: str | None


class Shortage(Part):
    """That the file system of a store's device has no room."""

    device: str | None
    error: str
    free: Bytes
    since: Time
    text: str


class Trial(Part):
    """A writable copy of a group's volumes at this site, for a test."""

    number: Count
    lsn: Lsn
    opened: Time
    space: Bytes
    exports: Count
    error: str | None


class HookRun(Part):
    """A hook that ran, runs or waits for its turn at this site."""

    mark: str
    lsn: Lsn
    hold: bool
    state: HookState
    exit_status: int | None
    seconds: Seconds
    text: str | None


class Protective(Part):
    """The protective snapshot of a secondary that is not consistent: a takeover goes back to it."""

    lsn: Lsn
    generation: str
    stores: Count


class SplitBrain(Part):
    """Another site that has events which this one knows nothing of, and the other way round."""

    node: str
    link: str | None
    fork_lsn: Lsn
    lsn: Lsn
    there_lsn: Lsn


class Group(Part):
    """A group at this site. What a group that failed does not know is null."""

    name: str
    role: Role | None
    state: GroupState
    error: str | None
    group_id: str | None
    generation: str | None
    consistent: bool | None
    protective: Protective | None
    waived: bool | None
    found_different: FoundDifferent | None
    handed_over: bool | None
    successor: str | None
    yields: bool | None
    asking: list[str] | None
    fed_by: str | None
    above: list[str] | None
    primary_connected: bool | None
    split_brain: list[SplitBrain]
    last_refusal: str | None
    last_refusal_time: Time | None
    region_size: Bytes | None
    ordering: Literal["relaxed", "strict"] | None
    alignment: Bytes | None
    lsn: Positions | None
    journal: Journal | None
    window: Window | None
    delay: Delay | None
    stands: Shortage | None
    mover_rests: Shortage | None
    map_memory: Bytes | None
    bytes_avoided: Bytes | None
    stores: list[Store]
    kept: list[Store]
    links: list[Link]
    hooks: list[HookRun]
    trials: list[Trial]


class Node(Part):
    """The node that answers."""

    name: str
    node_id: str
    path: str
    listening: list[str]


class Status(Output, kw_only=True):
    """``pyrepl status``."""

    node: Node
    groups: list[Group]


# ---- lists


class GroupList(Output, kw_only=True):
    """``pyrepl group list``."""

    groups: list[Group]


class GroupShow(Output, kw_only=True):
    """``pyrepl group show``, ``pyrepl group create``, ``pyrepl group import`` and ``pyrepl group unprotect``."""

    group: Group


class StoreEntry(Store):
    """A store with its group."""

    group: str


class StoreList(Output, kw_only=True):
    """``pyrepl volume list`` and ``pyrepl snapshot list``."""

    stores: list[StoreEntry]


class ImageEntry(Part):
    """An image at this site with its group. ``digest``: SHA-256, hexadecimal."""

    group: str
    id: int
    name: str
    size: Bytes
    digest: str
    path: str
    state: ImageState


class ImageList(Output, kw_only=True):
    """``pyrepl image list`` and ``pyrepl image add``."""

    images: list[ImageEntry]


class LinkEntry(Link):
    """A link with its group."""

    group: str


class LinkList(Output, kw_only=True):
    """``pyrepl link list``."""

    links: list[LinkEntry]


# ---- what verbs did

class StoreExtent(Part):
    """A part of a store."""

    store: str
    offset: Bytes
    length: Bytes


class VerifiedLink(Part):
    """How a secondary compares with its primary."""

    name: str
    state: VerifiedState
    reason: str | None
    compared: Bytes
    different: Bytes
    known_to_differ: Bytes
    extents: list[StoreExtent]
    bytes_on_wire: Bytes
    seconds: Seconds



class Member(Part):
    """An operation of a set."""

    kind: str
    bytes_changed: Bytes | None
    created: list[str]
    digest: str | None
    failed: str | None


class Operation(Output, kw_only=True):
    """Every verb of ``volume`` and ``snapshot`` that changes something, ``pyrepl image clone``, ``pyrepl set``,
    ``pyrepl perform`` and ``mark``."""

    group: str
    kind: str
    lsn: Lsn
    state: OperationState
    created: list[str]
    bytes_changed: Bytes | None
    bytes_avoided: Bytes | None
    members: list[Member]
    digest: str | None
    failed: str | None
    verified: list[VerifiedLink] | None


class Judgement(Part):
    """How the result of an operation compares with that of a secondary."""

    link: str
    state: VerifiedState
    reason: str | None
    compared: Bytes
    different: Bytes


class LinkCost(Part):
    """What an operation would cost on a link."""

    name: str
    state: LinkState
    consistent: bool
    performed_as: PerformedAs
    command_bytes: Bytes
    lag_bytes: Bytes
    divergent_bytes: Bytes
    divergent_bytes_after: Bytes
    bytes_added: Bytes
    bytes_removed: Bytes
    bytes_if_refused: Bytes | None
    last_refused: Refused | None
    bytes_avoided: Bytes
    unsettles: bool


class Explanation(Output, kw_only=True):
    """``pyrepl explain``."""

    group: str
    kind: str
    lsn: Lsn
    bytes_changed: Bytes
    links: list[LinkCost]


class KeptDeleted(Output, kw_only=True):
    """``pyrepl snapshot delete`` of what the site alone has kept."""

    group: str
    snapshot: str


class Rewound(Output, kw_only=True):
    """``pyrepl volume rewind``."""

    group: str
    volume: str
    created: str
    to_lsn: Lsn
    lsn: Lsn
    bytes_written: Bytes
    seconds: Seconds


class Prepared(Output, kw_only=True):
    """``pyrepl volume add`` and ``remove`` at a secondary that is not paired yet: no operation."""

    group: str
    volume: str
    size: Bytes
    state: PreparedState


class PerformedThere(Part):
    """What has become of an operation at a secondary."""

    link: str
    state: ThereState


class Performed(Part):
    """An operation that was performed here."""

    lsn: Lsn
    kind: str
    time: Time | None
    seconds: Seconds | None
    arguments: dict[str, Any]
    bytes_changed: Bytes | None
    bytes_avoided: Bytes | None
    secondaries: list[PerformedThere]
    created: list[str]
    members: list[Member]
    refused: str | None
    digest: str | None
    failed: str | None
    verified: list[Judgement] | None


class OperationList(Output, kw_only=True):
    """``pyrepl operation list``."""

    group: str
    operations: list[Performed]


class OperationShow(Output, kw_only=True):
    """``pyrepl operation show``."""

    group: str
    operation: Performed


class Job(Part):
    """A command that was given to the daemon."""

    id: int
    verb: str
    group: str | None
    arguments: dict[str, Any]
    user: str
    pid: int
    time: Time
    seconds: Seconds | None
    state: JobState
    code: str | None
    error: str | None
    result: str | None
    lsn: Lsn | None
    progress: dict[str, Any]


class JobList(Output, kw_only=True):
    """``pyrepl job list``."""

    jobs: list[Job]


class JobShow(Output, kw_only=True):
    """``pyrepl job show``."""

    job: Job


class RoleChange(Output, kw_only=True):
    """``pyrepl migrate``, ``pyrepl promote``, ``pyrepl demote``, ``pyrepl takeover`` and
    ``pyrepl resolve``."""

    group: str
    role: Role
    lsn: Lsn
    leader: str | None


class Waited(Output, kw_only=True):
    """``pyrepl wait``."""

    group: str
    reached: Lsn
    seconds: Seconds


class Compared(Output, kw_only=True):
    """``pyrepl volume compare``."""

    left: str
    right: str
    equal: bool
    compared: Bytes
    first_difference: Bytes | None


class Verified(Output, kw_only=True):
    """``pyrepl verify``."""

    group: str
    lsn: Lsn
    links: list[VerifiedLink]


class Export(Part):
    """A store that is served over NBD."""

    name: str
    group: str
    store: str
    read_only: bool
    size: Bytes | None
    state: ExportState
    reason: str | None
    view_lsn: Lsn | None
    trial: bool
    clients: Count
    requests: dict[str, int]
    errors: Count
    bytes_read: Bytes
    bytes_written: Bytes


class ExportList(Output, kw_only=True):
    """``pyrepl export list``."""

    exports: list[Export]


class Event(Output, kw_only=True):
    """``pyrepl events``: a line for each."""

    time: Time
    event: str
    group: str | None
    details: dict[str, Any]


# ---- without the daemon


class Certificate(Part):
    """What a certificate says."""

    path: str
    name: str | None
    hosts: list[str]
    fingerprint: str
    not_before: Time
    not_after: Time


class CertificateList(Output, kw_only=True):
    """``pyrepl keys create`` and ``pyrepl keys show``."""

    certificates: list[Certificate]


class Answer(Part):
    """A line of the doctor."""

    name: str
    state: AnswerState
    text: str


class Doctor(Output, kw_only=True):
    """``pyrepl doctor``."""

    versions: list[str]
    answers: list[Answer]


class Finding(Part):
    """What is wrong with a journal."""

    text: str
    fatal: bool


class JournalCheck(Output, kw_only=True):
    """``pyrepl journal check``."""

    path: str
    sound: bool
    findings: list[Finding]
    records: Count
    bytes: Bytes
    end_position: int
    durable_position: int
    end_reason: str | None


class JournalDump(Output, kw_only=True):
    """``pyrepl journal dump``."""

    path: str
    superblock: dict[str, Any]
    checkpoint: dict[str, Any]
    records: list[dict[str, Any]]
    end_position: int
    end_reason: str | None
    findings: list[Finding]


def write(output: Output) -> None:
    """The one place where JSON leaves: one line on standard output."""
    click.echo(msgspec.json.encode(output))


T = TypeVar("T", bound=msgspec.Struct)


def pick(kind: type[T], told: dict[str, Any], **more: Any) -> T:
    """A struct from what the daemon told; what it did not tell is null, what has no field here is not shown.

    Args:
        kind: the struct.
        told: names and values; an empty text stands for null where the field has null.
        more: fields that are named otherwise there, or made of several.
    """
    fields = [name for name in kind.__struct_fields__ if name != "schema"]
    values = {name: more[name] if name in more else told.get(name) for name in fields}
    return kind(**values)
