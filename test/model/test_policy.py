# SPDX-License-Identifier: Apache-2.0
"""Observations in, chunks out: nothing shifts, nothing depends on the neighbours, nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from xvla_ros.model.inputs.processor import Processor
from xvla_ros.model.policy import REMEMBERED, Policy
from xvla_ros.types import Embodiment, Observation, Prefix

Look = Callable[..., Observation]


@pytest.fixture(scope="module")
def pair(policy: Policy) -> Embodiment:
    return policy.robots["pair"].embodiment


@pytest.fixture(scope="module")
def arm(policy: Policy) -> Embodiment:
    return policy.robots["arm"].embodiment


def test_chunk_says_when_every_waypoint_is_due(policy: Policy, pair: Embodiment, look: Look) -> None:
    (chunk,) = policy.predict([look(pair, stamp=123_456)], seed=4)
    assert (chunk.robot, chunk.domain_id, chunk.action_mode, chunk.stamp, chunk.seed) == (
        "pair", 19, "so101_bimanual_bce", 123_456, 4,
    )  # fmt: skip
    np.testing.assert_allclose(chunk.times, 0.0333 * np.arange(1, 9))
    assert chunk.actions.shape == (8, 12) and chunk.actions.dtype == np.float32
    assert ((chunk.actions[:, [5, 11]] >= 0) & (chunk.actions[:, [5, 11]] <= 1)).all()
    assert chunk.inference_ms > 0


def test_chunk_does_not_depend_on_its_batch(policy: Policy, pair: Embodiment, arm: Embodiment, look: Look) -> None:
    observations = [look(pair, stamp=1), look(arm, stamp=2, seed=5), look(pair, stamp=3, seed=6)]
    together = policy.predict(observations, seed=9)
    for observation, chunk in zip(observations, together, strict=True):
        (alone,) = policy.predict([observation], seed=9)
        np.testing.assert_allclose(chunk.actions, alone.actions, atol=1e-2)
    assert [chunk.robot for chunk in together] == ["pair", "arm", "pair"]


def test_robots_with_their_own_number_of_steps_share_a_call(policy: Policy, pair: Embodiment, look: Look) -> None:
    quick = replace(pair, denoising_steps=1)
    both = policy.predict([look(pair), look(quick)], seed=2)
    (alone,) = policy.predict([look(quick)], seed=2)
    np.testing.assert_allclose(both[1].actions, alone.actions, atol=1e-2)
    assert np.abs(both[0].actions - both[1].actions).max() > 1e-2
    overruled = policy.predict([look(pair), look(quick)], seed=2, steps=1)
    np.testing.assert_allclose(overruled[0].actions, overruled[1].actions, atol=1e-2)


def test_seed_repeats_and_a_fresh_one_is_told(policy: Policy, pair: Embodiment, look: Look) -> None:
    first, again, other = (policy.predict([look(pair)], seed=seed)[0] for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.actions, again.actions)
    assert np.abs(first.actions - other.actions).max() > 0
    fresh = policy.predict([look(pair)])[0]
    (repeated,) = policy.predict([look(pair)], seed=fresh.seed)
    np.testing.assert_array_equal(fresh.actions, repeated.actions)


def test_noise_differs_by_stamp_and_by_robot(policy: Policy, pair: Embodiment, look: Look) -> None:
    twin = replace(pair, robot="twin")
    policy.processor.statistics["twin"] = policy.processor.statistics["pair"]
    same = {"state": np.zeros(12, np.float32)}
    twin_look = replace(look(pair, **same), embodiment=twin)
    chunks = policy.predict([look(pair, **same), look(pair, stamp=5, **same), twin_look], seed=1)
    assert np.abs(chunks[0].actions - chunks[1].actions).max() > 0
    assert np.abs(chunks[0].actions - chunks[2].actions).max() > 0


def test_given_noise_takes_the_place_of_drawn_noise(policy: Policy, pair: Embodiment, look: Look) -> None:
    noise = np.random.default_rng(0).standard_normal((1, 8, 20), dtype=np.float32)
    chunks = [policy.predict([look(pair)], seed=seed, noise=noise)[0].actions for seed in (1, 2)]
    np.testing.assert_array_equal(*chunks)
    with pytest.raises(ValueError, match=r"noise has shape \(1, 3, 20\), expected \(1, 8, 20\)"):
        policy.predict([look(pair)], noise=noise[:, :3])


def test_missing_camera_shifts_no_other(policy: Policy, pair: Embodiment, look: Look) -> None:
    whole, gap = policy.processor.batch([look(pair)]), policy.processor.batch([look(pair, slots=("front", "right"))])
    assert gap.image_mask.tolist() == [[True, False, True]]
    assert (gap.images[0, 0] == whole.images[0, 0]).all() and (gap.images[0, 2] == whole.images[0, 2]).all()
    assert not gap.images[0, 1].any()


def test_robot_with_fewer_cameras_gets_masked_slots(policy: Policy, arm: Embodiment, look: Look) -> None:
    batch = policy.processor.batch([look(arm)])
    assert batch.image_mask.tolist() == [[True, False, False]]


def test_state_is_normalised_by_its_own_robot_and_padded(policy: Policy, pair: Embodiment, look: Look) -> None:
    state = np.arange(12, dtype=np.float32)
    batch = policy.processor.batch([look(pair, state=state)])
    expected = (state - np.linspace(-3, 3, 12)) / np.linspace(0.5, 40, 12)
    np.testing.assert_allclose(batch.state[0, :12], expected, rtol=1e-4, atol=1e-5)
    assert batch.state.shape == (1, 20) and not batch.state[0, 12:].any()


def test_the_width_of_a_state_that_nothing_normalises_is_that_of_tool_poses(
    policy: Policy, arm: Embodiment, look: Look
) -> None:
    """Channels of joints are not known then: LeRobot pads and cuts them to its own width."""
    processor = Processor(policy.outline.config, policy.processor.tokenizer)
    joints = replace(arm, action_mode="auto")
    for width in (0, 3, 14, 19, 21, 60):
        state = np.zeros(width, np.float32)
        with pytest.raises(ValueError, match=rf"state has shape \[{width}\], expected \[20\]; of one arm \[10\]"):
            processor.check(look(arm, state=state))
        processor.check(look(joints, state=state))
    for width in (10, 20):
        processor.check(look(arm, state=np.zeros(width, np.float32)))


def test_gripper_statistics_leave_a_probability_alone(policy: Policy, pair: Embodiment) -> None:
    action = policy.processor.statistics_of("pair").action
    assert action.stats["mean"][[5, 11]].tolist() == [0, 0] and action.stats["std"][[5, 11]].tolist() == [1, 1]


def test_training_targets_decode_to_themselves(policy: Policy, pair: Embodiment) -> None:
    mode = policy.action_mode(pair)
    actions = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)
    target = policy.processor.action(pair, mode, actions, np.zeros(12))
    assert target.shape == (8, 20)
    decoded = policy.processor.decode(pair, mode, target, np.zeros(12))
    joints = [i for i in range(12) if i not in (5, 11)]
    np.testing.assert_allclose(decoded[:, joints], actions[:, joints], atol=1e-4)


def test_prefix_is_kept_in_the_units_of_the_robot(policy: Policy, pair: Embodiment, look: Look) -> None:
    committed = np.full((8, 12), np.nan, np.float32)
    committed[:4] = np.linspace(-1, 1, 12)
    weights = np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32)
    joints = [i for i in range(12) if i not in (5, 11)]
    held, free = policy.predict([look(pair), look(pair)], seed=3, prefix=[Prefix(committed, weights), None])
    (plain,) = policy.predict([look(pair)], seed=3)
    np.testing.assert_allclose(held.actions[:4, joints], committed[:4, joints], atol=1e-3)
    np.testing.assert_allclose(free.actions, plain.actions, atol=1e-2)
    assert np.isfinite(held.actions).all()


@pytest.mark.parametrize(
    ("actions", "weights", "words"),
    [
        (np.zeros((7, 12)), np.ones(7), "expected 8 waypoints"),
        (np.zeros((8, 12)), np.full(8, 1.5), "weights reach 1.5"),
        (np.full((8, 12), np.nan), np.ones(8), "not finite"),
        (np.zeros((8, 11)), np.ones(8), "action of 11 channels"),
    ],
)
def test_prefix_that_does_not_fit_is_refused(
    policy: Policy, pair: Embodiment, look: Look, actions: np.ndarray, weights: np.ndarray, words: str
) -> None:
    with pytest.raises(ValueError, match=f"'pair'.*{words}"):
        policy.predict([look(pair)], prefix=[Prefix(actions.astype(np.float32), weights.astype(np.float32))])


def test_prefixes_must_be_as_many_as_observations(policy: Policy, pair: Embodiment, look: Look) -> None:
    with pytest.raises(ValueError, match="prefix has 2 entries for 1 observations"):
        policy.predict([look(pair)], prefix=[None, None])


def spoiled(observation: Observation, **changes: object) -> Observation:
    return replace(observation, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": np.array([0, np.nan] * 6, np.float32)}, r"state is not finite in channels \[1, 3, 5, 7, 9, 11\]"),
        (
            {"images": {"front": np.zeros((1, 400, 3), np.uint8)}},
            "'front' is 1 high and 400 wide, which letterbox makes less than a pixel",
        ),
        ({"state": np.zeros(11, np.float32)}, r"state has shape \[11\], expected \[12\]"),
        ({"state": np.zeros((1, 12), np.float32)}, r"state has shape \[1, 12\]"),
        ({"images": {}}, r"no image; expected one for each of \['front', 'left', 'right'\]"),
        ({"images": {"top": np.zeros((4, 4, 3), np.uint8)}}, r"unknown slots \['top'\]; its slots are"),
        ({"images": {"front": np.zeros((4, 4, 3), np.float32)}}, r"slot 'front' is float32 \[4, 4, 3\]"),
        ({"images": {"front": np.zeros((4, 4), np.uint8)}}, r"slot 'front' is uint8 \[4, 4\], expected uint8"),
    ],
)
def test_observation_that_does_not_fit_is_refused_by_name(
    policy: Policy, pair: Embodiment, look: Look, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=f"robot 'pair': .*{words}"):
        policy.predict([look(pair), spoiled(look(pair), **changes)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"domain_id": 30}, r"domain_id 30 is not in the checkpoint, expected 0…29"),
        ({"slots": ("a", "b", "c", "d")}, r"has 4 camera slots \(a, b, c, d\), the checkpoint 3"),
        ({"slots": ()}, "has no camera slots"),
        ({"action_mode": "joint"}, "action mode 'joint' has 14 channels, the checkpoint 20"),
        ({"action_mode": "joints"}, "action_mode 'joints' is unknown; known modes: agibot_ee6d"),
        ({"action_mode": "ee6d"}, "action of 20 channels.*statistics are for 12"),
    ],
)
def test_robot_the_checkpoint_cannot_drive_is_refused_beforehand(
    policy: Policy, pair: Embodiment, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=f"robot 'pair'.*{words}"):
        policy.check(replace(pair, **changes))


def test_nothing_asked_is_nothing_answered(policy: Policy) -> None:
    assert policy.predict([]) == []


def test_instruction_is_padded_to_the_length_of_the_checkpoint(policy: Policy, pair: Embodiment, look: Look) -> None:
    long = "put every one of the seventeen red cubes into the small blue box on the left " * 3
    ids = policy.processor.batch([look(pair, instruction=long), look(pair, instruction="")]).input_ids
    length = policy.network.config.tokenizer_max_length
    assert ids.shape == (2, length)
    assert ids[0, 0] == 0 and ids[0, -1] == 2, "a cut instruction keeps its bos and eos"
    assert ids[1].tolist() == [0, 2] + [1] * (length - 2)


def test_instruction_changes_the_chunk(policy: Policy, pair: Embodiment, look: Look) -> None:
    chunks = policy.predict([look(pair), look(pair, instruction="wave")], seed=1)
    assert np.abs(chunks[0].actions - chunks[1].actions).max() > 0


def test_untrained_policy_says_so(policy: Policy) -> None:
    assert not policy.is_trained(19)


def test_untrained_policy_moves_through_its_range(policy: Policy, pair: Embodiment, look: Look) -> None:
    spread = np.linspace(0.5, 40, 12)
    chunks = policy.predict([look(pair, stamp=stamp, seed=stamp) for stamp in range(4)], seed=1)
    actions = np.concatenate([chunk.actions for chunk in chunks])
    joints = [i for i in range(12) if i not in (5, 11)]
    assert (actions.std(axis=0)[joints] > 0.02 * spread[joints]).all()
    assert (np.abs(actions).max(axis=0)[joints] < 6 * spread[joints] + 3).all()


LONG = "pick up the red cube with the left arm and put it into the bowl, then go back to where you were before"


def test_words_that_are_cut_off_are_told_once(policy: Policy, pair: Embodiment, look: Look) -> None:
    said: list[str] = []
    policy.on_remark = said.append
    try:
        for _ in range(2):
            policy.predict([look(pair, instruction=LONG), look(pair, instruction="pick up the cup")], seed=1)
    finally:
        policy.on_remark = None
    cut = [remark for remark in said if "is cut off" in remark]
    tokenizer = policy.processor.tokenizer
    assert len(cut) == 1 and repr(tokenizer.cut(LONG)) in cut[0]
    assert f"it has {tokenizer.tokens(LONG)} tokens, and the checkpoint reads {tokenizer.length}" in cut[0]


def test_of_the_instructions_that_it_answered_it_remembers_the_last(policy: Policy) -> None:
    """A server answers the instructions of any number of clients."""
    policy.on_remark = lambda remark: None
    for index in range(2 * REMEMBERED):
        policy._remark({f"pick up {index}"})
    policy.on_remark = None
    assert list(policy._remarked) == [f"pick up {index}" for index in range(REMEMBERED, 2 * REMEMBERED)]


def test_warming_up_says_nothing_of_its_words(policy: Policy, pair: Embodiment, look: Look) -> None:
    from xvla_ros.model.runtime.fast import warm_up

    said: list[str] = []
    policy.on_remark = said.append
    try:
        warm_up(policy, [look(pair, instruction="xylophone")], steps=1)
        assert said == []
        policy.predict([look(pair, instruction="xylophone")], steps=1)
        assert len(said) == 1 and "'xylophone'" in said[0]
    finally:
        policy.on_remark = None


def test_what_is_left_and_what_is_lost_are_the_instruction(policy: Policy) -> None:
    tokenizer = policy.processor.tokenizer
    assert tokenizer.cut("pick up the cup") == "" and tokenizer.cut("") == ""
    lost = tokenizer.cut(LONG)
    kept = LONG.removesuffix(lost)
    assert lost and kept.endswith(" ") and tokenizer.cut(kept) == ""
    # the word that the length cuts through is lost as a whole
    assert tokenizer.tokens(f"{kept}{lost.split()[0]}") > tokenizer.length
    assert tokenizer.tokens(LONG) == len(tokenizer.backend.encode(LONG, add_special_tokens=False).ids) or (
        tokenizer.tokens(LONG) > tokenizer.length
    )


def test_words_that_were_not_trained_are_named(policy: Policy) -> None:
    tokenizer = policy.processor.tokenizer
    assert tokenizer.unknown("Fold the purple towel.", ()) == ["Fold", "purple"], "spelled in letters"
    assert tokenizer.unknown("fold the purple towel", {"fold", "the", "purple"}) == ["towel"], "whole, but not trained"


def test_ordinary_words_are_added_without_changing_what_was_known() -> None:
    from xvla_ros.model.inputs.words import ORDINARY_WORDS, Tokenizer, train_tokenizer, with_words

    texts = ["touch the red cube", "put the green cube in the bowl"]
    few = train_tokenizer(texts, 16, 300)
    more = Tokenizer(with_words(train_tokenizer(texts, 16, 300).backend, ORDINARY_WORDS, 512), 16)
    assert (few.encode(texts) == more.encode(texts)).all()
    assert few.vocab_size <= 300 < more.vocab_size <= 512
    assert more.tokens("stack the cup on the plate") == 2 + 6 < few.tokens("stack the cup on the plate")
    assert train_tokenizer(texts, 16, 512).tokens("stack the cup on the plate") == 8
