"""What can be asked on the control socket: one frozen struct for each request.

REQUESTS is the list of all of them; what each does is ``service.verbs``. ``docs/control.md`` has the table; a test
holds it beside this list. Decides names and types of arguments, and what answers. What arguments and answers are made
of is ``values`` and ``members``. Must not know how they travel (``messages``).
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from msgspec import Meta, field

from pyrepl.remote.members import AnyExplained, AnyMember
from pyrepl.remote.values import (
    ExportInfo,
    GroupInfo,
    ImageInfo,
    LinkInfo,
    Name,
    NodeInfo,
    OperationInfo,
    Place,
    StoreInfo,
    StoreKey,
    StoreMade,
    Value,
)

A = TypeVar("A")


class Request(Value, Generic[A], frozen=True, kw_only=True, tag_field="verb"):
    """A question or a command; ``A`` is what answers it."""


class Waits(Request[A], frozen=True, kw_only=True):
    """One that may take long: Progress comes meanwhile. ``timeout``: seconds, None for ever."""

    timeout: float | None = None


class Performs(Waits[A], frozen=True, kw_only=True):
    """One that is an operation. ``wait``: it is answered when it was performed, else when it has its place."""

    wait: bool = True


class Compared(Performs[A], frozen=True, kw_only=True):
    """One whose result can be compared with every secondary's, which ``wait`` then waits for too."""

    verify: bool = False


class NodeShow(Request[NodeInfo], frozen=True, kw_only=True, tag="node.show"):
    """Name, identity and folder."""


class NodeStatus(Request[dict[str, Any]], frozen=True, kw_only=True, tag="node.status"):
    """The status of the node and all its groups."""


class NodeGroups(Request[tuple[str, ...]], frozen=True, kw_only=True, tag="node.groups"):
    """The names of the groups, in the order in which they were made."""


class NodeEvents(Request[None], frozen=True, kw_only=True, tag="node.events"):
    """What happens from now on, each event a Progress, until the client ends the connection or the node closes."""


class NodeListen(Request[tuple[str, int]], frozen=True, kw_only=True, tag="node.listen"):
    """Take connections of primaries at an address."""

    host: Place
    port: int = 0


class NodeListenNbd(Request[str], frozen=True, kw_only=True, tag="node.listen_nbd"):
    """Serve the exports at an address; the paths of PEM files make it TLS."""

    address: Place
    certificate: Place | None = None
    key: Place | None = None
    ca: Place | None = None
    insecure: bool = False


class NodeStopNbd(Request[None], frozen=True, kw_only=True, tag="node.stop_nbd"):
    """Serve nobody at an address any more."""

    address: Place


class NodeJobs(Request[list[dict[str, Any]]], frozen=True, kw_only=True, tag="node.jobs"):
    """The commands under way and the last 1000 that are over, over restarts of the daemon too: who, what, and what came
    of it. ``group``: those about it alone."""

    group: Name | None = None


class NodeMetrics(Request[str], frozen=True, kw_only=True, tag="node.metrics"):
    """The metrics in the text format of Prometheus."""


class GroupCreate(Request[GroupInfo], frozen=True, kw_only=True, tag="group.create"):
    """Make a group. ``options``: the fields of SiteOptions."""

    group: Name
    journal: Place
    journal_size: int | None = None
    role: Name = "primary"
    region_size: int = 64 * 1024
    alignment: int = 4096
    ordering: Name = "relaxed"
    resume: Name = "ask"
    force: bool = False
    options: dict[str, int] | None = None


class GroupImport(Request[GroupInfo], frozen=True, kw_only=True, tag="group.import"):
    """A group whose journal and devices the daemon's machine sees becomes one of this node's."""

    journal: Place
    resume: Name = "ask"
    force: bool = False


class GroupOpen(Request[GroupInfo], frozen=True, kw_only=True, tag="group.open"):
    """A group that has failed is opened again from its journal."""

    group: Name


