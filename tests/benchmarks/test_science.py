"""`python -m benchmarks.science`: claims come before numbers, finished seeds stay, and every experiment runs to its end."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the repository, they are not installed

from benchmarks import science, science_a, science_b, science_c, science_data
from benchmarks.science_data import Clips, World
from benchmarks.science_picture import draw
from benchmarks.science_training import Training
from pipelines.synthetic import MOTIONS, render

WORLD = World(pool=20, sources=20, cuts=2, test=20, frames=4, size=16)
SHORT = Training(steps=10, batch=10, lr=1e-3)
SMALL = {
    "a": science_a.Setup(WORLD, SHORT, SHORT, width=4, dim=8, queue=20, k=2, cascades=((3, 0.5), (5, 0.6))),
    "b": science_b.Setup(WORLD, SHORT, width=4, dim=8, negatives=8),
    "c": science_c.Setup(WORLD, SHORT, SHORT, width=4, dim=8, prototypes=6),
}
MODULES = {"a": science_a, "b": science_b, "c": science_c}


def clips_of(world: World, plans: list[tuple[int, int]]) -> Clips:
    """Rendered, neither encoded nor packed: no product code but the painter."""
    pixels, labels = [], []
    for source, cut in plans:
        scene = science_data._scene(world, source, cut)
        frames = render(scene, frames=4 * world.frames, size=2 * world.kept, seed=0)[::2, ::2, ::2]
        pixels.append(torch.from_numpy(np.ascontiguousarray(frames.transpose(3, 0, 1, 2))))
        labels.append(list(MOTIONS).index(scene.motion))
    return Clips(world, torch.stack(pixels), np.array(labels), np.array([source for source, _ in plans]))


@pytest.fixture(scope="module")
def videos() -> tuple[Clips, Clips]:
    train = clips_of(WORLD, [(source, cut) for source in range(20) for cut in range(2)])
    return train, clips_of(WORLD, [(20 + source, 0) for source in range(20)])


@pytest.fixture
def toy(monkeypatch):
    """An experiment that costs nothing: its number is ten times its seed."""
    monkeypatch.setattr(science_data, "load_world", lambda world, cache: ("pool", "test"))
    monkeypatch.setattr(science_data, "draw_sources", lambda pool, seed: pool)
    ran: list[int] = []

    def run(setup, train, test, seed):
        print(f"running {seed}")  # noqa: T201
        ran.append(seed)
        return {"score | new": 10.0 * seed, "score | old": 10.0}

    return SimpleNamespace(
        ran=ran,
        run=run,
        register=lambda setup: {"claim": f"bigger than {setup.size}", "sizes": (1, 2)},
        comparisons=lambda setup: [("new - old", "score | new", "score | old")],
    )


def go(toy, folder: Path, seeds: list[int], size: int = 3):
    setup = SimpleNamespace(size=size, world=None)
    return science.run_experiment("a", toy, setup, seeds, folder / "science.json", folder)


def stored(folder: Path):
    return json.loads((folder / "science.json").read_text())["experiments"]["a"]


def test_the_claim_is_printed_and_stored_before_the_first_seed_runs(toy, tmp_path, capsys):
    first = toy.run
    toy.run = lambda *given: [stored(tmp_path)["registration"]["claim"], first(*given)][
        1
    ]  # fails where nothing is stored
    go(toy, tmp_path, [0])
    said = capsys.readouterr().out
    assert 0 <= said.index("bigger than 3") < said.index("running 0")


def test_a_finished_seed_is_kept_when_a_later_one_fails_and_is_not_run_again(toy, tmp_path):
    good = toy.run

    def cut_off(setup, train, test, seed):
        if seed == 1:
            raise KeyboardInterrupt
        return good(setup, train, test, seed)

    toy.run = cut_off
    with pytest.raises(KeyboardInterrupt):
        go(toy, tmp_path, [0, 1, 2])
    assert list(stored(tmp_path)["seeds"]) == ["0"]
    toy.run = good
    go(toy, tmp_path, [0, 1, 2])
    assert toy.ran == [0, 1, 2]
    assert list(stored(tmp_path)["seeds"]) == ["0", "1", "2"]


def test_seeds_of_another_registration_are_not_mixed(toy, tmp_path):
    go(toy, tmp_path, [0])
    with pytest.raises(SystemExit, match="another registration"):
        go(toy, tmp_path, [1], size=4)
    assert stored(tmp_path)["registration"]["claim"] == "bigger than 3"


def test_a_pilot_seed_is_shown_and_never_stored(toy, tmp_path, capsys):
    go(toy, tmp_path, [0, 1])
    before = stored(tmp_path)
    assert go(toy, tmp_path, [100, 101])["seeds"].keys() == {"0", "1"}
    assert "1000.000" in capsys.readouterr().out
    assert stored(tmp_path) == before


def test_the_summary_says_the_sign_of_every_seed_also_where_the_claim_fails(toy, tmp_path, capsys):
    summary = go(toy, tmp_path, [0, 1, 2, 3])["summary"]
    row, expected = summary["differences"]["new - old"], np.array([-10.0, 0, 10, 20])
    assert row["values"] == expected.tolist()
    assert row["signs"] == "-0++"
    assert (row["mean"], row["sd"]) == pytest.approx((expected.mean(), expected.std(ddof=1)))
    assert "-0++" in capsys.readouterr().out


def test_only_the_named_experiments_exist():
    with pytest.raises(SystemExit):
        science.main(["d"])


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_every_experiment_ends_with_all_it_compares(name, videos, tmp_path):
    module, setup = MODULES[name], SMALL[name]
    assert importlib.import_module(f"benchmarks.science_{name}") is module
    json.dumps(module.register(setup))
    table = module.run(setup, *videos, seed=100)
    assert all(np.isfinite(value) for value in table.values())
    assert all(0 <= value <= 1 for column, value in table.items() if column.startswith(("R@1", "train")))
    said = science.summary([table, table], module.comparisons(setup))
    assert len(said["differences"]) == len(module.comparisons(setup))
    picture = draw(name, {"seeds": {"0": {"values": table}, "1": {"values": table}}}, tmp_path)
    assert picture.read_text().startswith("<?xml")
    assert picture.stat().st_size < 100_000


def test_all_arms_of_iic_have_the_same_number_of_negatives(videos):
    from benchmarks.science_training import method_of

    batch, columns = videos[0].batch(np.arange(4), ("rgb", "residual"), seed=0, step=0, per_video=1), set()
    for words in SMALL["b"].arms().values():
        method = method_of(["model.width=4", "model.dim=8", "method.name=iic", "method.warmup_steps=0", *words], 0, 40)
        rows = method._encoded(batch)
        ids = torch.zeros(4, 1 + method.iic.negatives, dtype=torch.int64)
        columns |= {table.logits.shape[1] for table in method.tables(rows, ids)}
        assert method(batch).loss.isfinite()
    assert columns == {2 * SMALL["b"].negatives + 2}


def test_a_batch_is_decided_by_seed_and_step_and_all_views_show_the_same_clip(videos):
    rows = np.array([3, 0, 7])
    one, again, later = (videos[0].batch(rows, ("rgb", "residual"), seed=1, step=step) for step in (5, 5, 6))
    rgb, residual = one.clips["rgb"], one.clips["residual"]
    assert torch.equal(rgb, again.clips["rgb"])
    assert not torch.equal(rgb, later.clips["rgb"])
    assert rgb.shape == (3, 2, 3, WORLD.frames, WORLD.size, WORLD.size)
    torch.testing.assert_close(residual[:, :, :, 2], rgb[:, :, :, 2] - rgb[:, :, :, 1])
    assert one.instance.tolist() == rows.tolist()


def test_a_clip_is_the_part_of_its_video_that_its_start_says(videos):
    still = replace(videos[0], world=replace(WORLD, jitter=0.0))
    batch = still.batch(np.arange(10), ("rgb",), seed=2, step=0)
    mean, std = (torch.from_numpy(one).view(3, 1, 1, 1) for one in (science_data.MEAN, science_data.STD))
    for row in range(10):
        clip, start = (batch.clips["rgb"][row, 1] * std + mean), int(batch.start[row, 1])
        frames = still.pixels[row, :, start : start + WORLD.frames].float()
        places = frames.unfold(2, WORLD.size, 1).unfold(3, WORLD.size, 1).permute(2, 3, 0, 1, 4, 5)
        assert (places - clip).abs().amax(dim=(2, 3, 4, 5)).min() < 1e-2


def test_windows_show_every_video_three_times_without_augmentation(videos):
    seen = [
        (int(i), int(s))
        for batch in videos[1].windows(("rgb",), batch=8)
        for i, s in zip(batch.instance, batch.start[:, 0], strict=True)
    ]
    assert sorted(seen) == [(video, start) for video in range(20) for start in (0, 2, 4)]


def test_a_frozen_video_has_no_motion_and_no_margin_over_itself(videos):
    still = science_b.frozen(videos[1])
    for batch in still.windows(("residual",)):
        assert batch.clips["residual"].abs().max() == 0


def test_a_seed_trains_on_whole_sources_evenly_over_classes(videos):
    world = replace(WORLD, sources=10)
    drawn = science_data.draw_sources(replace(videos[0], world=world), seed=3)
    other = science_data.draw_sources(replace(videos[0], world=world), seed=4)
    assert np.bincount(drawn.label).tolist() == [2] * 10
    assert all((drawn.group == group).sum() == 2 for group in np.unique(drawn.group))
    assert set(drawn.group) != set(other.group)


def test_appearance_follows_the_class_as_often_as_the_world_says():
    scenes = [(source, science_data._scene(replace(WORLD, corr=0.8), source, 0)) for source in range(2000)]
    own = np.mean([scene.background == source % 10 % 5 for source, scene in scenes])
    assert own == pytest.approx(0.8 + 0.2 / 5, abs=0.03)
    first, second = (science_data._scene(WORLD, 7, cut) for cut in (0, 1))
    assert replace(first, things=second.things) == second  # cuts differ in where things start, and in nothing else
    assert first.things != second.things


@pytest.mark.slow
def test_the_videos_are_packed_and_decoded_once(tmp_path, monkeypatch):
    world = replace(WORLD, pool=10, sources=10, cuts=1, test=10)
    train, test = science_data.load_world(world, tmp_path)
    assert train.pixels.shape == (10, 3, 2 * world.frames, world.kept, world.kept)
    assert len(np.unique(np.concatenate([train.group, test.group]))) == 20
    assert sorted(train.label) == sorted(test.label) == list(range(10))
    monkeypatch.setattr(science_data, "pack", None)
    again, _ = science_data.load_world(world, tmp_path)
    assert torch.equal(again.pixels, train.pixels)
