"""The command line: one file for each noun, loaded when it is used, so that ``pyrepl --help`` is quick.

Decides how errors become text and exit status. Everything else is in the commands.
"""

from __future__ import annotations

import errno
import importlib

import click

from pyrepl.border import typed
from pyrepl.errors import PyreplError

COMMANDS = {  # name: (module, attribute, one line for --help)
    "demo": ("pyrepl.cli.demo", "demo", "Two nodes on loopback TCP: every feature once, judged from outside."),
    "doctor": ("pyrepl.cli.doctor", "doctor", "What this machine offers, and what is wrong with the installation."),
    "journal": ("pyrepl.cli.journal", "journal", "Look into the journal of a group: dump, check."),
}


class Commands(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except PyreplError as error:
            click.echo(f"pyrepl: {error}", err=True)
            ctx.exit(error.exit_status)
        except OSError as error:  # what the system refuses a command, be it a folder that cannot be made
            if error.errno == errno.EPIPE:
                raise  # whoever read the output has enough; click ends quietly
            failure = typed(error, str(ctx.invoked_subcommand))
            click.echo(f"pyrepl: {failure}", err=True)
            ctx.exit(failure.exit_status)
        except KeyboardInterrupt:
            click.echo("pyrepl: interrupted", err=True)
            ctx.exit(130)


@click.command(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, help="Show the version and end.")
@click.option("-v", "--verbose", is_flag=True, help="With --version: engines, formats and libraries too.")
@click.pass_context
def main(ctx: click.Context, version: bool, verbose: bool) -> None:
    """Replicates block volumes over TCP. Snapshot, restore and resize travel in order with the writes.

    \b
    Example:
      pyrepl demo --size 128M
      pyrepl COMMAND --help
    """
    if version:
        from pyrepl.cli.doctor import version_lines

        click.echo("\n".join(version_lines(verbose)))
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
