from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipelines.pack import PackOptions, pack
from pipelines.packing.catalog import read_catalog
from tests.pipelines.footage import numbers_of, write_video
from tests.pipelines.packing.formats.test_kinetics import samples_of
from vidssl.errors import DataError, RecipeError


def write_tar(path: Path, members: Mapping[str, bytes | str], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items():
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def rows(catalog):
    return [(row.path, row.label, row.split, row.group) for row in catalog.rows]


def bytes_of(catalog):
    """The bytes that each row points at."""
    return {
        row.path: (catalog.root / row.source).read_bytes()[row.part.offset :][: row.part.size] for row in catalog.rows
    }


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_called_alike_are_a_sample_and_its_video_stays_where_it_is(tmp_path, form):
    long = "d" * 80 + "/" + "k" * 60
    write_tar(
        tmp_path / "train-00000.tar",
        {
            "__meta__.json": "{}",
            "a/1.cls": "10",
            "a/1.mp4": b"one",
            "a/1.txt": "a caption",
            "2.webm": b"two",
            "2.cls": "9\n",
            "2.flow.mp4": b"not the video",
            f"{long}.mkv": b"long",
            f"{long}.json": "{}",
            "3.jpg": b"no video",
        },
        form,
    )
    write_tar(tmp_path / "val" / "0.tar", {"1.AVI": b"three", "1.cls": "100"}, form)
    catalog = read_catalog("webdataset", tmp_path)
    name = f"train-00000.tar/{long}.mkv"
    assert rows(catalog) == [
        ("train-00000.tar/2.webm", "9", "train", "train-00000.tar/2.webm"),
        ("train-00000.tar/a/1.mp4", "10", "train", "train-00000.tar/a/1.mp4"),
        (name, None, "train", name),
        ("val/0.tar/1.AVI", "100", "val", "val/0.tar/1.AVI"),
    ]
    assert list(bytes_of(catalog).values()) == [b"two", b"one", b"long", b"three"]
    assert catalog.classes == ("9", "10", "100")
    assert catalog.notes == (
        "passed over 1 samples without a video, e.g. 'train-00000.tar/3'",
        f"1 of 4 samples have no label, e.g. '{name}'; label_key=json.KEY or txt takes it from there",
    )


def test_splits_are_only_told_where_every_tar_tells_one(tmp_path):
    write_tar(tmp_path / "train-0.tar", {"1.mp4": b"x"})
    write_tar(tmp_path / "latest.tar", {"1.mp4": b"x"})
    assert read_catalog("webdataset", tmp_path).splits == ("all",)
    (tmp_path / "latest.tar").rename(tmp_path / "my_validation.tar")
    assert read_catalog("webdataset", tmp_path).splits == ("train", "val")


def test_label_and_group_come_from_the_member_that_is_told(tmp_path):
    about = [{"action": {"name": name}, "video": number} for name, number in (("run", 7), ("jump", 7), ("run", 8))]
    members = {}
    for number, tree in enumerate(about):
        members |= {f"{number}.mp4": b"x", f"{number}.json": json.dumps(tree), f"{number}.txt": f"text {number}"}
    members |= {"3.mp4": b"x", "3.json": "{broken"}
    write_tar(tmp_path / "a.tar", members)
    catalog = read_catalog("webdataset", tmp_path, PackOptions(label_key="json.action.name", group_key="json.video"))
    assert [(row.label, row.group) for row in catalog.rows] == [
        ("run", "7"),
        ("jump", "7"),
        ("run", "8"),
        (None, "a.tar/3.mp4"),
    ]
    assert "1 of 4 samples have no label, e.g. 'a.tar/3.mp4'" in catalog.notes[0]
    catalog = read_catalog("webdataset", tmp_path, PackOptions(label_key="txt", group=r"/([01])\.mp4"))
    assert [row.label for row in catalog.rows] == ["text 0", "text 1", "text 2", None]
    assert [row.group for row in catalog.rows] == ["0", "1", "a.tar/2.mp4", "a.tar/3.mp4"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"label_key": "json.clas"}, r"label_key=json\.clas is in no sample, e\.g\. not in that of 'a\.tar/1\.mp4'"),
        ({"group_key": "json.id"}, r"group_key=json\.id is in no sample"),
        ({"label_key": "cls"}, "label_key=cls is in no sample"),
    ],
)
def test_a_key_that_no_sample_has_is_refused(tmp_path, words, sentence):
    write_tar(tmp_path / "a.tar", {"1.mp4": b"x", "1.json": '{"class": "run", "id": ["list"]}'})
    with pytest.raises(RecipeError, match=sentence):
        read_catalog("webdataset", tmp_path, PackOptions(**words))


