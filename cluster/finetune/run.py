"""`vidssl finetune RUN`: how well does the encoder classify after supervised training? One process, one device.

Writes `eval/NAME.json` (results and their protocol) and `eval/NAME.npz` (the test videos' probabilities) beside the run or
card, and keeps `NAME/last.pt` there while it trains: typing the same words again goes on from it. NAME is `finetune`, with
`-linear` for a frozen backbone, `-scratch` for fresh weights and `-VIEW` for another view than the trained one.
"""

from __future__ import annotations

import contextlib
import copy
import io
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Final

import torch

from cluster.finetune.results import FinetuneResult, Together, finetune_table, tested
from cluster.finetune.task import FineTuning, settings_of, settle, spec_of
from cluster.keywords import FinetuneWords, own_words
from vidssl.errors import StorageError
from vidssl.evaluation.class_scores import fuse, load_scores, save_scores
from vidssl.evaluation.finetune import Classifier, Epoch, FineTuner
from vidssl.files import storage_error, write_whole
from vidssl.lock import held
from vidssl.records import write_record

if TYPE_CHECKING:
    from pipelines.loader import TrainLoader

__all__ = ["finetune_run", "finetune_table", "live_line"]

_SAVE_S: Final = 60.0
_ELSEWHERE: Final = "make room, or copy the run to a folder that can be written, and type vidssl finetune again: it goes on from what was saved"

Say = Callable[[str], None]


def finetune_run(path: str | Path, words: Sequence[str] = (), say: Say = print) -> FinetuneResult:
    """Train a classifier on the encoder of a run or card and test it.

    Args:
        path: A run folder or a card folder.
        words: `view=`, `init=pretrained|scratch`, `average=probability|logit` (default: logit with
            evaluation.protocol=p2, IIC's), `fuse=NPZ` (the other stream's probabilities), `finetune.*`, `evaluation.*`,
            `loader.*`, `augment.*`, `clips.*`, `trainer.device`, `trainer.precision`, `seed`, `data`.
        say: Takes each line for the user.

    Returns:
        What `eval/NAME.json` holds.

    Raises:
        VidsslError: as `open_subject`; a word or value that is not allowed; unlabelled or too few videos.
        BusyError: the same fine-tuning is under way.
        StorageError: its folder cannot be written.
        KeyboardInterrupt: stopped and saved; the same words go on.
    """
    other = own_words(FinetuneWords, words)[0].fuse
    if other is not None:
        load_scores(Path(other))  # a wrong path shows now and not after the training
    task = settle(path, words)
    with contextlib.ExitStack() as opened:
        try:
            opened.enter_context(held(_state_path(task).parent, "finetune", say))
        except StorageError as error:  # now, and not after the training
            raise type(error)(f"{error}; {_ELSEWHERE}") from error
        return _trained_and_tested(task, other, say)


def _trained_and_tested(task: FineTuning, other: str | None, say: Say) -> FinetuneResult:
    options, steps = task.recipe.finetune, len(task.train) // task.recipe.finetune.batch
    bf16 = task.recipe.trainer.precision == "bf16"
    tuner = FineTuner(_model(task), options, task.view, steps, seed=task.recipe.seed, bf16=bf16)
    _train(task, tuner, say)
    result, answers = tested(task, tuner)
    place = task.subject.out_folder / task.name
    with _writing(task):
        scores = save_scores(answers, place.with_name(f"{task.name}.npz"), task.subject.manifest.hash)
    if other is not None:
        result = replace(result, fused=Together.of(fuse(scores, other), Path(other).name))
    with _writing(task):
        write_record(place.with_name(f"{task.name}.json"), result)
    return result


