"""How many examples a property is tried with: all that a test asks for, or a share of them where each costs many times more."""

from __future__ import annotations

import os

SHARE = "PYREPL_TEST_SHARE"


def examples(count: int) -> int:
    """``count``, or the share of it that the environment asks for (the sanitizers' run does)."""
    return max(5, round(count * float(os.environ.get(SHARE, "1"))))
