"""The commands as click knows them, for comparing documents and help with them."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator

import click

from pyrepl.cli import main

COMMON = ("--socket", "--json", "--no-wait", "--timeout", "--progress", "--force")
"""Options whose meaning stands once at the top of the page, unless a command gives them one of its own."""


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, groups before their verbs."""
    yield from _walk("pyrepl", main)


def _walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        with click.Context(command, info_name=name) as ctx:
            for verb in command.list_commands(ctx):
                inner = command.get_command(ctx, verb)
                assert inner is not None
                yield from _walk(f"{name} {verb}", inner)


def options(command: click.Command) -> list[click.Option]:
    return [param for param in command.params if isinstance(param, click.Option)]


def synopsis(name: str, command: click.Command) -> str:
    """The command with everything that it takes."""
    ctx = click.Context(command, info_name=name)
    words = [name]
    for param in command.params:
        if isinstance(param, click.Argument):
            words.append(param.make_metavar(ctx) if param.metavar or param.required else f"[{_plain(param, ctx)}]")
    for option in options(command):
        flags = "|".join([option.opts[-1], *option.secondary_opts])
        word = flags if option.is_flag else f"{flags} {_plain(option, ctx)}"
        word = word if option.required else f"[{word}]"
        words.append(word + ("..." if option.multiple else ""))
    if isinstance(command, click.Group):
        words.append("COMMAND ...")
    return " ".join(words)


def _plain(param: click.Parameter, ctx: click.Context) -> str:
    return param.make_metavar(ctx).strip("[]") if isinstance(param, click.Argument) else param.make_metavar(ctx)


def prose(command: click.Command) -> str:
    """What its help says, without the example."""
    return inspect.cleandoc(command.help or "").partition("\b\nExample:")[0].replace("\b\n", "").strip()


def example(command: click.Command) -> str:
    """The lines of its example."""
    return textwrap.dedent(inspect.cleandoc(command.help or "").partition("\b\nExample:")[2]).strip("\n")