@contextlib.contextmanager
def _writing(task: FineTuning) -> Iterator[None]:
    """What the disk refuses becomes a sentence that says what to do."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, task.subject.home, instead=_ELSEWHERE) from error


def _model(task: FineTuning) -> Classifier:
    from vidssl.encoder import build_encoder

    if task.scratch:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.recipe.seed)
            encoder = build_encoder(task.recipe.model, task.view)
    else:
        encoder = copy.deepcopy(task.subject.encoder(task.view))
    model = Classifier(encoder, len(task.subject.manifest.classes), task.recipe.finetune, task.recipe.seed)
    return model.to(task.subject.device)


def _train(task: FineTuning, tuner: FineTuner, say: Say) -> None:
    """To the last epoch, going on from `last.pt` where it belongs to the same words."""
    from pipelines.loader import EvalLoader, TrainLoader

    device, manifest = task.subject.device, task.subject.manifest
    loader = TrainLoader(
        manifest, spec_of(task, task.recipe.finetune.batch), rank=0, world=1, device=device, instances=task.train
    )
    centre = spec_of(task, task.recipe.evaluation.batch)
    held = None
    if len(task.held):  # one window each, of the part of the frame that the test shows
        of_test = {"crops": task.subject.window_rule[1], "share": task.recipe.evaluation.crop}
        held = EvalLoader(manifest, centre, windows=1, device=device, instances=task.held, **of_test)
    with contextlib.closing(loader), _asked_to_stop() as asked:
        _go_on(task, tuner, loader, say)
        saved = shown = time.monotonic()
        first = tuner.done
        for ended in tuner.train(loader, None if held is None else lambda: held):
            now, last = time.monotonic(), tuner.done == tuner.total
            if ended is not None:
                rate = (tuner.done - first) * task.recipe.finetune.batch / max(now - shown, 1e-9)
                say(
                    live_line(
                        ended, task.recipe.finetune.epochs, rate, loader.meter.read_wait() / max(now - shown, 1e-9)
                    )
                )
                shown, first = now, tuner.done
            if last or asked.is_set() or now - saved > _SAVE_S:
                _save(task, tuner, loader)
                saved = time.monotonic()
            if asked.is_set() and not last:
                say(f"stopped after step {tuner.done} of {tuner.total}; to go on: type the same words again")
                raise KeyboardInterrupt
    if held is not None:
        held.close()


def live_line(epoch: Epoch, epochs: int, rate: float, wait: float) -> str:
    """What is said after each epoch."""
    held = "" if epoch.held_out_accuracy is None else f"  held out {100 * epoch.held_out_accuracy:5.1f} %"
    return (
        f"epoch {epoch.number:>4}/{epochs}  loss {epoch.loss:7.4f}  train {100 * epoch.train_accuracy:5.1f} %{held}"
        f"  {rate:7.1f} clips/s  wait {100 * min(wait, 1.0):4.1f} %"
    )


def _state_path(task: FineTuning) -> Path:
    return task.subject.home / task.name / "last.pt"


def _save(task: FineTuning, tuner: FineTuner, loader: TrainLoader) -> None:
    state, path = io.BytesIO(), _state_path(task)
    torch.save({"settings": settings_of(task), "tuner": tuner.state_dict(), "loader": loader.state_dict()}, state)
    with _writing(task):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, state.getvalue())


def _go_on(task: FineTuning, tuner: FineTuner, loader: TrainLoader, say: Say) -> None:
    path = _state_path(task)
    if not path.is_file():
        return
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        settings = state["settings"]
    except (OSError, RuntimeError, EOFError, UnpicklingError, KeyError, TypeError):
        say(f"{path} cannot be read: training begins anew")
        return
    if settings != settings_of(task):
        say(f"{path} is of other settings: training begins anew")
        return
    tuner.load_state_dict(state["tuner"])
    loader.load_state_dict(state["loader"])
    say(f"going on after step {tuner.done} of {tuner.total}")


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Ctrl-C only raises a flag, so that a step is never cut in two; the second Ctrl-C stops at once."""
    asked = threading.Event()

    def note(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield asked
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
