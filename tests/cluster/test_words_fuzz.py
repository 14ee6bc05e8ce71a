"""Hostile words behind every verb: refused in a sentence with exit code 2, or it works; and nothing of anybody's is touched.

Each word list runs through `cluster.cli.main` in this process up to the point where something heavy would start (Ray, a
decoder, a loader); a sample runs as real processes. Beside it lies a tree of files that look like ours and are not.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cluster.cli import main
from cluster.commands.table import VERBS
from pipelines.dataset.manifest import load_manifest
from vidssl.batch import Embeddings
from vidssl.marks import mark
from vidssl.methods import build_method
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.snapshots import save_snapshot
from vidssl.recipe import Recipe
from vidssl.saved.checkpoint import Meta, save_checkpoint
from vidssl.saved.run_folder import RunFolder

LISTS = 60
"""Word lists per verb."""

LOOK_ALIKES = (
    "shard-00000.tar",
    "shard-00000.idx",
    "samples.npz",
    "verdicts.csv",
    "demo.json",
    "manifest.json",
    "recipe.yaml",
    "run.json",
    "log.jsonl",
    "skipped.jsonl",
    "failure.json",
    "STOP",
    "report.html",
    "card.json",
    "encoder.safetensors",
    "embeddings.zarr/zarr.json",
    "eval/retrieval.json",
    "eval/finetune.json",
    "checkpoints/step-00000100/model.pt",
    "checkpoints/step-00000100/meta.json",
    "bank/snap-100/zarr.json",
    "sweep/sweep.csv",
    "sweep.csv",
    "best.yaml",
    "ledger.json",
    "table.json",
    "reproduction.json",
    ".staging/journal.json",
    ".ray/x",
    ".tune/x",
    "packed/manifest.json",
    "videos/videos.csv",
    "thesis.txt",
)
VALUES = (
    *(
        "x",
        "-1",
        "0",
        "1",
        "1.5",
        "1e999",
        "nan",
        "-inf",
        "1" * 30,
        "true",
        "null",
        "none",
        "[]",
        "[1",
        "[nan]",
        "[[0,1]]",
    ),
    *(
        "{a: 1}",
        "${data}",
        "${oc.env:HOME}",
        "!!python/object/apply:os.getpid []",
        "&a [*a]",
        "'",
        '"',
        "a b",
        "\\",
        "*",
    ),
    *("é", "日本", "\udcff", "\0", "a\nb", "\t", "", " ", "=", "%s", "{}", "$(touch pwned)", "x" * 300, "x" * 5000),
    *(
        ".",
        "..",
        "/",
        "~",
        "~nobody-here",
        "../../x",
        "/dev/null",
        "/dev/full",
        "/proc/self/mem",
        "s3://b/x",
        "gs://b/x",
    ),
    *(
        "CANARY",
        "CANARY/recipe.yaml",
        "CANARY/thesis.txt",
        "CANARY/thesis.txt/below",
        "CANARY/new",
        "LOOP",
        "FIFO",
        "DARK",
    ),
    *("RUN", "PACKED", "runs/demo", "runs", "here.yaml", "no-such", "http://127.0.0.1:1/x"),
)
"""What is put where something else belongs; names in capitals stand for paths of the tree."""

SMALL = ("trainer.batch=4", "trainer.workers=1")

GOOD: dict[str, list[list[str]]] = {
    "demo": [["--out", "new"], ["--seed", "1"]],
    "pack": [["csv", "TABLE", "out"], ["folder", "VIDEOS", "out", "size=160"], ["ucf101", "VIDEOS", "out", "--workers", "1"]],
    "verify": [["PACKED"], ["PACKED", "--workers", "1"]],
    "train": [["infonce-tiny", "data=PACKED", *SMALL, "name=mine"], ["--resume", "RUN"], ["cpr-cycles-tiny", "data=PACKED", *SMALL, "--fresh"]],
    "mine": [["RUN"], ["RUN", "stages=[1,3]", "topk=2", "rows=bank"], ["RUN", "rows=encoder", "--out", "new"], ["--plan", "slots=100M", "workers=64"]],
    "sweep": [
        ["RUN"], ["cpr-tiny", "run=RUN", "stages=[1,3]"], ["RUN", "--out", "new"],
        ["infonce-tiny", "level=train", "optim.lr=[0.1,0.01]", "data=PACKED", *SMALL], ["ablations/iic-loss", "data=PACKED", *SMALL, "--out", "new"],
    ],
    "embed": [["RUN"], ["RUN", "out=new.zarr", "view=all"]],
    "evaluate": [["RUN"], ["RUN", "what=all", "data=PACKED"]],
    "finetune": [["RUN"], ["RUN", "finetune.epochs=1", "init=scratch"]],
    "report": [["RUN"], ["RUN", "data=PACKED"], ["PACKED"], ["PACKED", "out=new.html"]],
    "reproduce": [["cpr-ucf101", "--dry-run"], ["iic-tiny", "--out", "new"], ["iic-ucf101", "videos=VIDEOS", "fold=1", "--dry-run"]],
    "bench": [["headspace", "RUN"], ["headspace", "RUN", "loader.threads=2", "--steps", "24"]],
    "import": [["FILE", "--from", "coclr"], ["FILE", "--from", "iic", "--out", "new"]],
    "export": [["RUN", "--out", "new"]],
    "status": [["RUN"], ["runs"]],
    "doctor": [["infonce-tiny", "data=PACKED", *SMALL], ["infonce-tiny", "data=PACKED", *SMALL, "loader.threads=2"]],
    "recipes": [["cpr-tiny"], ["cpr-tiny", "trainer.workers=2"]],
}  # fmt: skip
"""Words that are right: one of them is then made wrong."""


class HeavyStart(BaseException):
    """The words were accepted and the work would begin."""


class Hangs(BaseException):
    """The words do not come back."""


@pytest.fixture(scope="module")
def template(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every word list finds: a canary, foreign files where runs and demos go by default, and a run of ours."""
    root = tmp_path_factory.mktemp("tree")
    for place in ("canary", "here/runs/demo", "here/runs/mine", "here/runs/infonce-tiny", "here/runs/cpr-cycles-tiny"):
        for name in LOOK_ALIKES if place == "canary" else ("thesis.txt", "demo.json"):
            path = root / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{place}/{name}: mine\n".encode())
    (root / "loop").symlink_to(root / "loop")
    (root / "videos" / "a").mkdir(parents=True)
    (root / "videos" / "a" / "one.mp4").write_bytes(b"no video")
    (root / "table.csv").write_text("path,label\nvideos/a/one.mp4,a\n")
    (root / "file.pth").write_bytes(b"no checkpoint")
    make_run(root / "run", packed)
    return root


