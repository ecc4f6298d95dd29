"""The native code under AddressSanitizer and UndefinedBehaviorSanitizer.

A copy of the sources is built with both, and the part of the suite that drives every room runs on it in other
processes. Whatever they report fails the test. Faults that are planted on purpose show that a report would be seen.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.examples import SHARE

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
REPORTS = ("ERROR: AddressSanitizer", "runtime error:")  # not the warning that a size cannot be had: tests ask for it

# Not here: what measures memory (the sanitizer keeps freed memory),
# what makes loop devices (a run that is aborted would leave them behind),
# and what starts sites by the hundred, where Python takes most of the time, or waits.
NOT_HERE = ["-m", "not device", *(part for test in (
    "core/test_device.py::test_the_pool_is_bounded", "engine/test_link.py::test_more_starts_than_a_lineage_keeps",
    "engine/test_link.py::test_a_secondary_that_was_away_for_too_many_starts",
    "api/test_node.py::test_a_group_is_imported_where_its_journal_is_seen") for part in ("--deselect", f"tests/{test}"))]
HALVES = {
    "rooms": [f"tests/core/test_{room}.py" for room in (
        "layout", "crc32c", "regions", "sources", "device", "batch", "stores", "pump", "window", "stream")]
    + ["tests/nbd/test_transmission.py"],
    "engine": [
        "tests/core/test_log_tails.py", "tests/core/test_view.py", "tests/core/test_epoch.py",
        *(f"tests/crash/test_power_loss.py::test_every_image_recovers_to_one_lsn[{seed}]" for seed in (0, 1, 2, 15)),
        "tests/engine/test_link.py",
        *(f"tests/api/test_{subject}.py" for subject in ("node", "volume", "operations"))],
}

# Into buffers.c, whose pool must not hide them.
PLANTED = r"""
#include <string.h>
__attribute__((constructor)) static void planted(void)
{
    const char *fault = getenv("FAULT");
    volatile uint8_t *buffer = pr_buffer_take(16);
    volatile int bits = 40;
    if (fault && !strcmp(fault, "overflow"))
        buffer[16] = 0;
    pr_buffer_give((void *)buffer, 16);
    if (fault && !strcmp(fault, "late"))
        buffer[0] = 0;
    if (fault && !strcmp(fault, "undefined"))
        bits = 1 << bits;
}
"""


def libraries() -> list[str]:
    """The runtimes to preload: Python itself is not instrumented, so they must be there before it."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not installed")
    found = []
    for name in ("libasan.so", "libubsan.so"):
        done = subprocess.run([gcc, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        if not os.path.isabs(done.stdout.strip()):
            pytest.skip(f"gcc has no {name}")
        found.append(done.stdout.strip())
    return found


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would steer the tests or the build from outside."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("PYREPL_", "PYTEST_", "COV_"))}
    return {**mine, **more}


def under_sanitizers(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a process that uses the sanitized copy in this folder."""
    (folder / "reports").mkdir(exist_ok=True)
    return environment(
        LD_PRELOAD=" ".join(libraries()),
        # Python keeps memory until the end on purpose: leaks are not looked for. Sizes that cannot be had are tested.
        ASAN_OPTIONS="detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:detect_stack_use_after_return=1:"
        f"log_path={folder / 'reports' / 'asan'}",
        UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1",
        PYTHONMALLOC="malloc",  # every object is an allocation that the sanitizer knows
        PYTHONPATH=str(folder / "src"),
        **more,
    )


def reports(folder: Path) -> str:
    """The reports of memory errors, of processes too whose output a test has swallowed."""
    written = [path.read_text(errors="replace") for path in sorted((folder / "reports").glob("*"))]
    return "".join(text for text in written if any(word in text for word in REPORTS))


def build(folder: Path, *rooms: str) -> None:
    """Builds the copy in this folder. Without pyproject.toml: old setuptools cannot read it, and it is not needed."""
    more = {"PYREPL_ROOMS": ",".join(rooms)} if rooms else {}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib=src", "--build-temp=build", "-j2"],
        cwd=folder, capture_output=True, text=True, check=False,
        env=environment(PYREPL_SANITIZE="address,undefined", CC="gcc", CFLAGS=" ".join(FLAGS), **more),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the sources, its rooms built with both sanitizers, and the tests beside it."""
    if not (ROOT / "setup.py").is_file() or not (ROOT / "src" / "_core").is_dir():
        pytest.skip("the sources are not beside the tests")
    libraries()
    missing = [name for name in ("Cython", "setuptools", "cffi") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the sources cannot be built here: no {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("sanitized")
    built = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "src", folder / "src", ignore=built)
    shutil.copy(ROOT / "setup.py", folder)
    build(folder)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=built)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run(folder: Path, tests: Sequence[str]) -> tuple[str, int]:
    """What these tests print, and how they end. Only sys.stdout and sys.stderr are captured by pytest: a report goes to the
    descriptor, and dies with it."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", "--timeout=600", *NOT_HERE, *tests],
        cwd=folder, env=under_sanitizers(folder, **{SHARE: "0.25"}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        check=False,
    )
    return done.stdout, done.returncode


@pytest.mark.timeout(1500)  # the first of them builds
@pytest.mark.parametrize("half", HALVES)
def test_the_suite_without_a_report(sanitized: Path, half: str) -> None:
    code = "import pyrepl._core.window as w, pyrepl._core._blk as b; print(w.__file__, b.__file__)"
    used = subprocess.run(
        [sys.executable, "-c", code],
        env=under_sanitizers(sanitized), capture_output=True, text=True, check=True,
    ).stdout.split()
    for path in used:
        assert path.startswith(str(sanitized)) and b"__asan_report_load" in Path(path).read_bytes(), "not the copy"
    output, code_of_it = run(sanitized, HALVES[half])
    print(f"{half}: {output.splitlines()[-1]}")
    first = min((output.index(word) for word in REPORTS if word in output), default=None)
    assert first is None, output[max(0, first - 500):first + 8000]
    assert not reports(sanitized), reports(sanitized)[:8000]
    assert code_of_it == 0 and " passed" in output, f"it ended with {code_of_it}: {output[-8000:]}"


@pytest.mark.timeout(120)
def test_encoding_stays_within_the_buffer(tmp_path: Path) -> None:
    """regions.c alone, for from Python its buffer is too short only if another thread marks at the wrong moment."""
    sources = ROOT / "src" / "_core"
    if not sources.is_dir():
        pytest.skip("the sources are not beside the tests")
    libraries()
    program = tmp_path / "short_buffers"
    own = Path(__file__).with_name("short_buffers.c")
    command = ["gcc", "-g1", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", *FLAGS, f"-I{sources}", str(own)]
    subprocess.run([*command, str(sources / "regions.c"), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False,
                          env=environment(UBSAN_OPTIONS="print_stacktrace=1"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def planted(sanitized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second copy, with faults in one room."""
    folder = tmp_path_factory.mktemp("planted")
    shutil.copytree(sanitized / "src", folder / "src")
    shutil.copy(sanitized / "setup.py", folder)
    with open(folder / "src" / "_core" / "buffers.c", "a") as file:
        file.write(PLANTED)
    build(folder, "buffers")
    return folder


class TestTheTestSees:
    """Faults that are planted: each must be reported, by the flags and options that the suite above relies on."""

    def run(self, folder: Path, **fault: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-c", "import pyrepl._core.buffers"], capture_output=True, text=True,
                              env=under_sanitizers(folder, **fault), check=False)
        seen = done.stderr + reports(folder)
        shutil.rmtree(folder / "reports")
        return done.returncode, seen

    @pytest.mark.timeout(300)
    @pytest.mark.parametrize(("fault", "message"), [
        ("overflow", "heap-buffer-overflow"), ("late", "heap-use-after-free"), ("undefined", "runtime error: shift")])
    def test_a_planted_fault(self, planted: Path, fault: str, message: str) -> None:
        assert self.run(planted) == (0, "")
        code, seen = self.run(planted, FAULT=fault)
        assert code != 0 and message in seen and any(word in seen for word in REPORTS), seen
