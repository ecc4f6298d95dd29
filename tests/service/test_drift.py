"""The remote classes have the names and signatures of the API. What is left out, and what is added, stands here with its reason."""

from __future__ import annotations

import inspect
import re

import pytest

from pyrepl import remote
from pyrepl.attachment import Attachment
from pyrepl.explaining import Explanation
from pyrepl.group import Group
from pyrepl.image import Image
from pyrepl.kept import KeptSnapshot
from pyrepl.nbd.exports import Export
from pyrepl.node import Node
from pyrepl.remote import requests
from pyrepl.remote.kept import RemoteKeptSnapshot
from pyrepl.remote.sets import RemoteExplanation, RemoteUnorderedSet
from pyrepl.results import Events, OperationResult
from pyrepl.service.verbs import TABLE
from pyrepl.unordered import UnorderedSet
from pyrepl.volume import Snapshot, View, Volume

PAIRS = [
    (Node, remote.RemoteNode),
    (Group, remote.RemoteGroup),
    (Volume, remote.RemoteVolume),
    (Snapshot, remote.RemoteSnapshot),
    (Image, remote.RemoteImage),
    (KeptSnapshot, RemoteKeptSnapshot),
    (View, remote.RemoteView),
    (Attachment, remote.RemoteLink),
    (OperationResult, remote.RemoteOperationResult),
    (UnorderedSet, RemoteUnorderedSet),
    (Explanation, RemoteExplanation),
    (Events, remote.RemoteEvents),
    (Export, remote.RemoteExport),
]
INSIDE = "between the parts of the engine's process, not for its users"
LEFT_OUT = {
    "Node": {"open": "pyrepl.connect() instead", "emit": INSIDE},
    "Group": {
        "close": "the daemon closes groups when it ends",
        "admissions": INSIDE,
        "attachments": INSIDE,
        "viewing": INSIDE,
        "hurry": INSIDE,
        "border": INSIDE,
        "changeover": INSIDE,
        "comparisons": INSIDE,
        "succession": INSIDE,
        "connect": INSIDE,
        "entries": INSIDE,
        "site": INSIDE,
        "site_if_any": INSIDE,
        "introduce": INSIDE,
        "require_primary": INSIDE,
        "abandon_unfinished": INSIDE,
        "rewinding": INSIDE,
        "admission": INSIDE,
        "emit": INSIDE,
        "feeds": INSIDE,
        "look_up": INSIDE,
        "between_steps": INSIDE,
        "name_of": INSIDE,
        "operate": INSIDE,
        "on_mark": "a callable is of this process; a daemon's hooks are in its configuration",
        "failure": INSIDE,
        "operation_counts": "in the metrics",
        "trials": INSIDE,
        "begin_snapshot": "it lasts as long as who began it; snapshot(early=True)",
        "begin_restore": "it lasts as long as who began it; restore(early=True)",
        "open_trial": "a trial lasts as long as who opened it; exports with trial=True hold one",
    },
    "Volume": {
        "submit_write": "a ticket is memory of the process that has it; write from several threads",
        "begin_snapshot": "it lasts as long as who began it; snapshot(early=True)",
        "begin_restore": "it lasts as long as who began it; restore(early=True)",
    },
    "Snapshot": {"submit_write": "as of a volume", "begin_snapshot": "as of a volume"},
    "Image": {"wait_gone": INSIDE},
    "Attachment": {
        "start": INSIDE, "stop": INSIDE, "hand_over": INSIDE, "hands_over": INSIDE, "handed_over": INSIDE, "is_heard": INSIDE,
        "overrule": INSIDE, "redial": INSIDE, "has_answered": INSIDE, "has_failed": INSIDE,
        "local_host": INSIDE, "forecast": INSIDE, "judge_lag": INSIDE,
        "diverged": "in the status of the group, of each store",
    },
    "OperationResult": {"wait_all": INSIDE},
    "KeptSnapshot": {"close": "delete() ends it", "closed": INSIDE, "store": INSIDE},
    "View": {},
    "UnorderedSet": {},
    "Explanation": {},
    "Events": {"put": INSIDE, "MOST": INSIDE},
    "Export": {
        "trial": INSIDE,
        "shape": INSIDE,
        "attach": INSIDE,
        "connect": INSIDE,
        "disconnect": INSIDE,
        "stop": "RemoteNode.stop_export()",
    },
}
ADDED = {
    "Node": {"metrics": "the daemon's", "jobs": "of the daemon: who calls the API in a process of his own sees what comes of it", "channel": "for the handles"},
    "Group": {"channel": "for the handles", "key_of": "for the handles"},
    "Volume": {"key": "for the handles"},
    "Snapshot": {"key": "for the handles"},
    "Image": {"key": "for the handles"},
    "KeptSnapshot": {
        "key": "for the handles",
        **dict.fromkeys(("state", "result", "wait", "bytes_changed", "bytes_avoided"), "no operation has made it: raises"),
        **dict.fromkeys(("write", "zero", "discard", "flush", "snapshot", "clone", "synchronize"), "the daemon refuses it"),
    },
}
NAMES = {"RemoteLink": "Attachment", **{ours.__name__: theirs.__name__ for theirs, ours in PAIRS if ours is not remote.RemoteLink}}


