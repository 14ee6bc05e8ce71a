"""Is everything there, and does it live together? Driver, NVDEC library, FAISS for CUDA 12 beside torch and DALI for 13."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from typing import Any

import numpy as np

from benchmarks.checking import Note, Setting
from benchmarks.hardware import gpus, versions

__all__ = ["environment", "faiss_after_torch", "faiss_before_torch", "faiss_torch_dali"]

LIBRARIES = ("libcuda.so.1", "libnvcuvid.so.1", "libnvidia-ml.so.1", "libnvidia-opticalflow.so.1")
CUDA_NAMES = ("libcudart", "libcublas", "libcurand", "libnvcuvid")


def environment(setting: Setting, note: Note) -> None:
    """Facts only; without `libnvcuvid` there is no NVDEC, and without the optical-flow library no hardware flow.

    Raises:
        RuntimeError: a GPU is asked for and torch cannot use it, or NVDEC's library is missing.
    """
    note("devices", [device["name"] for device in gpus()])
    note("driver", gpus()[0]["driver"] if gpus() else "none")
    note("versions", versions())
    missing = []
    for library in LIBRARIES:
        try:
            ctypes.CDLL(library)
            note(library, "loads")
        except OSError as error:
            missing.append(library)
            note(library, str(error))
    for variable in ("NVIDIA_DRIVER_CAPABILITIES", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"):
        note(variable, os.environ.get(variable, "not set"))
    _torch_facts(note)
    if not setting.on_gpu:
        return
    if not note.found["torch_cuda"]:
        raise RuntimeError("torch sees no CUDA device")
    if "libnvcuvid.so.1" in missing:
        raise RuntimeError(
            "libnvcuvid is missing, so there is no NVDEC: in a container set NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
        )


def faiss_after_torch(setting: Setting, note: Note) -> None:
    """PyTorch takes the device first, then FAISS does."""
    _use("torch", setting, note)
    _use("faiss", setting, note)
    _use("torch", setting, note)  # still alive?


def faiss_before_torch(setting: Setting, note: Note) -> None:
    """FAISS takes the device first, then torch does."""
    _use("faiss", setting, note)
    _use("torch", setting, note)
    _use("faiss", setting, note)


def faiss_torch_dali(setting: Setting, note: Note) -> None:
    """DALI, torch and FAISS in turn, twice, in one process."""
    for name in ("dali", "torch", "faiss") * 2:
        _use(name, setting, note)


def _use(name: str, setting: Setting, note: Note) -> None:
    """Import one library, make it work once and check its answer; note the CUDA libraries it brought."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 32)).astype(np.float32)
    expected = np.argsort(-(rows[:20] @ rows.T), axis=1, kind="stable")[:, :5]
    work = {"torch": _torch_top, "faiss": _faiss_top, "dali": _dali_copy}[name]
    found = work(rows, setting)
    if not np.array_equal(found, expected):
        raise RuntimeError(f"{name} answers wrongly beside the others")
    note("cuda_libraries", _mapped_libraries())
    note("order", [*note.found.get("order", []), name])


def _torch_top(rows: np.ndarray, setting: Setting) -> np.ndarray:
    import torch

    bank = torch.as_tensor(rows, device=setting.device)
    return (bank[:20] @ bank.T).topk(5, dim=1).indices.cpu().numpy()


def _faiss_top(rows: np.ndarray, setting: Setting) -> np.ndarray:
    faiss: Any = importlib.import_module("faiss")
    if not setting.on_gpu:
        return faiss.knn(rows[:20], rows, 5, faiss.METRIC_INNER_PRODUCT)[1]
    if faiss.get_num_gpus() == 0:
        raise RuntimeError("faiss.get_num_gpus() is 0: the wheel sees no device")
    resources = faiss.StandardGpuResources()
    return faiss.knn_gpu(resources, rows[:20], rows, 5, metric=faiss.METRIC_INNER_PRODUCT)[1]


def _dali_copy(rows: np.ndarray, setting: Setting) -> np.ndarray:
    """A pipeline that carries the rows to the device and back; the search is then done in numpy."""
    dali: Any = importlib.import_module("nvidia.dali")
    fn, pipeline_def = dali.fn, dali.pipeline_def

    @pipeline_def(batch_size=1, num_threads=1, device_id=0 if setting.on_gpu else None)
    def graph() -> Any:
        given = fn.external_source(source=lambda: [rows], batch=True)
        return given.gpu() if setting.on_gpu else given

    pipeline = graph()
    pipeline.build()
    (out,) = pipeline.run()
    back = np.asarray(out.as_cpu()[0] if setting.on_gpu else out[0])
    return np.argsort(-(back[:20] @ back.T), axis=1, kind="stable")[:, :5]


def _torch_facts(note: Note) -> None:
    try:
        import torch
    except ImportError as error:
        note("torch_cuda", False)
        note("torch_error", str(error))
        return
    note("torch_cuda", torch.cuda.is_available())
    note("torch_built_for", str(torch.version.cuda))
    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        note("device", f"{facts.name}, capability {facts.major}.{facts.minor}, {facts.multi_processor_count} SMs")
        note("memory_gib", facts.total_memory / 2**30)


def _mapped_libraries() -> list[str]:
    """CUDA libraries in this process by file name: two majors of one library side by side can be seen here."""
    if not sys.platform.startswith("linux"):
        return []
    with open("/proc/self/maps") as maps:
        paths = {line.split()[-1] for line in maps if "/" in line}
    names = {os.path.basename(path) for path in paths}
    return sorted(name for name in names if name.startswith(CUDA_NAMES))
