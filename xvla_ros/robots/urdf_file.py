# SPDX-License-Identifier: Apache-2.0
"""URDF files: found by name, read as ROS reads them, and expanded where they hold xacro.

The parser of ROS, tinyxml2, asks less of a file than XML does: prefixes need no namespace, a default namespace changes
no name, ``<`` and ``&`` may stand in values, text may come before the XML declaration, and a document may have several
outermost elements.
"""

from __future__ import annotations

import codecs
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

from xvla_ros import limits
from xvla_ros.errors import Problem, ProfileError, XvlaError
from xvla_ros.resources import config_dir

EXPRESSIONS = ("${", "$(")  # how those of xacro begin
_NAME = r"[A-Za-z_:\x80-\U0010FFFF][A-Za-z0-9_:.\-\x80-\U0010FFFF]*+"
_BESIDE = re.compile(r"(?:[^<]+|<!--.*?-->|<!\[CDATA\[.*?\]\]>|<\?.*?\?>|<!(?!--|\[CDATA\[)[^>]*>)*+", re.DOTALL)
_OPEN = re.compile(rf"<\s*({_NAME})")
_CLOSE = re.compile(rf"</\s*({_NAME})\s*>")
_ATTRIBUTE = re.compile(rf"\s*({_NAME})\s*=\s*(?:\"([^\"]*)\"|'([^']*)')")
_END = re.compile(r"\s*(/?)>")
_ENTITY = re.compile(r"&(?:#x([0-9A-Fa-f]{1,6})|#([0-9]{1,7})|(lt|gt|amp|quot|apos));")
_NAMED = {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'"}
_DECLARED = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9._-]+)")


class XmlError(XvlaError, ValueError):
    """Text that no parser makes elements of; the message names the line."""


def find_urdf(name: str | Path) -> Path:
    """Return the path of a URDF: ``name`` itself, or the shipped file of that name.

    Raises:
        ProfileError: naming the shipped ones.
    """
    own, shipped = Path(name), config_dir() / "urdf" / Path(name).name
    if own.is_file():
        return own
    if own == Path(own.name) and shipped.is_file():
        return shipped
    known = ", ".join(sorted(path.name for path in shipped.parent.glob("*.urdf")))
    message = "no such file" if not own.exists() else "is not a file"
    expected = f"the path of a URDF, or one of the shipped {known}"
    raise ProfileError([Problem(str(name), "", None, expected, message)])


def urdf_text(path: Path) -> str:
    """Return the text of a URDF file, expanded where it holds xacro.

    Raises:
        ProfileError: it cannot be read, or expanded.
    """
    try:
        text = decode(limits.read_bytes(path, limits.XML_BYTES))
    except (OSError, limits.LimitError) as error:
        message = f"cannot be read: {limits.cause(error)}"
        raise ProfileError([Problem(str(path), "", None, "a readable file", message)]) from error
    return expand(path) if path.suffix == ".xacro" or holds_xacro(text) else text


def decode(data: bytes) -> str:
    """Return the text of a file: UTF-8 if it can be, whatever is declared; else as declared, else Latin-1."""
    declared = _DECLARED.search(data)
    for encoding in ("utf-8-sig", declared[1].decode("ascii") if declared is not None else "latin-1"):
        try:
            codecs.lookup(encoding)
            return data.decode(encoding)
        except (LookupError, ValueError):
            continue
    return data.decode("latin-1")


def parse(text: str) -> Element:
    """Return an element ``document`` that holds the outermost elements, without text between them.

    Names stay as written, prefix and all.

    Raises:
        XmlError: something is neither element nor comment, or an element is not closed.
    """
    count = text.count("<")
    if count > limits.ELEMENTS:
        raise XmlError(f"it has {count} elements, expected at most {limits.ELEMENTS}")
    stack, begins, at = [Element("document")], [0], _BESIDE.match(text).end()  # type: ignore[union-attr]
    while at < len(text):
        if closing := _CLOSE.match(text, at):
            if stack[-1].tag != closing[1] or len(stack) == 1:
                raise XmlError(f"line {_line(text, at)}: </{closing[1]}> closes no element{_open(text, stack, begins)}")
            del stack[-1], begins[-1]
            at = closing.end()
        else:
            element, is_empty, end = _element(text, at, stack[-1])
            if not is_empty:
                stack.append(element)
                begins.append(at)
            at = end
        at = _BESIDE.match(text, at).end()  # type: ignore[union-attr]
    if len(stack) > 1:
        raise XmlError(f"the text ends too early{_open(text, stack, begins)}")
    return stack[0]


