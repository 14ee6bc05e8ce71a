"""Small recipes, batches and positives, and a slow main step, for the tests of methods."""

import math

import numpy as np
import torch

from vidssl.batch import ClipBatch, Positives
from vidssl.recipe import Recipe
from vidssl.views import make_views

DIM, ROWS, QUEUE = 8, 4, 10


def a_recipe(name="cpr", where="actor", mining=None, **method):
    given = {"warmup_steps": 3, "queue": QUEUE, "momentum": 0.9} | method
    return Recipe.model_validate(
        {
            "model": {"dim": DIM, "width": 2},
            "method": {"name": name} | given,
            "mining": {"where": where, "topk": 2, "stages": 3, "ratio": 0.6} | (mining or {}),
        }
    )


def a_batch(step, videos=24, rows=ROWS, epoch=0):
    """Rows of two clips; videos come in threes of one source, labels are unknown."""
    generator = torch.Generator().manual_seed(1000 + step)
    rgb = torch.randn(rows, 2, 3, 4, 16, 16, generator=generator)
    instance = torch.randperm(videos, generator=generator)[:rows]
    views = make_views(rgb, ("rgb", "residual"))
    start = torch.zeros(rows, 2, dtype=torch.int64)
    return ClipBatch(views, instance, instance // 3, torch.full((rows,), -1), epoch, step, start)


def some_positives(step, rows=ROWS, k=2):
    rng = np.random.default_rng(step)
    ids = rng.integers(0, 24, (rows, k))
    ids[:, 1] = (ids[:, 0] + 1 + ids[:, 1] % 23) % 24  # a video is mined once
    ids[0] = -1
    ids[1, 1] = -1
    vectors = rng.standard_normal((rows, k, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return Positives(ids, np.where(ids[:, :, None] >= 0, vectors, 0), np.where(ids[:, 0] >= 0, step, -1))


def run(method, steps, optimizer):
    """Losses of some steps, with positives where the method asks for them."""
    losses = []
    for step in steps:
        given = some_positives(step) if method.needs_positives(step) else None
        output = method(a_batch(step), given)
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    return losses


def adam(method):
    return torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-3, weight_decay=1e-2)


def slow_mil_nce(query, key, queue, batch, options, mined, given=None, dropped=False):
    """The loss of the main phase row by row with Python sums.

    Args:
        query: [B, D] unit rows.
        key: [B, D] unit rows.
        queue: Before the step.
        batch: The step's batch.
        options: The recipe's method section.
        mined: For each row the slots that were mined in the queue.
        given: Positives from the bank, or None.
        dropped: Whether `drop_p` acts in this step.
    """
    query, key, total = query.double(), key.double(), 0.0
    for b in range(batch.size):
        bank = [] if given is None else [(j, i) for j, i in enumerate(given.ids[b].tolist()) if i >= 0]
        columns = [(query[b] @ key[b], True)]
        for slot in range(queue.size):
            instance = int(queue.instance[slot])
            if instance >= 0 and instance not in [i for _, i in bank]:
                good = int(queue.group[slot]) == int(batch.group[b]) or slot in mined[b]
                columns.append((query[b] @ queue.rows("rgb")[slot].double(), good))
        columns += [(query[b] @ torch.from_numpy(given.vectors[b, j]).double(), True) for j, _ in bank]
        if any(good for _, good in columns[1:]):
            if options.self_positive == "drop_p" and dropped:
                columns[0] = (columns[0][0], False)
            elif options.self_positive == "remove":
                columns = columns[1:]
        weights = [(math.exp(float(s) / options.temperature), good) for s, good in columns]
        total -= math.log(sum(w for w, good in weights if good) / sum(w for w, _ in weights))
    return total / batch.size
