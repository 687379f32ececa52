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

from xvla_ros.recordings.recording import SamplesError
from xvla_ros.robots.profile import Profile, load_robot, profile_document
from xvla_ros.training.config import DatasetSettings
from xvla_ros.training.data.datasets import open_datasets, survey

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
    with pytest.raises(SamplesError, match=r"mapping\.pictures.*turns or crops front, left_wrist.*as_sent or as_seen"):
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


def problems_of(entry):
    try:
        return survey([entry])
    except SamplesError as error:
        return error.problems


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
            "radians taken for degrees",
        ),
        ({}, {"channels": {}}, "far outside of their limits"),
        ({"timestamp": lambda e, v: v / 2}, {}, "mixed rates: episode 0 has 40 frames a second"),
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


def test_damaged_and_missing_files_are_named(tmp_path):
    folder = written.write(tmp_path / "set", "v2.1")
    video = folder / "videos/chunk-000/observation.images.left/episode_000001.mp4"
    content = video.read_bytes()
    video.unlink()
    assert "observation.images.left/episode_000001.mp4: the file is missing" in str(problems_of(settings(folder))[0])
    video.write_bytes(content[: len(content) // 2])
    with pytest.raises(SamplesError, match=r"episode_000001\.mp4"):
        opened(tmp_path, folder)
    data = folder / "data/chunk-000/episode_000000.parquet"
    data.write_bytes(data.read_bytes()[:-20])
    assert "episode 0 cannot be read" in str(problems_of(settings(folder))[0])
    (folder / "meta/info.json").write_text('{"codebase_version": "v1.6", "features": {}, "fps": 3}')
    assert "is of version v1.6" in str(problems_of(settings(folder))[0])
    assert "there is no such file" in str(problems_of(settings(folder.parent))[0])
