"""``pyrepl migrate``, ``promote``, ``demote``, ``takeover``, ``resolve``: which site takes writes."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import click

from pyrepl.cli import sizes
from pyrepl.cli.connection import asks_daemon
from pyrepl.cli.headline import found_different
from pyrepl.cli.names import GROUP, offer_in
from pyrepl.cli.outcome import destroys, json_option

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode


@click.command()
@click.argument("group", type=GROUP)
@click.option("--timeout", type=sizes.seconds, default="30", show_default=True,
              help="Seconds to wait for the secondaries.")
@click.option("--force", is_flag=True, help="Without waiting for anybody, and although their copies differ.")
@json_option
@asks_daemon
def demote(node: RemoteNode, group: str, timeout: float, force: bool, as_json: bool) -> None:
    """This site steps down: from primary to secondary, over restarts too.

    Writers are refused from now on, every secondary gets all that was written, and then hears that it may be promoted.
    When the time is over before that, the group goes on as primary. The links of this site end and are forgotten:
    whoever is promoted adds one that leads here. With --force nobody is waited for: what a secondary lacks, which is
    told, is lost to it when it is promoted. It also wants --force if a verification has found the copies of all
    secondaries different and did not repair them.

    \b
    Example:
      pyrepl demote db && ssh paris pyrepl promote db
    """
    found = node.group(group)
    lacking = [f"{link['name']} ({lack})" for link in found.status()["links"] if (lack := _lack(link))] if force else []
    lsn = found.demote(timeout=timeout, force=force)
    _tell(group, "secondary", lsn, as_json=as_json)
    if lacking:
        click.echo(f"not waited for: {', '.join(lacking)}. What a site lacks is lost to it when it is promoted; this "
                   f"site still has it, and with `pyrepl promote {group} --alone` leads again", err=True)


@click.command()
@click.argument("group", type=GROUP)
@click.option("--alone", is_flag=True, help="Although its primary has not stepped down, as far as is known here.")
@click.option("--force", is_flag=True,
              help="Although its copy was found different; with --alone, although that primary is connected, too.")
@json_option
@asks_daemon
def promote(node: RemoteNode, group: str, alone: bool, force: bool, as_json: bool) -> None:
    """A secondary whose primary has stepped down becomes primary, over restarts too.

    With --alone the primary is not asked. If it writes on, both histories part, and one of them will be lost: while it
    is connected and leads, that wants --force (to swap the two, migrate the group at the primary). --alone is also for
    a primary that was started again and waits for its peers to say that no other site leads. Where a verification has
    found the copy here different, and did not repair it (see "status"), that wants --force, too: its content counts
    then.

    \b
    Example:
      pyrepl promote db
      pyrepl link add db/berlin berlin.example:7788
    """
    _tell(group, "primary", node.group(group).promote(alone=alone, force=force), as_json=as_json)


@click.command()
@click.argument("group", type=GROUP)
@click.option("--force", is_flag=True, help="Although what the primary had not sent yet is lost.")
@json_option
@asks_daemon
def takeover(node: RemoteNode, group: str, force: bool, as_json: bool) -> None:
    """A secondary becomes primary because its primary is gone.

    What the primary had written and not sent is lost, unless the link was in mode sync and in sync. A secondary that
    is being resynchronized goes back to its protective snapshot (see "status"): what came after that is lost too. What
    a verification has found different here, and did not repair, is told as well: the content of this site counts then.
    The primary must not write on: when it comes back, demote it there, and add a link to it here.

    \b
    Example:
      pyrepl takeover db --force
    """
    found = node.group(group)
    lsn = found.takeover(dry_run=True, force=True)  # what makes it impossible comes before what it costs
    status = found.status()
    back = status.get("protective") and not status["consistent"]
    which = ", its protective snapshot, for it is being resynchronized" if back else ""
    loss = f"group {group} would go on from LSN {lsn}{which}: what its primary wrote after that is lost"
    if different := status.get("found_different"):
        at = datetime.fromtimestamp(different["time"]).astimezone().isoformat(sep=" ", timespec="seconds")
        loss += (f"; and what is here is not what its primary had: {found_different(different)} ({at}), and the "
                 f"content of this site counts then")
    destroys(loss, force=force)
    _tell(group, "primary", found.takeover(force=force), as_json=as_json)


@click.command()
@click.argument("group", type=GROUP)
@click.option("--to", "link", metavar="LINK", required=True, help="The link whose secondary is to lead.",
              shell_complete=offer_in("link"))
@click.option("--back", metavar="HOST:PORT", help="Where the other site reaches this node.")
@click.option("--force", is_flag=True, help="Although its copy was found different, and is not repaired.")
@click.option("--timeout", type=sizes.seconds, default="30", show_default=True,
              help="Seconds to wait for the secondaries, and again for the link back.")
@json_option
@asks_daemon
def migrate(
    node: RemoteNode, group: str, link: str, back: str | None, force: bool, timeout: float, as_json: bool
) -> None:
    """A planned swap: this primary steps down, the secondary of a link becomes primary, and links back to here.

    Nothing is lost and nothing is copied. Writers are refused here from now on. When a secondary does not have
    everything in time, this site goes on as primary. After that the request to lead is durable: over a cut or a crash
    of either site it is performed as soon as they meet, and "status" names whom this site asks. Without --back the
    other site links to the address at which this node listens. It gets the other links of this
    group too; bandwidth and the other limits of links go with them. A secondary whose copy a verification has found
    different, and did not repair, leads only with --force: its content counts then.

    \b
    Example:
      pyrepl migrate db --to paris
    """
    lsn = node.group(group).migrate(link, timeout=timeout, back=back, force=force)
    _tell(group, "secondary", lsn, as_json=as_json, leader=link)
    if not as_json:
        click.echo(f"the site of link {link} leads now, and has a link back to here")


@click.command()
@click.argument("group", type=GROUP)
@click.option("--loser", metavar="NODE", required=True, help='"here", a node\'s name or id, or a link of this primary.',
              shell_complete=offer_in("link", also=("here",)))
@click.option("--force", is_flag=True, help="Although what only the loser has leaves the group.")
@json_option
@asks_daemon
def resolve(node: RemoteNode, group: str, loser: str, force: bool, as_json: bool) -> None:
    """After a split brain: the loser gives up what it has written since the last event that both sites have.

    Said at either side, once. It steps down, if it is primary, follows the other one, and gets what differs. What it
    showed stays at its site, as snapshots VOLUME-lost-GENERATION, until they are deleted. At the side that loses say
    "here"; the other side needs a link to it. Without --force it tells what would be lost; how much that is, the side
    that loses knows.

    \b
    Example:
      pyrepl resolve db --loser here --force
      pyrepl resolve db --loser paris --force
    """
    found = node.group(group)
    told = found.loss(loser)
    destroys(_loss(group, told), force=force)
    lsn = found.resolve(loser)
    _tell(group, "primary" if found.role == "primary" else "secondary", lsn, as_json=as_json)
    if as_json:
        return
    who, where = ("this site", "here") if told["loser"] == "here" else (f"the site of link {told['loser']}", "there")
    click.echo(f"{who} loses, when the two meet; what it alone had is kept {where} as snapshots "
               f"VOLUME-lost-GENERATION: `pyrepl snapshot list {group}` {where} shows them then")


def _loss(group: str, told: dict[str, Any]) -> str:
    """What leaves the group, as a sentence without its full stop."""
    here = told["loser"] == "here"
    who = "this site" if here else f"the site of link {told['loser']}"
    if told["fork_lsn"] is None:
        met = "the two have not met as a split brain since this daemon was started"
        what = f"what {who} alone has written leaves group {group}, and is kept there"
        return f"{what}; how much that is, is not known: {met}"
    since = f"event {told['fork_lsn']}, up to event {told['lsn']}"
    if not here:
        return (f"what {who} alone has written since {since}, leaves group {group}, and is kept there as snapshots "
                f"VOLUME-lost-GENERATION; how much that is, `pyrepl resolve {group} --loser here` tells there")
    if told["since"] is not None:
        since += f", from {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(told['since']))} on"
    parts = [f"{sizes.human(one['bytes'])} written to {one['store']}" for one in told["stores"] or ()]
    if told["operations"]:
        parts.append(sizes.counted(told["operations"], "operation"))
    what = ", ".join(parts) or "no more is known of it"
    least = "" if told["whole"] or not parts else "at least "
    kept = f"it is kept here as {', '.join(told['kept'])}" if told["kept"] else "nothing of it can be kept"
    return f"what {who} alone has written since {since}, leaves group {group}: {least}{what}; {kept}"


def _lack(link: dict[str, Any]) -> str:
    """What the secondary of a link lacks, as far as this primary knows; empty: nothing."""
    behind, differ = link["lag_bytes"], link["divergent_bytes"]
    parts = [f"{sizes.human(behind)} behind"] if behind else []
    parts += [f"{sizes.human(differ)} differ"] if differ else []
    parts += [found_different(found)] if (found := link.get("found_different")) else []
    if not parts and not link["connected"]:
        parts = [f"{link['state']}, lacks nothing that is known here"]
    return ", ".join(parts)


def _tell(
    group: str, role: Literal["primary", "secondary"], lsn: int, *, as_json: bool, leader: str | None = None
) -> None:
    if as_json:
        from pyrepl.cli import output

        output.write(output.RoleChange(group=group, role=role, lsn=lsn, leader=leader))
        return
    click.echo(f"{group}: {role} from LSN {lsn} on")
