"""What each request of the control socket does: one table, from the type of a request to its function.

    TABLE     type of a request -> Verb(perform, changes)

Decides how a request becomes calls of the API, and which requests are commands. Must not know sockets (``control``).
"""

from __future__ import annotations

from typing import Any

from pyrepl.remote import requests
from pyrepl.remote.requests import Request
from pyrepl.service.verbs import groups, images, nodes, stores
from pyrepl.service.verbs.call import Data, Verb

TABLE: dict[type[Request[Any]], Verb] = {
    requests.NodeShow: Verb(nodes.node_show),
    requests.NodeStatus: Verb(nodes.node_status),
    requests.NodeGroups: Verb(nodes.node_groups),
    requests.NodeEvents: Verb(nodes.node_events),
    requests.NodeListen: Verb(nodes.node_listen, changes=True),
    requests.NodeListenNbd: Verb(nodes.node_listen_nbd, changes=True),
    requests.NodeStopNbd: Verb(nodes.node_stop_nbd, changes=True),
    requests.NodeJobs: Verb(nodes.node_jobs),
    requests.NodeMetrics: Verb(nodes.node_metrics),
    requests.GroupCreate: Verb(groups.group_create, changes=True),
    requests.GroupImport: Verb(groups.group_import, changes=True),
    requests.GroupOpen: Verb(groups.group_open, changes=True),
    requests.GroupDelete: Verb(groups.group_delete, changes=True),
    requests.GroupShow: Verb(groups.group_show),
    requests.GroupStatus: Verb(groups.group_status),
    requests.GroupStores: Verb(groups.group_stores),
    requests.GroupAddVolume: Verb(groups.group_add_volume, changes=True),
    requests.GroupSnapshot: Verb(groups.group_snapshot, changes=True),
    requests.GroupWide: Verb(groups.group_wide, changes=True),
    requests.GroupAddImage: Verb(images.group_add_image, changes=True),
    requests.GroupImages: Verb(images.group_images),
    requests.GroupCopyRange: Verb(groups.group_copy_range, changes=True),
    requests.GroupUnordered: Verb(groups.group_unordered, changes=True),
    requests.GroupExplain: Verb(groups.group_explain),
    requests.GroupPerform: Verb(groups.group_perform, changes=True),
    requests.GroupMark: Verb(groups.group_mark, changes=True),
    requests.GroupSetDelay: Verb(groups.group_set_delay, changes=True),
    requests.GroupFlush: Verb(groups.group_flush),
    requests.GroupWait: Verb(groups.group_wait),
    requests.GroupOperation: Verb(groups.group_operation),
    requests.GroupVerified: Verb(groups.group_verified),
    requests.GroupOperations: Verb(groups.group_operations),
    requests.GroupAddLink: Verb(groups.group_add_link, changes=True),
    requests.GroupRemoveLink: Verb(groups.group_remove_link, changes=True),
    requests.GroupLinks: Verb(groups.group_links),
    requests.GroupLatency: Verb(groups.group_latency),
    requests.GroupVerify: Verb(groups.group_verify, changes=True),
    requests.GroupDemote: Verb(groups.group_demote, changes=True),
    requests.GroupPromote: Verb(groups.group_promote, changes=True),
    requests.GroupTakeover: Verb(groups.group_takeover, changes=True),
    requests.GroupMigrate: Verb(groups.group_migrate, changes=True),
    requests.GroupResolve: Verb(groups.group_resolve, changes=True),
    requests.GroupUnprotect: Verb(groups.group_unprotect, changes=True),
    requests.GroupLoss: Verb(groups.group_loss),
    requests.LinkShow: Verb(groups.link_show),
    requests.LinkStatus: Verb(groups.link_status),
    requests.LinkSet: Verb(groups.link_set, changes=True),
    requests.LinkPause: Verb(groups.link_pause, changes=True),
    requests.LinkResume: Verb(groups.link_resume, changes=True),
    requests.LinkWaitSynced: Verb(groups.link_wait_synced),
    requests.LinkWaitApplied: Verb(groups.link_wait_applied),
    requests.LinkDivergent: Verb(groups.link_divergent),
    requests.ExportStart: Verb(nodes.export_start, changes=True),
    requests.ExportStop: Verb(nodes.export_stop, changes=True),
    requests.ExportList: Verb(nodes.export_list),
    requests.ExportShow: Verb(nodes.export_show),
    requests.ExportStatus: Verb(nodes.export_status),
    requests.StoreShow: Verb(stores.store_show),
    requests.StoreRead: Verb(stores.store_read),
    requests.StoreView: Verb(stores.store_view),
    requests.ViewRead: Verb(stores.view_read),
    requests.StoreDigest: Verb(stores.store_digest),
    requests.StoreWrite: Verb(stores.store_write, changes=True),
    requests.StoreZero: Verb(stores.store_zero, changes=True),
    requests.StoreDiscard: Verb(stores.store_discard, changes=True),
    requests.StoreSnapshot: Verb(stores.store_snapshot, changes=True),
    requests.StoreClone: Verb(stores.store_clone, changes=True),
    requests.StoreSynchronize: Verb(stores.store_synchronize, changes=True),
    requests.VolumeRestore: Verb(stores.volume_restore, changes=True),
    requests.VolumeRewind: Verb(stores.volume_rewind, changes=True),
    requests.VolumeResize: Verb(stores.volume_resize, changes=True),
    requests.VolumeRemove: Verb(stores.volume_remove, changes=True),
    requests.SnapshotRefresh: Verb(stores.snapshot_refresh, changes=True),
    requests.SnapshotDelete: Verb(stores.snapshot_delete, changes=True),
    requests.KeptDelete: Verb(stores.kept_delete, changes=True),
    requests.ImageShow: Verb(images.image_show),
    requests.ImageClone: Verb(images.image_clone, changes=True),
    requests.ImageRemove: Verb(images.image_remove, changes=True),
}

__all__ = ["TABLE", "Data", "Verb"]
