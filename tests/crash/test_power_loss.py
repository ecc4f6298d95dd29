"""Power loss at any disk event: what is left recovers to one LSN of the whole group, not before the last flush (P1, P2).

Writes, flushes, snapshots, restores, refreshes, copies, deletes, clones, resizes, mover steps and checkpoints run in simulation;
at random disk events the images that a power loss could leave are recovered by the production code and compared with the
oracle, some of them after a second crash inside recovery.
"""

from __future__ import annotations

import pytest

from tests.support.simulation import SimulatedDevice
from tests.support.story import Story, ViewStory, Violation

SEEDS = range(48)
VIEW_SEEDS = range(500, 524)
IMAGES = {"checked": 0}
VIEWS = {"images": 0, "shown": 0}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_image_recovers_to_one_lsn(seed: int) -> None:
    sector, alignment = ((512, 512), (512, 4096), (4096, 4096))[seed % 3]
    story = Story(seed, sector_size=sector, alignment=alignment, region_size=(4096, 8192)[seed % 2])
    IMAGES["checked"] += story.run(steps=160, crash_rate=0.12, some=3)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", VIEW_SEEDS)
def test_views_are_what_they_were_and_gone_after_a_crash(seed: int) -> None:
    sector, alignment = ((512, 512), (512, 4096), (4096, 4096))[seed % 3]
    story = ViewStory(seed, sector_size=sector, alignment=alignment, region_size=(4096, 8192)[seed % 2])
    VIEWS["images"] += story.run(steps=140, crash_rate=0.12, some=3)
    VIEWS["shown"] += story.shown


def test_images_were_enough(request: pytest.FixtureRequest) -> None:
    if len(request.session.items) < len(SEEDS) + len(VIEW_SEEDS) + 1:
        pytest.skip("only a part of the seeds was asked for")
    print(f"{IMAGES['checked']} crash images, {VIEWS} with views, 0 violations")
    assert IMAGES["checked"] >= 2000 and VIEWS["images"] >= 1000 and VIEWS["shown"] >= 500


class TestTheTestSees:
    """Disks that break a rule that the design depends on: the enumerator must find it."""

    @pytest.mark.timeout(300)
    def test_a_disk_whose_flush_does_nothing(self) -> None:
        with pytest.raises(Violation, match="promised"):
            for seed in range(100, 110):
                story = Story(seed)
                story.world.lying = True
                story.run(steps=120, crash_rate=0.2, some=2)

    @pytest.mark.timeout(300)
    def test_stores_that_are_not_flushed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def flush_journal_only(self: SimulatedDevice) -> None:
            self.world.tick("flush", self.name)
            if self.name == "journal":
                self.disk.flush()

        monkeypatch.setattr(SimulatedDevice, "do_flush", flush_journal_only)
        with pytest.raises(Violation):
            for seed in range(200, 210):
                Story(seed).run(steps=160, crash_rate=0.2, some=3)
