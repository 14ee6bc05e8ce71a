"""What error messages advise must exist: every `vidssl VERB` in the sources is a verb of the command line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from cluster.commands.table import VERBS

ROOT = Path(__file__).parents[2]
VERB = re.compile(r"\bvidssl ([a-z]+)\b")
PROSE = {"did", "itself"}
"""Words that follow the name in running text."""


def advised(path: Path) -> set[str]:
    """Verbs in the texts of a module, docstrings left out."""
    tree = ast.parse(path.read_text())
    docs = {
        ast.get_docstring(node, clean=False)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {verb for text in texts if text not in docs for verb in VERB.findall(text)}


def test_no_sentence_advises_a_verb_that_does_not_exist():
    found = {
        path.relative_to(ROOT): advised(path)
        for layer in ("vidssl", "pipelines", "cluster")
        for path in (ROOT / layer).rglob("*.py")
    }
    assert "evaluate" in set().union(*found.values())
    unknown = {str(path): verbs - set(VERBS) - PROSE for path, verbs in found.items() if verbs - set(VERBS) - PROSE}
    assert not unknown
