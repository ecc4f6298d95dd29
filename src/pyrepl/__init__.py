"""pyrepl-volume: replication of block volumes over TCP, with storage-management operations in the order of the writes.

    import pyrepl

    with pyrepl.Node.open("/var/lib/pyrepl", create=True) as node:
        group = node.create_group("db", journal="/dev/nvme0n1p3")
        data = group.add_volume("data", "/dev/sdb")
        data.write(0, b"...")
        monday = data.snapshot("monday")
        data.restore(monday)

What is named here is the public API. Names are loaded when they are first used, so that ``import pyrepl`` costs
nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrepl import errors as errors
    from pyrepl.attachment import Attachment as Attachment
    from pyrepl.errors import PyreplError as PyreplError
    from pyrepl.group import Group as Group
    from pyrepl.node import Node as Node
    from pyrepl.options import SiteOptions as SiteOptions
    from pyrepl.results import Events as Events
    from pyrepl.results import OperationResult as OperationResult
    from pyrepl.results import Ticket as Ticket
    from pyrepl.volume import Extent as Extent
    from pyrepl.volume import Snapshot as Snapshot
    from pyrepl.volume import Volume as Volume

    __version__: str

_HOMES = {
    "Attachment": "attachment",
    "Events": "results",
    "Extent": "volume",
    "Group": "group",
    "Node": "node",
    "OperationResult": "results",
    "PyreplError": "errors",
    "SiteOptions": "options",
    "Snapshot": "volume",
    "Ticket": "results",
    "Volume": "volume",
}

__all__ = [
    "Attachment",
    "Events",
    "Extent",
    "Group",
    "Node",
    "OperationResult",
    "PyreplError",
    "SiteOptions",
    "Snapshot",
    "Ticket",
    "Volume",
    "__version__",
    "errors",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("pyrepl.errors")
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("pyrepl-volume")
        except PackageNotFoundError:
            return "0+unknown"  # run from a checkout
    if name not in _HOMES:
        raise AttributeError(f"module 'pyrepl' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"pyrepl.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
