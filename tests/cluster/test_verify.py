from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster.cli import main
from pipelines.dataset.manifest import load_manifest
from tests.pipelines.small_packs import make_pack, place_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_pack(tmp_path_factory.mktemp("whole") / "pack", "h264").root


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], list[str]]:
    code = main(["verify", *words])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err.splitlines()


def test_a_whole_pack_is_said_to_be_whole_with_what_was_read(whole, capsys):
    code, out, err = told(capsys, str(whole))
    size = sum(path.stat().st_size for path in whole.glob("*.tar")) / 1e6
    assert (code, err) == (0, [])
    assert out[0].startswith(f"{whole} is whole: 8 samples, {size:.1f} MB in 2 shards read in ")
    assert out[0].endswith(f" s, data {load_manifest(whole).hash}")


def test_each_damaged_sample_is_a_line_with_its_shard_and_bytes_and_the_exit_code_is_2(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "pack")
    for instance in (1, 6):
        offset, size, path = place_of(load_manifest(whole), instance)
        with (tmp_path / "pack" / path.name).open("r+b") as file:
            file.seek(offset + size // 2)
            (value,) = file.read(1)
            file.seek(offset + size // 2)
            file.write(bytes([value ^ 16]))
    code, out, err = told(capsys, str(tmp_path / "pack"), "--workers", "2")
    assert code == 2
    assert [line.split(", bytes ")[0] for line in out] == [
        "damaged: sample 00000001 (videos/1.mp4) in shard-00000.tar",
        "damaged: sample 00000006 (videos/6.mp4) in shard-00001.tar",
    ]
    assert len(err) == 1
    assert ": 2 of 8 samples damaged, each named above (8 samples, " in err[0]
    assert "copy shard-00000.tar, shard-00001.tar again, or pack again" in err[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [((), "no PACKED given"), (("nowhere",), "nowhere is no packed data"), (("x", "size=3"), "'size=3' is no setting"),
     (("x", "--workers", "0"), "--workers 0: give a whole number ≥ 1")],
)  # fmt: skip
def test_a_mistake_is_one_sentence(words, sentence, capsys):
    code, out, err = told(capsys, *words)
    assert (code, out, len(err)) == (2, [], 1)
    assert sentence in err[0]
