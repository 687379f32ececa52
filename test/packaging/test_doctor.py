# SPDX-License-Identifier: Apache-2.0
"""``xvla doctor``: what it finds, and what it calls wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xvla_ros.commands import doctor, main
from xvla_ros.commands.doctor import unmet_requirements, wrong_compute, wrong_machine, wrong_ros

SOUND = {"torch": "2.13.0", "torch uses": "AVX2, 2 threads", "GPUs of torch": "none", "CUDA of torch": "none"}


def test_it_prints_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", "7")
    main(["doctor"])
    printed = capsys.readouterr().out
    for part in (
        "xvla_ros",
        "python",
        "processor",
        "vectors",
        "memory",
        "torch uses",
        "rclpy",
        "middlewares",
        "DDS profile",
    ):
        assert f"\n  {part} " in printed
    assert "  ROS_DOMAIN_ID        7" in printed


def test_its_exit_code_says_whether_something_looks_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name in ("unmet_requirements", "wrong_machine", "wrong_compute", "wrong_ros"):
        monkeypatch.setattr(doctor, name, lambda *_: ())
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["wrong"] == []
    monkeypatch.setattr(doctor, "wrong_machine", lambda _: ["the fan is off"])
    assert main(["doctor"]) == 1
    assert "looks wrong: 1\n  - the fan is off" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ROS_DOMAIN_ID": "400"}, "ROS_DOMAIN_ID: '400'; expected a whole number from 0 to 101"),
        (
            {"ROS_DOMAIN_ID": "121"},
            "ROS_DOMAIN_ID: '121'; expected a whole number from 0 to 101, or on Linux from 215 to 232",
        ),
        ({"ROS_DOMAIN_ID": "lab"}, "ROS_DOMAIN_ID: 'lab'"),
        ({"RMW_IMPLEMENTATION": "rmw_nothing"}, "RMW_IMPLEMENTATION: rmw_nothing is not installed; installed: rmw_"),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"}, "nodes do not find each other"),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "HERE"}, "'HERE'; expected one of SUBNET, LOCALHOST"),
        ({"FASTRTPS_DEFAULT_PROFILES_FILE": "/no/such.xml"}, "/no/such.xml is not a file"),
        ({"AMENT_PREFIX_PATH": "/opt/ros/jazzy"}, "two ROS installations: /opt/ros/jazzy is sourced"),
    ],
)
def test_settings_of_ros_that_cannot_work_are_named(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("rclpy")
    monkeypatch.setattr(doctor, "_version", lambda _: "7.1.6")
    assert any(expected in each for each in wrong_ros(variables))


def test_settings_of_ros_that_work_are_not(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("rclpy")
    assert list(wrong_ros({"ROS_DOMAIN_ID": "215"})) == []
    assert list(wrong_ros({"ROS_DOMAIN_ID": "42", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"})) == []


def test_ros_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    assert ["rclpy: is not installed" in each for each in wrong_ros({})] == [True]


def test_torch_that_is_slow_or_broken_or_blind_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))  # whatever this machine has
    assert list(wrong_compute({**SOUND})) == []
    assert "cannot be imported: libc" in next(wrong_compute({**SOUND, "torch uses": "cannot be imported: libc"}))
    assert "no vector instructions" in next(wrong_compute({**SOUND, "torch uses": "DEFAULT, 2 threads"}))
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path("/dev/nvidia0")]))
    assert "does not find this machine's GPU: it was built for CPUs" in next(wrong_compute(SOUND))


def test_requirements_that_are_not_met_are_named(monkeypatch: pytest.MonkeyPatch):
    needed = ["numpy<1", "no-such-distribution>=2", "pillow", "numpy<1; extra == 'old'"]
    monkeypatch.setattr(doctor, "_requirements", lambda: needed)
    first, second = unmet_requirements()
    assert first.startswith("numpy: found 2") and "pip install 'numpy<1'" in first
    assert second.startswith("no-such-distribution: found not installed; xvla_ros needs >=2")


def test_a_small_machine_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "memory_bytes", lambda: 2**31)
    assert "memory: 2.0 GiB" in next(wrong_machine({}))
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert any("cannot be written; set ROS_LOG_DIR" in each for each in wrong_machine({}))
