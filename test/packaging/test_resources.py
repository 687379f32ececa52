# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xvla_ros import resources

ROOT = Path(__file__).parents[2]
SHOW = "from xvla_ros.resources import config_dir; print(config_dir())"


def found_by_copy(site_packages: Path) -> subprocess.CompletedProcess[str]:
    """Ask a copy of the package in ``site_packages``, alone on the path, for its config folder."""
    (site_packages / "xvla_ros").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "resources.py"):
        shutil.copy(ROOT / "xvla_ros" / name, site_packages / "xvla_ros")
    code = f"import sys; sys.path.insert(0, {str(site_packages)!r}); {SHOW}"
    return subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)


def test_the_source_tree_comes_first():
    assert resources.config_dir() == ROOT / "config"


@pytest.mark.parametrize("site", ["lib/python3.11/site-packages", "local/lib/python3.12/dist-packages", "."])
def test_an_installed_package_finds_the_share_folder_of_its_prefix(tmp_path, site):
    config = tmp_path / "share" / "xvla_ros" / "config"
    config.mkdir(parents=True)
    result = found_by_copy(tmp_path / site)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).resolve() == config.resolve()


def test_a_package_without_its_config_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "lib" / "xvla_ros" / "resources.py"))
    with pytest.raises(FileNotFoundError, match=r"config folder of xvla_ros .*share/xvla_ros/config.*reinstall"):
        resources.config_dir()
