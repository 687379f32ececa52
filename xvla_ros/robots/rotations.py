"""Rotations as arms and checkpoints write them: matrices, quaternions (x, y, z, w), axis-angle and two rot6d layouts.

Every function takes and gives float64 arrays with any number of leading axes. The two rot6d layouts hold the same
numbers in another order, so the layout is always an argument, never a guess:

- ``columns``: the first column, then the second, ``[R[:, 0] | R[:, 1]]``; identity 1 0 0 0 1 0. LIBERO checkpoints.
- ``interleaved``: row by row, ``R[:, :2].reshape(6)``; identity 1 0 0 1 0 0. Bridge, AgiBot, Calvin, RoboTwin, AgileX.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

COLUMNS, INTERLEAVED = "columns", "interleaved"
ROT6D_LAYOUTS = (COLUMNS, INTERLEAVED)

# The published code adds this to both norms of its Gram-Schmidt.
_NORM_EPS = 1e-6
# A second vector that keeps less than this of its length beside the first is parallel to it.
_PARALLEL = 1e-5
# Below this angle in radians the axis is noise; sin(x)/x is 1 to double precision.
_SMALL_ANGLE = 1e-9

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
    found = _shaped(rot6d, (6,), "rot6d")
    shape = (2, 3) if _known(layout) == COLUMNS else (3, 2)
    pairs = found.reshape(*found.shape[:-1], *shape)
    columns = pairs if layout == COLUMNS else np.swapaxes(pairs, -1, -2)
    first = _unit(columns[..., 0, :], "first")
    along = np.sum(first * columns[..., 1, :], axis=-1, keepdims=True)
    length = np.linalg.norm(columns[..., 1, :], axis=-1, keepdims=True)
    second = _unit(columns[..., 1, :] - along * first, "second", least=_PARALLEL * length)
    return np.stack([first, second, np.cross(first, second)], axis=-1)


def rot6d_misfit(rot6d: ArrayLike, layout: str) -> Array:
    """Return how far rot6d [..., 6], read in ``layout``, is from two orthogonal unit vectors: [...], 0 for a rotation.

    It is the largest deviation of their squared lengths from 1 and of their product from 0. A rotation written in the
    one layout and read in the other is far from 0 at most poses.
    """
    found = _shaped(rot6d, (6,), "rot6d")
    shape = (2, 3) if _known(layout) == COLUMNS else (3, 2)
    pairs = found.reshape(*found.shape[:-1], *shape)
    columns = pairs if layout == COLUMNS else np.swapaxes(pairs, -1, -2)
    off = columns @ np.swapaxes(columns, -1, -2) - np.eye(2)
    return np.asarray(np.abs(off).max(axis=(-1, -2)), dtype=np.float64)


def convert_rot6d(rot6d: ArrayLike, source: str, target: str) -> Array:
    """Reorder rot6d [..., 6] from one layout to the other, numbers untouched."""
    found = _shaped(rot6d, (6,), "rot6d")
    if _known(source) == _known(target):
        return found.copy()
    shape = (2, 3) if source == COLUMNS else (3, 2)
    return np.swapaxes(found.reshape(*found.shape[:-1], *shape), -1, -2).reshape(found.shape).copy()


def matrix_to_quaternion(matrix: ArrayLike) -> Array:
    """Turn rotation matrices [..., 3, 3] into unit quaternions [..., 4], x y z w, with w ≥ 0.

    The quaternion is the eigenvector of the largest eigenvalue of a symmetric 4×4 matrix (Bar-Itzhack, 2000), which is
    stable at every angle and takes the nearest rotation where the matrix is slightly off.
    """
    r = _shaped(matrix, (3, 3), "matrix")
    k = np.empty((*r.shape[:-2], 4, 4))
    trace = np.trace(r, axis1=-2, axis2=-1)
    for i in range(3):
        k[..., i, i] = 2.0 * r[..., i, i] - trace
        j, l = (i + 1) % 3, (i + 2) % 3  # noqa: E741 - indices of a matrix
        k[..., i, j] = k[..., j, i] = r[..., i, j] + r[..., j, i]
        k[..., i, 3] = k[..., 3, i] = r[..., l, j] - r[..., j, l]
    k[..., 3, 3] = trace
    _, vectors = np.linalg.eigh(k)
    quaternion: Array = vectors[..., :, -1]
    return np.where(quaternion[..., 3:] < 0.0, -quaternion, quaternion)


def quaternion_to_matrix(quaternion: ArrayLike) -> Array:
    """Turn quaternions [..., 4], x y z w, of any length but zero into rotation matrices [..., 3, 3].

    Raises:
        ValueError: on a quaternion of length zero.
    """
    found = _shaped(quaternion, (4,), "quaternion")
    norm = np.linalg.norm(found, axis=-1, keepdims=True)
    if np.any(norm == 0.0):
        raise ValueError("quaternion has length 0, expected a rotation: x y z w with at least one of them not 0")
    x, y, z, w = np.moveaxis(found / norm, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quaternion_to_axis_angle(quaternion: ArrayLike) -> Array:
    """Turn unit quaternions [..., 4], x y z w, into rotation vectors [..., 3] in radians, at most π long."""
    found = _shaped(quaternion, (4,), "quaternion")
    found = np.where(found[..., 3:] < 0.0, -found, found)
    vector = found[..., :3]
    sine = np.linalg.norm(vector, axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(sine, found[..., 3:])
    # Near zero the angle over the sine of its half tends to 2.
    scale = np.where(sine > _SMALL_ANGLE, angle / np.where(sine > _SMALL_ANGLE, sine, 1.0), 2.0)
    return np.asarray(vector * scale, dtype=np.float64)


def axis_angle_to_quaternion(axis_angle: ArrayLike) -> Array:
    """Turn rotation vectors [..., 3] in radians into unit quaternions [..., 4], x y z w."""
    found = _shaped(axis_angle, (3,), "axis_angle")
    angle = np.linalg.norm(found, axis=-1, keepdims=True)
    # sinc is sin(πx)/(πx) in numpy, and finite at 0.
    return np.concatenate([found * 0.5 * np.sinc(angle / (2.0 * np.pi)), np.cos(angle / 2.0)], axis=-1)


def matrix_to_axis_angle(matrix: ArrayLike) -> Array:
    """Turn rotation matrices [..., 3, 3] into rotation vectors [..., 3] in radians."""
    return quaternion_to_axis_angle(matrix_to_quaternion(matrix))


def axis_angle_to_matrix(axis_angle: ArrayLike) -> Array:
    """Turn rotation vectors [..., 3] in radians into rotation matrices [..., 3, 3]."""
    return quaternion_to_matrix(axis_angle_to_quaternion(axis_angle))


def rot6d_to_axis_angle(rot6d: ArrayLike, layout: str) -> Array:
    """Turn rot6d [..., 6] into rotation vectors [..., 3] in radians, as LIBERO wants them."""
    return matrix_to_axis_angle(rot6d_to_matrix(rot6d, layout))


def rot6d_to_quaternion(rot6d: ArrayLike, layout: str) -> Array:
    """Turn rot6d [..., 6] into unit quaternions [..., 4], x y z w."""
    return matrix_to_quaternion(rot6d_to_matrix(rot6d, layout))


def rpy_to_matrix(rpy: ArrayLike) -> Array:
    """Turn roll, pitch, yaw [..., 3] in radians about fixed axes, as URDFs write them, into matrices [..., 3, 3]."""
    found = _shaped(rpy, (3,), "rpy")
    about = np.zeros((3, *found.shape))
    for axis in range(3):
        about[axis, ..., axis] = found[..., axis]
    roll, pitch, yaw = axis_angle_to_matrix(about)
    return np.asarray(yaw @ pitch @ roll, dtype=np.float64)


def quaternion_to_rot6d(quaternion: ArrayLike, layout: str) -> Array:
    """Turn quaternions [..., 4], x y z w, into rot6d [..., 6]."""
    return matrix_to_rot6d(quaternion_to_matrix(quaternion), layout)


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
