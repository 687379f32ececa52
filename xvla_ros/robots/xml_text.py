"""XML as the parser of URDFs in ROS takes it: tinyxml2, which asks less of a file than XML does.

Prefixes need no namespace, a default namespace changes no name, ``<`` and ``&`` may stand in values, text may come
before the XML declaration, and a document may have several outermost elements.
"""

from __future__ import annotations

import codecs
import re
from xml.etree.ElementTree import Element, SubElement

from xvla_ros.errors import XvlaError

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
    stack, begins, at = [Element("document")], [0], _BESIDE.match(text).end()  # type: ignore[union-attr]
    while at < len(text):
        if closing := _CLOSE.match(text, at):
            if stack[-1].tag != closing[1] or len(stack) == 1:
                raise XmlError(f"line {_line(text, at)}: </{closing[1]}> closes nothing{_open(text, stack, begins)}")
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
        raise XmlError(f"line {_line(text, at)}: {text[at : at + 20]!r} begins no element")
    attributes: dict[str, str] = {}
    end = opening.end()
    while found := _ATTRIBUTE.match(text, end):
        if found[1] in attributes:
            raise XmlError(f"line {_line(text, end)}: {found[1]!r} is there twice in <{opening[1]}>")
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
