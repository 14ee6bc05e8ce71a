"""Do the classes come easier from a pre-trained backbone? Supervised training on clips: of everything (P4), or of one layer (P3).

| `finetune.backbone_lr` | what learns | between pooled features and classes |
|---|---|---|
| above 0 (P4, fine-tuning) | backbone at that share of `lr`, and the classifier | dropout → linear |
| 0 (P3, linear probe end to end) | the classifier; the backbone stays in evaluation mode | unit length → batch norm → linear, no dropout |

The linear layer starts from N(0, 0.01) and bias 0; `lr` is divided by ten at each milestone. Published settings:

| paper | optimizer, lr, backbone_lr | weight_decay, dropout | epochs, milestones |
|---|---|---|---|
| CoCLR, CPR fine-tuning (the defaults) | adam 1e-3, 0.1 | 1e-3, 0.9 | 500, 0.8 0.9 |
| CoCLR, CPR linear probe | sgd 0.1, 0 | 1e-3, – | 100, 0.6 0.8 |
| ViCC fine-tuning | sgd 0.1, 1 | –, 0.9 | 500, 0.4 0.6 0.8 0.9 |
| IIC | sgd 1e-3, 1 | 5e-4, 0 | 150, `schedule=plateau`, patience 50, on about 800 held-out videos of UCF101 |

On purpose not as published: CoCLR, CPR and ViCC chose the epoch on 30 % of the *test* split; here it is the epoch with the
best accuracy on held-out training groups (ties: the lower loss), and the last epoch is reported beside it.
The held-out videos (`evaluation.held_out`) do not train, so a fifth of the training split is missing here by default;
`finetune.choose=last` trains on all of it, as published, and takes the last epoch. How CoCLR, CPR and ViCC change
the training clips is `finetune.augment=supervised`. Their test is `evaluation.protocol=p1_ref evaluation.crops=ten
evaluation.crop=0.93333` with as many `evaluation.windows` as the longest video has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.batch import ClipBatch
from vidssl.distributed import rank, world
from vidssl.encoder import Encoder, unit_rows
from vidssl.errors import RecipeError, VidsslError
from vidssl.evaluation.class_scores import score_videos
from vidssl.sections import Finetune

__all__ = ["Classifier", "Epoch", "FineTuner", "plateaus", "rate_of"]


class Epoch(NamedTuple):
    """One pass over the training videos; held-out numbers are None where nothing was held out."""

    number: int
    loss: float
    train_accuracy: float
    held_out_accuracy: float | None
    held_out_loss: float | None


class Classifier(nn.Module):
    """Backbone of an encoder (its head is not used) and a linear layer.

    Args:
        encoder: Its backbone is taken, not copied.
        classes: C.
        options: `backbone_lr` decides the form, see this module's table.
        seed: Of the linear layer.
    """

    def __init__(self, encoder: Encoder, classes: int, options: Finetune, seed: int) -> None:
        super().__init__()
        self.frozen = options.backbone_lr == 0
        self.dropout = 0.0 if self.frozen else options.dropout
        self.backbone = encoder.backbone.requires_grad_(not self.frozen)
        self.norm = nn.BatchNorm1d(encoder.width) if self.frozen else nn.Identity()
        self.output = nn.Linear(encoder.width, classes)
        nn.init.normal_(self.output.weight, 0.0, 0.01, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.output.bias)

    def train(self, mode: bool = True) -> Classifier:
        """Training mode, except for a frozen backbone: its statistics are part of what was learnt before."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, clips: Tensor, chance: torch.Generator | None = None) -> Tensor:
        """Logits [B, C], float32, of `clips` [B, C, T, H, W]; `chance` draws the dropout (None: none)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            pooled = self.backbone(clips).mean(dim=(2, 3, 4))
        with torch.autocast(clips.device.type, enabled=False):
            rows = pooled.float() if pooled.dtype != torch.float64 else pooled
            rows = self.norm(unit_rows(rows) if self.frozen else rows)
            if self.training and self.dropout and chance is not None:
                kept = _drawn(rows.shape, chance, rows.device) >= self.dropout
                rows = rows * kept / (1 - self.dropout)
            return self.output(rows)


def _drawn(shape: torch.Size, chance: torch.Generator, device: torch.device) -> Tensor:
    """This rank's rows [B, F] of uniform numbers that are drawn for the rows of all ranks at once, as one process would."""
    return torch.rand((world() * shape[0], *shape[1:]), generator=chance, device=device).chunk(world())[rank()]


