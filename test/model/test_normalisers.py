# SPDX-License-Identifier: Apache-2.0
"""Normalisation there and back, in every mode."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xvla_ros.model.inputs.normalisers import MODES, Normaliser, mean_std

CHANNELS = 4
numbers = arrays(np.float32, (3, CHANNELS), elements=st.floats(-100, 100, width=32))
lows = arrays(np.float32, CHANNELS, elements=st.floats(-50, 50, width=32))
spans = arrays(np.float32, CHANNELS, elements=st.floats(0.125, 50, width=32))


def build(mode: str, low: np.ndarray, span: np.ndarray) -> Normaliser:
    if mode == "IDENTITY":
        return Normaliser()
    first, second = MODES[mode]
    return Normaliser(mode, {first: low, second: span if mode == "MEAN_STD" else low + span})


@given(st.sampled_from(sorted(MODES)), numbers, lows, spans)
def test_there_and_back(mode: str, values: np.ndarray, low: np.ndarray, span: np.ndarray) -> None:
    normaliser = build(mode, low, span)
    back = normaliser.denormalise(normaliser.normalise(values))
    np.testing.assert_allclose(back, values, atol=2e-2, rtol=1e-4)
    assert back.dtype == np.float32


@given(st.sampled_from(["MIN_MAX", "QUANTILES", "QUANTILE10"]), lows, spans)
def test_bounds_become_minus_one_and_one(mode: str, low: np.ndarray, span: np.ndarray) -> None:
    normaliser = build(mode, low, span)
    first, second = (normaliser.stats[name] for name in MODES[mode])
    np.testing.assert_allclose(normaliser.normalise(first), -1.0, atol=1e-5)
    np.testing.assert_allclose(normaliser.normalise(second), 1.0, atol=1e-5)


@given(st.sampled_from(sorted(MODES)), lows, spans)
def test_json_form_reads_back(mode: str, low: np.ndarray, span: np.ndarray) -> None:
    normaliser = build(mode, low, span)
    read = Normaliser.from_json(normaliser.to_json())
    assert (read.mode, read.eps, sorted(read.stats)) == (normaliser.mode, normaliser.eps, sorted(normaliser.stats))
    assert all(np.array_equal(read.stats[name], values) for name, values in normaliser.stats.items())


def test_channel_that_never_moves_divides_by_no_zero() -> None:
    still = mean_std([3.0], [0.0])
    assert np.isfinite(still.normalise([3.0])).all()
    assert still.denormalise([5.0]) == 3.0


@pytest.mark.parametrize(
    ("mode", "stats", "words"),
    [
        ("MEANSTD", {}, "unknown"),
        ("MEAN_STD", {"mean": np.zeros(2, np.float32)}, "lacks its statistics std"),
        ("MIN_MAX", {"min": np.zeros(2, np.float32), "max": np.zeros(3, np.float32)}, "shape"),
        ("MIN_MAX", {"min": np.zeros(2, np.float32), "max": np.array([1, np.nan], np.float32)}, "not finite"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(mode: str, stats: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Normaliser(mode, stats)
