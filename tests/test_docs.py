"""The documents keep up with the code: links lead somewhere, names and paths exist, programs in them run."""

import ast
import asyncio
import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GENERATED = ROOT / "docs" / "reference"
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if GENERATED not in path.parents),
]
LINK = re.compile(r"\[[^\]]*\]\((?!https?://)([^)#\s]*)(#[^)\s]*)?\)")
NAME = re.compile(r"(?<![\w./-])jaxserve(?:_kernels)?(?:\.[A-Za-z_]\w*)+")
PATH = re.compile(r"(?<![\w./-])(?:jaxserve|kernels|tests|docs|examples|bench|\.ci)/[\w./-]*\w")


def of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def anchors(document: Path) -> set[str]:
    """The anchors that the headings of a document make, by the rule of the sites that render Markdown."""
    headings = re.findall(r"^#+\s+(.*)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def resolve(name: str) -> object:
    """The object of a dotted name: the longest module, then attributes."""
    parts = name.split(".")
    value: object = importlib.import_module(parts[0])
    for depth, part in enumerate(parts[1:], start=2):
        try:
            value = getattr(value, part)
        except AttributeError:
            if not inspect.ismodule(value):
                raise
            value = importlib.import_module(".".join(parts[:depth]))
    return value


@pytest.mark.parametrize("document", DOCUMENTS, ids=of)
def test_links_lead_somewhere(document):
    for target, anchor in LINK.findall(document.read_text("utf-8")):
        reached = (document.parent / target).resolve() if target else document
        assert reached.exists() or GENERATED in (reached, *reached.parents), f"{target} does not exist"
        if anchor:
            assert anchor[1:] in anchors(reached), f"{target}{anchor}: no such heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=of)
def test_names_and_paths_exist(document):
    text = document.read_text("utf-8")
    for name in sorted(set(NAME.findall(text))):
        assert resolve(name) is not None, name
    for path in sorted(set(PATH.findall(text))):
        assert (ROOT / path).exists() or (ROOT / path).is_relative_to(GENERATED), path


def python_in(document: Path) -> str:
    """The Python blocks of a document as one program, each line where it stands in the document."""
    lines = []
    inside = False
    for line in document.read_text("utf-8").splitlines():
        inside = line == "```python" or (inside and line != "```")
        lines.append(line if inside and line != "```python" else "")
    return "\n".join(lines)


@pytest.mark.parametrize("document", DOCUMENTS, ids=of)
def test_python_in_documents_parses(document):
    compile(python_in(document), str(document), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)


def test_the_page_on_embedding_runs():
    page = ROOT / "docs" / "embedding.md"
    program = compile(python_in(page), str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    async def run() -> None:
        await eval(program, {"__name__": "embedding"})

    asyncio.run(run())
