from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.dataset.manifest import Manifest
from pipelines.pack import PackOptions, Silent, pack
from pipelines.packing.copies import Prints, find_copies
from pipelines.packing.prints import NUMBERS, read_print
from pipelines.packing.sparks import Sparks, StillLooks, read_sparks, same_sparks, sparks_of

RATE = 12
SHAPE = 144, 192


class Ear(Silent):
    def __init__(self):
        self.sentences: list[str] = []

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)


def film(seed: int, seconds: float = 4) -> list[np.ndarray]:
    """Blobs of their own colours on their own ways over a background of its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    ground = sum(
        a * np.sin(x * p + y * q + r) for a, p, q, r in rng.uniform((5, -0.08, -0.08, 0), (25, 0.08, 0.08, 6), (5, 4))
    )
    ways = rng.uniform((-1, -1, 0.05, 0.05, 0, 0), (1, 1, 0.2, 0.2, 6, 6), (4, 6))
    colours = rng.uniform(-90, 90, (4, 3))
    frames = []
    for number in range(int(seconds * RATE)):
        picture = np.repeat((120 + ground)[..., None], 3, 2)
        for (a, b, p, q, r, s), colour in zip(ways, colours, strict=True):
            at_y = SHAPE[0] * (0.5 + 0.4 * np.sin(a + p * number + r))
            at_x = SHAPE[1] * (0.5 + 0.4 * np.sin(b + q * number + s))
            picture += colour * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / 450)[..., None]
        frames.append(np.clip(picture, 0, 255).astype(np.uint8))
    return frames


def write(path: Path, frames: Sequence[np.ndarray], crf: int = 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[0] // 2 * 2, frames[0].shape[1] // 2 * 2
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in frames:
            whole = np.ascontiguousarray(picture[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(whole, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def smaller(picture: np.ndarray) -> np.ndarray:
    return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(128, 96).to_ndarray(format="rgb24")


COPIES: dict[str, Callable[[list[np.ndarray]], tuple[Sequence[np.ndarray], int]]] = {
    "coarser": lambda frames: (frames, 33),
    "scaled": lambda frames: ([smaller(frame) for frame in frames], 20),
    "cropped": lambda frames: ([frame[5:141, 2:184] for frame in frames], 20),
    "begins later": lambda frames: (frames[RATE:], 20),
    "ends sooner": lambda frames: (frames[:-RATE], 20),
    "mirrored": lambda frames: ([frame[:, ::-1] for frame in frames], 20),
}
OTHERS = 4


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source")
    frames = film(0)
    write(root / "a" / "0 original.mp4", frames)
    for name, change in COPIES.items():
        write(root / "b" / f"{name}.mp4", *change(frames))
    for seed in range(1, OTHERS + 1):
        write(root / "c" / f"other {seed}.mp4", film(seed))
    (root / "list.csv").write_text(
        "path,split\n"
        + "".join(f"b/{name}.mp4,train\n" for name in COPIES)
        + "a/0 original.mp4,test\n"
        + "".join(f"c/other {seed}.mp4,train\n" for seed in range(1, OTHERS + 1))
    )
    return root


@pytest.fixture(scope="module")
def siblings(source, tmp_path_factory) -> tuple[Manifest, list[str]]:
    ear = Ear()
    out = tmp_path_factory.mktemp("out") / "packed"
    return pack(
        "folder", source, out, PackOptions(fps=RATE, duplicates="siblings"), workers=1, watch=ear
    ), ear.sentences


def reasons(packed: Manifest) -> dict[str, tuple[str, str]]:
    with (packed.root / "verdicts.csv").open() as stream:
        return {row["path"]: (row["verdict"], row["reason"]) for row in csv.DictReader(stream)}


def groups(packed: Manifest) -> dict[str, int]:
    return dict(zip(packed.samples.name.tolist(), packed.samples.group.tolist(), strict=True))


def test_copies_of_every_kind_become_siblings_of_their_original_and_nothing_else_does(siblings):
    packed, _ = siblings
    of = groups(packed)
    family = {"a/0 original.mp4", *(f"b/{name}.mp4" for name in COPIES)}
    assert {name for name, group in of.items() if group == of["a/0 original.mp4"]} == family
    assert packed.groups == len(set(of.values())) == OTHERS + 1


def test_copies_are_counted_and_their_verdicts_name_what_they_copy(siblings):
    packed, sentences = siblings
    found = reasons(packed)
    copied = "a copy of 'a/0 original.mp4'"
    said = {f"b/{name}.mp4": ("packed", copied) for name in COPIES if name != "mirrored"}
    assert {path: (word, why.rpartition("; ")[2]) for path, (word, why) in found.items() if "copy" in why} == {
        **said,
        "b/mirrored.mp4": ("packed", "a mirrored copy of 'a/0 original.mp4'"),
    }
    assert (
        "6 of 11 videos are copies (1 mirrored) and made siblings of what they copy; verdicts.csv names them"
        in sentences
    )


def test_what_is_packed_of_a_copy_is_what_would_be_packed_without_looking_for_any(siblings, source, tmp_path):
    plain = pack("folder", source, tmp_path / "plain", PackOptions(fps=RATE), workers=1)
    assert "duplicates" not in plain.source["options"]
    assert np.array_equal(plain.samples.name, siblings[0].samples.name)
    assert np.array_equal(plain.samples.frames, siblings[0].samples.frames)
    assert plain.groups == len(plain)


def test_drop_keeps_one_of_each_and_that_of_the_test_split(source, tmp_path):
    ear = Ear()
    packed = pack(
        "csv", source / "list.csv", tmp_path / "out", PackOptions(fps=RATE, duplicates="drop"), workers=1, watch=ear
    )
    left = sorted(["a/0 original.mp4", *(f"c/other {seed}.mp4" for seed in range(1, OTHERS + 1))])
    assert sorted(packed.samples.name) == left
    assert packed.rejected == len(COPIES)
    found = reasons(packed)
    assert found["b/scaled.mp4"] == ("rejected", "a copy of 'a/0 original.mp4' (duplicates=drop)")
    assert found["b/mirrored.mp4"] == ("rejected", "a mirrored copy of 'a/0 original.mp4' (duplicates=drop)")
    assert (
        "6 copies lie in another split, e.g. 'b/coarser.mp4' (train) of 'a/0 original.mp4' (test): "
        "that of the test split is kept" in ear.sentences
    )


def test_a_split_that_is_drawn_by_group_tears_no_copies_apart(source, tmp_path):
    options = PackOptions(fps=RATE, duplicates="siblings", test_share=0.4)
    packed = pack("folder", source, tmp_path / "out", options, workers=1)
    for group in set(packed.samples.group.tolist()):
        assert len(set(packed.samples.split[packed.samples.group == group].tolist())) == 1


def random_prints(count: int, seed: int = 0) -> list[np.ndarray]:
    """Prints like those of real videos: a picture, and slow changes of it."""
    rng = np.random.default_rng(seed)
    spectrum = 12 / (1 + np.arange(NUMBERS) / 4)
    made = []
    for length in rng.integers(20, 44, count):
        motion = np.cumsum(rng.normal(0, 0.3, (length, NUMBERS)), 0)
        made.append(np.rint((rng.normal(0, 1, NUMBERS) + motion) * spectrum * 64).astype(np.int16))
    return made


def test_among_many_videos_copies_are_found_through_an_inverted_file_as_they_are_one_by_one(monkeypatch):
    made = random_prints(500)
    rng = np.random.default_rng(1)
    copied = [one[4:] + rng.integers(-9, 10, one[4:].shape, np.int16) for one in made[:40]]
    prints = Prints([*made, *copied])
    exact = find_copies(prints, range(len(prints)))
    assert [(pair.first, pair.second) for pair in exact] == [(at, 500 + at) for at in range(40)]
    monkeypatch.setattr("pipelines.packing.copies._EXACT_UP_TO", 100)
    assert find_copies(prints, range(len(prints))) == exact


def test_clips_of_one_source_are_not_compared():
    same = random_prints(1)[0]
    assert [(one.first, one.second) for one in find_copies(Prints([same, same, same]), [7, 7, 8])] == [(0, 2), (1, 2)]


def test_videos_without_any_contrast_have_nothing_to_be_known_by():
    blank = np.zeros((40, NUMBERS), np.int16)
    assert find_copies(Prints([blank, blank, *random_prints(2)]), range(4)) == []


def watched(seed: int, seconds: float = 6) -> list[np.ndarray]:
    """A camera that stands still and sees, in the same place each time, one bird on its way."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    ground = 110 + 40 * np.sin(x / 17) * np.cos(y / 23) + 25 * (y > 100)
    rng, frames = np.random.default_rng(seed), []
    a, b, p, q = rng.uniform((-2, -2, 0.05, 0.05), (2, 2, 0.12, 0.12))
    for number in range(int(seconds * RATE)):
        at_y = SHAPE[0] * (0.4 + 0.25 * np.sin(a + p * number))
        at_x = SHAPE[1] * (0.5 + 0.4 * np.sin(b + q * number))
        bird = 90 * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / 4)
        frames.append(np.clip(np.repeat((ground + bird)[..., None], 3, 2), 0, 255).astype(np.uint8))
    return frames


