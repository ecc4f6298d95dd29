"""Metrics of a node for Prometheus: collected from status() and latency() when they are asked for, nothing in between.

    FAMILIES    name, type, labels and meaning of every metric; docs/metrics.md has the same table, held beside a scrape

Decides names, units (base units: seconds, bytes, counts) and labels. Enumerations are one gauge per word, 1 for the one
that holds. Must not know how they are fetched (``metrics_server``, the control socket).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import prometheus_client
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

import pyrepl
from pyrepl.errors import PyreplError
from pyrepl.link import STATES as LINK_STATES
from pyrepl.roles import PRIMARY, SECONDARY

if TYPE_CHECKING:
    from pyrepl.node import Node

GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"
GROUP_STATES = ("active", "failed", "closed")
EXPORT_STATES = ("serving", "held", "gone")
LATENCIES = ("write", "flush", "operation")


class Family(NamedTuple):
    """One metric: its full name, type, labels, and what it says."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def _of_group(name: str, kind: str, text: str, *more: str) -> Family:
    return Family(name, kind, ("group", *more), text)


def _of_link(name: str, kind: str, text: str, *more: str) -> Family:
    return Family(name, kind, ("group", "link", *more), text)


def _of_export(name: str, kind: str, text: str, *more: str) -> Family:
    return Family(name, kind, ("export", *more), text)


FAMILIES: tuple[Family, ...] = (
    Family("pyrepl_node_info", GAUGE, ("node", "node_id", "version"), "1; who answers"),
    _of_group("pyrepl_group_role", GAUGE, "1 for the role that the site has in the group", "role"),
    _of_group("pyrepl_group_state", GAUGE, "1 for the state of the group", "state"),
    _of_group("pyrepl_group_consistent", GAUGE, "1: the stores here are a state that there was"),
    _of_group("pyrepl_group_protected", GAUGE, "1: not consistent, and keeps its last consistent state"),
    _of_group("pyrepl_group_stands_still", GAUGE, "1: performs nothing, for the file system of its stores has no room"),
    _of_group("pyrepl_group_split_brain", GAUGE, "Other sites that have written beside this one: `pyrepl resolve`"),
    _of_group("pyrepl_group_primary_connected", GAUGE, "Of a secondary: 1: its primary is connected"),
    _of_group("pyrepl_group_lsn", GAUGE, "Last LSN that has come so far", "reached"),
    _of_group("pyrepl_group_events_total", COUNTER, "Events taken in since the group was opened"),
    _of_group("pyrepl_group_event_bytes_total", COUNTER, "Bytes of data of those events"),
    _of_group("pyrepl_group_stores", GAUGE, "Stores of the group", "kind"),
    _of_group("pyrepl_group_store_bytes", GAUGE, "Sizes of those stores together", "kind"),
    _of_group("pyrepl_group_map_bytes", GAUGE, "Memory of the source maps"),
    _of_group("pyrepl_journal_size_bytes", GAUGE, "Size of the journal's log"),
    _of_group("pyrepl_journal_used_bytes", GAUGE, "Bytes of the log that are still needed"),
    _of_group("pyrepl_journal_batches_total", COUNTER, "Batches written since the group was opened"),
    _of_group("pyrepl_journal_flushes_total", COUNTER, "Flushes of the journal's device since then"),
    _of_group("pyrepl_journal_checkpoints_total", COUNTER, "Checkpoints since the journal was made"),
    _of_group("pyrepl_window_size_bytes", GAUGE, "Memory of the window"),
    _of_group("pyrepl_window_used_bytes", GAUGE, "Bytes of it that hold events"),
    _of_group(
        "pyrepl_operations_total", COUNTER,
        'Operations since the group was opened; kind "none": refused before it was one', "kind", "result",
    ),
    _of_group("pyrepl_write_seconds", HISTOGRAM, "How long writes took, as their callers waited"),
    _of_group("pyrepl_flush_seconds", HISTOGRAM, "How long flushes took, as their callers waited"),
    _of_group("pyrepl_operation_seconds", HISTOGRAM, "From an operation's place in the order to its performance"),
    _of_link("pyrepl_link_info", GAUGE, "1; where the secondary is", "address", "mode"),
    _of_link("pyrepl_link_state", GAUGE, "1 for the state of the link", "state"),
    _of_link("pyrepl_link_connected", GAUGE, "1: a connection is up"),
    _of_link("pyrepl_link_consistent", GAUGE, "1: the secondary is in a state that there was"),
    _of_link("pyrepl_link_synced", GAUGE, "1: the secondary durably holds all that was written"),
    _of_link("pyrepl_link_degraded", GAUGE, "1: a link of mode sync acknowledges as async, or a bound does not hold"),
    _of_link("pyrepl_link_holds_writers", GAUGE, "1: writes wait, for the secondary is as far behind as it may be"),
    _of_link("pyrepl_link_stands_still", GAUGE, "1: the secondary takes or performs nothing, for want of room"),
    _of_link("pyrepl_link_bandwidth_bytes", GAUGE, "Most bytes that are sent in a second; 0: no limit"),
    _of_link("pyrepl_link_lag_seconds", GAUGE, "Since when the oldest event was written that the secondary lacks"),
    _of_link("pyrepl_link_lag_events", GAUGE, "Events that the secondary lacks"),
    _of_link("pyrepl_link_lag_bytes", GAUGE, "Bytes of the journal that the secondary lacks"),
    _of_link("pyrepl_link_divergent_bytes", GAUGE, "Bytes of regions that differ at the secondary"),
    _of_link("pyrepl_link_found_different_bytes", GAUGE,
             "Bytes of regions that a verification has found different and was not to repair"),
    _of_link("pyrepl_link_backlog_bytes", GAUGE, "Bytes of regions that the journal dropped before they were sent"),
    _of_link("pyrepl_link_in_flight_bytes", GAUGE, "Bytes sent and not acknowledged"),
    _of_link("pyrepl_link_sent_bytes_total", COUNTER, "Bytes sent, framing not counted, by what they are", "kind"),
    _of_link("pyrepl_link_wire_sent_bytes_total", COUNTER, "Bytes sent, framing included"),
    _of_link("pyrepl_link_wire_received_bytes_total", COUNTER, "Bytes received, framing included"),
    _of_link("pyrepl_link_connections_total", COUNTER, "Connections that were opened"),
    _of_export("pyrepl_export_state", GAUGE, "1 for the state of the export", "state"),
    _of_export("pyrepl_export_clients", GAUGE, "NBD clients that are attached"),
    _of_export("pyrepl_export_requests_total", COUNTER, "Requests of NBD clients", "command"),
    _of_export("pyrepl_export_errors_total", COUNTER, "Requests that were answered with an error"),
    _of_export("pyrepl_export_read_bytes_total", COUNTER, "Bytes read by NBD clients"),
    _of_export("pyrepl_export_written_bytes_total", COUNTER, "Bytes written by NBD clients"),
    Family("pyrepl_control_connections", GAUGE, (), "Connections to the control socket"),
    Family("pyrepl_control_requests_total", COUNTER, ("verb", "outcome"),
           'Requests on the control socket; outcome: "done", or the code of the error'),
)  # fmt: skip

