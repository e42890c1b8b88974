"""MkDocs hooks: README, CONTRIBUTING, CHANGELOG and linked files of the repository become pages of the site.

A page of docs/ links to a file outside docs/ by its relative path (`../conf/train.yaml`). That works where the
repository is hosted, but MkDocs knows files below docs/ alone. So README.md becomes `index.md`, CONTRIBUTING.md and
CHANGELOG.md become pages of the same name, and any other file that a page links to becomes a page
`repository/<path>.md` with its text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
DOCS = "docs"
# Path in the repository -> page of the site.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand outside docs/, and one for each other file that any page links to."""
    sources = {page.src_uri: f"{DOCS}/{page.src_uri}" for page in files.documentation_pages()}
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
        sources[page] = path
    linked = {path for source in sources.values() for path in _outside(source)}
    for path in sorted(linked - set(PAGES)):
        files.append(File.generated(config, _page_of(path), content=_shown(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let every link name a page of the site."""
    source = next((path for path, site in PAGES.items() if site == page.file.src_uri), f"{DOCS}/{page.file.src_uri}")
    here = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        start, target, anchor, end = match.groups(default="")
        path = _in_repository(source, target)
        if path is None:
            return match[0]
        return f"{start}{posixpath.relpath(_page_of(path), here or '.')}{anchor}{end}"

    return _outside_fences(markdown, lambda text: LINK.sub(moved, text))


def _outside(source: str) -> set[str]:
    """Files outside docs/ that the Markdown file `source` links to, by path in the repository."""
    found: set[str] = set()

    def collect(text: str) -> str:
        found.update(path for match in LINK.finditer(text) if (path := _in_repository(source, match[2])))
        return text

    _outside_fences((ROOT / source).read_text(encoding="utf-8"), collect)
    return {path for path in found if not path.startswith(f"{DOCS}/")}


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    """`change` applied to all text but fenced code."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])


def _in_repository(source: str, target: str) -> str | None:
    """Path in the repository of what `source` links to; None for an address, and for what is no file there.

    MkDocs then finds no page for such a link and says so.
    """
    if "://" in target or target.startswith(("mailto:", "/")):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return path if (ROOT / path).is_file() else None


def _page_of(path: str) -> str:
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix(f"{DOCS}/") if path.startswith(f"{DOCS}/") else f"repository/{path}.md"


def _shown(path: str) -> str:
    """A page with the text of a file of the repository."""
    language = Path(path).suffix.removeprefix(".") or "text"
    return f"# {path}\n\n````{language}\n{(ROOT / path).read_text(encoding='utf-8')}\n````\n"
