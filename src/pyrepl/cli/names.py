"""How things are named on the command line: GROUP, GROUP/STORE, GROUP/LINK; and their completion in a shell.

Decides what is split where. Whether there is such a thing is the daemon's to say; completion asks it, within a time
limit, and without it, or without a daemon, there is nothing to offer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from pyrepl.errors import UsageError

COMPLETION_SECONDS = 0.5  # a shell that waits for a daemon is worse than one that offers nothing


class Named(NamedTuple):
    """Something in a group."""

    group: str
    name: str

    def __str__(self) -> str:
        return f"{self.group}/{self.name}"


if TYPE_CHECKING:
    NameType = click.ParamType[str]
    NamedType = click.ParamType[Named]
else:
    NameType = NamedType = click.ParamType


class GroupName(NameType):
    """``GROUP``."""

    name = "group"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "GROUP"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(group["group"]) for group in _groups(ctx) if group["group"].startswith(incomplete)]


class Inside(NamedType):
    """``GROUP/NAME``, where NAME is that of a store of these kinds, or of a link."""

    def __init__(self, name: str, *kinds: str, whole: bool = False) -> None:
        self.name = name
        self._kinds = kinds
        self._whole = whole  # GROUP alone will do too: its name is then empty

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        full = f"GROUP/{self.name.upper()}"
        return f"GROUP[/{self.name.upper()}]" if self._whole else full

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Named:
        if isinstance(value, Named):
            return value
        group, slash, name = str(value).partition("/")
        if not group or (not name if slash else not self._whole) or "/" in name:
            form = f"GROUP/{self.name.upper()}"
            self.fail(f"{value!r} is not {form}{' or GROUP' if self._whole else ''}: write db/data", param, ctx)
        return Named(group, name)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = []
        for group in _groups(ctx):
            if self._whole:
                found.append(group["group"])
            found += [f"{group['group']}/{name}" for name in self._names(group)]
        return [CompletionItem(name) for name in found if name.startswith(incomplete)]

    def _names(self, group: dict[str, Any]) -> Iterator[str]:
        return _of_kinds(group, self._kinds)


def _of_kinds(group: dict[str, Any], kinds: Collection[str]) -> Iterator[str]:
    """Names in a group of the kinds "volume", "snapshot", "kept", "image" and "link"."""
    for store in (*(group.get("stores") or ()), *(group.get("kept") or ())):
        if store["kind"] in kinds:
            yield store["name"]
    for kind in ("image", "link"):
        if kind in kinds:
            yield from (one["name"] for one in group.get(f"{kind}s") or ())


Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def offer_in(*kinds: str, also: Sequence[str] = ()) -> Completer:
    """Completes the name of something in the group that an argument before names.

    Args:
        kinds: as of ``_of_kinds``.
        also: words that are offered besides.
    """

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before = [value for value in ctx.params.values() if isinstance(value, Named)]
        group = before[0].group if before else ctx.params.get("group")
        if group is None and ctx.args:  # an option that has no value yet keeps arguments from having names
            group = ctx.args[0].partition("/")[0]
        found = [*also]
        for one in _groups(ctx) if kinds and group is not None else ():
            if one["group"] == group:
                found += _of_kinds(one, kinds)
        return [CompletionItem(name) for name in found if name.startswith(incomplete)]

    return complete


def offer_exports(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the name of an export."""
    return [CompletionItem(one["name"]) for one in _status(ctx).get("exports") or ()
            if one["name"].startswith(incomplete)]


GROUP = GroupName()
VOLUME = Inside("volume", "volume")
VOLUME_OR_GROUP = Inside("volume", "volume", whole=True)
SNAPSHOT_OR_GROUP = Inside("snapshot", "snapshot", whole=True)
STORE = Inside("store", "volume", "snapshot")
STORE_OR_GROUP = Inside("store", "volume", "snapshot", whole=True)
READABLE = Inside("store", "volume", "snapshot", "kept")
DELETABLE_OR_GROUP = Inside("snapshot", "snapshot", "kept", whole=True)
IMAGE = Inside("image", "image")
LINK = Inside("link", "link")


def within(group: str, text: str) -> str:
    """The name of a store that is to be in this group, given as NAME or GROUP/NAME.

    Raises:
        UsageError: it is in another group.
    """
    head, slash, name = text.rpartition("/")
    if slash and head != group:
        raise UsageError(
            f"{text!r} is not in group {group!r}: operations stay within one group", group=group, name=text
        )
    return name


def _groups(ctx: click.Context) -> list[dict[str, Any]]:
    """What the daemon says of its groups; nothing if it says nothing in time."""
    groups: list[dict[str, Any]] = _status(ctx).get("groups") or []
    return groups


def _status(ctx: click.Context) -> dict[str, Any]:
    from pyrepl.cli.connection import connect, socket_of

    with suppress(Exception), connect(socket_of(ctx, ctx.params.get("socket")), timeout=COMPLETION_SECONDS) as node:
        return node.status()
    return {}
