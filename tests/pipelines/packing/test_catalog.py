from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.packing.catalog import FORMATS, Format, _share_of, read_catalog
from pipelines.packing.options import PackOptions
from vidssl.errors import DataError, RecipeError

SPLIT_LISTS = " and ".join(name for name, kind in FORMATS.items() if kind.has_split_files)


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


def rows(catalog):
    return [(row.path, row.label, row.split, row.group) for row in catalog.rows]


def test_a_folder_gives_every_file_its_class_and_its_own_group(tmp_path):
    touch(tmp_path, "b/2.mp4", "a/1.avi", "a/deep/3.txt", "loose.mp4", "readme.txt", ".hidden", "a/.x", ".git/config")
    catalog = read_catalog("folder", tmp_path)
    assert rows(catalog) == [
        ("a/1.avi", "a", "all", "a/1.avi"),
        ("a/deep/3.txt", "a", "all", "a/deep/3.txt"),
        ("b/2.mp4", "b", "all", "b/2.mp4"),
        ("loose.mp4", None, "all", "loose.mp4"),
    ]
    assert catalog.classes == ("a", "b")


def test_a_csv_is_read_relative_to_itself(tmp_path):
    (tmp_path / "list.csv").write_text("path,label,split,group\nx/1.mp4,run,train,s1\nx/2.mp4,,test,\n")
    catalog = read_catalog("csv", tmp_path / "list.csv")
    assert catalog.root == tmp_path
    assert rows(catalog) == [("x/1.mp4", "run", "train", "s1"), ("x/2.mp4", None, "test", "x/2.mp4")]
    assert catalog.splits == ("train", "test")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file,label\n1.mp4,a\n", r"no column 'path' \(its first line is: file, label\)"),
        ("", "no column 'path'"),
        ("path\n", "holds no videos"),
        ("path,label\n1.mp4,a\n,b\n", "line 3 has no path"),
        ("path\n1.mp4\n1.mp4\n", r"lists '1\.mp4' twice"),
    ],
)
def test_a_bad_csv_is_refused_in_one_sentence(tmp_path, text, sentence):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_catalog("csv", tmp_path / "list.csv")


