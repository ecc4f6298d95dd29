"""The gallery: the images that a site has, third copies that are never written by it.

An image is registered at each site for itself, under a name that is the same everywhere; its device is opened for
reading only and shared. It stands in the table of stores with a map of its own device, so that ``copy(V := image)`` is
an operation as any other: V shows the image's device until the mover has copied it, or what was written since.

    add        a checkpoint holds it before the call returns: the notes of operations that follow find its slot
    pledge     an operation that stands in the journal and is not performed yet keeps its image
    remove     marked as leaving by a checkpoint; the mover then hands over what is shown from it; a checkpoint without
               it is durable before it is gone, so that no start needs the file after that
    a change   the file is known by its identity (its size, inode and time of change). An image that has another
               identity is not used; if a store shows it, the site stops as for a broken device. A start then makes the
               digest again, and takes what has the right one.

Decides when an image may be used and when it is gone. Must not know how a file is opened or digested (``seams``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pyrepl.catalog import MOST_IMAGES, Image, ImageKey
from pyrepl.errors import DeviceError, NotFound, Refused, check, some_of
from pyrepl.operations import CopiedImage, Effect

if TYPE_CHECKING:
    from pyrepl.site import Site

READY, CHANGED, MISSING, LEAVING = STATES = ("ready", "changed", "missing", "leaving")


class Gallery:
    """The images of one site. ``pledge`` may be called from any thread, the rest between two steps of the applier."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.shelf = site.shelf
        self.pledged: list[str] = []  # names, once for each copy that is not performed yet

    # ---- asked

    @property
    def images(self) -> dict[str, Image]:
        """By name."""
        return self.shelf.images

    def find(self, name: str) -> Image:
        """The image of that name.

        Raises:
            NotFound: there is none; the text lists some that there are.
        """
        try:
            return self.images[name]
        except (KeyError, TypeError):
            some = some_of(self.images)
            raise NotFound(f"group {self.site.name!r} has no image {name!r} at this site (it has: {some})",
                           name=name) from None

    def state_of(self, image: Image) -> str:
        """``ready``, ``changed`` (the file is another than it was), ``missing`` (it is not there, or too short), or
        ``leaving`` (it was removed, and stores still show it)."""
        if image.leaving:
            return LEAVING
        if image.name in self.shelf.unhung:
            return MISSING
        try:
            identity = self.shelf.placement.identify(image.path)
        except OSError:
            return MISSING
        return READY if identity == image.identity else CHANGED

    # ---- used

    def pledge(self, effects: list[Effect]) -> None:
        """The images that these effects copy from are there until :meth:`redeem`.

        Raises:
            NotFound, Refused: one is not there, or is another; nothing was changed.
        """
        self.hold(effects)  # first: who removes one from here on waits for it
        try:
            for effect in effects:
                if isinstance(effect, CopiedImage):
                    self._judge(effect.image)
        except BaseException:
            self.redeem(effects)
            raise

    def try_pledge(self, effects: list[Effect]) -> str:
        """The same at a secondary: why not, in words that may be told to the primary; empty: they are pledged."""
        try:
            self.pledge(effects)
        except (NotFound, Refused) as error:
            return str(error.context["why"])
        return ""

    def hold(self, effects: list[Effect]) -> None:
        """Pledged again, at a start."""
        self.pledged += [effect.image.name for effect in effects if isinstance(effect, CopiedImage)]

    def redeem(self, effects: list[Effect]) -> None:
        """What they were pledged for is done, or will not be."""
        for effect in effects:
            if isinstance(effect, CopiedImage):
                self.pledged.remove(effect.image.name)

    def _judge(self, key: ImageKey) -> None:
        if key.name not in self.images:
            raise NotFound(f"group {self.site.name!r} has no image {key.name!r} at this site: register a copy of it",
                           name=key.name, why="it has no image of that name")
        image = self.find(key.name)
        where = f"image {key.name!r} of group {self.site.name!r}"
        if image.key != key:
            raise Refused(
                f"{where} is {image.key.size} bytes with the digest {image.key.digest.hex()[:16]}... at this site, the "
                f"operation means {key.size} bytes with {key.digest.hex()[:16]}...: register a copy of the same image "
                f"here", reason="image", name=key.name, why="its image of that name is another")
        state = self.state_of(image)
        if state != READY:
            cure = {
                CHANGED: "its file was changed since it was registered: remove it and add it again",
                MISSING: f"its file {image.path} cannot be opened any more: put it back and open the group again, or "
                         f"remove it",
                LEAVING: "it is being removed: add it again under this name when it is gone",
            }
            raise Refused(f"{where} cannot be used: {cure[state]}", reason="image", name=key.name, state=state,
                          why=f"its image of that name is {state}")

    # ---- changed, between two steps

    def add(self, key: ImageKey, path: str, identity: tuple[int, ...]) -> Image:
        """The image is this site's from here on; durable.

        Raises:
            Refused: too many, or no room; the file is not the one any more whose digest was made.
            OSError: it cannot be opened.
        """
        site, shelf = self.site, self.shelf
        if len(self.images) >= MOST_IMAGES:
            raise Refused(f"group {site.name!r} has {MOST_IMAGES} images at this site, which is the most: remove some "
                          f"first", reason="limit")
        site.check_checkpoint_room()
        if site.shelf.free_slots <= MOST_IMAGES:
            raise Refused(f"group {site.name!r} has no slot for an image: deleted stores keep theirs until what others "
                          f"show from them is handed over; try again", reason="limit", retryable=True)
        number = site.views.take_number()
        image = Image(id=number, key=key, slot=shelf.free_slot(), path=path, identity=identity)
        if shelf.placement.identify(path) != identity:
            raise Refused(f"{path} was changed while its digest was made: try again when it is at rest",
                          reason="changed", retryable=True)
        shelf.hang(image)
        try:
            site.checkpoint()
        except BaseException:
            shelf.take_down(image.name)
            raise
        return image

    def remove(self, name: str) -> None:
        """The image is used no more, and gone when nobody shows it; durable. Harmless the second time."""
        image = self.find(name)
        if not image.leaving:
            self.images[name] = msgspec.structs.replace(image, leaving=True)
            self.site.checkpoint()
        if name in self.shelf.unhung:  # nobody shows it: the site would not have opened
            self.let_go(self.images[name])
        self.site.applier.moving = True

    def leaving(self) -> list[Image]:
        """Those whose content the mover is to hand over."""
        return [image for image in self.images.values() if image.leaving and image.name not in self.pledged]

    def let_go(self, image: Image) -> None:
        """Nobody shows it: no checkpoint knows it any more when this returns."""
        check(image.name not in self.pledged, "an image goes when nothing waits for it", name=image.name)
        self.shelf.take_down(image.name)
        self.site.checkpoint()

    # ---- watched

    def watch(self) -> None:
        """Before the mover reads: what stores show of images is still what it was.

        Raises:
            DeviceError: it is not; the site cannot go on.
        """
        for image in self.images.values():
            if image.name in self.shelf.unhung or not self.site.stores.shown(image.slot, 1):
                continue
            try:
                same = self.shelf.placement.identify(image.path) == image.identity
            except OSError:
                same = True  # moved or unlinked: the open device still holds it
            if not same:
                raise _broken(image)

    def settle(self) -> None:
        """At a start, when all maps are known: what is shown is what it was.

        Raises:
            DeviceError: it is not, and stores show it.
        """
        placement = self.shelf.placement
        for name, image in list(self.images.items()):
            shown = name not in self.shelf.unhung and self.site.stores.shown(image.slot, 1)
            if not shown and name not in self.pledged:
                continue
            identity = placement.identify(image.path)
            if identity == image.identity:
                continue
            if placement.digest(image.path, image.key.size) != image.key.digest:
                raise _broken(image)
            self.images[name] = msgspec.structs.replace(image, identity=identity)


def _broken(image: Image) -> DeviceError:
    return DeviceError(
        f"the file {image.path} of image {image.name!r} was changed, and stores of this group still show what it held: "
        f"put back a copy of what it was ({image.key.size} bytes, SHA-256 {image.key.digest.hex()}) and open the group "
        f"again", device=image.path, image=image.name)
