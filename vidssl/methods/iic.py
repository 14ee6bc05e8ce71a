"""IIC: two views of a video agree, other videos are negatives, and so is the video itself with its motion destroyed.

One network sees all views; each view is compared with memories of all videos (`vidssl.memory`). Columns of a view's scores:

| columns | content | in |
|---|---|---|
| 0 | the own row of the *other* view's memory: the positive | always |
| 1 … K | that memory's rows of K drawn videos: inter-negatives | always |
| K+1 … K+k | that memory's rows of mined videos: positives too | `method.cascade` |
| then 1 | own row of the memory of intra-negatives | `intra_negative=bank` |
| then K | that memory's rows of the same K drawn videos | `intra_negative=bank` |
| then 1, instead of these | this step's intra-negative of the same clip, a unit row | `live`, `live_stopped` |

The loss is cross entropy of column 0, summed over both views. As published (IIC v1: no head, `normalize=false`) the
network's output is not normalised, so |z| is part of the temperature, and `bank` compares with last epoch's
intra-negative: this step's only refreshes the memory and takes no gradient. Without intra-negatives the published
comparison has K negatives instead of 2K+1; a fair one sets `method.iic.negatives` to 2K+1.

IICv2 is `clips.per_video=2` (second view from the second clip), `model.head=mlp`, `normalize=true`, `intra_of=second`.

With `method.cascade` CPR's cascade runs on the memories: main is the second view's memory, aux the first's, queries are
the video's own rows. Own and sibling rows and videos not yet seen are never mined. Mined videos become positives of both
views (MIL-NCE) and leave the drawn inter-negatives; their intra-negatives stay, as the own one does: broken motion is
nobody's positive. The own video stays among the drawn negatives, as published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidssl.batch import ClipBatch, Positives
from vidssl.distributed import gather_rows, rank, world
from vidssl.encoder import unit_rows
from vidssl.errors import RecipeError
from vidssl.losses import mil_nce
from vidssl.memory import (
    Memories,
    binary_nce,
    check_known,
    check_once,
    constant_of,
    drawn_ids,
    first_rows,
    memory_scores,
    source_of,
)
from vidssl.methods.base import Method, Period, StepOutput
from vidssl.methods.fitted import fitted_space
from vidssl.methods.mined import own_accuracy
from vidssl.methods.stream import Stream
from vidssl.mining.exclusions import GroupIndex
from vidssl.mining.plan import CascadePlan, plan_from
from vidssl.mining.progress import topk_at
from vidssl.recipe import Recipe
from vidssl.tables.strategies import RIVALS
from vidssl.transfer import Looks, sent
from vidssl.views import channels_of, intra_negative

if TYPE_CHECKING:
    from vidssl.encoder import Encoder
    from vidssl.mining.cascade import Backend

__all__ = ["IIC", "Table"]


_Rows: TypeAlias = tuple[Tensor, Tensor]  # of the second and of the first memory


class Table(NamedTuple):
    """Scores of one view over temperature.

    Attributes:
        logits: [B, M], columns as in this module's table.
        positive: Bool [B, M].
        valid: Bool [B, M], columns that are in the softmax.
        intra: Column of the row's own intra-negative, or None.
    """

    logits: Tensor
    positive: Tensor
    valid: Tensor
    intra: int | None


@dataclass(frozen=True)
class _Step:
    """Which videos a step is about: drawn and mined ones of this rank's rows."""

    ids: Tensor
    mined: Tensor | None


