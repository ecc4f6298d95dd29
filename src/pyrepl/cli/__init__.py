"""The command line: one file for each noun, loaded when it is used, so that ``pyrepl --help`` is quick.

Decides how errors become text and exit status. Everything else is in the commands.
"""

from __future__ import annotations

import errno
import gc
import importlib
import io
import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from pyrepl.border import typed
from pyrepl.errors import PyreplError, UsageError, wants_force
from pyrepl.runtime.streams import stand_in

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SOCKET = "/run/pyrepl/control.sock"
SELDOM = 50_000  # objects that are made until the collector looks: a command imports thousands, and drops none of them
BROKEN_PIPE = 141  # as a shell shows a program that SIGPIPE ended
INTERRUPTED = 130  # and one that SIGINT ended

COMMANDS = {  # name: (module, attribute, one line for --help)
    "completion": ("completion", "completion", "The script that a shell needs to complete commands and names."),
    "demo": ("demo", "demo", "Two nodes on loopback TCP: every feature once, judged from outside."),
    "demote": ("roles", "demote", "Step down: the primary of a group becomes a secondary."),
    "doctor": ("doctor", "doctor", "What this machine offers, and what is wrong with the installation."),
    "events": ("events", "events", "What happens at the node, as it happens."),
    "explain": ("explain", "explain", "What an operation would change here and cost on each link."),
    "export": ("export", "export", "Stores as block devices over NBD: start, stop, list."),
    "group": ("group", "group", "Groups, volumes with one order of writes: create, show, import, ..."),
    "image": ("image", "image", "Images, third copies to restore from: add, list, remove, clone."),
    "job": ("job", "job", "Commands that were given to the daemon, and their outcome: list, show."),
    "journal": ("journal", "journal", "Look into the journal of a group: dump, check."),
    "keys": ("keys", "keys", "Key and certificate of the node: create, show."),
    "link": ("link", "link", "Replicas of a group: add, list, set, pause, resume, remove."),
    "mark": ("mark", "mark", "Put a named mark at this point of the order."),
    "metrics": ("metrics", "metrics", "The node's metrics, for Prometheus."),
    "migrate": ("roles", "migrate", "A planned swap: this site steps down, another leads and links back."),
    "operation": ("operation", "operation", "Operations that were performed on a group: list, show."),
    "perform": ("perform", "perform", "Perform an operation that a plug-in brings."),
    "promote": ("roles", "promote", "A secondary becomes primary after its primary stepped down."),
    "resolve": ("roles", "resolve", "End a split brain: name the side that loses."),
    "set": ("sets", "set_", "Several operations at one point of the order, all of them or none."),
    "snapshot": ("snapshot", "snapshot", "Snapshots: create, list, refresh, clone, delete."),
    "status": ("status", "status", "How the groups are: for people, programs, monitoring; --watch."),
    "takeover": ("roles", "takeover", "A secondary becomes primary because its primary is gone."),
    "verify": ("verification", "verify", "Whether the secondaries hold what the primary holds."),
    "volume": ("volume", "volume", "Volumes: add, list, resize, restore, read, write, compare, ..."),
    "wait": ("waiting", "wait", "Wait until secondaries are synced, or an LSN is performed."),
}


class Commands(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"pyrepl.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        found = [CompletionItem(name, help=COMMANDS[name][2]) for name in names]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except PyreplError as error:
            _fail(ctx, str(error), UsageError.exit_status if wants_force(error) else error.exit_status)
        except UnicodeEncodeError as error:  # an argument that is not text in this locale cannot be a name
            _fail(ctx, f"{ascii(error.object)[:60]} is not valid UTF-8", click.UsageError.exit_code)
        except OSError as error:  # what the system refuses a command, be it a folder that cannot be made
            if error.errno == errno.EPIPE:  # whoever read the output has enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                ctx.exit(BROKEN_PIPE)
            failure = typed(error, str(ctx.invoked_subcommand))
            _fail(ctx, str(failure), failure.exit_status)
        except KeyboardInterrupt:
            _fail(ctx, "interrupted", INTERRUPTED)


def _fail(ctx: click.Context, text: str, status: int) -> NoReturn:
    click.echo(f"pyrepl: {text}", err=True)
    ctx.exit(status)


@click.command(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--socket", metavar="PATH", envvar="PYREPL_SOCKET", default=SOCKET, show_default=True, show_envvar=True,
              help="The daemon's control socket.")
@click.option("--version", is_flag=True, help="Show the version and end.")
@click.option("-v", "--verbose", is_flag=True, help="With --version: engines, formats and libraries too.")
@click.pass_context
def main(ctx: click.Context, socket: str, version: bool, verbose: bool) -> None:
    """Replicates block volumes over TCP. Snapshot, restore and resize travel in order with the writes.

    Stores are named GROUP/STORE, links GROUP/LINK. Sizes are bytes, or 64K, 256M, 1G, 2T.

    \b
    Example:
      pyrepl demo --size 128M
      pyrepl status
      pyrepl COMMAND --help
    """
    stand_in()
    gc.set_threshold(max(SELDOM, gc.get_threshold()[0]))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without arrows gets question marks, not an error
    if version:
        from pyrepl.cli.doctor import version_lines

        click.echo("\n".join(version_lines(verbose)))
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