def make_run(path: Path, packed: Path) -> None:
    """A run folder as training leaves it after a step, with a bank of random rows."""
    data = load_manifest(packed)
    small = {"clips": {"frames": 4, "size": 32}, "model": {"width": 4, "dim": 8}, "mining": {"pool": 6, "topk": 2}}
    method = {"method": {"name": "cpr", "queue": 8, "warmup_steps": 1}, "trainer": {"device": "cpu"}}
    recipe = Recipe.model_validate({"name": "run", "data": str(packed)} | small | method)
    path.mkdir()
    mark(path, "run")
    folder = RunFolder(path)
    folder.recipe.write_text(recipe.to_yaml())
    state = {"method": build_method(recipe, seed=0).state_dict(), "optimizer": {}}
    save_checkpoint(folder, Meta(1, recipe.fingerprint(), data.hash, 1, 0), 0, {}, state)
    bank = EmbeddingBank(len(data), 8, recipe.views, data.samples.group.astype(np.int64))
    rng = np.random.default_rng(0)
    rows = {view: rng.normal(size=(len(data), 8)).astype(np.float32) for view in recipe.views}
    unit = {view: x / np.linalg.norm(x, axis=1, keepdims=True) for view, x in rows.items()}
    bank.push(Embeddings(unit, np.arange(len(data)), 0, 0))
    save_snapshot(bank, folder.bank, 1, extra={"data_hash": data.hash})


