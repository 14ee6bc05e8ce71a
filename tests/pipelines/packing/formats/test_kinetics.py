from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset.shards import read_index
from pipelines.pack import PackOptions, Silent, pack
from pipelines.packing.catalog import read_catalog
from pipelines.packing.part import WHOLE, Part
from tests.pipelines.footage import numbers_of, write_video
from vidssl.errors import DataError

HEAD = "label,youtube_id,time_start,time_end,split\n"
OLD_HEAD = "label,youtube_id,time_start,time_end,split,is_cc\n"


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def write_list(path: Path, *lines: str, head: str = HEAD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + "".join(f"{line}\n" for line in lines))
    return path


def rows(catalog):
    return [(row.path, row.label, row.split, row.group) for row in catalog.rows]


LAYOUTS = {
    "flat": ("{clip}", "{clip}"),
    "class folders": ("riding_a_bike/{clip}", "juggling balls/{clip}"),
    "split folders": ("train/{clip}", "val/{clip}"),
    "split and class folders": ("train/riding a bike/{clip}", "val/juggling balls/{clip}"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("beside", [False, True])
def test_clips_are_found_by_their_names_wherever_they_lie(tmp_path, layout, beside):
    root = tmp_path / "k400"
    names = ("-ab_12_34XY_000010_000020.mp4", "zzzzzzzzzzz_000003_000013.mkv")
    paths = [form.format(clip=name) for form, name in zip(LAYOUTS[layout], names, strict=True)]
    touch(root, *paths)
    lists = (tmp_path if beside else root) / "annotations"
    write_list(lists / "train.csv", "riding a bike,-ab_12_34XY,10,20,train,0", head=OLD_HEAD)
    write_list(lists / "validate.csv", '"juggling balls",zzzzzzzzzzz,3,13,validate')
    catalog = read_catalog("kinetics", root)
    assert rows(catalog) == sorted(
        [
            (paths[0], "riding a bike", "train", "-ab_12_34XY"),
            (paths[1], "juggling balls", "val", "zzzzzzzzzzz"),
        ]
    )
    assert (catalog.classes, catalog.notes, catalog.left_out) == (("juggling balls", "riding a bike"), (), ())
    assert {row.part for row in catalog.rows} == {WHOLE}


def test_a_whole_download_gives_a_range_for_every_clip_listed_of_it_and_one_group(tmp_path):
    touch(tmp_path, "run/abcdefghijk.webm", "abcdefghijk_000050_000060.mp4")
    write_list(
        tmp_path / "train.csv",
        "run,abcdefghijk,10,20,train",
        "run,abcdefghijk,30.5,40,train",
        "jump,abcdefghijk,50,60,train",
    )
    catalog = read_catalog("kinetics", tmp_path)
    assert [(row.path, row.source, row.part, row.label, row.group) for row in catalog.rows] == [
        ("abcdefghijk_000050_000060.mp4", "abcdefghijk_000050_000060.mp4", WHOLE, "jump", "abcdefghijk"),
        ("run/abcdefghijk.webm#t=10,20", "run/abcdefghijk.webm", Part(10, 20), "run", "abcdefghijk"),
        ("run/abcdefghijk.webm#t=30.5,40", "run/abcdefghijk.webm", Part(30.5, 40), "run", "abcdefghijk"),
    ]


def test_missing_videos_are_one_sentence_with_the_share_by_split_and_a_class_of_theirs_keeps_its_number(tmp_path):
    touch(tmp_path, "aaaaaaaaaaa_000000_000010.mp4", "ccccccccccc_000000_000010.mp4.part", "readme.txt")
    write_list(
        tmp_path / "train.csv", "b,aaaaaaaaaaa,0,10,train", "a,bbbbbbbbbbb,0,10,train", "c,ccccccccccc,0,10,train"
    )
    write_list(tmp_path / "test.csv", "ddddddddddd,1,11,test", head="youtube_id,time_start,time_end,split\n")
    catalog = read_catalog("kinetics", tmp_path)
    assert rows(catalog) == [("aaaaaaaaaaa_000000_000010.mp4", "b", "train", "aaaaaaaaaaa")]
    assert catalog.classes == ("a", "b", "c")
    assert catalog.notes == (
        "3 listed videos of 4 (75 %; train 2 of 3, test 1 of 1) are not there and left out, e.g. "
        "'ddddddddddd_000001_000011'; verdicts.csv names them all",
    )
    assert [one.path for one in catalog.left_out] == [
        "ddddddddddd_000001_000011",
        "bbbbbbbbbbb_000000_000010",
        "ccccccccccc_000000_000010",
    ]


def test_only_where_all_videos_are_missing_it_is_an_error(tmp_path):
    write_list(tmp_path / "train.csv", "b,aaaaaaaaaaa,0,10,train", "a,bbbbbbbbbbb,0,10,train")
    with pytest.raises(DataError) as refused:
        read_catalog("kinetics", tmp_path)
    assert str(refused.value) == (
        f"nothing in {tmp_path} can be packed: 'aaaaaaaaaaa_000000_000010' is left out (no file called "
        "YOUTUBEID_000010_000020 (a clip) or YOUTUBEID (the whole video) is there (train.csv line 2)), and so are 1 more; "
        "format kinetics looks for files called YOUTUBEID_000010_000020 or YOUTUBEID, beside train.csv …"
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a,,0,10,train", "it has no youtube_id"),
        ("a,xxxxxxxxxxx,ten,20,train", "time_start 'ten' is no number of seconds"),
        ("a,xxxxxxxxxxx,0,nan,train", "time_end 'nan' is no number of seconds"),
        ("a,xxxxxxxxxxx,,,train", "time_start '' is no number of seconds"),
        ("a,xxxxxxxxxxx", "time_start '' is no number of seconds"),
        ("a,xxxxxxxxxxx,20,10,train", "its range 20 to 10 s holds nothing"),
        ("a,xxxxxxxxxxx,-5,5,train", "its range -5 to 5 s holds nothing"),
        ("a,xxxxxxxxxxx,0,10,dev", "split 'dev' is none of train, val, validate, validation, test"),
    ],
)
def test_a_broken_line_is_passed_over_in_a_sentence_and_nothing_but_broken_lines_is_refused(tmp_path, line, why):
    touch(tmp_path, "aaaaaaaaaaa_000000_000010.mp4")
    write_list(tmp_path / "train.csv", line, "b,aaaaaaaaaaa,0,10,train", line)
    catalog = read_catalog("kinetics", tmp_path)
    assert len(catalog.rows) == 1
    assert catalog.notes == (f"passed over 2 broken lines, e.g. train.csv line 2: {why}",)
    write_list(tmp_path / "train.csv", line)
    with pytest.raises(DataError, match=r"not one of 1 line can be read, e\.g\. train\.csv line 2: "):
        read_catalog("kinetics", tmp_path)


def test_what_the_lists_say_twice_is_one_row_out_of_train_or_none(tmp_path):
    clips = {name: f"{name * 11}_000000_000010.mp4" for name in "abcd"}
    touch(tmp_path, *clips.values())
    write_list(
        tmp_path / "train.csv",
        *(f"run,{name * 11},0,10,train" for name in "abcd"),
        "run,aaaaaaaaaaa,0.0,10.0,train",
        "jump,ccccccccccc,0,10,train",
        "run,ccccccccccc,0,10,train",
    )
    write_list(tmp_path / "val.csv", "run,bbbbbbbbbbb,0,10,val")
    catalog = read_catalog("kinetics", tmp_path)
    assert rows(catalog) == [
        (clips["a"], "run", "train", "a" * 11),
        (clips["b"], "run", "val", "b" * 11),
        (clips["d"], "run", "train", "d" * 11),
    ]
    torn = "listed as 'run' (train.csv line 4) and as 'jump' (train.csv line 7)"
    assert [(one.path, one.reason) for one in catalog.left_out] == [(f"{'c' * 11}_000000_000010", torn)]
    assert catalog.notes == (
        f"passed over 2 lines that say the same again, e.g. '{'a' * 11}_000000_000010' (train.csv line 2, train.csv line 6)",
        "1 video listed in two splits is kept in the later of train, val, test only, e.g. "
        f"'{'b' * 11}_000000_000010' (train.csv line 3, val.csv line 2)",
        f"left out 1 video with two labels, e.g. '{'c' * 11}_000000_000010', {torn}; verdicts.csv names them all",
        f"passed over 1 of 4 files that no list asks for, e.g. '{clips['c']}'",
    )


def test_a_replacement_of_a_damaged_clip_goes_first_and_what_no_list_names_is_said(tmp_path):
    clip = "aaaaaaaaaaa_000000_000010.mp4"
    touch(tmp_path, f"a/{clip}", f"replacement/replacement_for_corrupted_k400/{clip}", "other.mp4")
    write_list(tmp_path / "lists" / "kinetics-600_train.csv", "b,aaaaaaaaaaa,0,10,train")
    catalog = read_catalog("kinetics", tmp_path, PackOptions(splits=str(tmp_path / "lists")))
    assert [row.path for row in catalog.rows] == [f"replacement/replacement_for_corrupted_k400/{clip}"]
    assert catalog.notes == (
        f"passed over 'a/{clip}', which is called like 'replacement/replacement_for_corrupted_k400/{clip}'",
        "passed over 1 of 3 files that no list asks for, e.g. 'other.mp4'",
    )


def test_one_list_alone_can_be_named(tmp_path):
    touch(tmp_path, "aaaaaaaaaaa_000000_000010.mp4")
    path = write_list(tmp_path / "mine.csv", "b,aaaaaaaaaaa,0,10,test", "b,aaaaaaaaaaa,1,11,")
    found = read_catalog("kinetics", tmp_path, PackOptions(splits=str(path)))
    assert (found.splits, len(found.left_out)) == (("test",), 1)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            {},
            r"no list like train\.csv in the source or beside it; type splits=FOLDER with the official annotation files",
        ),
        ({"train.csv": "path,label\n"}, r"train\.csv has no column 'youtube_id' \(its first line is: path, label\)"),
        ({"train.csv": ""}, r"train\.csv has no column 'youtube_id' \(its first line is: nothing\)"),
        (
            {"k400_train.csv": HEAD, "k600_train.csv": HEAD},
            r"holds two lists of 'train', k400_train\.csv and k600_train\.csv",
        ),
    ],
)
def test_lists_that_cannot_be_used_are_refused_in_one_sentence(tmp_path, files, sentence):
    (tmp_path / "videos").mkdir()
    for name, text in files.items():
        (tmp_path / "videos" / name).write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_catalog("kinetics", tmp_path / "videos")


