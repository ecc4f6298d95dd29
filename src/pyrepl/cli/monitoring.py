"""``pyrepl status --check``: the verdict of a monitoring plug-in on what the daemon's status says.

Decides what is a warning and what is critical; the rules are listed in the help of ``pyrepl status``. Pure.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pyrepl.cli.headline import TROUBLED, ended, found_different, split_brain
from pyrepl.cli.sizes import counted, duration

OK, WARNING, CRITICAL, UNKNOWN = range(4)
WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")

BAD_LINKS = {"refused": CRITICAL, "diverged": CRITICAL, "down": CRITICAL, "paused": WARNING, "connecting": WARNING,
             "resyncing": WARNING}  # fmt: skip


class Limits(NamedTuple):
    """Thresholds: seconds of lag, percent of a journal."""

    warn_lag: float
    crit_lag: float
    warn_journal: float
    crit_journal: float


class Verdict(NamedTuple):
    """Status, what is said, and figures in the form of plug-ins."""

    status: int
    text: str
    figures: list[str]

    def line(self) -> str:
        """The one line."""
        text = " ".join(self.text.replace("|", "/").split())
        return f"{WORDS[self.status]}: {text}" + (f" | {' '.join(self.figures)}" if self.figures else "")


def judge(groups: list[dict[str, Any]], limits: Limits) -> Verdict:
    """The worst of all groups and links."""
    found: list[tuple[int, str]] = []
    figures: list[str] = []
    for group in groups:
        name = group["group"]
        if group["state"] != "active":
            found.append((CRITICAL, f"{name} {group['state']}: {ended(group)}"))
            continue
        journal = group["journal"]
        full = 100 * journal["used"] / journal["size"]
        figures.append(f"'{name} journal'={full:.1f}%;{limits.warn_journal:g};{limits.crit_journal:g};0;100")
        found.append((_beyond(full, limits.warn_journal, limits.crit_journal), f"{name} journal {full:.0f} % full"))
        parted = group.get("split_brain") or ()
        found += [(CRITICAL, f"{name} {split_brain(group, one)}") for one in parted]
        if group.get("asking"):
            found.append((CRITICAL, f"{name} inactive: {', '.join(group['asking'])} did not answer who leads"))
        if group.get("stands"):
            found.append((CRITICAL, f"{name}: {group['stands']['text']}"))
        if group.get("mover_rests"):
            found.append((WARNING, f"{name}: {group['mover_rests']['text']}"))
        if group["role"] != "primary" and not group["consistent"]:
            found.append((WARNING, f"{name} inconsistent"))
        if group.get("found_different"):
            found.append((WARNING, f"{name} {found_different(group['found_different'])}"))
        if group.get("primary_connected") is False and group["group_id"] is not None:
            found.append((WARNING, f"{name} is a secondary, and no primary is connected"))
        for link in group["links"]:
            told = any(one["link"] == link["name"] for one in parted)
            _link(f"{name} → {link['name']}", {**link, "last_error": ""} if told else link, limits, found, figures)
    worst = max((status for status, _ in found), default=OK)
    if worst == OK:
        links = sum(len(group["links"]) for group in groups)
        return Verdict(OK, f"{counted(len(groups), 'group')}, {counted(links, 'link')}", figures)
    found.sort(key=lambda one: -one[0])
    return Verdict(worst, ", ".join(text for status, text in found if status != OK), figures)


def _link(
    name: str, link: dict[str, Any], limits: Limits, found: list[tuple[int, str]], figures: list[str]
) -> None:
    lag = link.get("lag_seconds")
    if lag is not None:
        figures.append(f"'{name} lag'={lag:.3f}s;{limits.warn_lag:g};{limits.crit_lag:g};0;")
        found.append((_beyond(lag, limits.warn_lag, limits.crit_lag), f"{name} {duration(lag)} behind"))
    figures.append(f"'{name} behind'={link['lag_bytes']}B;;;0;")
    figures.append(f"'{name} different'={link['divergent_bytes']}B;;;0;")
    state = BAD_LINKS.get(link["state"], OK)
    error = f": {link['last_error']}" if link["last_error"] and link["state"] in TROUBLED else ""
    found.append((state, f"{name} {link['state']}{error}"))
    if link.get("stands") and not error:
        found.append((CRITICAL, f"{name} {link['stands']}"))
    if not link["consistent"]:
        found.append((WARNING, f"{name} inconsistent"))
    if link.get("found_different"):
        found.append((WARNING, f"{name} {found_different(link['found_different'])}"))
    if link["degraded"]:
        found.append((WARNING, f"{name} {'not in sync' if link['mode'] == 'sync' else 'not bounded in its lag'}"))


def _beyond(value: float, warn: float, critical: float) -> int:
    return CRITICAL if value >= critical else WARNING if value >= warn else OK