class FineTuner:
    """Trains a classifier; its state is whole after every step, so that a stopped training goes on exactly.

    With several ranks each brings its share of a batch; gradients are their mean, numbers those of all of them.

    Args:
        model: On the device of the clips; the same on every rank.
        options: Recipe section.
        view: Stream that the model sees.
        steps_per_epoch: Batches of one pass.
        seed: Of the dropout, which is drawn by (seed, step).
        bf16: Whether the backbone runs under autocast.

    Attributes:
        model: The classifier.
        done: Steps done.
        history: Finished epochs.
        best: Number of the epoch chosen on the held-out videos; None before there is one.

    Raises:
        RecipeError: batches of one row for a batch norm.
    """

    def __init__(
        self, model: Classifier, options: Finetune, view: str, steps_per_epoch: int, *, seed: int, bf16: bool = False
    ) -> None:
        if model.frozen and options.batch < 2:
            raise RecipeError("finetune.batch=1 cannot be normalised over the batch; type finetune.batch=2 or more")
        self.model, self.options, self.view, self.seed, self.bf16 = model, options, view, seed, bf16
        self.steps_per_epoch, self.total = steps_per_epoch, steps_per_epoch * options.epochs
        self.done, self.best = 0, None
        self.history: list[Epoch] = []
        self._best_state: dict[str, Tensor] = {}
        self._sums = torch.zeros(3, dtype=torch.float64)  # loss, right answers, rows of the epoch under way
        self._optimizer = _optimizer(model, options)
        self._ddp: nn.Module = model
        if world() > 1:
            self._ddp = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)

    def train(
        self, batches: Iterator[ClipBatch], held_out: Callable[[], Iterable[ClipBatch]] | None
    ) -> Iterator[Epoch | None]:
        """Train to the last step; after each one give None, or the epoch that ended with it.

        Args:
            batches: Labelled training batches, endless, going on where `done` says.
            held_out: Makes the held-out rows (one clip each) of the choice; None: the last epoch is the choice.

        Raises:
            VidsslError: the loss is not a finite number.
        """
        while self.done < self.total:
            self._step(next(batches))
            yield self._finished_epoch(held_out) if self.done % self.steps_per_epoch == 0 else None

    def chosen_state(self) -> dict[str, Tensor]:
        """Weights of the chosen epoch (of the last one, where nothing was held out), on the CPU."""
        return self._best_state if self.best is not None else _on_cpu(self.model)

    def sums(self) -> Tensor:
        """Loss, right answers and rows of the epoch under way, of all ranks, which all ask."""
        if world() == 1:
            return self._sums
        whole = self._sums.to(self.model.output.weight.device, copy=True)
        dist.all_reduce(whole)
        return whole

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, with any number of ranks; all ranks ask for it."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "done": self.done,
            "best": self.best,
            "best_state": self._best_state,
            "history": [list(epoch) for epoch in self.history],
            "sums": self.sums(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.done, self.best, self._best_state = state["done"], state["best"], state["best_state"]
        self.history = [Epoch(*row) for row in state["history"]]
        self._sums = state["sums"].cpu() if rank() == 0 else torch.zeros(3, dtype=torch.float64)

    def _step(self, batch: ClipBatch) -> None:
        clips, label = batch.clips[self.view].flatten(0, 1), batch.label
        label = label.repeat_interleave(len(clips) // len(label))
        chance = torch.Generator(clips.device).manual_seed((self.seed * 1_000_003 + self.done) % 2**63)
        factor = rate_of(self.options, self.done, self.total, self.history)
        for group in self._optimizer.param_groups:
            group["lr"] = group["full"] * factor
        self.model.train()
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self._ddp(clips, chance)
        loss = F.cross_entropy(logits, label)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        right = (logits.detach().argmax(dim=1) == label).sum()
        sums = torch.stack(
            [loss.detach().double() * len(label), right.double(), torch.full_like(right.double(), len(label))]
        )
        self._sums = self._sums.to(sums.device) + sums  # stays on the device: nothing waits for a number
        self.done += 1

    def _finished_epoch(self, held_out: Callable[[], Iterable[ClipBatch]] | None) -> Epoch:
        loss, right, rows = self.sums().tolist()
        self._sums = torch.zeros(3, dtype=torch.float64)
        number = self.done // self.steps_per_epoch
        if not math.isfinite(loss):
            raise VidsslError(
                f"the loss is not a number in epoch {number}; lower finetune.lr or set trainer.precision=fp32"
            )
        scores = None if held_out is None else score_videos(self.model, held_out(), self.view, bf16=self.bf16)
        ended = Epoch(
            number,
            loss / rows,
            right / rows,
            None if scores is None else scores.accuracy,
            None if scores is None else scores.loss,
        )
        if scores is not None and (self.best is None or _merit(ended) > _merit(self.history[self.best - 1])):
            self.best, self._best_state = number, _on_cpu(self.model)
        self.history.append(ended)
        return ended


def rate_of(options: Finetune, step: int, total: int, history: Sequence[Epoch] = ()) -> float:
    """Share of the full rates at a step: a tenth for each milestone reached, or each time that the held-out loss stood still."""
    if options.schedule == "plateau":
        losses = [epoch.held_out_loss for epoch in history if epoch.held_out_loss is not None]
        return 0.1 ** plateaus(losses, options.patience)
    return 0.1 ** sum(step >= milestone * total for milestone in options.milestones)


def plateaus(losses: Sequence[float], patience: int) -> int:
    """How often a loss stood still for more than `patience` epochs, as `torch.optim.lr_scheduler.ReduceLROnPlateau` counts.

    Args:
        losses: By epoch.
        patience: Epochs; lower is lower by more than a ten-thousandth.
    """
    lowest, waited, found = math.inf, 0, 0
    for loss in losses:
        lower = loss < lowest * (1 - 1e-4)
        lowest, waited = (loss, 0) if lower else (lowest, waited + 1)
        if waited > patience:
            waited, found = 0, found + 1
    return found


def _merit(epoch: Epoch) -> tuple[float, float]:
    return epoch.held_out_accuracy or 0.0, -(epoch.held_out_loss or 0.0)


def _optimizer(model: Classifier, options: Finetune) -> torch.optim.Optimizer:
    top = [*model.norm.parameters(), *model.output.parameters()]
    groups: list[dict[str, Any]] = [{"params": top, "lr": options.lr, "full": options.lr}]
    if not model.frozen:
        slow = options.lr * options.backbone_lr
        groups.append({"params": list(model.backbone.parameters()), "lr": slow, "full": slow})
    if options.optimizer == "adam":
        return torch.optim.Adam(groups, weight_decay=options.weight_decay)
    return torch.optim.SGD(groups, momentum=0.9, weight_decay=options.weight_decay)


def _on_cpu(model: nn.Module) -> dict[str, Tensor]:
    return {key: rows.detach().cpu().clone() for key, rows in model.state_dict().items()}
