# SPDX-License-Identifier: Apache-2.0
from numpy import bool_, float64
from numpy.typing import NDArray

def follow(
    joints: NDArray[float64],
    start: NDArray[float64],
    times: NDArray[float64],
    targets: NDArray[float64],
    states: NDArray[float64],
    ending: NDArray[bool_],
    tolerance: float,
    overtaken: float,
    stands: float,
    most_extra_points: float,
    rounds: int,
    /,
) -> bool: ...