class GroupDelete(Request[tuple[str, ...]], frozen=True, kw_only=True, tag="group.delete"):
    """A group is no more at this node; of one that has failed, paths of what is left of it."""

    group: Name
    force: bool = False


class GroupShow(Request[GroupInfo], frozen=True, kw_only=True, tag="group.show"):
    """Role, state and sizes of a group."""

    group: Name


class GroupStatus(Request[dict[str, Any]], frozen=True, kw_only=True, tag="group.status"):
    """The status of a group."""

    group: Name


class GroupStores(Request[tuple[StoreInfo, ...]], frozen=True, kw_only=True, tag="group.stores"):
    """The stores of a group, of one kind ("volume", "snapshot") or of all ("")."""

    group: Name
    kind: Name = ""


class GroupAddVolume(Performs[StoreMade], frozen=True, kw_only=True, tag="group.add_volume"):
    """A volume enters the group."""

    group: Name
    name: Name
    device_path: Place | None = None
    size: int | None = None
    zero: bool = False
    force: bool = False


class GroupSnapshot(Compared[OperationInfo], frozen=True, kw_only=True, tag="group.snapshot"):
    """Snapshots of several volumes at one LSN. ``early``: as of ``store.snapshot``."""

    group: Name
    name: Name
    volumes: tuple[StoreKey, ...] | None = None
    early: bool = False


class GroupWide(Compared[OperationInfo], frozen=True, kw_only=True, tag="group.wide"):
    """``what`` ("restore", "refresh", "clone" or "delete") is done to several volumes, or their snapshots of a name, at
    one LSN: all of it, or nothing. ``snapshot``: clone these of their snapshots. ``early``, of a restore: as of
    ``store.snapshot``."""

    group: Name
    what: Name
    name: Name
    snapshot: Name | None = None
    volumes: tuple[StoreKey, ...] | None = None
    early: bool = False


class GroupAddImage(Request[ImageInfo], frozen=True, kw_only=True, tag="group.add_image"):
    """A file or block device becomes an image at this site; Progress comes while its digest is made."""

    group: Name
    name: Name
    path: Place


class GroupImages(Request[tuple[ImageInfo, ...]], frozen=True, kw_only=True, tag="group.images"):
    """The images at this site, oldest first."""

    group: Name


class GroupCopyRange(Compared[OperationInfo], frozen=True, kw_only=True, tag="group.copy_range"):
    """A range of one store becomes equal to that of another."""

    group: Name
    source: StoreKey
    source_offset: int
    target: StoreKey
    target_offset: int
    length: int


class GroupUnordered(Compared[OperationInfo], frozen=True, kw_only=True, tag="group.unordered"):
    """Several operations at one point of the order: all of them, or none."""

    group: Name
    members: Annotated[tuple[AnyMember, ...], Meta(max_length=1024)]


class GroupExplain(Waits[dict[str, Any]], frozen=True, kw_only=True, tag="group.explain"):
    """What an operation, or several as a set, would change and cost; nothing is changed."""

    group: Name
    members: Annotated[tuple[AnyExplained, ...], Meta(max_length=1024)]


class GroupPerform(Compared[OperationInfo], frozen=True, kw_only=True, tag="group.perform"):
    """What a plug-in that the node has installed does, with these arguments."""

    group: Name
    plugin: Name
    arguments: dict[str, Any] = field(default_factory=dict)


class GroupMark(Performs[OperationInfo], frozen=True, kw_only=True, tag="group.mark"):
    """A message in the order of writes."""

    group: Name
    name: Name
    message: bytes = b""


class GroupSetDelay(Request[None], frozen=True, kw_only=True, tag="group.set_delay"):
    """While it is a secondary the site performs an event when it is so old, in seconds. 0: at once."""

    group: Name
    seconds: float


