# SPDX-License-Identifier: Apache-2.0
"""Any file of at most 10 MB is read or refused by name, within 500 MB: readers times attacks, in a process apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MOST_MB = 500
READERS = {
    "checkpoints": (
        "config", "config of the original", "record", "preprocessor", "postprocessor", "tokenizer", "safetensors",
        "statistics", "index", "adapter",
    ),
    "texts": ("profile", "training", "mapping", "paraphrases", "urdf"),
    "recordings": (
        "mcap", "mcap with zstd", "mcap with lz4", "sqlite", "bag metadata", "info", "episodes", "tasks", "parquet",
        "video", "png", "jpeg",
    ),
    "messages": (),
}  # fmt: skip

# What must not be read, however little it takes.
REFUSED = (
    ("config", "pipe"), ("config", "device"), ("config", "depth 1000000000"), ("config", "mlp_ratio nan"),
    ("record", "pipe"), ("preprocessor", "device"), ("safetensors", "huge shape"), ("adapter", "circle of links"),
    ("tokenizer", "pre_tokenizer without end"), ("tokenizer", "normalizer without end"),
    ("profile", "bomb in a section"), ("profile", "bomb in a value"), ("profile", "bomb in a entry"),
    ("profile", "many robots"), ("profile", "chain of likenesses"), ("profile", "list of lists"), ("profile", "keys"),
    ("mcap with zstd", "chunk of half a gigabyte"), ("mcap with lz4", "chunk of half a gigabyte"),
    ("mcap with zstd", "many chunks"), ("mcap with zstd", "large chunks"),
    ("sqlite", "endless view"), ("sqlite", "pipe"), ("info", "data_path {episode_index:2000000000d}"),
    ("info", "data_path ../outside.parquet"), ("info", "data_path /etc/passwd"), ("info", "fps nan"),
    ("info", "data_path {episode_index.__class__.__mro__}"), ("info", "chunks_size 0"), ("parquet", "run lengths"),
    ("parquet", "pipe"), ("episodes", "many"), ("episodes", "same"), ("episodes", "long"),
    ("video", "list of files"), ("video", "playlist"), ("png", "25,000 a side"),
    ("png", "one row, 4 billion wide"), ("jpeg", "65,500 a side"), ("jpeg", "scans"),
    ("sensor_msgs/msg/CompressedImage", "25,000 a side"), ("std_msgs/msg/String", "long"),
)  # fmt: skip


def test_every_reader_is_attacked() -> None:
    from foreign_files import readers

    listed = [name for names in READERS.values() for name in names]
    assert {name for name in readers() if "/msg/" not in name} == set(listed)


@pytest.mark.parametrize("part", list(READERS))
def test_what_is_read_is_bounded_and_refused_by_name(part: str, tmp_path: Path) -> None:
    from foreign_files import readers

    names = READERS[part] or tuple(name for name in readers() if "/msg/" in name)
    program = Path(__file__).with_name("foreign_files.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "files"), *names], capture_output=True, text=True, check=False
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"ended by {done.returncode} at {rows[-1:]}\n{done.stderr[-2000:]}"
    assert {row["reader"] for row in rows} == set(names)
    assert all(row["outcome"] == "read" for row in rows if row["attack"] == "none"), rows
    unnamed = [row for row in rows if row["outcome"] not in ("read", "refused", "")]
    assert not unnamed, unnamed
    attacked = {(row["reader"], row["attack"]): row["outcome"] for row in rows}
    assert all(attacked[each] == "refused" for each in REFUSED if each[0] in names), attacked
    large = [row for row in rows if row["mb"] > MOST_MB]
    assert not large, large
