"""``pyrepl image``: third copies of a group's content that each site has for itself, to restore from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pyrepl.cli import sizes, tables
from pyrepl.cli.connection import asks_daemon, local
from pyrepl.cli.names import GROUP, IMAGE, Named
from pyrepl.cli.outcome import force_option, json_option, operation_options, tell, verify_option
from pyrepl.cli.progress import Progress, progress_option
from pyrepl.cli.stores import statuses

if TYPE_CHECKING:
    from pyrepl.remote import RemoteNode


@click.group()
def image() -> None:
    """Images: files or devices at rest, such as backups, from which volumes are restored by a command.

    Each site registers its own copy, under the same name: an operation travels with the image's name, size and digest,
    and each site reads its own copy. An image is named GROUP/IMAGE.

    \b
    Example:
      pyrepl image add db/golden /srv/golden.img
      pyrepl volume restore db/data golden --force
    """


@image.command()
@click.argument("image", type=IMAGE)
@click.argument("path", type=click.Path())
@progress_option
@json_option
@asks_daemon
def add(node: RemoteNode, image: Named, path: str, wanted: bool, as_json: bool) -> None:
    """Registers PATH, a file or block device made of whole regions, as an image at this site. It is never written.

    All of it is read once for its digest. From then on it must not be changed until the image is gone: volumes may show
    what it holds until it was copied to them in the background. Do the same at the other sites, each with its own copy.

    \b
    Example:
      pyrepl image add db/golden /srv/golden.img
    """
    with Progress(f"digest of {path}", None, wanted=wanted) as progress:
        made = node.group(image.group).add_image(
            image.name,
            str(local(path)),
            progress=lambda told: progress.reach(told["bytes_done"], told["bytes_total"]),
        )
    if as_json:
        from pyrepl.cli import output

        entry = output.ImageEntry(group=image.group, id=made.id, name=made.name, size=made.size, digest=made.digest,
                                  path=made.device, state=made.state)  # type: ignore[arg-type]
        output.write(output.ImageList(images=[entry]))
        return
    click.echo(f"image {image} added: {sizes.human(made.size)}, SHA-256 {made.digest}")


@image.command("list")
@click.argument("group", type=GROUP, required=False)
@json_option
@asks_daemon
def list_(node: RemoteNode, group: str | None, as_json: bool) -> None:
    """The images of a group at this site, or of all groups.

    ready: it can be used. changed: its file is another than it was when it was added. missing: it is not there.
    leaving: it was removed, and what stores show of it is being copied to them; its file must stay until it is gone.

    \b
    Example:
      pyrepl image list db
    """
    found = [(status["group"], one) for status in statuses(node, group) for one in status.get("images") or ()]
    if as_json:
        from pyrepl.cli import output

        entries = [output.pick(output.ImageEntry, one, group=name) for name, one in found]
        output.write(output.ImageList(images=entries))
        return
    rows = [[f"{name}/{one['name']}", sizes.human(one["size"]), one["state"], one["digest"][:16], one["path"]]
            for name, one in found]
    tables.show(["IMAGE", "SIZE", "STATE", "SHA-256", "PATH"], rows, none="no images")


@image.command()
@click.argument("image", type=IMAGE)
@click.option("--no-wait", is_flag=True, help="End when it is certain to go.")
@click.option("--timeout", type=sizes.seconds, help="Seconds to wait until it is gone; it goes on then.")
@asks_daemon
def remove(node: RemoteNode, image: Named, no_wait: bool, timeout: float | None) -> None:
    """The image is used no more at this site; its file, and the images of other sites, stay as they are.

    What stores still show of it is copied to them first, which takes its time and its space. Nothing is lost. When the
    command has ended, or the image is no longer listed, the file may be changed or deleted.

    \b
    Example:
      pyrepl image remove db/golden
    """
    node.group(image.group).image(image.name).remove(wait=not no_wait, timeout=timeout)
    click.echo(f"image {image} {'is being removed' if no_wait else 'removed'}")


@image.command()
@click.argument("image", type=IMAGE)
@click.argument("name")
@click.option("--device", type=click.Path(), help="For the new volume, at this site; at least as long as the image.")
@force_option
@verify_option
@operation_options
@asks_daemon
def clone(
    node: RemoteNode, image: Named, name: str, device: str | None, force: bool, verify: bool, no_wait: bool,
    timeout: float | None, as_json: bool
) -> None:
    """A new volume NAME with the content of an image, at every site; no data move over the links.

    What a device holds is overwritten: one that is not blank wants --force.

    \b
    Example:
      pyrepl image clone db/golden test
    """
    source = node.group(image.group).image(image.name)
    made = source.clone(name, local(device), force=force, verify=verify, wait=not no_wait, timeout=timeout)
    assert made.result is not None
    tell(made.result, image.group, f"volume {image.group}/{name} cloned from {image}", as_json=as_json,
         image=True)
