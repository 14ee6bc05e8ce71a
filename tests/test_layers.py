"""The direction vidssl ← pipelines ← cluster, and what importing them may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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


def test_the_tree_of_the_readme_names_every_module_in_its_folder_and_no_other():
    there = {
        str(path.relative_to(ROOT))
        for layer in FORBIDDEN
        for path in (ROOT / layer).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    lines, named = tree_of_the_readme()
    assert {name for name in named if not name.startswith("benchmarks/")} == there
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
