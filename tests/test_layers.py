"""The direction vidssl ← pipelines ← cluster, and what importing them may cost."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.evaluators import EVALUATORS
from pipelines.packing.catalog import FORMATS
from vidssl.tables.backbones import BACKBONES
from vidssl.tables.methods import METHODS
from vidssl.tables.strategies import STRATEGIES

ROOT = Path(__file__).parent.parent
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for layer in ("vidssl", "pipelines", "cluster")
    for path in (ROOT / layer).rglob("*.py")
}
"""Dotted name → file of every module of the three packages."""
FORBIDDEN = {
    "vidssl": {"pipelines", "cluster", "ray", "nvidia", "webdataset", "av"},
    "pipelines": {"cluster", "ray"},
    "cluster": set(),
}


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_a_layer_imports_only_what_lies_below_it(layer):
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    wrong = {
        str(path.relative_to(ROOT)): names for path in files if (names := imported_packages(path) & FORBIDDEN[layer])
    }
    assert not wrong


@pytest.mark.parametrize("statement", ["import vidssl", "import pipelines", "import cluster", "import cluster.cli"])
def test_importing_a_package_loads_neither_dali_nor_ray_nor_faiss(statement):
    code = f"{statement}; import sys; print(sorted({{'ray', 'faiss', 'nvidia', 'av'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def tree_of_the_readme() -> tuple[list[str], set[str]]:
    """The lines of the README's tree, and the modules it names as `folder/name.py`."""
    text = (ROOT / "README.md").read_text()
    lines = text[text.index("## The tree") :].split("```")[1].strip("\n").splitlines()
    folders: list[str] = []
    named: set[str] = set()
    for line in lines:
        level = (len(line) - len(line.lstrip())) // 2
        words = line.split()
        del folders[level:]
        if words[0].endswith("/"):
            folders.append(words[0])
            continue
        for word in words:
            if not word.endswith(".py"):
                break
            named.add("".join(folders) + word)
    return lines, named


def modules_that_a_table_names() -> set[str]:
    """Files of the classes in the five tables: who adds one writes its file, its line there and its test, no more."""
    tables = (METHODS, BACKBONES, STRATEGIES, EVALUATORS)
    modules = {traits.place.partition(":")[0] for table in tables for traits in table.values()}
    modules |= {kind.read.__module__ for kind in FORMATS.values()}
    return {module.replace(".", "/") + ".py" for module in modules}


def test_the_tree_of_the_readme_names_every_module_in_its_folder_and_no_other():
    """What one of its tables names may be missing: the table is the list of those."""
    there = {
        str(path.relative_to(ROOT))
        for layer in FORBIDDEN
        for path in (ROOT / layer).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    lines, named = tree_of_the_readme()
    assert {name for name in named if not name.startswith("benchmarks/")} <= there
    assert there - named <= modules_that_a_table_names() <= there
    assert all((ROOT / name).is_file() for name in named)
    assert len(lines) <= 90


def test_no_module_is_longer_than_400_lines():
    long = [
        str(path)
        for layer in FORBIDDEN
        for path in (ROOT / layer).rglob("*.py")
        if len(path.read_text().splitlines()) > 400
    ]
    assert not long


def modules_imported_by(path: Path) -> set[str]:
    """Our modules that a module imports anywhere: on top, inside functions, and for the type checker alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & SOURCES.keys()
            found |= whole or {node.module}
    return found & SOURCES.keys()


def circles(graph: dict[str, set[str]]) -> list[str]:
    """What is left when whatever leads to nothing that is left is taken away, again and again."""
    left = {name: set(to) for name, to in graph.items()}
    while leaves := {name for name, to in left.items() if not to & left.keys()}:
        left = {name: to for name, to in left.items() if name not in leaves}
    return sorted(left)


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return {name: modules_imported_by(path) - {name} for name, path in SOURCES.items()}


def test_the_search_for_circles_finds_one(imports):
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert imports["vidssl.recipe"] >= {"vidssl.sections", "vidssl.errors"}


def test_imports_between_modules_form_no_circle(imports):
    assert not circles(imports)


@pytest.mark.parametrize("depth", [2, 3])
def test_no_import_runs_back_from_a_folder_to_what_lies_above_it(depth, imports):
    """A folder is one thing, seen from above: nothing that it needs may need it."""
    above: dict[str, set[str]] = {}
    for name, to in imports.items():
        here = ".".join(name.split(".")[:depth])
        above.setdefault(here, set()).update({".".join(other.split(".")[:depth]) for other in to} - {here})
    assert not circles(above)


def lengths_of_functions() -> dict[str, int]:
    return {
        f"{name}.{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for name, path in SOURCES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_functions_are_short():
    lengths = lengths_of_functions()
    assert statistics.median(lengths.values()) <= 9
    assert not {name: lines for name, lines in lengths.items() if lines > 60}


@pytest.mark.parametrize("folder", ["methods", "mining", "tables"])
def test_words_of_the_glossary_have_no_second_name(folder):
    told = "\n".join(path.read_text().lower() for path in sorted((ROOT / "vidssl" / folder).rglob("*.py")))
    assert "aux view" in told or folder == "tables"
    for word in ("auxiliary", "other view ", "other stream", "main phase", "warm-up phase"):
        assert word not in told, word
