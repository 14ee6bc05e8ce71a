"""Dataclasses as JSON files: what comes back, and what is said of a file that is something else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from vidssl.errors import CheckpointError
from vidssl.records import read_record, to_tree, write_record

MEND = "type vidssl evaluate RUN"


@dataclass(frozen=True, kw_only=True)
class Row:
    share: float
    edges: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Page:
    name: str
    rows: Mapping[str, Row]
    steps: tuple[int, ...] = ()
    reason: str | None = None


PAGE = Page(name="ä", rows={"one": Row(share=0.25, edges=(0.1, 0.4)), "two": Row(share=1)}, steps=(1, 2))


def test_what_is_written_comes_back_equal_and_is_plain_json(tmp_path):
    write_record(tmp_path / "new" / "page.json", PAGE)
    assert read_record(Page, tmp_path / "new" / "page.json", MEND) == PAGE
    tree = json.loads((tmp_path / "new" / "page.json").read_text())
    assert tree == to_tree(PAGE)
    assert tree["rows"]["one"] == {"share": 0.25, "edges": [0.1, 0.4]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.json"]


def test_keys_that_a_later_version_adds_are_left_out(tmp_path):
    (tmp_path / "page.json").write_text(json.dumps(to_tree(PAGE) | {"later": [1, 2]}))
    assert read_record(Page, tmp_path / "page.json", MEND) == PAGE


def test_a_number_that_is_not_finite_is_not_written(tmp_path):
    write_record(tmp_path / "page.json", PAGE)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(tmp_path / "page.json", Page(name="x", rows={"one": Row(share=float("nan"))}))
    assert read_record(Page, tmp_path / "page.json", MEND) == PAGE


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b"\xff\xfe\x00", "is damaged"),
        (b"[" * 100_000, r"is damaged \(nested too deep\)"),
        (b"3", r"is of another shape \(the file: "),
        (b"null", "is of another shape"),
        (b"[1, 2]", "is of another shape"),
        (b"{}", r"is of another shape \(name: field required\)"),
        (b'{"name": 1, "rows": {}}', r"another shape \(name: input should be a valid string\)"),
        (b'{"name": "x", "rows": {"one": {"share": "much"}}}', r"another shape \(rows\.one\.share: "),
        (b'{"name": "x", "rows": {"one": {"share": 1, "edges": [1]}}}', r"another shape \(rows\.one\.edges\.1: "),
    ],
)
def test_a_torn_or_foreign_file_is_one_sentence_that_names_it_and_what_to_type(tmp_path, content, sentence):
    path = tmp_path / "page.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=sentence) as error:
        read_record(Page, path, MEND)
    assert str(error.value).startswith(str(path))
    assert str(error.value).endswith(f"remove it and {MEND}")
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    (tmp_path / "page.json").mkdir()
    with pytest.raises(CheckpointError, match=r"page.json is damaged \(Is a directory\)"):
        read_record(Page, tmp_path / "page.json", MEND)
