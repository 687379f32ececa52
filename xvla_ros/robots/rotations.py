# SPDX-License-Identifier: Apache-2.0
"""Rotations as arms and checkpoints write them: matrices, quaternions (x, y, z, w), axis-angle and two rot6d layouts.

Every function takes and gives float64 arrays with any number of leading axes. The two rot6d layouts hold the same
numbers in another order, so the layout is always an argument, never a guess:

- ``columns``: the first column, then the second, ``[R[:, 0] | R[:, 1]]``; identity 1 0 0 0 1 0. LIBERO checkpoints.
- ``interleaved``: row by row, ``R[:, :2].reshape(6)``; identity 1 0 0 1 0 0. Bridge, AgiBot, Calvin, RoboTwin, AgileX.

SciPy turns one form into another. rot6d is kept by hand: SciPy has none, and its orthogonalisation is not the
Gram-Schmidt of the published code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

COLUMNS, INTERLEAVED = "columns", "interleaved"
ROT6D_LAYOUTS = (COLUMNS, INTERLEAVED)

# The published code adds this to both norms of its Gram-Schmidt.
_NORM_EPS = 1e-6
# A second vector that keeps less than this of its length beside the first is parallel to it.
_PARALLEL = 1e-5

Array = NDArray[np.float64]


def matrix_to_rot6d(matrix: ArrayLike, layout: str) -> Array:
    """Write rotation matrices [..., 3, 3] as rot6d [..., 6].

    Raises:
        ValueError: on an unknown layout or a wrong shape.
    """
    found = _shaped(matrix, (3, 3), "matrix")
    first_two = found[..., :, :2]
    if _known(layout) == COLUMNS:
        first_two = np.swapaxes(first_two, -1, -2)
    return first_two.reshape(*found.shape[:-2], 6).copy()


def rot6d_to_matrix(rot6d: ArrayLike, layout: str) -> Array:
    """Make rotation matrices [..., 3, 3] of rot6d [..., 6] by Gram-Schmidt; the input need not be orthonormal.

    Raises:
        ValueError: on an unknown layout or a wrong shape, or where the two vectors are zero or parallel.
    """
    columns = _columns(rot6d, layout)
    first = _unit(columns[..., 0, :], "first")
    along = np.sum(first * columns[..., 1, :], axis=-1, keepdims=True)
    length = np.linalg.norm(columns[..., 1, :], axis=-1, keepdims=True)
    second = _unit(columns[..., 1, :] - along * first, "second", least=_PARALLEL * length)
    return np.stack([first, second, np.cross(first, second)], axis=-1)


def rot6d_misfit(rot6d: ArrayLike, layout: str) -> Array:
    """Return how far rot6d [..., 6], read in ``layout``, is from two orthogonal unit vectors: [...], 0 for a rotation.

    It is the largest deviation of their squared lengths from 1 and of their product from 0. A rotation written in one
    layout and read in the other is far from 0 at most poses.
    """
    columns = _columns(rot6d, layout)
    off = columns @ np.swapaxes(columns, -1, -2) - np.eye(2)
    return np.asarray(np.abs(off).max(axis=(-1, -2)), dtype=np.float64)


def matrix_to_quaternion(matrix: ArrayLike) -> Array:
    """Turn rotation matrices [..., 3, 3] into unit quaternions [..., 4], x y z w, with w ≥ 0.

    A matrix that is slightly off counts as the nearest rotation.
    """
    found = _shaped(matrix, (3, 3), "matrix")
    return _reshaped(_of_matrices(found).as_quat(canonical=True), found.shape[:-2], 4)


def quaternion_to_matrix(quaternion: ArrayLike) -> Array:
    """Turn quaternions [..., 4], x y z w, of any length but zero into rotation matrices [..., 3, 3].

    Raises:
        ValueError: on a quaternion of length zero.
    """
    found = _shaped(quaternion, (4,), "quaternion")
    if not found.any(axis=-1).all():
        raise ValueError("quaternion has length 0, expected a rotation: x y z w, not all of them 0")
    return _reshaped(Rotation.from_quat(found.reshape(-1, 4)).as_matrix(), found.shape[:-1], 3, 3)


def matrix_to_axis_angle(matrix: ArrayLike) -> Array:
    """Turn rotation matrices [..., 3, 3] into rotation vectors [..., 3] in radians, at most π long."""
    found = _shaped(matrix, (3, 3), "matrix")
    return _reshaped(_of_matrices(found).as_rotvec(), found.shape[:-2], 3)


def axis_angle_to_matrix(axis_angle: ArrayLike) -> Array:
    """Turn rotation vectors [..., 3] in radians into rotation matrices [..., 3, 3]."""
    found = _shaped(axis_angle, (3,), "axis_angle")
    return _reshaped(Rotation.from_rotvec(found.reshape(-1, 3)).as_matrix(), found.shape[:-1], 3, 3)


def rot6d_to_axis_angle(rot6d: ArrayLike, layout: str) -> Array:
    """Turn rot6d [..., 6] into rotation vectors [..., 3] in radians, as LIBERO wants them."""
    return matrix_to_axis_angle(rot6d_to_matrix(rot6d, layout))


def rpy_to_matrix(rpy: ArrayLike) -> Array:
    """Turn roll, pitch, yaw [..., 3] in radians about fixed axes, as URDFs write them, into matrices [..., 3, 3]."""
    found = _shaped(rpy, (3,), "rpy")
    return _reshaped(Rotation.from_euler("xyz", found.reshape(-1, 3)).as_matrix(), found.shape[:-1], 3, 3)


def _of_matrices(matrices: Array) -> Rotation:
    return Rotation.from_matrix(matrices.reshape(-1, 3, 3))


def _reshaped(values: Array, leading: tuple[int, ...], *own: int) -> Array:
    # SciPy takes several leading axes only from release 1.17 on
    return np.asarray(values, dtype=np.float64).reshape(*leading, *own)


def _columns(rot6d: ArrayLike, layout: str) -> Array:
    """Return the two columns [..., 2, 3] that rot6d [..., 6] holds."""
    found = _shaped(rot6d, (6,), "rot6d")
    if _known(layout) == COLUMNS:
        return found.reshape(*found.shape[:-1], 2, 3)
    return np.swapaxes(found.reshape(*found.shape[:-1], 3, 2), -1, -2)


def _unit(vector: Array, which: str, least: ArrayLike = 0.0) -> Array:
    norm = np.linalg.norm(vector, axis=-1, keepdims=True)
    if np.any(norm <= np.maximum(least, _NORM_EPS)):
        raise ValueError(
            f"the {which} vector of a rot6d has no direction (length {float(norm.min()):.2g}, expected about 1): "
            "the two vectors are zero or parallel; check the layout"
        )
    return np.asarray(vector / (norm + _NORM_EPS), dtype=np.float64)


def _known(layout: str) -> str:
    if layout not in ROT6D_LAYOUTS:
        raise ValueError(f"rot6d layout {layout!r} is unknown, expected {' or '.join(ROT6D_LAYOUTS)}")
    return layout


def _shaped(values: ArrayLike, tail: tuple[int, ...], name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.shape[-len(tail) :] != tail:
        raise ValueError(f"{name} has shape {array.shape}, expected [..., {', '.join(map(str, tail))}]")
    return array
