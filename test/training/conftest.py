# SPDX-License-Identifier: Apache-2.0
"""Runs of a network of a few thousand weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny import ARM, PAIR, TinySource, tiny_settings

from xvla_ros.training.config import TrainSettings
from xvla_ros.training.parallel import connect
from xvla_ros.training.start import load_start, make_policy
from xvla_ros.training.trainer import Trainer

Begin = Callable[..., Trainer]


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps what it was first told for the whole process; and many threads only get in each other's way."""
    from accelerate.state import AcceleratorState, PartialState

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """Makes a trainer: begin("name", steps=…, source=…); the run's folder is ``tmp_path / name``."""

    def make(name: str | Path = "run", source: TinySource | None = None, **changes: Any) -> Trainer:
        settings: TrainSettings = tiny_settings(tmp_path / name, **changes)
        data = source or TinySource(PAIR, ARM)
        return Trainer(settings, data, make_policy(settings, data, load_start(settings.model)), connect(settings))

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a short run over two robots, to be read and never written."""
    from accelerate.state import AcceleratorState, PartialState

    folder = tmp_path_factory.mktemp("trained")
    settings = tiny_settings(folder, steps=4)
    source = TinySource(PAIR, ARM)
    Trainer(settings, source, make_policy(settings, source, None), connect(settings)).run()
    AcceleratorState._reset_state()
    PartialState._reset_state()
    return folder / "checkpoint"
