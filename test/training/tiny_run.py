# SPDX-License-Identifier: Apache-2.0
"""Tiny runs as a program, one after the other, under torchrun or alone.

``tiny_run.py OUTPUT [KEY=VALUE …] [--die-at STEP] [-- OUTPUT …]``
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import yaml
from tiny import ARM, PAIR, TinySource, tiny_settings

from xvla_ros.training.parallel import connect
from xvla_ros.training.start import load_start, make_policy
from xvla_ros.training.trainer import Trainer


def main(output: str, changes: list[str], die_at: int | None) -> None:
    torch.set_num_threads(1)
    settings = tiny_settings(
        Path(output), **{key: yaml.safe_load(text) for key, text in (c.split("=") for c in changes)}
    )
    source = TinySource(PAIR, ARM)
    trainer = Trainer(settings, source, make_policy(settings, source, load_start(settings.model)), connect(settings))
    if settings.resume:
        trainer.resume()

    def after(step: int) -> None:
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.run(after)


def runs(arguments: list[str]) -> list[list[str]]:
    made: list[list[str]] = [[]]
    for each in arguments:
        if each == "--":
            made.append([])
        else:
            made[-1].append(each)
    return made


if __name__ == "__main__":
    for output, *given in runs(sys.argv[1:]):
        at = int(given.pop()) if "--die-at" in given else None
        main(output, [each for each in given if each != "--die-at"], at)
