"""A group in the words that a person reads first, and the detail below them. Nothing is asked or decided here.

    db  primary  → paris  consistent, 0.4 s behind (12 MiB, journal 3 % full)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pyrepl.cli.sizes import counted, duration, human, share

Paint = Callable[[str, str], str]
"""Text and the weight of what it says ("good", "warn", "bad") -> the text, perhaps with colour."""

LINK_WEIGHT = {
    "streaming": "good", "resyncing": "warn", "connecting": "warn", "paused": "warn", "refused": "bad",
    "diverged": "bad", "down": "bad",
}  # fmt: skip

TROUBLED = ("connecting", "refused", "diverged", "down")  # states in which the last error says why


def plain(text: str, weight: str) -> str:
    """No colour."""
    return text


def coloured(text: str, weight: str) -> str:
    """With colour, for a terminal that wants it."""
    import click

    return click.style(text, fg={"good": "green", "warn": "yellow", "bad": "red"}[weight])


def lines(status: dict[str, Any], paint: Paint = plain, *, width: int = 0) -> list[str]:
    """One line; with several links one for each.

    Args:
        status: of the group.
        paint: how a state is shown.
        width: columns for the name, so that several groups stand below each other.
    """
    name, role = f"{status['group']:<{width}}", status.get("role") or "unknown"
    if status["state"] != "active":
        return [f"{name}  {role}  {paint(status['state'], 'bad')}: {ended(status)}"]
    journal = f"journal {share(status['journal']['used'], status['journal']['size'])} full"
    standing = _standing(status, paint)
    parted = status.get("split_brain") or ()
    if role != "primary":
        if status["group_id"] is None:
            return [f"{name}  {role}  {paint('waiting for its primary', 'warn')}, not paired yet ({journal})"]
        steady = paint("consistent", "good") if status["consistent"] else paint("inconsistent", "bad")
        kept = status.get("protective")
        if kept and not status["consistent"]:
            steady += f" (a takeover goes back to LSN {kept['lsn']})"
        if status.get("found_different"):
            steady += ", " + paint(found_different(status["found_different"]), "bad")
        standing += _delayed(status.get("delay"), paint)
        led = "".join(", " + paint(split_brain(status, one), "bad") for one in parted) or _led(status, paint)
        first = f"{name}  {role}  {steady}{led}{standing}, at LSN {status['lsn']['applied']} ({journal})"
        blank = " " * len(f"{name}  {role}")
        return [first, *(f"{blank}  → {link['name']}  {_link(link, journal, paint)}" for link in status["links"])]
    if status.get("asking"):
        why = " and ".join(paint(split_brain(status, one), "bad") for one in parted)
        why = why or f"it asks {', '.join(status['asking'])} whether another site leads"
        return [f"{name}  {role}  {paint('inactive', 'bad')}: {why}{standing} ({journal})"]
    by_link = {one["link"]: one for one in parted if one["link"] is not None}
    told = []
    for link in status["links"]:
        one = by_link.get(link["name"])
        what = f"{paint(split_brain(status, one), 'bad')} ({journal})" if one else _link(link, journal, paint)
        told.append(f"→ {link['name']}  {what}")
    told += [f"{paint(split_brain(status, one), 'bad')} ({journal})" for one in parted if one["link"] is None]
    if not told:
        return [f"{name}  {role}  no links{standing} ({journal})"]
    told[0] += standing
    blank = " " * len(f"{name}  {role}")
    return [f"{blank if number else f'{name}  {role}'}  {line}" for number, line in enumerate(told)]


def ended(status: dict[str, Any]) -> str:
    """Why a group does not work, and what ends that."""
    if status["state"] != "failed":
        return "it was closed, or is being opened again"
    again = f"`pyrepl group open {status['group']}`"
    error = status["error"] or ""
    return error if again in error else f"{error}; when the cause is gone, {again} opens it again"


def split_brain(status: dict[str, Any], one: dict[str, Any]) -> str:
    """What there is with another site, and what ends it."""
    link, resolve = one["link"], f"`pyrepl resolve {status['group']} --loser"
    if status.get("asking"):
        way = f"{resolve} here` at that side"
    elif link is not None:
        way = f"{resolve} here` or `--loser {link}`"
    elif status["role"] == "primary":
        way = f"{resolve} here`, or a link to it (`pyrepl link add`) and its name in place of here"
    else:
        way = f"{resolve} here`, or the same there"
    who, fork = link or f"node {one['node'][:8]}", one["fork_lsn"]
    return (f"SPLIT BRAIN with {who}: both sites have written since event {fork}, this one up to {one['lsn']}, the "
            f"other up to {one['there_lsn']}; nothing is sent before it is said which side loses that: {way}")


def _led(status: dict[str, Any], paint: Paint) -> str:
    """Who leads a secondary."""
    if status.get("successor"):
        return paint(f", has stepped down and asks {status['successor']} to lead", "warn")
    if status.get("yields"):
        return paint(", gives way to whoever leads", "warn")
    if status.get("handed_over"):
        return ", its primary has stepped down"
    fed = status.get("fed_by")
    if status.get("primary_connected") is not False:
        if fed and status.get("above"):
            return f", fed by node {fed[:8]}, a secondary itself"
        return f", fed by its primary, node {fed[:8]}" if fed and status["links"] else ""
    if fed and status.get("above"):
        return paint(f", node {fed[:8]}, which feeds it, is not connected", "warn")
    return paint(", its primary is not connected" if fed else ", no primary has led it yet", "warn")


def _standing(status: dict[str, Any], paint: Paint) -> str:
    """That the applier stands at a mark, or still, for want of room."""
    if status.get("stands"):
        return ", " + paint(status["stands"]["text"], "bad")
    for run in status.get("hooks") or ():
        if run["hold"] and run["state"] == "running":
            return paint(f", held at mark {run['mark']} (LSN {run['lsn']}) for {duration(run['seconds'])}", "warn")
    return ""


def _delayed(delay: dict[str, Any] | None, paint: Paint) -> str:
    """That this site performs later than it could."""
    if not delay or not (delay["seconds"] or delay["waiting_bytes"]):
        return ""
    waits = f", {human(delay['waiting_bytes'])} wait" if delay["waiting_bytes"] else ""
    if not delay["seconds"]:
        return f"{waits} to be performed"
    shortened = paint(f", shortened: {delay['shortened']}", "warn") if delay["shortened"] else ""
    return f", delayed by {duration(delay['seconds'])}{waits}{shortened}"


def _link(link: dict[str, Any], journal: str, paint: Paint) -> str:
    words = []
    state, error = link["state"], link["last_error"]
    if state != "streaming":
        why = f" ({error}{_ago(link.get('last_error_time'))})" if error and state in TROUBLED else ""
        since = link.get("refused_since") if why else None
        lasts = f" for {duration(max(0.0, time.time() - since))}" if since is not None else ""
        words.append(paint(state, LINK_WEIGHT.get(state, "bad")) + lasts + why)
    if link.get("stands") and state not in TROUBLED:
        words.append(paint(link["stands"], "bad"))
    if link["consistent"]:
        words.append(paint("consistent", "good"))
    elif link.get("peer") and not link.get("connections", 1):  # since the start: the secondary has yet to say
        words.append(paint("not known yet whether it is consistent", "warn"))
    else:
        words.append(paint("inconsistent", "warn" if state == "resyncing" else "bad"))
    if link["degraded"]:
        words.append(paint("not in sync: writes do not wait for it" if link["mode"] == "sync" else
                           "its lag is not bounded now: writes do not wait for it", "warn"))
    if link["holds_writers"]:
        words.append(paint("writes wait for it", "warn"))
    if link.get("found_different"):
        words.append(paint(found_different(link["found_different"]), "bad"))
    figures = [journal]
    if link["divergent_bytes"]:
        words.append(f"{human(link['divergent_bytes'])} differ")
    lag = link.get("lag_seconds")
    if not link["lag_events"]:
        if state in ("streaming", "resyncing", "paused"):
            words.append("its journal has everything" if link.get("stands") else "up to date")
        elif link["consistent"]:
            words.append("had everything when it was heard of last")
    elif lag is not None:
        words.append(f"{duration(lag)} behind")
        figures.insert(0, human(link["lag_bytes"]))
    else:
        words.append(f"{human(link['lag_bytes'])} behind")
    return f"{', '.join(words)} ({', '.join(figures)})"


def found_different(found: dict[str, Any]) -> str:
    """What a verification has found at a secondary, and was not to repair."""
    return f"{human(found['bytes'])} found different at LSN {found['lsn']}, not repaired"


def _ago(at: float | None) -> str:
    """How long ago something came."""
    return f", {duration(max(0.0, time.time() - at))} ago" if at is not None else ""


def detail(status: dict[str, Any]) -> list[str]:
    """What stands below: journal, positions, stores, links."""
    if status["state"] != "active":
        return []
    lsn, journal = status["lsn"], status["journal"]
    found = [
        f"  group      {status['group_id'] or 'not paired yet'}",
        f"  LSN        {lsn['end']} given, {lsn['durable']} durable, {lsn['applied']} applied",
        f"  journal    {journal.get('path') or ''}  {human(journal['used'])} of {human(journal['size'])} used, "
        f"{journal['engine']}, {counted(journal['checkpoints'], 'checkpoint')}",
        f"  window     {human(status['window']['used'])} of {human(status['window']['size'])} used",
    ]
    for store in status["stores"]:
        origin = f"  of {store['origin']}" if store.get("origin") else ""
        differs = f"  diverged: {', '.join(store['diverged'])}" if store["diverged"] else ""
        found.append(
            f"  {store['kind']:<9}  {store['name']}  {human(store['size'])}{origin}{differs}  {store['path'] or ''}")
    for kept in status.get("kept") or ():
        found.append(f"  kept       {kept['name']}  {human(kept['size'])}  of {kept['origin']} at LSN {kept['lsn']}")
    if status.get("protective") and not status["consistent"]:
        kept = status["protective"]
        found.append(f"  protected  {kept['stores']} store(s) as of LSN {kept['lsn']}, until it is consistent again")
    if status.get("waived") and not status["consistent"]:
        found.append("  protected  none, by command: it cannot take over before it is consistent again")
    if different := status.get("found_different"):
        found.append(f"  different  {found_different(different)}{_ago(different['time'])}: `pyrepl verify "
                     f"{status['group']}` at its primary repairs that; until then it leads only with --force")
    if status.get("mover_rests"):
        found.append(f"  mover      {status['mover_rests']['text']}")
    for trial in status.get("trials") or ():
        held = f"{trial['exports']} exports" + (f", {trial['error']}" if trial["error"] else "")
        found.append(f"  trial      as of LSN {trial['lsn']}, {human(trial['space'])}, {held}")
    for run in (status.get("hooks") or [])[-5:]:
        what = f": {run['text'].splitlines()[0]}" if run["text"] else ""
        found.append(f"  hook       {run['mark']} at LSN {run['lsn']}  {run['state']}, {run['seconds']:.1f} s{what}")
    if status.get("last_refusal"):
        found.append(f"  refused    {status['last_refusal']}{_ago(status.get('last_refusal_time'))}")
    for link in status["links"]:
        sent = link["bytes_sent"]
        found.append(
            f"  link       {link['name']}  {link['address']}  {link['mode']}  {link['state']}, applied LSN "
            f"{link['applied_lsn']}, {human(sum(sent.values()))} sent ({human(sent['copied'])} of them copied regions)"
        )
        if link.get("bandwidth"):
            found.append(f"             limited to {human(link['bandwidth'])}/s")
        bounds = ([human(link["most_lag_bytes"])] if link["most_lag_bytes"] else []) + (
            [duration(link["most_lag_seconds"])] if link["most_lag_seconds"] else [])
        if bounds:
            found.append(f"             at most {' or '.join(bounds)} behind")
        if link["reason"]:
            found.append(f"             resync: {link['reason']}")
        if different := link.get("found_different"):
            found.append(f"             {found_different(different)}{_ago(different['time'])}: `pyrepl verify "
                         f"{status['group']} --link {link['name']}` repairs that")
    return [line.rstrip() for line in found]
