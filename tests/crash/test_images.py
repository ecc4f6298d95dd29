"""Power loss around images: registered, copied from, removed while stores show them, and looked for at a start."""

from __future__ import annotations

import random

import pytest

from pyrepl import operations
from pyrepl.catalog import VOLUME, ImageKey
from pyrepl.errors import DeviceError, Refused
from pyrepl.site import Site
from tests.support.simulation import add_image, open_site
from tests.support.story import Story, Violation

SEEDS = range(900, 918)
COUNT = {"images": 0, "copies": 0, "removed": 0}


class ImageStory(Story):
    """A third of its operations are from images, which come and go; a file goes when the site says that it may."""

    copies = removed = 0

    def __init__(self, seed: int, **options: int) -> None:
        super().__init__(seed, **options)
        self.dice = random.Random(seed ^ 0x1314)
        self.files: dict[str, str] = {}  # name -> path

    def act(self) -> None:
        roll, gallery = self.dice.random(), self.site.gallery
        ready = [image for image in gallery.images.values() if not image.leaving]
        if roll < 0.03 and len(gallery.images) < 3:
            self.make_room()
            name = f"i{self.oracle.lsn}-{self.stamp}"
            content = b"".join(self.content(self.region) for _ in range(self.dice.choice((4, 6, 9))))
            key = add_image(self.site, self.world, name, content)
            self.oracle.images[key.digest] = content
            self.files[name] = gallery.images[name].path
            self.say("image", name, len(content) // self.region)
        elif roll < 0.05 and ready:
            image = self.dice.choice(ready)
            gallery.remove(image.name)
            self.removed += 1
            self.say("remove image", image.name)
        elif roll < 0.12 and ready:
            self.copy(self.dice.choice(ready).key)
        else:
            super().act()
        for name in [name for name in self.files if name not in gallery.images]:
            del self.world.disks[self.files.pop(name)]  # the user may delete it now

    def copy(self, key: ImageKey) -> None:
        self.make_room()
        catalog, region = self.site.end.catalog, self.region
        if self.dice.random() < 0.2 and len(catalog.stores) < 7:
            operation: operations.Operation = operations.clone_image(catalog, key, f"ci{self.oracle.lsn}")
        else:
            store = self.dice.choice(list(catalog))
            most = min(store.size, key.size) // region
            first = self.dice.randrange(most)
            verb = self.dice.choice(("restore", "synchronize", "copy-range"))
            operation = operations.copy_image(verb, catalog, store.name, key, first * region,
                                              self.dice.randrange(1, most - first + 1) * region, region_size=region)
        self.perform(operation)
        self.copies += 1

    def settle(self, site: Site) -> None:
        super().settle(site)
        if any(image.leaving for image in site.gallery.images.values()):
            raise Violation(f"at rest, images still leave: {site.gallery.images}")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_image_of_a_power_loss_opens_and_is_right(seed: int) -> None:
    sector, alignment = ((512, 512), (512, 4096), (4096, 4096))[seed % 3]
    story = ImageStory(seed, sector_size=sector, alignment=alignment, region_size=(4096, 8192)[seed % 2])
    COUNT["images"] += story.run(steps=220, crash_rate=0.08, some=2)
    COUNT["copies"] += story.copies
    COUNT["removed"] += story.removed


def test_that_was_enough() -> None:
    if COUNT["images"] == 0:
        pytest.skip("the stories run elsewhere")
    assert COUNT["images"] > 500 and COUNT["copies"] > 60 and COUNT["removed"] > 20, COUNT


def story_that_shows(seed: int = 5) -> tuple[ImageStory, str]:
    """A volume shows an image of its own length; nothing was moved yet."""
    story = ImageStory(seed)
    (store, *_) = [s for s in story.site.end.catalog if s.kind == VOLUME]
    content = bytes(range(256)) * (store.size // 256)
    key = add_image(story.site, story.world, "golden", content)
    story.oracle.images[key.digest] = content
    story.perform(operations.copy_image("restore", story.site.end.catalog, store.name, key, region_size=story.region))
    while story.site.applier.apply():  # and not the mover
        pass
    story.site.checkpoint()
    assert story.site.stores.shown(story.site.gallery.images["golden"].slot)
    return story, story.site.gallery.images["golden"].path


def test_a_file_that_changes_while_it_is_shown_stops_the_site_and_the_right_one_heals_it() -> None:
    story, path = story_that_shows()
    disk = story.world.disks[path]
    right = disk.read(0, disk.size)
    disk.rot(5, b"!")
    with pytest.raises(DeviceError, match="was changed, and stores of this group still show"):
        story.settle(story.site)
    story.site.abandon()
    with pytest.raises(DeviceError, match="put back a copy of what it was"):
        open_site(story.world, 1, options=story.options)
    disk.rot(0, right)
    site = open_site(story.world, 2, options=story.options)
    story.settle(site)
    story.compare(site, story.oracle.lsn, "with the right file")
    site.abandon()


def test_a_file_with_the_right_content_is_taken_whatever_its_identity() -> None:
    story, path = story_that_shows()
    story.site.abandon()
    identify = story.world.identify
    story.world.identify = lambda path: (7, *identify(path))  # type: ignore[method-assign]
    site = open_site(story.world, 1, options=story.options)
    assert site.gallery.images["golden"].identity[0] == 7 and site.gallery.state_of(site.gallery.images["golden"]) == "ready"
    story.settle(site)
    story.compare(site, story.oracle.lsn, "with another file")
    site.abandon()


def test_what_may_be_deleted_is_asked_for_by_no_start() -> None:
    """The image is gone: its file goes, and a power loss that instant finds all that it needs."""
    story, path = story_that_shows()
    story.site.gallery.remove("golden")
    while "golden" in story.site.gallery.images:
        assert story.site.step()
    del story.world.disks[path]
    for image in story.world.images(random.Random(1), 5):
        assert story.check(image, random.Random(2)) == story.oracle.lsn
    story.site.abandon()


def test_a_missing_file_matters_only_while_it_is_shown() -> None:
    story, path = story_that_shows()
    story.site.abandon()
    disk = story.world.disks.pop(path)
    with pytest.raises(OSError, match="no such image"):
        open_site(story.world, 1, options=story.options)
    story.world.disks[path] = disk
    site = open_site(story.world, 2, options=story.options)
    story.settle(site)
    site.close()
    del story.world.disks[path]
    site = open_site(story.world, 3, options=story.options)
    assert site.gallery.state_of(site.gallery.images["golden"]) == "missing"
    story.compare(site, story.oracle.lsn, "without the file")
    key, catalog = site.gallery.images["golden"].key, site.end.catalog
    with pytest.raises(Refused, match="cannot be opened any more"):
        site.admit(operations.copy_image("restore", catalog, next(iter(catalog)).name, key, region_size=story.region))
    site.gallery.remove("golden")
    story.settle(site)
    assert not site.gallery.images and not site.gallery.pledged
    site.close()
