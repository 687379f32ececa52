"""What the pages of reports have in common: one file that holds everything it shows, in one style."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence


def document(title: str, body: str, style: str = "") -> str:
    """Return a whole page.

    Args:
        title: plain text.
        body: HTML.
        style: CSS beside what every page has.
    """
    return _DOCUMENT.format(title=html.escape(title), style=_STYLE + style, body=body)


def cards(figures: Iterable[tuple[str, str]]) -> str:
    """Return figures, each a value and what it is, as cards; both are escaped."""
    return "".join(
        f"<div class=card><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>" for value, name in figures
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in HTML; its cells are escaped."""
    lines = [_row(head, "th")] if any(head) else []
    lines += [_row(row, "td") for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _row(cells: Sequence[str], tag: str) -> str:
    first, *others = (html.escape(cell) for cell in cells)
    return f"<tr><th>{first}</th>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in others) + "</tr>"


def embed(png: bytes) -> str:
    """Return a PNG as the source of an image."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 20px 16px 48px; color: #1d2430; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 36px 0 10px; font-size: 1.2rem; border-bottom: 1px solid #dde2ea; padding-bottom: 4px; }
.quiet, figcaption { color: #5b6675; font-size: .88rem; }
.note { margin: 16px 0; padding: 10px 14px; border-radius: 8px; border-left: 5px solid; }
.bad { background: #fdeaf0; border-color: #c42e5c; }
.good { background: #e9f6ee; border-color: #2ea060; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 10px; }
.card { background: #f4f6f9; border-radius: 8px; padding: 10px 12px; }
.card b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.card span { color: #5b6675; font-size: .85rem; }
video { width: 100%; border-radius: 8px; background: #11151c; display: block; margin-top: 18px; aspect-ratio: 16 / 9; }
figure { margin: 0; break-inside: avoid; }
figure img { width: 100%; display: block; }
.joints { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); gap: 14px 18px; }
.joints figcaption { display: none; }
.scroll { overflow-x: auto; }
.scroll figure { min-width: 640px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 16px 5px 0; border-bottom: 1px solid #e6eaf0; vertical-align: top; }
th { font-weight: 600; }
td { overflow-wrap: anywhere; }
@media print {
  .scroll figure { min-width: 0; }
  @page { margin: 14mm; }
  body { max-width: none; padding: 0; font-size: 11pt; }
  .joints { grid-template-columns: 1fr 1fr; }
  h2 { break-after: avoid; }
  .card, .note { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}</body>
</html>
"""
