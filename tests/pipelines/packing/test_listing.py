from __future__ import annotations

import os

import pytest

from pipelines.packing.catalog import read_catalog
from pipelines.packing.listing import files_below, identities
from vidssl.errors import DataError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def paths(catalog):
    return [row.path for row in catalog.rows]


@pytest.mark.parametrize(
    "loops", [["a/loop"], ["a/loop", "a/deep/up", "b/top"], ["a/one", "a/two", "a/three", "a/four"]]
)
def test_a_link_that_leads_back_is_passed_over_with_a_word(tmp_path, loops):
    touch(tmp_path, "a/1.mp4", "a/deep/2.mp4", "b/3.mp4")
    for loop in loops:
        target = tmp_path if loop == "b/top" else tmp_path / "a"
        (tmp_path / loop).symlink_to(target)
    catalog = read_catalog("folder", tmp_path)
    assert paths(catalog) == ["a/1.mp4", "a/deep/2.mp4", "b/3.mp4"]
    assert len(catalog.notes) == 1
    assert catalog.notes[0].startswith("passed over 'a/")
    assert "which leads back to '" in catalog.notes[0]


def test_a_link_to_a_folder_outside_is_followed(tmp_path):
    touch(tmp_path, "elsewhere/1.mp4", "elsewhere/in/2.mp4", "src/b/3.mp4")
    (tmp_path / "src" / "a").symlink_to(tmp_path / "elsewhere")
    catalog = read_catalog("folder", tmp_path / "src")
    assert [(row.path, row.label) for row in catalog.rows] == [("a/1.mp4", "a"), ("a/in/2.mp4", "a"), ("b/3.mp4", "b")]
    assert catalog.notes == ()


def test_a_class_under_a_second_name_is_refused(tmp_path):
    touch(tmp_path, "walk/1.mp4", "run/2.mp4")
    (tmp_path / "stroll").symlink_to(tmp_path / "walk")
    with pytest.raises(
        DataError, match=r"'stroll' in .* leads to the folder that is listed as 'walk' already.*two classes"
    ):
        files_below(tmp_path)


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symlink", "hard link"])
def test_one_file_under_two_names_is_one_video(tmp_path, link):
    touch(tmp_path, "a/1.mp4", "a/2.mp4")
    for name in ("x.mp4", "y.mp4"):
        link(tmp_path / "a" / "1.mp4", tmp_path / "a" / name)
    catalog = read_catalog("folder", tmp_path)
    assert paths(catalog) == ["a/1.mp4", "a/2.mp4"]
    assert catalog.notes == ("passed over 'a/x.mp4', which is the same file as 'a/1.mp4' (and 1 more like it)",)


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symlink", "hard link"])
def test_one_file_in_two_classes_is_refused(tmp_path, link):
    touch(tmp_path, "a/1.mp4", "b/2.mp4")
    link(tmp_path / "a" / "1.mp4", tmp_path / "b" / "x.mp4")
    with pytest.raises(DataError, match=r"'a/1\.mp4' and 'b/x\.mp4' in .* are one file, once as label a .* remove one"):
        read_catalog("folder", tmp_path)


def test_links_to_many_different_files_are_different_videos(tmp_path):
    touch(tmp_path, *(f"store/{number}" for number in range(5)))
    (tmp_path / "src" / "a").mkdir(parents=True)
    for number in range(5):
        (tmp_path / "src" / "a" / f"{number}.mp4").symlink_to(tmp_path / "store" / str(number))
    assert len(read_catalog("folder", tmp_path / "src").rows) == 5


def test_a_missing_file_is_known_by_its_spelling(tmp_path):
    one, same, other = identities(tmp_path, ["x/1.mp4", "./x/../x/1.mp4", "x/2.mp4"])
    assert one == same != other
