"""What may begin, what goes on, what is refused: and a refused command leaves the disk as it was, byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cluster.training.folder import clear, enter
from cluster.training.plan import BankFrom, Plan, plan_resume, plan_run
from tests.cluster.training.small_runs import small, tree
from vidssl.errors import BankError, BusyError, CheckpointError, DataError, RecipeError, StorageError
from vidssl.lock import held
from vidssl.marks import mark
from vidssl.saved.run_folder import RunFolder


def begun(packed: Path, folder: Path, *words: str) -> Plan:
    """A run that has a folder and has not trained yet."""
    plan = plan_run(small(packed, folder, *words))
    enter(plan, ["train", "small.yaml"], "cpu")
    return plan


@pytest.mark.parametrize(
    ("words", "kind", "sentence"),
    [
        (["trainer.batch=20"], DataError, r"training videos and one step takes 40 .*type trainer.batch=\d+"),
        (["mining.pool=1"], RecipeError, r"pool"),
        (["mining.stages=9", "mining.pool=null", "mining.ratio=0.1"], RecipeError, r"mining.stages=9"),
        (["method.warmup_steps=0"], RecipeError, r"would have random weights; type method.warmup_steps=N"),
        (["method.second_from=nowhere"], CheckpointError, r"nowhere is no run folder"),
        (["trainer.storage=s3://bucket/runs"], RecipeError, r"s3://bucket/runs is an address.*type trainer.storage=FOLDER"),
        (["trainer.keep_epochs=[9]"], RecipeError, r"keep_epochs=\[9\]: elsewhere ends with epoch \d, before epoch 9; take epochs up to \d"),
        (["name=../elsewhere"], RecipeError, r"name='\.\./elsewhere': a name is one folder below trainer.storage"),
        (["name=."], RecipeError, r"name='\.': a name is one folder.*type name=NAME"),
        (["name=/tmp/elsewhere"], RecipeError, r"not '\.' or '\.\.'; type name=NAME trainer.storage=FOLDER"),
        (["name=a\\b"], RecipeError, r"a name is one folder"),
        (["name=" + "n" * 300], RecipeError, r"a name is one folder"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("fresh", [False, True])
def test_what_cannot_work_is_refused_and_the_disk_stays_as_it_was(packed, tmp_path, words, kind, sentence, fresh):
    begun(packed, tmp_path, "name=elsewhere")
    (tmp_path / "elsewhere" / "diary.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(kind, match=sentence):
        plan_run(small(packed, tmp_path, "name=elsewhere", *words), fresh)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_no_run_made_is_neither_written_nor_removed(packed, tmp_path, fresh):
    (tmp_path / "Documents").mkdir()
    (tmp_path / "Documents" / "thesis.tex").write_text("years")
    (tmp_path / "report").write_text("a file")
    mark_of_a_pack = tmp_path / "packed-by-us"
    mark_of_a_pack.mkdir()
    mark(mark_of_a_pack, "pack")
    recipe = small(packed, tmp_path)
    before = tree(tmp_path)
    for name, sentence in (
        ("Documents", r"Documents holds files that vidssl did not make, and they are left alone; type name=OTHER"),
        ("report", r"report is a file and a folder is needed; type name=OTHER"),
        ("packed-by-us", r"was made as a pack, not as a run, and is left alone; type name=OTHER"),
    ):
        with pytest.raises(DataError, match=sentence):
            plan_run(recipe.model_copy(update={"name": name}), fresh)
    assert tree(tmp_path) == before


def test_beginning_again_removes_what_a_run_made_and_nothing_else(packed, tmp_path):
    folder = begun(packed, tmp_path).folder
    for made in ("checkpoints/step-00000008/model.pt", "bank/snap-8/zarr.json", "eval/retrieval.json", "log.jsonl"):
        (folder.path / made).parent.mkdir(exist_ok=True)
        (folder.path / made).write_text("made")
    foreign = {"notes.txt": b"a", "checkpoints/best/weights": b"b", "eval/table.tex": b"c"}
    for name, content in foreign.items():
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_bytes(content)
    plan = plan_run(small(packed, tmp_path), fresh=True)
    notes = enter(plan, [], "cpu")
    assert notes == (f"left alone in {folder.path}, because no run made it: checkpoints, eval, notes.txt",)
    left = {name: content for name, content in tree(folder.path).items() if content is not None}
    assert {name: left.pop(name) for name in foreign} == foreign
    assert set(left) == {".vidssl.json", "recipe.yaml", "run.json"}


def test_a_phase_is_cleared_with_its_run(packed, tmp_path):
    folder = begun(packed, tmp_path).folder
    inner = begun(packed, folder.path, "name=first-0").folder
    (folder.path / "small.yaml").unlink()
    (inner.path / "mine").write_text("x")
    assert clear(folder) == ["first-0"]
    assert {name for name, content in tree(folder.path).items() if content is not None} == {
        ".vidssl.json", "first-0/.vidssl.json", "first-0/mine",
    }  # fmt: skip


def test_the_same_words_again_go_on_and_say_so(packed, tmp_path):
    folder = begun(packed, tmp_path).folder
    shutil.copytree(packed, tmp_path / "moved")
    for words in ([], ["trainer.max_failures=7", "trainer.keep=3"], [f"data={tmp_path / 'moved'}"]):
        plan = plan_run(small(packed, tmp_path, *words))
        assert (plan.exists, plan.start, plan.folder) == (True, None, folder)
        assert plan.notes == (f"{folder.path} holds this run without a checkpoint yet: it begins at its first step",)
    enter(plan_run(small(packed, tmp_path, "trainer.keep=3")), [], "cpu")
    assert folder.read_recipe().trainer.keep == 3
    assert plan_resume(folder.path).exists


def test_another_recipe_under_the_same_name_is_refused_with_what_differs(packed, tmp_path):
    folder = begun(packed, tmp_path).folder
    before = tree(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        plan_run(small(packed, tmp_path, "optim.lr=0.5", "seed=3", "mining.topk=1"))
    for part in (
        f"{folder.path} holds a run of another recipe",
        "seed is 0 there and 3 here",
        "mining.topk is 2 there and 1 here",
        "optim.lr is 0.001 there and 0.5 here",
        "type name=OTHER for another run, or --fresh to begin again",
    ):
        assert part in str(refused.value)
    assert tree(tmp_path) == before


def test_other_data_under_the_same_name_is_refused(packed, tmp_path):
    folder = begun(packed, tmp_path).folder
    facts = json.loads(folder.facts.read_text())
    folder.facts.write_text(json.dumps(facts | {"data_hash": "0123456789abcdef"}))
    for plan in (lambda: plan_run(small(packed, tmp_path)), lambda: plan_resume(folder.path)):
        with pytest.raises(
            CheckpointError, match=r"holds other data \(hash \w{16}\) than the run .* \(0123456789abcdef\)"
        ):
            plan()


def test_a_run_that_another_command_began_since_is_not_overwritten(packed, tmp_path):
    late = plan_run(small(packed, tmp_path))
    begun(packed, tmp_path, "seed=5")
    before = tree(tmp_path)
    with pytest.raises(BusyError, match=r"was begun by another command just now; type the same again"):
        enter(late, [], "cpu")
    assert tree(tmp_path) == before


def test_a_run_is_not_begun_again_under_an_evaluation_of_it(packed, tmp_path):
    folder = begun(packed, tmp_path).folder
    with held(folder.evaluation, "evaluate"):
        before = tree(tmp_path)
        with pytest.raises(
            BusyError, match=r"eval is in use by `vidssl evaluate` \(process \d+ on .*\), since .*name=OTHER"
        ):
            plan_run(small(packed, tmp_path), fresh=True)
        assert tree(tmp_path) == before
    assert plan_run(small(packed, tmp_path), fresh=True).fresh


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left(packed, tmp_path):
    plan = plan_run(small(packed, tmp_path, "trainer.storage=/proc"))
    with pytest.raises(StorageError, match=r"^/proc/small cannot be written \(.*\); type trainer.storage=FOLDER"):
        enter(plan, [], "cpu")


def test_changed_shards_are_refused(packed, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    shard = next(copy.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match=shard.name):
        plan_run(small(copy, tmp_path))


def test_a_resumed_run_takes_no_words(packed, tmp_path):
    folder = begun(packed, tmp_path).folder
    for words in (["optim.lr=1"], ["bank=empty", "optim.lr=1"]):
        with pytest.raises(CheckpointError, match=r"keeps its recipe, so 'optim.lr=1' cannot be set"):
            plan_resume(folder.path, words)
    assert RunFolder(tmp_path / "small") == folder


def test_a_resumed_run_may_be_given_a_bank_where_it_keeps_one(packed, tmp_path):
    folder = begun(packed, tmp_path).folder
    assert plan_resume(folder.path).bank is None
    assert plan_resume(folder.path, ["bank=empty"]).bank == BankFrom(0, None)
    with pytest.raises(BankError, match=r"nowhere"):
        plan_resume(folder.path, ["bank=nowhere"])
    other = begun(packed, tmp_path, "name=other", "mining.where=inline").folder
    with pytest.raises(CheckpointError, match=r"other keeps no bank; type it without bank=empty"):
        plan_resume(other.path, ["bank=empty"])
