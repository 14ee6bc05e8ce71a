"""A manifest that somebody edited and sealed again: every field that makes no sense is refused by its name."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import fields, replace

import numpy as np
import pytest

from pipelines.dataset import manifest as module
from pipelines.dataset.manifest import Manifest, Samples, load_manifest, write_manifest
from tests.pipelines.small_packs import make_pack
from vidssl.errors import DataError


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Manifest:
    return make_pack(tmp_path_factory.mktemp("whole") / "pack", "h264")


@pytest.fixture
def pack(whole, tmp_path) -> Manifest:
    shutil.copytree(whole.root, tmp_path / "pack")
    return load_manifest(tmp_path / "pack")


def edited(pack: Manifest, **changes: object) -> None:
    """Change fields of the manifest and seal it with the hash that belongs to them."""
    path = pack.root / "manifest.json"
    tree = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(tree))
    sealed_again(pack)


def sealed_again(pack: Manifest) -> None:
    path = pack.root / "manifest.json"
    tree = json.loads(path.read_text())
    with np.load(pack.root / "samples.npz") as columns:
        samples = Samples(**{name: columns[name] for name in columns.files})
    content = {key: tree[key] for key in module._content(pack)} if set(module._content(pack)) <= set(tree) else {}
    real, module._content = module._content, lambda _: content
    try:
        with suppress(TypeError):  # names that are no text have no hash
            tree["hash"] = module.content_hash(replace(pack, samples=samples))
    finally:
        module._content = real
    path.write_text(json.dumps(tree))


def columns_edited(pack: Manifest, **changes: np.ndarray) -> None:
    named = {one.name: getattr(pack.samples, one.name) for one in fields(Samples)}
    kept = {name: values for name, values in named.items() if values is not None}  # there is no flow
    np.savez(pack.root / "samples.npz", **(kept | changes))
    sealed_again(pack)


def shard_edited(pack: Manifest, **changes: object) -> None:
    shards = [vars(shard) for shard in pack.shards]
    edited(pack, shards=[shards[0] | changes, *shards[1:]])


def refused(pack: Manifest, words: str) -> None:
    with pytest.raises(DataError, match=words) as told:
        load_manifest(pack.root)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 400


def test_a_manifest_that_is_sealed_again_as_it_was_is_read(pack):
    edited(pack)
    columns_edited(pack)
    assert load_manifest(pack.root).hash == pack.hash


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../other/shard-00000.tar", "a/b.tar", "..", ".tar", "", "x\n.tar", 7, None]
)
def test_a_shard_is_a_file_of_this_folder_and_no_path(pack, name):
    shard_edited(pack, name=name)
    refused(pack, r"shards\[0\]: name is .*, but must be the name of a tar in this folder")


@pytest.mark.parametrize(
    ("key", "value"),
    [("bytes", -1), ("bytes", "9"), ("bytes", 1.5), ("bytes", 10**30), ("samples", 0), ("samples", True),
     ("samples", 2**40), ("sha256", "feed"), ("sha256", None)],
)  # fmt: skip
def test_a_shard_of_another_type_is_refused_by_its_field(pack, key, value):
    shard_edited(pack, **{key: value})
    refused(pack, rf"shards\[0\]: {key} is .*, but must be ")


@pytest.mark.parametrize(
    ("key", "value"),
    [("shards", 3), ("shards", {"a": 1}), ("shards", ["shard-00000.tar"]), ("shards", None), ("classes", "abc"),
     ("classes", [1, 2, 3]), ("classes", {"a": 0}), ("classes", ["a", "a", "b"]), ("splits", [None]), ("splits", 1),
     ("codec", "mpeg2"), ("codec", 7), ("fps", 0), ("fps", -25), ("fps", float("nan")), ("fps", float("inf")),
     ("fps", "25"), ("fps", 10**400), ("gop", 0), ("gop", 10**23), ("short_side", 128.5), ("groups", -1),
     ("rejected", "no"), ("source", []), ("source", {"path": 1}), ("hash", 5), ("format", "2"), ("samples", 8.0)],
)  # fmt: skip
def test_a_field_of_another_type_or_size_is_refused_by_its_name(pack, key, value):
    path = pack.root / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    refused(pack, rf"manifest\.json: {key} is .*, but must be ")


def test_a_pack_whose_videos_keep_their_own_rates_says_no_rate(pack):
    write_manifest(replace(load_manifest(pack.root), fps=None))
    assert json.loads((pack.root / "manifest.json").read_text())["fps"] is None
    assert load_manifest(pack.root).fps is None
    assert load_manifest(pack.root).hash != pack.hash


@pytest.mark.parametrize("key", ["hash", "codec", "classes", "splits", "shards", "samples", "groups", "fps", "source"])
def test_a_field_that_is_missing_is_named(pack, key):
    path = pack.root / "manifest.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    refused(pack, f"has no field '{key}'")


def test_fewer_samples_than_the_shards_hold_are_refused(pack):
    edited(pack, samples=7)
    refused(pack, "samples is 7, its shards hold 8")


@pytest.mark.parametrize("depth", [100_000, 1_000_000])
@pytest.mark.parametrize("bracket", ["[", '{"a":'])
def test_json_without_end_is_refused(pack, depth, bracket):
    (pack.root / "manifest.json").write_text(bracket * depth)
    refused(pack, "manifest.json is damaged")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("label", 999, "label of sample 2 is 999, but must be from -1 to 2"),
     ("label", -2, "label of sample 2 is -2, but must be from -1 to 2"),
     ("shard", 9, "shard of sample 2 is 9, but must be from 0 to 1"),
     ("shard", 1, "shard of sample 2 is 1, the shards of manifest.json put it into 0"),
     ("group", 77, "group of sample 2 is 77"), ("split", 5, "split of sample 2 is 5"),
     ("frames", 0, "frames of sample 2 is 0"), ("width", -3, "width of sample 2 is -3")],
)  # fmt: skip
def test_a_value_out_of_its_bounds_is_refused_with_its_sample(pack, name, value, words):
    changed = getattr(pack.samples, name).copy()
    changed[2] = value
    columns_edited(pack, **{name: changed})
    refused(pack, words)


@pytest.mark.parametrize(
    ("name", "values"),
    [("label", np.full(8, np.nan)), ("label", np.zeros(7, np.int32)), ("label", np.zeros((8, 1), np.int32)),
     ("shard", np.zeros(8, np.int64)), ("name", np.arange(8)), ("crc", np.zeros(8, np.int32)),
     ("frames", np.array(["9"] * 8))],
)  # fmt: skip
def test_a_column_of_another_type_or_length_is_refused(pack, name, values):
    columns_edited(pack, **{name: values})
    refused(pack, rf"samples\.npz: column '{name}' is .*, but must be .* of 8 rows")


def test_a_column_that_is_missing_is_named(pack):
    with np.load(pack.root / "samples.npz") as columns:
        np.savez(pack.root / "samples.npz.new.npz", **{name: columns[name] for name in columns.files if name != "crc"})
    (pack.root / "samples.npz.new.npz").rename(pack.root / "samples.npz")
    refused(pack, r"samples\.npz has no column 'crc'")


def index_edited(pack: Manifest, change) -> None:
    path = pack.index_path(0)
    path.write_text(change(path.read_text()))


def in_words(line: int, word: int, value: object):
    def change(text: str) -> str:
        rows = [row.split(" ") for row in text.splitlines()]
        rows[line][word] = str(value)
        return "".join(" ".join(row) + "\n" for row in rows)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda text: "", r"\.idx starts with ''; 'v1\.2 0' was expected"),
     (lambda text: "hello\n", r"\.idx starts with 'hello'"),
     (lambda text: text.replace("v1.2", "v9.9"), r"\.idx starts with 'v9\.9 4'"),
     (lambda text: "v1.2 0\n", r"\.idx names other samples than 00000000 … 00000003"),
     (lambda text: "v1.2 4\n" + "\n" * 4, r"\.idx: sample '.*' lacks"),
     (in_words(1, 1, -512), "'-512' is no offset of a member"),
     (in_words(2, 2, "many"), "'many' is no size of a member"),
     (in_words(2, 1, 10**30), "'1000000.*' is no offset of a member"),
     (in_words(2, 1, 10**15), r"the offsets of sample 00000001 are .* not within the \d+ bytes of shard-00000\.tar"),
     (in_words(3, 1, 0), "the offsets of sample 00000002 are 0 … .*, not behind the sample before it"),
     (in_words(2, 3, "00000007.mp4"), "names other samples than"),
     (lambda text: "\0" * 4000, "starts with")],
)  # fmt: skip
def test_an_index_that_makes_no_sense_is_refused(pack, change, words):
    index_edited(pack, change)
    refused(pack, words)
