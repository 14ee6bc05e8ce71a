"""A run whose copy is kept in a store (`trainer.copy_to`) goes on where its folder never was, and the store never stops it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import cluster.copies.claim
import cluster.copies.keep
from cluster.copies.claim import claimed
from cluster.copies.files import group_of, is_ours, last_of_each, newest, ordered
from cluster.copies.keep import Copy
from cluster.training.verb import TrainWords, run_train
from pipelines.dataset.place import address_of
from pipelines.dataset.remote import RemoteStore
from tests.cluster.training.small_runs import RECIPE, leftovers, tree
from tests.cluster.training.test_phases import CYCLE
from tests.pipelines.stores import BUCKET
from vidssl.errors import BusyError, CheckpointError, DataError, RecipeError, StorageError
from vidssl.lock import myself
from vidssl.marks import LOCK, MARK
from vidssl.saved.tensors import read_tensors

pytestmark = pytest.mark.usefixtures("usual_signals")
HERE = Path(__file__).parents[3]
ALONE = ("trainer.workers=0", "trainer.batch=8")


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """What takes seconds among machines takes parts of one here."""
    monkeypatch.setattr(cluster.copies.keep, "EVERY_S", 0.1)
    monkeypatch.setattr(cluster.copies.claim, "BEAT_S", 0.2)
    monkeypatch.setattr(cluster.copies.claim, "_LOOK_S", 0.1)
    monkeypatch.setattr(cluster.copies.claim, "STALE_S", 1.0)


@pytest.fixture
def typed(packed, tmp_path):
    """The words of a run of 24 steps; `home` is its storage, which stands for a machine."""

    def typed(home: str, *words: str, to: str = "runs", text: str = RECIPE, **options: object) -> TrainWords:
        (tmp_path / "small.yaml").write_text(text)
        own = [f"data={packed}", f"trainer.storage={tmp_path / home}", f"trainer.copy_to=s3://{BUCKET}/{to}"]
        return TrainWords(str(tmp_path / "small.yaml"), [*own, *ALONE, *words], **options)  # type: ignore[arg-type]

    return typed


@pytest.fixture(scope="module")
def ended(packed, s3_server, tmp_path_factory) -> Path:
    """The storage of a run that has ended, and has its copy below `ended`."""
    home = tmp_path_factory.mktemp("ended")
    (home / "small.yaml").write_text(RECIPE)
    words = [f"data={packed}", f"trainer.storage={home}", f"trainer.copy_to=s3://{BUCKET}/ended", *ALONE]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.copies.keep, "EVERY_S", 0.1)
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        assert run_train(TrainWords(str(home / "small.yaml"), words), print, None) == 0
    return home


@pytest.fixture
def again(ended, s3, tmp_path):
    """That run in a storage of its own, with a copy of its own."""

    def again(home: str | None, to: str | None) -> None:
        if home is not None:
            shutil.copytree(ended / "small", tmp_path / home / "small")
        if to is not None:
            s3.copy("ended/small", f"{to}/small")

    return again


def train(words: TrainWords) -> list[str]:
    said: list[str] = []
    assert run_train(words, said.append, None) == 0
    return said


def once_copied(s3, prefix: str, act) -> threading.Thread:
    """Do something as soon as the first checkpoint of a run is at the store."""

    def wait() -> None:
        while not newest(s3.modified(prefix)):
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def copied(s3, prefix: str) -> dict[str, bytes]:
    return s3.objects(prefix)


def files(run: Path) -> dict[str, bytes]:
    """What a copy has to hold of a run that has ended."""
    there = {name: data for name, data in tree(run).items() if data is not None}
    return {name: data for name, data in there.items() if not name.endswith(("ranks.json", LOCK, "attempt"))}


def weights(run: Path, step: int) -> dict[str, object]:
    return read_tensors(run / "checkpoints" / f"step-{step:08d}" / "model.pt")["method"]


def equal(one: dict[str, object], two: dict[str, object]) -> bool:
    return all(value.equal(two[name]) for name, value in one.items() if hasattr(value, "equal"))  # type: ignore[attr-defined]


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


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(5, "Input/output error", "/disk/log.jsonl"),
            "/disk/log.jsonl cannot be read (Input/output error): the",
        ),
        (
            PermissionError(13, "access is denied"),
            "s3://videos/told/PermissionError does not let us write (access is denied): the",
        ),
        (ValueError("what is this"), "the copy at s3://videos/told/ValueError failed (ValueError: what is this): the"),
    ],
)
def test_what_stops_a_copy_is_said_once_and_stops_nothing_else(s3, again, tmp_path, monkeypatch, error, said):
    def failing(self, name, source, sha256):
        raise error

    again("a", None)
    heard: list[str] = []
    store = RemoteStore(address_of(f"s3://{BUCKET}/told/{type(error).__name__}"))  # type: ignore[arg-type]
    with claimed(store, "train", print) as claim:
        copy = Copy(tmp_path / "a" / "small", store, claim, heard.append)
        with monkeypatch.context() as patch:
            patch.setattr(copy, "_put", lambda *given: failing(store, *given))
            assert not copy.look()
            assert not copy.look()
        assert len(heard) == 1
        assert heard[0].startswith(said)
        assert copy.look()
    assert heard[-1].endswith("the copy goes on")


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


def test_only_one_process_keeps_a_copy_and_a_dead_one_is_followed(s3):
    store, said = RemoteStore(address_of(f"s3://{BUCKET}/claims/run")), []  # type: ignore[arg-type]
    with (
        claimed(store, "train", said.append),
        pytest.raises(BusyError, match=r"is kept by `vidssl train` \(process \d+ on .*\), since .*, which lives"),
        claimed(store, "train", said.append),
    ):
        pass
    assert copied(s3, "claims/run") == {}
    elsewhere = vars(myself("train")) | {"machine": "another", "beats": 3}
    s3.put(f"claims/run/{LOCK}", json.dumps(elsewhere).encode())
    with claimed(store, "train", said.append):  # it says nothing for STALE_S
        assert said[-1].endswith("which is gone, is taken over")
    s3.put(f"claims/run/{LOCK}", b"no words")
    with claimed(store, "train", said.append):
        assert "the copy of a process that left no name, which is gone, is taken over" in said[-1]


@pytest.mark.parametrize("kind", ["NotSupportedError", "GenericError"])
def test_a_store_that_knows_no_conditions_is_asked_first(s3, kind):
    import obstore.exceptions

    store = RemoteStore(address_of(f"s3://{BUCKET}/plain/{kind}"))  # type: ignore[arg-type]
    inner = store._store

    class Plain:
        def put(self, name, data, mode="overwrite", **more):
            if mode == "create":
                raise getattr(obstore.exceptions, kind)("Server returned non-2xx status code: 501 Not Implemented")
            return inner.put(name, data, mode=mode, **more)

        def __getattr__(self, name):
            return getattr(inner, name)

    store._store = Plain()
    assert [store.create("one", b"1"), store.create("one", b"2")] == [True, False]
    assert store.read("one") == b"1"
    with claimed(store, "train", print):
        assert LOCK in store.names()


def test_who_was_robbed_of_a_copy_writes_there_no_more(s3, typed, tmp_path):
    def rob() -> None:
        s3.put(f"robbed/small/{LOCK}", json.dumps(vars(myself("train")) | {"beats": 0}).encode())

    once_copied(s3, "robbed/small", rob)
    with pytest.raises(StorageError, match=r"was taken over by another process, .*it is whole in"):
        train(typed("a", "trainer.steps=80", to="robbed"))
    assert LOCK in copied(s3, "robbed/small")  # of the other


def test_a_checkpoint_that_is_replaced_while_it_is_sent_is_sent_whole(s3, again, tmp_path, monkeypatch):
    again("a", None)
    run, write = tmp_path / "a" / "small", RemoteStore.write
    store = RemoteStore(address_of(f"s3://{BUCKET}/replaced/small"))  # type: ignore[arg-type]

    def removing(self, name, source, sha256):
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        write(self, name, source, sha256)

    newest_one = {
        f"checkpoints/step-00000024/{name}": data for name, data in tree(run / "checkpoints" / "step-00000024").items()
    }
    with claimed(store, "train", print) as claim:
        copy = Copy(run, store, claim, print)
        monkeypatch.setattr(copy, "_forget", lambda names: None)
        singles = iter([True])
        monkeypatch.setattr(
            RemoteStore,
            "write",
            lambda self, name, source, sha256: (removing if "step-00000024" in name and next(singles, None) else write)(
                self, name, source, sha256
            ),
        )
        copy.look()
    there = copied(s3, "replaced/small")
    assert {name: data for name, data in there.items() if "step-00000024" in name} == newest_one


def test_a_folder_that_lost_its_checkpoints_does_not_take_those_of_the_copy_along(s3, again, tmp_path):
    again("a", "lost")
    store = RemoteStore(address_of(f"s3://{BUCKET}/lost/small"))  # type: ignore[arg-type]
    before = copied(s3, "lost/small")
    for name in ("checkpoints", "bank"):
        shutil.rmtree(tmp_path / "a" / "small" / name)
    with claimed(store, "train", print) as claim:
        assert Copy(tmp_path / "a" / "small", store, claim, print).look()
    there = copied(s3, "lost/small")
    assert {name for name in before if name not in there} == {
        name for name in before if name.startswith(("checkpoints/step-00000016/", "bank/snap-16/"))
    }


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


def test_parts_of_checkpoints_go_together_the_newest_first_and_their_list_last():
    names = [
        *("log.jsonl", "bank/snap-10/zarr.json", "bank/snap-20/zarr.json", "one/checkpoints/step-00000030/meta.json"),
        *(
            f"checkpoints/step-000000{step}/{name}"
            for step in (10, 20)
            for name in ("meta.json", "model.pt", "rank-0.pt")
        ),
    ]
    sent = list(ordered(names))
    assert sent[0] == ["log.jsonl"]
    assert [group_of(part[0]) for part in sent[1:]] == [
        *("one/checkpoints/step-00000030", "bank/snap-20", "checkpoints/step-00000020"),
        *("bank/snap-10", "checkpoints/step-00000010"),
    ]
    assert sent[3][-1] == "checkpoints/step-00000020/meta.json"
    assert newest(names) == {"": 20, "one/": 30}
    names.remove("checkpoints/step-00000020/meta.json")
    assert last_of_each(names) == {"one/checkpoints/step-00000030", "checkpoints/step-00000010", "bank/snap-20"}


def test_only_what_a_run_writes_is_ours():
    names = {"first/.vidssl.json", "theirs/log.jsonl"}
    assert all(is_ours(name, names) for name in ("log.jsonl", "first/log.jsonl", "bank/snap-20/main/c/0/0"))
    assert not any(is_ours(name, names) for name in ("theirs/log.jsonl", "notes.txt", "checkpoints/mine.pt", LOCK))
    assert is_ours(MARK, names)
