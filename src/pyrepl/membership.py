"""How a volume enters a group: at a primary by an operation, at a secondary that is not paired yet beforehand.

Decides its size, and what becomes of that which its device holds: it stays at a primary, and is lost with ``zero``, or
at a secondary, if somebody has said that it may be. Must not know what a volume is in the order (``operations``), nor
how a secondary's are matched with its primary's (``pairing``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyrepl import operations
from pyrepl._core.device import FileDevice
from pyrepl.catalog import check_name
from pyrepl.errors import UsageError
from pyrepl.roles import SECONDARY
from pyrepl.runtime.placement import check_free, check_overwritten, path_of

if TYPE_CHECKING:
    from pyrepl.group import Group
    from pyrepl.results import OperationResult


def add_volume(
    group: Group,
    name: str,
    device_path: str | os.PathLike[str] | None,
    size: int | None,
    *,
    zero: bool,
    force: bool,
    wait: bool,
    timeout: float | None,
) -> tuple[int, OperationResult | None]:
    """See :meth:`Group.add_volume`. Its number, and the operation if there was one."""
    group.check()
    path = path_of(device_path, "device") if device_path is not None else None
    check_name(name)
    if size is None:
        size = _size_of(group, name, path)
    devices = {name: path} if path is not None else {}
    if path is not None and (zero or (group.role == SECONDARY and group.site.group_id is None)):
        check_overwritten(path, force=force)
    if group.role == SECONDARY:
        return _prepare(group, name, size, devices), None
    result = group.operate(
        lambda catalog: operations.add_volume(
            catalog, name, size, zero=zero or path is None, region_size=group.region_size
        ),
        devices=devices,
        wait=wait,
        timeout=timeout,
    )
    return result.created[name], result


def _size_of(group: Group, name: str, path: str | None) -> int:
    if path is None:
        raise UsageError(f"volume {name!r} needs a device, or a size for a file of its own", name=name)
    check_free(path)
    with group.border(f"looking at {path}"), FileDevice(path, writable=False) as device:
        size = device.size // group.region_size * group.region_size
    if size == 0:
        raise UsageError(
            f"{path} is shorter than one region, {group.region_size} bytes: give a larger device", device=path
        )
    return size


def _prepare(group: Group, name: str, size: int, devices: Mapping[str, str]) -> int:
    with group.border(f"preparing volume {name!r}"), group.admission:
        intake = group.site.intake
        return group.admissions.reserving(
            devices, lambda paths: intake.prepare_volume(name, size, paths.get(name, "")))


def take_back(group: Group, name: str) -> None:
    """A volume that was prepared at this fresh secondary is none any more; see :meth:`Volume.remove`."""
    with group.border(f"taking volume {name!r} back"), group.admission:
        group.site.intake.take_back_volume(name)
