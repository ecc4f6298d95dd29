"""docs/nbd.md names every limit as the code has it."""

from __future__ import annotations

import re
from pathlib import Path

from pyrepl import node
from pyrepl._core import nbdio
from pyrepl.nbd import exports, negotiation, server

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "nbd.md").read_text()
LIMITS = [
    ("bytes of a read or write", nbdio.PAYLOAD_MOST),
    ("requests of one connection", nbdio.FLIGHT),
    ("threads of one connection", nbdio.WORKERS),
    ("bytes of reads that one of them holds", nbdio.READ_MOST),
    ("connections that have not chosen", server.MOST_KNOCKING),
    ("clients that are told of an export", node.MOST_SERVED),
    ("seconds of a negotiation", int(server.NEGOTIATION)),
    ("bytes, and options", f"{negotiation.MOST_BYTES}, {negotiation.MOST_OPTIONS}"),
    ("bytes of an export's name", negotiation.MOST_NAME),
]


def test_the_table_of_limits() -> None:
    section = TEXT.split("## Limits")[1].split("## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section, flags=re.MULTILINE)[1:]  # the first is the heading
    told = [(what, limit) for what, limit in rows if set(what) != {"-"}]
    assert len(told) == len(LIMITS)
    for (what, limit), (begins, value) in zip(told, LIMITS, strict=True):
        assert what.startswith(begins)
        assert limit == str(value), what


def test_what_is_promised_besides() -> None:
    assert f"at most {exports.MOST_EXTENTS} extents" in TEXT
    assert negotiation.PAYLOAD == nbdio.PAYLOAD_MOST
    whole = nbdio.WORKERS * nbdio.READ_MOST + (1 << 20)
    assert f"about {whole >> 20} MiB" in TEXT