Requests = Callable[[], tuple[int, dict[tuple[str, str], int]]]


class Metrics:
    """The metrics of one node.

    Args:
        node: the node.
        requests: connections to the control socket now, and requests so far by (verb, outcome).
    """

    def __init__(self, node: Node, requests: Requests) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Node(node, requests))
        prometheus_client.ProcessCollector(registry=self._registry)

    def text(self) -> str:
        """In Prometheus's text format, version 0.0.4."""
        return prometheus_client.generate_latest(self._registry).decode()


class _Samples:
    """The families while they are filled."""

    def __init__(self) -> None:
        kinds = {GAUGE: GaugeMetricFamily, COUNTER: CounterMetricFamily, HISTOGRAM: HistogramMetricFamily}
        self._families: dict[str, Any] = {
            family.name: kinds[family.kind](family.name, family.help, labels=family.labels)
            for family in FAMILIES
        }

    def add(self, name: str, value: float | None, *labels: str) -> None:
        """A value that is not known is left out."""
        if value is not None:
            self._families[name].add_metric(labels, float(value))

    def enumerate(self, name: str, value: str | None, words: Iterable[str], *labels: str) -> None:
        """1 for the word that holds, 0 for the others."""
        for word in (*words, *(() if value is None or value in words else (value,))):
            self._families[name].add_metric((*labels, word), float(word == value))

    def histogram(self, name: str, told: dict[str, Any], *labels: str) -> None:
        """Cumulative buckets; the last one, without bound, is the count."""
        buckets = [(repr(float(bound)), float(count)) for bound, count in told["buckets"]]
        if not buckets or buckets[-1][0] != "inf":
            buckets.append(("inf", float(told["count"])))
        buckets = [("+Inf" if bound == "inf" else bound, count) for bound, count in buckets]
        self._families[name].add_metric(labels, buckets, float(told["sum"]))

    def families(self) -> Iterator[Metric]:
        yield from self._families.values()


