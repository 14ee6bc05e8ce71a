"""The training and the test of one fine-tuning, as each of its ranks does them; alone it is the whole of them.

Each rank trains on its share of every batch and asks its share of the held-out and test videos; what is said, saved and
answered is that of all of them.
"""

from __future__ import annotations

import contextlib
import copy
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.finetune.task import Answers, FineTuning, settings_of, spec_of
from cluster.training.agree import from_first_rank
from vidssl.distributed import rank, synchronise_norms, world
from vidssl.evaluation.class_scores import ClassScores, score_videos
from vidssl.evaluation.finetune import Classifier, Epoch, FineTuner
from vidssl.files import storage_error, write_whole

if TYPE_CHECKING:
    from pipelines.loader import EvalLoader, TrainLoader

__all__ = ["ELSEWHERE", "Fit", "live_line", "state_path"]

_SAVE_S: Final = 60.0
_AGREE_STEPS: Final = 4
"""Ranks ask the first one that often whether to save or to stop: a number that they share."""
_GO_ON, _SAVE, _STOP = range(3)

ELSEWHERE: Final = "make room, or copy the run to a folder that can be written, and type vidssl finetune again: it goes on from what was saved"

Rows = NDArray[np.int64]
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Fit:
    """One rank of a fine-tuning.

    Attributes:
        task: What is trained.
        device: Of this rank.
        say: Takes each line for the user; called by rank 0 alone.
        asked: Whether the user wants it to stop; asked of rank 0.
    """

    task: FineTuning
    device: torch.device
    say: Say
    asked: Callable[[], bool]

    def run(self) -> Answers | None:
        """Train to the last epoch, going on from `last.pt` where it belongs to the same words, and ask the test videos.

        Returns:
            The answers, the same on every rank; None where the user stopped it, which is saved.

        Raises:
            StorageError: the state cannot be written.
            VidsslError: the loss is not a number, the data cannot be read.
        """
        task = self.task
        options = task.recipe.finetune
        steps, bf16 = len(task.train) // options.batch, task.recipe.trainer.precision == "bf16"
        tuner = FineTuner(self._model(), options, task.view, steps, seed=task.recipe.seed, bf16=bf16)
        if not self._train(tuner):
            return None
        return self._answers(tuner)

    def _model(self) -> Classifier:
        from vidssl.encoder import build_encoder

        task = self.task
        if task.scratch:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(task.recipe.seed)
                encoder = build_encoder(task.recipe.model, task.view)
        else:
            encoder = copy.deepcopy(task.subject.encoder(task.view))
        model = Classifier(encoder, len(task.subject.manifest.classes), task.recipe.finetune, task.recipe.seed)
        model = model.to(self.device)
        if task.recipe.finetune.sync_bn:
            synchronise_norms(model, self.device)
        return model

    def _train(self, tuner: FineTuner) -> bool:
        """Whether it came to its end."""
        task = self.task
        loader = self._training_loader()
        held = self._centre_loader() if len(task.held) else None
        with contextlib.closing(loader):
            self._go_on(tuner, loader)
            saved = shown = time.monotonic()
            first = tuner.done
            for ended in tuner.train(loader, None if held is None else lambda: held):
                now, last = time.monotonic(), tuner.done == tuner.total
                if ended is not None:
                    took = max(now - shown, 1e-9)
                    rate = (tuner.done - first) * task.recipe.finetune.batch / took
                    left = (tuner.total - tuner.done) / max((tuner.done - first) / took, 1e-9)
                    self._tell(
                        live_line(ended, task.recipe.finetune.epochs, rate, loader.meter.read_wait() / took, left)
                    )
                    shown, first = now, tuner.done
                wish = self._wish(tuner.done, now - saved > _SAVE_S)
                if last or wish != _GO_ON:
                    self._save(tuner, loader)
                    saved = time.monotonic()
                if wish == _STOP and not last:
                    self._tell(f"stopped after step {tuner.done} of {tuner.total}; to go on: type the same words again")
                    return False
        return True

    def _wish(self, done: int, save: bool) -> int:
        """What rank 0 wants, on all ranks."""
        if world() > 1 and done % _AGREE_STEPS:
            return _GO_ON
        return from_first_rank(_STOP if self.asked() else _SAVE if save else _GO_ON, self.device)

    def _answers(self, tuner: FineTuner) -> Answers:
        last = chosen = self._scores(tuner)
        if tuner.best not in (None, len(tuner.history)):
            tuner.model.load_state_dict(tuner.chosen_state())
            chosen = self._scores(tuner)
        return Answers(last, chosen, tuner.best, tuple(tuner.history))

    def _scores(self, tuner: FineTuner) -> ClassScores:
        from pipelines.loader import EvalLoader

        task, (rule, crops) = self.task, self.task.rows
        loader = EvalLoader(
            task.subject.manifest,
            spec_of(task, task.recipe.evaluation.batch),
            windows=task.subject.windows,
            rule=rule,
            crops=crops,
            share=task.recipe.evaluation.crop,
            device=self.device,
            instances=_share(task.test),
        )
        with contextlib.closing(loader):
            return score_videos(tuner.model, loader, task.view, task.average, tuner.bf16)

    def _training_loader(self) -> TrainLoader:
        from pipelines.loader import TrainLoader

        task, place = self.task, {"rank": rank(), "world": world(), "device": self.device}
        spec = spec_of(task, task.recipe.finetune.batch // world())
        return TrainLoader(task.subject.manifest, spec, **place, instances=task.train)

    def _centre_loader(self) -> EvalLoader:
        from pipelines.loader import EvalLoader

        task = self.task
        spec = spec_of(task, task.recipe.evaluation.batch)
        # one window each, of the part of the frame that the test shows
        of_test = {"crops": task.subject.window_rule[1], "share": task.recipe.evaluation.crop}
        held = _share(task.held)
        return EvalLoader(task.subject.manifest, spec, windows=1, device=self.device, instances=held, **of_test)

    def _save(self, tuner: FineTuner, loader: TrainLoader) -> None:
        state = {"settings": settings_of(self.task), "tuner": tuner.state_dict(), "loader": loader.state_dict()}
        if rank() > 0:
            return
        bytes_of, path = io.BytesIO(), state_path(self.task)
        torch.save(state, bytes_of)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, bytes_of.getvalue())
        except OSError as error:
            raise storage_error(error, self.task.subject.home, instead=ELSEWHERE) from error

    def _go_on(self, tuner: FineTuner, loader: TrainLoader) -> None:
        path = state_path(self.task)
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            settings = state["settings"]
        except (OSError, RuntimeError, EOFError, UnpicklingError, KeyError, TypeError):
            self._tell(f"{path} cannot be read: training begins anew")
            return
        if settings != settings_of(self.task):
            self._tell(f"{path} is of other settings: training begins anew")
            return
        tuner.load_state_dict(state["tuner"])
        loader.load_state_dict(state["loader"])
        self._tell(f"going on after step {tuner.done} of {tuner.total}")

    def _tell(self, line: str) -> None:
        if rank() == 0:
            self.say(line)


def state_path(task: FineTuning) -> Path:
    """Where a fine-tuning keeps its state while it trains."""
    return task.subject.home / task.name / "last.pt"


def live_line(epoch: Epoch, epochs: int, rate: float, wait: float, left: float) -> str:
    """What is said after each epoch."""
    held = "" if epoch.held_out_accuracy is None else f"  held out {100 * epoch.held_out_accuracy:5.1f} %"
    return (
        f"epoch {epoch.number:>4}/{epochs}  loss {epoch.loss:7.4f}  train {100 * epoch.train_accuracy:5.1f} %{held}"
        f"  {rate:7.1f} clips/s  wait {100 * min(wait, 1.0):4.1f} %" + (f"  {left:6.0f} s left" if left else "")
    )


def _share(rows: Rows) -> Rows:
    """This rank's videos of those that are asked."""
    return rows[rank() :: world()]
