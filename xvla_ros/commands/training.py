# SPDX-License-Identifier: Apache-2.0
"""Commands that train: ``xvla train``, ``xvla pretrain-vision``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from xvla_ros.commands.options import Command, Option

Config = Annotated[
    str, Option(metavar="CONFIG", positional=True), "file of settings (YAML), or the name of a shipped one"
]
Overrides = Annotated[
    tuple[str, ...], Option(metavar="KEY=VALUE", positional=True), "in place of what the file says: batch.size=32"
]


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train a policy from recordings, or adapt a checkpoint to a robot.

    examples:
      xvla train my_arm.yaml
      xvla train adapt_prompt.yaml model.checkpoint=base datasets.0.paths='[demos/*]' steps=2000
      xvla train my_arm.yaml resume=true
      accelerate launch -m xvla_ros train my_arm.yaml strategy=fsdp

    files to begin with: phase1.yaml, adapt_prompt.yaml, adapt_lora.yaml, adapt_full.yaml, found by these names
    """

    config: Config
    overrides: Overrides = ()
    dry_run: Annotated[bool, "open everything, say what would be trained, and stop"] = False

    def run(self) -> int:
        """See ``xvla_ros.training.run``."""
        from xvla_ros.training.run import train

        return train(self.config, self.overrides, dry_run=self.dry_run)


@dataclass(frozen=True, kw_only=True)
class PretrainVision(Command):
    """Train a vision tower on what a simulator knows of its own pictures, before any demonstration.

    examples:
      xvla pretrain-vision shipped/vision.yaml output=runs/vision
      xvla pretrain-vision shipped/vision.yaml output=runs/vision resume=true steps=20000
    """

    config: Config
    overrides: Overrides = ()

    def run(self) -> int:
        """See ``xvla_ros.training.run``."""
        from xvla_ros.training.run import pretrain_vision

        return pretrain_vision(self.config, self.overrides)
