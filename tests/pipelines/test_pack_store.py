"""`pack` into a store: staged in a folder, uploaded with the manifest last, gone on with after kills and outages."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines.dataset.manifest import load_manifest
from pipelines.dataset.verify import verify
from pipelines.pack import PackOptions, pack
from pipelines.packing.upload import UNDER_WAY
from tests.pipelines.footage import Heard, two_classes
from tests.pipelines.stores import BUCKET, KEYS, environment
from vidssl.errors import DataError, StorageError
from vidssl.marks import MARK

SMALL = PackOptions(shard_mb=0.002)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source")
    two_classes(root)
    return root


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> Path:
    return pack("folder", source, tmp_path_factory.mktemp("out") / "plain", SMALL).folder


@pytest.fixture(scope="module")
def plain(packed) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in packed.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def staged(packed, tmp_path) -> PackOptions:
    """With a stage in which all is packed already."""
    shutil.copytree(packed, tmp_path / "stage")
    return SMALL.model_copy(update={"stage": str(tmp_path / "stage")})


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/vidssl/packs"


def test_a_pack_in_a_store_has_the_bytes_of_one_in_a_folder_and_leaves_no_folder(source, plain, s3, cache):
    heard = Heard()
    manifest = pack("folder", source, f"s3://{BUCKET}/one", SMALL, watch=heard)
    there = s3.objects("one")
    assert {name: data for name, data in there.items() if name != MARK} == plain
    assert json.loads(there[MARK])["kind"] == "pack"
    assert verify(manifest.root, workers=1).damages == ()
    assert list(cache.iterdir()) == []
    first = r"s3://videos/one is packed in \S+/packs/one-\w{8} first, which has to have room for all of it, and then uploaded"
    assert re.fullmatch(first, heard.said[0])
    assert heard.said[-1] == f"uploaded {len(plain)} files to s3://{BUCKET}/one"
    before, again = s3.modified("one"), Heard()
    assert pack("folder", source, f"s3://{BUCKET}/one", SMALL, watch=again).hash == manifest.hash
    assert again.said == [f"nothing to do: s3://{BUCKET}/one holds 5 packed videos (data {manifest.hash})"]
    assert s3.modified("one") == before


def test_a_given_stage_stays_and_what_is_up_is_not_sent_again(source, plain, s3, staged):
    manifest = pack("folder", source, f"s3://{BUCKET}/two", staged)
    assert load_manifest(staged.stage).hash == manifest.hash
    for name in ("manifest.json", "shard-00001.tar"):
        s3.remove(f"two/{name}")
    s3.put("two/shard-00002.tar", bytes(len(plain["shard-00002.tar"])))  # as large, and not what was sent
    heard, before = Heard(), s3.modified("two")
    pack("folder", source, f"s3://{BUCKET}/two", staged, watch=heard)
    assert heard.said[-1].endswith(f"{len(plain) - 3} of them were there already")
    assert s3.objects("two") == plain | {MARK: s3.objects("two")[MARK]}
    assert s3.modified("two")["shard-00000.tar"] == before["shard-00000.tar"]


def test_a_store_that_goes_away_while_it_is_written_costs_nothing_but_time(source, plain, s3, staged):
    heard = Heard()

    def say(sentence: str) -> None:
        heard.said.append(sentence)
        if "packed in" in sentence:
            s3.go_away()
            threading.Timer(1.8, s3.come_back).start()

    heard.say = say
    pack("folder", source, f"s3://{BUCKET}/away", staged, watch=heard)
    assert {name: data for name, data in s3.objects("away").items() if name != MARK} == plain
    assert [
        sentence
        for sentence in heard.said
        if "cannot be reached (connection refused): waiting for it, 240 s" in sentence
    ]
    assert [sentence for sentence in heard.said if "is back after" in sentence]
    assert any("could not be written (connection refused) and is tried again" in sentence for sentence in heard.said)


def test_a_store_that_stays_away_is_said_and_the_same_words_go_on(source, plain, s3, staged, monkeypatch):
    monkeypatch.setattr("pipelines.packing.upload.PATIENCE_S", 0.5)
    heard = Heard()
    heard.say = lambda sentence: s3.go_away() if "packed in" in sentence else None
    with pytest.raises(
        StorageError, match=r"^s3://videos/later could not be reached .*; when it is back type the same command again"
    ):
        pack("folder", source, f"s3://{BUCKET}/later", staged, watch=heard)
    s3.come_back()
    pack("folder", source, f"s3://{BUCKET}/later", staged)
    assert {name: data for name, data in s3.objects("later").items() if name != MARK} == plain


@pytest.mark.slow
def test_kills_while_it_is_uploaded_leave_no_pack_until_it_is_whole(source, plain, s3, tmp_path):
    words = [sys.executable, "-m", "cluster", "pack", "folder", str(source), f"s3://{BUCKET}/killed", "shard_mb=0.002"]
    env = environment(**s3.environment, XDG_CACHE_HOME=str(tmp_path / "cache"))
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and "shard-00002.tar" not in s3.modified("killed"):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert UNDER_WAY in s3.objects("killed")
    with pytest.raises(DataError, match=r"is no packed data \(no manifest\.json\)"):
        load_manifest(f"s3://{BUCKET}/killed")
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "of them were there already" in done.stderr
    assert {name: data for name, data in s3.objects("killed").items() if name != MARK} == plain
    assert not any(secret in done.stdout + done.stderr for secret in KEYS.values())


def test_what_we_did_not_make_and_other_packs_are_left_alone(source, s3, staged):
    s3.put("foreign/thesis.txt", b"mine")
    with pytest.raises(
        DataError,
        match=r"^s3://videos/foreign holds objects that vidssl did not make, and they are left alone; give another OUT",
    ):
        pack("folder", source, f"s3://{BUCKET}/foreign", SMALL)
    with pytest.raises(DataError, match="holds objects that vidssl did not make"):
        pack("folder", source, f"s3://{BUCKET}/foreign", PackOptions(shard_mb=0.002, fresh=True))
    assert s3.objects("foreign") == {"thesis.txt": b"mine"}
    pack("folder", source, f"s3://{BUCKET}/other", staged)
    s3.put("other/thesis.txt", b"mine")
    with pytest.raises(
        DataError,
        match=r"^s3://videos/other holds another pack \(gop=16 then, gop=8 now\); give another OUT, or type fresh=true",
    ):
        pack("folder", source, f"s3://{BUCKET}/other", PackOptions(shard_mb=0.002, gop=8))
    there = pack("folder", source, f"s3://{BUCKET}/other", PackOptions(shard_mb=0.002, gop=8, fresh=True))
    assert set(s3.objects("other")) == {MARK, "thesis.txt", "manifest.json", "samples.npz", "verdicts.csv", *(shard.name for shard in there.shards), *(there.index_name(n) for n in range(len(there.shards)))}  # fmt: skip


@pytest.mark.parametrize(
    ("out", "words", "said"),
    [
        ("https://host/out", {}, r"^OUT https://host/out is a web server, which is read and not written"),
        ("s3://no-such-bucket/out", {}, r"^s3://no-such-bucket/out cannot be written: there is no bucket 'no-such-bucket'"),
        (f"s3://{BUCKET}/out", {"add": "flow"}, r"^add=flow adds to a pack in a folder, and s3://videos/out is in a store"),
        ("out", {"stage": "x"}, r"^stage=x is for an OUT in a store, and out is a folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_packed(source, s3, cache, out, words, said):
    with pytest.raises(DataError, match=said):
        pack("folder", source, out, PackOptions(**words))
    assert not cache.exists()
    assert not os.path.exists("out")
