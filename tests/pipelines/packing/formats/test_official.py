from __future__ import annotations

from collections import defaultdict

import pytest

from pipelines.packing.catalog import read_catalog
from pipelines.packing.options import PackOptions

CLASSES = {
    "HandstandPushups": "HandStandPushups",
    "Archery": "Archery",
}  # one class is spelled differently in its files
TESTED = {1: range(1, 8), 2: range(8, 15), 3: range(15, 22)}
"""Groups that each official split of UCF101 tests."""


@pytest.fixture(scope="module")
def ucf(tmp_path_factory):
    """Two classes of 25 groups with two clips each, and the seven official files."""
    base = tmp_path_factory.mktemp("ucf")
    root, lists = base / "UCF-101", base / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 HandstandPushups\n")
    text: dict[str, str] = defaultdict(str)
    for number, (label, spelled) in enumerate(sorted(CLASSES.items()), start=1):
        (root / label).mkdir(parents=True)
        for group in range(1, 26):
            for clip in (1, 2):
                path = f"{label}/v_{spelled}_g{group:02d}_c{clip:02d}.avi"
                (root / path).write_bytes(b"x")
                for fold, tested in TESTED.items():
                    text[f"testlist0{fold}.txt"] += f"{path}\n" if group in tested else ""
                    text[f"trainlist0{fold}.txt"] += "" if group in tested else f"{path} {number}\n"
    for name, lines in text.items():
        (lists / name).write_text(lines)
    return root


FILMS = [(label, film) for label in ("brush_hair", "walk") for film in ("April_09", "TrumanShow", f"own_{label}_film")]


@pytest.fixture(scope="module")
def hmdb(tmp_path_factory):
    """Two classes of three films with two clips each; every split tests another film of each class."""
    base = tmp_path_factory.mktemp("hmdb")
    root, lists = base / "hmdb51", base / "testTrainMulti_7030_splits"
    lists.mkdir()
    for label in ("brush_hair", "walk"):
        (root / label).mkdir(parents=True)
        films = [film for of, film in FILMS if of == label]
        for fold in (1, 2, 3):
            lines = ""
            for number, film in enumerate(films, start=1):
                for clip in (0, 1):
                    name = f"{film}_{label}_u_nm_np1_ba_goo_{clip}.avi"
                    (root / label / name).write_bytes(b"x")
                    lines += f"{name} {2 if number == fold else 1} \n"
            (lists / f"{label}_test_split{fold}.txt").write_text(lines)
    return root


def sides(catalog):
    """Split → its groups with their class: HMDB51's films may be train in one class and test in another."""
    groups = defaultdict(set)
    for row in catalog.rows:
        groups[row.split].add((row.label, row.group))
    return groups


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_every_fold_of_ucf101_tests_its_own_groups_and_no_group_is_on_both_sides(ucf, fold):
    catalog = read_catalog("ucf101", ucf, PackOptions(fold=fold))
    found = sides(catalog)
    assert catalog.splits == ("train", "test")
    assert found["test"] == {(label, f"{CLASSES[label]}_g{g:02d}") for label in CLASSES for g in TESTED[fold]}
    assert not found["train"] & found["test"]
    assert len(found["train"]) == 2 * 18
    assert catalog.classes == ("Archery", "HandstandPushups")
    assert {row.label for row in catalog.rows} == set(catalog.classes)


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_every_fold_of_hmdb51_tests_its_own_films_and_no_film_of_a_class_is_on_both_sides(hmdb, fold):
    found = sides(read_catalog("hmdb51", hmdb, PackOptions(fold=fold)))
    assert found["test"] == {FILMS[fold - 1], FILMS[fold + 2]}
    assert found["train"] == set(FILMS) - found["test"]


def test_the_three_folds_differ_in_nothing_but_the_split(ucf, hmdb):
    for name, root in (("ucf101", ucf), ("hmdb51", hmdb)):
        folds = [read_catalog(name, root, PackOptions(fold=fold)).rows for fold in (1, 2, 3)]
        assert len({tuple((row.path, row.label, row.group) for row in rows) for rows in folds}) == 1
        tested = [{row.path for row in rows if row.split == "test"} for rows in folds]
        assert not tested[0] & tested[1] | tested[1] & tested[2] | tested[0] & tested[2]


def test_clips_of_one_film_share_a_group_whatever_their_class_and_other_names_stand_alone(hmdb):
    odd = hmdb / "walk" / "my own walk.avi"
    odd.write_bytes(b"x")
    groups = defaultdict(set)
    for row in read_catalog("hmdb51", hmdb).rows:
        groups[row.group].add(row.path)
    odd.unlink()
    assert groups.pop("walk/my own walk.avi") == {"walk/my own walk.avi"}
    assert {name: len(paths) for name, paths in groups.items()} == {
        "April_09": 4, "TrumanShow": 4, "own_brush_hair_film": 2, "own_walk_film": 2
    }  # fmt: skip
