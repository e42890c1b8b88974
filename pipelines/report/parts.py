"""The parts of a report's sections: plots, tables, facts. Text is escaped here, once."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib
from matplotlib.figure import Figure

PIXELS_AN_INCH = 96
# With all of these None, matplotlib writes no block of metadata, which would name addresses of standards.
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def plot(figure: Figure, name: str, caption: str) -> str:
    """A figure as inline SVG whose text stays text, with a caption that explains it.

    Args:
        figure: drawn anew for the page.
        name: letters and dashes, unique on the page; ids inside the SVG begin with it.
        caption: plain text.
    """
    return (
        f'<figure><div class="plot">{svg(figure, name, caption)}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def svg(figure: Figure, name: str, label: str) -> str:
    """The `<svg>` element of a figure, ids and references to them prefixed by `name`; `label` is for screen readers."""
    written = io.StringIO()
    # A fixed salt gives the same ids, and so the same page, each time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        # A name in Chinese has no glyph in matplotlib's font, which only measures it: the browser draws it.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(written, format="svg", metadata=_NO_METADATA, transparent=True)
    _, _, text = written.getvalue().partition("<svg")
    text = text[text.index(">") + 1 :]
    # In tags alone: a label may hold anything.
    text = re.sub("<[^>]*>", lambda tag: _renamed(tag.group(), name), text)
    width, height = figure.get_size_inches() * PIXELS_AN_INCH
    points = figure.get_size_inches() * 72
    return (
        f'<svg role="img" aria-label="{escape(label)}" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {points[0]:.4f} {points[1]:.4f}">{text.strip()}'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts, the first column on the left."""
    return grouped_table(head, {"": rows})


def grouped_table(head: Sequence[str], groups: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """A table whose rows stand below the name of their group, where it has one."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    bodies = []
    for group, rows in groups.items():
        title = f'<tr><th scope="rowgroup" colspan="{len(head)}">{escape(group)}</th></tr>' if group else ""
        bodies.append(f"<tbody>{title}{''.join(_row(row) for row in rows)}</tbody>")
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead>{"".join(bodies)}</table></div>'


def facts(values: Mapping[str, str]) -> str:
    """Names with their values, a line each."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values.items())
    return f'<dl class="facts">{lines}</dl>'


def tiles(values: Sequence[tuple[str, str, str]]) -> str:
    """Large numbers: name, value, and a remark below it."""
    lines = "".join(
        f'<dl class="tile"><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd class="aside">{escape(aside)}</dd></dl>'
        for name, value, aside in values
    )
    return f'<div class="tiles">{lines}</div>'


def beside(left: str, right: str) -> str:
    """Two parts side by side where the screen is wide enough."""
    return f'<div class="beside"><div>{left}</div><div>{right}</div></div>'


def folded(title: str, html: str) -> str:
    """A part that opens on a click; it is open on paper."""
    return f"<details><summary>{escape(title)}</summary>{html}</details>"


def remark(text: str) -> str:
    """A sentence or two below a table."""
    return f'<p class="remark">{escape(text)}</p>'


def _row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _renamed(tag: str, name: str) -> str:
    """A tag of a plot with its id, and what it refers to, in the plot's own name space."""
    tag = re.sub(r'\sid="', f' id="{name}-', tag)
    return tag.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
