"""``pyrepl link``: the replicas of a group, as its primary sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from pyrepl.cli import sizes, tables
from pyrepl.cli.connection import asks_daemon
from pyrepl.cli.names import GROUP, LINK, Named
from pyrepl.cli.outcome import json_option
from pyrepl.cli.progress import progress_option
from pyrepl.cli.stores import statuses

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode


@click.group()
def link() -> None:
    """Links: each copies the journal of a group to one secondary. A link is named GROUP/LINK.

    \b
    Example:
      pyrepl link add db/paris paris.example:7788
      pyrepl wait db synced --timeout 1h
    """


@link.command()
@click.argument("link", type=LINK)
@click.argument("address")
@click.option("--mode", type=click.Choice(["async", "sync"]), default="async", show_default=True,
              help="async: writes never wait for it. sync: they return when its journal holds them, while it keeps up.")
@click.option("--bandwidth", type=sizes.rate, default=0, metavar="RATE",
              help="Bytes per second that are sent at most, as 64K or 10M; none: no limit.")
@click.option("--wait", is_flag=True, help="Until the secondary is synchronized.")
@click.option("--timeout", type=sizes.seconds, help="Seconds to wait at most; it goes on then.")
@progress_option
@asks_daemon
def add(
    node: RemoteNode, link: Named, address: str, mode: Literal["async", "sync"], bandwidth: int, wait: bool,
    timeout: float | None, wanted: bool,
) -> None:
    """Attaches the secondary that listens at ADDRESS (host:port), and begins to synchronize it.

    The secondary is a group of the same name, made with --role secondary, with volumes of the same names and sizes.
    At a secondary that is paired this makes a cascade: it passes on what its own primary sends it.

    \b
    Example:
      pyrepl link add db/paris paris.example:7788 --mode sync --wait
    """
    from pyrepl.cli.waiting import synced

    made = node.group(link.group).add_link(link.name, address, mode=mode, bandwidth=bandwidth)
    click.echo(f"link {link} to {address}, {mode}: synchronizing in the background", err=wait)
    if wait:
        synced(str(link), made, timeout, wanted=wanted)
        click.echo(f"link {link}: synchronized")


@link.command("list")
@click.argument("group", type=GROUP, required=False)
@json_option
@asks_daemon
def list_(node: RemoteNode, group: str | None, as_json: bool) -> None:
    """The links of a group, or of all groups.

    \b
    Example:
      pyrepl link list
      pyrepl link list db --json | jq '.links[].lag_bytes'
    """
    found = [(status["group"], link) for status in statuses(node, group) for link in status["links"]]
    if as_json:
        from pyrepl.cli import output, reports

        output.write(output.LinkList(links=[reports.link_entry(name, one) for name, one in found]))
        return
    rows = [
        [f"{name}/{one['name']}", one["address"], one["mode"], one["state"], "yes" if one["consistent"] else "no",
         sizes.human(one["lag_bytes"]), _different(one)]
        for name, one in found
    ]
    tables.show(["LINK", "ADDRESS", "MODE", "STATE", "CONSISTENT", "BEHIND", "DIFFERENT"], rows, none="no links")


def _different(one: dict[str, Any]) -> str:
    """What is to be copied; and what a verification has found, and is not."""
    found = one.get("found_different")
    return sizes.human(one["divergent_bytes"]) + (f", {sizes.human(found['bytes'])} found" if found else "")


@link.command()
@click.argument("link", type=LINK)
@asks_daemon
def pause(node: RemoteNode, link: Named) -> None:
    """Ends the connection until resume, over restarts too. Writes go on; what they touch is sent later.

    \b
    Example:
      pyrepl link pause db/paris
    """
    node.group(link.group).link(link.name).pause()
    click.echo(f"link {link}: paused")


@link.command()
@click.argument("link", type=LINK)
@asks_daemon
def resume(node: RemoteNode, link: Named) -> None:
    """Connects again, and sends what the secondary lacks.

    \b
    Example:
      pyrepl link resume db/paris
    """
    node.group(link.group).link(link.name).resume()
    click.echo(f"link {link}: resumed")


@link.command("set")
@click.argument("link", type=LINK)
@click.option("--mode", type=click.Choice(["async", "sync"]),
              help="sync: writes wait for it once it has caught up. async: they do not, and those that wait return.")
@click.option("--address", metavar="ADDRESS", help="Where the secondary listens now, host:port.")
@click.option("--bandwidth", type=sizes.rate, metavar="RATE",
              help="Bytes per second that are sent at most, as 64K or 10M; none: no limit.")
@click.option("--dead", type=sizes.seconds, metavar="SECONDS",
              help="Seconds of silence after which the secondary is given up and dialled again.")
@click.option("--most-lag-bytes", type=sizes.limit, metavar="SIZE",
              help="Of the journal, that the secondary may lack before writes wait for it; none: any number.")
@click.option("--most-lag-seconds", type=sizes.limit_seconds, metavar="SECONDS",
              help="That the oldest event which it lacks may be old before writes wait for it; none: any age.")
@asks_daemon
def set_(
    node: RemoteNode, link: Named, mode: Literal["async", "sync"] | None, address: str | None, bandwidth: int | None,
    dead: float | None, most_lag_bytes: int | None, most_lag_seconds: float | None,
) -> None:
    """Changes a link while it works. It holds at once, and over restarts.

    \b
    Example:
      pyrepl link set db/paris --bandwidth 10M
      pyrepl link set db/paris --mode sync --bandwidth none
      pyrepl link set db/paris --most-lag-bytes 256M --most-lag-seconds 30s
    """
    changed = node.group(link.group).link(link.name)
    changed.set(mode=mode, address=address, bandwidth=bandwidth, dead=dead, most_lag_bytes=most_lag_bytes,
                most_lag_seconds=most_lag_seconds)
    limit = f"at most {sizes.human(changed.bandwidth)}/s" if changed.bandwidth else "no limit of bandwidth"
    far, late = changed.most_lag_bytes, changed.most_lag_seconds
    bounds = ([sizes.human(far)] if far else []) + ([sizes.duration(late)] if late else [])
    behind = f", at most {' or '.join(bounds)} behind" if bounds else ""
    click.echo(f"link {link}: {changed.mode} to {changed.address}, {limit}{behind}, dead after {changed.dead:g} s of "
               f"silence")


@link.command()
@click.argument("link", type=LINK)
@asks_daemon
def remove(node: RemoteNode, link: Named) -> None:
    """Detaches the secondary. Its stores stay as they are; what is known of it here is forgotten.

    A link that is added to it later copies what it cannot know to be equal, which may be everything.

    \b
    Example:
      pyrepl link remove db/paris
    """
    node.group(link.group).remove_link(link.name)
    click.echo(f"link {link}: removed")
