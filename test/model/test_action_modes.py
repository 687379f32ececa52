# SPDX-License-Identifier: Apache-2.0
"""The registry of action modes, and what each mode does to numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from xvla_ros.model.action_modes import ActionMode, action_mode, known_modes, register
from xvla_ros.model.action_specs import ACTION_SPECS, ActionSpec

BUILTIN = ("ee6d", "joint", "agibot_ee6d", "franka_joint7", "auto", "so101_bimanual", "so101_bimanual_bce")


def draw(mode: ActionMode, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randn(2, 5, mode.width, generator=generator)
    return predicted, torch.rand(2, 5, mode.width, generator=generator)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(KeyError) as caught:
        action_mode("so102")
    assert all(name in str(caught.value) for name in (*BUILTIN, "so102"))


@pytest.mark.parametrize("name", BUILTIN)
def test_mode_changes_no_tensor_in_place(name: str) -> None:
    mode = action_mode(name, action_dim=7)
    predicted, target = draw(mode)
    kept = predicted.clone(), target.clone()
    state = torch.randn(2, 20)
    kept_state = state.clone()
    mode.preprocess(state, predicted)
    mode.postprocess(predicted)
    mode.loss(predicted, target)
    assert torch.equal(predicted, kept[0]) and torch.equal(target, kept[1]) and torch.equal(state, kept_state)


@pytest.mark.parametrize("name", BUILTIN)
def test_decoded_width_is_that_of_the_spec(name: str) -> None:
    mode = action_mode(name, max_action_dim=16, action_dim=9)
    decoded = mode.postprocess(torch.randn(4, mode.width))
    assert decoded.shape == (4, ACTION_SPECS[name].decoded_width or 9)


@pytest.mark.parametrize("name", ["ee6d", "joint", "so101_bimanual", "so101_bimanual_bce"])
def test_gripper_is_hidden_from_the_network_and_decoded_to_a_probability(name: str) -> None:
    mode = action_mode(name)
    gripper = list(mode.spec.gripper)
    others = [i for i in range(mode.decoded_width) if i not in gripper]
    raw = 5 * torch.randn(3, 4, mode.width)
    state, seen = mode.preprocess(torch.ones(3, 32), raw)
    assert not state[:, gripper].any() and not seen[..., gripper].any()
    assert torch.equal(seen[..., others], raw[..., others])
    decoded = mode.postprocess(raw)
    assert torch.equal(decoded[..., gripper], raw[..., gripper].sigmoid())
    assert torch.equal(decoded[..., others], raw[..., others])


@pytest.mark.parametrize("name", ["ee6d", "so101_bimanual_bce"])
def test_a_gripper_commanded_beyond_closed_counts_as_closed(name: str) -> None:
    mode = action_mode(name)
    predicted, target = 9 * torch.ones(1, 2, mode.width), torch.zeros(1, 2, mode.width)
    target[..., list(mode.spec.gripper)] = 1.15
    within = target.clamp(max=1.0)
    assert mode.loss(predicted, target) == mode.loss(predicted, within)


def test_state_narrower_than_the_gripper_index_is_left_alone() -> None:
    state, _ = action_mode("ee6d").preprocess(torch.ones(1, 5), torch.ones(1, 2, 20))
    assert torch.equal(state, torch.ones(1, 5))
    empty, _ = action_mode("ee6d").preprocess(torch.ones(1, 0), torch.ones(1, 2, 20))
    assert empty.shape == (1, 0)


def test_ee6d_losses_by_hand() -> None:
    mode = action_mode("ee6d")
    predicted, target = draw(mode)
    terms = mode.loss(predicted, target)
    squared = (predicted - target).square()
    position = 500 * (squared[..., 0:3].mean() + squared[..., 10:13].mean())
    rotation = 10 * (squared[..., 3:9].mean() + squared[..., 13:19].mean())
    gripper = functional.binary_cross_entropy_with_logits(predicted[..., [9, 19]], target[..., [9, 19]])
    torch.testing.assert_close(list(terms.values()), [position, rotation, gripper])


def test_repaired_gripper_ends_where_it_should_and_the_published_one_does_not() -> None:
    """The regression of LeRobot PR #3411: an open gripper (1) trained by the published loss decodes to 0.73."""
    opened = torch.ones(1, 1, 20)
    for name, low, high in (("so101_bimanual", 0.70, 0.76), ("so101_bimanual_bce", 0.97, 1.0)):
        mode = action_mode(name)
        logits = torch.zeros(1, 1, 20, requires_grad=True)
        optimiser = torch.optim.Adam([logits], lr=0.1)
        for _ in range(200):
            optimiser.zero_grad()
            torch.stack(list(mode.loss(logits, opened).values())).sum().backward()
            optimiser.step()
        gripper = mode.postprocess(logits.detach())[0, 0, [5, 11]]
        assert ((gripper > low) & (gripper < high)).all(), (name, gripper)


def test_repaired_mode_is_published_under_the_name_lerobot_knows() -> None:
    assert action_mode("so101_bimanual_bce").published_name == "so101_bimanual"
    raw = torch.randn(2, 3, 20)
    decoded = [action_mode(name).postprocess(raw) for name in ("so101_bimanual", "so101_bimanual_bce")]
    assert torch.equal(*decoded)


@pytest.mark.parametrize("width", [7, 20])
def test_pad_takes_the_two_widths_of_a_mode(width: int) -> None:
    padded = action_mode("franka_joint7").pad(torch.ones(3, width))
    assert padded.shape == (3, 20) and torch.equal(padded[:, :7], torch.ones(3, 7))


def test_pad_names_both_widths() -> None:
    with pytest.raises(ValueError, match=r"franka_joint7.*has 9 channels, expected 7 or 20"):
        action_mode("franka_joint7").pad(torch.ones(3, 9))


def test_registered_mode_is_found_and_a_taken_name_refused() -> None:
    @register("test_mode", spec=ActionSpec("test_mode", 20, ("joint",) * 3))
    class TestMode(ActionMode):
        def loss(self, predicted: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"joints_loss": (predicted - target).abs().mean()}

    assert isinstance(action_mode("test_mode"), TestMode)
    with pytest.raises(ValueError, match="already registered"):
        register("test_mode")(TestMode)


def test_mode_of_another_package_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gantry_modes.py").write_text(
        "from xvla_ros.model.action_modes import ActionMode, register\n"
        "from xvla_ros.model.action_specs import ActionSpec\n"
        "@register('gantry', spec=ActionSpec('gantry', 20, ('joint',) * 4))\n"
        "class Gantry(ActionMode):\n"
        "    def loss(self, predicted, target):\n"
        "        return {'joints_loss': (predicted - target).square().mean()}\n"
    )
    info = tmp_path / "gantry-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gantry\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[xvla_ros.action_modes]\ngantry = gantry_modes\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert action_mode("gantry").decoded_width == 4
    assert "gantry" in known_modes() and "gantry_modes" in sys.modules