def test_what_one_camera_saw_is_told_apart_by_the_little_that_moves_and_copies_of_it_are_found(tmp_path):
    frames = watched(0)
    for name, (changed, crf) in {name: change(frames) for name, change in COPIES.items()}.items():
        write(tmp_path / "in" / f"0 {name}.mp4", changed, crf)
    write(tmp_path / "in" / "0.mp4", frames)
    for seed in range(1, OTHERS + 1):
        write(tmp_path / "in" / f"{seed}.mp4", watched(seed))
    packed = pack(
        "folder", tmp_path / "in", tmp_path / "out", PackOptions(fps=RATE, duplicates="siblings"), workers=1, watch=None
    )
    families: dict[int, set[str]] = {}
    for name, group in groups(packed).items():
        families.setdefault(group, set()).add(name[0])
    assert sorted("".join(sorted(family)) for family in families.values()) == [str(one) for one in range(OTHERS + 1)]


def test_sparks_are_read_as_they_were_written_and_older_fingerprints_without_them():
    rng = np.random.default_rng(0)
    made = sparks_of(rng.integers(0, 255, (40, 64, 64)).astype(np.uint8))
    again = read_sparks(made.to_bytes())
    assert all(np.array_equal(getattr(made, name), getattr(again, name)) for name in ("look", "cell", "size"))
    numbers = rng.integers(-999, 999, (9, NUMBERS)).astype(np.int16)
    assert np.array_equal(read_print(numbers.astype("<i2").tobytes())[0], numbers)
    assert read_print(numbers.astype("<i2").tobytes())[1] is None


