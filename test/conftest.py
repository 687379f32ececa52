"""Options and fixtures that the tests of all rooms share."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens",
        metavar="DIR",
        default=None,
        help="folder of golden vectors; else $XVLA_GOLDENS, else shared/goldens in or above the repository",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: needs the full 0.9 B network or minutes")