def test_the_later_of_two_members_of_one_name_counts_as_when_a_tar_is_unpacked(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.mp4": b"first", "2.mp4": b"two"})
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        info = tarfile.TarInfo("1.mp4")
        info.size = 6
        tar.addfile(info, io.BytesIO(b"second"))
    catalog = read_catalog("webdataset", tmp_path)
    assert bytes_of(catalog) == {"a.tar/1.mp4": b"second", "a.tar/2.mp4": b"two"}
    assert "1 names stand in a tar twice, and the later member counts, e.g. 'a.tar/1.mp4'" in catalog.notes


def cut_short(data: bytes) -> bytes:
    return data[: 3 * 1024 + 600]


def header_lost(data: bytes) -> bytes:
    return data[: 3 * 1024] + b"\x5a" * 512 + data[3 * 1024 + 512 :]


@pytest.mark.parametrize("damage", [cut_short, header_lost])
def test_a_damaged_tar_is_named_and_gives_what_lies_before_the_damage(tmp_path, damage):
    members = {f"{number}.mp4": bytes([number]) * 512 for number in range(6)}  # 1024 bytes each with its header
    path = write_tar(tmp_path / "bad.tar", members, tarfile.USTAR_FORMAT)
    write_tar(tmp_path / "good.tar", {"1.mp4": b"x"})
    path.write_bytes(damage(path.read_bytes()))
    catalog = read_catalog("webdataset", tmp_path)
    assert [row.path for row in catalog.rows][:2] == ["bad.tar/0.mp4", "bad.tar/1.mp4"]
    assert "bad.tar/3.mp4" not in [row.path for row in catalog.rows]
    assert catalog.rows[-1].path == "good.tar/1.mp4"
    (lost,) = catalog.left_out
    assert lost.path == "bad.tar"
    assert lost.reason.startswith("the tar is damaged (")
    assert catalog.notes[0].startswith("1 tar is damaged, e.g. 'bad.tar': the tar is damaged (")


def test_where_all_tars_are_damaged_or_compressed_there_is_one_sentence(tmp_path):
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match=r"nothing in .* can be packed: 'bad\.tar' is left out \(the tar is damaged \("):
        read_catalog("webdataset", tmp_path)
    (tmp_path / "more.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"more\.tar\.gz is compressed, so its videos cannot be read one by one"):
        read_catalog("webdataset", tmp_path)


def test_tars_are_packed_like_files_and_what_is_no_video_in_them_is_rejected(tmp_path):
    videos = {
        "a": write_video(tmp_path / "a.mp4", frames=12).read_bytes(),
        "b": write_video(tmp_path / "b.mkv", frames=15).read_bytes(),
    }
    source = tmp_path / "tars"
    write_tar(source / "x.tar", {"a.mp4": videos["a"], "a.cls": "0", "c.mp4": b"", "d.mp4": b"noise" * 99})
    write_tar(source / "y.tar", {"b.mkv": videos["b"], "b.cls": "1"})
    manifest = pack("webdataset", source, tmp_path / "out", workers=1)
    assert (manifest.classes, manifest.rejected, len(manifest)) == (("0", "1"), 2, 2)
    found = samples_of(manifest)
    assert numbers_of(found["x.tar/a.mp4"][0]) == list(range(12))
    assert numbers_of(found["y.tar/b.mkv"][0]) == list(range(15))
    with (manifest.root / "verdicts.csv").open() as stream:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(stream) if row["verdict"] == "rejected"}
    assert reasons == {
        "x.tar/c.mp4": "the file is empty",
        "x.tar/d.mp4": "opening failed: Invalid data found when processing input",
    }
    again = pack("webdataset", manifest.root, tmp_path / "again", workers=1)
    assert sorted(again.samples.frames) == [12, 15]  # what pack writes is such a source itself
