"""Every fast way to run a policy against the eager float32 reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from xvla_ros.model.action_modes import ActionMode, action_mode
from xvla_ros.model.data import Embodiment, Observation, Prefix
from xvla_ros.model.fast import accelerate
from xvla_ros.model.onednn import OneDnnLinear, on_onednn, onednn_gain, variant
from xvla_ros.model.policy import Policy
from xvla_ros.model.runner import FastRunner, Runner, has_fast_path

Look = Callable[..., Observation]
INPUTS = 100
# Of actions in standard deviations. The sums of float32 in another order give about 2e-6.
TOLERANCE = 5e-5

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def fast_policy(policy: Policy, network: str) -> Policy:
    made = Policy(policy.network, policy.processor, robots=policy.robots, training=policy.training)
    fast = on_onednn(policy.network) if network == "onednn" else policy.network
    made.runner = FastRunner(policy.network, fast, network)
    return made


WAYS = [pytest.param("same"), pytest.param("onednn", marks=onednn)]


def seen(policy: Policy, look: Look, rows: range) -> list[Observation]:
    """Random observations of both robots, some with a camera missing."""
    generator = np.random.default_rng(rows.start)
    made = []
    for row in rows:
        robot = policy.robots["pair" if row % 3 else "arm"].embodiment
        slots = robot.slots[: 1 + row % len(robot.slots)]
        state = generator.normal(0.0, 20.0, 12 if robot.robot == "pair" else 20).astype(np.float32)
        made.append(look(robot, stamp=row, state=state, slots=slots, seed=row, instruction=f"lift cube {row % 7}"))
    return made


def difference(policy: Policy, ours: list[np.ndarray], theirs: list[np.ndarray], robots: list[str]) -> float:
    """Largest difference in standard deviations."""
    scales = {name: robot.statistics.action.stats["std"] for name, robot in policy.robots.items()}
    return max(
        float(np.abs((a - b) / scales[name]).max()) for a, b, name in zip(ours, theirs, robots, strict=True)
    )


@pytest.mark.parametrize("network", WAYS)
def test_fast_path_equals_the_reference_over_random_inputs(policy: Policy, look: Look, network: str) -> None:
    fast = fast_policy(policy, network)
    for first in range(0, INPUTS, 10):
        observations = seen(policy, look, range(first, first + 10))
        reference, found = (
            [chunk.actions for chunk in each.predict(observations, steps=2, seed=first)] for each in (policy, fast)
        )
        names = [each.embodiment.robot for each in observations]
        assert difference(policy, reference, found, names) < TOLERANCE


@pytest.mark.parametrize("network", WAYS)
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_fast_path_agrees_with_what_was_committed(policy: Policy, look: Look, network: str, guidance: float) -> None:
    pair = policy.robots["pair"].embodiment
    committed = np.linspace(-3.0, 3.0, 12, dtype=np.float32) + np.zeros((8, 1), np.float32)
    prefix = Prefix(committed, np.array([1, 1, 0.5, 0.2, 0, 0, 0, 0], np.float32), guidance)
    observations = [look(pair), look(pair, stamp=4)]
    reference, found = (
        [chunk.actions for chunk in each.predict(observations, steps=4, seed=1, prefix=[prefix, None])]
        for each in (policy, fast_policy(policy, network))
    )
    assert difference(policy, reference, found, ["pair", "pair"]) < TOLERANCE


class Shifted(ActionMode):
    """A mode that does more before the network than hide channels."""

    def preprocess(self, state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return state, action + 1.0


def test_mode_with_its_own_preprocess_takes_the_reference(policy: Policy, look: Look) -> None:
    known = action_mode("ee6d")
    assert has_fast_path([known, action_mode("so101_bimanual_bce"), action_mode("agibot_ee6d")])
    own = Shifted(known.spec, known.width, known.decoded_width)
    assert not has_fast_path([known, own])
    batch = policy.prepare([look(policy.robots["arm"].embodiment)])
    noise = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(0))
    reference, found = (
        each.runner.chunk(batch, noise, [own], steps=2) for each in (policy, fast_policy(policy, "same"))
    )
    torch.testing.assert_close(found, reference, rtol=0, atol=0)


def test_no_steps_are_refused_on_the_fast_path_too(policy: Policy, look: Look) -> None:
    with pytest.raises(ValueError, match="steps is 0, expected at least 1"):
        fast_policy(policy, "same").predict([look()], steps=0)


def test_variant_shares_every_tensor_and_no_module(policy: Policy) -> None:
    network = policy.network
    made = variant(network)
    pairs = list(zip(network.named_parameters(), made.named_parameters(), strict=True))
    assert all(ours is theirs and name == other for (name, ours), (other, theirs) in pairs)
    assert not set(map(id, network.modules())) & set(map(id, made.modules()))
    assert made.action_mode is network.action_mode and made.config is network.config


@onednn
def test_layers_on_onednn_take_any_strides_and_shapes(policy: Policy) -> None:
    layer = torch.nn.Linear(24, 40)
    fast = torch.nn.Linear(24, 40)
    fast.load_state_dict(layer.state_dict())
    fast.__class__ = OneDnnLinear
    generator = torch.Generator().manual_seed(0)
    for x in (
        torch.randn(24, generator=generator),
        torch.randn(7, 24, generator=generator)[::2],
        torch.randn(2, 24, 5, generator=generator).transpose(1, 2),
        torch.randn(2, 3, 5, 24, generator=generator).permute(1, 0, 2, 3),
    ):
        with torch.no_grad():
            torch.testing.assert_close(fast(x), layer(x), atol=1e-5, rtol=1e-5)


def test_accelerated_policy_leaves_the_first_as_it_was(policy: Policy) -> None:
    said: list[str] = []
    fast = accelerate(policy, log=said.append)
    assert fast.network is policy.network and type(policy.runner) is Runner
    assert said == [f"policy runs {fast.runner.description}"]
    assert type(accelerate(policy, compile="off").runner) is Runner
    with pytest.raises(ValueError, match="compile is 'fast', expected auto, on, off"):
        accelerate(policy, compile="fast")


def test_layers_that_are_no_linear_ones_are_left_alone(policy: Policy) -> None:
    changed = Policy(variant(policy.network), policy.processor)

    class Other(torch.nn.Linear):
        pass

    for block in changed.network.transformer.blocks:
        block.mlp.fc1.__class__ = Other
    assert onednn_gain(changed.network) == (0.0, "the layers are Other")
    assert accelerate(changed).runner.description == "eager (the layers are Other)"


def test_robot_of_fewer_cameras_is_the_same_alone_and_beside_others(policy: Policy, look: Look) -> None:
    fast = fast_policy(policy, "same")
    arm: Embodiment = policy.robots["arm"].embodiment
    alone = fast.predict([look(arm)], seed=1)[0].actions
    beside = fast.predict([look(replace(policy.robots["pair"].embodiment)), look(arm)], seed=1)[1].actions
    np.testing.assert_allclose(alone, beside, atol=1e-4)
