"""A run whose copy is kept in a store (`trainer.copy_to`) goes on where its folder never was, and the store never stops it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import cluster.copies.claim
import cluster.copies.keep
from cluster.training.verb import TrainWords
from tests.cluster.copies.copied_runs import HERE, copied, equal, files, once_copied, train, weights
from tests.cluster.training.small_runs import leftovers
from tests.cluster.training.test_phases import CYCLE
from tests.pipelines.stores import BUCKET
from vidssl.errors import CheckpointError, DataError, RecipeError, StorageError
from vidssl.lock import myself
from vidssl.marks import LOCK

pytestmark = pytest.mark.usefixtures("usual_signals")


def test_the_copy_of_a_run_that_ended_is_the_run(s3, ended, again, typed):
    assert copied(s3, "ended/small") == files(ended / "small")
    assert leftovers(ended / "small") == []
    again("a", "whole")
    before = s3.modified("whole/small")
    said = train(typed("a", to="whole"))  # finished: nothing to train
    assert said[-1].startswith(f"s3://{BUCKET}/whole/small holds this run up to step 24: ")
    after = s3.modified("whole/small")
    assert [name for name in before if after[name] != before[name]] in ([], ["recipe.yaml"])  # it knows its new place


def test_a_run_that_is_killed_goes_on_where_its_folder_never_was_to_the_same_weights(s3, typed, tmp_path):
    words = ("trainer.steps=60", "trainer.checkpoint_every_steps=20")
    train(typed("straight", *words, to="straight"))
    one = typed("a", *words, to="killed")
    program = (
        "import sys, cluster.copies.keep as keep\nkeep.EVERY_S = 0.1\n"
        "from cluster.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        program,
        "train",
        str(one.recipe),
        *one.settings,
        "--no-evaluation",
    ]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(HERE)}, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    whole = {
        f"{part}20/{name}" for part, name in (("checkpoints/step-000000", "meta.json"), ("bank/snap-", "zarr.json"))
    }
    while not whole <= set(s3.modified("killed/small")) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.rmtree(tmp_path / "a")
    said = train(typed("b", *words, to="killed"))
    assert any("which is gone, is taken over" in line for line in said)
    found = next(line for line in said if "are fetched to" in line)
    step = int(found.partition("up to step ")[2].partition(":")[0])
    assert 20 <= step < 60
    assert any(f"it goes on from step {step} of 60" in line for line in said)
    assert equal(weights(tmp_path / "straight" / "small", 60), weights(tmp_path / "b" / "small", 60))
    one_log, two_log = (
        (tmp_path / home / "small" / "log.jsonl").read_text().splitlines() for home in ("straight", "b")
    )
    assert [json.loads(line)["loss"] for line in one_log] == [json.loads(line)["loss"] for line in two_log]
    assert copied(s3, "killed/small") == files(tmp_path / "b" / "small")


def test_resume_takes_the_address_of_a_copy(s3, again, tmp_path):
    again(None, "address")
    words = [f"trainer.storage={tmp_path / 'b'}"]
    with pytest.raises(
        CheckpointError, match=r"address/other holds no run; type vidssl train RECIPE name=other trainer.copy_to="
    ):
        train(TrainWords(None, words, resume=f"s3://{BUCKET}/address/other"))
    said = train(TrainWords(None, words, resume=f"s3://{BUCKET}/address/small"))
    assert any("is finished (24 of 24 steps)" in line for line in said)
    assert files(tmp_path / "b" / "small") == copied(s3, "address/small")
    again = train(TrainWords(None, [], resume=str(tmp_path / "b" / "small")))  # its recipe knows the place by now
    assert again[-1].startswith(f"s3://{BUCKET}/address/small holds this run")


def test_a_run_that_had_no_copy_gets_one_when_it_goes_on(s3, again, tmp_path):
    again("a", None)
    said = train(TrainWords(None, [f"trainer.copy_to=s3://{BUCKET}/later"], resume=str(tmp_path / "a" / "small")))
    assert said[-1].startswith(f"s3://{BUCKET}/later/small holds this run up to step 24")
    assert copied(s3, "later/small") == files(tmp_path / "a" / "small")


def test_a_copy_that_is_kept_no_longer_is_said(s3, again, typed):
    again("a", "left")
    before = s3.modified("left/small")
    words = typed("a", to="left")
    train(words)
    said = train(TrainWords(words.recipe, [word for word in words.settings if "copy_to" not in word]))
    assert said[0] == (
        f"the copy of this run at s3://{BUCKET}/left/small stays as it is: trainer.copy_to was not typed this time"
    )
    assert {name: when for name, when in s3.modified("left/small").items() if name != "recipe.yaml"} == {
        name: when for name, when in before.items() if name != "recipe.yaml"
    }


def test_a_store_that_goes_away_does_not_stop_the_run_and_has_all_of_it_in_the_end(s3, typed, tmp_path):
    def away() -> None:
        s3.go_away()
        time.sleep(2.0)
        s3.come_back()

    once_copied(s3, "away/small", away)
    said = train(typed("a", "trainer.steps=100", to="away"))
    assert [line for line in said if "the training goes on, its copy stays at step" in line]
    assert [line for line in said if "is back after" in line and line.endswith("the copy goes on")]
    assert copied(s3, "away/small") == files(tmp_path / "a" / "small")


def test_a_store_that_stays_away_is_an_error_once_the_run_has_ended(s3, typed, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.copies.keep, "LAST_S", 1.0)
    once_copied(s3, "gone/small", s3.go_away)
    try:
        with pytest.raises(
            StorageError, match=r"lacks what changed last; the run is whole in .*a/small: type the same"
        ):
            train(typed("a", "trainer.steps=64", to="gone"))
    finally:
        s3.come_back()
    train(typed("a", "trainer.steps=64", to="gone"))
    assert copied(s3, "gone/small") == files(tmp_path / "a" / "small")


def test_a_recipe_with_phases_is_copied_whole(s3, typed, tmp_path):
    name = train(typed("a", to="phases", text=CYCLE)) and next((tmp_path / "a").iterdir()).name
    assert copied(s3, f"phases/{name}") == files(tmp_path / "a" / name)
    shutil.rmtree(tmp_path / "a")
    assert (
        "copy_to: null" in copied(s3, f"phases/{name}")["first-0/recipe.yaml"].decode()
    )  # the whole is copied, not each
    said = train(typed("b", to="phases", text=CYCLE))
    assert [line for line in said if "finished before, kept" in line]
    assert not [line for line in said if line.startswith("step ")]


def test_fresh_begins_again_there_too_and_leaves_what_is_not_ours(s3, again, typed, tmp_path):
    again("a", "fresh")
    s3.put("fresh/small/notes.txt", b"mine")
    s3.put("fresh/small/eval/old.json", b"{}")
    train(typed("a", "trainer.steps=16", to="fresh", fresh=True))
    there = copied(s3, "fresh/small")
    assert there.pop("notes.txt") == b"mine"
    assert there == files(tmp_path / "a" / "small")


def test_a_fresh_run_that_is_refused_has_replaced_nothing_there(s3, again, typed, tmp_path, monkeypatch):
    again("a", "kept")
    facts = tmp_path / "a" / "small" / "run.json"
    facts.write_text(facts.read_text().replace('"started": "20', '"started": "19'))  # another run than the copy's
    before, here = copied(s3, "kept/small"), files(tmp_path / "a" / "small")

    def refused(*given):
        time.sleep(0.5)  # some looks
        raise DataError("no ground")

    monkeypatch.setattr("cluster.training.driver.stand_on", refused)
    with pytest.raises(DataError, match="no ground"):
        train(typed("a", to="kept", fresh=True))
    assert (copied(s3, "kept/small"), files(tmp_path / "a" / "small")) == (before, here)


def test_a_place_that_no_run_filled_is_left_alone(s3, typed, tmp_path):
    s3.put("foreign/small/recipe.yaml", b"name: theirs")
    with pytest.raises(
        DataError, match="holds objects that no run left there, and they are left alone; type name=OTHER"
    ):
        train(typed("a", to="foreign"))
    assert copied(s3, "foreign/small") == {"recipe.yaml": b"name: theirs"}
    assert not (tmp_path / "a").exists()


def test_another_run_or_a_later_state_of_this_one_is_never_overwritten(s3, again, typed, tmp_path):
    again("a", "two")
    before = copied(s3, "two/small")
    again("b", None)
    facts = tmp_path / "b" / "small" / "run.json"
    facts.write_text(facts.read_text().replace('"started": "20', '"started": "19'))
    with pytest.raises(
        CheckpointError, match=r"holds another run of that name than .*; type trainer.copy_to=OTHER, or --fresh"
    ):
        train(typed("b", to="two"))
    shutil.rmtree(tmp_path / "a" / "small" / "checkpoints" / "step-00000024")
    with pytest.raises(CheckpointError, match=r"is at step 24 of this run and .* at 16: it went on elsewhere; move"):
        train(typed("a", to="two"))
    assert copied(s3, "two/small") == before


def test_who_was_robbed_of_a_copy_writes_there_no_more(s3, typed, tmp_path):
    def rob() -> None:
        s3.put(f"robbed/small/{LOCK}", json.dumps(vars(myself("train")) | {"beats": 0}).encode())

    once_copied(s3, "robbed/small", rob)
    with pytest.raises(StorageError, match=r"was taken over by another process, .*it is whole in"):
        train(typed("a", "trainer.steps=80", to="robbed"))
    assert LOCK in copied(s3, "robbed/small")  # of the other


def test_a_checkpoint_that_was_being_sent_when_its_sender_died_is_not_fetched(s3, ended, again, typed, tmp_path):
    again(None, "torn")
    s3.remove("torn/small/checkpoints/step-00000024/meta.json")
    said = train(typed("b", to="torn"))
    assert any("holds this run up to step 16" in line for line in said)
    assert any("it goes on from step 16 of 24" in line for line in said)
    assert equal(weights(ended / "small", 24), weights(tmp_path / "b" / "small", 24))


def test_an_object_that_is_not_what_it_says_is_refused_and_what_is_there_is_kept(s3, again, typed, tmp_path):
    again(None, "rotten")
    s3._client().put_object(Bucket=BUCKET, Key="rotten/small/log.jsonl", Body=b"other", Metadata={"sha256": "0" * 64})
    with pytest.raises(StorageError, match=r"rotten/small/log.jsonl is not what it says it is \(sha256\)"):
        train(typed("b", to="rotten"))
    assert not (tmp_path / "b" / "small" / "recipe.yaml").exists()
    s3.remove("rotten/small/log.jsonl")
    train(typed("b", to="rotten"))
    assert (tmp_path / "b" / "small" / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("https://host/runs", "is no store that can be written; type trainer.copy_to=s3://BUCKET/RUNS"),
        ("/a/folder", "is no store that can be written"),
        ("s3://no-such-bucket/runs", "there is no bucket 'no-such-bucket'"),
        ("s3://key:secret@host/runs", "holds an '@', '\\?' or '#', where keys and passwords stand"),
    ],
)
def test_a_word_that_names_no_store_is_refused_before_anything_is_made(s3, typed, tmp_path, word, match):
    with pytest.raises((RecipeError, DataError), match=match):
        train(typed("a", f"trainer.copy_to={word}"))
    assert not (tmp_path / "a").exists()


def test_a_refused_training_leaves_nothing_at_the_store(s3, typed, tmp_path):
    with pytest.raises(RecipeError):
        train(typed("a", "optim.warmup_epochs=1000", to="refused"))
    assert copied(s3, "refused/small") == {}
    assert not (tmp_path / "a").exists()
