"""docs/daemon.md, docs/control.md and docs/metrics.md say what the code does, row by row."""

from __future__ import annotations

import re
import types
import typing
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pyrepl.remote import frames, members, messages, requests, values
from pyrepl.service import control
from pyrepl.service.config import RELOADABLE, Config, Table
from pyrepl.service.metrics import FAMILIES
from pyrepl.service.verbs import TABLE

from .conftest import MIB, Daemon, until

ROOT = Path(__file__).resolve().parents[2]


def table(document: str, heading: str) -> list[tuple[str, ...]]:
    """The rows of the first table below a heading."""
    section = (ROOT / "docs" / document).read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines[1:] if not line.startswith("|---")]


def words(kind: Any) -> str:
    """A type as the documents write it."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(words(part) for part in parts)
    if origin is typing.Annotated:
        return words(parts[0])
    if origin is typing.Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (tuple, list):
        return f"list of {words(parts[0])}" if (len(parts) == 2 and parts[1] is Ellipsis) or origin is list else f"({', '.join(words(part) for part in parts)})"
    if origin is dict:
        return "map"
    return {str: "string", int: "integer", bool: "boolean", float: "number", bytes: "bytes", type(None): "nothing", Any: "any"}.get(
        kind, getattr(kind, "__name__", str(kind)))


def default(field: Any) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is None:
        return "-"
    return f"`{msgspec.json.encode(value).decode()}`"


def config_rows() -> list[tuple[str, ...]]:
    """key, type, default, reloadable: of every key of the structs."""
    return list(_keys(Config, "", True))


def _keys(kind: type[Table], prefix: str, top: bool, reloadable: bool = False) -> Iterator[tuple[str, ...]]:
    for field in msgspec.structs.fields(kind):
        taken = field.name in RELOADABLE if top else reloadable
        inner = field.type if isinstance(field.type, type) else (typing.get_args(field.type) or (None,))[0]
        if isinstance(inner, type) and issubclass(inner, Table):
            name = f"[[{field.name}]]" if typing.get_origin(field.type) is tuple else f"[{field.name}]"
            yield from _keys(inner, f"{name} ", False, taken)
        else:
            optional = words(field.type).replace(" or nothing", "")
            yield f"`{prefix}{field.name}`", optional, default(field), "yes" if taken else "no"


def control_rows() -> list[tuple[str, ...]]:
    """verb, arguments, answer, command: of every request."""
    rows = []
    for kind in requests.REQUESTS:
        fields = sorted(msgspec.structs.fields(kind), key=lambda field: field.name in ("wait", "timeout", "verify"))
        arguments = ", ".join(f"`{field.name}`{'' if field.required else '?'}: {words(field.type).removesuffix(' or nothing')}" for field in fields)
        rows.append((f"`{requests.verb(kind)}`", arguments or "-", words(requests.answer_type(kind)), "yes" if TABLE[kind].changes else "no"))
    return rows


def metric_rows() -> list[tuple[str, ...]]:
    """name, type, labels, unit: of every metric."""
    return [(f"`{family.name}`", family.kind, ", ".join(f"`{label}`" for label in family.labels) or "-", unit(family.name)) for family in FAMILIES]


def unit(name: str) -> str:
    """What the name says: Prometheus puts the unit last, before ``_total``."""
    last = name.removesuffix("_total").rpartition("_")[2]
    if last in ("bytes", "seconds"):
        return last
    if last in ("info", "state", "role", "consistent", "protected", "connected", "synced", "degraded", "writers", "still"):
        return "0 or 1"
    return "LSN" if last == "lsn" else "count"


def test_configuration() -> None:
    rows = table("daemon.md", "Configuration")
    assert [row[:4] for row in rows] == config_rows()
    assert all(len(row) == 5 and row[4] for row in rows)


def test_control() -> None:
    rows = table("control.md", "Requests")
    assert [row[:4] for row in rows] == control_rows()
    assert all(len(row) == 5 and row[4] for row in rows)


def test_parts_of_answers() -> None:
    rows = {row[0].strip("`"): row[1] for row in table("control.md", "Parts")}
    parts = {kind for module in (values, members) for kind in vars(module).values()
             if isinstance(kind, type) and issubclass(kind, values.Value) and kind is not values.Value}
    assert rows == {kind.__name__: ", ".join(f"`{field.name}`" for field in msgspec.structs.fields(kind)) for kind in parts}


def test_limits() -> None:
    rows = {row[0]: row[1] for row in table("control.md", "Limits")}
    assert rows == {
        "body of a request": f"{frames.MOST_REQUEST} bytes",
        "body of an answer": f"{frames.MOST_ANSWER} bytes",
        "payload": f"{frames.MOST_PAYLOAD} bytes",
        "hello": f"{control.HANDSHAKE:g} s",
        "rest of a frame": f"{frames.PATIENCE:g} s",
        "connections": str(control.Limits().connections),
        "requests": f"{control.Limits().requests_per_second} per second and user",
    }


def test_framing() -> None:
    text = (ROOT / "docs" / "control.md").read_text()
    assert f"`{frames.MAGIC.decode()}`" in text and f"version {messages.VERSION}" in text and frames.HEADER.size == 16


def test_metrics() -> None:
    rows = table("metrics.md", "Metrics")
    assert [row[:4] for row in rows] == metric_rows()
    assert [row[4] for row in rows] == [family.help for family in FAMILIES]


def test_documents_are_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    assert all(f"[{name}]({name})" in index for name in ("daemon.md", "control.md", "metrics.md"))


@pytest.fixture
def scraped(daemons: Any) -> Iterator[tuple[str, Daemon]]:
    """The metrics of a node with everything that there is: a primary with two stores, a link, an export, operations that were
    refused; and a secondary."""
    there, daemon = daemons("there"), daemons("here")
    there.configure(top='listen = ["127.0.0.1:0"]')
    there.start()
    daemon.configure('[metrics]\nlisten = "127.0.0.1:0"\n[[export]]\nname = "data"\ngroup = "db"\nstore = "data"')
    daemon.start()
    with daemon.connect() as node, there.connect() as far:
        far.create_group("db", there.folder / "j", journal_size=16 * MIB, role="secondary").add_volume("data", size=MIB)
        group = node.create_group("db", daemon.folder / "j", journal_size=16 * MIB)
        data = group.add_volume("data", size=MIB)
        data.write(0, b"x" * 4096, fua=True)
        node.create_group("below", daemon.folder / "k", journal_size=16 * MIB, role="secondary")
        link = group.add_link("paris", there.ready["listening"][0])
        data.snapshot("monday")
        with pytest.raises(messages.PyreplError):
            data.snapshot("monday")
        link.wait_synced(30)
        until(lambda: node.exports, "the export has begun")
        yield node.metrics(), daemon


def test_a_scrape_equals_the_document(scraped: tuple[str, Daemon]) -> None:
    """Every metric of a real daemon's answer is in the document with its type and labels, and the other way round."""
    from prometheus_client.parser import text_string_to_metric_families
    documented = {row[0].strip("`"): (row[1], set(re.findall(r"`(\w+)`", row[2]))) for row in table("metrics.md", "Metrics")}
    seen: dict[str, tuple[str, set[str]]] = {}
    for family in text_string_to_metric_families(scraped[0]):
        if family.name.startswith("process_"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert family.samples, f"{name} has no sample, although there is everything"
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        seen[name] = (family.type, labels)
    assert seen == documented


def test_values_of_a_scrape(scraped: tuple[str, Daemon]) -> None:
    from prometheus_client.parser import text_string_to_metric_families
    text, daemon = scraped
    with urllib.request.urlopen(f"http://{daemon.ready['metrics']}/metrics", timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        fetched = answer.read().decode()
    values = {(sample.name, *sorted(sample.labels.items())): sample.value
              for family in text_string_to_metric_families(fetched) for sample in family.samples}

    def value(name: str, **labels: str) -> float:
        return values[(name, *sorted(labels.items()))]

    assert [value("pyrepl_group_role", group="db", role=role) for role in ("primary", "secondary")] == [1, 0]
    states = {key[3][1]: number for key, number in values.items() if key[0] == "pyrepl_link_state"}
    assert sum(states.values()) == 1 and states["streaming"] == 1
    link = {"group": "db", "link": "paris"}
    assert value("pyrepl_link_synced", **link) == 1 and value("pyrepl_link_lag_seconds", **link) == 0
    assert value("pyrepl_link_divergent_bytes", **link) == 0 and value("pyrepl_link_sent_bytes_total", kind="copied", **link) > 0
    assert value("pyrepl_operations_total", group="db", kind="snapshot", result="performed") == 1
    assert value("pyrepl_operations_total", group="db", kind="none", result="refused") == 1
    assert value("pyrepl_group_stores", group="db", kind="volume") == 1 and value("pyrepl_group_store_bytes", group="db", kind="volume") == MIB
    for name in ("write", "flush", "operation"):
        buckets = [(float(dict(key[1:])["le"]), number) for key, number in values.items()
                   if key[0] == f"pyrepl_{name}_seconds_bucket" and ("group", "db") in key[1:]]
        counts = [number for _, number in sorted(buckets)]
        assert counts == sorted(counts) and counts[-1] == value(f"pyrepl_{name}_seconds_count", group="db")
    assert value("pyrepl_write_seconds_count", group="db") >= 1 and value("pyrepl_operation_seconds_count", group="db") >= 2
    assert value("pyrepl_export_state", export="data", state="serving") == 1
    assert 0 <= value("pyrepl_journal_used_bytes", group="db") < value("pyrepl_journal_size_bytes", group="db") <= 16 * MIB
    assert value("pyrepl_control_requests_total", verb="store.snapshot", outcome="exists") == 1
    for path, status in (("/", 404), ("/metrics/x", 404), ("/metrics?x=1", 200)):
        try:
            with urllib.request.urlopen(f"http://{daemon.ready['metrics']}{path}", timeout=20) as answer:
                assert answer.status == status
        except urllib.error.HTTPError as error:
            assert error.code == status
