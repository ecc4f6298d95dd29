"""How the demo is shown: progress bars while it runs, a table at the end. Nothing here is measured or decided."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from pyrepl.cli.sizes import human
from pyrepl.demo.scenario import Report, Step


class Quiet:
    """Shows nothing."""

    def begin(self, name: str, total: int | None, watch: Callable[[], int] | None) -> None:
        """Nothing."""

    def advance(self, count: int) -> None:
        """Nothing."""

    def end(self, step: Step) -> None:
        """Nothing."""


class Bars:
    """Progress bars on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
        from rich.text import Text

        class Watched(BarColumn):
            """A bar that asks how far things are whenever it is drawn."""

            max_refresh = 0.1

            def render(self, task: Any) -> Any:
                watch = task.fields.get("watch")
                if watch is not None and not task.finished and task.total:
                    task.completed = min(watch(), task.total * 0.99)
                return super().render(task)

        class Wire(ProgressColumn):
            """What crossed in this step."""

            def render(self, task: Any) -> Text:
                return Text(task.fields.get("wire", ""))

        self._progress = Progress(
            TextColumn("{task.description:<27}"), Watched(), TimeElapsedColumn(), Wire(), console=Console(stderr=True)
        )
        self._task: Any = None

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, name: str, total: int | None, watch: Callable[[], int] | None) -> None:
        """A bar for the step; without a total it just moves."""
        self._task = self._progress.add_task(name, total=total, watch=watch)

    def advance(self, count: int) -> None:
        """So many bytes more."""
        self._progress.advance(self._task, count)

    def end(self, step: Step) -> None:
        """The bar is full."""
        wire = human(step.bytes_on_wire) if step.bytes_on_wire else ""
        self._progress.update(self._task, total=1, completed=1, watch=None, wire=wire)


def show(report: Report) -> None:
    """The table and the verdict, on standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout)
    table = Table(title="pyrepl demo", title_justify="left")
    table.add_column("step", no_wrap=True)
    for heading in ("seconds", "changed", "on the wire", "as data"):
        table.add_column(heading, justify="right")
    for step in report.steps:
        shipped = human(step.bytes_if_shipped) if step.bytes_if_shipped is not None else ""
        table.add_row(step.name, f"{step.seconds:.2f}", human(step.bytes_changed), human(step.bytes_on_wire), shipped)
    console.print(table)
    restore = report.restore
    console.print(
        f"restore: {human(restore.bytes_changed)} changed, usable after "
        f"{restore.seconds_until_usable * 1000:.1f} ms (what was overwritten had been applied before); "
        f"{restore.bytes_on_wire} bytes crossed for it. The writers' own writes and "
        f"{restore.bytes_of_acknowledgements} bytes of acknowledgements and heartbeats crossed meanwhile, as always",
        highlight=False,
    )
    console.print(
        f"{report.acknowledged_writes} acknowledged writes of the writer, {report.lost_writes} lost; the slowest "
        f"took {report.slowest_write_seconds * 1000:.1f} ms",
        highlight=False,
    )
    for note in report.notes:
        console.print(note, highlight=False)
    for name, (first, second) in report.stores.items():
        words = "equal at both sites" if first == second else f"{first} at the first site, {second} at the second"
        console.print(f"{name}: {words}", highlight=False)
    console.print("[green]both sites are equal[/]" if report.equal else "[bold red]the sites differ[/]")
