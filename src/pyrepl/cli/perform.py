"""``pyrepl perform``: an operation that a plug-in brings.

Decides how arguments are written on the command line. What they mean is the plug-in's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from pyrepl.cli.connection import asks_daemon
from pyrepl.cli.names import GROUP
from pyrepl.cli.outcome import FAILED, instead_at, operation_options, tell, verify_option
from pyrepl.errors import UsageError

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode


@click.command()
@click.argument("group", type=GROUP)
@click.argument("plugin")
@click.option("--arg", "given", multiple=True, metavar="NAME=VALUE",
              help="An argument of the plug-in: a VALUE that is JSON is that, else it is text. May be repeated.")
@verify_option
@operation_options
@asks_daemon
def perform(
    node: RemoteNode, group: str, plugin: str, given: tuple[str, ...], verify: bool, no_wait: bool,
    timeout: float | None, as_json: bool,
) -> None:
    """Performs the operation of a plug-in at this point of the order: all of it or nothing, at every site.

    PLUGIN is the name of an entry point of the group pyrepl.operations, in the Python of the daemon and in those of the
    secondaries: one that lacks it gets the data. Ends with 1 if the plug-in has failed: then nothing was changed.

    \b
    Example:
      pyrepl perform db reindex --arg volume=data --arg level=3
    """
    found = node.group(group)
    result = found.perform(plugin, arguments(given), verify=verify, wait=not no_wait, timeout=timeout)
    tell(result, group, f"{plugin} in {group}", as_json=as_json, at=instead_at(found, result))
    if result.failed:
        click.get_current_context().exit(FAILED)


def arguments(given: tuple[str, ...], member: str = "") -> dict[str, Any]:
    """By name.

    Args:
        given: as they were written.
        member: of a set, the whole of it.

    Raises:
        UsageError: one without a name, or twice.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals or name in found:
            what = f"{member!r}: {text!r}" if member else f"--arg {text!r}"
            raise UsageError(f"{what}: write NAME=VALUE, each name once")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
