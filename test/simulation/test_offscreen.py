# SPDX-License-Identifier: Apache-2.0
"""The choice of a way to render, and what is said when there is none."""

import os
import subprocess
import sys

import pytest

from xvla_ros.errors import SimulationError
from xvla_ros.simulation import offscreen


def run(code, **variables):
    """A fresh interpreter: MuJoCo and PyOpenGL settle on one way to render for the life of a process."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_chosen_here_renders():
    said = run(
        "from xvla_ros.simulation import offscreen; import os, mujoco;"
        "offscreen.context(32, 32).make_current(); print(os.environ['MUJOCO_GL'])"
    )
    assert said in ("egl", "osmesa")


def test_the_users_choice_stands():
    assert run("import xvla_ros.simulation, os; print(os.environ['MUJOCO_GL'])", MUJOCO_GL="glfw") == "glfw"


def test_a_choice_that_fails_names_the_package_to_install():
    code = (
        "from xvla_ros.errors import SimulationError\n"
        "from xvla_ros.simulation import offscreen\n"
        "try: offscreen.context(32, 32)\n"
        "except SimulationError as error: print(error)"
    )
    said = run(code, MUJOCO_GL="egl", PYOPENGL_PLATFORM="glx")
    assert "MUJOCO_GL=egl" in said and "libegl1" in said


def test_without_any_library_the_message_names_debians_packages(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(offscreen, "_egl_has_a_display", lambda: False)
    monkeypatch.setattr(offscreen, "_has_osmesa", lambda: False)
    with pytest.raises(SimulationError, match=r"libegl1 libegl-mesa0 libgl1-mesa-dri.*libosmesa6"):
        offscreen.context(32, 32)