class GroupFlush(Request[int], frozen=True, kw_only=True, tag="group.flush"):
    """All that was written survives the loss of power; the LSN up to which."""

    group: Name


class GroupWait(Waits[int], frozen=True, kw_only=True, tag="group.wait"):
    """Wait until everything up to an LSN is performed, here or at a link's secondary."""

    group: Name
    lsn: int | None = None
    where: Name = "primary"


class GroupOperation(Request[OperationInfo], frozen=True, kw_only=True, tag="group.operation"):
    """What has become of the operation at an LSN; ``created`` and ``links`` are the caller's to remember."""

    group: Name
    lsn: int


class GroupVerified(Waits[dict[str, Any]], frozen=True, kw_only=True, tag="group.verified"):
    """Wait until the result of the operation at an LSN is compared with every secondary's; what was found."""

    group: Name
    lsn: int


class GroupOperations(Request[list[dict[str, Any]]], frozen=True, kw_only=True, tag="group.operations"):
    """What was performed on a group since it was opened; ``earlier``: and before, as far as its journal holds it."""

    group: Name
    earlier: bool = False


class GroupAddLink(Request[LinkInfo], frozen=True, kw_only=True, tag="group.add_link"):
    """Attach a secondary."""

    group: Name
    name: Name
    address: Place
    mode: Name = "async"
    bandwidth: int = 0


class GroupRemoveLink(Request[None], frozen=True, kw_only=True, tag="group.remove_link"):
    """Detach a secondary."""

    group: Name
    name: Name


class GroupLinks(Request[tuple[LinkInfo, ...]], frozen=True, kw_only=True, tag="group.links"):
    """The links of a group."""

    group: Name


class GroupLatency(Request[dict[str, Any]], frozen=True, kw_only=True, tag="group.latency"):
    """How long writes, flushes and operations took."""

    group: Name


class GroupVerify(Waits[dict[str, Any]], frozen=True, kw_only=True, tag="group.verify"):
    """Compare all stores with those of the secondaries; what was found."""

    group: Name
    repair: bool = True
    link: Name | None = None


class GroupDemote(Waits[int], frozen=True, kw_only=True, tag="group.demote"):
    """The site steps down when its secondaries have everything; the last LSN."""

    group: Name
    force: bool = False


class GroupPromote(Request[int], frozen=True, kw_only=True, tag="group.promote"):
    """A secondary becomes primary; the LSN after which its generation begins."""

    group: Name
    alone: bool = False
    force: bool = False


class GroupTakeover(Request[int], frozen=True, kw_only=True, tag="group.takeover"):
    """A secondary becomes primary because the primary is gone; the LSN after which its generation begins.
    ``dry_run``: only whether it may; the LSN from which it would go on. ``force``: although what it holds was found
    different."""

    group: Name
    dry_run: bool = False
    force: bool = False


class GroupMigrate(Waits[int], frozen=True, kw_only=True, tag="group.migrate"):
    """A planned swap: the site steps down, the secondary of a link becomes primary and links back; the last LSN."""

    group: Name
    link: Name
    back: Place | None = None
    force: bool = False


class GroupResolve(Request[int], frozen=True, kw_only=True, tag="group.resolve"):
    """End a split brain: who loses; the last LSN here before."""

    group: Name
    loser: Name


class GroupUnprotect(Request[None], frozen=True, kw_only=True, tag="group.unprotect"):
    """A secondary gives its protective snapshot up."""

    group: Name


class GroupLoss(Request[dict[str, Any]], frozen=True, kw_only=True, tag="group.loss"):
    """What the end of a split brain would take from a loser; nothing is changed."""

    group: Name
    loser: Name


class LinkShow(Request[LinkInfo], frozen=True, kw_only=True, tag="link.show"):
    """Address, mode and limits of a link."""

    group: Name
    name: Name


class LinkStatus(Request[dict[str, Any]], frozen=True, kw_only=True, tag="link.status"):
    """The status of a link."""

    group: Name
    name: Name


