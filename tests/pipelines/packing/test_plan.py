"""What is refused before a pack begins: nothing that it did not make is overwritten or removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.dataset.manifest import Manifest
from pipelines.pack import PackOptions, pack
from tests.pipelines.footage import write_video
from vidssl.errors import DataError
from vidssl.marks import mark_of

FRESH = PackOptions(fresh=True)
OTHER = PackOptions(crf=30)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source")
    for number in range(3):
        write_video(root / "run" / f"v{number}.mp4", frames=9 + number)
    return root


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> Manifest:
    return pack("folder", source, tmp_path_factory.mktemp("out") / "packed", workers=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ["shard-00000.tar", "verdicts.csv", "samples.npz", "manifest.json", "thesis.tex"])
@pytest.mark.parametrize("options", [PackOptions(), FRESH], ids=["plain", "fresh"])
def test_a_folder_that_we_did_not_make_stays_as_it_is(source, tmp_path, name, options):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"mine")
    with pytest.raises(
        DataError, match="holds files that vidssl did not make, and they are left alone; give another OUT"
    ):
        pack("folder", source, out, options)
    assert contents(out) == {name: b"mine"}


@pytest.mark.parametrize("options", [PackOptions(), FRESH], ids=["plain", "fresh"])
def test_a_whole_pack_without_our_mark_is_read_but_never_thrown_away(source, packed, tmp_path, options):
    out = tmp_path / "out"
    shutil.copytree(packed.root, out)
    (out / ".vidssl.json").unlink()
    before = contents(out)
    assert pack("folder", source, out, options).hash == packed.hash
    with pytest.raises(DataError, match="left alone; give another OUT"):
        pack("folder", source, out, options.model_copy(update={"crf": 30}))
    assert contents(out) == before


@pytest.mark.parametrize("name", ["shard-00007.tar", "shard-00001.idx"])
def test_fresh_stops_at_a_shard_that_is_not_of_the_pack_it_throws_away(source, packed, tmp_path, name):
    out = tmp_path / "out"
    shutil.copytree(packed.root, out)
    (out / name).write_bytes(b"mine")
    before = contents(out)
    with pytest.raises(
        DataError, match=f"holds {name}, which is not of the pack in it and is left alone; move it away"
    ):
        pack("folder", source, out, PackOptions(crf=30, fresh=True))
    assert contents(out) == before


def test_fresh_removes_what_the_pack_made_and_leaves_what_lies_beside_it(source, packed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(packed.root, out)
    (out / "notes").mkdir()
    (out / "notes" / "a.txt").write_bytes(b"mine")
    (out / "shard-list.tar").write_bytes(b"mine too")
    pack("folder", source, out, PackOptions(crf=30, fresh=True))
    assert (out / "notes" / "a.txt").read_bytes() == b"mine"
    assert (out / "shard-list.tar").read_bytes() == b"mine too"
    assert mark_of(out) is not None
    assert len(list(out.glob("shard-*.idx"))) == 1


def test_a_folder_of_another_kind_is_left_alone(source, tmp_path):
    from vidssl.marks import mark

    (tmp_path / "run").mkdir()
    mark(tmp_path / "run", "run")
    before = contents(tmp_path / "run")
    with pytest.raises(DataError, match="was made as a run, not as a pack, and is left alone"):
        pack("folder", source, tmp_path / "run", FRESH)
    assert contents(tmp_path / "run") == before


def test_a_file_as_out_is_refused(source, tmp_path):
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(DataError, match="is a file and a folder is needed; give another OUT"):
        pack("folder", source, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"mine"


@pytest.mark.parametrize("address", ["s3://../x", "http://host/out", "https://host/out", "file:///tmp/out"])
@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_refused_in_place_of_a_folder_of_that_name(source, tmp_path, monkeypatch, address, kind):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError,
        match=r"is a web server, which is read and not written|names no place in a store|an unknown kind of store",
    ):
        pack("folder", source, kind(address))
    with pytest.raises(
        DataError,
        match=r"is on a web server, which cannot say what it holds|names no place in a store|an unknown kind of store",
    ):
        pack("folder", kind(address), "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_an_address_with_exit_code_2_and_one_line(source, tmp_path):
    command = [sys.executable, "-m", "cluster", "pack", "folder", str(source), "https://host/out"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert (
        "OUT https://host/out is a web server, which is read and not written; give a folder, s3://… or gs://…"
        in done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_a_pack_from_before_an_option_existed_is_still_the_same_pack(source, packed, tmp_path):
    import json

    out = tmp_path / "out"
    shutil.copytree(packed.root, out)
    tree = json.loads((out / "manifest.json").read_text())
    options = json.loads(tree["source"]["options"])
    assert options.pop("max_minutes") == 600
    tree["source"]["options"] = json.dumps(options)
    (out / "manifest.json").write_text(json.dumps(tree))
    assert pack("folder", source, out).hash == packed.hash
    with pytest.raises(DataError, match=r"another pack \(max_minutes=600(\.0)? then, max_minutes=1(\.0)? now\)"):
        pack("folder", source, out, PackOptions(max_minutes=1))


def test_a_path_that_is_not_utf_8_is_packed_and_written_as_it_is(tmp_path):
    odd = os.fsencode(tmp_path) + b"/src\xff/caf\xe9"
    os.makedirs(odd)
    plain = write_video(tmp_path / "a.mp4")
    os.rename(plain, odd + b"/v\xfe.mp4")
    out = os.fsdecode(os.fsencode(tmp_path) + b"/out\xfd")
    manifest = pack("folder", os.fsdecode(os.fsencode(tmp_path) + b"/src\xff"), out)
    assert [os.fsencode(name) for name in manifest.samples.name] == [b"caf\xe9/v\xfe.mp4"]
    assert [os.fsencode(name) for name in manifest.classes] == [b"caf\xe9"]
    assert b"\ncaf\xe9/v\xfe.mp4,packed," in Path(out, "verdicts.csv").read_bytes()
    assert pack("folder", os.fsdecode(os.fsencode(tmp_path) + b"/src\xff"), out).hash == manifest.hash