class Ear(Silent):
    def __init__(self):
        self.sentences: list[str] = []

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Three clips: one cut already, one to be cut out of the middle, one whose video ends within it."""
    root = tmp_path_factory.mktemp("kinetics")
    write_video(root / "run" / "aaaaaaaaaaa_000002_000003.mp4", frames=20)
    write_video(root / "wwwwwwwwwww.mkv", frames=40, rate=10, options={"g": "8", "bf": "2"})
    write_list(
        root / "train.csv",
        "run,aaaaaaaaaaa,2,3,train",
        "run,wwwwwwwwwww,1,3,train",
        "jump,wwwwwwwwwww,2.5,9,train",
        "jump,wwwwwwwwwww,20,30,train",
        "jump,mmmmmmmmmmm,0,10,train",
    )
    ear = Ear()
    options = PackOptions(fps="source")
    return pack("kinetics", root, root.parent / "packed", options, workers=1, watch=ear), ear.sentences


def samples_of(manifest):
    found = {}
    for shard in range(len(manifest.shards)):
        data, index = manifest.shard_path(shard).read_bytes(), read_index(manifest.shard_path(shard))
        for row in range(len(index)):
            part = {name: data[at[row] :][: index.size[name][row]] for name, at in index.offset.items()}
            about = json.loads(part["json"])
            found[about["origin"]["path"]] = part["mp4"], about
    return found


def test_a_clip_cut_while_packing_holds_the_frames_of_its_range_and_says_so(packed):
    manifest, sentences = packed
    found = samples_of(manifest)
    mp4, about = found["wwwwwwwwwww.mkv#t=1,3"]
    assert numbers_of(mp4) == list(range(10, 30))
    origin = {key: about["origin"][key] for key in ("path", "start", "stop", "frames", "fps")}
    assert origin == {"path": "wwwwwwwwwww.mkv#t=1,3", "start": 1.0, "stop": 3.0, "frames": 20, "fps": 10.0}
    assert (about["fps"], about["notes"]) == (10.0, "enlarged from 64x48")
    mp4, about = found["wwwwwwwwwww.mkv#t=2.5,9"]
    assert numbers_of(mp4) == list(range(25, 40))
    assert about["notes"].split("; ")[0] == "the video ends 5.0 s before its range does"
    mp4, about = found["run/aaaaaaaaaaa_000002_000003.mp4"]
    assert numbers_of(mp4) == list(range(20))
    assert "start" not in about["origin"]
    assert sentences[0].startswith("1 listed video of 5 (20 %; train 1 of 5) is not there and left out")
    by_name = dict(zip(manifest.samples.name.tolist(), manifest.samples.group.tolist(), strict=True))
    assert by_name["wwwwwwwwwww.mkv#t=1,3"] == by_name["wwwwwwwwwww.mkv#t=2.5,9"]
    assert len(set(by_name.values())) == manifest.groups == 2


def test_every_listed_clip_has_a_verdict(packed):
    manifest, _ = packed
    with (manifest.root / "verdicts.csv").open() as stream:
        verdicts = {row["path"]: (row["verdict"], row["reason"]) for row in csv.DictReader(stream)}
    assert len(verdicts) == 5
    assert verdicts["wwwwwwwwwww.mkv#t=20,30"] == (
        "rejected",
        "no frame lies between 20 and 30 s, the video ends at 4.0 s (a clip that was cut before must say so by its name)",
    )
    assert verdicts["mmmmmmmmmmm_000000_000010"] == (
        "left out",
        "no file called YOUTUBEID_000010_000020 (a clip) or YOUTUBEID (the whole video) is there (train.csv line 6)",
    )
    assert (len(manifest), manifest.rejected, manifest.fps) == (3, 1, None)
    assert np.array_equal(np.sort(manifest.samples.frames), [15, 20, 20])
