"""Further cases are run by naming their folder; each says its own salt."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.rebuilt import HERE, cases, load, unit


@pytest.fixture
def salted(tmp_path, monkeypatch):
    """A folder with the first cascade under another name, part of its arrays' names moved into the salt."""
    said = json.loads((HERE / "cascade_0.json").read_text())
    arrays = {key: name.removeprefix("casc") for key, name in said["arrays"].items()}
    (tmp_path / "cascade_salted.json").write_text(json.dumps(said | {"salt": "casc", "arrays": arrays}))
    (tmp_path / "cascade_salted.npz").write_bytes((HERE / "cascade_0.npz").read_bytes())
    monkeypatch.setenv("VIDSSL_CONFORMANCE", str(tmp_path))
    return tmp_path


def test_cases_come_from_the_folder_that_is_named(salted):
    assert cases("cascade") == ["cascade_salted"]
    assert not cases("encoder")
    said, stored = load("cascade_salted")
    name = said["arrays"]["query_a"]
    assert unit(name, 8, 128, salt=said["salt"]).equal(unit("cascade0/query_a", 8, 128))
    assert set(stored) == set(load_of_here("cascade_0"))


def load_of_here(case):
    os.environ.pop("VIDSSL_CONFORMANCE")
    return load(case)[1]


def test_a_folder_without_cases_is_an_error_and_not_an_empty_run(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDSSL_CONFORMANCE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="holds no case"):
        cases("cascade")


@pytest.mark.slow
def test_a_salted_case_is_run_by_the_tests_as_they_stand(salted):
    root = Path(__file__).parents[2]
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/conformance/test_cascade_numbers.py",
    ]
    done = subprocess.run([*words, "-rA"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert done.stdout.count("PASSED") == 4  # one case, four backends
    assert "cascade_salted-faiss" in done.stdout