def birds(track: np.ndarray) -> Sparks:
    """Sparks of a bird at [T, (y, x)] of 64 rows over a picture that slopes."""
    samples = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None], (len(track), 64, 64)).copy()
    samples[np.arange(len(track)), track[:, 0], track[:, 1]] += 60
    return sparks_of(samples)


@pytest.mark.parametrize("later", [0, 5, 12])
def test_sparks_agree_with_what_began_later_and_with_its_mirror_image_but_not_with_another_way(later):
    rng = np.random.default_rng(later)
    way = np.stack([np.clip(np.cumsum(rng.integers(-3, 4, 90)) % 64, 0, 63) for _ in range(2)], axis=1)
    one, copy, mirrored = birds(way), birds(way[later:]), birds(np.stack([way[later:, 0], 63 - way[later:, 1]], axis=1))
    laid = StillLooks({0: one.look, 1: copy.look}).laid(0, 1, False)
    assert laid[0] > 0.99
    assert same_sparks(one, copy, (1.0, 0), False)
    assert same_sparks(one, mirrored, (1.0, 0), True)
    assert not same_sparks(one, mirrored, (1.0, 0), False)
    assert not same_sparks(one, birds(way[::-1]), (1.0, 0), False)
    assert not same_sparks(one, copy, (0.5, 0), False)  # what stands still differs


def test_nothing_moves_in_a_picture_and_nothing_is_said_of_it():
    still = birds(np.zeros((60, 2), int))
    assert not still.size.any()
    assert not same_sparks(still, still, (1.0, 0), False)
