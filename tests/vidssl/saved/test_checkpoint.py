"""A checkpoint is whole or absent, finite, and named where it is not; what was there before always stays."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time

import numpy as np
import pytest
import torch

from vidssl.errors import CheckpointError, StorageError, VidsslError
from vidssl.recipe import Recipe
from vidssl.saved.checkpoint import (
    Meta,
    check_same_recipe,
    checkpoint_path,
    checkpoint_steps,
    choose_checkpoint,
    latest_step,
    random_state,
    read_checkpoint,
    read_meta,
    read_ranks,
    restore_random_state,
    save_checkpoint,
    step_of_epoch,
    weights_hash,
)
from vidssl.saved.run_folder import RunFolder, open_run


def write(folder: RunFolder, step: int, keep: int = 2, value: float = 0.0) -> None:
    state = {"array": np.arange(3), "nested": {"number": np.float32(1.5), "list": [torch.ones(2), "text"]}}
    save_checkpoint(folder, Meta(step, "r", "d", 1, 0), 0, state, {"weight": torch.full((1000,), value)}, keep=keep)


def test_what_was_saved_is_read_back(tmp_path):
    folder = RunFolder(tmp_path)
    write(folder, 7, value=3.0)
    meta, shared, own = read_checkpoint(folder, 7, rank=0)
    assert meta.step == latest_step(folder) == 7
    assert shared["weight"].eq(3.0).all()
    assert own["array"].tolist() == [0, 1, 2]
    assert own["nested"]["number"] == 1.5


def test_only_the_newest_are_kept(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (10, 20, 30):
        write(folder, step)
    assert not checkpoint_path(folder, 10).exists()
    assert latest_step(folder) == 30


def test_the_end_of_an_epoch_that_was_asked_for_stays_beside_the_newest(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (10, 20, 30, 40, 50):
        passed = (3,) if step == 20 else ()
        save_checkpoint(folder, Meta(step, "r", "d", 1, 0, passed=passed), 0, {}, {"weight": torch.ones(2)}, keep=2)
    assert sorted(checkpoint_steps(folder)) == [20, 40, 50]
    assert (step_of_epoch(folder, 3), step_of_epoch(folder, 4)) == (20, None)


def test_a_damaged_checkpoint_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    write(folder, 5)
    (checkpoint_path(folder, 5) / "model.pt").write_bytes(b"rubbish")
    with pytest.raises(
        CheckpointError, match=r"step-00000005 cannot be used: model.pt has 7 of \d+ bytes; begin again with --fresh"
    ):
        read_checkpoint(folder, 5)


def test_random_draws_continue_where_they_were():
    state = random_state()
    drawn = torch.rand(4)
    restore_random_state(state)
    assert torch.equal(torch.rand(4), drawn)


WRITER = """
from pathlib import Path
import torch
from vidssl.saved.checkpoint import Meta, save_checkpoint
from vidssl.saved.run_folder import RunFolder
step = FIRST
while True:
    save_checkpoint(RunFolder(Path(ROOT)), Meta(step, "r", "d", 1, 0), 0, {}, {"w": torch.full((200_000,), float(step))})
    step += 1
