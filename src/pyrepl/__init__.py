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
    from pyrepl.explaining import Explanation as Explanation
    from pyrepl.group import Group as Group
    from pyrepl.image import Image as Image
    from pyrepl.node import Node as Node
    from pyrepl.options import SiteOptions as SiteOptions
    from pyrepl.remote import connect as connect
    from pyrepl.results import Events as Events
    from pyrepl.results import MemberResult as MemberResult
    from pyrepl.results import OperationResult as OperationResult
    from pyrepl.results import Ticket as Ticket
    from pyrepl.runtime.hooks import Hook as Hook
    from pyrepl.runtime.hooks import Passing as Passing
    from pyrepl.runtime.plugins import Footprint as Footprint
    from pyrepl.runtime.plugins import Operation as Operation
    from pyrepl.runtime.plugins import WorkStore as WorkStore
    from pyrepl.unordered import UnorderedSet as UnorderedSet
    from pyrepl.volume import Extent as Extent
    from pyrepl.volume import Snapshot as Snapshot
    from pyrepl.volume import View as View
    from pyrepl.volume import Volume as Volume

    __version__: str

_HOMES = {
    "Attachment": "attachment",
    "Events": "results",
    "Explanation": "explaining",
    "Extent": "volume",
    "Footprint": "runtime.plugins",
    "Group": "group",
    "Hook": "runtime.hooks",
    "Image": "image",
    "MemberResult": "results",
    "Node": "node",
    "Operation": "runtime.plugins",
    "OperationResult": "results",
    "Passing": "runtime.hooks",
    "PyreplError": "errors",
    "SiteOptions": "options",
    "Snapshot": "volume",
    "Ticket": "results",
    "UnorderedSet": "unordered",
    "View": "volume",
    "Volume": "volume",
    "WorkStore": "runtime.plugins",
    "connect": "remote",
}

__all__ = [
    "Attachment",
    "Events",
    "Explanation",
    "Extent",
    "Footprint",
    "Group",
    "Hook",
    "Image",
    "MemberResult",
    "Node",
    "Operation",
    "OperationResult",
    "Passing",
    "PyreplError",
    "SiteOptions",
    "Snapshot",
    "Ticket",
    "UnorderedSet",
    "View",
    "Volume",
    "WorkStore",
    "__version__",
    "connect",
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
