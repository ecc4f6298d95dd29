"""Threads that meet where one of them stands between two steps: each such meeting is brought about here, not waited for."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pyrepl import operations
from pyrepl.link import Link
from tests.support.clients import until
from tests.support.rig import LINK, MIB, WAIT, Rig


class Stand:
    """An object, with others in place of some of its attributes, for whoever is given this one."""

    def __init__(self, of: Any, **others: Any) -> None:
        self.__dict__.update(_of=of, **others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._of, name, value)


@pytest.fixture
def rig(tmp_path):
    with Rig(tmp_path / "rig", {"v": MIB}, seed=11, journal=32 * MIB) as made:
        made.fill("v", 0, MIB)
        made.drain()
        yield made


def test_a_connection_ends_although_what_it_brought_waits_for_its_place(rig, monkeypatch):
    """The journal of the secondary is full, and stays so: whoever closes that node does not wait for room there."""
    waits = threading.Event()

    def full(*args: Any, **options: Any) -> Any:
        waits.set()
        raise TimeoutError("no room")

    site = rig.far.site
    monkeypatch.setattr(site.intake, "site", Stand(site, window=Stand(site.window, append_received=full)))
    rig.near.mark("noon")
    assert waits.wait(WAIT)
    closing = threading.Thread(target=rig.far_node.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
    assert site.roles.refused == "", "nobody was sent away"


def test_a_link_that_comes_while_another_one_is_judged(rig, monkeypatch):
    """The applier attaches one; the thread of another asks just then which links hold writers back."""
    site = rig.near.site
    link = site.links[LINK]

    def comes(_: object) -> None:
        site.links["second"] = link

    monkeypatch.setattr(Link, "promises", property(comes))
    try:
        with link.guard:
            link._settle()
    finally:
        del site.links["second"]
    with monkeypatch.context() as patch, link.guard:
        patch.setattr(type(link.bound), "position", property(comes, lambda self, position: None), raising=False)
        try:
            link._settle_bound()
        finally:
            del site.links["second"]


def test_a_link_that_is_added_while_the_group_is_closed_does_not_begin(rig, monkeypatch):
    attach = rig.near.site.attach

    def then_it_is_closed(link: Link) -> None:
        attach(link)
        rig.near.close()

    monkeypatch.setattr(rig.near.site, "attach", then_it_is_closed)
    rig.near.add_link("late", "127.0.0.1:9")
    assert not [thread.name for thread in threading.enumerate() if thread.name == "pyrepl-send-late"]


class Vanishing(dict):
    """What is in it goes as soon as somebody has seen that."""

    def __contains__(self, key: object) -> bool:
        return self.pop(key, None) is not None


def test_a_store_that_comes_or_goes_while_stores_are_listed(rig, monkeypatch):
    site = rig.near.site
    listed = iter(site.end.catalog)
    rig.snapshot("v", "s")
    assert [store.name for store in listed] == ["v"]
    monkeypatch.setattr(site.shelf, "places", Vanishing(site.shelf.places))
    assert [store["path"] is not None for store in rig.near.status()["stores"]] == [True, True]


def test_an_operation_that_is_performed_before_whoever_admits_it_goes_on(rig, monkeypatch):
    """It is known all the same how many links the group had; and of plug-ins nothing is left that would count for ever."""
    site, admitted = rig.near.site, rig.near.site.applier.admitted

    def late(lsn: int) -> None:
        until(lambda: site.result(lsn) is not None, "it is performed")
        admitted(lsn)

    monkeypatch.setattr(site.applier, "admitted", late)
    rig.snapshot("v", "s")
    made = rig.restore("v", "s")
    assert site.result(made.lsn).links == 1 and site.applier.links == {}
    assert rig.near.status()["bytes_avoided"] == sum(one["bytes_avoided"] for one in rig.near.operations()) > 0
    site.outcomes.admitted(made.lsn - 1, 5)
    site.outcomes.receive(1)  # as of one that is performed now
    site.outcomes.performed(made.lsn, Stand(None, decides=False, differs="", decided=[]), is_known=True)
    assert site.outcomes._admitted == {}


def test_an_early_operation_is_awaited_before_anybody_can_send_it(rig, monkeypatch):
    rig.near.remove_link(LINK)  # no other thread needs the window itself
    site = rig.near.site
    asked = []

    def submit(body: bytes, **options: Any) -> int:
        operation = operations.decode(body)
        asked.append(operation.ticket in site.awaiting if isinstance(operation, operations.Early) else None)
        return site.window._of.submit_operation(body, **options)

    with monkeypatch.context() as patch:
        patch.setattr(site, "window", Stand(site.window, submit_operation=submit))
        with rig.near.volume("v").begin_snapshot("t"):
            pass
    assert asked == [True, None]
