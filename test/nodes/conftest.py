"""No test passes in which a command leapt."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import window_monitor


@pytest.fixture(autouse=True)
def every_window_goes_on():
    """Judge the monitors of every stand-in there was, after the test."""
    yield
    window_monitor.judge_all()
