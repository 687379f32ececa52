# SPDX-License-Identifier: Apache-2.0
"""Instructions to token ids. The padded length is part of a checkpoint's contract, because padding is attended."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xvla_ros import limits
from xvla_ros.errors import CheckpointError, Problem, brief

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

TOKENIZER_FILE, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
# BART's ids, which every X-VLA checkpoint uses: bos 0, pad 1, eos 2, unknown 3.
PUNCTUATION = ".,;:!?\"'()"
SPACE = "\u0120"  # what byte-level tokenizers write for the space before a word
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
PAD_ID = 1
# Of what people ask arms to do; spelled in letters, a few of them would fill the length.
ORDINARY_WORDS = (
    "up", "and", "to", "it", "on", "into", "from", "of", "at", "a", "is", "pick", "place", "move", "take", "grasp",
    "lift", "stack", "push", "pull", "open", "close", "hand", "drop", "bring", "give", "go", "turn", "put", "get",
    "over", "onto", "next", "then", "off", "down", "out", "near", "above", "under", "behind", "back", "side", "top",
    "cup", "plate", "box", "block", "drawer", "table", "object", "gripper", "please", "yellow", "black", "white",
    "orange", "one", "two", "both", "all", "your", "this", "that",
)  # fmt: skip
# Tokenizers on the hub that checkpoints name without a commit: the one that is meant.
KNOWN_COMMITS = {"facebook/bart-large": "cb48c1365bd826bd521f650dc2e0940aee54720c"}
# What a tokenizer.json may do to a text before it is cut into tokens: all of it takes time in proportion to the text.
_NORMALIZERS = {"Sequence", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "Strip", "StripAccents", "BertNormalizer",
                "Prepend", "Replace", "ByteLevel"}  # fmt: skip
_PRE_TOKENIZERS = {"Sequence", "ByteLevel", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Metaspace",
                   "Punctuation", "Digits", "CharDelimiterSplit", "UnicodeScripts", "Split"}  # fmt: skip
_POST_PROCESSORS = {"Sequence", "ByteLevel", "RobertaProcessing", "BertProcessing", "TemplateProcessing"}
_PIECES = 32  # steps of one of these, and tokens that a template adds
WHOLE_WORDS = 1000  # ids; a tokenizer with fewer was made of the training's own words, and has a token for each


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
        """Turn B instructions into int64 [B, L].

        Raises:
            ValueError: one is longer than ``limits.INSTRUCTION``, or the tokenizer fails at it.
        """
        for instruction in instructions:
            check_instruction(instruction)
        with limits.edge(ValueError, lambda cause: ValueError(f"the tokenizer of the checkpoint fails: {cause}")):
            return np.array([each.ids for each in self.backend.encode_batch(list(instructions))], dtype=np.int64)

    def cut(self, instruction: str) -> str:
        """Return the words at the end of an instruction that do not fit into the length; empty where all do."""
        found = self.backend.encode(instruction)
        if not found.overflowing:
            return ""
        marks = zip(found.offsets, found.special_tokens_mask, strict=True)
        end = max((stop for (_, stop), is_special in marks if not is_special), default=0)
        if end < len(instruction) and not instruction[end].isspace():  # amid a word, which is lost as a whole
            end = instruction.rfind(" ", 0, end) + 1
        return instruction[end:].strip()

    def tokens(self, instruction: str) -> int:
        """Return how many tokens an instruction is, special ones included, whatever fits."""
        found = self.backend.encode(instruction)
        parts = [found, *found.overflowing]
        words = sum(is_special == 0 for part in parts for is_special in part.special_tokens_mask)
        return words + self.backend.num_special_tokens_to_add(is_pair=False)

    def unknown(self, instruction: str, trained: Collection[str]) -> list[str]:
        """Return the words of an instruction that the network was not trained with, as far as that can be told.

        Args:
            instruction: any.
            trained: words of the training; where they are not known, or the tokenizer is of a larger language, those
                count that the tokenizer spells in letters or replaces.
        """
        others = [word for word in words_of([instruction]) if word not in trained]
        is_listed = bool(trained) and self.vocab_size < WHOLE_WORDS
        return others if is_listed else [word for word in others if self._is_spelled(word)]

    def _is_spelled(self, word: str) -> bool:
        found = self.backend.encode(f" {word}", add_special_tokens=False)
        pieces = [token for token, index in zip(found.tokens, found.ids, strict=True) if index != self.pad_id]
        if any(piece == SPECIAL_TOKENS[3] for piece in pieces):
            return True
        if self.vocab_size < WHOLE_WORDS:
            return len(pieces) > 1
        letters = sum(len(piece.lstrip(SPACE)) <= 1 for piece in pieces)
        return len(pieces) > 1 and 2 * letters > len(pieces)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and the tokenizer_config.json that transformers wants beside it."""
        text = self.backend.to_str(pretty=True)  # its own save fails where the folder's name is not UTF-8
        (folder / TOKENIZER_FILE).write_text(text, encoding="utf-8")
        bos, pad, eos, unknown = (self.backend.id_to_token(index) or "" for index in range(4))
        pre_tokenizer = json.loads(text).get("pre_tokenizer") or {}
        described = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            # transformers 4 sets this from here, whatever tokenizer.json says.
            "add_prefix_space": bool(pre_tokenizer.get("add_prefix_space", False)),
            "model_max_length": self.length,
            "padding_side": "right",
            "bos_token": bos, "pad_token": pad, "eos_token": eos, "unk_token": unknown,
        }  # fmt: skip
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def check_instruction(instruction: str) -> None:
    """Raise ValueError where an instruction is longer than any is, or is no text that can be encoded."""
    if len(instruction) > limits.INSTRUCTION:
        raise ValueError(f"an instruction of {len(instruction)} characters; expected at most {limits.INSTRUCTION}")
    if not limits.is_text(instruction):
        raise ValueError("an instruction with an incomplete character (a lone surrogate); expected Unicode text")