@pytest.fixture
def nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stop where Ray, a decoder, a loader or another process would start, and see that none did.

    A process that began here would have lost its working directory before it had read its modules: multiprocessing's
    resource tracker died of that, and the next test of this process that needed it found it dead.
    """

    def begin(*args: object, **kwargs: object) -> None:
        raise HeavyStart

    import pipelines.loader
    import pipelines.pack

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", begin)
    monkeypatch.setattr(ProcessPoolExecutor, "__init__", begin)
    monkeypatch.setattr(pipelines.pack, "in_threads", begin)
    monkeypatch.setattr(pipelines.loader.EvalLoader, "__init__", begin)
    monkeypatch.setattr(pipelines.loader.TrainLoader, "__init__", begin)
    before = children()
    yield
    assert children() <= before


def children() -> set[str]:
    """Numbers of the processes that this one started and that have not been waited for."""
    return {
        number for thread in Path("/proc/self/task").iterdir() for number in (thread / "children").read_text().split()
    }


State = dict[str, tuple[int, int, bytes]]


def state_of(root: Path) -> State:
    """Every name below `root` with its kind, time and bytes."""
    found: State = {}
    for here, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(here) / name
            about = path.lstat()
            plain = path.is_file() and not path.is_symlink()
            found[str(path.relative_to(root))] = (
                about.st_mode,
                about.st_mtime_ns if plain else 0,
                path.read_bytes() if plain else b"",
            )
    return found


def hostile_lists(verb: str, seed: int) -> Iterator[list[str]]:
    """Right words with one made wrong, and salads of everything."""
    rng = random.Random(f"{verb} {seed}")
    keys = [key.name for group in VERBS[verb].groups() for key in group.keys] or ["size"]
    options = [option.name for entry in VERBS.values() for option in entry.options] + ["--nope", "-x", "--", "-"]

    def setting() -> str:
        key = rng.choice([rng.choice(keys), rng.choice(keys), "no.such", "*:trainer.steps", "cpr:seed", ""])
        return f"{key}={rng.choice(VALUES)}"

    def anything() -> str:
        return rng.choice([setting, setting, lambda: rng.choice(VALUES), lambda: rng.choice(options)])()

    while True:
        good = list(rng.choice(GOOD[verb]))
        spot = rng.randrange(len(good))
        key, sign, _ = good[spot].partition("=")
        yield [*good[:spot], f"{key}={rng.choice(VALUES)}" if sign else rng.choice(VALUES), *good[spot + 1 :]]
        yield [*good, setting()]
        yield [*good, rng.choice(options), rng.choice(VALUES)]
        yield [anything() for _ in range(rng.randrange(5))]


def placed(words: list[str], root: Path, packed: Path) -> list[str]:
    """The words with the paths of this tree in place of the names in capitals."""
    names = {"PACKED": packed, "VIDEOS": root / "videos", "TABLE": root / "table.csv", "FILE": root / "file.pth"}
    names |= {name: root / name.lower() for name in ("CANARY", "LOOP", "FIFO", "DARK", "RUN")}
    done = []
    for word in words:
        key, sign, value = word.rpartition("=")
        head, slash, tail = value.partition("/")
        done.append(f"{key}{sign}{names[head]}{slash}{tail}" if head in names else word)
    return done


def fresh_copy(template: Path, root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root, symlinks=True)
    (root / "dark").mkdir(mode=0)  # neither can be copied: a folder that is not to be read, and a pipe
    os.mkfifo(root / "fifo")


def check(words: list[str], code: int | None, said: str, before: State, after: State) -> None:
    """`code` is None where the work would have begun."""
    told = f"vidssl {' '.join(map(repr, words))} → {code}: {said[-1500:]}"
    assert code in (0, 2, None), told
    assert "Traceback" not in said, told
    if code == 2:
        assert said.startswith("vidssl: "), told
        assert said.count("\n") <= 2, told
        assert sorted(set(after) ^ set(before)) == [], told
    ours = ("run",) if code != 2 else ()
    changed = [name for name in before if name.split("/")[0] not in ours and after.get(name) != before[name]]
    assert [name for name in changed if before[name][2]] == [], told


@pytest.fixture
def alarm() -> Iterator[None]:
    """A word list that hangs fails its test."""

    def too_long(number: int, frame: object) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, too_long)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("verb", GOOD)
@pytest.mark.usefixtures("nothing_heavy", "alarm")
def test_hostile_words_are_refused_in_a_sentence_or_work_and_touch_nothing_foreign(
    verb, template, packed, tmp_path, monkeypatch, capsys
):
    root = tmp_path / "tree"
    fresh_copy(template, root)
    monkeypatch.chdir(root / "here")
    monkeypatch.setenv("HOME", str(root / "here"))
    before, packs = state_of(root), state_of(packed)
    wrong: list[str] = []
    for words in itertools.islice(hostile_lists(verb, 0), LISTS):
        words = [verb, *placed(words, root, packed)]
        signal.alarm(20)
        try:
            code = main(words)
        except HeavyStart:
            code = None
        except Hangs:
            code = -1
        signal.alarm(0)
        after = state_of(root)
        try:
            check(words, code, capsys.readouterr().err, before, after)
        except AssertionError as error:
            wrong.append(str(error).splitlines()[0])
        if after != before:
            monkeypatch.chdir(tmp_path)
            fresh_copy(template, root)
            monkeypatch.chdir(root / "here")
            before = state_of(root)
    assert state_of(packed) == packs
    assert not wrong, f"{len(wrong)} of {LISTS}:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "verb", ["train", "report", *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("pack", "embed", "recipes"))]
)
@pytest.mark.usefixtures("nothing_heavy", "alarm")
def test_a_real_process_refuses_in_the_same_sentence(verb, template, packed, tmp_path, monkeypatch, capsys):
    root = tmp_path / "tree"
    fresh_copy(template, root)
    monkeypatch.chdir(root / "here")
    before = state_of(root)
    for words in hostile_lists(verb, 1):
        words = [verb, *placed(words, root, packed)]
        if any("\0" in word for word in words):
            continue  # no process can be given one
        try:
            code = main(words)
        except HeavyStart:
            code = None
        said = capsys.readouterr().err
        if code == 2:
            break
        fresh_copy(template, root)
    typed = [word.encode("utf-8", "surrogateescape") for word in words]
    done = subprocess.run([sys.executable, "-m", "cluster", *typed], stdin=subprocess.DEVNULL, capture_output=True)
    assert (done.returncode, done.stderr.decode()) == (2, said)
    assert {name for name, now in state_of(root).items() if now[2] != before[name][2]} == set()


def test_every_verb_is_tried():
    assert set(GOOD) == set(VERBS)


FOREIGN = [
    (["demo", "--out", "CANARY"], "holds files that vidssl did not make"),
    (["demo", "--out", "CANARY/thesis.txt"], "is a file"),
    (["demo"], "holds files that vidssl did not make"),  # somebody's files lie in runs/demo
    (["demo", "name=../canary"], "'name=../canary' cannot be set for a demo"),
    (["pack", "csv", "TABLE", "CANARY"], "holds files that vidssl did not make"),
    (["pack", "csv", "TABLE", "CANARY", "fresh=true"], "holds files that vidssl did not make"),
    (["pack", "csv", "TABLE", "CANARY/thesis.txt"], "is a file"),
    (["pack", "csv", "TABLE", "s3://bucket/out"], "s3://bucket/out"),
    (["train", "infonce-tiny", "data=PACKED", *SMALL], "holds files that vidssl did not make"),
    (["train", "infonce-tiny", "data=PACKED", *SMALL, "--fresh"], "holds files that vidssl did not make"),
    (["train", "infonce-tiny", "data=PACKED", *SMALL, "--fresh", "trainer.storage=..", "name=canary"], "did not make"),
    (["train", "infonce-tiny", "data=PACKED", *SMALL, "--fresh", "name=../../canary"], "name"),
    (["train", "infonce-tiny", "data=PACKED", *SMALL, "--fresh", "name=."], "name"),
    (["train", "cpr-cycles-tiny", "data=PACKED", *SMALL, "--fresh"], "holds files that vidssl did not make"),
    (["train", "infonce-tiny", "data=PACKED", *SMALL, "trainer.storage=s3://bucket/runs"], "s3://bucket/runs"),
    (["train", "infonce-tiny", "data=PACKED", *SMALL, "trainer.storage=CANARY/thesis.txt", "name=x"], "thesis.txt"),
    (["train", "--resume", "CANARY"], "unknown key 'canary/recipe.yaml'"),
    (["sweep", "RUN", "--out", "CANARY"], "holds files that vidssl did not make"),
    (["sweep", "RUN", "--out", "CANARY/thesis.txt"], "is a file"),
    (["mine", "RUN", "--out", "CANARY"], "holds files that vidssl did not make"),
    (["mine", "RUN", "--out", "CANARY/thesis.txt"], "is a file"),
    (["mine", "CANARY"], "CANARY/card.json is damaged"),
    (["embed", "RUN", "out=CANARY"], "is no store of embeddings"),
    (["embed", "RUN", "out=CANARY/thesis.txt"], "is no store of embeddings"),
    (["embed", "RUN", "out=CANARY/embeddings.zarr"], "is no store of embeddings"),
    (["embed", "RUN", "out=CANARY/thesis.txt/below"], "thesis.txt is a file"),
    (["export", "RUN", "--out", "CANARY"], "exists"),
    (["export", "RUN", "--out", "CANARY/thesis.txt"], "exists"),
    (["export", "RUN", "--out", "CANARY/thesis.txt/below"], "thesis.txt"),
    (["evaluate", "CANARY"], "CANARY"),
    (["finetune", "CANARY"], "CANARY"),
    (["report", "CANARY"], "CANARY"),
]


@pytest.mark.parametrize(("words", "sentence"), FOREIGN, ids=[" ".join(words) for words, _ in FOREIGN])
@pytest.mark.usefixtures("nothing_heavy", "alarm")
def test_what_somebody_else_made_is_refused_as_a_target_before_any_work(
    words, sentence, template, packed, tmp_path, monkeypatch, capsys
):
    root = tmp_path / "tree"
    fresh_copy(template, root)
    monkeypatch.chdir(root / "here")
    before = state_of(root)
    code = main(placed(words, root, packed))  # nothing heavy starts, or this raises
    said = capsys.readouterr().err
    check(words, code, said, before, state_of(root))
    assert code == 2
    assert sentence.replace("CANARY", str(root / "canary")) in said, said
