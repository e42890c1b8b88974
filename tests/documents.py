"""The Markdown pages of the project: their links, anchors and code, as CommonMark reads them."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = {"sh", "bash", "console", ""}


@dataclass(frozen=True)
class Code:
    """A fenced block or a piece of inline code; `line` is that of its beginning, from 1."""

    page: Path
    line: int
    text: str
    language: str | None  # None: inline

    @property
    def origin(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def codes(page: Path) -> list[Code]:
    """All code of a page, in its order."""
    found, line = [], 0
    for token in tokens(page):
        line = token.map[0] if token.map else line
        if token.type == "fence":
            language = token.info.split()[0] if token.info.strip() else ""
            found.append(Code(page, line + 1, token.content, language))
        found += [
            Code(page, line + 1, child.content, None) for child in token.children or () if child.type == "code_inline"
        ]
    return found


def shell_blocks(page: Path) -> list[Code]:
    """Fenced blocks that a shell reads: `sh`, `bash`, `console`, and those without a language."""
    return [code for code in codes(page) if code.language in SHELL]


def links(page: Path) -> list[str]:
    """Targets of links and images, without addresses of the web."""
    found = []
    for token in tokens(page):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if isinstance(target, str) and "://" not in target and not target.startswith("mailto:"):
                found.append(target)
    return found


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as hosting pages make them of the text."""
    found: set[str] = set()
    for opening, heading in itertools.pairwise(tokens(page)):
        if opening.type == "heading_open":
            text = "".join(child.content for child in heading.children or ())
            name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            count = sum(
                anchor == name or re.fullmatch(re.escape(name) + r"-\d+", anchor) is not None for anchor in found
            )
            found.add(f"{name}-{count}" if count else name)
    return found
