# SPDX-License-Identifier: Apache-2.0
"""Checks prose for plain technical English: ``python tools/prose.py`` prints what is not, and ends with exit code 1.

Sentences of README, tutorials, how-tos, the bring-up of arms, explanations, results of benchmarks and most written
references have 30 words at most, 16 on the mean of a page. Words of a private dialect are refused there, in the
generated pages of commands and launch files, in the comments of config/, and in every text of the Python sources that a
user may read: log lines, errors, help texts, reports. Code, rules of tables and comments in code are left out.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST, MEAN = 30, 16  # words of a sentence; a page's mean
REFERENCES = ("checkpoints", "faults", "platforms", "reports", "serving", "topics", "traits")
GUIDES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "tutorial").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
    *sorted((ROOT / "docs" / "bring-up").glob("*.md")),
    *sorted((ROOT / "docs" / "explanation").glob("*.md")),
    *(ROOT / "docs" / "reference" / f"{name}.md" for name in REFERENCES),
    ROOT / "docs" / "reliability.md",
    ROOT / "bench" / "RESULTS.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
)
HELP = (ROOT / "docs" / "reference" / "commands.md", ROOT / "docs" / "reference" / "launch.md")
SOURCES = (*sorted((ROOT / "xvla_ros").rglob("*.py")), *sorted((ROOT / "launch").glob("*.py")))
CONFIG = (*sorted((ROOT / "config").rglob("*.yaml")), *sorted((ROOT / "examples").rglob("*.yaml")))
SHORTEST = 3  # words of a text in Python that is prose; shorter ones are keys and names

DIALECT = {  # what is not said: what to say
    r"pictures?": "image",
    r"to the bit": "exactly, bit-identical",
    r"(?:the|has|a|its|of) holds?|hold(?:s|ing)? the arm|(?:node|robot|it|arm) holds": "pause",
    r"slot 0": "the main camera",
    r"marks? of episodes?|episodes?' marks|the marks'?": "episode markers",
    r"moments?": "time, sampled state",
    r"held against|holds? against|hold (?:them|it|a \w+) against": "compare with",
    r"in (?:the|its) place of": "instead of",
    r"of ours": "our, of this package",
    r"taken in turn|of each way": "one after the other",
    r"go(?:es)? on|went on": "continue",
    r"at hand": "available, installed",
    r"can be had": "is available",
    r"falls? out": "is skipped",
    r"alike": "in the same way",
    r"anew": "again",
    r"so many|so much": "a number",
    r"nothing of": "no, none",
    r"what it says of": "its output for",
    r"for ever": "forever, until it ends",
    r"besides": "also, in addition",
    r"thereof|therein|whereof|whoever|somebody|nobody": "name who: a user, a program, no node",
    r"told": "instructed, said; name who says it",
    r"lies? in|lie (?:below|beside)": "is in",
    r"by itself": "automatically, alone",
    r"asks? (?:it|them|for so early)": "request",
    r"as it comes|as they come": "unchanged",
    r"in words": "as text",
    r"to the last bit": "bit-identical",
    r"at once": "immediately, at the same time",
    r"all the same": "anyway, nevertheless",
    r"ever (?:slower|faster|more)": "slowing down, more and more",
    r"asked for": "requested",
    r"wants": "needs",
    r"mend(?:s|ed|ing)?": "correct, repair",
    r"trained rows?": "trained domain id",
    r"means? nothing": "is meaningless",
    r"out of nowhere": "without a cause",
}
_PATTERNS = [(re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE), plain) for pattern, plain in DIALECT.items()]


def main() -> int:
    """Print what is wrong with each page; return the exit code."""
    problems = [line for page in GUIDES for line in (*lengths(page), *dialect(page))]
    problems += [line for page in HELP for line in dialect(page)]
    problems += [line for file in SOURCES for line in messages(file)]
    problems += [line for file in CONFIG for line in comments(file)]
    print(*problems, sep="\n", end="\n" * bool(problems))
    return int(bool(problems))


def lengths(page: Path) -> Iterator[str]:
    """Yield a line for each sentence that is too long, and one where they are on the mean."""
    found = list(sentences(page.read_text(encoding="utf-8")))
    for sentence in found:
        if len(sentence.split()) > LONGEST:
            yield f"{_name(page)}: {len(sentence.split())} words, expected {LONGEST} at most: {sentence}"
    mean = sum(len(sentence.split()) for sentence in found) / max(len(found), 1)
    if mean > MEAN:
        yield f"{_name(page)}: {mean:.1f} words a sentence, expected {MEAN} at most on the mean"


def dialect(page: Path) -> Iterator[str]:
    """Yield a line for each word of a page that has a plainer one."""
    yield from _refused(_name(page), _plain(page.read_text(encoding="utf-8")))


def messages(file: Path) -> Iterator[str]:
    """Yield a line for each such word in the texts of a Python file; its docstrings are not looked at."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    passed = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            passed |= {id(part) for part in node.values}
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if id(node) not in passed and len(text.split()) >= SHORTEST:
            yield from _refused(f"{_name(file)}:{node.lineno}", text)


def comments(file: Path) -> Iterator[str]:
    """Yield a line for each such word in the comments of a YAML file."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        yield from _refused(f"{_name(file)}:{number}", line.partition("# ")[2])


def _refused(where: str, text: str) -> Iterator[str]:
    for pattern, plain in _PATTERNS:
        for match in pattern.finditer(text):
            around = " ".join(text[max(0, match.start() - 40) : match.end() + 40].split())
            yield f"{where}: {match[0]!r}, say: {plain}: … {around} …"


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of paragraphs and list items; headings and tables are none."""
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", _plain(text)):
        lines = [line for line in block.splitlines() if not re.match(r"\s*(#|\||!\[)", line)]
        whole = re.sub(r"^\s*(?:[-*]|\d+\.) ", "", " ".join(lines)).replace("*", "").replace(" · ", ". ")
        whole = " ".join(whole.split())
        for sentence in re.split(r"(?<=[.!?:])\)?\s+(?=[A-Z`*\[(“\"])|(?<=[.!?])\s+(?=[a-z])", whole):
            if len(sentence.split()) > 2:
                yield sentence


def _plain(text: str) -> str:
    """Return the text without comments, fences and targets of links; a piece of code is one word."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]+`", "x", text)
    return re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


if __name__ == "__main__":
    sys.exit(main())
