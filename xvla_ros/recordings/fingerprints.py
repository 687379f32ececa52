"""What tells one recording from another without reading all of it, and one profile from another in what matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xvla_ros.robots.kinematics import KinematicsError, RobotDescription
from xvla_ros.robots.profile import Profile

BLOCKS, BLOCK = 16, 1 << 16  # of each file, at most
# What of a profile does not change a frame, a state or a path.
BESIDE = {"instruction", "smoothing", "schema_version"}
BESIDE_OF_POLICY = {
    "checkpoint", "revision", "domain_id", "waypoint_dt", "first_waypoint_offset", "denoising_steps", "image_pipeline",
}


def profile_essence(profile: Profile) -> dict[str, Any]:
    """Return the settings of a profile that frames, states and paths depend on, its URDFs among them."""
    settings = {key: value for key, value in profile.to_mapping().items() if key not in BESIDE}
    settings["policy"] = {key: value for key, value in settings["policy"].items() if key not in BESIDE_OF_POLICY}
    beside = profile.source.parent if profile.source is not None else None
    urdfs = {}
    for name, tool in profile.tools.items():
        try:
            urdfs[name] = RobotDescription.from_file(tool.urdf, beside).text if tool.urdf else ""
        except KinematicsError:  # named where the arm is needed
            urdfs[name] = ""
    return {**settings, "urdfs": urdfs}


def sampled(file: Path, blocks: int = BLOCKS) -> bytes:
    """Return blocks spread over a file: a recording of gigabytes is told from another by these and its size."""
    size = file.stat().st_size
    parts = []
    with file.open("rb") as stream:
        for index in range(blocks):
            stream.seek(index * max(size - BLOCK, 0) // (blocks - 1))
            parts.append(stream.read(BLOCK))
    return b"".join(parts)
