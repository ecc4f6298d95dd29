"""Lists for people: aligned columns, without colour; where the terminal is too narrow for them, one block for each
entry. Knows nothing of what it shows."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

import click

GAP = "  "


def width() -> int | None:
    """Columns of the terminal; None where there is none, and a line may be as long as it likes."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return None


def show(titles: Sequence[str], rows: Sequence[Sequence[object]], *, none: str) -> None:
    """Writes a table on standard output.

    Args:
        titles: of the columns.
        rows: their cells; None is shown as "-". Whole numbers stand to the right.
        none: what is said if there are no rows.
    """
    if not rows:
        click.echo(none)
        return
    cells = [["-" if cell is None or cell == "" else str(cell) for cell in row] for row in rows]
    wide = [max(len(title), *(len(row[i]) for row in cells)) for i, title in enumerate(titles)]
    most = width()
    if most is not None and sum(wide) + len(GAP) * (len(wide) - 1) > most:
        label = max(len(title) for title in titles)
        click.echo("\n\n".join("\n".join(f"{t.lower():<{label}}  {c}" for t, c in zip(titles, row, strict=True))
                               for row in cells))
        return
    right = [all(isinstance(row[i], int | None) for row in rows) for i in range(len(titles))]
    for row in [list(titles), *cells]:
        line = GAP.join(f"{c:>{w}}" if r else f"{c:<{w}}" for c, w, r in zip(row, wide, right, strict=True))
        click.echo(line.rstrip())
