# SPDX-License-Identifier: Apache-2.0
"""The sampler and the loss: their arithmetic, mixed batches, and what may be computed once."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from xvla_ros.model.action_modes import action_mode
from xvla_ros.model.network.flow import (
    flow_loss,
    interpolate,
    loss_terms,
    postprocess,
    preprocess,
    sample,
    training_times,
)
from xvla_ros.model.network.xvla import Context, SoftPromptedTransformer, XvlaNetwork
from xvla_ros.model.policy import Policy

BATCH = 3


@pytest.fixture(scope="module")
def network(policy: Policy) -> XvlaNetwork:
    return policy.network


@pytest.fixture(scope="module")
def inputs(network: XvlaNetwork) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    config = network.config
    return {
        "images": torch.randn(BATCH, 3, 3, *config.image_size, generator=generator),
        "mask": torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=torch.bool),
        "ids": torch.randint(4, 200, (BATCH, config.tokenizer_max_length), generator=generator),
        "domain": torch.tensor([19, 0, 7]),
        "state": torch.randn(BATCH, config.state_dim, generator=generator),
        "noise": torch.randn(BATCH, config.chunk_size, 20, generator=generator),
        "action": torch.rand(BATCH, config.chunk_size, 20, generator=generator),
    }


@pytest.fixture(scope="module")
def context(network: XvlaNetwork, inputs: dict[str, torch.Tensor]) -> Context:
    with torch.no_grad():
        return network.encode(inputs["images"], inputs["mask"], inputs["ids"], inputs["domain"])


MIXED = [action_mode(name) for name in ("so101_bimanual_bce", "ee6d", "agibot_ee6d")]


def row_of(context: Context, row: int) -> Context:
    rows = slice(row, row + 1)
    return Context(context.tokens[rows], context.first_qkv[rows], context.domain_id[rows])


def test_batch_of_mixed_modes_and_domains_equals_its_rows(network, inputs, context) -> None:
    together = sample(network, context, inputs["state"], inputs["noise"], MIXED, steps=4)
    for row, mode in enumerate(MIXED):
        rows = slice(row, row + 1)
        alone = sample(network, row_of(context, row), inputs["state"][rows], inputs["noise"][rows], [mode], steps=4)
        torch.testing.assert_close(together[rows], alone, atol=1e-4, rtol=1e-4)
    assert [tuple(each.shape) for each in postprocess(MIXED, together)] == [(8, 12), (8, 20), (8, 20)]


def test_loss_of_mixed_modes_is_the_mean_over_rows(network, inputs, context) -> None:
    offset = torch.tensor([0.3])
    arguments = (network, context, inputs["state"], inputs["action"], MIXED)
    with torch.no_grad():
        total, terms = flow_loss(*arguments, offset=offset, noise=inputs["noise"])
        seen = preprocess(
            MIXED, inputs["state"], interpolate(inputs["noise"], inputs["action"], training_times(BATCH, offset))
        )
        predicted = network.transformer(seen[1], seen[0], training_times(BATCH, offset), context)
        rows = [
            loss_terms([mode], predicted[i : i + 1], inputs["action"][i : i + 1])[0] for i, mode in enumerate(MIXED)
        ]
    torch.testing.assert_close(total, torch.stack(rows).mean())
    torch.testing.assert_close(torch.stack(list(terms.values())).sum(), total)
    assert "ee6d.position_loss" in terms


def test_sampler_starts_every_step_from_the_same_noise(network, inputs, context) -> None:
    seen: list[torch.Tensor] = []
    raw = sample(
        network, context, inputs["state"], inputs["noise"], MIXED, steps=2, on_step=lambda _, a: seen.append(a)
    )
    with torch.no_grad():
        action = torch.zeros_like(inputs["noise"])
        for t in (1.0, 0.5):
            time = torch.full((BATCH,), t)
            state, noisy = preprocess(MIXED, inputs["state"], inputs["noise"] * t + action * (1 - t))
            action = network.transformer(noisy, state, time, context)
    torch.testing.assert_close(raw, action)
    assert len(seen) == 2 and torch.equal(seen[-1], raw)


def test_committed_waypoints_come_out_as_they_went_in(network, inputs, context) -> None:
    weights = torch.zeros(BATCH, 8)
    weights[:, :3] = 1.0
    free = sample(network, context, inputs["state"], inputs["noise"], MIXED, steps=4)
    held = sample(
        network, context, inputs["state"], inputs["noise"], MIXED, steps=4, prefix=(inputs["action"], weights)
    )
    for row, mode in enumerate(MIXED):
        gripper = [] if mode.name == "agibot_ee6d" else list(mode.spec.gripper)  # AgiBot's is a plain value
        plain = [c for c in range(mode.decoded_width) if c not in gripper]
        assert torch.equal(held[row, :3][:, plain], inputs["action"][row, :3][:, plain])
        assert not torch.isclose(held[row, :3][:, gripper], inputs["action"][row, :3][:, gripper]).any()
    assert (held[:, 3:] - free[:, 3:]).abs().max() > 1e-4, "the free part must answer to the committed one"


def test_prefix_of_weight_zero_changes_nothing(network, inputs, context) -> None:
    nothing = (inputs["action"], torch.zeros(BATCH, 8))
    free = sample(network, context, inputs["state"], inputs["noise"], MIXED, steps=3)
    held = sample(network, context, inputs["state"], inputs["noise"], MIXED, steps=3, prefix=nothing)
    assert torch.equal(free, held)


def test_steps_below_one_are_refused(network, inputs, context) -> None:
    with pytest.raises(ValueError, match="steps is 0, expected at least 1"):
        sample(network, context, inputs["state"], inputs["noise"], MIXED, steps=0)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_shortcuts_of_the_first_and_last_block_are_exact(network, inputs, depth: int) -> None:
    """The plain way: every token through every block."""
    torch.manual_seed(0)
    head = SoftPromptedTransformer(replace(network.config, depth=depth), 20).eval()
    vlm, aux = torch.randn(BATCH, 12, 192), torch.randn(BATCH, 6, 192)
    t = torch.tensor([0.1, 0.5, 1.0])
    with torch.no_grad():
        context = head.context(vlm, aux, inputs["domain"], 8)
        ends = head.ends(inputs["state"], t[None], inputs["domain"], 8)
        x = torch.cat([head.tokens(inputs["noise"], 0, ends), context.tokens], dim=1)
        for block in head.blocks:
            x = block(x)
        plain = head.action(x[:, :8], ends)
        torch.testing.assert_close(head(inputs["noise"], inputs["state"], t, context), plain, atol=1e-5, rtol=1e-5)


def test_sequence_too_long_for_the_positions_is_refused(network, inputs) -> None:
    features = torch.zeros(BATCH, 200, 192)
    with pytest.raises(ValueError, match=r"408 tokens \(8 waypoints, 200 vision-language, 200 of other views\).*160"):
        network.transformer.context(features, features, inputs["domain"], 8)


def test_training_times_are_spread_evenly_and_stay_below_one() -> None:
    times = training_times(8, torch.tensor([0.999999]))
    assert ((times >= 0) & (times < 1)).all()
    torch.testing.assert_close(times.sort().values.diff(), torch.full((7,), 0.125), atol=1e-4, rtol=0)


def test_masked_view_and_missing_slot_are_different_functions(network, inputs) -> None:
    with torch.no_grad():
        mask = torch.tensor([[True, True, False]])
        three = network.vlm(inputs["images"][:1], mask, inputs["ids"][:1])
        two = network.vlm(inputs["images"][:1, :2], mask[:, :2], inputs["ids"][:1])
    torch.testing.assert_close(three[0], two[0])
    assert three[1].shape[1] == 2 * two[1].shape[1]
    assert not three[1][:, two[1].shape[1] :].any()


def test_bfloat16_keeps_the_entrance_and_exit_of_actions_in_float32(policy: Policy) -> None:
    network = copy.deepcopy(policy.network).cast(torch.bfloat16)
    kept = {name.split(".")[1] for name, p in network.named_parameters() if p.dtype == torch.float32}
    assert kept == {"action_encoder", "action_decoder", "norm"}


def test_waypoints_that_do_not_count_change_nothing():
    """The loss and its gradient are those of the waypoints that count, whatever stands in the others."""
    mode = action_mode("so101_bimanual_bce")
    generator = torch.Generator().manual_seed(5)
    predicted, target = (torch.rand(2, 6, mode.width, generator=generator) for _ in range(2))
    known = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    found = []
    for filler in (0.0, 1e3):
        seen = torch.where(known[..., None], predicted, predicted + filler).requires_grad_()
        total, terms = loss_terms([mode, mode], seen, torch.where(known[..., None], target, target - filler), known)
        total.backward()
        found.append((total.item(), seen.grad))
        assert set(terms) == set(mode.loss(predicted, target))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1]) and not found[0][1][~known].any()
    joints = [*range(5), *range(6, 11)]
    wanted = ((predicted - target)[known][:, joints] ** 2).mean()
    assert terms["joints_loss"].item() == pytest.approx(wanted.item(), rel=1e-6)


def test_a_batch_in_which_all_waypoints_count_or_none():
    mode = action_mode("ee6d")
    predicted, target = torch.rand(2, 6, 20), torch.rand(2, 6, 20)
    every = torch.ones(2, 6, dtype=torch.bool)
    assert torch.equal(
        loss_terms([mode] * 2, predicted, target, every)[0], loss_terms([mode] * 2, predicted, target)[0]
    )
    assert loss_terms([mode] * 2, predicted, target, ~every)[0].item() == 0.0


def test_mixed_modes_count_by_their_known_waypoints():
    modes = [action_mode("ee6d"), action_mode("agibot_ee6d")]
    predicted, target = torch.rand(2, 4, 20), torch.rand(2, 4, 20)
    known = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    total, _ = loss_terms(modes, predicted, target, known)
    alone = [loss_terms(modes[i : i + 1], predicted[i : i + 1], target[i : i + 1], known[i : i + 1])[0] for i in (0, 1)]
    assert total.item() == pytest.approx(0.75 * alone[0].item() + 0.25 * alone[1].item(), rel=1e-6)
