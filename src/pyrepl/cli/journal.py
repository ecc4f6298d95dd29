"""``pyrepl journal dump`` and ``check``: a journal as text or JSON. What is sound is decided in pyrepl.inspection."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from pyrepl.errors import Corrupt, DeviceError, NotFound

if TYPE_CHECKING:
    from pyrepl._core.device import Device
    from pyrepl.cli import output
    from pyrepl.inspection import Finding, Verdict


@click.group()
def journal() -> None:
    """Look into the journal of a group, on a device or a file, also while a node uses it. Nothing is changed or locked.

    \b
    Example:
      pyrepl journal check /dev/nvme0n1p3
    """


def _open(path: str) -> Device:
    from pyrepl._core import layout
    from pyrepl._core.device import FileDevice

    if not os.path.exists(path):
        raise NotFound(f"there is no {path}", path=path)
    try:
        device = FileDevice(path, writable=False, exclusive=False)
    except OSError as error:
        raise DeviceError(
            f"{path} cannot be read: {error.strerror}: give a journal's device or file", path=path
        ) from error
    if device.size < 2 * layout.BLOCK:
        device.close()
        raise Corrupt(f"{path} holds no pyrepl journal: it is {os.path.getsize(path)} bytes long", path=path)
    return device


@journal.command()
@click.argument("path", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One JSON object: superblock, checkpoint, records.")
def dump(path: str, as_json: bool) -> None:
    """Every record that the log still holds, in order: events, operations, copied regions, items, notes.

    \b
    Example:
      pyrepl journal dump /var/lib/pyrepl/db.journal
      pyrepl journal dump /dev/nvme0n1p3 --json | jq '.records[] | select(.kind == "operation")'
    """
    from pyrepl import inspection
    from pyrepl.cli import output
    from pyrepl.journal import Journal

    with _open(path) as device:
        found = Journal.find(device)
        checkpoint = found.read_checkpoint()
        told = inspection.summary(found, checkpoint)
        records = (inspection.describe(position, record) for position, record in inspection.records(found, checkpoint))
        if as_json:
            listed, verdict = list(records), inspection.check(device)
            output.write(
                output.JournalDump(
                    path=path, **told, records=listed, end_position=verdict.end_position,
                    end_reason=verdict.end_reason or None, findings=_findings(verdict),
                )
            )
            return
        block, newest = told["superblock"], told["checkpoint"]
        click.echo(
            f"group {block['name']}  journal {block['journal']}  log {block['log_size']} bytes at {block['log_offset']}"
        )
        click.echo(
            f"checkpoint {newest['sequence']}  {newest['role']}  applied LSN {newest['applied_lsn']}  "
            f"scan from {newest['scan_position']}  stores {', '.join(s['name'] for s in newest['stores']) or 'none'}"
        )
        for one in records:
            click.echo(_line(one))
        verdict = inspection.check(device)
        click.echo(f"the log ends at {verdict.end_position} ({verdict.end_reason or 'its end'})")
        for finding in verdict.findings:
            click.echo(f"{_weight(finding)}: {finding.text}", err=True)


def _weight(finding: Finding) -> str:
    return "corrupt" if finding.fatal else "damaged"


def _findings(verdict: Verdict) -> list[output.Finding]:
    from pyrepl.cli import output

    return [output.Finding(text=finding.text, fatal=finding.fatal) for finding in verdict.findings]


def _line(one: dict[str, Any]) -> str:
    head = f"{one['position']:>14} {one['length']:>8}  "
    if "problem" in one:
        return head + f"{one['kind']}  cannot be understood: {one['problem']}"
    if one["kind"] == "note":
        rest = "  ".join(
            f"{key} {value}"
            for key, value in one.items()
            if key not in ("position", "length", "durable", "seed", "kind", "note")
        )
        return head + f"note {one['note']}  {rest}"
    if one["kind"] == "events":
        first = one["events"][0]
        return head + (
            f"events {one['first_lsn']}..{one['last_lsn']}  {one['payload_bytes']} bytes  "
            f"{first['kind']} store {first['store']} offset {first['offset']} length {first['length']}"
            + (f" and {one['count'] - 1} more" if one["count"] > 1 else "")
        )
    if one["kind"] == "copied":
        read = f"{one['count']} extents, {one['payload_bytes']} bytes, read at {one['read_end']}"
        return head + f"copied item {one['item']}  {read}"
    if one["kind"] == "operation":
        return head + f"operation {one['first_lsn']}  {one['operation']}"
    return head + f"item {one['item']}  {one['does']}"


@journal.command()
@click.argument("path", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One JSON object: sound, findings, figures.")
@click.pass_context
def check(ctx: click.Context, path: str, as_json: bool) -> None:
    """Whether recovery would accept the journal: superblocks, checkpoint, every record after it. Ends with 10 if not.

    \b
    Example:
      pyrepl journal check /var/lib/pyrepl/db.journal && echo sound
    """
    from pyrepl import inspection
    from pyrepl.cli import output

    with _open(path) as device:
        verdict = inspection.check(device)
    if as_json:
        output.write(
            output.JournalCheck(
                path=path,
                sound=not verdict.findings,
                findings=_findings(verdict),
                records=verdict.records,
                bytes=verdict.bytes,
                end_position=verdict.end_position,
                durable_position=verdict.durable_position,
                end_reason=verdict.end_reason or None,
            )
        )
    else:
        for finding in verdict.findings:
            click.echo(f"{_weight(finding)}: {finding.text}")
        if not verdict.findings:
            click.echo(
                f"sound: {verdict.records} records, {verdict.bytes} bytes, the log ends at {verdict.end_position} "
                f"({verdict.end_reason})"
            )
    ctx.exit(Corrupt.exit_status if verdict.findings else 0)