def public(kind: type) -> dict[str, object]:
    """Names that do not begin with _, of the class and, for attributes set by __init__, of its source."""
    names = {name: inspect.getattr_static(kind, name) for name in dir(kind) if not name.startswith("_")}
    for base in kind.__mro__[:-1]:
        if base.__module__.startswith("pyrepl") and "__init__" in vars(base):
            found = re.findall(r"^        self\.([a-z]\w*)(?::[^=]+)? =", inspect.getsource(base.__init__), flags=re.MULTILINE)
            names |= {name: None for name in found if name not in names}
    return names


def words(annotation: object) -> str:
    """An annotation as text, remote names as those they stand for."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    text = re.sub(r"Remote\w+", lambda match: NAMES.get(match[0], match[0].removeprefix("Remote")), text)
    return "" if text in ("_empty",) else text


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=lambda kind: kind.__name__)
def test_names(theirs: type, ours: type) -> None:
    left, added = LEFT_OUT[theirs.__name__], ADDED.get(theirs.__name__, {})
    assert set(public(theirs)) - set(left) == set(public(ours)) - set(added)
    assert set(left) <= set(public(theirs)), "an exception for what is not there"
    assert set(added) <= set(public(ours)) and all(left.values()) and all(added.values())


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=lambda kind: kind.__name__)
def test_signatures(theirs: type, ours: type) -> None:
    compared = 0
    mine, original = public(ours), public(theirs)
    for name in sorted(set(mine) & set(original)):
        one, other = original[name], mine[name]
        if isinstance(one, property) and isinstance(other, property):
            one, other = one.fget, other.fget
        if not callable(one):
            continue
        assert callable(other), name
        first, second = inspect.signature(one), inspect.signature(other)
        assert [(p.name, p.kind, p.default, words(p.annotation)) for p in first.parameters.values()] == [
            (p.name, p.kind, p.default, words(p.annotation)) for p in second.parameters.values()
        ], name
        assert words(first.return_annotation) == words(second.return_annotation), name
        compared += 1
    assert compared >= 2


def test_every_request_has_a_verb_and_a_client() -> None:
    import ast
    from pathlib import Path

    assert set(TABLE) == set(requests.REQUESTS) and len(TABLE) == len(requests.REQUESTS)
    text = "\n".join(path.read_text() for path in Path(remote.__file__).parent.glob("*.py") if path.name != "requests.py")
    used = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    assert {kind.__name__ for kind in requests.REQUESTS} <= used
    assert len({requests.verb(kind) for kind in requests.REQUESTS}) == len(requests.REQUESTS)
