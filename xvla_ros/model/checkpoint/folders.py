"""Where the parts of a checkpoint lie: a local folder, a hub id, an adapter beside or apart from its base. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from xvla_ros.errors import CheckpointError, Problem

from .dialects import read_json
from .tensors import INDEX, WEIGHTS

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Never *.bin, *.pt or *.py: no pickle and no code is fetched.
HUB_PATTERNS = ("*.safetensors", "*.json", "merges.txt", "vocab.txt")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


@dataclass(frozen=True)
class CheckpointFolders:
    """The folders of one checkpoint.

    Attributes:
        base: with the weights.
        adapter: with a LoRA adapter to merge; None without one.
        source: as the user named it.
    """

    base: Path
    adapter: Path | None
    source: str

    def holding(self, name: str) -> Path:
        """The folder whose file ``name`` counts: the adapter's, where it brings its own, else the base."""
        if self.adapter is not None and (self.adapter / name).is_file():
            return self.adapter
        return self.base


def find_checkpoint(folder_or_id: str | Path, revision: str | None = None) -> CheckpointFolders:
    """Find a checkpoint, downloading it from the Hugging Face hub where the name is an id and no folder.

    Raises:
        CheckpointError: if there is none of that name, or an adapter's base cannot be found.
    """
    folder = _folder(folder_or_id, revision)
    if not (folder / ADAPTER_CONFIG).is_file():
        return CheckpointFolders(folder, None, str(folder_or_id))
    if (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
        return CheckpointFolders(folder, folder, str(folder_or_id))
    named = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not named:
        problem = Problem(ADAPTER_CONFIG, "base_model_name_or_path", named, "a folder or a hub id", "is missing")
        raise CheckpointError(str(folder_or_id), [problem])
    beside = folder / str(named)
    base = beside if beside.is_dir() else _folder(str(named), None)
    return CheckpointFolders(base, folder, str(folder_or_id))


def _folder(folder_or_id: str | Path, revision: str | None) -> Path:
    path = Path(folder_or_id).expanduser()
    if path.is_dir():
        return path
    if isinstance(folder_or_id, Path) or not _HUB_ID.match(folder_or_id):
        problem = Problem(str(folder_or_id), "", None, "a checkpoint folder or a hub id", "is no folder")
        raise CheckpointError(str(folder_or_id), [problem])
    return _download(folder_or_id, revision)


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(HUB_PATTERNS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()
        message = f"is neither a folder nor a hub id that can be had: {reason[0] if reason else type(error).__name__}"
        problem = Problem(hub_id, revision or "", None, "a checkpoint folder or a hub id", message)
        raise CheckpointError(hub_id, [problem]) from None
