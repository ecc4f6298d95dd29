"""``pyrepl doctor`` and ``pyrepl --version -v``: what this machine offers, and what is wrong with the installation."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from typing import Literal, NamedTuple

import click

DISTRIBUTION = "pyrepl-volume"
LIBRARIES = ("cffi", "numpy", "msgspec", "xxhash", "click", "rich", "prometheus-client", "cryptography")


class Answer(NamedTuple):
    """One line of the doctor. ``state`` is ok, note or bad."""

    name: str
    state: Literal["ok", "note", "bad"]
    text: str


def version_lines(verbose: bool) -> list[str]:
    """The version; verbose: engine, checksum kernel, formats, Python, kernel and libraries too."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version(DISTRIBUTION)
    except PackageNotFoundError:
        own = "(not installed: run from a checkout)"
    lines = [f"{DISTRIBUTION} {own}"]
    if verbose:
        from pyrepl._core import crc32c, device, layout

        engine, why = device.probe()
        lines += [
            f"formats        disk {layout.DISK_VERSION}, wire {layout.WIRE_VERSION}",
            f"engine         {engine}" + (f" ({why})" if why else ""),
            f"crc32c         {crc32c.chosen()} (of {', '.join(crc32c.kernels())})",
            f"python         {platform.python_implementation()} {platform.python_version()} {platform.machine()}",
            f"kernel         {platform.system()} {platform.release()}",
        ]
        for name in LIBRARIES:
            try:
                lines.append(f"{name:<14} {version(name)}")
            except PackageNotFoundError:
                lines.append(f"{name:<14} missing")
    return lines


def answers() -> Iterator[Answer]:
    """Everything that is looked at, in order."""
    yield _python()
    yield _engine()
    yield _loop()
    yield _direct()
    yield from _owners()


def _python() -> Answer:
    good = sys.version_info >= (3, 11) and sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
    text = f"CPython {platform.python_version()}, {platform.system()} {platform.release()}, {platform.machine()}"
    return Answer("platform", "ok" if good else "bad", text)


def _engine() -> Answer:
    from pyrepl._core import device

    engine, why = device.probe()
    return Answer("engine", "ok" if engine == "io_uring" else "note", f"{engine}" + (f": {why}" if why else ""))


def _loop() -> Answer:
    if not os.path.exists("/dev/loop-control"):
        return Answer("loop devices", "note", "/dev/loop-control is missing: the demo uses files")
    if os.geteuid() != 0:
        return Answer("loop devices", "note", "need root: the demo uses files")
    return Answer("loop devices", "ok", "can be attached")


def _direct() -> Answer:
    """Sector size and direct I/O of the file system under the folder for temporary files."""
    import tempfile

    from pyrepl._core.device import FileDevice

    with tempfile.NamedTemporaryFile(prefix="pyrepl-doctor-") as file:
        file.truncate(1 << 20)
        try:
            with FileDevice(file.name) as device:
                return Answer(
                    "direct I/O", "ok", f"{os.path.dirname(file.name)}: sectors of {device.sector_size} bytes"
                )
        except OSError as error:
            return Answer("direct I/O", "note", f"{os.path.dirname(file.name)}: {error} (use --dir on a disk)")


def _owners() -> Iterator[Answer]:
    """Which distributions own the import name: PyPI's "pyrepl" is another project that installs into this folder."""
    from importlib.metadata import packages_distributions

    import pyrepl

    found = sorted(set(packages_distributions().get("pyrepl", [])))
    where = os.path.dirname(pyrepl.__file__ or "?")
    if found == [DISTRIBUTION]:
        yield Answer("installation", "ok", where)
    elif not found:
        yield Answer("installation", "note", f"{where}: not installed, run from a checkout")
    else:
        others = ", ".join(name for name in found if name != DISTRIBUTION)
        yield Answer(
            "installation",
            "bad",
            f"{where} has two owners: {DISTRIBUTION} and {others}. Cure: pip uninstall {others}; "
            f"pip install --force-reinstall {DISTRIBUTION}",
        )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """What this machine offers and what is wrong with the installation. Ends with 1 if something is bad.

    \b
    Example:
      pyrepl doctor
    """
    found = list(answers())
    if as_json:
        from pyrepl.cli import output

        told = [output.Answer(name=one.name, state=one.state, text=one.text) for one in found]
        output.write(output.Doctor(versions=version_lines(True), answers=told))
    else:
        click.echo("\n".join(version_lines(True)))
        for answer in found:
            click.echo(f"{answer.state:<5} {answer.name:<14} {answer.text}")
    ctx.exit(1 if any(answer.state == "bad" for answer in found) else 0)
