"""``pyrepl demo``: options in, table or JSON out, status 1 if anything differs. What happens: pyrepl.demo.scenario."""

from __future__ import annotations

import signal

import click

from pyrepl.cli import sizes


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, no table and no bars.")
@click.option("--size", type=sizes.size, default="256M", show_default=True, help="Of the volume.")
@click.option(
    "--dir", "folder", type=click.Path(file_okay=False), help="Where to work; a folder is made in it and removed."
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    type=click.Path(),
    help="Use this device; its content is LOST. In order: the volume at the first site, at the second, the journal "
    "at the first, at the second. Refused if it is mounted or held, and, without --force, if anything stands on it.",
)
@click.option("--force", is_flag=True, help="Although something stands on a device: it is lost.")
@click.option("--source", type=click.Path(dir_okay=False), help="Fill the volume from this image.")
@click.pass_context
def demo(
    ctx: click.Context, as_json: bool, size: int, folder: str | None, devices: tuple[str, ...], force: bool,
    source: str | None,
) -> None:
    """Two node processes on loopback TCP: fill, synchronize, snapshot, overwrite, restore, kill, cut, compare.

    A writer runs all the time. Bytes are counted by a proxy between the two sites. Ends with 1 if anything differs.

    \b
    Example:
      pyrepl demo
      pyrepl demo --json --size 64M --source /srv/golden.img
    """
    from pyrepl.demo.process import AgentError
    from pyrepl.demo.scenario import Options, Scenario
    from pyrepl.demo.table import Bars, Quiet, show

    options = Options(size=size, folder=folder, devices=devices, source=source, force=force)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same way out as Ctrl-C, which cleans up
    try:
        if as_json:
            report = Scenario(options, Quiet()).run()
        else:
            with Bars() as bars:
                report = Scenario(options, bars).run()
    except AgentError as error:
        click.echo(f"pyrepl demo: {error}", err=True)
        ctx.exit(1)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(report))
    else:
        show(report)
    ctx.exit(0 if report.equal else 1)
