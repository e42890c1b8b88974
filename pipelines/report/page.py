"""A report as one self-contained HTML page: sections, a table of contents, one style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pipelines.report.style import STYLE


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Args:
        title: plain text, in the table of contents too.
        note: plain text below the title: the question that the section answers.
        html: the body, made by `pipelines.report.parts`, which escapes what it is given.
    """

    title: str
    note: str
    html: str


def page(title: str, sections: Sequence[Section], kind: str = "Training report") -> str:
    """The whole HTML document; titles and notes are escaped here, `kind` stands above the title."""
    named = [(f"section-{number}", section) for number, section in enumerate(sections, start=1)]
    contents = "".join(f'<li><a href="#{name}">{escape(section.title)}</a></li>' for name, section in named)
    body = "\n".join(_section(name, section) for name, section in named)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><p class="kind">{escape(kind)}</p><h1>{escape(title)}</h1></header>
<div class="columns">
<nav aria-label="Contents"><ol>{contents}</ol></nav>
<main>
{body}
</main>
</div>
</body>
</html>
"""


def _section(name: str, section: Section) -> str:
    return (
        f'<section id="{name}">\n<div class="opening"><h2>{escape(section.title)}</h2>\n'
        f'<p class="note">{escape(section.note)}</p></div>\n{section.html}\n</section>'
    )
