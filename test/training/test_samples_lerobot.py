# SPDX-License-Identifier: Apache-2.0
"""Samples from LeRobot data sets of v2.1 and v3.0, and what is said of ones that do not fit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("av")

sys.path.append(str(Path(__file__).parent))

import lerobot_written as written
from recorded import problems_of

from xvla_ros.recordings.recording import SamplesError
from xvla_ros.robots.profile import Profile, load_robot, profile_document
from xvla_ros.training.config import DatasetSettings
from xvla_ros.training.data.datasets import open_datasets

ROBOT = "so101_bimanual"  # arm joints in degrees, grippers 0..1
MAPPING = {
    "cameras": {
        "front": "observation.images.top",
        "left_wrist": "observation.images.left",
        "right_wrist": "observation.images.right",
    },
    "channels": {f"{side}_gripper": {"name": f"{side}_gripper", "scale": 0.01} for side in ("left", "right")},
}
VERSIONS = ("v2.1", "v3.0")


def settings(folder, **changes):
    mapping = {**MAPPING, **changes.pop("mapping", {})}
    robot = changes.pop("robot", ROBOT)
    return DatasetSettings(kind="lerobot", paths=(str(folder),), robot=robot, mapping=mapping, **changes)


def opened(tmp_path, folder, **changes):
    return open_datasets([settings(folder, **changes)], waypoints=8, image_size=None, cache=tmp_path / "cache")


def in_policy_units(values):
    values = np.array(values)
    values[..., [5, 11]] /= 100
    return values


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("video", [True, False])
def test_numbers_and_pictures_of_every_frame(tmp_path, version, video):
    folder = written.write(tmp_path / "set", version, video=video)
    samples = opened(tmp_path, folder)

    assert len(samples.train) == 54
    told = [sample.instruction for sample in samples.train]
    assert told == ["touch the red cube"] * 30 + ["touch the blue cube"] * 24
    for number, sample in enumerate(samples.train):
        episode, frame = (0, number) if number < 30 else (1, number - 30)
        seconds = frame / written.FPS
        assert sample.stamp == round(seconds * 1e9)
        np.testing.assert_allclose(sample.state, in_policy_units(written.state(seconds)), atol=1e-4)
        due = seconds + 0.0333 * np.arange(1, 9)
        assert sample.mask.tolist() == (due <= (written.FPS**-1 * ((30, 24)[episode] - 1)) + 1e-9).tolist()
        # a straight line between frames 50 ms apart, on a sine of 30 degrees at 2 rad/s
        np.testing.assert_allclose(
            sample.actions[sample.mask], in_policy_units(written.action(due))[sample.mask], atol=0.05
        )
        for camera, slot in enumerate(("front", "left_wrist", "right_wrist")):
            found = sample.images[slot]
            assert found.shape == (*written.SIZE, 3)
            # neighbours in time differ by four levels, episodes by two
            assert abs(float(found.mean()) - written.grey(episode, frame, camera)) < 1.5


def test_measured_states_and_fewer_frames(tmp_path):
    folder = written.write(tmp_path / "set", "v3.0")
    samples = opened(tmp_path, folder, actions="measured", rate=10.0)
    assert len(samples.train) == 15 + 12
    one = samples.train[2]
    assert one.stamp == 200_000_000
    wanted = in_policy_units(written.state(0.2 + 0.0333 * np.arange(1, 5)))
    np.testing.assert_allclose(one.actions[:4], wanted, atol=0.05)
    assert abs(float(one.images["front"].mean()) - written.grey(0, 4, 0)) < 1.5


def turned(tmp_path):
    """A profile whose front camera is turned and whose left wrist shows a part."""
    mapping = load_robot(ROBOT).to_mapping()
    mapping["cameras"]["front"]["rotate"] = 90
    mapping["cameras"]["left_wrist"]["crop"] = [4, 2, 40, 30]
    file = tmp_path / "turned.yaml"
    file.write_text(profile_document([Profile.from_mapping(ROBOT, mapping)]))
    return str(file)


@pytest.mark.parametrize(
    ("said", "shapes"),
    [
        ("as_sent", {"front": (64, 48, 3), "left_wrist": (30, 40, 3), "right_wrist": (48, 64, 3)}),
        ("as_seen", dict.fromkeys(("front", "left_wrist", "right_wrist"), (48, 64, 3))),
    ],
)
@pytest.mark.parametrize("video", [True, False])
def test_pictures_are_turned_and_cropped_where_the_data_set_has_them_as_sent(tmp_path, said, shapes, video):
    folder = written.write(tmp_path / "set", "v3.0", video=video)
    samples = opened(tmp_path, folder, robot=turned(tmp_path), mapping={"pictures": said})
    assert {slot: picture.shape for slot, picture in samples.train[0].images.items()} == shapes


def test_whether_pictures_are_turned_already_is_asked(tmp_path):
    folder = written.write(tmp_path / "set", "v3.0")
    with pytest.raises(
        SamplesError,
        match=r"mapping\.pictures.*rotates or crops front, left_wrist.*as_sent or "
        r"as_seen",
    ):
        opened(tmp_path, folder, robot=turned(tmp_path))


def test_a_crop_beyond_the_pictures_of_a_data_set_is_named(tmp_path):
    mapping = load_robot(ROBOT).to_mapping()
    mapping["cameras"]["front"]["crop"] = [0, 0, 640, 480]
    file = tmp_path / "cropped.yaml"
    file.write_text(profile_document([Profile.from_mapping(ROBOT, mapping)]))
    folder = written.write(tmp_path / "set", "v3.0", video=False)
    with pytest.raises(SamplesError, match=r"cameras\.front\.crop.*reaches to 640x480.*64x48 pixels"):
        opened(tmp_path, folder, robot=str(file), mapping={"pictures": "as_sent"})


def test_versions_agree(tmp_path):
    two, three = (opened(tmp_path, written.write(tmp_path / version, version)) for version in VERSIONS)
    for a, b in zip(two.train, three.train, strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_array_equal(a.state, b.state)


def test_radians_and_vectors(tmp_path):
    def radians(episode, values):
        return np.concatenate(
            [
                np.radians(values[:, :5]),
                values[:, 5:6] * 0.0192 - 0.1745,
                np.radians(values[:, 6:11]),
                values[:, 11:] * 0.0192 - 0.1745,
            ],
            axis=1,
        )

    folder = written.write(tmp_path / "set", "v2.1", **{"observation.state": radians, "action": radians})
    samples = opened(tmp_path, folder, mapping={"units": "ros", "channels": {}})
    np.testing.assert_allclose(samples.train[4].state, in_policy_units(written.state(0.2)), atol=2e-2)

    plain = written.write(tmp_path / "plain", "v2.1")
    vectors = opened(tmp_path, plain, mapping={"units": "vector", "channels": {}})
    np.testing.assert_allclose(vectors.train[4].state, written.state(0.2), atol=1e-4)


def nan(episode, values):
    values = values.copy()
    values[3, 2] = np.nan
    return values


@pytest.mark.parametrize(
    ("change", "mapping", "said"),
    [
        ({"action": nan}, {}, "action is not finite at 0.150 s"),
        (
            {"observation.state": lambda e, v: np.radians(v), "action": lambda e, v: np.radians(v)},
            {"channels": {}},
            "radians that were interpreted as degrees",
        ),
        ({}, {"channels": {}}, "far outside their limits"),
        ({"timestamp": lambda e, v: v / 2}, {}, "mixed rates: episode 0 has 40 frames per second"),
        ({}, {"cameras": {"front": "observation.images.tpo"}}, "did you mean 'observation.images.top'?"),
        ({}, {"channels": {"left_gripper": "left_griper"}}, "did you mean 'left_gripper.pos'?"),
        ({}, {"state": "observation.joints"}, "no feature 'observation.joints'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, mapping, said):
    folder = written.write(tmp_path / "set", "v3.0", **change)
    text = "\n".join(map(str, problems_of(settings(folder, mapping=mapping))))
    assert said in text
    assert str(folder) in text


def gripper_of(low, high):
    """Columns whose grippers are between two values."""

    def change(episode, values):
        values = values.copy()
        values[:, [5, 11]] = low + (high - low) * (values[:, [5, 11]] - 20) / 60
        return values

    return {"observation.state": change, "action": change}


HUNDRED = "so101_bimanual_lerobot"  # grippers 0..100
SCALED = {"channels": {f"{side}_gripper": {"name": f"{side}_gripper", "scale": 100.0} for side in ("left", "right")}}
STATED = {"channels": {f"{side}_gripper": {"name": f"{side}_gripper"} for side in ("left", "right")}}


def test_a_gripper_of_0_to_1_where_the_profile_has_0_to_100_is_named(tmp_path):
    folder = written.write(tmp_path / "set", "v3.0", **gripper_of(0, 1))
    left, right = problems_of(settings(folder, robot=HUNDRED, mapping={"channels": {}}))
    assert left.key == "mapping.channels.left_gripper" and right.key == "mapping.channels.right_gripper"
    assert "left_gripper.pos is between 0 and 1 where the profile has 0 to 100" in str(left)
    assert "{name: left_gripper.pos, scale: 100}, or scale: 1" in str(left)


@pytest.mark.parametrize(
    ("span", "mapping"),
    [((0, 1), SCALED), ((0, 1), STATED), ((0.2, 0.6), {"channels": {}}), ((1, 2.5), {"channels": {}})],
    ids=["scaled", "stated", "closed", "nearly closed"],
)
def test_a_gripper_that_stays_closed_or_whose_scale_is_stated_is_read(tmp_path, span, mapping):
    folder = written.write(tmp_path / "set", "v3.0", **gripper_of(*span))
    assert not problems_of(settings(folder, robot=HUNDRED, mapping=mapping))


def test_damaged_and_missing_files_are_named(tmp_path):
    folder = written.write(tmp_path / "set", "v2.1")
    video = folder / "videos/chunk-000/observation.images.left/episode_000001.mp4"
    content = video.read_bytes()
    video.unlink()
    problem = str(problems_of(settings(folder))[0])
    assert "observation.images.left/episode_000001.mp4: episode 1: the file is missing" in problem
    video.write_bytes(content[: len(content) // 2])
    with pytest.raises(SamplesError, match=r"episode_000001\.mp4"):
        opened(tmp_path, folder)
    data = folder / "data/chunk-000/episode_000000.parquet"
    data.write_bytes(data.read_bytes()[:-20])
    assert "episode 0 cannot be read" in str(problems_of(settings(folder))[0])
    (folder / "meta/info.json").write_text('{"codebase_version": "v1.6", "features": {}, "fps": 3}')
    assert "is of version v1.6" in str(problems_of(settings(folder))[0])
    assert "there is no such file" in str(problems_of(settings(folder.parent))[0])


TASKS = ("pick the cube", "place the cube in the bowl")


@pytest.mark.parametrize("version", VERSIONS)
def test_each_frame_has_the_words_of_its_own_task(tmp_path, version):
    folder = written.write(
        tmp_path / "set", version, tasks=TASKS, task_index=lambda e, v: (np.arange(len(v)) >= 12).astype(int)
    )
    samples = opened(tmp_path, folder)
    told = [sample.instruction for sample in samples.train]
    assert told == [*[TASKS[0]] * 12, *[TASKS[1]] * 18, *[TASKS[0]] * 12, *[TASKS[1]] * 12]
    assert set(samples.instructions) == set(TASKS)
    assert any("2 episodes have several tasks (0, 1): each frame uses its own" in line for line in samples.left_out())


def test_a_task_without_a_text_is_named(tmp_path):
    folder = written.write(tmp_path / "set", "v3.0", task_index=lambda e, v: v + 7)
    text = "\n".join(map(str, problems_of(settings(folder))))
    assert "episode 0: task_index 7 has no text in meta" in text


def test_frames_without_a_task_follow_the_profiles_instruction(tmp_path):
    folder = written.write(tmp_path / "set", "v3.0", tasks=("",))
    for words in ("touch the red cube", "touch the blue cube"):
        mapping = {**load_robot(ROBOT).to_mapping(), "instruction": words}
        file = tmp_path / "told.yaml"
        file.write_text(profile_document([Profile.from_mapping(ROBOT, mapping)]))
        assert opened(tmp_path, folder, robot=str(file)).train[0].instruction == words


def test_subtasks_by_index_and_by_persistent_rows(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = written.write(tmp_path / "index", "v3.0", subtask_index=lambda e, v: np.arange((30, 24)[e]) // 10 % 3)
    texts = pa.table({"subtask_index": [0, 1, 2], "__index_level_0__": ["reach", "grasp", "lift"]})
    pq.write_table(texts, folder / "meta" / "subtasks.parquet")
    plain = opened(tmp_path, folder)
    assert {sample.instruction for sample in list(plain.train)[:30]} == {"touch the red cube"}
    assert any("also has subtasks; mapping.words: subtask uses them" in line for line in plain.left_out())
    told = [s.instruction for s in opened(tmp_path, folder, mapping={"words": "subtask"}).train][:30]
    assert told == ["reach"] * 10 + ["grasp"] * 10 + ["lift"] * 10

    def persistent(episode, _values):
        rows = [
            {"role": "assistant", "content": text, "style": style, "timestamp": time}
            for text, style, time in (("reach", "subtask", 0.2), ("a plan", "plan", 0.3), ("grasp", "subtask", 0.8))
        ]
        return pa.array([rows] * (30, 24)[episode])

    folder = written.write(tmp_path / "rows", "v3.0", language_persistent=persistent)
    told = [s.instruction for s in opened(tmp_path, folder, mapping={"words": "subtask"}).train][:30]
    assert told == ["touch the red cube"] * 4 + ["reach"] * 12 + ["grasp"] * 14
    with pytest.raises(SamplesError, match=r"has no subtasks: set mapping\.words to task"):
        opened(tmp_path, written.write(tmp_path / "none", "v3.0"), mapping={"words": "subtask"})


def one_bad(column, change):
    """Change a column of episode 1 alone."""
    return {column: lambda e, v: change(v) if e == 1 else v}


@pytest.mark.parametrize(
    ("lengths", "change", "said"),
    [
        ((30, 1, 24), {}, "episode 1: its 1 timestamps do not increase"),
        ((30, 24, 24), one_bad("observation.state", lambda v: nan(1, v)), "observation.state is not finite at 0.150 s"),
        ((30, 24, 24), one_bad("timestamp", lambda v: v / 2), "episode 1 has 40 frames per second"),
    ],
)
def test_one_bad_episode_is_left_out_by_name_and_the_rest_trains(tmp_path, lengths, change, said):
    samples = opened(tmp_path, written.write(tmp_path / "set", "v3.0", lengths=lengths, **change))
    assert [episode.key for episode in samples.datasets[0].stores[0].episodes] == ["0", "2"]
    assert len(samples.train) == 54
    lines = [line for line in samples.left_out() if line.startswith("skipped: ")]
    assert len(lines) == 1 and said in lines[0]
    assert samples.summary()[0]["left out"] == 1


def test_a_damaged_picture_costs_its_episode_alone(tmp_path):
    import pyarrow as pa

    lengths = (30, 24, 24)

    def pictures(episode, _values):
        cells = [{"bytes": written.png(written.grey(episode, n, 1)), "path": None} for n in range(lengths[episode])]
        if episode == 1:
            cells[9]["bytes"] = cells[9]["bytes"][:60]
        return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))

    damaged = {"observation.images.left": pictures}
    samples = opened(tmp_path, written.write(tmp_path / "set", "v3.0", lengths, video=False, **damaged))
    whole = opened(tmp_path, written.write(tmp_path / "whole", "v3.0", lengths, video=False))
    assert [episode.key for episode in samples.datasets[0].stores[0].episodes] == ["0", "2"]
    assert any("episode 1: observation.images.left of frame 9 cannot be decoded" in x for x in samples.left_out())
    for number, row in enumerate([*range(30), *range(54, 78)]):
        kept, same = samples.train[number], whole.train[row]
        np.testing.assert_array_equal(kept.state, same.state)
        np.testing.assert_array_equal(kept.actions, same.actions)
        for slot, picture in same.images.items():
            np.testing.assert_array_equal(kept.images[slot], picture)


def test_half_of_the_episodes_bad_is_refused_unless_they_may_be_left_out(tmp_path):
    folder = written.write(tmp_path / "set", "v3.0", lengths=(30, 1, 1, 24))
    with pytest.raises(
        SamplesError,
        match=r"2 of 4 episodes cannot be used: choose other episodes with "
        r"episodes",
    ) as caught:
        opened(tmp_path, folder)
    assert {problem.key for problem in caught.value.problems} == {
        "episode 1.timestamp",
        "episode 2.timestamp",
        "episodes",
    }
    for chosen in ({"skip_bad": True}, {"episodes": (0, 3)}, {"episodes": ("0", "3-3")}):
        samples = opened(tmp_path, folder, **chosen)
        assert [episode.key for episode in samples.datasets[0].stores[0].episodes] == ["0", "3"]
    with pytest.raises(SamplesError, match="has no episode 4, 5"):
        opened(tmp_path, folder, episodes=("3-5",))


def test_rows_behind_the_end_of_a_clip_are_no_pictures_of_the_next_episode(tmp_path):
    def shorter(rows):
        for camera in written.CAMERAS:
            rows[1][f"videos/{camera}/to_timestamp"] -= 5 / written.FPS

    folder = written.write(tmp_path / "set", "v3.0", lengths=(30, 24, 24))
    written.edit_episodes(folder, shorter)
    lines = opened(tmp_path, folder).left_out()
    assert any("episode 1: 5 of its 24 rows are after the end of their images" in line for line in lines)

    fast = written.write(
        tmp_path / "fast", "v3.0", lengths=(60, 24, 24), timestamp=lambda e, v: v * (1 + 0.05 * (e == 0))
    )
    assert any("episode 0: 3 of its 60 rows are after the end" in line for line in opened(tmp_path, fast).left_out())


def test_depths_are_no_pictures(tmp_path):
    import io
    import json

    import pyarrow as pa
    from PIL import Image

    def depths(episode, _values):
        content = io.BytesIO()
        Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)).save(content, "png")
        cells = [{"bytes": content.getvalue(), "path": None}] * (30, 24)[episode]
        return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))

    folder = written.write(tmp_path / "set", "v3.0", video=False, **{"observation.images.left": depths})
    with pytest.raises(
        SamplesError,
        match=r"observation\.images\.left of frame 0 has mode I;16, which is for depth "
        r"images",
    ):
        opened(tmp_path, folder)
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["observation.images.left"]["info"] = {"is_depth_map": True}
    (folder / "meta/info.json").write_text(json.dumps(info))
    assert "observation.images.left holds depths (is_depth_map)" in str(problems_of(settings(folder))[0])


def test_pictures_beside_the_tables(tmp_path):
    folder = written.write(tmp_path / "set", "v2.1", video="beside")
    samples = opened(tmp_path, folder)
    assert abs(float(samples.train[33].images["front"].mean()) - written.grey(1, 3, 0)) < 1.5
    for file in (folder / "images/observation.images.left").rglob("*.png"):
        file.unlink()
    with pytest.raises(SamplesError, match=r"observation\.images\.left of frame 0 is not there.*within the data set"):
        opened(tmp_path, folder)


def steps(values):
    return np.diff(values, axis=0, append=values[-1:])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (steps, "steps, or speeds"),
        (lambda v: steps(v) * written.FPS, "steps, or speeds"),
        (np.radians, "by 0.017"),
        (np.zeros_like, "never change, but the state does"),
        (lambda v: v[:, ::-1], "in another order than the state"),
        (lambda v: v * np.where(np.arange(12) % 6 == 5, 0.01, 1.0), "left_gripper by 0.00"),
        (lambda v: np.where(np.arange(12) % 6 == 5, 100 - v, v), "left_gripper by -"),
    ],
)
def test_actions_that_do_not_go_with_the_state_are_refused(tmp_path, change, said):
    folder = written.write(tmp_path / "set", "v3.0", lengths=(60, 50), action=lambda e, v: change(v))
    (problem,) = problems_of(settings(folder))
    assert said in problem.message and "set actions to measured" in problem.message
    assert not problems_of(settings(folder, actions="measured"))


def test_actions_in_units_of_their_own_have_channels_of_their_own(tmp_path):
    folder = written.write(
        tmp_path / "set", "v3.0", action=lambda e, v: v * np.where(np.arange(12) % 6 == 5, 0.01, 1.0)
    )
    own = {f"{side}_gripper": f"{side}_gripper" for side in ("left", "right")}
    samples = opened(tmp_path, folder, mapping={"action_channels": own})
    due = 0.0333 * np.arange(1, 9)
    np.testing.assert_allclose(samples.train[0].actions, in_policy_units(written.action(due)), atol=0.05)


# what another program wrote


@pytest.mark.parametrize("rate", [15, 18, 24])
def test_videos_with_another_rate_than_the_rows_are_no_pictures_of_them(tmp_path, rate, monkeypatch):
    monkeypatch.setattr(written, "VIDEO_FPS", rate)
    folder = written.write(tmp_path / "set", "v2.1", lengths=(30, 30))
    with pytest.raises(SamplesError, match=f"{rate} frames per second, and the data set 20|after the end of their"):
        opened(tmp_path, folder)


def test_the_texts_of_tasks_are_in_the_column_of_that_name(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = written.write(tmp_path / "set", "v3.0")
    table = {"task_index": [0, 1], "category": ["easy", "hard"], "task": ["reach", "grasp"]}
    for names, said in ((list(table), ["grasp", "reach"]), (["task_index", "category"], ["easy", "hard"])):
        pq.write_table(pa.table({name: table[name] for name in names}), folder / "meta" / "tasks.parquet")
        assert sorted({sample.instruction for sample in opened(tmp_path, folder).train}) == said
    pq.write_table(pa.table({**table, "other": ["a", "b"]}).drop(["task"]), folder / "meta" / "tasks.parquet")
    with pytest.raises(SamplesError, match="has the columns category, other and no task"):
        opened(tmp_path, folder)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_task_of_nothing_is_no_instruction(tmp_path, version):
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = written.write(tmp_path / "set", version)
    if version == "v3.0":
        pq.write_table(pa.table({"task_index": [0, 1], "task": [None, None]}), folder / "meta" / "tasks.parquet")
    else:
        lines = [json.dumps({"task_index": number, "task": None}) for number in (0, 1)]
        (folder / "meta" / "tasks.jsonl").write_text("\n".join(lines))
    with pytest.raises(SamplesError, match="episode 0 has no task: set instruction"):
        opened(tmp_path, folder)


def test_channels_of_vectors_count_with_their_scales_and_names(tmp_path, monkeypatch):
    scaled = {"units": "vector", "channels": {"left_gripper": {"name": "left_gripper", "scale": 0.01}}}
    expected = written.state(0.2)
    expected[5] /= 100
    samples = opened(tmp_path, written.write(tmp_path / "set", "v2.1"), mapping=scaled)
    np.testing.assert_allclose(samples.train[4].state, expected, atol=1e-4)

    order = [*range(6, 12), *range(6)]
    monkeypatch.setattr(written, "NAMES", [written.NAMES[place] for place in order])
    swapped = {name: lambda e, v: v[:, order] for name in ("observation.state", "action")}
    samples = opened(tmp_path, written.write(tmp_path / "swapped", "v2.1", **swapped), mapping=scaled)
    np.testing.assert_allclose(samples.train[4].state, expected, atol=1e-4)

    monkeypatch.setattr(written, "NAMES", [f"motor_{number}" for number in range(12)])
    foreign = {**scaled, "channels": {"left_gripper": {"name": "motor_5", "scale": 0.01}}}
    folder = written.write(tmp_path / "foreign", "v2.1")
    np.testing.assert_allclose(opened(tmp_path, folder, mapping=foreign).train[4].state, expected, atol=1e-4)
    with pytest.raises(SamplesError, match=r"(?s)no channel 'nosuch'.*no channel 'nonsense'"):
        opened(tmp_path, folder, mapping={**foreign, "channels": {"left_gripper": "nosuch", "nonsense": "motor_1"}})


def test_a_channel_name_that_occurs_twice_is_told_apart_by_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(written, "NAMES", list(written.JOINTS) * 2)
    folder = written.write(tmp_path / "set", "v2.1")
    names = {f"{side}_{joint}": joint for side in ("left", "right") for joint in written.JOINTS}
    with pytest.raises(SamplesError, match="no channel 'shoulder_pan'"):
        opened(tmp_path, folder, mapping={"channels": names})
    numbers = {name: {"name": str(place), "scale": 1.0 if place % 6 < 5 else 0.01} for place, name in enumerate(names)}
    samples = opened(tmp_path, folder, mapping={"channels": numbers})
    np.testing.assert_allclose(samples.train[4].state, in_policy_units(written.state(0.2)), atol=1e-4)


def test_numbers_that_change_within_a_file_of_the_same_size_are_read_again(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    noise = np.random.default_rng(0).normal(0.0, 0.1, (4, 2000, 12))
    changes = {name: lambda e, v: v + noise[e] for name in ("observation.state", "action")}
    folder = written.write(tmp_path / "set", "v3.0", lengths=(2000,) * 4, video=False, **changes)
    file = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)

    def write(shift):
        moved = [[value + shift for value in row] for row in table.column("action").to_pylist()]
        column = pa.array(moved, pa.list_(pa.float32()))
        with_it = table.set_column(table.column_names.index("action"), "action", column)
        pq.write_table(with_it, file, compression="none", use_dictionary=False, write_statistics=False)
        return file.stat().st_size

    assert write(0.0) == write(1.0)
    first = opened(tmp_path, folder, rate=1.0).train[0].actions[0, 0]
    write(2.0)
    assert opened(tmp_path, folder, rate=1.0).train[0].actions[0, 0] == pytest.approx(first + 1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (one_bad("observation.state", lambda v: v[:, :7]), "observation.state has 7 channels, and meta/info.json says"),
        (one_bad("action", lambda v: np.concatenate([v, v], axis=1)), "action has 24 channels, and meta/info.json"),
        (
            one_bad("observation.state", lambda v: v + 360.0 * (np.arange(v.size).reshape(v.shape) == 14)),
            "episode 1: 1 joints are recorded far outside their limits (left_elbow_flex",
        ),
    ],
)
def test_an_episode_of_another_shape_or_with_a_glitch_is_left_out_by_name(tmp_path, change, said):
    samples = opened(tmp_path, written.write(tmp_path / "set", "v3.0", lengths=(30, 24, 24), **change))
    assert [episode.key for episode in samples.datasets[0].stores[0].episodes] == ["0", "2"]
    assert said in "\n".join(samples.left_out())


@pytest.mark.parametrize("version", VERSIONS)
def test_an_episode_without_a_frame_is_left_out(tmp_path, version):
    samples = opened(tmp_path, written.write(tmp_path / "set", version, lengths=(30, 24, 0), video=False))
    assert [episode.key for episode in samples.datasets[0].stores[0].episodes] == ["0", "1"]
    assert "episode 2 has no frame" in "\n".join(samples.left_out())


def test_times_in_lists_of_one(tmp_path):
    import pyarrow as pa

    def listed(episode, seconds):
        return pa.array([[float(each)] for each in seconds], pa.list_(pa.float32()))

    samples = opened(tmp_path, written.write(tmp_path / "set", "v3.0", timestamp=listed))
    plain = opened(tmp_path, written.write(tmp_path / "plain", "v3.0"))
    for one, other in zip(samples.train, plain.train, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)


def test_episodes_exported_as_failed_are_skipped_where_only_successes_count(tmp_path):
    import json

    folder = written.write(tmp_path / "set", "v3.0", lengths=(30, 24, 24))
    told = [{"success": True, "seed": [3]}, {"success": False}, {"success": None}, "no episode"]
    (folder / "meta" / "xvla_ros.json").write_text(json.dumps({"episodes": told}))
    samples = opened(tmp_path, folder)
    assert [episode.key for episode in samples.datasets[0].stores[0].episodes] == ["0", "2"]
    assert "1 × failed" in "\n".join(samples.left_out())
    assert len(opened(tmp_path, folder, only_successes=False).datasets[0].stores[0].episodes) == 3
    with pytest.raises(SamplesError, match="has failed episodes alone"):
        opened(tmp_path, folder, episodes=(1,))


def test_a_range_that_runs_backwards_is_none():
    with pytest.raises(ValueError, match="expected numbers, or ranges"):
        settings("folder", episodes=("3-1",))


def test_a_lower_rate_goes_on_from_a_gap(tmp_path):
    def paused(episode, seconds):
        return np.where(np.arange(len(seconds)) < 20, seconds, seconds + 3.0)

    folder = written.write(tmp_path / "set", "v2.1", lengths=(60, 60), video=False, timestamp=paused)
    stamps = [sample.stamp / 1e9 for sample in opened(tmp_path, folder, rate=5.0).train][:15]
    assert len(stamps) == 15 and np.diff(stamps).min() > 0.14
