# SPDX-License-Identifier: Apache-2.0
"""Int8: how far from float32, what is rounded and what not, and what cannot be done with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xvla_ros.model import checkpoint
from xvla_ros.model.network.xvla import DomainAwareLinear
from xvla_ros.model.policy import Policy
from xvla_ros.model.runtime import int8
from xvla_ros.model.runtime.int8 import Int8Linear, quantise
from xvla_ros.types import Observation, Prefix

Look = Callable[..., Observation]
INPUTS = 100


@pytest.fixture(scope="module")
def rounded(policy: Policy) -> Policy:
    return quantise(policy)


def observations(policy: Policy, look: Look, count: int) -> list[Observation]:
    return [look(stamp=index, seed=index) for index in range(count)]


@pytest.mark.parametrize("seven_bits", [False, True])
def test_error_over_random_inputs(
    policy: Policy, rounded: Policy, look: Look, seven_bits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is that of the kernel in use; 7 bits of the activations run on every processor."""
    if seven_bits:
        monkeypatch.setattr(int8, "_pairs_saturate", lambda: True)
    step = 2 if int8._pairs_saturate() else 1  # how much coarser activations are rounded than in 8 bits
    seen = observations(policy, look, INPUTS)
    spread = policy.robots["pair"].statistics.action.denormalise(np.ones(12)) - policy.robots[
        "pair"
    ].statistics.action.denormalise(np.zeros(12))
    exact, near = (
        np.stack([each.actions for each in chosen.predict(seen, seed=1)]) / spread for chosen in (policy, rounded)
    )
    error = np.abs(near - exact)
    assert 0 < error.max() < 0.1 * step, "in standard deviations of the actions"
    assert np.sqrt((error**2).mean()) < 0.01 * step


def test_what_is_rounded(policy: Policy, rounded: Policy) -> None:
    network = rounded.network
    left = {name for name, module in network.named_modules() if type(module) is nn.Linear}
    assert left == {"vlm.multi_modal_projector.image_projection", "transformer.vlm_proj", "transformer.aux_visual_proj"}
    assert isinstance(network.transformer.action_encoder, DomainAwareLinear)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    blocks = [name for name, module in network.named_modules() if isinstance(module, Int8Linear)]
    assert sum(name.startswith("transformer.blocks.") for name in blocks) == 4 * policy.network.config.depth


def test_original_stays_and_shares_its_other_weights(policy: Policy, rounded: Policy) -> None:
    assert not int8.is_int8(policy.network) and int8.is_int8(rounded.network)
    assert rounded.network.transformer.pos_emb is policy.network.transformer.pos_emb


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 70), st.booleans(), st.integers(0, 2**31))
def test_one_layer(rows: int, wide: int, out: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(wide, out, bias=bias)
    x = torch.randn(2, rows, wide) * torch.exp(3 * torch.randn(2, rows, 1))
    with torch.no_grad():
        found, exact = Int8Linear(linear)(x), linear(x)
        # what rounding can do to each row: half a step of the activations (a step where they have 7 bits) and weights
        largest = x.abs().amax(-1, keepdim=True)
        bound = largest / 127 * (1.1 * linear.weight.abs().sum(1) + 0.6 * wide * linear.weight.abs().amax(1))
    assert found.shape == exact.shape
    assert ((found - exact).abs() <= bound + 1e-5).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 70), st.floats(-20, 10), st.integers(0, 2**31))
def test_weights_are_rounded_as_torch_rounds_them(wide: int, out: int, size: float, seed: int) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(wide, out, bias=False)
    with torch.no_grad():
        linear.weight.normal_().mul_(torch.exp(size + torch.randn(out, 1)))
        linear.weight[0, :3] = linear.weight[0].abs().max() * torch.tensor([1.0, -1.0, 0.5])[:wide]
    found, _ = torch.ops.quantized.linear_unpack(Int8Linear(linear)._packed)
    scales = found.q_per_channel_scales()
    expected = torch.quantize_per_channel(linear.weight.detach(), scales, scales.long() * 0, 0, torch.qint8)
    assert torch.equal(found.int_repr(), expected.int_repr())
    assert torch.allclose(scales, linear.weight.detach().abs().amax(1).double() / 127)


def test_rows_of_zeros_give_the_bias(policy: Policy) -> None:
    linear = nn.Linear(16, 8)
    with torch.no_grad():
        assert torch.allclose(Int8Linear(linear)(torch.zeros(3, 16)), linear.bias.expand(3, 8))


def test_a_row_does_not_depend_on_the_others() -> None:
    """But for the step of its activations: another row may widen the range that the kernel divides into steps."""
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(64, 32))
    x = torch.randn(5, 64)
    step = x.abs().amax(-1, keepdim=True) / (63 if int8._pairs_saturate() else 127)
    with torch.no_grad():
        apart = (layer(x) - layer(torch.cat([x, 1e4 * torch.randn(1, 64)]))[:5]).abs()
    assert (apart <= step * layer.weight().abs().sum(1)).all()
    assert apart.square().mean().sqrt() < 0.02


def test_gradient_is_that_of_the_rounded_weights() -> None:
    layer = Int8Linear(nn.Linear(24, 6))
    x = torch.randn(4, 24, requires_grad=True)
    pulled = torch.randn(4, 6)
    (layer(x) * pulled).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, pulled @ layer.weight(), atol=1e-5)


def test_guided_prefix_works(policy: Policy, rounded: Policy, look: Look) -> None:
    seen = look()
    earlier = policy.predict([seen], seed=5)[0].actions
    prefix = [Prefix(earlier, np.linspace(1, 0, len(earlier), dtype=np.float32), 5.0)]
    exact, near = (chosen.predict([seen], seed=1, prefix=prefix)[0].actions for chosen in (policy, rounded))
    assert np.abs(near - exact).max() < 0.1 * np.abs(exact).max()


def test_loaded_as_int8(saved: Path, rounded: Policy, look: Look) -> None:
    loaded = checkpoint.load(saved, dtype="int8", assume=checkpoint.PROFILE_STEPS)
    assert np.array_equal(loaded.predict([look()], seed=1)[0].actions, rounded.predict([look()], seed=1)[0].actions)
    assert loaded.source == str(saved) and loaded.digest == checkpoint.load(saved, dtype="float32").digest
    assert loaded.precision.dtype == rounded.precision.dtype == "int8"


def test_cannot_be_saved_or_made_twice(rounded: Policy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"int8.*float32"):
        checkpoint.save(rounded, tmp_path / "copy")
    assert not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(ValueError, match="int8 already"):
        quantise(rounded)


def test_only_on_the_cpu(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype 'int8' does not run on device 'meta'.*use float32, bfloat16"):
        checkpoint.load(saved, dtype="int8", device="meta", assume=checkpoint.PROFILE_STEPS)


def test_damaged_weight_is_named() -> None:
    linear = nn.Linear(4, 4)
    linear.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        Int8Linear(linear)
