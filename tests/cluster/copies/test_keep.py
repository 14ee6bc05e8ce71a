"""Who keeps a copy, which files are sent together and in which order, and what is never removed or overwritten there."""

from __future__ import annotations

import json
import shutil

import pytest

from cluster.copies.claim import claimed
from cluster.copies.files import group_of, is_ours, last_of_each, newest, ordered
from cluster.copies.keep import Copy
from pipelines.dataset.place import address_of
from pipelines.dataset.remote import RemoteStore
from tests.cluster.copies.copied_runs import copied
from tests.cluster.training.small_runs import tree
from tests.pipelines.stores import BUCKET
from vidssl.errors import BusyError
from vidssl.lock import myself
from vidssl.marks import LOCK, MARK


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