class IIC(Method):
    """Inter-intra contrast over memories of N videos.

    Args:
        recipe: The run.
        seed: Of draws.
        instances: N, videos of the data: rows of the memories.
        rows: int64, the videos that training visits and negatives are drawn from; None: all N. A data set whose test
            split is never visited should give it, or the noise in those rows serves as negatives.

    Raises:
        RecipeError: views of different channels, `second_from`, mining by labels, mining with the nce loss, or a
            cascade that N is too small for.
    """

    unset: ClassVar[tuple[str, ...]] = ("log_z",)
    log_z: Tensor
    _groups: tuple[int, GroupIndex] | None
    _open: set[int] | None
    _all_seen: bool

    def __init__(self, recipe: Recipe, seed: int, instances: int, rows: NDArray[np.int64] | None = None) -> None:
        super().__init__(recipe, seed)
        self.check(recipe)
        self.iic, self.mining = recipe.method.iic, recipe.mining
        self.second_view: str = recipe.method.second_view
        self.instances = instances
        self.drawn_from = np.arange(instances) if rows is None else np.asarray(rows, np.int64)
        self.streams = nn.ModuleDict({"shared": Stream(recipe.model, view=self.trained_view, twin=False)})
        self.remembers_intra = self.iic.intra != "none" and self.iic.intra_negative == "bank"
        names = ("first", "second", "intra") if self.remembers_intra else ("first", "second")
        self.memory = Memories(names, instances, recipe.model.dim, self.iic.momentum)
        self.register_buffer("log_z", torch.full((2,), float("nan")))  # of the nce loss, from the first batch on
        self.backend: Backend = recipe.mining.backend
        self._looks: Looks[int] = Looks()
        _read_again(self, None)
        self.register_load_state_dict_post_hook(_read_again)
        self.plan: CascadePlan | None = None
        self.space = fitted_space(recipe.mining, recipe.model.dim, seed) if recipe.mines else None
        if recipe.mines and instances > 1:  # with one row the method was built for its encoder alone
            self.plan = plan_from(recipe.mining, len(self.drawn_from))  # only these rows are ever filled

    @classmethod
    def of(cls, recipe: Recipe, seed: int, instances: int, rows: NDArray[np.int64] | None) -> Self:
        """With memories of `instances` videos, of which `rows` are trained on."""
        return cls(recipe, seed, instances, rows)

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Whether the recipe's words make sense for IIC.

        Raises:
            RecipeError: views of different channels, `second_from`, mining by labels, mining with the nce loss.
        """
        _check(recipe)

    def stream(self, view: str) -> Stream:
        """The one stream that sees every view."""
        found = self.streams["shared"]
        assert isinstance(found, Stream)  # for the type checker: ModuleDict forgets what it holds
        return found

    def news(self) -> list[str]:
        """See `Method.news`."""
        return [] if self.space is None else self.space.news()

    def encoder(self, view: str) -> Encoder:
        """The one encoder that sees every view."""
        return self.stream(view).query

    def period(self, step: int) -> Period:
        """`warmup` before step `method.warmup_steps` where the cascade waits for the memories."""
        return "warmup" if self.plan is not None and step < self.options.warmup_steps else "main"

    def forward(self, batch: ClipBatch, positives: Positives | None = None) -> StepOutput:
        """See `Method.forward`; `positives` are not read. One or two clips per video.

        Raises:
            DataError: a video outside 0..N-1, or one that comes twice with different clips.
        """
        about = self._about(batch)
        raw = self._encoded(batch)
        with torch.autocast(batch.instance.device.type, enabled=False):
            rows = {name: self._scored(part) for name, part in raw.items()}
            tables = self.tables(rows, about.ids, about.mined)
            losses = [self._loss(table, number) for number, table in enumerate(tables)]
            loss = losses[0] + losses[1]
        metrics = self._metrics(raw, rows, tables, losses, about.mined)
        if self.training:
            self._remember(rows, batch)
        seen = {self.second_view: rows["second"], self.trained_view: rows["first"]}
        return StepOutput(loss, {view: unit_rows(part.detach()) for view, part in seen.items()}, metrics)

    def _about(self, batch: ClipBatch) -> _Step:
        videos = batch.on_host("instance")
        check_known(videos, self.instances)
        # The draw is that of all ranks' rows; whose they are has to be known of this rank's alone.
        everyone, before = np.full(batch.size * batch.parts * world(), -1), rank() * batch.parts + batch.part
        own = slice(before * batch.size, (before + 1) * batch.size)
        everyone[own] = videos
        ids = drawn_ids(self.seed, batch.step, everyone, self.drawn_from, self.iic.negatives)[own]
        return _Step(sent(torch.from_numpy(ids), batch.instance.device), self._mined(batch))

    def _encoded(self, batch: ClipBatch) -> dict[str, Tensor]:
        """Raw outputs [B, D] of the first view, the second one and the intra-negative: up to three forward passes."""
        first, second = batch.clips[self.trained_view][:, 0], batch.clips[self.second_view][:, -1]
        alike = self.second_view == self.trained_view and batch.clips[self.trained_view].shape[1] == 1
        network = self.encoder(self.trained_view)
        made = {"first": network(first)}
        made["second"] = made["first"] if alike else network(second)
        if self.iic.intra == "none" or (self.remembers_intra and not self.training):
            return made
        of = batch.clips[self.trained_view if self.iic.intra_of == "first" else self.second_view][:, 0]
        videos = batch.on_host("instance")
        negative = intra_negative(of, self.iic.intra, seed=self.seed, step=batch.step, instance=videos)
        live = self.iic.intra_negative == "live"
        with torch.set_grad_enabled(
            live and torch.is_grad_enabled()
        ):  # batch norm stays in training mode, as published
            made["intra"] = network(negative) if live else network(negative).detach()
        return made

    def _scored(self, raw: Tensor) -> Tensor:
        if self.iic.normalize:
            return unit_rows(raw)
        return raw if raw.dtype == torch.float64 else raw.float()

    def tables(self, rows: Mapping[str, Tensor], ids: Tensor, mined: Tensor | None = None) -> tuple[Table, Table]:
        """Scores of the first and of the second view.

        Args:
            rows: "first", "second" and, with intra-negatives, "intra" → [B, D]; the latter is read by the live kinds.
            ids: int64 [B, 1+K], own and drawn videos.
            mined: int64 [B, k], -1 where there is none, or None.
        """
        live = rows.get("intra") if not self.remembers_intra else None
        return (
            self._table(rows["first"], self.memory.rows("second"), ids, mined, live),
            self._table(rows["second"], self.memory.rows("first"), ids, mined, live),
        )

    def _table(self, query: Tensor, other: Tensor, ids: Tensor, mined: Tensor | None, live: Tensor | None) -> Table:
        parts, positive = [memory_scores(query, other, ids)], torch.zeros_like(ids, dtype=torch.bool)
        valid = torch.ones_like(positive)
        positive[:, 0] = True
        if mined is not None:
            found = mined >= 0
            parts.append(memory_scores(query, other, mined.clamp(min=0)))
            valid[:, 1:] = ~(ids[:, 1:, None] == mined[:, None]).any(2)
            positive, valid = torch.cat([positive, found], 1), torch.cat([valid, found], 1)
        width = positive.shape[1]
        if self.remembers_intra:
            parts.append(memory_scores(query, self.memory.rows("intra"), ids))
        elif live is not None:
            parts.append((query * unit_rows(live).to(query.dtype)).sum(1, keepdim=True))
        logits = torch.cat(parts, 1) / self.options.temperature
        more = logits.shape[1] - width
        rest = positive.new_zeros(len(ids), more)
        return Table(logits, torch.cat([positive, rest], 1), torch.cat([valid, ~rest], 1), width if more else None)

    def _loss(self, table: Table, number: int) -> Tensor:
        if self.iic.loss == "softmax":
            return mil_nce(table.logits, table.positive, table.valid)
        if self._open is None:
            self._open = {place for place, known in enumerate(self.log_z.tolist()) if math.isnan(known)}
        log_z = self.log_z[number].clone()
        if number in self._open:
            log_z = constant_of(table.logits.detach(), len(self.drawn_from))
            if self.training:
                self.log_z[number] = log_z
                self._open.discard(number)
        return binary_nce(table.logits, log_z.to(table.logits.dtype), len(self.drawn_from))

    @torch.no_grad()
    def _mined(self, batch: ClipBatch) -> Tensor | None:
        """Videos int64 [B, k] that the cascade picks for this rank's rows, -1 where there are fewer; None: no cascade yet."""
        if self.plan is None or self.period(batch.step) == "warmup":
            return None
        k = topk_at(self.mining, batch.epoch)
        known = self.memory.seen[batch.instance]
        filled = self._filled(known)
        if not filled:
            return torch.full((batch.size, k), -1, device=known.device)
        bank = self.memory.rows("second"), self.memory.rows("first")
        if self.space is not None:
            written = batch.size * batch.parts * world()
            bank = self.space(batch.step, written, (), bank, self.memory.seen, filled)[1]
        queries = bank[0][batch.instance], bank[1][batch.instance]
        on_device = known.is_cuda and self.backend in ("auto", "torch")
        ids = (self._mined_there if on_device else self._mined_here)(queries, bank, batch, self.plan, filled)
        return ids[:, :k].masked_fill(~known[:, None], -1)

    def _filled(self, known: Tensor) -> int:
        """Videos seen so far, 0 where none of these rows' was: one wait, until all that are trained on have been seen."""
        if self._all_seen:
            return len(self.drawn_from)
        filled, some = torch.stack([self.memory.seen.sum(), known.any().long()]).tolist()
        self._all_seen = filled == len(self.drawn_from)
        return filled if some else 0

    def _mined_there(self, queries: _Rows, bank: _Rows, batch: ClipBatch, plan: CascadePlan, filled: int) -> Tensor:
        """On a GPU nothing leaves it."""
        from vidssl.mining.select_torch import mined_on_device

        source = source_of(batch.instance, batch.group)
        forbidden = (source[:, None] == self.memory.source) | ~self.memory.seen
        return mined_on_device(queries, bank, plan, forbidden, filled)

    def _mined_here(self, queries: _Rows, bank: _Rows, batch: ClipBatch, plan: CascadePlan, filled: int) -> Tensor:
        from vidssl.mining.cascade import mine  # heavy, and a run without the cascade never needs it

        if self._groups is None or self._groups[0] != filled:  # a video has been seen for the first time
            self._groups = filled, GroupIndex(self.memory.source.cpu().numpy())
        exclude = self._groups[1].exclusions(source_of(batch.instance, batch.group).cpu().numpy())
        result = mine(queries, bank, plan, exclude=exclude, valid=self.memory.seen, backend=self.backend)
        return torch.as_tensor(result.ids, device=batch.instance.device)

    def _remember(self, rows: Mapping[str, Tensor], batch: ClipBatch) -> None:
        columns = {".instance": batch.instance, ".group": batch.group, ".start": batch.start}
        named = {name: rows[name].detach() for name in self.memory.names}
        whole = self.whole_step(batch, {**named, **columns})
        if whole is None:
            return
        instance = gather_rows(whole[".instance"])
        first, twice = first_rows(instance, gather_rows(whole[".start"]))
        for _, found in self._looks.note(batch.step, twice):
            check_once(int(found))
        everyone = {name: gather_rows(whole[name])[first] for name in self.memory.names}
        self.memory.update(everyone, instance, gather_rows(whole[".group"])[first])

    @torch.no_grad()
    def _metrics(
        self,
        raw: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        tables: tuple[Table, Table],
        losses: list[Tensor],
        mined: Tensor | None,
    ) -> dict[str, float | Tensor]:
        first, second = (loss.detach() for loss in losses)
        metrics: dict[str, float | Tensor] = {
            "loss/total": first + second,
            "loss/first": first,
            "loss/second": second,
            "train/acc@1": own_accuracy(tables[0].logits, tables[0].valid),
            "iic/norm": torch.cat([raw["first"], raw["second"]]).float().norm(dim=1).mean(),
        }
        if tables[0].intra is not None:
            pairs = zip(tables, (rows["first"], rows["second"]), strict=True)
            margins = [self._margin(table, query) for table, query in pairs]
            metrics["iic/intra_margin"] = torch.cat(margins).mean()
        if mined is not None:
            count = (mined >= 0).sum(1).float()
            metrics["mining/positives_mean"] = 1 + count.mean()
            metrics["mining/mined_mean"] = count.mean()
            metrics["mining/fallback_rate"] = (count == 0).float().mean()
        return metrics

    def _margin(self, table: Table, query: Tensor) -> Tensor:
        """Cosine with the positive minus cosine with the own intra-negative, [B]: memory rows are unit rows."""
        assert table.intra is not None  # for the type checker
        gap = table.logits[:, 0] - table.logits[:, table.intra]
        return gap * self.options.temperature / query.norm(dim=1).clamp(min=1e-12)


