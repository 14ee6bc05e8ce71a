"""`fold=all`: every official split of a pack, its bytes stored once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.dataset.manifest import load_manifest
from pipelines.pack import PackOptions, pack, pack_options
from pipelines.packing.folds import folds_of, write_folds
from pipelines.synthetic import make_official_set
from tests.pipelines.footage import Heard
from vidssl.errors import DataError, RecipeError


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """20 videos in the layout of UCF101, with two splits."""
    return make_official_set(tmp_path_factory.mktemp("ucf"), groups=2, clips=1, frames=16)


@pytest.fixture(scope="module")
def alone(source) -> Path:
    """Packed with split 1 alone, as before there was `fold=all`."""
    return pack("ucf101", source, source.parent / "alone", PackOptions()).folder


@pytest.fixture(scope="module")
def packed(source, alone) -> tuple[Path, list[str]]:
    heard, out = Heard(), shutil.copytree(alone, source.parent / "packed")
    pack("ucf101", source, out, PackOptions(fold="all"), watch=heard)
    return out, heard.said


def listed(source: Path, name: str) -> set[str]:
    return {line.split()[0] for line in (source.parent / "ucfTrainTestlist" / name).read_text().splitlines()}


def test_every_fold_is_a_pack_that_says_who_trains_and_who_is_asked_as_its_lists_do(source, packed):
    out, said = packed
    assert folds_of(out) == (1, 2)
    assert [line for line in said if line.startswith("no split 3: no trainlist03.txt")]
    for fold, place in ((1, out), (2, out / "fold2")):
        manifest = load_manifest(place, verify="sha256")
        for split in ("train", "test"):
            assert set(manifest.samples.name[manifest.rows(split)]) == listed(source, f"{split}list0{fold}.txt")
        assert manifest.source["options"] == pack_options([f"fold={fold}"]).identity()


def test_a_fold_has_the_same_samples_another_hash_and_no_bytes_of_its_own(packed):
    out, _ = packed
    one, two = load_manifest(out), load_manifest(out / "fold2")
    assert one.hash != two.hash
    assert (one.samples.name == two.samples.name).all()
    assert (one.samples.label == two.samples.label).all()
    assert (one.samples.group == two.samples.group).all()
    assert [path.resolve() for path in sorted((out / "fold2").glob("shard-*"))] == sorted(
        path.resolve() for path in out.glob("shard-*")
    )
    assert all(path.is_symlink() for path in (out / "fold2").glob("shard-*"))


def test_a_pack_of_split_1_becomes_one_of_all_splits_without_packing_again(source, alone, tmp_path):
    out = shutil.copytree(alone, tmp_path / "packed")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.is_file()}
    heard = Heard()
    manifest = pack("ucf101", source, out, PackOptions(fold="all"), watch=heard)
    assert heard.said[0].startswith("nothing to do: ")
    assert manifest.hash == load_manifest(alone).hash
    assert before == {path: path.stat().st_mtime_ns for path in before}
    written = (out / "fold2" / "manifest.json").stat().st_mtime_ns
    pack("ucf101", source, out, PackOptions(fold="all"))
    assert (out / "fold2" / "manifest.json").stat().st_mtime_ns == written


def test_a_copy_elsewhere_still_reads(packed, tmp_path):
    shutil.copytree(packed[0], tmp_path / "copy", symlinks=True)
    manifest = load_manifest(tmp_path / "copy" / "fold2", verify="sha256")
    assert len(manifest) == 20


def test_what_somebody_else_left_in_the_place_of_a_fold_is_left_alone(source, alone, tmp_path):
    shutil.copytree(alone, tmp_path / "packed")
    (tmp_path / "packed" / "fold2").mkdir()
    (tmp_path / "packed" / "fold2" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="fold2 holds files that vidssl did not make"):
        pack("ucf101", source, tmp_path / "packed", PackOptions(fold="all"))
    assert [path.name for path in (tmp_path / "packed" / "fold2").iterdir()] == ["thesis.txt"]


def test_lists_of_other_classes_are_refused(source, alone, tmp_path):
    lists = shutil.copytree(source.parent / "ucfTrainTestlist", tmp_path / "lists")
    first = load_manifest(alone)
    names = (lists / "trainlist02.txt").read_text().replace("Left/", "Right/")
    (lists / "trainlist02.txt").write_text(names)
    with pytest.raises(DataError, match="the lists of split 2 name other classes"):
        write_folds("ucf101", source, first, PackOptions(splits=str(lists)), lambda line: None)


@pytest.mark.parametrize(
    ("words", "out", "sentence"),
    [
        ({"cut": "10s"}, "packed", "fold=all does not go with cut=10s"),
        ({}, "s3://bucket/packed", "fold=all does not go with s3://bucket/packed, which is no folder"),
    ],
)
def test_what_has_no_folds_is_refused(source, tmp_path, words, out, sentence):
    with pytest.raises(RecipeError, match=sentence):
        pack("ucf101", source, out if "://" in out else tmp_path / out, PackOptions(fold="all", **words))


def test_a_format_without_official_splits_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(RecipeError, match="fold=all: only ucf101 and hmdb51 have several official splits"):
        pack("folder", tmp_path, tmp_path / "out", PackOptions(fold="all"))
    assert not (tmp_path / "out").exists()
