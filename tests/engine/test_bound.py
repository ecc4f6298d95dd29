"""When a bound of lag holds, and where writers wait then."""

from __future__ import annotations

import pytest

from pyrepl.bound import Bound, is_bounded
from pyrepl.errors import UsageError
from pyrepl.options import LinkOptions

MIB = 1 << 20
FAR, LATE = LinkOptions(most_lag_bytes=4 * MIB), LinkOptions(most_lag_seconds=2.0)
BOTH = LinkOptions(most_lag_bytes=4 * MIB, most_lag_seconds=2.0)


@pytest.mark.parametrize(("options", "held", "lag", "age", "holds", "position"), [
    (LinkOptions(), False, 0, 0.0, False, None), (LinkOptions(), True, 0, 0.0, False, None),
    (FAR, False, 4 * MIB, 9.0, True, 14 * MIB), (FAR, False, 4 * MIB + 1, 0.0, False, None),
    (FAR, True, 40 * MIB, 0.0, True, 14 * MIB), (FAR, False, 0, 0.0, True, 14 * MIB),
    (LATE, False, 99 * MIB, 2.0, True, None), (LATE, False, 0, 2.1, False, None), (LATE, True, 0, 2.1, True, 0),
    (BOTH, True, 0, 2.1, True, 0), (BOTH, True, 0, 2.0, True, 14 * MIB), (BOTH, False, 5 * MIB, 1.0, False, None),
    (BOTH, False, 3 * MIB, 3.0, False, None)])
def test_cases(options, held, lag, age, holds, position):
    bound = Bound()
    bound.holds = held
    bound.judge(options, acknowledged=10 * MIB, end=10 * MIB + lag, age=age)
    assert (bound.holds, bound.position) == (holds, position)
    bound.void()
    assert (bound.holds, bound.position) == (False, None)


def test_what_is_bounded():
    assert not is_bounded(LinkOptions()) and is_bounded(FAR) and is_bounded(LATE)
    for options in ({"most_lag_bytes": MIB - 1}, {"most_lag_bytes": -1}, {"most_lag_bytes": (1 << 50) + 1}, {"most_lag_seconds": 0.05},
                    {"most_lag_seconds": -1.0}, {"most_lag_seconds": 1e6}, {"most_lag_seconds": float("nan")}):
        with pytest.raises(UsageError, match="most-lag"):
            LinkOptions(**options)
