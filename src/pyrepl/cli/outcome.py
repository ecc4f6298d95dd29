"""Verbs that make an operation: how long they wait for it, what they say of it, and what they lose.

Decides the options that all of them have, and that what destroys something says what, and wants ``--force``. What an
operation means is in ``pyrepl.operations``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from pyrepl.cli import sizes
from pyrepl.errors import NotFound, PeerError, UsageError

if TYPE_CHECKING:
    from pyrepl.remote import RemoteGroup, RemoteNode, RemoteOperationResult


DIFFERENT = 1  # exit status: a comparison has found a difference
FAILED = 1  # exit status: a plug-in changed nothing
SHOWN = 10  # extents of a link, for people


def json_option(function: Any) -> Any:
    """The option ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")(function)


def force_option(function: Any) -> Any:
    """The option ``--force``."""
    return click.option("--force", is_flag=True, help="Do it although something will be lost.")(function)


def operation_options(function: Any) -> Any:
    """What every verb that makes an operation takes: ``--no-wait``, ``--timeout``, ``--json``."""
    for option in (
        click.option("--no-wait", is_flag=True, help="End when it has its place in the order."),
        click.option("--timeout", type=sizes.seconds, help="Seconds to wait until it is performed here."),
        json_option,
    ):
        function = option(function)
    return function


def early_option(function: Any) -> Any:
    """``--early``."""
    return click.option(
        "--early", is_flag=True,
        help="Secondaries that are connected perform it first, then this site; if they do not in --timeout, it is "
             "given up.",
    )(function)


def tell_early(result: RemoteOperationResult) -> None:
    """On standard error, if not all secondaries were earlier than this site, as they were to be."""
    early = result.details["early"]
    if not result.links:
        click.echo("no secondary performed it first: the group has no links", err=True)
    elif early < result.links:
        click.echo(f"performed first at {early} of {sizes.counted(result.links, 'link')}: a secondary that is not "
                   f"connected performs it in its place", err=True)


def verify_option(function: Any) -> Any:
    """The option ``--verify``."""
    return click.option(
        "--verify", is_flag=True, help="Compare the result with that of every secondary; what differs is copied."
    )(function)


def destroys(
    loss: str | Callable[[], str], *, force: bool, unless: str = "", clients: Callable[[], str] | None = None
) -> None:
    """Stops a verb that would lose something, unless that is wanted.

    Args:
        loss: what will be lost, as a sentence without its full stop; or what finds that out.
        force: it is wanted.
        unless: what would keep it.
        clients: finds out who is attached to what is lost; see :func:`clients_of`.

    Raises:
        UsageError: nothing was changed.
    """
    if not force:
        what = loss if isinstance(loss, str) else loss()
        keep = f"; to keep it: {unless}" if unless else ""
        raise UsageError(f"{what}{clients() if clients is not None else ''}: give --force if that is meant{keep}")


def clients_of(node: RemoteNode, group: str, stores: Collection[str] | None = None) -> Callable[[], str]:
    """What finds out which NBD clients would see these stores of a group (None: all) change or go: the end of a
    sentence, or nothing. Who is attached to a trial sees a copy, which only goes with the group."""

    def find() -> str:
        used = []
        for export in node.exports:
            with suppress(NotFound):  # stopped since
                one = export.status()
                shown = one["group"] == group and (stores is None or (one["store"] in stores and not one["trial"]))
                if shown and one["clients"]:
                    counted = sizes.counted(one["clients"], "client")
                    used.append(f"export {one['name']} of {group}/{one['store']} ({counted})")
        return f"; clients are attached to it: {', '.join(used)}" if used else ""

    return find


def instead_at(group: RemoteGroup, result: RemoteOperationResult) -> dict[str, str]:
    """What has become at each link of an operation with plug-ins, as far as it is known by now: "performed", "refused"
    (the data are sent in place of it) or "pending"."""
    from pyrepl.results import PERFORM

    if PERFORM not in (result.kind, *(member.kind for member in result.members)):
        return {}
    found: dict[str, str] = next((one["secondaries"] for one in group.operations() if one["lsn"] == result.lsn), {})
    return found


def kept_off(avoided: int, at: dict[str, str]) -> str:
    """What of an operation need not cross the links, for people; empty: nothing, or it is not known of any.

    Args:
        avoided: bytes on all links, if all secondaries perform it that have not refused it.
        at: what has become of it at each, if that may be refused there.
    """
    pending = [name for name, state in at.items() if state == "pending"]
    if avoided <= 0:
        return ""
    text = f", {sizes.human(avoided)} kept off the links"
    return f"{text} if {', '.join(pending)} {'comes' if len(pending) == 1 else 'come'} to the same" if pending else text


