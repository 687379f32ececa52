# SPDX-License-Identifier: Apache-2.0
"""The rates over the steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvla_ros.training.config import Optimizer, Schedule
from xvla_ros.training.optim import (
    ACTION_ROWS,
    GROUPS,
    JOINT,
    OF_DOMAINS,
    POLICY,
    PROMPT_WARMUP,
    RAMP,
    SOFT_PROMPTS,
    VLM,
    active_groups,
    factor,
    phase,
    rate,
)

SECOND = Schedule(prompt_warmup=1000, ramp=1000, soft_prompt_warmup=200, soft_prompt_warmup_scale=0.1)
STEPS = 10_000


def test_the_second_phase_warms_prompts_then_ramps_then_joins():
    assert [phase(SECOND, step) for step in (0, 999, 1000, 1999, 2000)] == [PROMPT_WARMUP] * 2 + [RAMP] * 2 + [JOINT]
    for step in (0, 500, 999):
        assert factor(SECOND, VLM, step, STEPS) == factor(SECOND, POLICY, step, STEPS) == 0.0
        assert factor(SECOND, ACTION_ROWS, step, STEPS) == 1.0
        assert set(active_groups(SECOND, step)) == set(OF_DOMAINS)
    assert factor(SECOND, POLICY, 1000, STEPS) == pytest.approx(0.001)
    assert factor(SECOND, POLICY, 1499, STEPS) == pytest.approx(0.5)
    assert factor(SECOND, POLICY, 1999, STEPS) == 1.0
    assert set(active_groups(SECOND, 1000)) == set(GROUPS)


def test_soft_prompts_have_a_warm_up_of_their_own():
    assert factor(SECOND, SOFT_PROMPTS, 0, STEPS) == pytest.approx(0.1 + 0.9 / 200)
    assert factor(SECOND, SOFT_PROMPTS, 99, STEPS) == pytest.approx(0.55)
    assert factor(SECOND, SOFT_PROMPTS, 199, STEPS) == 1.0
    assert factor(SECOND, ACTION_ROWS, 0, STEPS) == 1.0


def test_the_vlm_moves_at_a_tenth_and_prompts_at_their_own_scale():
    optimizer = Optimizer(learning_rate=1e-4, soft_prompt_scale=2.0)
    rates = {group: rate(optimizer, SECOND, group, 2000, STEPS) for group in GROUPS}
    assert rates == pytest.approx({VLM: 1e-5, POLICY: 1e-4, ACTION_ROWS: 1e-4, SOFT_PROMPTS: 2e-4})


def test_the_cosine_ends_at_the_final_scale_and_a_constant_rate_stays():
    assert factor(SECOND, POLICY, STEPS - 1, STEPS) == pytest.approx(SECOND.final_scale, abs=1e-5)
    assert factor(SECOND.model_copy(update={"decay": "constant"}), POLICY, STEPS - 1, STEPS) == 1.0


@given(
    warmup=st.integers(0, 50),
    ramp=st.integers(0, 50),
    prompts=st.integers(0, 50),
    low=st.floats(0, 1),
    step=st.integers(0, 199),
    group=st.sampled_from(GROUPS),
)
def test_factors_stay_in_range_and_fall_to_zero_only_in_the_warm_up(warmup, ramp, prompts, low, step, group):
    schedule = Schedule(prompt_warmup=warmup, ramp=ramp, soft_prompt_warmup=prompts, soft_prompt_warmup_scale=low)
    found = factor(schedule, group, step, 200)
    assert 0.0 <= found <= 1.0
    assert (found == 0.0) == (group in (VLM, POLICY) and step < warmup)
