# SPDX-License-Identifier: Apache-2.0
"""The checker of prose: what counts as a sentence, what is refused, and that code is left alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools"))

import prose

PAGE = """# A heading is no sentence at all

<!-- not run: nor is a comment -->
```
the picture in a block of code
```

The arm moves `as --the-picture says` now. **It stops
then.** Look at [the page of the arm](picture.md).

- One item of a list.
- Another item of it: with a colon
  and a second line.

| a table | is none |
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prose, "ROOT", tmp_path)

    def write(text: str) -> Path:
        path = tmp_path / "page.md"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_sentences_are_those_of_paragraphs_and_lists():
    assert list(prose.sentences(PAGE)) == [
        "The arm moves x now.", "It stops then.", "Look at the page of the arm.", "One item of a list.",
        "Another item of it: with a colon and a second line.",
    ]  # fmt: skip


def test_a_plain_page_has_no_problem(page):
    assert [*prose.lengths(page(PAGE)), *prose.dialect(page(PAGE))] == []


def test_a_long_sentence_and_a_long_mean_are_named(page):
    found = list(prose.lengths(page("The " + "arm " * 30 + "moves.")))
    assert found[0].startswith("page.md: 32 words, expected 30 at most: The arm")
    assert found[1:] == ["page.md: 32.0 words a sentence, expected 16 at most on the mean"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("The node holds until the picture comes.", ["picture", "node holds"]),
        ("It is equal to the bit.", ["to the bit"]),
        ("Answers are held against what\nwas recorded.", ["held against"]),
        ("Every image of slot 0 counts.", ["slot 0"]),
    ],
)
def test_a_word_of_the_dialect_is_named_with_a_plain_one(text: str, word: list[str], page):
    found = list(prose.dialect(page(text)))
    assert sorted(line.split("'")[1] for line in found) == sorted(word)
    assert all(", say: " in line for line in found)


SOURCE = '''"""A docstring may speak of a picture."""
KEYS = {"picture": 1}
def run(name):
    """It goes on."""
    raise ValueError(f"{name}: the picture cannot "
                     "be used")
log.info("nobody answers here")
'''


def test_texts_of_python_are_looked_at_but_not_keys_and_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    file = tmp_path / "module.py"
    file.write_text(SOURCE, encoding="utf-8")
    found = list(prose.messages(file))
    assert sorted(line.split(",")[0] for line in found) == ["module.py:5: 'picture'", "module.py:7: 'nobody'"]


def test_comments_of_yaml_are_looked_at_but_not_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    file = tmp_path / "profile.yaml"
    file.write_text("places: picture\nrate: 1.0  # of each picture\n", encoding="utf-8")
    (line,) = prose.comments(file)
    assert line.startswith("profile.yaml:2: 'picture', say: image")
