# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a kept result was made with: digests of what files say, whatever they are called."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path


def checkpoint_digest(checkpoint: str = "") -> str:
    """Return hex digits of a checkpoint's weights, sizes, words and normalisation; empty is the policy that ships."""
    from xvla_ros.model.checkpoint.inspection import find_checkpoint
    from xvla_ros.resources import policy_dir

    found = find_checkpoint(checkpoint or str(policy_dir()), None)
    folders = [found.base, *([found.adapter] if found.adapter not in (None, found.base) else [])]
    files = [file for folder in folders for file in sorted(folder.iterdir())
             if file.suffix in (".safetensors", ".json")]  # fmt: skip
    return digest([_file_digest(file, file.stat().st_size, file.stat().st_mtime_ns).encode() for file in files])


@cache
def _file_digest(file: Path, _size: int, _modified: int) -> str:
    """Of name and content; large ones are read once, not for every result."""
    return digest([file.name.encode(), file.read_bytes()])


def digest(parts: Sequence[bytes]) -> str:
    """Return hex digits of byte strings and of where one ends."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(len(part).to_bytes(8, "little") + part)
    return made.hexdigest()