"""


def test_a_kill_while_writing_leaves_the_last_whole_checkpoint(tmp_path):
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(["torch", "vidssl.saved.checkpoint"])  # the imports are paid once
    folder, step = RunFolder(tmp_path), 0
    for trial in range(6):
        before = step
        child = forked.Process(target=exec, args=(WRITER, {"ROOT": str(tmp_path), "FIRST": step + 1}))
        child.start()
        deadline = time.monotonic() + 60
        while step < before + 3 and time.monotonic() < deadline:  # at least three more were finished
            time.sleep(0.003)
            step = latest_step(folder) or 0
        time.sleep(0.003 * trial)
        child.kill()
        child.join()
        child.close()
        step = latest_step(folder) or 0
        assert step >= before + 3
        assert read_checkpoint(folder, step)[1]["w"].eq(float(step)).all()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is no run folder"):
        open_run(tmp_path)


def test_a_resumed_log_forgets_the_steps_it_will_log_again(tmp_path):
    folder = RunFolder(tmp_path)
    folder.log.write_text('{"step": 0}\n{"step": 10}\n{"step": 20}\n{"st')
    folder.forget_log_after(20)
    assert [row["step"] for row in folder.read_log()] == [0, 10]


class Ranks:
    """Threads as ranks: `gather` is a collective of them all."""

    def __init__(self, world):
        self.world, self._barrier, self._brought = world, threading.Barrier(world), [None] * world

    def gather_of(self, rank):
        def gather(value):
            self._brought[rank] = value
            self._barrier.wait(20)
            found = list(self._brought)
            self._barrier.wait(20)
            return found

        return gather

    def run(self, act):
        """`act(rank, gather)` on every rank; what each returned or raised."""
        outcomes = [None] * self.world

        def one(rank):
            try:
                outcomes[rank] = act(rank, self.gather_of(rank))
            except VidsslError as error:
                outcomes[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes


def write_together(folder, step, world=3, spoilt=None, value=0.0):
    def act(rank, gather):
        state = {"rows": torch.full((5,), float("nan") if rank == spoilt else float(rank))}
        shared = {"weight": torch.full((9,), value)} if rank == 0 else None
        save_checkpoint(folder, Meta(step, "r", "d", world, 0), rank, state, shared, gather)

    return Ranks(world).run(act)


def test_three_ranks_write_one_checkpoint_and_each_reads_its_own(tmp_path):
    folder = RunFolder(tmp_path)
    assert write_together(folder, 6) == [None] * 3
    for rank in range(3):
        meta, shared, own = read_checkpoint(folder, 6, rank)
        assert own["rows"].eq(rank).all()
        assert shared["weight"].eq(0).all()
    assert [int(own["rows"][0]) for own in read_ranks(folder, 6)] == [0, 1, 2]
    assert sorted(meta.files) == ["model.pt", "rank-0.pt", "rank-1.pt", "rank-2.pt"]
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000006"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_never_written_and_the_good_checkpoints_stay(tmp_path, bad):
    folder = RunFolder(tmp_path)
    for step in (10, 20):
        write(folder, step, value=1.0)
    with pytest.raises(CheckpointError, match=rf"after step 30 weight \({bad}\) .*of step 20 is kept; lower optim.lr"):
        write(folder, 30, value=bad)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-00000010", "step-00000020"]
    optimizer = {"optimizer": {"state": {0: {"momentum_buffer": torch.tensor([1.0, bad])}}}}
    with pytest.raises(CheckpointError, match=r"optimizer\.state\.0\.momentum_buffer"):
        save_checkpoint(folder, Meta(30, "r", "d", 1, 0), 0, {}, optimizer)
    assert latest_step(folder) == 20


def test_what_is_not_known_yet_may_be_nan(tmp_path):
    folder, state = RunFolder(tmp_path), {"method": {"log_z": torch.tensor(float("nan"))}}
    save_checkpoint(folder, Meta(3, "r", "d", 1, 0), 0, {}, state, unset=("log_z",))
    assert read_checkpoint(folder, 3)[1]["method"]["log_z"].isnan()


def test_one_rank_s_bad_number_stops_all_ranks(tmp_path):
    folder = RunFolder(tmp_path)
    write_together(folder, 3)
    for error in write_together(folder, 6, spoilt=2):
        assert isinstance(error, CheckpointError)
        assert "rows (nan) is not a finite number" in str(error)
    assert latest_step(folder) == 3


def test_a_full_disk_keeps_the_checkpoint_before_and_names_disk_need_and_room(small_disk):
    folder = RunFolder(small_disk(3))
    write(folder, 4)
    big = {"weight": torch.zeros(1_000_000)}
    wanted = (
        r"the checkpoint of step 8 is not written: .*model\.pt cannot be written: the disk .*disk-0 is full "
        r"\(4\.0 MB needed, 3\.\d MB free\); the one of step 4 is kept; .*vidssl train --resume"
    )
    with pytest.raises(StorageError, match=wanted) as caught:
        save_checkpoint(folder, Meta(8, "r", "d", 1, 0), 0, {}, big)
    assert caught.value.final  # trying again does not help, making room does
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000004"]
    assert choose_checkpoint(folder, pytest.fail) == 4
    write(folder, 8)  # there is room for a smaller one
    assert choose_checkpoint(folder, pytest.fail) == 8


def test_what_a_killed_writer_left_aside_is_removed_by_the_next(tmp_path):
    folder = RunFolder(tmp_path)
    (folder.checkpoints / ".step-00000002.part").mkdir(parents=True)
    (folder.checkpoints / ".step-00000002.part" / "model.pt").write_bytes(b"half")
    write(folder, 4)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000004"]


def test_a_folder_that_only_rank_0_sees_is_said(tmp_path):
    one, other = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "other")

    def act(rank, gather):
        save_checkpoint(other if rank else one, Meta(2, "r", "d", 2, 0), rank, {}, None if rank else {}, gather)

    for error in Ranks(2).run(act):
        assert isinstance(error, StorageError)
        assert "rank-1.pt was written by its rank and cannot be seen by rank 0" in str(error)
        assert "set trainer.storage to one folder that all machines share" in str(error)
    assert not list(tmp_path.rglob("*.pt"))


def spoil(folder, step, name, how):
    path = checkpoint_path(folder, step) / name
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"empty": b"", "torn": content[:-7], "flipped": flipped}[how])


@pytest.mark.parametrize("name", ["model.pt", "rank-1.pt", "meta.json"])
@pytest.mark.parametrize("how", ["empty", "torn", "flipped", "missing"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_sentence(tmp_path, name, how):
    folder, said = RunFolder(tmp_path), []
    assert write_together(folder, 5, value=5.0) == [None] * 3
    assert write_together(folder, 9, value=9.0) == [None] * 3
    spoil(folder, 9, name, how)
    assert choose_checkpoint(folder, said.append) == 5
    if (name, how) == ("meta.json", "missing"):  # no checkpoint any more, by its own definition
        assert said == []
        return
    assert len(said) == 1
    assert "cannot be used (step 9: " in said[0]
    assert name in said[0]
    assert said[0].endswith("going on from step 5")
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(folder, 9, rank=1)
    assert read_checkpoint(folder, 5, rank=1)[1]["weight"].eq(5).all()


def test_a_run_without_a_whole_checkpoint_says_what_is_wrong_with_each(tmp_path):
    folder = RunFolder(tmp_path)
    assert choose_checkpoint(folder, pytest.fail) is None
    for step in (5, 9):
        write(folder, step)
        spoil(folder, step, "model.pt", "empty")
    with pytest.raises(CheckpointError, match=r"step 9: model\.pt has 0 .*step 5: model\.pt has 0 .*--fresh"):
        choose_checkpoint(folder, pytest.fail)


def test_a_whole_checkpoint_can_be_passed_over_for_a_reason(tmp_path):
    folder, said = RunFolder(tmp_path), []
    for step in (5, 9):
        write(folder, step)
    assert choose_checkpoint(folder, said.append, lambda step: "its bank is missing" if step == 9 else None) == 5
    assert "step 9: its bank is missing" in said[0]


def test_a_missing_rank_is_named_with_what_to_do(tmp_path):
    folder = RunFolder(tmp_path)
    write_together(folder, 5)
    spoil(folder, 5, "rank-2.pt", "missing")
    with pytest.raises(CheckpointError, match=r"lacks rank-2\.pt, the file of rank 2, .*copy it here"):
        read_checkpoint(folder, 5, rank=2)
    with pytest.raises(CheckpointError, match=r"written by 3 worker\(s\) and holds nothing for rank 3; .*workers=3"):
        read_checkpoint(folder, 5, rank=3)


@pytest.mark.parametrize("content", ["[]", '"x"', "{}", '{"step": "five"}', "null", "\xff", "[" * 100_000])
def test_a_meta_of_another_shape_is_one_sentence(tmp_path, content):
    folder = RunFolder(tmp_path)
    write(folder, 5)
    (checkpoint_path(folder, 5) / "meta.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"step-00000005 cannot be used: meta\.json is damaged: [^\n]+$"):
        read_checkpoint(folder, 5)


def test_a_checkpoint_of_another_step_under_this_name_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    write(folder, 5)
    os.rename(checkpoint_path(folder, 5), checkpoint_path(folder, 7))
    with pytest.raises(CheckpointError, match=r"meta\.json is of step 5"):
        read_checkpoint(folder, 7)


def test_a_state_that_is_no_mapping_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    write(folder, 5)
    path = checkpoint_path(folder, 5)
    torch.save([1, 2], path / "model.pt")
    (path / "meta.json").write_text(json.dumps({"step": 5, "recipe": "r", "data": "d", "world": 1, "epoch": 0}))
    with pytest.raises(CheckpointError, match=r"model\.pt holds no state"):
        read_checkpoint(folder, 5)


def test_a_checkpoint_written_before_there_were_hashes_is_read(tmp_path):
    folder = RunFolder(tmp_path)
    write(folder, 5, value=2.0)
    before, path = weights_hash(folder, 5), checkpoint_path(folder, 5) / "meta.json"
    path.write_text(json.dumps({"step": 5, "recipe": "r", "data": "d", "world": 1, "epoch": 0, "instances": 4}))
    assert read_checkpoint(folder, 5, rank=0)[1]["weight"].eq(2).all()
    assert choose_checkpoint(folder, pytest.fail) == 5
    assert weights_hash(folder, 5) == before


def test_going_back_to_an_older_checkpoint_keeps_it_when_the_next_is_written(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (10, 20, 30):
        write(folder, step, keep=3)
    spoil(folder, 30, "model.pt", "torn")
    write(folder, 25)
    assert {path.name[-2:] for path in folder.checkpoints.iterdir()} == {"20", "25", "30"}
    assert choose_checkpoint(folder, lambda line: None) == 25


def recipe(**trainer):
    tree = {"name": "small", "data": "/data/one", "trainer": {"batch": 4} | trainer}
    return Recipe.model_validate(tree)


def test_another_recipe_than_the_checkpoint_s_is_refused_with_what_differs(tmp_path):
    folder, told = RunFolder(tmp_path), recipe()
    meta = Meta(5, told.fingerprint(), "d", 1, 0, settings=told.settings())
    save_checkpoint(folder, meta, 0, {}, {})
    back = read_meta(folder, 5)
    check_same_recipe(folder, back, told)
    check_same_recipe(folder, back, recipe(keep=9))  # changes no number
    check_same_recipe(folder, back, told.model_copy(update={"data": "/data/moved"}))  # compared by its hash
    check_same_recipe(folder, back, recipe(batch=8, workers=3))  # a run goes on with any split
    with pytest.raises(
        CheckpointError, match=r"was changed since the checkpoint of step 5 \(trainer\.steps=8 was None\)"
    ):
        check_same_recipe(folder, back, recipe(steps=8))
    with pytest.raises(CheckpointError, match="its fingerprint is another"):
        check_same_recipe(folder, Meta(5, "other", "d", 1, 0), told)


def test_settings_that_only_one_version_knows_are_no_difference(tmp_path):
    told = recipe()
    settings = {key: value for key, value in told.settings().items() if key != "optim.lr"} | {"optim.gone": 1}
    check_same_recipe(RunFolder(tmp_path), Meta(5, "older", "d", 1, 0, settings=settings), told)
