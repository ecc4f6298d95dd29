"""qemu-io's patterns and fio's verification: what was written is read, under load and in any order."""

from __future__ import annotations

import json

import pytest

from tests.support import clients

MIB = 1 << 20


def qemu_io(uri, *commands, status=0, options=()):
    words = [word for command in commands for word in ("-c", command)]
    out = clients.run("qemu-io", "-f", "raw", *options, *words, uri, status=status)
    assert status or "verification failed" not in out, out
    return out


@pytest.mark.parametrize("options", [(), ("-n",), ("-t", "writethrough")], ids=["writeback", "none", "writethrough"])
def test_qemu_io_patterns(exports, options):
    clients.need("qemu-io")
    export = exports(16 * MIB)
    out = qemu_io(
        export.uri(),
        *(f"aio_write -P {number + 1} {number * 65536} 65536" for number in range(64)), "aio_flush",
        *(f"aio_read -P {number + 1} {number * 65536} 65536" for number in range(64)), "aio_flush",
        "write -P 0x5a 5M 1M", "write -P 0xa5 5500k 4k", "read -P 0x5a 5M 380k", "read -P 0xa5 5500k 4k",
        "write -f -P 0x33 7M 128k", "read -P 0x33 7M 128k",
        "write -z 7M 64k", "read -P 0 7M 64k", "read -P 0x33 7232k 64k",
        "write -z -u 7232k 4k", "read -P 0 7232k 4k", "read -P 0x33 7236k 60k",
        "discard 5M 1M", "read -P 0 5M 1M", "flush",
        "writev -P 0x77 8M 4k 8k 4k", "readv -P 0x77 8M 8k 8k",
        "write -P 0x99 16773120 4096", "read -P 0x99 16773120 4096",
        options=options,
    )
    assert out.count("wrote") >= 70 and out.count("read ") >= 70
    assert export.volume.read(0, 65536) == b"\1" * 65536 and export.volume.read(63 * 65536, 65536) == b"\x40" * 65536


def test_qemu_io_notices_what_is_wrong(exports):
    """The check above is not blind."""
    clients.need("qemu-io")
    export = exports(MIB)
    assert "verification failed" in qemu_io(export.uri(), "write -P 1 0 64k", "read -P 2 0 64k", status=1)


def test_qemu_io_on_a_read_only_export(exports):
    clients.need("qemu-io")
    export = exports(MIB, read_only=True)
    qemu_io(export.uri(), "read -P 0 0 64k", options=["-r"])
    qemu_io(export.uri(), "write -P 1 0 64k", status=1)
    assert export.volume.read(0, MIB) == bytes(MIB)


def fio(uri, folder, *options, timeout=100):
    out = clients.run("fio", "--name=job", "--ioengine=nbd", f"--uri={uri}", "--output-format=json", *options, timeout=timeout,
                      cwd=folder)
    jobs = json.loads(out[out.index("{"):])["jobs"]
    assert all(job["error"] == 0 for job in jobs)
    return jobs


@pytest.mark.parametrize("transport", ["unix", "tcp"])
@pytest.mark.parametrize("rw", ["randwrite", "randrw", "write"])
def test_fio_verifies(exports, tmp_path, rw, transport):
    """Four jobs, 32 in flight each, blocks of many sizes; each block is read back and its checksum compared."""
    clients.need("fio")
    export = exports(64 * MIB)
    jobs = fio(export.uri(transport), tmp_path, f"--rw={rw}", "--bsrange=512-128k", "--bs_unaligned=0", "--iodepth=32",
               "--numjobs=4", "--size=16m", "--offset_increment=16m", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
               "--fsync=64", "--randseed=7")
    assert len(jobs) == 4 and all(job["read"]["total_ios"] > 100 for job in jobs)


def test_fio_verifies_what_is_written_beside_trims(exports, tmp_path):
    clients.need("fio")
    export = exports(32 * MIB)
    fio(export.uri(), tmp_path, "--rw=randtrimwrite", "--bs=16k", "--iodepth=32", "--size=32m")


def test_fio_verification_notices_what_is_wrong(exports, tmp_path):
    """The check above is not blind: a block is changed behind fio's back between writing and reading."""
    clients.need("fio")
    export = exports(4 * MIB)
    common = ["--rw=write", "--bs=4k", "--iodepth=8", "--size=4m", "--verify=crc32c", "--verify_fatal=1"]
    fio(export.uri(), tmp_path, *common, "--do_verify=0")
    fio(export.uri(), tmp_path, *common, "--verify_only=1")
    export.volume.write(MIB + 100, b"!")
    clients.run("fio", "--name=job", "--ioengine=nbd", f"--uri={export.uri()}", *common, "--verify_only=1", status=1, cwd=tmp_path)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fio_verifies_for_five_minutes(exports, tmp_path):
    clients.need("fio")
    export = exports(512 * MIB)
    fio(export.uri(), tmp_path, "--rw=randrw", "--bsrange=512-256k", "--iodepth=32", "--numjobs=4", "--size=128m",
        "--offset_increment=128m", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fsync=256", "--time_based",
        "--runtime=300", timeout=800)
