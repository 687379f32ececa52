# SPDX-License-Identifier: Apache-2.0
"""Options and fixtures that the tests of all rooms share."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from xvla_ros.evaluation.processes import free_domain
from xvla_ros.ros_env import prepare
from xvla_ros.simulation import offscreen

# A busy machine is no failure of a property. What is drawn depends on the test alone, so a run is the same anywhere;
# make test-all draws anew.
anywhere = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", anywhere, derandomize=True)
settings.register_profile("anew", anywhere)
profile = os.environ.get("HYPOTHESIS_PROFILE", "same")
settings.load_profile(profile)
if profile == "same":
    with contextlib.suppress(ImportError, AttributeError):  # another Hypothesis
        # Else constants of our modules are drawn too: of those that the tests before imported, of the same process.
        providers = importlib.import_module("hypothesis.internal.conjecture.providers")
        assert providers.is_local_module_file
        providers.is_local_module_file = lambda file: False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens",
        metavar="DIR",
        default=None,
        help="folder of golden vectors; else $XVLA_GOLDENS, else shared/goldens in or above the repository",
    )
    parser.addoption("--write-docs", action="store_true", help="write the pages that tests compare with what they find")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a job in the background, whose children inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    prepare()
    offscreen.choose()  # MuJoCo reads the choice when it is first imported, by whichever test that is
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"


@pytest.fixture
def ros_domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A ROS_DOMAIN_ID that nobody else on this machine uses, set for this process and its children."""
    with free_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        yield domain
