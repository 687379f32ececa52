# SPDX-License-Identifier: Apache-2.0
"""Rotations in every form agree with each other. Absolute numbers are pinned by the golden vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xvla_ros.robots import rotations as rot

components = st.floats(-1, 1, allow_subnormal=False)
quaternions = arrays(np.float64, (3, 4), elements=components).filter(lambda q: np.linalg.norm(q, axis=-1).min() > 0.1)
vectors = arrays(np.float64, 3, elements=st.floats(-1.8, 1.8))
layouts = st.sampled_from(rot.ROT6D_LAYOUTS)


def rot6d_of(quaternion: np.ndarray, layout: str) -> np.ndarray:
    return rot.matrix_to_rot6d(rot.quaternion_to_matrix(quaternion), layout)


def same_rotation(one: np.ndarray, other: np.ndarray, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(rot.quaternion_to_matrix(one), rot.quaternion_to_matrix(other), atol=atol)


@given(quaternions)
def test_quaternion_survives_the_matrix(quaternion: np.ndarray) -> None:
    matrix = rot.quaternion_to_matrix(quaternion)
    np.testing.assert_allclose(matrix @ np.swapaxes(matrix, -1, -2), np.broadcast_to(np.eye(3), (3, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(matrix), 1.0, atol=1e-12)
    back = rot.matrix_to_quaternion(matrix)
    assert (back[..., 3] >= 0).all()
    same_rotation(back, quaternion)


@given(quaternions, layouts)
def test_rot6d_survives_the_matrix(quaternion: np.ndarray, layout: str) -> None:
    matrix = rot.quaternion_to_matrix(quaternion)
    rot6d = rot.matrix_to_rot6d(matrix, layout)
    # The published Gram-Schmidt adds 1e-6 to its norms.
    np.testing.assert_allclose(rot.rot6d_to_matrix(rot6d, layout), matrix, atol=5e-6)
    same_rotation(rot.matrix_to_quaternion(rot.rot6d_to_matrix(rot6d, layout)), quaternion, atol=5e-6)


@given(quaternions, layouts, st.floats(0.2, 5.0))
def test_rot6d_needs_no_unit_length(quaternion: np.ndarray, layout: str, scale: float) -> None:
    rot6d = rot6d_of(quaternion, layout)
    np.testing.assert_allclose(
        rot.rot6d_to_matrix(scale * rot6d, layout), rot.rot6d_to_matrix(rot6d, layout), atol=2e-5
    )


@given(quaternions)
def test_layouts_hold_the_same_numbers(quaternion: np.ndarray) -> None:
    columns, interleaved = (rot6d_of(quaternion, layout) for layout in rot.ROT6D_LAYOUTS)
    np.testing.assert_array_equal(columns[:, [0, 3, 1, 4, 2, 5]], interleaved)


def test_layouts_of_the_identity() -> None:
    assert rot.matrix_to_rot6d(np.eye(3), "columns").tolist() == [1, 0, 0, 0, 1, 0]
    assert rot.matrix_to_rot6d(np.eye(3), "interleaved").tolist() == [1, 0, 0, 1, 0, 0]


@given(vectors)
def test_axis_angle_survives_both_ways(vector: np.ndarray) -> None:
    angle = np.linalg.norm(vector)
    turned = rot.matrix_to_axis_angle(rot.axis_angle_to_matrix(vector))
    assert np.linalg.norm(turned) <= np.pi + 1e-12
    if angle < np.pi - 1e-6:
        np.testing.assert_allclose(turned, vector, atol=1e-9)
    np.testing.assert_allclose(rot.axis_angle_to_matrix(turned), rot.axis_angle_to_matrix(vector), atol=1e-9)


@given(vectors)
def test_axis_angle_is_the_exponential_of_its_matrix(vector: np.ndarray) -> None:
    x, y, z = vector
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    series, term = np.eye(3), np.eye(3)
    for n in range(1, 40):
        term = term @ skew / n
        series = series + term
    np.testing.assert_allclose(rot.axis_angle_to_matrix(vector), series, atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-7, np.pi - 1e-9, np.pi])
def test_angles_at_both_ends(angle: float) -> None:
    vector = angle * np.array([0.6, 0.0, 0.8])
    matrix = rot.axis_angle_to_matrix(vector)
    found = rot.matrix_to_axis_angle(matrix)
    assert np.linalg.norm(found) == pytest.approx(angle, abs=1e-7)
    np.testing.assert_allclose(rot.axis_angle_to_matrix(found), matrix, atol=1e-7)


def test_leading_axes_are_free() -> None:
    batch = np.random.default_rng(0).normal(size=(2, 5, 4))
    assert rot6d_of(batch, "columns").shape == (2, 5, 6)
    assert rot.matrix_to_quaternion(rot.quaternion_to_matrix(batch)).shape == (2, 5, 4)
    assert rot.rpy_to_matrix(batch[..., :3]).shape == rot.axis_angle_to_matrix(batch[..., :3]).shape == (2, 5, 3, 3)
    assert rot.rot6d_to_axis_angle(np.ones((7, 6)) * [1, 0, 0, 0, 1, 0], "columns").shape == (7, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rot.rot6d_to_matrix(np.zeros(6), "columns"), "first vector of a rot6d has no direction"),
        (lambda: rot.rot6d_to_matrix([1, 0, 0, 2, 0, 0], "columns"), "second vector .* zero or parallel"),
        (lambda: rot.matrix_to_rot6d(np.eye(3), "rows"), "'rows' is unknown, expected columns or interleaved"),
        (lambda: rot.matrix_to_rot6d(np.eye(4), "columns"), r"matrix has shape \(4, 4\), expected \[..., 3, 3\]"),
        (lambda: rot.quaternion_to_matrix(np.zeros(4)), "quaternion has length 0"),
    ],
)
def test_what_is_no_rotation_is_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
