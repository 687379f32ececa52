# SPDX-License-Identifier: Apache-2.0
"""``python -m xvla_ros``: the command ``xvla``, as launchers of several processes need it."""

from __future__ import annotations

import sys

from xvla_ros.commands import main

if __name__ == "__main__":
    sys.exit(main())
