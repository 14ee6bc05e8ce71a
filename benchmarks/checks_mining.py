"""How fast is mining on a GPU, and is it right? The torch cascade against the oracle, FAISS against torch, bank pushes."""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np

from benchmarks.checking import Note, Setting, best_ms
from vidssl.mining.plan import CascadePlan

__all__ = ["bank_push", "cascade", "inline", "knn"]

DIM = 128


def cascade(setting: Setting, note: Note) -> None:
    """`mine(backend="torch")` on the device equals the oracle on integer grids (ties everywhere), then its time.

    Raises:
        RuntimeError: ids differ from the oracle's.
    """
    note("cases_equal_to_oracle", _equal_cases(setting, 10 if setting.small else 60))
    note("copy_gbytes", copied := _copy_gbytes(setting))
    for n_slots in (512,) if setting.small else (2048, 16_384, 240_000, 1_000_000, 4_000_000):
        for dtype in ("float32", "float16", "bfloat16"):
            bank = [_bank_there(setting, n_slots, dtype, seed) for seed in (3, 4)]
            for rows in (16,) if setting.small else (64, 256):
                for stages, ratio in ((7, 0.5), (3, 0.1)):
                    figures = _cascade_figures(setting, bank, rows, CascadePlan(n_slots, stages, ratio, k=5), copied)
                    note(f"N={n_slots} {dtype} B={rows} S={stages} r={ratio}", figures)


def inline(setting: Setting, note: Note) -> None:
    """Mining in a queue, as the published recipes do it: equal to the oracle, no wait of the host, ms per batch.

    Raises:
        RuntimeError: other slots than the oracle's, or (by torch) the host waits for the device.
    """
    import torch

    from vidssl.methods.inline import mine_in_queue
    from vidssl.queue import RingQueue

    rows, views = 8 if setting.small else 64, ("residual", "rgb")
    for n_slots in (256,) if setting.small else (2048, 16_384):
        plan, here = CascadePlan(n_slots, 5 if setting.small else 7, 0.5, k=5), RingQueue(views, n_slots, DIM)
        queries = torch.as_tensor(_unit(rows, 5)), torch.as_tensor(_unit(rows, 6))
        forbidden = torch.rand(rows, n_slots) < 0.01
        expected = mine_in_queue(queries, here, views, forbidden, plan, "oracle", 5)
        there, moved = here.to(setting.device), (queries[0].to(setting.device), queries[1].to(setting.device))
        banned = forbidden.to(setting.device)

        def mined(there: Any = there, moved: Any = moved, banned: Any = banned, plan: CascadePlan = plan) -> Any:
            return mine_in_queue(moved, there, views, banned, plan, "auto", 5)

        ms = best_ms(mined, setting.device)
        if setting.on_gpu:
            torch.cuda.set_sync_debug_mode("error")
        found = mined()
        if setting.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
        differ = int((found.cpu() != expected).any(1).sum())
        note(f"K={n_slots} B={rows}", {"ms": ms, "rows_that_differ_by_rounding": differ})
        if differ > rows // 8:
            raise RuntimeError(f"K={n_slots}: {differ} of {rows} rows picked others than the oracle")


def knn(setting: Setting, note: Note) -> None:
    """Top-k of inner products: torch mm + topk, faiss.knn_gpu (k up to 2048), ms per batch of 64, and equal ids."""
    import torch

    faiss: Any = importlib.import_module("faiss")
    sizes = (512,) if setting.small else (2048, 16384, 100_000, 1_000_000)
    resources = faiss.StandardGpuResources() if setting.on_gpu else None
    for n_slots in sizes:
        bank = _unit(n_slots, 1)
        query = np.ascontiguousarray(bank[:64])
        bank_t, query_t = (torch.as_tensor(rows, device=setting.device) for rows in (bank, query))
        for k in (5, 100, 2048):
            if k > n_slots:
                continue

            def by_torch(bank: Any = bank_t, query: Any = query_t, k: int = k) -> Any:
                return (query @ bank.T).topk(k, dim=1, sorted=False)

            def by_faiss(bank: Any = bank_t, query: Any = query_t, k: int = k) -> Any:
                return _faiss_knn(faiss, resources, query, bank, k)

            times = {"torch": best_ms(by_torch, setting.device), "faiss": best_ms(by_faiss, setting.device)}
            ours, theirs = by_torch().indices.cpu().numpy(), by_faiss()
            shared = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(ours, theirs, strict=True)])
            note(f"N={n_slots} k={k}", {**times, "ids_shared": float(shared)})


