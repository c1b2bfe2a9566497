"""A report as one HTML file that needs nothing else: no script, no font, no picture from outside.

Everything that is told is text and escaped; the file's own policy forbids a browser to run or to
fetch anything, whatever a name contains.

References
----------
Content Security Policy Level 3, https://www.w3.org/TR/CSP3/.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise

from fl_app.report.figures import Picture
from fl_app.report.rendering import Block, TextTable, clean
from fl_app.report.sections import Sections

__all__ = ["to_html"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1b1f23; background: #fff;
  margin: 0 auto; max-width: 68rem; padding: 1.5rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid #d0d7de; }
nav { font-size: .9rem; } nav a { margin-right: .9rem; color: #0057a3; }
ul { padding-left: 1.1rem; margin: .4rem 0; } li { margin: .2rem 0; }
#answer li { font-size: 1.1rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; white-space: nowrap; }
th, td { padding: .22rem .7rem; text-align: right; vertical-align: top; white-space: nowrap; }
th { border-top: 2px solid #1b1f23; border-bottom: 1px solid #1b1f23; }
tbody { border-bottom: 1px solid #d0d7de; }
tbody:last-child { border-bottom: 2px solid #1b1f23; }
.text { text-align: left; white-space: normal; max-width: 34rem; }
.text:last-child { max-width: none; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption { font-size: .88rem; color: #444c56; }
@page { margin: 15mm; }
@media print {
  body { font-size: 9.5pt; max-width: none; padding: 0; }
  nav { display: none; } h2 { break-after: avoid; margin-top: 1.4rem; }
  .wide { overflow: visible; } table { font-size: 7.5pt; }
  th, td { padding: .1rem .35rem; white-space: normal; }
  .text { overflow-wrap: anywhere; min-width: 6em; }
  thead { display: table-header-group; } tr, figure, li { break-inside: avoid; }
  figure svg { max-height: 23cm; }
}
"""


def to_html(
    title: str, sections: Sections, pictures: Mapping[str, Sequence[Picture]] | None = None
) -> str:
    """Return a report as one HTML file.

    Parameters
    ----------
    title : str
        What it is about.
    sections : mapping of str to sequence of Block
        Blocks by heading, in order.
    pictures : mapping of str to sequence of Picture, optional
        By the heading under which they stand, after its blocks.
    """
    pictures = pictures or {}
    names = {name: re.sub(r"\W+", "-", name.lower()) for name in sections}
    links = "\n".join(f'<a href="#{names[name]}">{escape(name)}</a>' for name in sections)
    body = "\n".join(
        f'<section id="{names[name]}">\n<h2>{escape(name)}</h2>\n{_blocks(blocks)}\n'
        f"{''.join(map(_figure, pictures.get(name, ())))}</section>"
        for name, blocks in sections.items()
    )
    shown = escape(str(clean(title)))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{shown}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{shown}</h1>
<nav>
{links}
</nav>
{body}
</body>
</html>
"""


def _blocks(blocks: Iterable[Block]) -> str:
    """Return lines as one list where they follow each other, and tables between."""
    parts: list[str] = []
    for block in map(clean, blocks):
        if isinstance(block, TextTable):
            parts.append(_table(block))
        elif parts and parts[-1].endswith("</ul>"):
            parts[-1] = f"{parts[-1].removesuffix('</ul>')}<li>{escape(block)}</li></ul>"
        else:
            parts.append(f"<ul><li>{escape(block)}</li></ul>")
    return "\n".join(parts)


def _table(table: TextTable) -> str:
    bounds = [0, *table.sections, len(table.rows)]
    bodies = [
        f"<tbody>\n{''.join(_row(row, 'td', table.texts) for row in table.rows[a:b])}</tbody>"
        for a, b in pairwise(bounds)
    ]
    head = _row(table.columns, 'th scope="col"', table.texts)
    parts = [f"<caption>{escape(table.title)}</caption>", f"<thead>{head}</thead>", *bodies]
    return f'<div class="wide"><table>{"".join(parts)}</table></div>'


def _row(cells: Iterable[str], tag: str, texts: int) -> str:
    ended = tag.partition(" ")[0]
    shown = (
        f"<{tag}{' class=text' if i < texts else ''}>{escape(cell)}</{ended}>"
        for i, cell in enumerate(cells)
    )
    return f"<tr>{''.join(shown)}</tr>\n"


def _figure(picture: Picture) -> str:
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>"
    svg = picture.files.get("svg", b"").decode()
    if not svg:
        return f"<figure>{caption}</figure>\n"
    # Several pictures in one page: what only one file has, and names that are in each, go.
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[\w.-]+"', "<g", svg)
    label = f'<svg role="img" aria-label="{escape(picture.caption)}" '
    return f"<figure>\n{label}{svg.removeprefix('<svg ')}{caption}</figure>\n"