class _Node(Collector):
    """Asks the node whenever somebody wants to know."""

    def __init__(self, node: Node, requests: Requests) -> None:
        self._node = node
        self._requests = requests

    def describe(self) -> Iterable[Metric]:
        """The names, without asking the node."""
        return _Samples().families()

    def collect(self) -> Iterator[Metric]:
        samples = _Samples()
        status = self._node.status()
        samples.add("pyrepl_node_info", 1, status["node"], status["node_id"], pyrepl.__version__)
        for group in status["groups"]:
            _group(samples, group)
            for link in group["links"]:
                _link(samples, group["group"], link)
        for export in status["exports"]:
            _export(samples, export)
        for handle in self._node.groups:
            try:
                latency, counts = handle.latency(), handle.operation_counts()
            except PyreplError:
                continue  # it has failed: its state says so
            for name in LATENCIES:
                samples.histogram(f"pyrepl_{name}_seconds", latency[name], handle.name)
            for (kind, result), count in counts.items():
                samples.add("pyrepl_operations_total", count, handle.name, kind, result)
        connections, requests = self._requests()
        samples.add("pyrepl_control_connections", connections)
        for (verb, outcome), count in requests.items():
            samples.add("pyrepl_control_requests_total", count, verb, outcome)
        yield from samples.families()


def _group(samples: _Samples, group: dict[str, Any]) -> None:
    name = group["group"]
    samples.enumerate("pyrepl_group_role", group["role"], (PRIMARY, SECONDARY), name)
    samples.enumerate("pyrepl_group_state", group["state"], GROUP_STATES, name)
    if "lsn" not in group:
        return  # it has failed, or is closed
    samples.add("pyrepl_group_consistent", group["consistent"], name)
    samples.add("pyrepl_group_protected", group["protective"] is not None, name)
    samples.add("pyrepl_group_stands_still", group["stands"] is not None, name)
    samples.add("pyrepl_group_split_brain", len(group["split_brain"]), name)
    samples.add("pyrepl_group_primary_connected", group["primary_connected"], name)
    for reached, lsn in group["lsn"].items():
        samples.add("pyrepl_group_lsn", lsn, name, reached)
    window, journal = group["window"], group["journal"]
    samples.add("pyrepl_group_events_total", window["records"], name)
    samples.add("pyrepl_group_event_bytes_total", window["payload_bytes"], name)
    for kind in sorted({store["kind"] for store in group["stores"]}):
        sizes = [store["size"] for store in group["stores"] if store["kind"] == kind]
        samples.add("pyrepl_group_stores", len(sizes), name, kind)
        samples.add("pyrepl_group_store_bytes", sum(sizes), name, kind)
    samples.add("pyrepl_group_map_bytes", group["map_memory"], name)
    samples.add("pyrepl_journal_size_bytes", journal["size"], name)
    samples.add("pyrepl_journal_used_bytes", journal["used"], name)
    samples.add("pyrepl_journal_batches_total", window["batches"], name)
    samples.add("pyrepl_journal_flushes_total", window["flushes"], name)
    samples.add("pyrepl_journal_checkpoints_total", journal["checkpoints"], name)
    samples.add("pyrepl_window_size_bytes", window["size"], name)
    samples.add("pyrepl_window_used_bytes", window["used"], name)


def _link(samples: _Samples, group: str, link: dict[str, Any]) -> None:
    labels = (group, link["name"])
    samples.add("pyrepl_link_info", 1, *labels, link["address"], link["mode"])
    samples.enumerate("pyrepl_link_state", link["state"], LINK_STATES, *labels)
    for word in ("connected", "consistent", "synced", "degraded", "holds_writers"):
        samples.add(f"pyrepl_link_{word}", link[word], *labels)
    samples.add("pyrepl_link_stands_still", bool(link["stands"]), *labels)
    samples.add("pyrepl_link_bandwidth_bytes", link["bandwidth"] or 0, *labels)
    different = link["found_different"]
    samples.add("pyrepl_link_found_different_bytes", different["bytes"] if different else 0, *labels)
    for figure in ("lag_seconds", "lag_events", "lag_bytes", "divergent_bytes", "backlog_bytes", "in_flight_bytes"):
        samples.add(f"pyrepl_link_{figure}", link[figure], *labels)
    for kind, count in link["bytes_sent"].items():
        samples.add("pyrepl_link_sent_bytes_total", count, *labels, kind)
    samples.add("pyrepl_link_wire_sent_bytes_total", link.get("wire_bytes_sent"), *labels)
    samples.add("pyrepl_link_wire_received_bytes_total", link.get("wire_bytes_received"), *labels)
    samples.add("pyrepl_link_connections_total", link["connections"], *labels)


def _export(samples: _Samples, export: dict[str, Any]) -> None:
    name = export["name"]
    samples.enumerate("pyrepl_export_state", export["state"], EXPORT_STATES, name)
    samples.add("pyrepl_export_clients", export["clients"], name)
    for command, count in export["requests"].items():
        samples.add("pyrepl_export_requests_total", count, name, command)
    samples.add("pyrepl_export_errors_total", export["errors"], name)
    samples.add("pyrepl_export_read_bytes_total", export["bytes_read"], name)
    samples.add("pyrepl_export_written_bytes_total", export["bytes_written"], name)