def bank_push(setting: Setting, note: Note) -> None:
    """What a step pays for its push: device → host as worker.py does it, through pinned memory, and the write itself."""
    import torch

    from vidssl.batch import Embeddings
    from vidssl.mining.bank import EmbeddingBank

    rows = 8 if setting.small else 64
    bank = EmbeddingBank(1000 if setting.small else 240_000, DIM, ("rgb", "residual"))
    vectors = torch.as_tensor(_unit(rows, 2), device=setting.device)
    views, ids = {"rgb": vectors, "residual": vectors}, np.arange(rows)
    pinned = torch.empty((rows, DIM), pin_memory=setting.on_gpu)

    def plain() -> dict[str, np.ndarray]:
        return {view: one.to("cpu", torch.float32).numpy() for view, one in views.items()}

    def through_pinned() -> None:
        for one in views.values():
            pinned.copy_(one, non_blocking=True)

    note("rows", rows)
    note("to_host_ms", best_ms(plain, setting.device, rounds=50))
    note("to_pinned_ms", best_ms(through_pinned, setting.device, rounds=50))
    host = plain()
    began = time.perf_counter()
    for step in range(20):
        bank.push(Embeddings(views=host, instance=ids, step=step, rank=0))
    note("push_ms", 1e3 * (time.perf_counter() - began) / 20)


def _equal_cases(setting: Setting, cases: int) -> int:
    import torch

    from vidssl.mining.cascade import mine

    rng = np.random.default_rng(0)
    for case in range(cases):
        n_slots, rows, stages = int(rng.integers(40, 3000)), int(rng.integers(1, 9)), int(rng.choice([1, 3, 5, 7]))
        plan = CascadePlan(n_slots, stages, float(rng.uniform(0.8, 1.0)), k=int(rng.integers(1, 6)))
        bank = [rng.integers(-3, 4, size=(n_slots, 16)).astype(np.float32) for _ in range(2)]
        query = [view[:rows] for view in bank]
        exclude = [rng.choice(n_slots, 5, replace=False) for _ in range(rows)]
        slow = mine(query, bank, plan, exclude=exclude, backend="oracle").ids
        on_device = [[torch.as_tensor(rows, device=setting.device) for rows in side] for side in (query, bank)]
        fast = mine(on_device[0], on_device[1], plan, exclude=exclude, backend="torch").ids
        if not np.array_equal(slow, fast):
            raise RuntimeError(f"case {case}: the torch backend differs from the oracle ({plan.describe()})")
    return cases


def _cascade_figures(
    setting: Setting, bank: list[Any], rows: int, plan: CascadePlan, copied: float
) -> dict[str, float]:
    """Milliseconds of a batch and of its products alone, and how much of the memory's rate the reading of the bank is."""
    from vidssl.mining.cascade import mine
    from vidssl.mining.exclusions import Exclusions

    exclude = Exclusions.from_lists([[row] for row in range(rows)])
    query = [view[:rows] for view in bank]
    ours = best_ms(lambda: mine(query, bank, plan, exclude=exclude, backend="torch"), setting.device, budget_s=1)
    products = best_ms(
        lambda: [one @ view.T for one, view in zip(query, bank, strict=True)], setting.device, budget_s=1
    )
    read = sum(view.numel() * view.element_size() for view in bank)
    return {"ms": ours, "gemm_ms": products, "share_of_bandwidth": 1e-6 * read / ours / copied}


def _copy_gbytes(setting: Setting) -> float:
    import torch

    big = torch.ones(1 << (20 if setting.small else 28), device=setting.device)
    return 2e-6 * big.numel() * big.element_size() / best_ms(lambda: big.clone(), setting.device)


def _bank_there(setting: Setting, n_slots: int, dtype: str, seed: int) -> Any:
    """Unit rows made where they are used: 4 M rows made here and sent would take minutes."""
    import torch

    bank = torch.empty((n_slots, DIM), device=setting.device, dtype=getattr(torch, dtype))
    generator = torch.Generator(setting.device).manual_seed(seed)
    for part in bank.split(65_536):
        rows = torch.randn(part.shape, device=setting.device, generator=generator)
        part.copy_(rows / rows.norm(dim=1, keepdim=True))
    return bank


def _faiss_knn(faiss: Any, resources: Any, query: Any, bank: Any, k: int) -> np.ndarray:
    """Ids by FAISS: on a GPU straight from the tensors' memory, as raw pointers, so that no copy is timed."""
    if resources is None:
        return faiss.knn(query.numpy(), bank.numpy(), k, faiss.METRIC_INNER_PRODUCT)[1]
    import torch

    args = faiss.GpuDistanceParams()
    scores = torch.empty((len(query), k), device=bank.device)
    ids = torch.empty((len(query), k), dtype=torch.int64, device=bank.device)
    args.metric, args.k, args.dims = faiss.METRIC_INNER_PRODUCT, k, bank.shape[1]
    args.vectors, args.numVectors = faiss.cast_integer_to_void_ptr(bank.data_ptr()), len(bank)
    args.queries, args.numQueries = faiss.cast_integer_to_void_ptr(query.data_ptr()), len(query)
    args.outDistances = faiss.cast_integer_to_float_ptr(scores.data_ptr())
    args.outIndices = faiss.cast_integer_to_idx_t_ptr(ids.data_ptr())
    args.outIndicesType = faiss.IndicesDataType_I64
    torch.cuda.synchronize()  # FAISS works on streams of its own
    faiss.bfKnn(resources, args)
    resources.syncDefaultStreamCurrentDevice()
    return ids.cpu().numpy()


def _unit(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