def _read_again(method: nn.Module, _: object) -> None:
    """What is known of the buffers without waiting for the device: they were written from outside."""
    assert isinstance(method, IIC)  # for the type checker: a hook is handed a module
    method._groups, method._open, method._all_seen = None, None, False


def _check(recipe: Recipe) -> None:
    method, model = recipe.method, recipe.model
    first, second = (channels_of(view, model.flow_channels) for view in (method.view, method.second_view))
    if first != second:
        raise RecipeError(
            f"method.name=iic has one network for {method.view} ({first} channels) and {method.second_view} ({second}); "
            "type method.second_view=residual, u or v"
        )
    if method.second_from is not None:
        raise RecipeError(
            f"method.second_from={method.second_from}: iic has one network for both views; type method.first_from"
        )
    if recipe.mines and recipe.mining.traits.reads_labels:
        raise RecipeError(
            f"mining.strategy={recipe.mining.strategy} reads labels, of which iic's memories keep none; "
            f"type mining.strategy=cascade, {', '.join(RIVALS[:-1])} or {RIVALS[-1]}"
        )
    if recipe.mines and recipe.mining.weights == "agreement":
        raise RecipeError(
            "mining.weights=agreement weighs what is mined in a queue, and iic mines in memories; leave mining.weights out"
        )
    if recipe.trainer.accumulate > 1 and method.iic.loss == "nce":
        raise RecipeError("method.iic.loss=nce takes its constant from one whole batch; type trainer.accumulate=1")
    if recipe.mines and method.iic.loss == "nce":
        raise RecipeError(
            "method.iic.loss=nce knows one positive, method.cascade=true brings more; type method.iic.loss=softmax"
        )
