from __future__ import annotations

import pytest

from pipelines.packing.catalog import read_catalog
from vidssl.errors import DataError


@pytest.mark.parametrize(
    "other", ["./x.mp4", "sub/../x.mp4", ".//x.mp4", "{root}/x.mp4", "link.mp4", "hard.mp4", "dir/x.mp4"]
)
def test_one_file_under_two_spellings_is_refused_with_both_lines(tmp_path, other):
    (tmp_path / "sub").mkdir()
    (tmp_path / "x.mp4").write_bytes(b"x")
    (tmp_path / "y.mp4").write_bytes(b"y")
    (tmp_path / "link.mp4").symlink_to("x.mp4")
    (tmp_path / "hard.mp4").hardlink_to(tmp_path / "x.mp4")
    (tmp_path / "dir").symlink_to(tmp_path)
    spelled = other.format(root=tmp_path)
    (tmp_path / "list.csv").write_text(f"path,label\nx.mp4,a\ny.mp4,b\n{spelled},c\n")
    with pytest.raises(DataError) as refused:
        read_catalog("csv", tmp_path / "list.csv")
    assert str(refused.value) == (
        f"{tmp_path / 'list.csv'} line 4 lists '{spelled}' twice (as 'x.mp4' in line 2); a video is one row"
    )


def test_missing_files_are_told_apart_by_their_spelling(tmp_path):
    (tmp_path / "list.csv").write_text("path\nx.mp4\ny.mp4\n")
    assert len(read_catalog("csv", tmp_path / "list.csv").rows) == 2
    (tmp_path / "list.csv").write_text("path\nx.mp4\n./x.mp4\n")
    with pytest.raises(DataError, match="twice"):
        read_catalog("csv", tmp_path / "list.csv")
