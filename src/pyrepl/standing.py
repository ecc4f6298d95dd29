"""How a site stands, in figures for people and programs: what ``Site.status`` returns.

Decides what is told of each part and under which name; docs/json.md describes it. Changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from pyrepl.roles import PRIMARY
from pyrepl.views import PROTECTIVE

if TYPE_CHECKING:
    from pyrepl.site import Site


def standing(site: Site) -> dict[str, Any]:
    """Bytes, LSNs, states: a consistent look at each, not at all together."""
    state = site.window.state()
    stores = list(site.here.catalog)
    names = {store.id: store.name for store in stores}
    differs = site.role != PRIMARY and (site.group_id is None or not site.protective.is_settled)
    return {
        "group": site.name,
        "group_id": site.group_id.hex() if site.group_id else None,
        "role": site.role,
        "region_size": site.region_size,
        "ordering": site.ordering,
        "alignment": site.alignment,
        "consistent": site.end.consistent,
        "protective": site.protective.status(),
        "waived": site.end.waived,
        "found_different": msgspec.structs.asdict(site.end.different) if site.end.different is not None else None,
        "handed_over": site.end.handed_over,
        "successor": site.successor or None,
        "yields": site.end.yields,
        "asking": site.roles.awaited,
        "fed_by": site.fed_by.hex() if site.fed_by else None,
        "above": [node.hex() for node in site.above if any(node)],
        "last_refusal": site.roles.refused,
        "last_refusal_time": site.roles.refused_at,
        "split_brain": site.roles.split_brain(),
        "generation": site.end.lineage.generation.hex(),
        "lsn": {
            "end": state.end_lsn,
            "written": state.written_lsn,
            "durable": state.durable_lsn,
            "applied": state.applied_lsn,
        },
        "journal": {
            "path": site.journal.device.name,
            "size": site.journal.log_size,
            "used": state.end_position - state.tail_position,
            "tail": state.tail_position,
            "end": state.end_position,
            "engine": site.journal.device.engine,
            "checkpoints": site.checkpoints,
        },
        "window": {
            "size": state.ring_size,
            "used": state.ring_used,
            "batches": state.batches,
            "records": state.records,
            "payload_bytes": state.payload_bytes,
            "commits": state.commits,
            "flushes": state.flushes,
        },
        "delay": site.delay.told(),
        "stands": site.shortage.told(),
        "mover_rests": site.shortage.mover_told(),
        "map_memory": site.stores.map_memory(),
        "bytes_avoided": site.applier.bytes_avoided,
        "failed": state.failed,
        "stores": [
            {
                "id": store.id,
                "name": store.name,
                "kind": store.kind,
                "size": store.size,
                "origin": names.get(store.origin),
                "path": _path_of(site, store.id),
                "diverged": ["here"] if differs else [],
            }
            for store in stores
        ],
        "views": [
            {
                "id": view.id,
                "store": view.store,
                "name": view.name,
                "size": view.size,
                "lsn": view.lsn,
                "path": _path_of(site, view.id),
            }
            for view in list(site.views.opened.values())
            if not view.label
        ],
        "kept": [
            {
                "id": view.id,
                "name": f"{view.name}-{view.label}",
                "kind": "kept",
                "size": view.size,
                "origin": view.name,
                "diverged": [],
                "lsn": view.lsn,
                "path": _path_of(site, view.id),
            }
            for view in [*site.views.kept(), *site.views.kept(PROTECTIVE)]
        ],
        "images": [
            {
                "id": image.id,
                "name": image.name,
                "size": image.key.size,
                "digest": image.key.digest.hex(),
                "path": image.path,
                "state": site.gallery.state_of(image),
            }
            for image in list(site.shelf.images.values())
        ],
    }


def _path_of(site: Site, number: int) -> str | None:
    place = site.shelf.places.get(number)  # the applier may take it away at any time
    return place.path if place is not None else None
