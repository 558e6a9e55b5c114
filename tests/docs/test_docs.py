"""What the pages mention exists: links, headings, files, and the names that follow a link to a file."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from nooble.env import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_fence = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_link = re.compile(r"\]\(([^)\s]+)\)")
_heading = re.compile(r"^#+ (.+)$", re.MULTILINE)
_file = re.compile(r"`([\w.-]+(?:/[\w.-]+)*/(?:[\w.-]+\.(?:py|lua|sh|md|yml|txt|toml))?)`")
# A path, linked or in backquotes, and then names: `name`, `Class.name`, several of them with commas between.
_named = re.compile(r"(?:\]\(([^)\s]+\.py)\)|`([\w/]+\.py)`)((?:,?\s+`[A-Za-z_][\w.]*`)+)")
_name = re.compile(r"`([\w.]+)`")


def _ids(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def _prose(page: Path) -> str:
    return _fence.sub("", page.read_text())


@cache
def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = (heading.replace("`", "").lower() for heading in _heading.findall(_prose(page)))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@cache
def _names(file: Path) -> set[str]:
    """What a module defines at its top, and `Class.name` for what its classes define."""
    found: set[str] = set()

    def define(body: list[ast.stmt], prefix: str) -> None:
        for statement in body:
            match statement:
                case ast.ClassDef(name=name):
                    found.add(prefix + name)
                    define(statement.body, f"{prefix}{name}.")
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    found.add(prefix + name)
                case ast.Assign(targets=targets):
                    for target in targets:
                        found.update(
                            prefix + node.id for node in ast.walk(target) if isinstance(node, ast.Name)
                        )
                case ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(prefix + name)

    define(ast.parse(file.read_text()).body, "")
    return found


@pytest.mark.parametrize("page", PAGES, ids=_ids(PAGES))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _link.findall(_prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=_ids(PAGES))
def test_files_that_are_mentioned_exist(page: Path) -> None:
    paths = [path for path in _file.findall(_prose(page)) if not path.startswith(".")]
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=_ids(PAGES))
def test_names_after_a_file_are_in_it(page: Path) -> None:
    missing = []
    for link, path, names in _named.findall(_prose(page)):
        file = (page.parent / link).resolve() if link else ROOT / path
        missing += [f"{file.name}: {name}" for name in _name.findall(names) if name not in _names(file)]
    assert missing == []


def test_the_tour_names_what_it_links() -> None:
    """So that the test above has something to hold on to."""
    assert len(_named.findall(_prose(ROOT / "docs" / "tour.md"))) > 20


@pytest.mark.parametrize("page", PAGES, ids=_ids(PAGES))
def test_python_in_the_pages_is_python(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        ast.parse(block)
    for block in re.findall(r"python - <<'END'\n(.*?)^END$", page.read_text(), re.DOTALL | re.MULTILINE):
        ast.parse(block)


def test_the_decisions_are_listed() -> None:
    folder = ROOT / "docs" / "adr"
    listed = set(_link.findall((folder / "README.md").read_text()))
    assert listed == {page.name for page in folder.glob("*.md")} - {"README.md"}
