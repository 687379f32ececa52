"""Other words for the same task, one of which is drawn for a sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from xvla_ros.errors import Problem
from xvla_ros.recordings.recording import SamplesError

FORM = "a mapping of each instruction to a list of other words for it"


class Paraphrases:
    """Other words for instructions; an instruction without any stays as it is.

    Args:
        others: instruction → paraphrases. The instruction itself counts as one of its wordings.
    """

    def __init__(self, others: Mapping[str, tuple[str, ...]]) -> None:
        self._others = {_key(text): tuple(dict.fromkeys(words)) for text, words in others.items()}

    def of(self, instruction: str) -> tuple[str, ...]:
        """Return all wordings, the instruction first."""
        return tuple(dict.fromkeys((instruction, *self._others.get(_key(instruction), ()))))

    def draw(self, instruction: str, random: np.random.Generator) -> str:
        """Return one of the wordings, each as likely as the others."""
        words = self.of(instruction)
        return words[int(random.integers(len(words)))] if len(words) > 1 else instruction


def read_paraphrases(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the paraphrases of a YAML file: a mapping of each instruction to a list.

    Raises:
        SamplesError: the file cannot be read or has another form.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise SamplesError([Problem(str(path), "", None, FORM, f"cannot be read: {text}")]) from error
    if not isinstance(raw, dict):
        raise SamplesError([Problem(str(path), "", type(raw).__name__, FORM, "holds no mapping")])
    problems = [
        Problem(str(path), str(text), words, "a list of texts", "is no list of other words")
        for text, words in raw.items()
        if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words)
    ]
    if problems:
        raise SamplesError(problems)
    return {str(text): tuple(words) for text, words in raw.items()}


def _key(instruction: str) -> str:
    return " ".join(instruction.split()).casefold().rstrip(".")
