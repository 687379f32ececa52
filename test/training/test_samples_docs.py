# SPDX-License-Identifier: Apache-2.0
"""The reference names every setting of the data with its description."""

from __future__ import annotations

from pathlib import Path

import pytest

from xvla_ros.recordings.lerobot_mapping import ChannelSource, LeRobotMapping
from xvla_ros.training import config as settings

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "samples.md"


@pytest.mark.parametrize(
    "section",
    [settings.DatasetSettings, LeRobotMapping, ChannelSource, settings.Split, settings.Early, settings.Augmentation],
)
def test_every_setting_is_in_the_reference(section):
    text = REFERENCE.read_text(encoding="utf-8")
    for name, field in section.model_fields.items():
        assert f"| `{name}` |" in text
        assert field.description is None or field.description in text
