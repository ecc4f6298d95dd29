"""The mark: an in-band message that stands at one point of the order and changes nothing."""

from __future__ import annotations

from typing import Annotated

import msgspec

from pyrepl.catalog import Catalog, check_name
from pyrepl.errors import UsageError
from pyrepl.operations.base import Effect

MOST_PAYLOAD = 4096


class Mark(msgspec.Struct, frozen=True, tag="mark", tag_field="op", forbid_unknown_fields=True):
    """``name`` and ``payload`` are the user's."""

    name: str
    payload: Annotated[bytes, msgspec.Meta(max_length=MOST_PAYLOAD)] = b""

    @property
    def kind(self) -> str:
        return "mark"

    @property
    def blocks(self) -> list[int]:
        return []

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        check_name(self.name)

    def apply(self, catalog: Catalog) -> None:
        """Changes no catalog."""

    def effects(self, region_size: int) -> list[Effect]:
        return []


def mark(name: str, payload: bytes = b"") -> Mark:
    """A mark.

    Raises:
        UsageError: a bad name, or a payload that is not bytes or above 4096 of them.
    """
    try:
        payload = bytes(memoryview(payload))
    except TypeError:
        raise UsageError(f"the payload of a mark is bytes, not {type(payload).__name__}: encode it first") from None
    if len(payload) > MOST_PAYLOAD:
        raise UsageError(f"the payload of a mark is {len(payload)} bytes: at most {MOST_PAYLOAD}", length=len(payload))
    return Mark(check_name(name), payload)