def _element(text: str, at: int, parent: Element) -> tuple[Element, bool, int]:
    opening = _OPEN.match(text, at)
    if opening is None:
        raise XmlError(f"line {_line(text, at)}: {text[at : at + 20]!r} starts no element")
    attributes: dict[str, str] = {}
    end = opening.end()
    while found := _ATTRIBUTE.match(text, end):
        if found[1] in attributes:
            raise XmlError(f"line {_line(text, end)}: {found[1]!r} occurs twice in <{opening[1]}>")
        attributes[found[1]] = _ENTITY.sub(_character, found[2] if found[2] is not None else found[3])
        end = found.end()
    closed = _END.match(text, end)
    if closed is None:
        message = f"<{opening[1]}> is not finished, at {text[end : end + 20].strip()!r}"
        raise XmlError(f"line {_line(text, end)}: {message}")
    return SubElement(parent, opening[1], attributes), closed[1] == "/", closed.end()


def _character(entity: re.Match[str]) -> str:
    if entity[3]:
        return _NAMED[entity[3]]
    code = int(entity[1], 16) if entity[1] else int(entity[2])
    return chr(code) if 0 < code < 0x110000 and not 0xD800 <= code < 0xE000 else entity[0]


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _open(text: str, stack: list[Element], begins: list[int]) -> str:
    return f"; <{stack[-1].tag}> of line {_line(text, begins[-1])} is open" if len(stack) > 1 else ""


TIMEOUT = 60.0  # s


def expand(path: Path) -> str:
    """Return the URDF that a xacro file expands to, its arguments as they stand in it; see ``expand_xacro``.

    Raises:
        ProfileError: xacro is not at hand, or refuses the file; the message has its words.
    """
    command = _command(path)
    if command is None:
        expected = (
            "a URDF, or an installed xacro: pip install xacro, or from a ROS distribution ros-<distro>-xacro; "
            "elsewhere: xacro FILE.xacro > FILE.urdf"
        )
        raise ProfileError([Problem(str(path), "", "xacro", expected, "contains xacro, but xacro is not installed")])
    with tempfile.TemporaryFile() as output:  # its size can be bounded
        try:
            done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, timeout=TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _refusal(path, str(error)) from error
        if done.returncode:
            ended = f"it ended with {done.returncode}" if done.returncode < 0 else ""
            raise _refusal(path, done.stderr.decode("utf-8", "replace") or ended)
        if output.seek(0, 2) >= limits.XML_BYTES:
            raise _refusal(path, f"it expands to more than {limits.XML_BYTES} bytes")
        output.seek(0)
        return output.read().decode("utf-8", "replace")


def _command(path: Path) -> list[str] | None:
    program = [sys.executable, "-P", str(Path(__file__).with_name("expand_xacro.py")), str(path)]
    spec = find_spec("xacro")
    if spec is not None and spec.origin is not None:  # a folder of that name, as descriptions have, is no module
        return program
    found = shutil.which("xacro")
    return [*program, found] if found is not None else None


def _refusal(path: Path, words: str) -> ProfileError:
    told = "; ".join(line.strip() for line in words.splitlines() if line.strip()) or "no error message"
    expected = "a file that xacro expands without arguments; otherwise: xacro FILE.xacro NAME:=VALUE > FILE.urdf"
    return ProfileError([Problem(str(path), "", "xacro", expected, f"xacro cannot expand it: {told}")])


def _is_expression(element: Element) -> bool:
    values = element.attrib.values() if element.tag in ("joint", "link", "parent", "child", "mimic") else ()
    return any(sign in value for value in values for sign in EXPRESSIONS)


def holds_xacro(text: str) -> bool:
    """Return whether some element is xacro's, or the name of a joint or link is still an expression of xacro."""
    if not any(sign in text for sign in ("<xacro:", *EXPRESSIONS)):
        return False
    try:
        return any(each.tag.startswith("xacro:") or _is_expression(each) for each in parse(text).iter())
    except XmlError:
        return False