def tell(
    result: RemoteOperationResult, group: str, what: str, *, as_json: bool, image: bool = False,
    at: dict[str, str] | None = None,
) -> None:
    """What became of an operation, on standard output. Of one whose result is compared the exit status says what was
    found, as of ``pyrepl verify``.

    Args:
        result: of the operation.
        group: its group.
        what: what it is, for people: "snapshot monday of db/data".
        image: its data come from an image, which a secondary may lack.
        at: what has become of it at each link, if a secondary may come to something else; see :func:`instead_at`.
    """
    compared = result.verification
    links: dict[str, Any] = compared["links"] if compared is not None else {}
    region = compared["region_size"] if compared is not None else 0
    if as_json:
        from pyrepl.cli import output, reports

        output.write(
            output.Operation(
                group=group,
                kind=result.kind,
                lsn=result.lsn,
                state="performed" if result.state == "performed" else "admitted",
                created=sorted(result.created),
                bytes_changed=result.bytes_changed,
                bytes_avoided=result.bytes_avoided,
                members=[
                    output.Member(kind=one.kind, bytes_changed=one.bytes_changed, created=sorted(one.created),
                                  digest=_hex(one.digest), failed=one.failed or None)
                    for one in result.members
                ],
                digest=_hex(result.digest),
                failed=result.failed or None,
                verified=[reports.verified(*link, region) for link in links.items()] if compared else None,
            )
        )
        end_compared(links)
        return
    line = f"{what}: {result.state} at LSN {result.lsn}"
    if result.bytes_changed and not shows_only(result.kind, [member.kind for member in result.members]):
        line += f", {sizes.human(result.bytes_changed)} changed"
        kept = kept_off(result.bytes_avoided or 0, at or {})
        line += kept
        line += " of secondaries that have the image" if image and kept else ""
    if result.digest:
        line += f", digest {result.digest.hex()}"
    click.echo(line)
    for name, state in (at or {}).items():
        if state == "refused":
            click.echo(f"refused at {name}, which gets the data instead")
    for number, failed in enumerate([member.failed for member in result.members] or [result.failed], 1):
        if failed:
            which = f"operation {number} of the set" if result.members else "it"
            click.echo(f"{which} has failed, and changed nothing at any site: {failed}")
    for name, one in links.items():
        click.echo("\n".join(compared_lines(name, one, region)))
    end_compared(links)


def shows_only(kind: str, members: list[str]) -> bool:
    """Whether an operation only makes snapshots: nothing that was there is another then, and nobody would send it."""
    return {kind, *members} <= {"snapshot", "set"} and (kind == "snapshot" or bool(members))


def _hex(digest: bytes | None) -> str | None:
    return digest.hex() if digest else None


def end_compared(links: dict[str, Any]) -> None:
    """Ends the command as a comparison with these links ended: with 1 if there was a difference, with 8 if one could
    not be compared."""
    if any(one["extents"] for one in links.values()):
        click.get_current_context().exit(DIFFERENT)
    if any(one["state"] == "failed" for one in links.values()):
        click.get_current_context().exit(PeerError.exit_status)


def compared_lines(name: str, one: dict[str, Any], region: int) -> list[str]:
    """What the comparison with one link found, for people."""
    different = sizes.human(one["regions_different"] * region)
    match one["state"]:
        case "equal":
            text = "equal"
        case "repaired":
            text = f"{different} differed, and are repaired"
        case "different":
            text = f"{different} differ"
        case "comparing":
            text = "being compared"
        case _:
            text = f"not compared: {one['reason']}"
            if one["regions_different"]:
                text = f"{different} differ, the rest is {text}"
    if one["reason"] and one["state"] != "failed":
        text += f" ({one['reason']})"
    figures = [f"{sizes.human(one['regions_compared'] * region)} compared"]
    if one["regions_known_to_differ"]:
        figures.append(f"{sizes.human(one['regions_known_to_differ'] * region)} still to be copied anyway")
    figures += [f"{sizes.human(one['bytes_on_wire'])} of digests on the link", f"{one['seconds']:.1f} s"]
    lines = [f"  {name}: {text}; {', '.join(figures)}"]
    lines += [f"    {e['store']}: {sizes.human(e['length'])} from {e['offset']} on" for e in one["extents"][:SHOWN]]
    if len(one["extents"]) > SHOWN:
        lines.append("    and more: --json has them")
    return lines
