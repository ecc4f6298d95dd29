"""``pyrepl status``: how the groups are, for people, for programs, for monitoring, or again and again."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from pyrepl.cli import headline, monitoring, sizes
from pyrepl.cli.connection import connect, socket_of, socket_option
from pyrepl.cli.names import GROUP
from pyrepl.cli.outcome import json_option
from pyrepl.cli.stores import statuses
from pyrepl.errors import PeerError, PyreplError

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode

LEAST_INTERVAL = 0.1


class WrongCheck(click.UsageError):
    """A wrong call, as monitoring expects it to end."""

    exit_code = monitoring.UNKNOWN


class Status(click.Command):
    """With ``--check`` a wrong call is "unknown" (3) too, as monitoring expects it."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        checking = "--check" in args
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if not checking:
                raise
            wrong = WrongCheck(error.format_message(), error.ctx)
            raise wrong from error


@click.command(cls=Status)
@click.argument("group", type=GROUP, required=False)
@json_option
@click.option("--watch", is_flag=True, help="Draw it again and again; without a terminal, a line for each change.")
@click.option("--interval", type=sizes.seconds, default="1", show_default=True, help="Seconds between two looks.")
@click.option("--check", is_flag=True, help="One line for monitoring, which counts the exit status.")
@click.option("--warn-lag", type=sizes.seconds, default="60", show_default=True, help="Behind by so much: warning.")
@click.option("--crit-lag", type=sizes.seconds, default="600", show_default=True, help="Behind by so much: critical.")
@click.option("--warn-journal", type=sizes.percent, default="80", show_default=True, help="Percent full: warning.")
@click.option("--crit-journal", type=sizes.percent, default="95", show_default=True, help="Percent full: critical.")
@socket_option
@click.pass_context
def status(
    ctx: click.Context, group: str | None, as_json: bool, watch: bool, interval: float, check: bool, warn_lag: float,
    crit_lag: float, warn_journal: float, crit_journal: float, socket: str | None,
) -> None:
    """How the groups are. A line for each link first, then what else is known.

    \b
      db  primary  → paris  consistent, 0.4 s behind (12 MiB, journal 3 % full)

    --check follows the convention of monitoring plug-ins: one line with figures behind a bar, and the worst that
    was found as exit status: 0 ok, 1 warning, 2 critical, 3 unknown. Critical: a group failed; a split brain; a
    link is refused, diverged or down; it, or the journal, is beyond a critical threshold; this site, or a
    secondary, stands still for want of room. Warning: a link is paused, connecting (also while its secondary is
    busy, for 10 s) or resyncing; a sync link does not hold writes back; a secondary is inconsistent, or its primary
    is not connected; a verification has found a secondary's copy different, and did not repair it; the mover rests
    for want of room; beyond a warning threshold. Unknown: the daemon does not answer, or there is no such group.

    \b
    Example:
      pyrepl status
      pyrepl status db --watch
      pyrepl status --check --warn-lag 30s --crit-lag 5m
    """
    if as_json + watch + check > 1:
        raise click.UsageError("--json, --watch and --check exclude each other")
    path = socket_of(ctx, socket)
    if check:
        limits = monitoring.Limits(warn_lag, crit_lag, warn_journal, crit_journal)
        ctx.exit(_check(path, group, limits))
    if watch and interval < LEAST_INTERVAL:
        raise click.UsageError(f"--interval {interval:g}: give at least {LEAST_INTERVAL} seconds")
    with connect(path) as node:
        if watch:
            _watch(node, group, interval)
        elif as_json:
            _json(node, group)
        else:
            click.echo("\n".join(_text(statuses(node, group), colour=_wants_colour())))


def _json(node: RemoteNode, group: str | None) -> None:
    from pyrepl.cli import output, reports

    told = node.status()
    groups = told["groups"] if group is None else [node.group(group).status()]
    output.write(output.Status(node=reports.node(told), groups=[reports.group(one) for one in groups]))


def _check(path: str, group: str | None, limits: monitoring.Limits) -> int:
    try:
        with connect(path) as node:
            verdict = monitoring.judge(statuses(node, group), limits)
    except (PyreplError, OSError) as error:
        verdict = monitoring.Verdict(monitoring.UNKNOWN, str(error), [])
    click.echo(verdict.line())
    return verdict.status


