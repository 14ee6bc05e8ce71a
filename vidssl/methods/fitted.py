"""The space in which a queue or a memory is mined: fitted now and then on what it holds, and kept in the checkpoint.

It is fitted when mining begins, and again when half of the rows have been written anew (or at every multiple of
`mining.refit_steps`): from the step and the state dict alone, so a resumed run mines in the very space of the run that
was cut.
Queues and memories are equal on all ranks, and so are the spaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from vidssl.mining.space import AskedSpace, Space, SpaceKind, fit_space, project, refit_due
from vidssl.recipe import Mining

__all__ = ["FittedSpace", "fitted_space"]

_KINDS: Final[tuple[SpaceKind, ...]] = ("raw", "white", "canonical")


def fitted_space(mining: Mining, dim: int, seed: int) -> FittedSpace | None:
    """The space of a recipe that mines inline; None where rows stay as they are, and the state dict as it was."""
    if mining.where != "inline" or mining.space == "raw":
        return None
    return FittedSpace(mining.space, mining.refit_steps, dim, seed)


class FittedSpace(nn.Module):
    """The map of two views (or of one) as buffers; see `vidssl.mining.space`.

    Args:
        kind: What is asked for.
        refit_steps: Steps from one fit to the next; None: until half of the rows are new.
        dim: D.
        seed: Of the fits.

    Attributes:
        means: [2, D] of the main and of the aux view.
        matrices: [2, D, D]; of R < D columns the others are zeros.
        fitted: int64 [2]: the kind by number, and the step of the fit (−1: none yet).
    """

    means: Tensor
    matrices: Tensor
    fitted: Tensor

    def __init__(self, kind: AskedSpace, refit_steps: int | None, dim: int, seed: int) -> None:
        super().__init__()
        self.kind: AskedSpace = kind
        self.refit_steps, self.seed = refit_steps, seed
        self.register_buffer("means", torch.zeros(2, dim))
        self.register_buffer("matrices", torch.zeros(2, dim, dim))
        self.register_buffer("fitted", torch.tensor([0, -1]))
        self._known: tuple[int, int] | None = None
        self.register_load_state_dict_post_hook(_read_again)
        self._news: list[str] = []

    @torch.no_grad()
    def forward(
        self,
        step: int,
        written: int,
        queries: Sequence[Tensor],
        bank: Sequence[Tensor],
        valid: Tensor | None = None,
        filled: int | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Queries and bank in the space of this step.

        Args:
            step: Of the batch.
            written: Rows that enter the bank in one step, of all ranks.
            queries: [B, D] rows of the main and of the aux view; none where the bank's own rows ask.
            bank: [N, D] rows of the same views; one tensor twice where one stream is both.
            valid: Bool [N], rows that hold something; None: all.
            filled: How many those are.
        """
        if self.training and self._due(step, written, len(bank[0]) if filled is None else filled):
            self._fit(step, bank, valid)
        if _KINDS[self._state()[0]] == "raw":
            return list(queries), list(bank)
        maps = list(zip(self.means, self.matrices, strict=True))
        with torch.autocast(bank[0].device.type, enabled=False):
            return (
                [project(rows, *one) for rows, one in zip(queries, maps, strict=False)],
                [project(rows, *one) for rows, one in zip(bank, maps, strict=True)],
            )

    def forget(self) -> None:
        """The buffers were written from outside."""
        self._known = None

    def news(self) -> list[str]:
        """Which space it is now and why, where that has changed since the last call."""
        said, self._news = self._news, []
        return said

    def _state(self) -> tuple[int, int]:
        """What `fitted` says, read from the device once: no step waits for it."""
        if self._known is None:
            kind, step = self.fitted.tolist()
            self._known = kind, step
        return self._known

    def _due(self, step: int, written: int, count: int) -> bool:
        at = self._state()[1]
        return refit_due(step, at, self.refit_steps, (step - at) * written / max(count, 1))

    def _fit(self, step: int, bank: Sequence[Tensor], valid: Tensor | None) -> None:
        former = self._state()
        there = [rows if valid is None else rows[valid] for rows in dict.fromkeys(bank)]
        space = fit_space(
            self.kind, {str(place): rows.cpu().numpy() for place, rows in enumerate(there)}, seed=self.seed
        )
        number = _KINDS.index(space.kind)
        self._take(space)
        self._known = number, step
        self.fitted.copy_(torch.tensor(self._known))
        if former[1] < 0 or former[0] != number:
            self._news.append(f"mining space from step {step}: {space.describe()}")

    def _take(self, space: Space) -> None:
        self.means.zero_()
        self.matrices.zero_()
        for place in range(2 if space.views else 0):
            view = space.views[min(place, len(space.views) - 1)]
            matrix = torch.from_numpy(space.matrices[view])
            self.means[place] = torch.from_numpy(space.means[view])
            self.matrices[place, :, : matrix.shape[1]] = matrix


def _read_again(space: nn.Module, _: object) -> None:
    assert isinstance(space, FittedSpace)  # for the type checker: a hook is handed a module
    space.forget()
