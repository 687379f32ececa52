# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/bring-up: their profiles load, their topics are the profiles', their pictures are up to date."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import wiring

from xvla_ros.robots import load_robot
from xvla_ros.robots.profile import Profile

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "bring-up"
ROBOTS = {"so101-pair": "so101_bimanual", "widowx": "widowx", "agibot": "agibot"}


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def profile_of(name: str, folder: Path) -> Profile:
    """The profile that a page tells to write."""
    (block,) = re.findall(r"```yaml\n(.*?)```", page(name), re.DOTALL)
    (robot,) = yaml.safe_load(block)["/**"]["ros__parameters"]
    (folder / f"{robot}.yaml").write_text(block, encoding="utf-8")
    assert f"`{robot}.yaml`" in page(name) and f"robot:={robot}.yaml" in page(name)
    return load_robot(folder / f"{robot}.yaml")


@pytest.mark.parametrize("name", ROBOTS)
def test_the_profile_of_a_page_is_that_of_the_arm_at_a_tenth_of_the_speed(name: str, tmp_path: Path) -> None:
    made, shipped = profile_of(name, tmp_path), load_robot(ROBOTS[name])
    assert made.safety.speed == 0.1 and shipped.safety.speed == 1.0
    assert made.joints.policy_order == shipped.joints.policy_order and made.commands == shipped.commands


@pytest.mark.parametrize("name", ROBOTS)
def test_the_topics_of_a_page_are_those_of_the_profile(name: str) -> None:
    profile = load_robot(ROBOTS[name])
    there = {*profile.joints.topics, *(group.topic for group in profile.commands.by_name.values())}
    there |= set(profile.cameras.by_topic)
    told = set(re.findall(r"`(/[\w/]+(?:/image_raw|joint_states|joint_trajectory))`", page(name)))
    assert told and told <= there
    assert set(profile.cameras.by_topic) <= told


@pytest.mark.parametrize("name", ROBOTS)
def test_a_page_has_what_a_first_motion_needs(name: str) -> None:
    text = page(name)
    for needed in (
        "emergency stop",
        "xvla check",
        "/xvla/stop",
        "safety.speed",
        "not_following",
        "Sources:",
        "hardware here",
    ):
        assert needed in text or (needed == "hardware here" and "No real arm was moved" in text), needed
    assert f"]({name}.svg)" in text


def test_pictures_are_those_that_the_script_makes() -> None:
    made = wiring.pictures()
    assert {path.name: path.read_text(encoding="utf-8") for path in PAGES.glob("*.svg")} == made, "make pictures"


def test_links_between_the_pages_lead_somewhere() -> None:
    for path in PAGES.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert (PAGES / target).exists(), f"{path.name}: {target}"
