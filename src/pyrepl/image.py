"""Images as users of the package hold them: a third copy, registered at this site, from which stores are restored.

Decides how an image is registered and removed at one site, and how a source that was given by name or handle is found.
What an image is to the engine is ``gallery``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyrepl import operations
from pyrepl.border import typed
from pyrepl.catalog import Catalog, ImageKey, check_name
from pyrepl.errors import Exists, NotFound, UsageError, WaitTimeout
from pyrepl.results import Progress, check_timeout
from pyrepl.runtime import images
from pyrepl.runtime.placement import FilePlacement, check_overwritten, path_of

if TYPE_CHECKING:
    from pyrepl.catalog import Image as ImageEntry
    from pyrepl.group import Group
    from pyrepl.operations import Operation
    from pyrepl.volume import Store, Volume

LOOK_EVERY = 0.02  # seconds between two looks whether a removed image is gone


class Image:
    """An image of a group at this site. Made by :meth:`Group.add_image` or found by :meth:`Group.image`; its other
    sites have a copy of their own under the same name.

    A source for :meth:`Volume.restore`, :meth:`Store.synchronize`, :meth:`Group.copy_range` and :meth:`clone`: the
    operation travels with the image's name, size and digest, and each site reads its own copy.

    Attributes:
        name: unique in the group, among images and stores.
        id: its number at this site.
        size: bytes.
        digest: SHA-256, as hexadecimal digits.
        device: the path of its file or block device at this site.
    """

    kind = "image"

    def __init__(self, group: Group, entry: ImageEntry) -> None:
        self._group = group
        self._key = entry.key
        self.id = entry.id
        self.name = entry.name
        self.size = entry.key.size
        self.digest = entry.key.digest.hex()
        self.device = entry.path

    @property
    def group(self) -> Group:
        return self._group

    @property
    def state(self) -> str:
        """``ready``; ``changed``: the file is another than it was when it was registered; ``missing``: it is not there;
        ``leaving``: it was removed, and stores still show it; ``gone``."""
        entry = self._entry()
        return "gone" if entry is None else self._group.site.gallery.state_of(entry)

    def clone(
        self,
        name: str,
        device: str | None = None,
        *,
        force: bool = False,
        verify: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> Volume:
        """A new volume ``name`` with the content of the image, at every site; on ``device`` if one is given here.

        Args:
            force: what the device holds may be lost.

        Raises:
            Refused: something stands on the device, and ``force`` is not given.
        """
        from pyrepl.volume import Volume

        if device is not None:
            check_overwritten(device, force=force)
        result = self._group.operate(
            lambda catalog: operations.clone_image(catalog, self._key, name),
            devices={name: device} if device is not None else {},
            verify=verify,
            wait=wait,
            timeout=timeout,
        )
        return Volume(self._group, result.created[name], name, result)

    def remove(self, *, wait: bool = True, timeout: float | None = None) -> None:
        """This site uses it no more; other sites keep theirs. What stores still show of it is copied to them first, in
        the background: its file must stay, unchanged, until the image is gone.

        Args:
            wait: return when it is gone; else when that is certain to come.
            timeout: seconds to wait at most.

        Raises:
            NotFound: it is gone already.
            WaitTimeout: it goes on.
        """
        group = self._group
        check_timeout(timeout)
        group.check()
        if self._entry() is None:
            raise NotFound(f"group {group.name!r}: image {self.name!r} was removed", name=self.name)
        group.between_steps(f"removing image {self.name!r}", lambda: group.site.gallery.remove(self.name))
        if wait:
            self.wait_gone(timeout)

    def wait_gone(self, timeout: float | None = None, look: Callable[[], None] = lambda: None) -> None:
        """Returns when a removed image is gone. ``look`` is called now and then; what it raises ends the waiting.

        Raises:
            WaitTimeout: it goes on.
        """
        group = self._group
        deadline = None if timeout is None else time.monotonic() + check_timeout(timeout)  # type: ignore[operator]
        while self._entry() is not None:
            look()
            if deadline is not None and time.monotonic() > deadline:
                raise WaitTimeout(f"image {self.name!r} of group {group.name!r} is not gone after {timeout:g} s: what "
                                  f"stores show of it is being copied; it goes on", name=self.name)
            time.sleep(LOOK_EVERY)
            group.check()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and other._group is self._group and other.id == self.id

    def __hash__(self) -> int:
        return hash((id(self._group), self.id))

    def __repr__(self) -> str:
        return f"<Image {self.name!r} of group {self._group.name!r}>"

    def _entry(self) -> ImageEntry | None:
        entry = self._group.site.gallery.images.get(self.name)
        return entry if entry is not None and entry.id == self.id else None


def add_image(
    group: Group, placement: FilePlacement, name: str, path: str | os.PathLike[str], progress: Progress | None
) -> Image:
    """See :meth:`Group.add_image`."""
    group.check()
    where = path_of(path, "image")
    check_name(name)
    region_size = group.region_size
    size = images.measure(where)
    if not size or size % region_size:
        longer = (size // region_size + 1) * region_size
        raise UsageError(
            f"{where} is {size} bytes long, and an image is made of whole regions of {region_size} bytes, as stores "
            f"are: make a copy that is {longer} bytes long (truncate -s {longer} adds zeros), or cut it", device=where,
            size=size, region_size=region_size)
    if placement.holds(where):
        raise UsageError(f"{where} lies where the node keeps the files of its stores, which come and go with them: "
                         f"copy it elsewhere", device=where)
    _check_new(group, name)
    def tell(done: int) -> None:
        if progress is not None:
            progress({"bytes_done": done, "bytes_total": size})

    try:
        with images.open_image(where, size):  # nobody uses it exclusively
            identity = images.identify(where)
            digest = images.digest(where, size, tell)
    except OSError as error:
        raise typed(error, f"group {group.name!r}: reading {where}", device=where) from error
    key = ImageKey(name, size, digest)
    with group.admission:
        _check_new(group, name)
        entry = group.between_steps(f"adding image {name!r}", lambda: group.site.gallery.add(key, where, identity))
    group.emit({"event": "image-added", "group": group.name, "image": name, "size": size, "digest": digest.hex()})
    return Image(group, entry)


def _check_new(group: Group, name: str) -> None:
    if name in group.site.gallery.images:
        raise Exists(f"group {group.name!r} has an image {name!r} at this site: remove it first, or give another name",
                     name=name)
    if group.site.end.catalog.is_taken(name):
        raise Exists(f"a store of group {group.name!r} is named {name!r}: give the image another name", name=name)


def copy_from(
    group: Group,
    verb: str,
    catalog: Catalog,
    target: str,
    source: Store | Image | str,
    offset: int | None = None,
    length: int | None = None,
) -> Operation:
    """The copy of a source, whatever it is, to a store: ``verb`` is restore, synchronize or copy-range."""
    size = group.region_size
    image = image_key(group, source, catalog)
    if image is not None:
        return operations.copy_image(verb, catalog, target, image, offset, length, region_size=size)
    name = group.name_of(source, catalog)  # type: ignore[arg-type]
    if verb == "restore":
        return operations.restore(catalog, target, name, offset, length, region_size=size)
    if verb == "synchronize":
        return operations.synchronize(catalog, target, name, region_size=size)
    return operations.copy_range(catalog, name, target, offset, length, region_size=size)  # type: ignore[arg-type]


def image_key(group: Group, source: Any, catalog: Catalog) -> ImageKey | None:
    """The image that is meant by a handle or a name; None: a store is meant.

    Raises:
        UsageError: an image of another group.
    """
    if isinstance(source, Image):
        if source.group is not group:
            raise UsageError(
                f"{source.name!r} is an image of group {source.group.name!r}: add it to group {group.name!r} too",
                name=source.name)
        return source._key
    if isinstance(source, str) and not catalog.is_taken(source):
        entry = group.site.gallery.images.get(source)
        return None if entry is None else entry.key
    return None
