"""What docs/security.md says of files and ports is what the code does."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidssl.recipe import load_recipe

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text()
SOURCES = [path for layer in ("vidssl", "pipelines", "cluster") for path in sorted((ROOT / layer).rglob("*.py"))]


@functools.cache
def all_calls() -> list[tuple[str, str, ast.Call]]:
    """Every call in the three packages: the file, its name as it is written there (`torch.load`), itself."""
    trees = ((str(path.relative_to(ROOT)), ast.parse(path.read_text())) for path in SOURCES)
    nodes = ((place, node) for place, tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    plain = (ast.Name, ast.Attribute)
    return [(place, ast.unparse(node.func), node) for place, node in nodes if isinstance(node.func, plain)]


def calls(*names: str) -> Iterator[tuple[str, ast.Call]]:
    """The files and calls of these names."""
    return ((place, node) for place, name, node in all_calls() if name in names)


def words_of(call: ast.Call) -> dict[str | None, str]:
    return {word.arg: ast.unparse(word.value) for word in call.keywords}


def test_every_file_that_the_page_names_is_there():
    named = set(re.findall(r"`((?:vidssl|pipelines|cluster|tests)/[\w./]*)`", PAGE))
    assert len(named) > 12
    assert not [name for name in named if not (ROOT / name).exists()]


def test_no_file_of_tensors_is_read_that_could_run_code():
    found = dict(calls("torch.load"))
    assert set(found) >= {"vidssl/saved/tensors.py", "vidssl/saved/published/files.py", "cluster/finetune/fit.py"}
    assert all(words_of(call)["weights_only"] == "True" for _, call in calls("torch.load"))
    assert all(place in PAGE for place in found)


def test_arrays_are_read_without_pickles():
    assert list(calls("np.load"))
    assert all(words_of(call)["allow_pickle"] == "False" for _, call in calls("np.load"))


def test_pickles_are_read_where_ray_brings_them_and_nowhere_else():
    assert {place for place, _ in calls("pickle.load", "pickle.loads", "load_pickle")} == {
        "cluster/training/entry.py",
        "cluster/finetune/workers.py",
    }


def test_nothing_is_run_that_stands_in_a_text():
    assert not list(calls("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"))
    shells = [place for place, call in calls("subprocess.run", "subprocess.Popen") if "shell" in words_of(call)]
    assert not shells


def test_no_file_of_a_tar_is_extracted_to_a_disk():
    text = "".join(path.read_text() for path in SOURCES)
    assert "extractfile(" in text
    assert not re.search(r"\.extract(all)?\(", text)


def test_the_packages_open_no_port_of_their_own():
    """A socket pair has no address; `listen` and servers would be seen here."""
    opened = re.compile(r"\bsocket\.socket\(|\.listen\(|create_server\(|HTTPServer|\.bind\(\(")
    assert not [str(path) for path in SOURCES if opened.search(path.read_text())]


def test_a_recipe_can_read_the_environment_and_the_page_warns_of_it(monkeypatch):
    monkeypatch.setenv("VIDSSL_TEST_SECRET", "seen")
    assert load_recipe("cpr-tiny", ["name=${oc.env:VIDSSL_TEST_SECRET}"]).name == "seen"
    assert "${oc.env:NAME}" in PAGE


def test_pages_escape_what_they_show_and_load_nothing():
    from cluster.page.parts import Section, page

    made = page("<b>run</b>", "sub", [Section("<i>title</i>", "lead", "body")], ["<u>alarm</u>"])
    assert not {"<b>run", "<i>title", "<u>alarm"} & {tag for tag in ("<b>run", "<i>title", "<u>alarm") if tag in made}
    assert "<script" not in made
    texts = [path.read_text() for folder in ("page", "report") for path in (ROOT / "cluster" / folder).glob("*.py")]
    assert not [text for text in texts if "<script" in text or re.search(r"(src|href)=.?https?:", text)]


@pytest.mark.parametrize(
    "path", ["cluster/deploy/slurm.sh", "cluster/deploy/up-aws.yaml", "cluster/deploy/up-local.yaml"]
)
def test_what_we_start_ourselves_shows_its_dashboard_on_loopback_alone(path):
    text = (ROOT / path).read_text()
    assert "--dashboard-host=127.0.0.1" in text
    assert "--dashboard-host=0.0.0.0" not in text
