"""``pyrepl completion``: the script that a shell needs to complete commands, options and names."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Writes the completion script of a shell. Names of groups, stores and links come from the daemon.

    \b
    Example:
      pyrepl completion bash > /etc/bash_completion.d/pyrepl
      pyrepl completion zsh > "${fpath[1]}/_pyrepl"
      pyrepl completion fish > ~/.config/fish/completions/pyrepl.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "pyrepl", "_PYREPL_COMPLETE").source())
