# SPDX-License-Identifier: Apache-2.0
"""Prints what pip must bring: the dependencies in pyproject.toml beside this file or above, and of the extras named."""

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(extras: list[str]) -> None:
    """Print a requirement a line, without torch, which has an index of its own."""
    file = next(folder / "pyproject.toml" for folder in (HERE, HERE.parent) if (folder / "pyproject.toml").is_file())
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(each for name in extras for each in project["optional-dependencies"][name])]
    print("\n".join(each for each in dict.fromkeys(asked) if each != "torch"))


if __name__ == "__main__":
    main(sys.argv[1:])
