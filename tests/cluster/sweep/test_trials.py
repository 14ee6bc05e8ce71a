"""A sweep on the bank of a run that this module makes: rows, resumption, findings, and one real Ray Tune run."""

from __future__ import annotations

import csv
import dataclasses
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cluster.mine.measure import Row, measure
from cluster.mine.picture import draw_points
from cluster.mine.study import Study, study_of_bank
from cluster.mine.table import find
from cluster.mine.words import Point, SweepWords, reference_points, search_points
from cluster.sweep import trials
from cluster.sweep.ledger import Ledger
from cluster.sweep.result import write_results
from pipelines.dataset.manifest import Manifest, Samples, Shard, write_manifest
from vidssl.batch import Embeddings
from vidssl.errors import BankError, BusyError, CheckpointError, DataError, RecipeError
from vidssl.marks import MARK
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.snapshots import save_snapshot
from vidssl.recipe import load_recipe, recipe_from_file
from vidssl.saved.run_folder import RunFolder

N, CLASSES, DIM = 140, 10, 32
RAW = "spaces=raw"


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def two_views(n: int, classes: int, scenes: int = 10, noise: float = 0.5, seed: int = 0) -> dict[str, np.ndarray]:
    """Class direction plus a stronger nuisance that differs between the views: one view alone is misled by its scene."""
    rng = np.random.default_rng(seed)
    label, views = np.arange(n) % classes, {}
    for view in ("residual", "rgb"):
        of_class, of_scene = unit(rng.normal(size=(classes, DIM))), unit(rng.normal(size=(scenes, DIM)))
        scene = of_scene[rng.integers(scenes, size=n)]
        views[view] = unit(0.6 * of_class[label] + 0.9 * scene + noise * unit(rng.normal(size=(n, DIM))))
    return views