def words_of(instructions: Iterable[str]) -> list[str]:
    """Return the words of some texts, each once, without the marks around them."""
    words = [word.strip(PUNCTUATION) for text in instructions for word in text.split()]
    return [word for word in dict.fromkeys(words) if word]


def load_tokenizer(folder: Path, names: Sequence[str], length: int, pad_id: int = PAD_ID) -> Tokenizer:
    """Read the tokenizer of a checkpoint.

    Args:
        folder: where tokenizer.json, or vocab.json and merges.txt, may be.
        names: where to look then, in this order, as files of the checkpoint say: folders within ``folder``, or hub ids
            with their commit, ``ID@COMMIT``; empty ones are left out. No code of theirs is run.
        length, pad_id: as for Tokenizer.

    Raises:
        CheckpointError: if there is none and the hub cannot be reached, or it is none that can be used.
    """

    def named(cause: str) -> CheckpointError:
        return CheckpointError(str(folder), [Problem(TOKENIZER_FILE, "", None, "a tokenizer", f"fails: {cause}")])

    backend = _from_folder(folder) or _from_names(folder, [name for name in names if name])
    with limits.edge(CheckpointError, named):
        tokenizer = Tokenizer(backend, length, pad_id)
        tokenizer.encode(["go"])
        return tokenizer


def _from_folder(folder: Path) -> Backend | None:
    """Read the tokenizer of a folder; None where it has none."""
    from tokenizers import Tokenizer as Backend

    def named(cause: str) -> CheckpointError:
        problem = Problem(TOKENIZER_FILE, "", None, "a tokenizer", f"cannot be read: {cause}")
        return CheckpointError(str(folder), [problem])

    with limits.edge(CheckpointError, named):
        if (folder / TOKENIZER_FILE).exists():
            text = limits.read_text(folder / TOKENIZER_FILE, limits.TOKENIZER_BYTES)
            _check_pieces(limits.json_of(text, limits.TOKENIZER_BYTES), folder)
            return Backend.from_str(text)
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            return _from_vocabulary(folder)
    return None


def _check_pieces(told: Any, folder: Path) -> None:
    """Refuse a tokenizer whose steps could make a text longer and longer, or search it without end."""
    vocabulary = told["model"].get("vocab", ())
    if len(vocabulary) > limits.VOCABULARY:
        raise limits.LimitError(f"has {len(vocabulary)} tokens; expected at most {limits.VOCABULARY}")
    problems = []
    for key, known in (
        ("normalizer", _NORMALIZERS), ("pre_tokenizer", _PRE_TOKENIZERS), ("post_processor", _POST_PROCESSORS)
    ):  # fmt: skip
        steps = _steps(told.get(key), key)
        for step in steps:
            kind, pattern = step.get("type"), step.get("pattern") or {}
            expected = f"one of {', '.join(sorted(known))}"
            if kind not in known:
                problems.append(
                    Problem(TOKENIZER_FILE, key, brief(kind), expected, "is a step that this package does not support")
                )
            elif "Regex" in pattern:
                message = "searches with its own regular expression, which can run without end"
                problems.append(Problem(TOKENIZER_FILE, key, brief(pattern["Regex"]), "ByteLevel or String", message))
            elif kind == "Prepend" and len(step["prepend"]) > _PIECES:
                problems.append(Problem(TOKENIZER_FILE, key, brief(step["prepend"]), "a short text", "is too long"))
            elif kind == "Replace" and len(step["content"]) > len(pattern.get("String", "")):
                message = "makes a text longer, and several of them would do so without end"
                problems.append(
                    Problem(TOKENIZER_FILE, key, brief(step["content"]), "a text that is not longer", message)
                )
            elif kind == "TemplateProcessing" and max(len(step["single"]), len(step["pair"])) > _PIECES:
                message = "adds too many tokens"
                problems.append(Problem(TOKENIZER_FILE, key, len(step["single"]), f"at most {_PIECES}", message))
    if problems:
        raise CheckpointError(str(folder), problems)