def _text(groups: list[dict[str, Any]], *, colour: bool, details: bool = True) -> list[str]:
    if not groups:
        return ["no groups: pyrepl group create --help"]
    paint = headline.coloured if colour else headline.plain
    width = max(len(group["group"]) for group in groups)
    found = [line for group in groups for line in headline.lines(group, paint, width=width)]
    for group in groups:
        below = headline.detail(group) if details else []
        if below:
            found += ["", group["group"], *below] if len(groups) > 1 else below
    return found


def _wants_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


# ---- again and again


def _watch(node: RemoteNode, group: str | None, interval: float) -> None:
    if not sys.stdout.isatty():
        _watch_lines(node, group, interval)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    colour = _wants_colour()
    console = Console(no_color=not colour, highlight=False)

    def draw(groups: list[dict[str, Any]] | str) -> Text:
        text = groups if isinstance(groups, str) else "\n".join(_text(groups, colour=colour))
        return Text.from_ansi(text, overflow="ellipsis", no_wrap=True)

    signal.signal(signal.SIGTERM, _leave)  # the terminal is given back as it was
    live = Live(draw(statuses(node, group)), console=console, auto_refresh=False, screen=True)
    try:
        live.start(refresh=True)
        while True:
            time.sleep(interval)
            live.update(draw(_look_again(node, group)), refresh=True)
    finally:
        live.stop()  # also if the end comes in the midst of its start


def _look_again(node: RemoteNode, group: str | None) -> list[dict[str, Any]] | str:
    """The statuses; or why there are none, while the daemon is restarted."""
    try:
        return statuses(node, group)
    except PyreplError as error:
        if isinstance(error, PeerError) or isinstance(error.__cause__, OSError):
            return f"the daemon does not answer: {error}"
        raise


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _watch_lines(node: RemoteNode, group: str | None, interval: float) -> None:
    """A line whenever the words change: figures always do."""
    last: dict[tuple[str, str], tuple[Any, ...]] = {}
    groups: list[dict[str, Any]] | str = statuses(node, group)
    lost = ""
    while True:
        if isinstance(groups, str):
            if groups != lost:
                click.echo(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}  {groups}")
            lost, last = groups, {}  # all is told again when it is back
            time.sleep(interval)
            groups = _look_again(node, group)
            continue
        now: dict[tuple[str, str], tuple[Any, ...]] = {}
        lost = ""
        for one in groups:
            for name, words, line in _changes(one):
                now[one["group"], name] = words
                if last.get((one["group"], name)) != words:
                    click.echo(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}  {line}")
        for gone in _gone(set(last), set(now), groups):
            click.echo(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}  {gone}  gone")
        last = now
        time.sleep(interval)
        groups = _look_again(node, group)


def _gone(last: set[tuple[str, str]], now: set[tuple[str, str]], groups: list[dict[str, Any]]) -> list[str]:
    """What had a line, and is no more. A group has one of its own only while it has no links, and the links of a group
    that has failed are not shown, which does not make them less."""
    states = {one["group"]: one["state"] for one in groups}
    lost = sorted({group for group, _ in last} - states.keys())
    links = [f"{group}  → {name}" for group, name in sorted(last - now) if name and states.get(group) == "active"]
    return lost + links


def _changes(group: dict[str, Any]) -> list[tuple[str, tuple[Any, ...], str]]:
    """For each line: whose it is, the words of which a change counts, and the line."""
    parted = group.get("split_brain") or []
    own = (group.get("role"), group["state"], group["error"], group.get("consistent"), group.get("primary_connected"),
           (group.get("found_different") or {}).get("lsn"), group.get("stands") is None,
           *((one["node"], one["fork_lsn"]) for one in parted if one["link"] is None))
    links = group["links"] if group["state"] == "active" and group.get("role") == "primary" else []
    if not links:
        return [("", own, headline.lines(group)[0])]
    found = []
    for link in links:
        mine = [one for one in parted if one["link"] in (None, link["name"])]
        words = (*own, link["state"], link["consistent"], link["synced"], link["degraded"], link["last_error"],
                 bool(link.get("stands")),
                 (link.get("found_different") or {}).get("lsn"),
                 *((one["node"], one["fork_lsn"]) for one in mine))
        lines = headline.lines({**group, "links": [link], "split_brain": mine})
        found.append((link["name"], words, " | ".join(line.strip() for line in lines)))
    return found
