# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: looked at without torch, loaded into a policy, saved.

Accepted are LeRobot's folders and the original authors', with or without the ``model.`` prefix, with vendored or native
Florence-2 names, in float32 or bfloat16, in one file or in shards, with a LoRA adapter or without. Weights are read
from safetensors only. What does not fit fails by name, all at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from xvla_ros.errors import CheckpointError

from .inspection import CheckpointInfo, inspect
from .pipelines import ALL_STEPS, PROFILE_STEPS

if TYPE_CHECKING:
    from .loading import build, load, read_files, save

__all__ = [
    "ALL_STEPS", "PROFILE_STEPS", "CheckpointError", "CheckpointInfo", "build", "inspect", "load", "read_files", "save",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Import what needs torch when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".loading", __name__), name)
