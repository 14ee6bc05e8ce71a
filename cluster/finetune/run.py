"""`vidssl finetune RUN`: how well does the encoder classify after supervised training? In this process, or on Ray Train.

Writes `eval/NAME.json` (results and their protocol) and `eval/NAME.npz` (the test videos' probabilities) beside the run or
card, and keeps `NAME/last.pt` there while it trains: typing the same words again goes on from it. NAME is `finetune`, with
`-linear` for a frozen backbone, `-scratch` for fresh weights and `-VIEW` for another view than the trained one.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.finetune.fit import ELSEWHERE, Fit, live_line, state_path
from cluster.finetune.results import FinetuneResult, Together, finetune_table, tested
from cluster.finetune.task import FineTuning, on_workers, settle
from cluster.finetune.workers import fit_on_workers
from cluster.keywords import FinetuneWords, own_words
from vidssl.errors import StorageError
from vidssl.evaluation.class_scores import fuse, load_scores, save_scores
from vidssl.files import storage_error
from vidssl.lock import held
from vidssl.records import write_record

__all__ = ["finetune_run", "finetune_table", "live_line"]

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
            opened.enter_context(held(state_path(task).parent, "finetune", say))
        except StorageError as error:  # now, and not after the training
            raise type(error)(f"{error}; {ELSEWHERE}") from error
        return _trained_and_tested(task, other, say)


def _trained_and_tested(task: FineTuning, other: str | None, say: Say) -> FinetuneResult:
    if on_workers(task.recipe):
        answers, who = fit_on_workers(task, say)
        task = replace(task, subject=replace(task.subject, lookers=who))
    else:
        with _asked_to_stop() as asked:
            answers = Fit(task, task.subject.device, say, asked.is_set).run()
    if answers is None:
        raise KeyboardInterrupt
    result = tested(task, answers)
    place = task.subject.out_folder / task.name
    with _writing(task):
        scores = save_scores(answers.chosen, place.with_name(f"{task.name}.npz"), task.subject.manifest.hash)
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
        raise storage_error(error, task.subject.home, instead=ELSEWHERE) from error


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
