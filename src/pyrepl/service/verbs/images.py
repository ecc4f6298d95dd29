"""The verbs of images. Decides nothing of what they mean: that is ``pyrepl.image``'s."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrepl._core import layout
from pyrepl.errors import NotFound
from pyrepl.remote import requests
from pyrepl.remote.values import ImageInfo, StoreKey, StoreMade
from pyrepl.service.verbs.call import Call, made, store_of

if TYPE_CHECKING:
    from pyrepl.image import Image
    from pyrepl.volume import Store


def group_add_image(call: Call, request: requests.GroupAddImage) -> ImageInfo:
    return _info(call.node.group(request.group).add_image(request.name, request.path, progress=call.progress))


def group_images(call: Call, request: requests.GroupImages) -> tuple[ImageInfo, ...]:
    return tuple(_info(image) for image in call.node.group(request.group).images)


def image_show(call: Call, request: requests.ImageShow) -> ImageInfo:
    return _info(image_of(call, request.image))


def image_clone(call: Call, request: requests.ImageClone) -> StoreMade:
    image = image_of(call, request.image)
    volume = image.clone(request.name, request.device, force=request.force, verify=request.verify, wait=False)
    return made(call, volume, request)


def image_remove(call: Call, request: requests.ImageRemove) -> None:
    image = image_of(call, request.image)
    image.remove(wait=False)
    if request.wait:
        image.wait_gone(request.timeout, call.look)


def image_of(call: Call, key: StoreKey) -> Image:
    """The handle of the image that a client means.

    Raises:
        NotFound: there is none, or the one that was meant was removed.
    """
    image = call.node.group(key.group).image(key.name)
    if key.id not in (0, image.id):
        raise NotFound(f"group {key.group!r}: the image {key.name!r} that was meant was removed; another has its name "
                       f"now", name=key.name)
    return image


def source_of(call: Call, key: StoreKey) -> Store | Image:
    """A store or an image, whatever the client means."""
    group = call.node.group(key.group)
    if key.id >= layout.FIRST_LOCAL or (not key.id and group.look_up(key.name) is None
                                        and key.name in group.site.gallery.images):
        return image_of(call, key)
    return store_of(call, key)


def _info(image: Image) -> ImageInfo:
    return ImageInfo(
        group=image.group.name,
        name=image.name,
        id=image.id,
        size=image.size,
        digest=image.digest,
        device=image.device,
        state=image.state,
    )
