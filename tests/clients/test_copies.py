"""nbdcopy and qemu-img: images in and out, compared on the way."""

from __future__ import annotations

import json
import os

import pytest

from tests.support import clients

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture
def image(tmp_path):
    """A quarter noise, the rest holes and zeros."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for number in range(0, 64, 8):
            file.seek(number * MIB + number * 1000)
            file.write(os.urandom(2 * MIB))
        file.seek(3 * MIB)
        file.write(bytes(MIB))
    return path


def equal(export, path) -> bool:
    return export.volume.read(0, SIZE) == path.read_bytes()


@pytest.mark.parametrize("options", [
    [], ["--connections=4", "--requests=64"], ["--no-extents"], ["--destination-is-zero"], ["--synchronous"],
    ["--request-size=4096"], ["--request-size=33554432", "--flush"], ["--sparse=0", "--allocated"],
], ids=" ".join)
def test_nbdcopy_in_and_out(exports, image, tmp_path, options):
    clients.need("nbdcopy")
    export, back = exports(SIZE), tmp_path / "back"
    clients.run("nbdcopy", *options, image, export.uri())
    assert equal(export, image)
    clients.run("nbdcopy", *(option for option in options if "destination" not in option), export.uri("tcp"), back)
    assert back.read_bytes() == image.read_bytes()


def test_nbdcopy_overwrites_what_was_there(exports, image):
    """Holes of the source become zeros of an export that held something else."""
    clients.need("nbdcopy")
    export = exports(SIZE)
    export.volume.write(0, b"\xee" * SIZE)
    clients.run("nbdcopy", image, export.uri())
    assert equal(export, image)


def test_nbdcopy_from_one_export_to_another(exports, image):
    clients.need("nbdcopy")
    source, target = exports(SIZE), exports(SIZE)
    clients.run("nbdcopy", image, source.uri())
    clients.run("nbdcopy", "--connections=4", source.uri(), target.uri("tcp"))
    assert equal(target, image)


def test_nbdcopy_keeps_holes(exports, image, tmp_path):
    """What the export knows as zeros needs no space in the copy."""
    clients.need("nbdcopy")
    export, back = exports(SIZE), tmp_path / "back"
    clients.run("nbdcopy", image, export.uri())
    clients.run("nbdcopy", "--sparse=0", export.uri(), back)  # only what block status says, no look at the data
    assert back.read_bytes() == image.read_bytes()
    assert back.stat().st_blocks * 512 < SIZE // 2


def test_nbdcopy_into_a_read_only_export(exports, image):
    clients.need("nbdcopy")
    export = exports(SIZE, read_only=True)
    clients.run("nbdcopy", image, export.uri(), status=1)
    assert export.volume.read(0, SIZE) == bytes(SIZE)


def test_nbdcopy_of_too_large_an_image(exports, image):
    clients.need("nbdcopy")
    clients.run("nbdcopy", image, exports(SIZE // 2).uri(), status=1)


@pytest.mark.parametrize("options", [[], ["-W", "-m", "16"], ["-S", "0"], ["-c"], ["-t", "none"], ["-T", "none", "-t", "writeback"]], ids=" ".join)
def test_qemu_img_convert(exports, image, tmp_path, options):
    """Raw in, qcow2 out, compared by qemu-img and by us."""
    clients.need("qemu-img")
    export, back = exports(SIZE), tmp_path / "back.qcow2"
    into = [option for option in options if option != "-c"]
    clients.run("qemu-img", "convert", *into, "-n", "-f", "raw", "-O", "raw", image, export.uri())
    assert equal(export, image)
    if "none" not in options:
        clients.run("qemu-img", "convert", *options, "-f", "raw", "-O", "qcow2", export.uri("tcp"), back)
        clients.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", export.uri(), back)
    clients.run("qemu-img", "compare", "-f", "raw", "-F", "raw", export.uri(), image)


def test_qemu_img_sees_a_difference(exports, image):
    clients.need("qemu-img")
    export = exports(SIZE)
    clients.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, export.uri())
    export.volume.write(40 * MIB + 3, b"!")
    assert f"offset {40 * MIB}" in clients.run("qemu-img", "compare", "-f", "raw", "-F", "raw", export.uri(), image, status=1)


def test_qemu_img_map_and_info(exports):
    clients.need("qemu-img")
    export = exports(SIZE)
    export.volume.write(0, b"\x11" * SIZE)
    export.volume.zero(4 * MIB, 4 * MIB)
    export.volume.discard(40 * MIB, 2 * MIB)
    told = json.loads(clients.run("qemu-img", "map", "-f", "raw", "--output=json", export.uri()))
    assert sum(run["length"] for run in told) == SIZE
    assert [(run["start"], run["length"]) for run in told if run["zero"]] == [(4 * MIB, 4 * MIB), (40 * MIB, 2 * MIB)]
    assert json.loads(clients.run("qemu-img", "info", "-f", "raw", "--output=json", export.uri()))["virtual-size"] == SIZE


def test_a_fresh_volume_is_known_to_be_empty(exports):
    """Nobody has to read a terabyte of zeros to copy it."""
    clients.need("nbdinfo")
    (run,) = json.loads(clients.run("nbdinfo", "--map", "--json", exports(SIZE).uri()))
    assert run["type"] & 2