@pytest.fixture
def ucf(tmp_path):
    root = tmp_path / "UCF-101"
    touch(
        root,
        "Archery/v_Archery_g01_c01.avi",
        "Archery/v_Archery_g01_c02.avi",
        "Archery/v_Archery_g08_c01.avi",
        "Billiards/v_Billiards_g01_c01.avi",
        "Billiards/v_Billiards_g09_c01.avi",
    )
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Billiards\n2 Archery\n")
    (lists / "trainlist01.txt").write_text("Archery/v_Archery_g08_c01.avi 2\r\nBilliards/v_Billiards_g09_c01.avi 1\r\n")
    (lists / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\nArchery/v_Archery_g01_c02.avi\n")
    return root


def test_ucf101_takes_splits_classes_and_groups_from_its_official_files(ucf):
    catalog = read_catalog("ucf101", ucf)
    assert catalog.classes == ("Billiards", "Archery")
    assert catalog.splits == ("train", "test", "unused")
    assert rows(catalog) == [
        ("Archery/v_Archery_g01_c01.avi", "Archery", "test", "Archery_g01"),
        ("Archery/v_Archery_g01_c02.avi", "Archery", "test", "Archery_g01"),
        ("Archery/v_Archery_g08_c01.avi", "Archery", "train", "Archery_g08"),
        ("Billiards/v_Billiards_g01_c01.avi", "Billiards", "unused", "Billiards_g01"),
        ("Billiards/v_Billiards_g09_c01.avi", "Billiards", "train", "Billiards_g09"),
    ]


def test_ucf101_keeps_a_listed_video_that_is_not_there(ucf):
    (ucf / "Archery/v_Archery_g08_c01.avi").unlink()
    assert "Archery/v_Archery_g08_c01.avi" in [row.path for row in read_catalog("ucf101", ucf).rows]


def test_ucf101_finds_its_videos_in_one_flat_folder_too(ucf):
    for path in list(ucf.rglob("*.avi")):
        path.rename(ucf / path.name)
    found = {row.path: (row.label, row.split) for row in read_catalog("ucf101", ucf).rows}
    assert found["v_Archery_g08_c01.avi"] == ("Archery", "train")
    assert len(found) == 5


def test_split_files_below_the_source_are_no_videos(ucf):
    (ucf.parent / "ucfTrainTestlist").rename(ucf / "lists")
    assert len(read_catalog("ucf101", ucf, PackOptions(splits=str(ucf / "lists"))).rows) == 5


def test_missing_split_files_say_what_to_type(ucf):
    with pytest.raises(DataError, match=r"no trainlist02\.txt in .* type splits=FOLDER .*\(fold=2\)"):
        read_catalog("ucf101", ucf, PackOptions(fold=2))


def test_hmdb51_reads_marks_0_1_2_and_equal_names_in_two_classes(tmp_path):
    touch(tmp_path / "v", "run/a.avi", "run/b.avi", "run/c.avi", "run/d.avi", "walk/a.avi")
    touch(tmp_path, "s/run_test_split1.txt")
    (tmp_path / "s/run_test_split1.txt").write_text("a.avi 1 \nb.avi 2 \nc.avi 0 \n")
    (tmp_path / "s/walk_test_split1.txt").write_text("a.avi 2 \n")
    catalog = read_catalog("hmdb51", tmp_path / "v", PackOptions(splits=str(tmp_path / "s")))
    assert [(row.path, row.label, row.split) for row in catalog.rows] == [
        ("run/a.avi", "run", "train"),
        ("run/b.avi", "run", "test"),
        ("run/c.avi", "run", "unused"),
        ("run/d.avi", "run", "unused"),
        ("walk/a.avi", "walk", "test"),
    ]


def test_an_unknown_mark_of_hmdb51_is_refused(tmp_path):
    touch(tmp_path / "v", "run/a.avi")
    (tmp_path / "v/run_test_split1.txt").write_text("a.avi 3\n")
    with pytest.raises(DataError, match=r"'a\.avi 3' does not end with 0 \(unused\), 1 \(train\) or 2 \(test\)"):
        read_catalog("hmdb51", tmp_path / "v")


def test_a_group_expression_names_the_source_and_what_it_misses_stays_alone(tmp_path):
    touch(tmp_path, "a/s1_x.mp4", "a/s1_y.mp4", "b/s2.mp4", "b/other.mp4")
    found = read_catalog("folder", tmp_path, PackOptions(group=r"(s\d)")).rows
    assert {row.path: row.group for row in found} == {
        "a/s1_x.mp4": "s1",
        "a/s1_y.mp4": "s1",
        "b/s2.mp4": "s2",
        "b/other.mp4": "b/other.mp4",
    }


def test_a_group_expression_that_fits_nothing_is_refused(tmp_path):
    touch(tmp_path, "a/1.mp4")
    with pytest.raises(RecipeError, match=r"group=\(zz\) fits no path, e\.g\. not 'a/1\.mp4'"):
        read_catalog("folder", tmp_path, PackOptions(group="(zz)"))


def test_a_test_share_takes_whole_groups_of_every_class(tmp_path):
    touch(tmp_path, *(f"{label}/g{g}_{i}.mp4" for label in "ab" for g in range(10) for i in range(3)))
    options = PackOptions(group=r"(./g\d)", test_share=0.3)
    catalog = read_catalog("folder", tmp_path, options)
    assert catalog.splits == ("train", "test")
    assert Counter((row.label, row.split) for row in catalog.rows) == {
        ("a", "train"): 21,
        ("a", "test"): 9,
        ("b", "train"): 21,
        ("b", "test"): 9,
    }
    assert len({(row.group, row.split) for row in catalog.rows}) == len({row.group for row in catalog.rows})
    assert read_catalog("folder", tmp_path, options) == catalog
    assert read_catalog("folder", tmp_path, options.model_copy(update={"seed": 1})) != catalog


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_a_test_share_never_takes_the_last_group_and_misses_by_half_a_group_at_most(sizes, share):
    import numpy as np

    named = {f"g{i}": size for i, size in enumerate(sizes)}
    taken = _share_of(named, share, np.random.default_rng(0))
    assert len(taken) < len(named)
    got, wanted = sum(named[name] for name in taken), share * sum(sizes)
    assert got <= wanted + max(sizes) / 2
    assert got >= wanted - max(sizes) / 2 or len(taken) == len(named) - 1


@pytest.mark.parametrize(
    ("format", "options", "kind", "sentence"),
    [
        ("moments", {}, RecipeError, f"unknown format 'moments'; there are {', '.join(FORMATS)}$"),
        ("ucf-101", {}, RecipeError, r"unknown format 'ucf-101'; .*; did you mean 'ucf101'\?"),
        ("x" * 5000, {}, RecipeError, "unknown format"),
        ("folder", {"splits": "x"}, RecipeError, f"only {SPLIT_LISTS} have split files"),
        (
            "folder",
            {"fold": 2},
            RecipeError,
            "fold=2: only ucf101 and hmdb51 .*have several official splits; leave it out",
        ),
        ("csv", {"label_key": "txt"}, RecipeError, "label_key=txt: only webdataset has such keys; leave it out"),
        ("folder", {"group_key": "txt"}, RecipeError, "group_key=txt: only webdataset has such keys; leave it out"),
        ("csv", {}, DataError, "is no file"),
        ("folder", {}, DataError, "holds no videos; format folder looks for CLASS/file"),
    ],
)
def test_a_source_that_does_not_fit_its_format_is_refused(tmp_path, format, options, kind, sentence):
    with pytest.raises(kind, match=sentence):
        read_catalog(format, tmp_path, PackOptions(**options))


def test_a_test_share_on_official_splits_is_refused(ucf):
    with pytest.raises(RecipeError, match=r"has splits already \(train, test, unused\); leave test_share out"):
        read_catalog("ucf101", ucf, PackOptions(test_share=0.2))


def empty_source(root, kind: Format):
    """A source of any format that is well formed and holds no video."""
    root.mkdir()
    if kind.is_file:
        (root / "list.csv").write_text("path\n")
        return root / "list.csv"
    (root / "classInd.txt").write_text("")
    for name in ("trainlist01.txt", "testlist01.txt", "run_test_split1.txt"):
        (root / name).write_text("")
    (root / "train.csv").write_text("label,youtube_id,time_start,time_end,split\n")
    (root / "labels.json").write_text("{}")
    (root / "train.json").write_text("[]")
    return root


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_source_of_any_format_is_refused_with_what_is_looked_for(tmp_path, name):
    source = empty_source(tmp_path / "source", FORMATS[name])
    with pytest.raises(DataError) as refused:
        read_catalog(name, source)
    assert str(refused.value) == f"{source} holds no videos; format {name} looks for {FORMATS[name].looks_for}"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("place", ["nowhere", "x" * 5000, "nul"])
def test_a_source_that_is_not_there_is_refused_in_the_words_of_its_format(tmp_path, name, place):
    with pytest.raises(
        DataError, match=f"is no {'file' if FORMATS[name].is_file else 'folder'}; type: vidssl pack {name}"
    ):
        read_catalog(name, tmp_path / place)


def test_a_new_format_is_one_line_and_every_message_knows_it(tmp_path, monkeypatch):
    def read(root, options):
        return read_catalog("folder", root)

    there = ", ".join(FORMATS)
    monkeypatch.setitem(FORMATS, "moments", Format(read, looks_for="LABEL/id.mp4", has_split_files=True))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="format folder looks for"):
        read_catalog("moments", tmp_path / "empty")
    with pytest.raises(RecipeError, match=f"there are {there}, moments; did you mean 'moments'"):
        read_catalog("moment", tmp_path)
    with pytest.raises(RecipeError, match=f"only {SPLIT_LISTS} and moments have split files"):
        read_catalog("folder", tmp_path, PackOptions(splits="x"))
    touch(tmp_path, "a/1.mp4")
    assert len(read_catalog("moments", tmp_path).rows) == 1
