"""``pyrepl job``: the commands that were given to a daemon, by whom, and what came of them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from pyrepl.cli import sizes, tables
from pyrepl.cli.connection import asks_daemon
from pyrepl.cli.names import GROUP
from pyrepl.cli.outcome import json_option
from pyrepl.errors import NotFound

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode

WIDEST = 80  # characters of an argument, or of what came of it, in the list
MOST_NAMED = 4  # operations of a set
HOW_IT_WAITS = ("wait", "timeout", "group")  # of the arguments, not what is done


@click.group()
def job() -> None:
    """Commands that were given to the daemon: those under way, and the last 1000 that are over, over its restarts too.

    Earlier ones stand in its log, as lines of "audit". Data that are written are no job.

    \b
    Example:
      pyrepl job list
    """


@job.command("list")
@click.argument("group", type=GROUP, required=False)
@click.option("--last", type=click.IntRange(min=1), metavar="COUNT", help="Only so many, the newest.")
@click.option("--running", is_flag=True, help="Only those under way.")
@json_option
@asks_daemon
def list_(node: RemoteNode, group: str | None, last: int | None, running: bool, as_json: bool) -> None:
    """The commands of a group, or of all of them, in the order in which they were given.

    \b
    Example:
      pyrepl job list db --last 10
    """
    found = [one for one in node.jobs(group) if one["state"] == "running" or not running][-(last or 0):]
    if as_json:
        from pyrepl.cli import output

        output.write(output.JobList(jobs=[output.pick(output.Job, one) for one in found]))
        return
    rows = [[one["id"], _time(one), one["user"], one["group"], f"{one['verb']} {_shown(one['arguments'])}".rstrip(),
             "" if one["seconds"] is None else sizes.duration(one["seconds"]), _short(_state(one))] for one in found]
    tables.show(["JOB", "TIME", "USER", "GROUP", "COMMAND", "TOOK", "OUTCOME"], rows, none="no jobs")


@job.command()
@click.argument("number", type=click.IntRange(min=1), metavar="JOB")
@json_option
@asks_daemon
def show(node: RemoteNode, number: int, as_json: bool) -> None:
    """One command: all its arguments, how far it is, and what came of it.

    \b
    Example:
      pyrepl job show 12
    """
    one = next((one for one in node.jobs() if one["id"] == number), None)
    if one is None:
        raise NotFound(
            f"no job {number} is known: it is older than the last 1000, and the daemon's log has it, or it was "
            f"never given",
            job=number,
        )
    if as_json:
        from pyrepl.cli import output

        output.write(output.JobShow(job=output.pick(output.Job, one)))
        return
    click.echo(f"{one['verb']}{' of ' + one['group'] if one['group'] else ''}: {_state(one)}")
    took = "under way for" if one["state"] == "running" else "took"
    lasted = f", {took} {sizes.duration(one['seconds'])}" if one["seconds"] is not None else ""
    click.echo(f"given by {one['user']} (pid {one['pid']}) at {_time(one)}{lasted}")
    for name, value in one["arguments"].items():
        click.echo(f"  {name}: {_value(value)}")
    if one["lsn"] is not None:
        click.echo(f"operation at LSN {one['lsn']}: `pyrepl operation show {one['group']} {one['lsn']}`")
    if one["error"]:
        click.echo(f"{one['code']}: {one['error']}")
    if one["state"] == "left":
        click.echo("who gave it did not wait for the end; what was begun went on")
    if one["state"] == "interrupted":
        done = f"`pyrepl operation list {one['group']} --all`" if one["group"] else "`pyrepl status`"
        click.echo(f"the daemon ended before it was over: {done} tells what it had done by then")
    if one["state"] == "running" and one["progress"]:
        click.echo(f"progress: {_value(one['progress'])}")


def _state(one: dict[str, Any]) -> str:
    if one["state"] == "failed":
        return f"failed: {one['code']}"
    return f"{one['state']}: {one['result']}" if one["result"] else str(one["state"])


def _time(one: dict[str, Any]) -> str:
    return datetime.fromtimestamp(one["time"]).astimezone().isoformat(sep=" ", timespec="seconds")


def _shown(arguments: dict[str, Any]) -> str:
    """What of the arguments says what is done: neither what was left out, nor how it waits."""
    return " ".join(f"{name}={_members(value) if name == 'members' else _short(_value(value))}"
                    for name, value in arguments.items()
                    if name not in HOW_IT_WAITS and value not in (None, False, "", [], {}))


def _members(members: list[dict[str, Any]]) -> str:
    """Of a set: their kinds, or how many."""
    return ",".join(str(one["does"]) for one in members) if len(members) <= MOST_NAMED else str(len(members))


def _short(text: str) -> str:
    """For a table: one line, and not all of a long text."""
    text = " ".join(text.split())
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def _value(value: Any) -> str:
    """A store by its name; else as JSON, where it is not plain text."""
    if isinstance(value, dict) and {"group", "name", "id"} <= set(value):
        return str(value["name"])
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