class LinkSet(Request[None], frozen=True, kw_only=True, tag="link.set"):
    """Change what is chosen for a link; what is not given stays. 0: no limit, no bound."""

    group: Name
    name: Name
    mode: Name | None = None
    address: Place | None = None
    bandwidth: int | None = None
    dead: float | None = None
    most_lag_bytes: int | None = None
    most_lag_seconds: float | None = None


class LinkPause(Request[None], frozen=True, kw_only=True, tag="link.pause"):
    """End the connection until it is resumed."""

    group: Name
    name: Name


class LinkResume(Request[None], frozen=True, kw_only=True, tag="link.resume"):
    """Connect again."""

    group: Name
    name: Name


class LinkWaitSynced(Waits[dict[str, Any]], frozen=True, kw_only=True, tag="link.wait_synced"):
    """Wait until the secondary is consistent and durably holds all that was written before; its status then."""

    group: Name
    name: Name


class LinkWaitApplied(Waits[None], frozen=True, kw_only=True, tag="link.wait_applied"):
    """Wait until the secondary has performed everything up to an LSN."""

    group: Name
    name: Name
    lsn: int


class LinkDivergent(Request[tuple[tuple[int, int], ...]], frozen=True, kw_only=True, tag="link.divergent"):
    """Where the secondary's copy of a store may differ: (offset, length), ascending."""

    group: Name
    name: Name
    of: StoreKey


class ExportStart(Request[ExportInfo], frozen=True, kw_only=True, tag="export.start"):
    """NBD clients may attach a store under a name."""

    name: Name
    of: StoreKey
    read_only: bool | None = None
    keep: bool = True
    trial: bool = False


class ExportStop(Request[None], frozen=True, kw_only=True, tag="export.stop"):
    """No client can attach it any more."""

    name: Name
    force: bool = False


class ExportList(Request[tuple[ExportInfo, ...]], frozen=True, kw_only=True, tag="export.list"):
    """The exports, in the order in which they were started."""


class ExportShow(Request[ExportInfo], frozen=True, kw_only=True, tag="export.show"):
    """What an export shows."""

    name: Name


class ExportStatus(Request[dict[str, Any]], frozen=True, kw_only=True, tag="export.status"):
    """Clients, requests and bytes of an export."""

    name: Name


class StoreShow(Request[StoreInfo], frozen=True, kw_only=True, tag="store.show"):
    """Number, kind, size and device of a store; ``kind`` "" is any."""

    store: StoreKey
    kind: Name = ""


class StoreRead(Request[int], frozen=True, kw_only=True, tag="store.read"):
    """Read at most 4 MiB; the payload of the answer is what was read."""

    store: StoreKey
    offset: int
    length: int


class StoreView(Request[None], frozen=True, kw_only=True, tag="store.view"):
    """What a store shows now stays as it is, as a view: its ``id``, ``lsn`` and ``size`` come as a Progress. Until the
    client ends the connection."""

    store: StoreKey


class ViewRead(Request[int], frozen=True, kw_only=True, tag="view.read"):
    """Read at most 4 MiB of a view by its number; the payload of the answer is what was read."""

    group: Name
    view: int
    offset: int
    length: int


class StoreDigest(Request[bytes], frozen=True, kw_only=True, tag="store.digest"):
    """XXH3-128 of at most 64 MiB."""

    store: StoreKey
    offset: int
    length: int


class StoreWrite(Request[int], frozen=True, kw_only=True, tag="store.write"):
    """Write the payload, at most 4 MiB; the LSN."""

    store: StoreKey
    offset: int
    fua: bool = False


class StoreZero(Request[int], frozen=True, kw_only=True, tag="store.zero"):
    """The range reads as zeros; the LSN."""

    store: StoreKey
    offset: int
    length: int


