# SPDX-License-Identifier: Apache-2.0
"""Labels agree with the pictures they come with."""

from __future__ import annotations

import numpy as np
import pytest

from xvla_ros.errors import SimulationError
from xvla_ros.robots.profile import Profile, load_profile

pytest.importorskip("mujoco")
pytest.importorskip("pinocchio")

from xvla_ros.training.data.labels import Labeller, object_names

PAIR = "so101_bimanual"


@pytest.fixture(scope="module")
def labeller():
    made = Labeller(load_profile(PAIR)[PAIR], "touch", pixels=128)
    yield made
    made.close()


def test_a_cube_has_its_colour_where_its_label_says(labeller):
    channel = {"red_cube": 0, "green_cube": 1, "blue_cube": 2}
    names, hits, asked = labeller.names, 0, 0
    for seed in range(20):
        images, labels = labeller.draw(np.random.default_rng(seed), names)
        for name, colour in channel.items():
            k = names.index(name)
            if not labels.inside[0, k] or np.abs(labels.seen[0, k, :2]).max() > 0.95:
                continue
            u, v = ((labels.seen[0, k, :2] + 1) * 64).astype(int)
            asked += 1
            hits += int(images["front"][v, u].argmax()) == colour
    assert asked > 20
    assert hits / asked > 0.8, "the rest is hidden by an arm"


def test_a_view_that_is_turned_and_cropped_has_its_labels_so_too(labeller):
    mapping = load_profile(PAIR)[PAIR].to_mapping()
    mapping["cameras"]["front"] |= {"rotate": 270, "crop": [16, 0, 96, 112]}
    other = Labeller(Profile.from_mapping(PAIR, mapping), "touch", pixels=128)
    try:
        names, cubes = labeller.names, 0
        whole, (image, labels) = (each.draw(np.random.default_rng(3), names) for each in (labeller, other))
    finally:
        other.close()
    np.testing.assert_array_equal(image["front"], np.rot90(whole[0]["front"])[0:112, 16:112])
    np.testing.assert_array_equal(labels.seen[..., 2], whole[1].seen[..., 2])
    for k in np.flatnonzero(labels.inside[0]):
        u, v = ((labels.seen[0, k, :2] + 1) / 2 * (96, 112)).astype(int)
        before = ((whole[1].seen[0, k, :2] + 1) * 64).astype(int)
        cubes += 1
        np.testing.assert_array_equal(image["front"][v, u], whole[0]["front"][before[1], before[0]])
    assert cubes > 0


def test_a_crop_beyond_what_is_drawn_is_named():
    mapping = load_profile(PAIR)[PAIR].to_mapping()
    mapping["cameras"]["left_wrist"]["crop"] = [0, 0, 320, 240]
    with pytest.raises(SimulationError, match=r"camera left_wrist: crop .* reaches to 320x240.*128x128"):
        Labeller(Profile.from_mapping(PAIR, mapping), "touch", pixels=128)


def test_the_same_number_gives_the_same_picture(labeller):
    names = labeller.names
    first = labeller.draw(np.random.default_rng(5), names)
    labeller.draw(np.random.default_rng(6), names)
    again = labeller.draw(np.random.default_rng(5), names)
    np.testing.assert_array_equal(first[0]["front"], again[0]["front"])
    np.testing.assert_array_equal(first[1].seen, again[1].seen)


def test_what_a_scene_lacks_is_not_known(labeller):
    labels = labeller.labels(("red_cube", "teapot"))
    assert labels.known.tolist() == [True, False]
    assert not labels.inside[:, 1].any()


def test_objects_of_several_scenes_have_one_order(labeller):
    names = object_names([labeller])
    assert names == tuple(sorted(names))
    assert {"red_cube", "bowl", "left_tool", "right_tool"} <= set(names)
