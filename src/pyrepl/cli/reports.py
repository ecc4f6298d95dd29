"""What the daemon's status says, as the structs of ``--json``. Decides which name there is which field here."""

from __future__ import annotations

from typing import Any

from pyrepl.cli import output


def group(status: dict[str, Any]) -> output.Group:
    """A group. One that failed knows little: the rest is null."""
    lsn, journal, window = status.get("lsn"), status.get("journal"), status.get("window")
    delay = status.get("delay")
    return output.pick(
        output.Group,
        status,
        name=status["group"],
        protective=output.pick(output.Protective, status["protective"]) if status.get("protective") else None,
        found_different=_different(status),
        last_refusal=status.get("last_refusal") or None,
        last_refusal_time=status.get("last_refusal_time"),
        lsn=output.pick(output.Positions, lsn) if lsn else None,
        journal=output.pick(output.Journal, journal) if journal else None,
        window=output.pick(output.Window, window) if window else None,
        delay=output.pick(output.Delay, delay) if delay else None,
        stands=_shortage(status.get("stands")),
        mover_rests=_shortage(status.get("mover_rests")),
        stores=[output.pick(output.Store, store) for store in status.get("stores") or ()],
        kept=[output.pick(output.Store, store) for store in status.get("kept") or ()],
        links=[link(one) for one in status["links"]],
        trials=[output.pick(output.Trial, trial) for trial in status.get("trials") or ()],
        split_brain=[output.pick(output.SplitBrain, one) for one in status.get("split_brain") or ()],
        hooks=[output.pick(output.HookRun, run, text=run["text"] or None) for run in status.get("hooks") or ()],
    )


def _shortage(told: dict[str, Any] | None) -> output.Shortage | None:
    return output.pick(output.Shortage, told) if told else None


def link(status: dict[str, Any]) -> output.Link:
    """A link."""
    return output.pick(output.Link, status, **_parts(status))


def link_entry(group: str, status: dict[str, Any]) -> output.LinkEntry:
    """A link with its group."""
    return output.pick(output.LinkEntry, status, group=group, **_parts(status))


def _parts(status: dict[str, Any]) -> dict[str, Any]:
    return {
        "found_different": _different(status),
        "bytes_sent": output.pick(output.BytesSent, status["bytes_sent"]),
        "stands": status.get("stands") or None,
        "reason": status["reason"] or None,
        "last_error": status["last_error"] or None,
    }


def _different(status: dict[str, Any]) -> output.FoundDifferent | None:
    """Of a link, what was found at its secondary; of a group, what was found here."""
    found = status.get("found_different")
    return output.pick(output.FoundDifferent, found) if found else None


def verified(name: str, one: dict[str, Any], region: int) -> output.VerifiedLink:
    """What the comparison with a link found."""
    return output.pick(
        output.VerifiedLink,
        one,
        name=name,
        reason=one["reason"] or None,
        compared=one["regions_compared"] * region,
        different=one["regions_different"] * region,
        known_to_differ=one["regions_known_to_differ"] * region,
        extents=[output.pick(output.StoreExtent, extent) for extent in one["extents"]],
    )


def performed(one: dict[str, Any], region: int) -> output.Performed:
    """An operation of the list."""
    compared = one["verified"]
    links = None if compared is None else [
        output.Judgement(link=name, state=link["state"], reason=link["reason"] or None,
                         compared=link["regions_compared"] * region, different=link["regions_different"] * region)
        for name, link in compared.items()
    ]
    there = [output.PerformedThere(link=name, state=state) for name, state in one["secondaries"].items()]
    return output.pick(output.Performed, one, verified=links, secondaries=there)


def node(status: dict[str, Any]) -> output.Node:
    """The node."""
    return output.pick(
        output.Node, status, name=status["node"], listening=[_address(address) for address in status["listening"]]
    )


def _address(address: Any) -> str:
    if isinstance(address, str):
        return address
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