def _steps(piece: Any, key: str) -> list[dict[str, Any]]:
    """Return the steps of a piece of a tokenizer; of a sequence each of its own."""
    waiting, found = [piece] if piece is not None else [], []
    while waiting:
        step = waiting.pop()
        found.append(step)
        if step.get("type") == "Sequence":
            waiting += next((step[name] for name in (f"{key}s", "pretokenizers", "processors") if name in step), [])
        if len(found) + len(waiting) > _PIECES:
            raise limits.LimitError(f"{key} has more than {_PIECES} steps")
    return found


def _from_vocabulary(folder: Path) -> Backend:
    """Assemble BART's tokenizer from the two older files original checkpoints carry."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    vocabulary = limits.read_json(folder / "vocab.json", limits.TOKENIZER_BYTES)
    lines = limits.read_text(folder / "merges.txt", limits.TOKENIZER_BYTES).splitlines()
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    merges = [(left, right) for left, right in pairs]
    backend = Backend(models.BPE(vocabulary, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    _add_ends(backend)
    return backend


def _from_names(folder: Path, names: Sequence[str]) -> Backend:
    """Read the tokenizer that files of a checkpoint name, from a folder within it or from the hub."""
    reasons = []
    for name in dict.fromkeys(names):
        try:
            place = limits.inside(folder, name)
            backend = _from_folder(place) if place.is_dir() else _from_hub(name)
        except (limits.LimitError, OSError) as error:
            reasons.append(f"{name[:200]!r} is not available: {limits.cause(error)}")
        else:
            if backend is not None:
                return backend
            reasons.append(f"{name[:200]!r} contains no tokenizer")
    message = (
        f"is missing, and the tokenizer that it names is not available ({'; '.join(reasons)}); LeRobot does not "
        "save the tokenizer: copy tokenizer.json and tokenizer_config.json from the checkpoint that this one was "
        "trained from"
    )
    problem = Problem(TOKENIZER_FILE, "", None, "the tokenizer's files in the checkpoint folder", message)
    raise CheckpointError(str(folder), [problem])


def _from_hub(name: str) -> Backend | None:
    """Read a tokenizer from the hub: its data alone, at the commit that is pinned.

    Raises:
        LimitError: no commit is.
        OSError: it cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    hub_id, commit = limits.pinned(name, known=KNOWN_COMMITS)
    files = [TOKENIZER_FILE, "vocab.json", "merges.txt"]
    try:
        return _from_folder(Path(snapshot_download(hub_id, revision=commit, allow_patterns=files)))
    except HFValidationError as error:
        raise OSError(str(error)) from error


def train_tokenizer(instructions: Iterable[str], length: int, vocab_size: int = 512) -> Tokenizer:
    """Make a small byte-level tokenizer with BART's special ids; any text can be encoded.

    Words of the instructions have a token each, and so have ``ORDINARY_WORDS`` where there is room: a sentence of other
    words is then as short, though the network learns nothing of them.
    """
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
    backend = with_words(backend, ORDINARY_WORDS, vocab_size)
    _add_ends(backend)
    return Tokenizer(backend, length)


def with_words(backend: Backend, words: Iterable[str], vocab_size: int) -> Backend:
    """Return a byte-level tokenizer that has one token for each of these words too, as far as ``vocab_size`` allows.

    What it said of texts without these words stays as it was: the new pairs are joined last, each within its word.
    """
    from tokenizers import Tokenizer as Backend

    told = json.loads(backend.to_str())
    vocabulary, merges = told["model"]["vocab"], told["model"]["merges"]
    for word in words:
        found = Backend.from_str(json.dumps(told)).encode(f" {word}", add_special_tokens=False)
        pieces = [token for token, index in zip(found.tokens, found.ids, strict=True) if index != PAD_ID]
        whole = [("".join(pieces[:end]), pieces[end]) for end in range(1, len(pieces))]
        if len(vocabulary) + len(whole) > vocab_size:
            continue
        for left, right in whole:
            vocabulary[left + right] = len(vocabulary)
            merges.append([left, right])
    return Backend.from_str(json.dumps(told))


def _add_ends(backend: Backend) -> None:
    """Make the tokenizer put bos in front and eos behind."""
    from tokenizers import processors

    bos, eos = (backend.token_to_id(token) or 0 for token in ("<s>", "</s>"))
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", eos), ("<s>", bos), trim_offsets=True, add_prefix_space=False
    )
