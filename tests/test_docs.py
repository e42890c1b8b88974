"""Links of README, CONTRIBUTING, CHANGELOG and docs/: each names a file that is there and an anchor that it has."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.documents import PAGES, ROOT, anchors, codes, links


def named(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_name_files_of_the_project(page):
    targets = {link.partition("#")[0] for link in links(page)} - {""}
    assert [target for target in sorted(targets) if not (page.parent / target).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_anchors_are_headings_of_the_page_they_name(page):
    broken = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if anchor and anchor not in anchors(file):
            broken.append(link)
    assert broken == []


def test_a_broken_anchor_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `day` at a time: how?\n\n[here](#a-day-at-a-time-how) [there](other.md#nothing)\n")
    assert anchors(page) == {"a-day-at-a-time-how"}
    assert links(page) == ["#a-day-at-a-time-how", "other.md#nothing"]


def test_every_page_is_in_the_navigation_of_the_site():
    """`make docs` refuses a page without a place too; this says so without MkDocs."""
    navigation = re.findall(r"[\w/-]+\.md", yaml.safe_dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = {named(page).removeprefix("docs/") for page in PAGES} - {"README.md"} | {"index.md"}
    assert sorted(navigation) == sorted(pages)


PATH_OF_OURS = re.compile(r"(features|ctr|pipelines|tests|conf|docs|benchmarks)/[\w/.-]*\w/?")
OF_THE_READER = ("yours", "NAME")


def is_there(path):
    """A file or folder, a module named without its suffix, or a test file named from tests/."""
    return any((ROOT / place).exists() for place in (path, f"{path}.py", f"tests/{path}"))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_paths_in_the_text_are_there(page):
    paths = {code.text for code in codes(page) if code.language is None and PATH_OF_OURS.fullmatch(code.text)}
    assert [
        path for path in sorted(paths) if not is_there(path) and not any(part in path for part in OF_THE_READER)
    ] == []