class StoreDiscard(Request[int], frozen=True, kw_only=True, tag="store.discard"):
    """The same, and its space may be given back; the LSN."""

    store: StoreKey
    offset: int
    length: int


class StoreSnapshot(Compared[StoreMade], frozen=True, kw_only=True, tag="store.snapshot"):
    """A snapshot of one store. ``early``: secondaries perform it first; then the answer comes when this site has."""

    store: StoreKey
    name: Name
    early: bool = False


class StoreClone(Compared[StoreMade], frozen=True, kw_only=True, tag="store.clone"):
    """A new volume with the content of a store."""

    store: StoreKey
    name: Name
    device: Place | None = None
    force: bool = False


class StoreSynchronize(Compared[OperationInfo], frozen=True, kw_only=True, tag="store.synchronize"):
    """A store becomes equal to another, or to an image."""

    store: StoreKey
    source: StoreKey


class VolumeRestore(Compared[OperationInfo], frozen=True, kw_only=True, tag="volume.restore"):
    """A volume shows again what a snapshot shows, or an image. ``early``: as of ``store.snapshot``."""

    store: StoreKey
    snapshot: StoreKey
    extent: tuple[int, int] | None = None
    early: bool = False


class VolumeResize(Compared[OperationInfo], frozen=True, kw_only=True, tag="volume.resize"):
    """A volume gets another size."""

    store: StoreKey
    size: int
    force: bool = False


class VolumeRewind(Waits[StoreMade], frozen=True, kw_only=True, tag="volume.rewind"):
    """A new volume shows what a volume showed at an LSN, or at a time (seconds since 1970): one of the two. A client
    that goes away gives it up."""

    store: StoreKey
    name: Name
    to_lsn: int | None = None
    to_time: float | None = None


class VolumeRemove(Performs[OperationInfo | None], frozen=True, kw_only=True, tag="volume.remove"):
    """A volume leaves the group; no operation: one that was prepared on a fresh secondary was taken back."""

    store: StoreKey
    force: bool = False


class SnapshotRefresh(Compared[OperationInfo], frozen=True, kw_only=True, tag="snapshot.refresh"):
    """A snapshot shows what its origin shows now."""

    store: StoreKey


class SnapshotDelete(Performs[OperationInfo], frozen=True, kw_only=True, tag="snapshot.delete"):
    """A snapshot leaves the group."""

    store: StoreKey


class KeptDelete(Request[None], frozen=True, kw_only=True, tag="kept.delete"):
    """A kept snapshot is kept no longer."""

    store: StoreKey


class ImageShow(Request[ImageInfo], frozen=True, kw_only=True, tag="image.show"):
    """An image at this site."""

    image: StoreKey


class ImageClone(Compared[StoreMade], frozen=True, kw_only=True, tag="image.clone"):
    """A new volume with the content of an image."""

    image: StoreKey
    name: Name
    device: Place | None = None
    force: bool = False


class ImageRemove(Performs[None], frozen=True, kw_only=True, tag="image.remove"):
    """An image is used no more at this site. ``wait``: it is answered when it is gone."""

    image: StoreKey


REQUESTS: tuple[type[Request[Any]], ...] = tuple(
    kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Request) and "." in str(kind.__struct_config__.tag)
)
"""All that have a verb, in their order here."""


def verb(kind: type[Request[Any]]) -> str:
    """The name of a request in the protocol, as in "group.status"."""
    return str(kind.__struct_config__.tag)


def group_of(request: Request[Any]) -> str | None:
    """The group that a request is about."""
    group: str | None = getattr(request, "group", None)
    named = (getattr(request, field, None) for field in ("store", "of", "image"))
    store: StoreKey | None = next((key for key in named if key is not None), None)
    return store.group if store is not None else group


def answer_type(kind: type[Request[Any]]) -> Any:
    """What answers this request."""
    return kind.__orig_bases__[0].__args__[0]  # type: ignore[attr-defined]
