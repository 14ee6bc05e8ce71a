"""Reading of a video only what holds its clips: the same clips, fewer bytes, each of them checked."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset.ahead import Span
from pipelines.dataset.checked import Windows, pieces_of_windows
from pipelines.dataset.checksums import pieces_of
from pipelines.dataset.manifest import load_manifest
from pipelines.dataset.reader import DamagedError, ShardReader
from pipelines.dataset.shards import RGB
from pipelines.loader import LoaderSpec, TrainLoader
from pipelines.loading.decode import decode_clips
from tests.pipelines.small_packs import encode, moving, write_pack
from vidssl.recipe import Augment, Clips, Loader

FRAMES, COUNT = 200, 4


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Videos of 13 fragments each."""
    videos = [encode(moving(number), FRAMES, 128, 128, "h264") for number in range(COUNT)]
    return write_pack(tmp_path_factory.mktemp("windows") / "pack", "h264", videos, [(128, 128)] * COUNT)


def loader(manifest, read, **changes):
    clips = Clips(frames=4, stride=2, size=32, per_video=2)
    spec = LoaderSpec(clips, Augment(preset="light"), Loader(read=read, **changes), ("rgb",), 2, 0)
    return TrainLoader(manifest, spec, rank=0, world=1, device=torch.device("cpu"))


def test_clips_are_the_same_whichever_way_they_are_read(pack):
    whole, windows = loader(pack, "whole"), loader(pack, "windows")
    for _ in range(6):
        one, other = whole.next(), windows.next()
        assert torch.equal(one.instance, other.instance)
        assert torch.equal(one.clips["rgb"], other.clips["rgb"])
    whole.close()
    windows.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=3), st.integers(1, 60))
def test_what_is_read_are_the_fragments_of_the_windows_and_nothing_else(pack, starts, span):
    reader, asked = ShardReader(pack), []
    ask = reader._store.read_range
    reader._store.read_range = lambda *part: (asked.append(Span(*part)), ask(*part))[1]
    video, table = reader.read_windows(2, RGB, Windows(tuple(starts), span))
    whole, same = reader.read(2)
    reader.close()
    assert (table == same).all()
    count = int(table[2])
    first = table[4 + count :]
    wanted = {min(start + frame, FRAMES - 1) for start in starts for frame in range(span)}
    holders = {0} | {
        1 + fragment for fragment in range(count) if wanted & set(range(first[fragment], first[fragment + 1]))
    }
    assert set(pieces_of_windows(table, Windows(tuple(starts), span))) == holders
    pieces = pieces_of(table, len(whole))
    for number, (begin, stop) in enumerate(pieces):
        assert (video[begin:stop] == (whole[begin:stop] if number in holders else 0)).all()
    read = sum(part.size for part in asked[1:-1])  # less the table, and the whole read that it is compared with
    assert read == sum(stop - begin for begin, stop in (pieces[number] for number in holders))
    clips = decode_clips(video, table, starts, span, 1)
    assert (clips == decode_clips(whole, table, starts, span, 1)).all()


def test_a_clip_costs_little_more_than_its_own_fragments(pack):
    """Bytes read, with the table, over those of the init segment and of the fragments: at most 1.3."""
    needed = read = 0
    reader = ShardReader(pack)
    ask, asked = reader._store.read_range, []
    reader._store.read_range = lambda *part: (asked.append(Span(*part).size), ask(*part))[1]
    for instance in range(COUNT):
        windows = Windows((17 * instance,), 31)
        _, table = reader.read_windows(instance, RGB, windows)
        size = int(table[3 + int(table[2])])
        pieces = pieces_of(table, size)
        needed += sum(stop - begin for begin, stop in (pieces[number] for number in pieces_of_windows(table, windows)))
    read = sum(asked)
    assert reader.bytes_read == read
    reader.close()
    assert needed < read <= 1.3 * needed


def damaged(pack, folder, bit_of):
    """A copy of the pack with one bit of sample 1 wrong."""
    copy = folder / "copy"
    copy.mkdir()
    for path in pack.root.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    reader = ShardReader(pack)
    _, table = reader.read(1)
    index = reader._indexes[0]
    reader.close()
    at = bit_of(int(index.offset["mp4"][1]), int(index.offset["gop"][1]), table)
    shard = copy / pack.shards[0].name
    data = bytearray(shard.read_bytes())
    data[at] ^= 4
    shard.write_bytes(data)
    return load_manifest(copy, "nothing"), at


@pytest.mark.parametrize(
    "bit_of",
    [
        lambda video, gop, table: video + 3,
        lambda video, gop, table: video + int(table[3 + 5]) + 40,
        lambda video, gop, table: gop + 9,
    ],
    ids=["init", "fragment", "table"],
)
def test_a_wrong_bit_in_what_is_read_is_named_with_its_bytes(pack, tmp_path, bit_of):
    manifest, at = damaged(pack, tmp_path, bit_of)
    reader = ShardReader(manifest)
    with pytest.raises(DamagedError) as error:
        reader.read_windows(1, RGB, Windows((5 * 16 + 2,), 20))
    reader.close()
    ((begin, stop),) = error.value.ranges
    assert begin <= at < stop


def test_a_wrong_bit_elsewhere_is_found_when_it_is_read_and_by_verify(pack, tmp_path):
    manifest, _ = damaged(pack, tmp_path, lambda video, gop, table: video + int(table[3 + 9]) + 40)
    reader = ShardReader(manifest)
    reader.read_windows(1, RGB, Windows((0,), 20))
    with pytest.raises(DamagedError):
        reader.read_windows(1, RGB, Windows((9 * 16,), 20))
    reader.close()


def test_with_a_cache_samples_are_kept_and_read_whole(pack, tmp_path):
    kept = loader(pack, "windows", cache=str(tmp_path / "cache"))
    one = kept.next()
    kept.close()
    plain = loader(pack, "whole")
    assert torch.equal(one.clips["rgb"], plain.next().clips["rgb"])
    plain.close()
    sizes = sorted(path.stat().st_size for path in (tmp_path / "cache").rglob("*-*") if path.is_file())
    assert len(sizes) >= 2
    assert np.mean(sizes) > 2000
