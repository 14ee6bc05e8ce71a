"""`python -m benchmarks.science`: claims come before numbers, finished seeds stay, and every experiment runs to its end."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import science, science_a, science_b, science_c, science_d, science_data, science_e
from benchmarks.science_arms import Arm, Phase, SoftArm, run_phase, soft_weights
from benchmarks.science_data import Clips, RealWorld, World
from benchmarks.science_picture import draw, draw_worlds
from benchmarks.science_precision import bank_precision
from benchmarks.science_training import Rows as TrainedRows
from benchmarks.science_training import Training, method_of, recall, train
from benchmarks.science_worlds import Gestures
from pipelines.synthetic import MOTIONS, render
from vidssl.methods.mined import Rows

WORLD = World(pool=20, sources=20, cuts=2, test=20, frames=4, size=16)
SHORT = Training(steps=10, batch=10, lr=1e-3)
SMALL = {
    "a": science_a.Setup(WORLD, SHORT, SHORT, width=4, dim=8, queue=20, k=2, cascades=((3, 0.5), (5, 0.6))),
    "b": science_b.Setup(WORLD, SHORT, width=4, dim=8, negatives=8),
    "c": science_c.Setup(WORLD, SHORT, SHORT, width=4, dim=8, prototypes=6),
    "d": science_d.Setup(
        conditions={"poor": science_d.Condition(second=0.2, mates=8)}, slots=(80,), ks=(5,), dim=32, queries=40
    ),
    "e-even": science_e.Setup(
        WORLD,
        {"rgb": 6, "residual": 3},
        SHORT,
        width=4,
        dim=8,
        queue=20,
        pool=3,
        arms={"cascade, raw": Arm("cascade", k=2), "none": Arm("none", k=2), "oracle": Arm("oracle", k=2)},
        banks=(20, 40),
        ks=(2,),
    ),
}
SMALL["e-cycles"] = replace(SMALL["e-even"], banks=(), cycles=2)
SMALL["e-gestures"] = Gestures(
    WORLD,
    together=replace(SHORT, steps=4),
    width=4,
    dim=8,
    queue=20,
    pool=3,
    arms={"cascade, raw": Arm("cascade", k=2), "soft": SoftArm("single", "canonical", k=2)},
    first=replace(SHORT, steps=2),
)
MODULES = {
    "e-cycles": science_e,
    "e-gestures": science_e,
    "a": science_a,
    "b": science_b,
    "c": science_c,
    "d": science_d,
    "e-even": science_e,
}


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
def toy():
    """An experiment that costs nothing: its number is ten times its seed."""
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
    experiment = science.Experiment("a", toy, setup)
    return science.run_experiments([experiment], seeds, folder / "science.json", folder)["a"]


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
    half = 3.182 * expected.std(ddof=1) / 2  # Student's quantile of three degrees of freedom
    assert row["interval"] == pytest.approx([expected.mean() - half, expected.mean() + half])
    assert "-0++" in capsys.readouterr().out


def test_only_the_named_experiments_exist():
    with pytest.raises(SystemExit):
        science.main(["z"])
    named = [science.experiment_of(name) for name in science.EXPERIMENTS]
    assert [one.module.__name__[-1] for one in named] == list("abcd") + ["e"] * 9


def test_every_seed_goes_through_all_experiments_before_the_next_one_begins(toy, tmp_path):
    setup, order = SimpleNamespace(size=3, world=None), []

    def named(name: str) -> science.Experiment:
        def run(setup, train, test, seed):
            order.append(f"{name}{seed}")
            return {"score | new": 1.0, "score | old": 0.0}

        return science.Experiment(name, SimpleNamespace(**{**vars(toy), "run": run}), setup)

    science.run_experiments([named("a"), named("b")], [0, 1], tmp_path / "science.json", tmp_path)
    assert order == ["a0", "b0", "a1", "b1"]


LONG = ("a", "c", "e-cycles")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in SMALL])
def test_every_experiment_ends_with_all_it_compares(name, videos, tmp_path):
    module, setup = MODULES[name], SMALL[name]
    assert importlib.import_module(f"benchmarks.science_{name[0]}") is module
    json.dumps(module.register(setup))
    table = module.run(setup, *videos, seed=100)
    assert all(np.isfinite(value) for value in table.values())
    assert all(0 <= value <= 1 for column, value in table.items() if "R@1" in column or " k=" in column)
    said = science.summary([table, table], module.comparisons(setup))
    assert len(said["differences"]) == len(module.comparisons(setup))
    entry = {"seeds": {"0": {"values": table}, "1": {"values": table}}, "summary": said}
    picture = draw_worlds({name: entry}, tmp_path) if name.startswith("e-") else draw(name, entry, tmp_path)
    assert picture.read_text().startswith("<?xml")
    assert picture.stat().st_size < 100_000


def test_all_arms_of_iic_have_the_same_number_of_negatives(videos):
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


def phase_of(view: str, second: str) -> Phase:
    words = ["model.width=4", "model.dim=8", "method.queue=20", f"method.view={view}", f"method.second_view={second}"]
    return Phase([*words, "method.warmup_steps=0", "method.exclude_siblings=true"], SHORT, stages=3, pool=4)


def trained(videos: tuple[Clips, Clips], arms: dict[str, Arm]):
    weights = {
        view: method_of(["model.width=4", "model.dim=8", f"method.view={view}", "method.name=infonce"], 5, 40).artifact(
            view
        )
        for view in ("rgb", "residual")
    }
    starts = dict.fromkeys(arms, weights)
    return run_phase(phase_of("rgb", "residual"), arms, starts, videos[0], seed=9), weights


@pytest.fixture(scope="module")
def phase(videos):
    """The cascade beside three arms that see other positives, and the weights that all began with."""
    arms = {"cascade": Arm("cascade", k=3), "oracle": Arm("oracle", k=3), "none": Arm("none"), "sum": Arm("sum", k=3)}
    return trained(videos, arms)


def weights_of(method) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in method.encoder("rgb").parameters()])


def test_the_cascade_beside_other_arms_learns_bit_by_bit_what_the_product_learns_alone(videos, phase):
    together, start = phase
    words = [*phase_of("rgb", "residual").words, "mining.stages=3", "mining.pool=4", "mining.topk=3"]
    alone = method_of([*words, "method.name=cpr", "mining.where=inline"], 9, 40)
    alone.start_from(start["rgb"])
    alone.load_second(start["residual"])
    train(alone, videos[0], ("rgb", "residual"), SHORT, 9)
    assert torch.equal(weights_of(together["cascade"]), weights_of(alone))
    assert len({weights_of(method).sum().item() for method in together.values()}) == 4


def test_the_far_arm_takes_of_what_is_mined_the_rows_that_the_trained_view_finds_farthest(videos):
    methods, _ = trained(videos, {"near": Arm("single", k=4), "far": Arm("single", k=2, far=4)})
    near, far = methods["near"].mined, methods["far"].mined
    rng = np.random.default_rng(0)
    ids = rng.permuted(np.tile(np.arange(20), (6, 1)), axis=1)[:, :4]
    ids[0, 2:] = -1
    query, trained_view = rng.normal(size=(6, 8)), rng.normal(size=(20, 8))
    chosen = far._chosen(ids, query, trained_view)
    for row in range(6):
        there = sorted(ids[row][ids[row] >= 0], key=lambda slot: query[row] @ trained_view[slot])
        assert chosen[row].tolist() == there[:2]
    assert near._chosen(ids, query, trained_view).tolist() == ids.tolist()


def test_what_is_to_be_quiet_is_neither_positive_nor_negative(videos):
    methods, _ = trained(videos, {"quiet": Arm("single", k=2, quiet=6)})
    method = methods["quiet"]
    batch = videos[0].batch(np.arange(5), ("rgb", "residual"), seed=0, step=50)
    query, key = method._encode("rgb", batch)
    rows = Rows(query, key, method.stream("residual").frozen_rows(batch.clips["residual"][:, 1]))
    _, positive, valid, mined, _ = method.mined._table(rows, method.queue, batch, None, 6)
    assert mined.tolist() == [2] * 5
    assert (~valid).sum(1).tolist() == [4] * 5
    assert not (positive & ~valid).any()


def test_weights_are_the_softmax_of_a_rows_scores_with_a_mean_of_one():
    rng = np.random.default_rng(2)
    scores, there = rng.normal(size=(9, 5)), rng.uniform(size=(9, 5)) < 0.7
    there[0] = False
    weights = soft_weights(scores, there, 0.2)
    for row in range(9):
        shares = [np.exp(scores[row, one] / 0.2) if there[row, one] else 0.0 for one in range(5)]
        for one in range(5):
            expected = shares[one] / sum(shares) * there[row].sum() if there[row, one] else 1.0
            assert weights[row, one] == pytest.approx(expected, rel=1e-5)
    assert np.allclose(soft_weights(scores, there, 1e6), 1.0, atol=1e-5)


@pytest.mark.parametrize("of", ["both", "main"])
def test_soft_positives_weigh_as_the_views_score_them_and_siblings_weigh_one(videos, of):
    methods, _ = trained(videos, {"soft": SoftArm("single", k=3, heat=0.05, of=of)})
    method = methods["soft"]
    batch = videos[0].batch(np.arange(5), ("rgb", "residual"), seed=0, step=50)
    query, key = method._encode("rgb", batch)
    second = method.stream("residual").frozen_rows(batch.clips["residual"][:, 1])
    _, positive, _, mined, weights = method.mined._table(Rows(query, key, second), method.queue, batch, None, 3)
    cosines = second @ method.queue.rows("residual").T
    if of == "both":
        cosines = (cosines + query.detach() @ method.queue.rows("rgb").T) / 2
    siblings = method.queue.same_source(batch.instance, batch.group)
    assert mined.tolist() == [3] * 5
    for row in range(5):
        slots = (positive[row, 1:] & ~siblings[row]).nonzero()[:, 0]
        torch.testing.assert_close(
            weights[row, 1 + slots], 3 * (cosines[row, slots] / 0.05).softmax(0), rtol=1e-3, atol=1e-4
        )
        rest = torch.ones(21, dtype=torch.bool).index_fill(0, 1 + slots, False)
        assert (weights[row, rest] == 1).all()


def test_real_clips_are_asked_without_their_own_source():
    rng = np.random.default_rng(6)
    label, group = rng.integers(3, size=12), np.repeat(np.arange(6), 2)
    feature = rng.normal(size=(12, 4)).astype(np.float32)
    rows = TrainedRows(feature, feature, feature)
    real, made = (
        Clips(world, torch.zeros(12, 3, 2, 1, 1, dtype=torch.uint8), label, group) for world in (RealWorld(), World())
    )
    unit = feature - feature.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    hits = []
    for video in range(12):
        others = [one for one in range(12) if group[one] != group[video]]
        hits.append(label[max(others, key=lambda one: unit[one] @ unit[video])] == label[video])
    assert recall(rows, real, real) == pytest.approx(np.mean(hits))
    assert recall(rows, made, made) == 1  # generated test videos are no training videos: there each would find itself


@pytest.mark.slow
def test_real_clips_are_all_trained_on_and_all_asked(tmp_path, monkeypatch):
    for place, name in enumerate(("one", "two")):
        (tmp_path / "clips" / "some" / name).mkdir(parents=True)
        for number in (1, 2, 9):
            scene = science_data._scene(WORLD, place, number)
            frames = render(scene, frames=16, size=128, seed=0)
            science_data._encode(frames, tmp_path / "clips" / "some" / name / f"{name}_{number}.mp4")
    monkeypatch.setenv("VIDSSL_CLIPS", str(tmp_path / "clips"))
    train, test = science_data.load_world(RealWorld(frames=4, size=16, folder="some"), tmp_path)
    assert len(train) == len(test) == 6
    assert len(np.unique(train.group)) == 4  # clips 1 and 2 are of one block of eight
    assert np.bincount(train.label).tolist() == [3, 3]


def test_a_longer_stride_takes_every_other_decoded_frame(videos):
    slow = RealWorld(frames=4, size=16, every=2)
    still = replace(videos[0], world=slow)
    assert slow.starts == 2
    assert slow.address() == replace(slow, every=1).address()  # the same decoded frames
    seen = [batch.clips["rgb"][:, 0] for batch in still.windows(("rgb",))]
    mean, std = (torch.from_numpy(one).view(3, 1, 1, 1) for one in (science_data.MEAN, science_data.STD))
    edge = (slow.kept - slow.size) // 2
    for clips, start in zip(seen, (0, 0, 1), strict=True):
        middle = still.pixels[:, :, start::2, edge : edge + 16, edge : edge + 16].float()
        torch.testing.assert_close(clips * std + mean, middle, rtol=0, atol=1e-2)
    starts = still.batch(np.arange(20), ("rgb",), seed=3, step=0).start
    assert set(starts.flatten().tolist()) == {0, 1}


def test_simulated_rows_know_their_class_as_well_as_their_condition_says():
    def precision(condition: science_d.Condition) -> dict[str, float]:
        views, label, group = science_d.simulated(condition, 240, 64, (1, 2))
        assert np.bincount(group).tolist() == [4] * 60
        assert all(len(set(label[group == one])) == 1 for one in range(60))
        assert np.bincount(label).tolist() == [condition.mates or 24] * (240 // (condition.mates or 24))
        return bank_precision(views, label, group, (5,), 240, 0)

    clear, empty = (
        precision(one)
        for one in (science_d.Condition(shared=0.0, own=0.3), science_d.Condition(second=0.0, shared=0.0, mates=12))
    )
    assert min(clear[f"k=5 | {arm}, raw"] for arm in ("single", "other")) > 0.9
    assert empty["k=5 | other, raw"] == pytest.approx(empty["k=5 | random"], abs=0.06)
    assert empty["k=5 | random"] == pytest.approx(8 / 236, abs=1e-4)


def test_precision_counts_the_class_mates_among_what_plain_search_finds():
    views, label, group = science_d.simulated(science_d.Condition(), 120, 32, (3,))
    found = bank_precision(views, label, group, (3,), 120, 0)
    scores = views[0] @ views[0].T + views[1] @ views[1].T
    scores[group[:, None] == group] = -np.inf
    best = np.argsort(-scores, axis=1)[:, :3]
    assert found["k=3 | sum, raw"] == pytest.approx((label[best] == label[:, None]).mean(), abs=1e-4)
