"""What a run computes in: a decision of the device, unless the settings say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from xvla_ros.model.network.config import XvlaConfig
from xvla_ros.model.runtime.precision import choose
from xvla_ros.training.config import TrainSettings
from xvla_ros.training.state import STATES, last_settings


def with_precision(
    settings: TrainSettings, config: XvlaConfig, batch: int, say: Callable[[str], object]
) -> TrainSettings:
    """Decide what a run computes in: what it says, what it has computed in so far, or the fastest on the device.

    Args:
        settings: of the run.
        config: of its network.
        batch: samples that a process computes at once.
        say: takes a line that says what was decided, and a warning where another type is faster.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    PartialState(cpu=device.type == "cpu")
    wanted = "" if settings.precision == "auto" else settings.precision
    if not wanted and settings.resume:
        wanted = last_settings(Path(settings.output) / STATES).get("precision", "")
    found = [choose(config, device, wanted, batch=batch)]
    broadcast_object_list(found)  # every process takes what the first has found
    say(f"{'warning: ' if found[0].is_slow else ''}precision: {found[0]}")
    return settings.model_copy(update={"precision": found[0].dtype})
