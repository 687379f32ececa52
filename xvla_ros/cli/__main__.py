"""``python -m xvla_ros.cli``, as launchers of several processes need it."""

from __future__ import annotations

import sys

from xvla_ros.cli import main

if __name__ == "__main__":
    sys.exit(main())
