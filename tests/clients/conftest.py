"""Exports for foreign clients: a daemon for a module, with a volume and an export of its own for each test; and pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemons import Daemon, Export, Pair, PairMaker

MIB = 1 << 20


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A pyrepld with the group "db", a primary without links."""
    daemon = Daemon(tmp_path_factory.mktemp("daemon") / "d", "alone")
    try:
        daemon.client.create_group("db", daemon.folder / "journal", journal_size=256 * MIB)
        yield daemon
    finally:
        daemon.close()


@pytest.fixture
def exports(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Callable[..., Export]]:
    """``exports(size, read_only=None)`` is an export of a fresh volume, all zeros; both go away with the test."""
    group, made = daemon.client.group("db"), []

    def make(size: int, *, read_only: bool | None = None) -> Export:
        name = f"volume-{len(group.volumes) + 1}"
        export = Export(daemon, group.add_volume(name, size=size), name, read_only=read_only)
        made.append(export)
        return export

    yield make
    for export in made:
        daemon.client.stop_export(export.name, force=True)
        export.volume.remove(force=True)


@pytest.fixture(scope="module")
def away(daemon: Daemon) -> Iterator[Export]:
    """An export of another group, whose link "away" leads to where nobody listens: it never had a secondary."""
    group = daemon.client.create_group("away", daemon.folder / "away.journal", journal_size=32 * MIB)
    export = Export(daemon, group.add_volume("away", size=8 * MIB), "away")
    group.add_link("away", "127.0.0.1:1")
    yield export


@pytest.fixture
def pairs(tmp_path: Path) -> Iterator[PairMaker]:
    """``pairs(size, mode)``: two daemons and a link, see :class:`Pair`."""
    made: list[Pair] = []

    def make(size: int, mode: str, **options: int) -> Pair:
        made.append(Pair(tmp_path / f"pair-{len(made)}", size, mode, **options))
        return made[-1]

    try:
        yield make
    finally:
        for pair in made:
            pair.close()
