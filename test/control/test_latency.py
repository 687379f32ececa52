# SPDX-License-Identifier: Apache-2.0
"""Percentiles of the recent past."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvla_ros.control.clock import LatencyWindow
from xvla_ros.types import Percentiles


def test_without_values_every_percentile_is_zero():
    assert LatencyWindow().percentiles() == Percentiles(0.0, 0.0, 0.0, 0.0)


@given(st.lists(st.floats(0.0, 1e5), min_size=1, max_size=60), st.integers(1, 40))
def test_percentiles_are_those_of_the_last_values(values, size):
    window = LatencyWindow(size)
    for value in values:
        window.add(value)
    kept = np.array(values[-size:])
    found = window.percentiles()
    assert found.p50 == pytest.approx(np.median(kept))
    assert found.max == kept.max()
    assert found.p50 <= found.p95 <= found.p99 <= found.max
