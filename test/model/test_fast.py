# SPDX-License-Identifier: Apache-2.0
"""Every fast way to run a policy against the eager float32 reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from xvla_ros.model import checkpoint
from xvla_ros.model.action_modes import ActionMode, action_mode
from xvla_ros.model.network.flow import hides_only
from xvla_ros.model.policy import Policy
from xvla_ros.model.runtime.fast import Capture, accelerate, compiled, warm_up, with_compiled_blocks
from xvla_ros.model.runtime.onednn import OneDnnLinear, on_onednn, onednn_gain, variant
from xvla_ros.model.runtime.runner import Runner, Way
from xvla_ros.types import Embodiment, Observation, Prefix

Look = Callable[..., Observation]
INPUTS = 100
# Of actions in standard deviations. The sums of float32 in another order give about 2e-6.
TOLERANCE = 5e-5

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def running(policy: Policy, *ways: Way, log: Callable[[str], object] = print) -> Policy:
    made = Policy(policy.network, policy.processor, robots=policy.robots, training=policy.training)
    made.runner = Runner(policy.network, ways, log)
    return made


def fast_policy(policy: Policy, network: str) -> Policy:
    return running(policy, Way(network, on_onednn(policy.network) if network == "onednn" else policy.network))


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
    return max(float(np.abs((a - b) / scales[name]).max()) for a, b, name in zip(ours, theirs, robots, strict=True))


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
    assert hides_only([known, action_mode("so101_bimanual_bce"), action_mode("agibot_ee6d")])
    own = Shifted(known.spec, known.width, known.decoded_width)
    assert not hides_only([known, own])
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
    assert fast.network is policy.network and policy.runner.description == "eagerly"
    assert said == [f"the policy runs {fast.runner.description}"]
    assert accelerate(policy, compile="off").runner.description == "eagerly"
    with pytest.raises(ValueError, match="compile is 'fast', expected auto, on, off"):
        accelerate(policy, compile="fast")


def test_layers_that_are_no_linear_ones_are_left_alone(policy: Policy) -> None:
    changed = Policy(variant(policy.network), policy.processor)

    class Other(torch.nn.Linear):
        pass

    for block in changed.network.transformer.blocks:
        block.mlp.fc1.__class__ = Other
    assert onednn_gain(changed.network) == (0.0, "the layers are Other")
    assert accelerate(changed).runner.description == "eagerly (the layers are Other)"


def test_robot_of_fewer_cameras_is_the_same_alone_and_beside_others(policy: Policy, look: Look) -> None:
    fast = fast_policy(policy, "same")
    arm: Embodiment = policy.robots["arm"].embodiment
    alone = fast.predict([look(arm)], seed=1)[0].actions
    beside = fast.predict([look(replace(policy.robots["pair"].embodiment)), look(arm)], seed=1)[1].actions
    np.testing.assert_allclose(alone, beside, atol=1e-4)


class Recorder:
    """Stands in for CUDA graphs: what is recorded writes over the same memory again and again."""

    def __init__(self, fails: Callable[[int], bool] = lambda count: False) -> None:
        self.recorded = self.replayed = 0
        self._fails = fails

    def __call__(self, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        if self._fails(self.recorded):
            raise RuntimeError("capture failed")
        self.recorded += 1
        result = function()

        def replay() -> torch.Tensor:
            self.replayed += 1
            return result.copy_(function())

        return replay


def captured(policy: Policy, recorder: Recorder, log: Callable[[str], object] = print) -> Policy:
    ways = (Way("recorded", policy.network, Capture(recorder)), Way("plainly", policy.network))
    return running(policy, *ways, log=log)


@pytest.fixture
def three(policy: Policy, look: Look) -> list[Observation]:
    """Two robots of three cameras and one of one."""
    pair, arm = policy.robots["pair"].embodiment, policy.robots["arm"].embodiment
    return [look(pair), look(pair, stamp=1, seed=1), look(arm, stamp=2, seed=2)]


def test_warm_up_records_every_shape_once(policy: Policy, three: list[Observation]) -> None:
    recorder, said = Recorder(), []
    fast = captured(policy, recorder, said.append)
    warm_up(fast, three, steps=2)
    # robots and images: 1 with 1 or 3, 2 with 4 or 6, 3 with 7
    assert recorder.recorded == 5
    warm_up(fast, three, steps=2)
    assert recorder.recorded == 5
    before = recorder.replayed
    for chosen in ([0], [1], [2], [0, 1], [1, 2], [0, 1, 2]):
        observations = [three[row] for row in chosen]
        reference, found = (
            [chunk.actions for chunk in each.predict(observations, steps=2, seed=5)] for each in (policy, fast)
        )
        assert difference(policy, reference, found, [each.embodiment.robot for each in observations]) < TOLERANCE
    assert recorder.replayed == before + 6 and said == []


def test_recorded_chunks_read_their_inputs_anew(policy: Policy, look: Look) -> None:
    pair = policy.robots["pair"].embodiment
    fast = captured(policy, Recorder())
    warm_up(fast, [look(pair)], steps=2)
    committed = Prefix(np.ones((8, 12), np.float32), np.linspace(1, 0, 8, dtype=np.float32))
    for seed in range(4):
        state = np.random.default_rng(seed).normal(0, 20, 12).astype(np.float32)
        seen = [look(pair, stamp=seed, seed=seed, state=state, instruction=f"lift cube {seed}")]
        prefix = [committed] if seed % 2 else None
        reference, found = (
            [chunk.actions for chunk in each.predict(seen, steps=2, seed=seed, prefix=prefix)]
            for each in (policy, fast)
        )
        assert difference(policy, reference, found, ["pair"]) < TOLERANCE


def test_chunk_outlives_the_next_replay(policy: Policy, look: Look) -> None:
    pair = policy.robots["pair"].embodiment
    fast = captured(policy, Recorder())
    warm_up(fast, [look(pair)], steps=2)
    batch, modes = fast.prepare([look(pair)]), [fast.action_mode(pair)]
    first = fast.runner.chunk(batch, torch.zeros(1, 8, 20), modes, steps=2)
    kept = first.clone()
    fast.runner.chunk(batch, torch.ones(1, 8, 20), modes, steps=2)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)


def test_shape_nobody_announced_runs_plainly_and_is_said_once(policy: Policy, three: list[Observation]) -> None:
    recorder, said = Recorder(), []
    fast = captured(policy, recorder, said.append)
    warm_up(fast, three[:1], steps=2)
    for _ in range(2):
        found = fast.predict(three[:2], steps=2, seed=1)
    expected = policy.predict(three[:2], steps=2, seed=1)
    assert difference(policy, [c.actions for c in found], [c.actions for c in expected], ["pair"] * 2) < TOLERANCE
    assert recorder.recorded == 1
    assert said == ["nothing is prepared for batch 2, 3 views, 6 images, 2 steps: such chunks run plainly"]


def test_way_that_fails_gives_way_to_the_next(policy: Policy, three: list[Observation]) -> None:
    said: list[str] = []
    fast = captured(policy, Recorder(lambda count: True), said.append)
    assert fast.runner.description == "recorded"
    warm_up(fast, three[:2], steps=2)
    assert fast.runner.description == "plainly"
    assert said == ["recorded does not work on this machine (RuntimeError: capture failed); the policy runs plainly"]


def test_way_that_fails_late_keeps_what_is_ready(policy: Policy, three: list[Observation]) -> None:
    said: list[str] = []
    recorder = Recorder(lambda count: count == 1)
    fast = captured(policy, recorder, said.append)
    warm_up(fast, three[:2], steps=2)
    assert fast.runner.description == "recorded" and recorder.replayed == 1
    reason = "does not run recorded (RuntimeError: capture failed): such chunks run plainly"
    assert said == [f"batch 1, 3 views, 3 images, 2 steps {reason}"]
    assert np.isfinite(fast.predict(three[:1], steps=2)[0].actions).all() and len(said) == 1


def test_last_way_must_run_anything(policy: Policy) -> None:
    with pytest.raises(ValueError, match="the last runner must accept any shape"):
        running(policy, Way("recorded", policy.network, Capture(Recorder())))


@pytest.mark.slow
def test_blocks_compile_without_breaks_and_answer_alike(policy: Policy, look: Look) -> None:
    torch._dynamo.reset()
    network = with_compiled_blocks(policy.network, backend="eager")
    fast = running(policy, Way("compiled", network, compiled), Way("plainly", policy.network))
    observations = seen(policy, look, range(2))
    warm_up(fast, observations, steps=2)
    assert fast.runner.description == "compiled"
    reference, found = (
        [chunk.actions for chunk in each.predict(observations, steps=2, seed=3)] for each in (policy, fast)
    )
    assert difference(policy, reference, found, ["arm", "pair"]) < TOLERANCE
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3


def test_compiler_that_is_missing_is_named(policy: Policy, look: Look) -> None:
    torch._dynamo.reset()

    def missing(*_: object) -> None:
        raise RuntimeError("no C++ compiler")

    said: list[str] = []
    network = with_compiled_blocks(policy.network, backend=missing)
    fast = running(policy, Way("compiled", network, compiled), Way("plainly", policy.network), log=said.append)
    warm_up(fast, [look(policy.robots["pair"].embodiment)], steps=2)
    assert fast.runner.description == "plainly"
    assert (
        len(said) == 1
        and said[0].startswith("compiled does not work on this machine (")
        and "no C++ compiler" in said[0]
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_chunks_on_a_gpu_are_captured_and_answer_alike(policy: Policy, look: Look, saved: Path) -> None:
    said: list[str] = []
    fast = accelerate(checkpoint.load(saved, device="cuda"), log=said.append)
    observations = seen(policy, look, range(1, 3))
    warm_up(fast, observations, steps=2)
    assert fast.runner.description == "in CUDA graphs of compiled blocks" and len(said) == 1
    reference, found = (
        [chunk.actions for chunk in each.predict(observations, steps=2, seed=3)] for each in (policy, fast)
    )
    assert difference(policy, reference, found, ["pair", "pair"]) < 1e-3
    before = torch.cuda.memory_allocated()
    for seed in range(20):
        fast.predict(observations, steps=2, seed=seed)
    assert torch.cuda.memory_allocated() == before
