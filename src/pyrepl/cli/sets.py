"""``pyrepl set``: several operations at one point of the order, all of them or none.

Decides how a member is written on the command line. What it means, and which can stand together, is the API's.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pyrepl.cli import sizes
from pyrepl.cli.connection import asks_daemon
from pyrepl.cli.names import GROUP, within
from pyrepl.cli.outcome import FAILED, clients_of, destroys, force_option, instead_at, operation_options, tell
from pyrepl.cli.perform import arguments
from pyrepl.errors import UsageError

if TYPE_CHECKING:
    from pyrepl.remote import RemoteGroup, RemoteNode
    from pyrepl.remote.sets import RemoteExplanation, RemoteUnorderedSet

# Verb -> words after it: a store of the group, the name of a new one, or a size; those in brackets may be left out. Of
# perform, any number of the last.
FORMS = {
    "snapshot": "STORE NAME",
    "clone": "STORE NAME",
    "restore": "VOLUME SNAPSHOT [OFFSET LENGTH]",
    "refresh": "SNAPSHOT",
    "synchronize": "STORE SOURCE",
    "copy-range": "SOURCE STORE OFFSET LENGTH",
    "resize": "VOLUME SIZE",
    "remove": "VOLUME",
    "delete": "SNAPSHOT",
    "perform": "PLUGIN [NAME=VALUE]",
}
LOSES = ("restore", "refresh", "synchronize", "copy-range", "remove", "delete")


@click.command("set")
@click.argument("group", type=GROUP)
@click.argument("members", nargs=-1, required=True, metavar="MEMBER...")
@force_option
@operation_options
@asks_daemon
def set_(
    node: RemoteNode, group: str, members: tuple[str, ...], force: bool, no_wait: bool, timeout: float | None,
    as_json: bool,
) -> None:
    """Several operations at one point of the order: all of them, or none; at every secondary too.

    Each MEMBER is one word of the shell: "snapshot STORE NAME", "clone STORE NAME", "restore VOLUME SNAPSHOT [OFFSET
    LENGTH]", "refresh SNAPSHOT", "synchronize STORE SOURCE", "copy-range SOURCE STORE OFFSET LENGTH", "resize VOLUME
    SIZE", "remove VOLUME", "delete SNAPSHOT" or "perform PLUGIN [NAME=VALUE]...". They have no order among themselves:
    a store that one of them changes may not be used by another. Ends with 1 if a plug-in has failed: that one has
    changed nothing, the others did what they do.

    \b
    Example:
      pyrepl set db "snapshot data before" "snapshot logs logs-before"
      pyrepl set db "restore data monday" "restore logs logs-monday" --force
      pyrepl set db "delete data-monday" "delete logs-monday" --force
      pyrepl set db "perform reindex volume=data level=3" "snapshot logs after"
    """
    chosen = [Member(group, text) for text in members]
    found = node.group(group)
    losing = [one for one in chosen if one.loses(found)]
    if losing:
        for one in losing:
            found.store(one.target)  # what makes it impossible comes before what it costs
        keep = "" if all(one.verb == "delete" for one in losing) else f"pyrepl snapshot create {group} NAME"
        lost = ", ".join(f"{one.target} ({one.verb})" for one in losing)
        destroys(f"what these hold now is lost: {lost}", force=force, unless=keep,
                 clients=clients_of(node, group, {one.target for one in losing}))
    with found.unordered(wait=not no_wait, timeout=timeout) as ops:
        for one in chosen:
            one.add(ops, force)
    tell(ops.result, group, f"set of {len(chosen)} operations of {group}", as_json=as_json,
         at=instead_at(found, ops.result))
    if any(one.failed for one in ops.result.members):
        click.get_current_context().exit(FAILED)


class Member:
    """One of them, as it was written."""

    def __init__(self, group: str, text: str) -> None:
        self.text = text
        try:
            self.verb, *self.words = shlex.split(text) or [""]
        except ValueError as error:
            raise UsageError(f"{text!r}: {error}") from None
        form = FORMS.get(self.verb)
        if form is None:
            raise UsageError(f"{text!r} is no operation that can be in a set: it begins with {', '.join(FORMS)}")
        kinds = form.replace("[", "").replace("]", "").split()
        least = len(form.partition("[")[0].split())
        if self.verb == "perform" and self.words:
            self.values: list[Any] = [self.words[0], arguments(tuple(self.words[1:]), self.text)]
            return
        if len(self.words) not in (least, len(kinds)):
            raise UsageError(f"{text!r}: write {self.verb} {form}{'...' if self.verb == 'perform' else ''}")
        self.values = [self._value(group, kind, word) for kind, word in zip(kinds, self.words, strict=False)]

    @property
    def target(self) -> str:
        """The store that is changed."""
        return str(self.values[1] if self.verb == "copy-range" else self.values[0])

    def loses(self, group: RemoteGroup) -> bool:
        """Whether something is lost by it: of a resize, if that makes the volume shorter."""
        if self.verb == "resize":
            from pyrepl.catalog import check_size

            volume = group.volume(self.target)
            check_size(self.values[1], group.region_size)
            return bool(self.values[1] < volume.size)
        return self.verb in LOSES

    def add(self, ops: RemoteUnorderedSet | RemoteExplanation, force: bool) -> None:
        """It becomes a member."""
        values = self.values
        if self.verb == "restore":
            ops.restore(values[0], values[1], extent=(values[2], values[3]) if values[2:] else None)
        elif self.verb in ("resize", "remove"):
            call: Callable[..., None] = getattr(ops, self.verb)
            call(*values, force=force)
        else:
            getattr(ops, self.verb.replace("-", "_"))(*values)

    def _value(self, group: str, kind: str, word: str) -> str | int:
        if kind in ("OFFSET", "LENGTH", "SIZE"):
            try:
                return sizes.size(word)
            except click.BadParameter as error:
                raise UsageError(f"{self.text!r}: {error.message}") from None
        return word if kind == "NAME" else within(group, word)