def make_run(root: Path, n: int = N, classes: int = CLASSES, labelled: bool = True, empty: int = 0) -> Path:
    """A run folder with a bank snapshot, and a manifest that knows the labels (a shard that is not there: nobody reads videos here)."""
    root.mkdir(parents=True)
    label, instance = np.arange(n) % classes, np.arange(n)
    bank = EmbeddingBank(n, DIM, ("rgb", "residual"), instance // 2)
    rows = {view: values[: n - empty] for view, values in two_views(n, classes).items()}
    bank.push(Embeddings(rows, instance[: n - empty], 299, 0))
    save_snapshot(bank, root / "bank", 300)
    zeros = np.zeros(n, np.int32)
    samples = Samples(
        shard=zeros,
        label=(label if labelled else zeros - 1).astype(np.int32),
        group=(instance // 2).astype(np.int32),
        split=zeros.astype(np.int8),
        frames=zeros + 16,
        width=zeros.astype(np.int16) + 128,
        height=zeros.astype(np.int16) + 128,
        name=np.array([f"{i}.mp4" for i in range(n)]),
    )
    names = tuple(map(str, range(classes)))
    packed, shard = root / "packed", Shard("shard-00000.tar", 1, n, "0" * 64)
    packed.mkdir()
    write_manifest(Manifest(packed, "", "h264", 128, 25.0, 16, names, ("all",), (shard,), samples, n // 2))
    words = [f"data={packed}", "mining.topk=5"]
    (root / "recipe.yaml").write_text(load_recipe("cpr-tiny", words).to_yaml())
    return root


def study_of(run: Path, **space: object) -> Study:
    folder = RunFolder(run)
    return study_of_bank(folder, recipe_from_file(folder.recipe), SweepWords.model_validate(space))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("sweep") / "run")


@pytest.fixture
def here(monkeypatch):
    """Trials in this process, in order: everything of a sweep but Ray."""

    def run_points(points, study, ledger, say):
        for number, point in enumerate(points, 1):
            ledger.add(measure(study, point).row)
            say(f"{number} {point.describe()}")

    monkeypatch.setattr(trials, "_run_points", run_points)


def slow_positives(study: Study, strategy: str, k: int) -> np.ndarray:
    """Top k by one score per pair, written out query by query."""
    scores = study.main @ study.main.T if strategy == "single" else study.main @ study.main.T + study.aux @ study.aux.T
    out = []
    for query in range(study.n_filled):
        allowed = [slot for slot in range(study.n_filled) if study.group[slot] != study.group[query]]
        out.append(sorted(allowed, key=lambda slot: (-scores[query, slot], slot))[:k])
    return np.array(out)


@pytest.mark.parametrize("strategy", ["single", "sum"])
def test_the_measures_of_a_rival_are_those_of_a_slow_count(run, strategy):
    study = study_of(run)
    row = measure(study, Point(strategy, 1, study.n_filled, 5)).row
    ids = slow_positives(study, strategy, 5)
    right = study.label[ids] == study.label[:, None]
    assert row.precision_at_k == pytest.approx(right.mean(), abs=1e-9)
    assert row.hit_at_k == pytest.approx(right.any(1).mean(), abs=1e-9)
    assert row.precision_se == pytest.approx(right.mean(1).std() / math.sqrt(N))
    assert row.distinct_ratio == pytest.approx(len(np.unique(ids)) / ids.size)
    lower = [min(study.main[q] @ study.main[i], study.aux[q] @ study.aux[i]) for q in range(N) for i in ids[q]]
    assert row.agreement == pytest.approx(np.mean(lower), abs=1e-5)


def test_chance_is_the_precision_of_random_allowed_positives(run):
    study = study_of(run)
    shares = []
    for query in range(study.n_filled):
        allowed = study.group != study.group[query]
        shares.append((study.label[allowed] == study.label[query]).mean())
    assert study.chance() == pytest.approx(np.mean(shares))


def test_a_small_last_pool_beats_both_rivals_where_the_nuisance_differs_between_views(run):
    study = study_of(run)
    cascade = measure(study, Point("cascade", 5, 12, 5)).row
    single = measure(study, Point("single", 1, study.n_filled, 5)).row
    assert cascade.precision_at_k > 1.4 * single.precision_at_k
    assert cascade.pool == 12


def test_only_filled_rows_take_part(tmp_path):
    study = study_of(make_run(tmp_path / "part", empty=40))
    assert (study.n_filled, study.n_slots) == (100, N)
    assert measure(study, Point("single", 1, 100, 5)).row.pool == 100


def test_large_banks_are_queried_by_a_seeded_sample(run):
    first, again, other = (study_of(run, queries=30, seed=seed).queries for seed in (1, 1, 2))
    assert len(first) == 30
    assert (np.diff(first) > 0).all()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_sweep_writes_its_rows_picture_recipe_lines_and_text(run, tmp_path, here):
    lines: list[str] = []
    text = trials.run_sweep(
        str(run), ["stages=[1,3,5]", "pools=[6,12,50]", "topk=[5,10]", RAW], str(tmp_path), say=lines.append
    )
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (6 + 2 * 3) - 2  # k=10 cannot have p=6; three rivals and three that no recipe asks for
    assert {
        "strategy",
        "stages",
        "ratio",
        "pool",
        "topk",
        "precision_at_k",
        "hit_at_k",
        "class_mining_recall_median",
        "coverage",
        "sibling_rate",
        "distinct_ratio",
        "hubness",
        "ms_per_query",
        "seconds",
    } <= set(rows[0])
    assert len(lines) == 1 + len(rows)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    best = recipe_from_file(tmp_path / "best.yaml").mining
    at_5 = [row for row in rows if row["topk"] == "5" and row["strategy"] not in ("aux", "random", "oracle")]
    top = max(at_5, key=lambda row: float(row["precision_at_k"]))
    assert (best.strategy, best.stages, best.pool, best.topk) == ("cascade", int(top["stages"]), int(top["pool"]), 5)
    assert "140 of 140 slots filled, 140 queries, class size 14" in text
    assert "beats `single`" in text
    assert "Plateau: p=" in text


def test_a_sweep_that_was_stopped_does_only_what_is_missing(run, tmp_path, here):
    words = ["stages=[1,3]", "pools=[10,20]", RAW]
    trials.run_sweep(str(run), words, str(tmp_path), say=lambda line: None)
    path = tmp_path / "sweep.csv"
    whole = path.read_text().splitlines()
    path.write_text("\n".join(whole[:3]) + "\ncascade,3,0.2")  # a kill in the middle of a row
    lines: list[str] = []
    trials.run_sweep(str(run), [*words, "topk=[5]"], str(tmp_path), say=lines.append)
    assert "2 are done already" in lines[0]
    assert len(lines) == len(whole) - 1 - 2 + 1
    assert [line.split(",")[:6] for line in path.read_text().splitlines()] == [line.split(",")[:6] for line in whole]


def test_rows_of_another_bank_are_set_aside_and_not_mixed_in(run, tmp_path, here):
    trials.run_sweep(str(run), ["stages=[1]", RAW], str(tmp_path), say=lambda line: None)
    lines: list[str] = []
    trials.run_sweep(str(run), ["stages=[1]", "queries=50", RAW], str(tmp_path), say=lines.append)
    assert "of another bank or other queries; they are in sweep-" in lines[0]
    assert len(list(tmp_path.glob("sweep-*.csv"))) == 1
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 1 + 6


def test_without_labels_nothing_is_ranked_or_called_best_and_agreement_is_said_to_mislead(tmp_path, here):
    run = make_run(tmp_path / "run", labelled=False)
    text = trials.run_sweep(str(run), ["stages=[3]", "pools=[10]"], say=lambda line: None)
    assert "all points, in no order of merit:" in text
    assert "agreement of the views (lower cosine of the two) misleads" in text
    for word in ("best at", "BEATS", "beats", "to paste:", "Plateau", "best.yaml"):
        assert word not in text
    assert not (run / "sweep" / "best.yaml").exists()
    assert (run / "sweep" / "sweep.png").exists()
    with pytest.raises(RecipeError, match=r"metric=agreement is refused: without labels it misleads"):
        trials.run_sweep(str(run), ["stages=[3]", "pools=[10]", "metric=agreement"], say=lambda line: None)


def test_a_recipe_takes_the_bank_of_the_run_that_is_named(run, tmp_path, here):
    text = trials.run_sweep(
        "cpr-tiny",
        [f"run={run}", "stages=[3]", "pools=[10]", "mining.last_view=alternate"],
        str(tmp_path),
        lambda line: None,
    )
    assert "snap-300" in text
    assert recipe_from_file(tmp_path / "best.yaml").mining.last_view in ("alternate", "main")


def test_a_sweep_without_a_run_is_refused_and_says_what_to_type(tmp_path):
    with pytest.raises(RecipeError, match="type vidssl sweep cpr-tiny run=RUN"):
        trials.run_sweep("cpr-tiny", [])
    with pytest.raises(RecipeError, match="no recipe 'cpr-tyni'"):
        trials.run_sweep("cpr-tyni", [])
    with pytest.raises(CheckpointError, match="is no run folder"):
        trials.run_sweep("cpr-tiny", [f"run={tmp_path}"])


def test_a_run_without_a_snapshot_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text(load_recipe("cpr-tiny").to_yaml())
    with pytest.raises(BankError, match=r"has no bank snapshot; train it with mining.where=actor"):
        trials.run_sweep(str(tmp_path), [])


def row(strategy: str, stages: int, pool: int, precision: float, k: int = 5, se: float = 0.001) -> Row:
    zeros = dict.fromkeys((field.name for field in dataclasses.fields(Row)), 0.0)
    given = {
        "space": "raw",
        "strategy": strategy,
        "stages": stages,
        "pool": pool,
        "topk": k,
        "precision_at_k": precision,
        "precision_se": se,
    }
    return Row(**(zeros | given))  # type: ignore[arg-type]


SURFACE = [row("cascade", s, p, 0.6 - 0.05 * abs(math.log2(p / 8)) + 0.001 * s) for s in (3, 5) for p in (4, 8, 9, 32)]


def test_the_plateau_and_what_governs_are_read_off_a_known_surface():
    found = find([*SURFACE, row("single", 1, 100, 0.3), row("sum", 1, 100, 0.2)], "precision_at_k", 5)
    assert (found.best.stages, found.best.pool) == (5, 8)
    assert found.plateau == (8, 9)
    assert found.over_stages == pytest.approx(0.002)
    assert found.over_pools == pytest.approx(0.1)
    assert [rival.strategy for rival in found.rivals] == ["single", "sum"]


def test_the_text_says_when_sum_beats_the_cascade_or_cannot_be_told_apart(run, tmp_path):
    study, recipe = study_of(run), recipe_from_file(run / "recipe.yaml")
    ledger = Ledger(tmp_path, study)
    for one in [*SURFACE, row("single", 1, 140, 0.3), row("sum", 1, 140, 0.7)]:
        ledger.add(one)
    text = write_results(ledger, study, SweepWords(), recipe)
    assert "`sum` BEATS the best cascade (S=5 p=8): 0.700 against 0.605; mine with mining.strategy=sum." in text
    assert "The last pool p governs: at equal p the S differ by 0.002, at equal S the p differ by 0.100" in text
    assert recipe_from_file(tmp_path / "best.yaml").mining.strategy == "sum"
    ledger.rows[-1] = row("sum", 1, 140, 0.61, se=0.02)
    assert "`sum` and the best cascade (S=5 p=8) cannot be told apart" in write_results(
        ledger, study, SweepWords(), recipe
    )


def test_differences_within_the_noise_are_not_called_a_finding(run, tmp_path):
    study, recipe = study_of(run), recipe_from_file(run / "recipe.yaml")
    ledger = Ledger(tmp_path, study)
    for one in SURFACE:
        ledger.add(dataclasses.replace(one, precision_se=0.2))
    text = write_results(ledger, study, SweepWords(), recipe)
    assert "Neither S nor p moves the result beyond two standard errors (0.400)" in text


def test_the_picture_serves_one_and_many_k(run, tmp_path):
    study = study_of(run)
    for ks in ((5,), (1, 2, 5, 10)):
        rows = [row(one.strategy, one.stages, one.pool, one.precision_at_k, k) for one in SURFACE for k in ks]
        draw_points(rows, "precision_at_k", study, tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_ray_tune_gives_the_rows_that_a_plain_loop_gives(run, tmp_path, ray_cluster):
    words = ["stages=[1,3]", "pools=[6,30]", "topk=[5]", "spaces=[raw]"]
    lines: list[str] = []
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)
    text = trials.run_sweep(str(run), words, str(tmp_path), say=lines.append)
    # Tune leaves its own behind, and the next Ctrl-C would do nothing
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)) == handlers
    study = study_of(run)
    rows = {one.point: one for one in Ledger(tmp_path, study).rows}
    search, mining = (
        SweepWords(stages=(1, 3), pools=(6, 30), topk=(5,), spaces=("raw",)),
        recipe_from_file(run / "recipe.yaml").mining,
    )
    points = search_points(search, N, mining) + reference_points(search, N, mining, 2, labelled=True)
    assert len(rows) == len(points) == 8
    for point in points:
        plain = measure(study, point).row
        assert rows[plain.point].precision_at_k == pytest.approx(plain.precision_at_k, abs=1e-5)
    assert len(lines) == 1 + len(points)
    assert not (tmp_path / ".tune").exists()
    assert "beats" in text


def test_a_folder_that_holds_other_things_is_refused_and_left_as_it_is(run, tmp_path, here):
    for name, content in (("sweep.csv", "my,own\n1,2\n"), ("best.yaml", "mine"), ("notes.txt", "mine")):
        out = tmp_path / name.replace(".", "-")
        out.mkdir()
        (out / name).write_text(content)
        with pytest.raises(
            DataError, match="holds files that vidssl did not make, and they are left alone; type --out FOLDER"
        ):
            trials.run_sweep(str(run), ["stages=[1]", RAW], str(out), say=lambda line: None)
        assert {path.name: path.read_text() for path in out.iterdir()} == {name: content}
    with pytest.raises(DataError, match="is a file and a folder is needed; type --out FOLDER"):
        trials.run_sweep(str(run), ["stages=[1]", RAW], str(out / name), say=lambda line: None)


def test_a_table_with_other_columns_is_not_written_over(run, tmp_path, here):
    trials.run_sweep(str(run), ["stages=[1]", RAW], str(tmp_path), say=lambda line: None)
    (tmp_path / "sweep.csv").write_text("my,own\n1,2\n")
    with pytest.raises(
        DataError, match=r"sweep.csv has other columns than a sweep writes; move it away, or type --out FOLDER"
    ):
        trials.run_sweep(str(run), ["stages=[1]", RAW], str(tmp_path), say=lambda line: None)
    assert (tmp_path / "sweep.csv").read_text() == "my,own\n1,2\n"


@pytest.mark.parametrize("torn", ["{", "[]", '{"id": 3}'])
def test_a_damaged_note_of_a_sweep_is_named(run, tmp_path, here, torn):
    trials.run_sweep(str(run), ["stages=[1]", RAW], str(tmp_path), say=lambda line: None)
    (tmp_path / "sweep.json").write_text(torn)
    with pytest.raises(CheckpointError, match=r"sweep.json is .*; remove it and type the same words again"):
        trials.run_sweep(str(run), ["stages=[1]", RAW], str(tmp_path), say=lambda line: None)


def test_a_sweep_that_was_made_before_folders_were_marked_goes_on(run, tmp_path, here):
    trials.run_sweep(str(run), ["stages=[1]", RAW], str(tmp_path), say=lambda line: None)
    (tmp_path / MARK).unlink()
    lines: list[str] = []
    trials.run_sweep(str(run), ["stages=[1]", RAW], str(tmp_path), say=lines.append)
    assert "6 points" in lines[0]
    assert "6 are done already" in lines[0]


def test_rows_that_were_set_aside_come_back_with_their_bank_and_none_is_lost(run, tmp_path, here):
    def rows():
        return {
            line.split(",", 6)[0] + line.split(",")[5] for line in (tmp_path / "sweep.csv").read_text().splitlines()[1:]
        }

    def of(k):
        return {f"{name}{k}" for name in ("single", "sum", "minrank", "aux", "random", "oracle")}

    trials.run_sweep(str(run), ["stages=[1]", "topk=[5]", RAW], str(tmp_path), say=lambda line: None)
    trials.run_sweep(str(run), ["stages=[1]", "topk=[6]", "queries=50", RAW], str(tmp_path), say=lambda line: None)
    assert rows() == of(6)
    trials.run_sweep(str(run), ["stages=[1]", "topk=[7]", RAW], str(tmp_path), say=lambda line: None)
    assert rows() == of(5) | of(7)
    lines: list[str] = []
    trials.run_sweep(str(run), ["stages=[1]", "topk=[6]", "queries=50", RAW], str(tmp_path), say=lines.append)
    assert rows() == of(6)
    assert "6 are done already" in lines[-1]


def test_a_sweep_that_is_under_way_is_not_joined_by_another(run, tmp_path, here):
    code = (
        "import sys, time; from pathlib import Path; from vidssl.lock import held\n"
        "with held(Path(sys.argv[1]), 'sweep'): print('held', flush=True); time.sleep(120)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=rf"is in use by `vidssl sweep` \(process {other.pid} on "):
            trials.run_sweep(str(run), ["stages=[1]", RAW], str(tmp_path), say=lambda line: None)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
