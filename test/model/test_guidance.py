# SPDX-License-Identifier: Apache-2.0
"""Chunks pulled towards committed waypoints: the true Jacobian, mixed batches, and what it is good for."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from xvla_ros.model.action_modes import action_mode
from xvla_ros.model.network.flow import START, HeldWaypoints, guidance_weight, preprocess, sample
from xvla_ros.model.network.xvla import Context, Predict, XvlaNetwork
from xvla_ros.model.policy import Policy
from xvla_ros.types import Observation, Prefix

WAYPOINTS, WIDTH = 8, 20
MODES = [action_mode(name) for name in ("so101_bimanual_bce", "ee6d", "agibot_ee6d")]
BETA = 5.0


@pytest.fixture(scope="module")
def double(policy: Policy) -> XvlaNetwork:
    """The head in double precision, so that differences of it are exact enough."""
    return copy.deepcopy(policy.network).double()


@pytest.fixture(scope="module")
def inputs(double: XvlaNetwork) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, config = len(MODES), double.config
    with torch.no_grad():
        context = double.transformer.context(
            draw(rows, 12, 192), draw(rows, 6, 192), torch.tensor([19, 0, 7]), WAYPOINTS
        )
    weight = torch.tensor([1.0, 1, 1, 0.6, 0.2, 0, 0, 0], dtype=torch.float64).expand(rows, -1)
    return SimpleNamespace(
        context=context,
        state=draw(rows, config.state_dim),
        weight=weight,
        noise=draw(rows, WAYPOINTS, WIDTH),
        committed=draw(rows, WAYPOINTS, WIDTH),
    )


def rows_of(context: Context, rows: slice) -> Context:
    return Context(context.tokens[rows], context.first_qkv[rows], context.domain_id[rows])


def drawn(network: XvlaNetwork, inputs: SimpleNamespace, rows: slice = slice(None), **options: object) -> Tensor:
    if "guidance" in options:
        options["prefix"] = inputs.committed[rows], inputs.weight[rows]
    return sample(
        network, rows_of(inputs.context, rows), inputs.state[rows], inputs.noise[rows], MODES[rows], **options
    )  # type: ignore[arg-type]


def test_guiding_moves_by_the_jacobian_of_the_network(double, inputs) -> None:
    """At t = 1 a becomes W Y + (1 − W)(a + β Jᵀ[W (Y − a)]); with any direction J is a finite difference."""
    held = HeldWaypoints.of((inputs.committed, inputs.weight), MODES, BETA, inputs.noise)
    t = torch.ones(len(MODES), dtype=torch.float64)
    point = inputs.noise.clone().requires_grad_()
    state, action = preprocess(MODES, inputs.state, point)
    free = double.transformer(action, state, t, inputs.context)
    moved = held.apply(free, point, t) - free.detach()

    def predicted(noise: Tensor) -> Tensor:
        with torch.no_grad():
            state, action = preprocess(MODES, inputs.state, noise)
            return double.transformer(action, state, t, inputs.context)

    weight = inputs.weight[..., None].expand(free.shape).clone()
    for row, mode in enumerate(MODES):
        weight[row][:, list(mode.hidden)] = 0.0
        weight[row][:, mode.decoded_width :] = 0.0
    residual = weight * (inputs.committed - free.detach())
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        direction = torch.randn(free.shape, generator=generator, dtype=torch.float64)
        ahead, behind = (predicted(inputs.noise + sign * 1e-5 * (1 - weight) * direction) for sign in (1, -1))
        slope = ((ahead - behind) / 2e-5 * residual).sum((1, 2))
        along = ((moved - residual) * direction).sum((1, 2))
        torch.testing.assert_close(along, BETA * slope, atol=1e-7, rtol=1e-5)
    assert (moved - residual).abs().amax((1, 2)).min() > 1e-3, "nothing was compared"
    pulled_as_if_identity = (1 - weight) * BETA * residual
    assert not torch.allclose(moved - residual, pulled_as_if_identity, atol=1e-2), "the Jacobian is not the identity"


def test_rows_that_are_clamped_guided_or_free_share_a_batch(double, inputs) -> None:
    guidance = torch.tensor([0.0, BETA, 0.0], dtype=torch.float64)
    mixed = SimpleNamespace(**vars(inputs))
    mixed.weight = inputs.weight * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)[:, None]
    together = drawn(double, mixed, steps=4, guidance=guidance)
    alone = [
        drawn(double, inputs, slice(0, 1), steps=4, guidance=0.0),
        drawn(double, inputs, slice(1, 2), steps=4, guidance=BETA),
        drawn(double, inputs, slice(2, 3), steps=4),
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-9, rtol=0)
    clamped = drawn(double, inputs, slice(1, 2), steps=4, guidance=0.0)
    assert (together[1:2] - clamped).abs().max() > 1e-2


class Recording:
    """Predicts zeros and keeps what it was shown."""

    def predictor(self, context: object, state: Tensor, shown: Tensor, times: Tensor) -> Predict:
        def predict(noisy: Tensor, step: int) -> Tensor:
            self.seen, self.t = (noisy * shown).detach().clone(), times[step].clone()
            return noisy * 0.0

        return predict


def test_rows_begin_at_the_earlier_chunk_where_there_is_one(inputs) -> None:
    network, mode = Recording(), action_mode("so101_bimanual_bce")
    weight = torch.zeros(3, WAYPOINTS, dtype=torch.float64)
    weight[:2, :3] = torch.tensor([1.0, 0.5, 0.1])
    guidance = torch.tensor([0.0, BETA, 0.0], dtype=torch.float64)
    sample(
        network,
        None,
        inputs.state,
        inputs.noise,
        [mode] * 3,
        steps=1,  # type: ignore[arg-type]
        prefix=(inputs.committed, weight),
        guidance=guidance,
    )
    assert network.t.tolist() == [START, START, 1.0]
    gripper, joints = list(mode.spec.gripper), [c for c in range(12) if c not in mode.spec.gripper]
    assert not network.seen[:, :, gripper].any()
    assert torch.equal(network.seen[2][:, joints], inputs.noise[2][:, joints])
    held_on = inputs.committed[:2, [0, 1, 2, 2, 2, 2, 2, 2]]
    begun = START * inputs.noise[:2] + (1 - START) * held_on
    torch.testing.assert_close(network.seen[:2][..., joints], begun[..., joints])
    torch.testing.assert_close(network.seen[:2][..., 12:], START * inputs.noise[:2][..., 12:])


class SmoothChunks:
    """The best predictor of chunks that are a Gaussian process over the waypoints: exact and linear in x_t."""

    def __init__(self, length: float) -> None:
        at = torch.arange(WAYPOINTS, dtype=torch.float64)
        self.covariance = torch.exp(-((at[:, None] - at) ** 2) / (2 * length**2)) + 1e-6 * torch.eye(WAYPOINTS)

    def predictor(self, context: object, state: Tensor, shown: Tensor, times: Tensor) -> Predict:
        def predict(noisy: Tensor, step: int) -> Tensor:
            t = float(times[step, 0])
            seen = (1.0 - t) ** 2 * self.covariance + t**2 * torch.eye(WAYPOINTS)
            return torch.einsum("ij,bjd->bid", (1.0 - t) * self.covariance @ torch.linalg.inv(seen), noisy * shown)

        return predict


@pytest.mark.parametrize("beta", [1.0, 5.0, 50.0])
def test_guided_chunk_agrees_where_it_must_and_follows_where_it_need_not(inputs, beta: float) -> None:
    source = SmoothChunks(length=3.0)
    committed = torch.linalg.cholesky(source.covariance) @ inputs.committed
    weight = torch.zeros(3, WAYPOINTS, dtype=torch.float64)
    weight[:, :4] = 1.0
    modes = [action_mode("agibot_ee6d")] * 3
    free, guided = (
        sample(source, None, inputs.state, inputs.noise, modes, steps=20, prefix=(committed, weight), guidance=each)
        if each
        else sample(source, None, inputs.state, inputs.noise, modes, steps=20)
        for each in (0.0, beta)
    )  # type: ignore[arg-type]
    held, next_free = slice(0, 4), slice(4, 6)
    for part in (held, next_free):
        before, after = ((chunk - committed)[:, part].pow(2).mean().sqrt() for chunk in (free, guided))
        assert after < 0.7 * before


def test_guidance_weight_is_bounded_and_smallest_midway() -> None:
    t = torch.linspace(1.0, 0.0, 101, dtype=torch.float64)
    weight = guidance_weight(t, torch.full_like(t, BETA))
    assert torch.isfinite(weight).all() and weight.max() == BETA and weight[0] == BETA and weight[-1] == BETA
    torch.testing.assert_close(weight[50], torch.tensor(2.0, dtype=torch.float64))


def test_policy_guides_one_robot_and_leaves_its_neighbours_alone(
    policy: Policy, look: Callable[..., Observation]
) -> None:
    pair = policy.robots["pair"].embodiment
    seen = look(pair)
    actions = policy.predict([seen], seed=1)[0].actions + np.float32(2.0)
    weights = np.array([1, 1, 1, 0.5, 0, 0, 0, 0], np.float32)
    clamp, guided = Prefix(actions, weights), Prefix(actions, weights, guidance=BETA)
    together = policy.predict([seen] * 3, seed=3, prefix=[clamp, guided, None])
    for chunk, prefix in zip(together, (clamp, guided, None), strict=True):
        (alone,) = policy.predict([seen], seed=3, prefix=[prefix])
        np.testing.assert_allclose(chunk.actions, alone.actions, atol=1e-3)
    assert np.abs(together[0].actions - together[1].actions).max() > 0.1
    assert np.abs(together[1].actions - together[2].actions).max() > 0.01
    assert all(parameter.grad is None for parameter in policy.network.parameters())


@pytest.mark.parametrize("guidance", [-1.0, np.nan, np.inf])
def test_guidance_that_is_no_weight_is_refused(
    policy: Policy, look: Callable[..., Observation], guidance: float
) -> None:
    seen = look(policy.robots["pair"].embodiment)
    prefix = Prefix(np.zeros((8, 12), np.float32), np.ones(8, np.float32))
    with pytest.raises(ValueError, match=f"'pair': prefix guidance is {guidance}, expected 0"):
        policy.predict([seen], prefix=[dataclasses.replace(prefix, guidance=guidance)])
