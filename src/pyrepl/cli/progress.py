"""Progress of what takes long, on standard error: a bar on a terminal, lines with ``--progress`` elsewhere, else
nothing. Knows nothing of what is under way."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from pyrepl.cli.sizes import human, share

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

LINE_SECONDS = 1.0  # between two lines where there is no terminal


def progress_option(function: Any) -> Any:
    """The option ``--progress``."""
    return click.option(
        "--progress", "wanted", is_flag=True, help="Show progress on standard error even if that is no terminal."
    )(function)


class Progress:
    """How far something is, in bytes. A context manager."""

    def __init__(self, label: str, total: int | None, *, wanted: bool) -> None:
        """``total``: bytes, None if that is not known; ``wanted``: also where there is no terminal."""
        self._label, self._total, self._done = label, total, 0
        self._lines = wanted and not sys.stderr.isatty()
        self._told = time.monotonic()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True),
                       TransferSpeedColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total)
        return self

    def advance(self, count: int) -> None:
        """So many bytes more."""
        self.reach(self._done + count)

    def reach(self, done: int, total: int | None = None, label: str | None = None) -> None:
        """So many bytes of now so many in all, for what is now called so."""
        self._done = done
        self._total = total if total is not None else self._total
        self._label = label or self._label
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=self._total, description=self._label)
        elif self._lines and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            self._line()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._lines and kind is None:
            self._line()

    def _line(self) -> None:
        of = f" of {human(self._total)} ({share(self._done, self._total)})" if self._total else ""
        click.echo(f"{self._label}: {human(self._done)}{of}", err=True)
