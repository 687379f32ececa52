# SPDX-License-Identifier: Apache-2.0
"""Instructions to token ids. The padded length is part of a checkpoint's contract, because padding is attended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros.errors import CheckpointError, Problem

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

TOKENIZER_FILE, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
# BART's ids, which every X-VLA checkpoint uses: bos 0, pad 1, eos 2, unknown 3.
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
PAD_ID = 1


class Tokenizer:
    """Pads and cuts every instruction to one length.

    Args:
        backend: a ``tokenizers.Tokenizer`` that adds bos and eos itself.
        length: L, tokens per instruction, special ones included.
        pad_id: of the token put behind short instructions.
    """

    def __init__(self, backend: Backend, length: int, pad_id: int = PAD_ID) -> None:
        self.backend, self.length, self.pad_id = backend, length, pad_id
        pad_token = backend.id_to_token(pad_id) or SPECIAL_TOKENS[PAD_ID]
        backend.enable_truncation(max_length=length)
        backend.enable_padding(length=length, pad_id=pad_id, pad_token=pad_token, direction="right")

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, instructions: Sequence[str]) -> NDArray[np.int64]:
        """Turn B instructions into int64 [B, L]."""
        return np.array([each.ids for each in self.backend.encode_batch(list(instructions))], dtype=np.int64)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and the tokenizer_config.json that transformers wants beside it."""
        self.backend.save(str(folder / TOKENIZER_FILE))
        bos, pad, eos, unknown = (self.backend.id_to_token(index) or "" for index in range(4))
        pre_tokenizer = json.loads(self.backend.to_str()).get("pre_tokenizer") or {}
        described = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            # transformers 4 sets this from here, whatever tokenizer.json says.
            "add_prefix_space": bool(pre_tokenizer.get("add_prefix_space", False)),
            "model_max_length": self.length,
            "padding_side": "right",
            "bos_token": bos, "pad_token": pad, "eos_token": eos, "unk_token": unknown,
        }  # fmt: skip
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path, names: Sequence[str], length: int, pad_id: int = PAD_ID) -> Tokenizer:
    """Read the tokenizer of a checkpoint.

    Args:
        folder: where tokenizer.json, or vocab.json and merges.txt, may be.
        names: where to look then, in this order: folders, relative to ``folder``, or hub ids; empty ones are left out.
        length, pad_id: as for Tokenizer.

    Raises:
        CheckpointError: if there is none and the hub cannot be reached.
    """
    for place in (folder, *(folder / name for name in names if name)):
        backend = _from_folder(place)
        if backend is not None:
            return Tokenizer(backend, length, pad_id)
    return Tokenizer(_from_hub(folder, [name for name in names if name]), length, pad_id)


def _from_folder(folder: Path) -> Backend | None:
    """Read the tokenizer of a folder; None where it has none."""
    from tokenizers import Tokenizer as Backend

    if (folder / TOKENIZER_FILE).is_file():
        try:
            return Backend.from_file(str(folder / TOKENIZER_FILE))
        except Exception as error:  # the Rust side raises plain Exception
            problem = Problem(TOKENIZER_FILE, "", None, "a tokenizer", f"cannot be read: {error}")
            raise CheckpointError(str(folder), [problem]) from None
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _from_vocabulary(folder)
    return None


def _from_vocabulary(folder: Path) -> Backend:
    """Assemble BART's tokenizer from the two older files original checkpoints carry."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token="<unk>")
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    _add_ends(backend)
    return backend


def _from_hub(folder: Path, names: Sequence[str]) -> Backend:
    from transformers import AutoTokenizer

    reasons = []
    for name in names:
        if Path(name).is_absolute() or name.startswith("."):
            reasons.append(f"{name} brings none")
            continue
        try:
            fast: Any = AutoTokenizer.from_pretrained(name, use_fast=True)
        except (OSError, ValueError) as error:
            reasons.append(
                f"{name!r} cannot be had: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            )
        else:
            backend: Backend = fast.backend_tokenizer
            return backend
    message = (
        f"is missing, and the tokenizer it names is not there ({'; '.join(reasons)}); LeRobot does not "
        "save it: copy tokenizer.json and tokenizer_config.json from the checkpoint that this one was trained from"
    )
    problem = Problem(TOKENIZER_FILE, "", None, "the tokenizer's files in the checkpoint folder", message)
    raise CheckpointError(str(folder), [problem])


def train_tokenizer(instructions: Iterable[str], length: int, vocab_size: int = 512) -> Tokenizer:
    """Make a small byte-level tokenizer with BART's special ids; any text can be encoded, known words shorter."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(list(instructions), trainer)
    _add_ends(backend)
    return Tokenizer(backend, length)


def _add_ends(backend: Backend) -> None:
    """Make the tokenizer put bos in front and eos behind."""
    from tokenizers import processors

    bos, eos = (backend.token_to_id(token) or 0 for token in ("<s>", "</s>"))
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", eos), ("<s>", bos), trim_offsets=True, add_prefix_space=False
    )
