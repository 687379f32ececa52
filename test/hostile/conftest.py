# SPDX-License-Identifier: Apache-2.0
"""The modules beside the tests are found by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs xvla_ros[lerobot]")
pytest.importorskip("av", reason="needs xvla_ros[lerobot]")
sys.path.append(str(Path(__file__).parent))
