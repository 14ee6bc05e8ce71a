"""What works on this GPU, and how fast? One command, many small checks, one JSON file.

    python -m benchmarks.gpu              every check → benchmarks/results/gpu_HARDWARE_DATE.json
    python -m benchmarks.gpu --list       their names and questions
    python -m benchmarks.gpu nvdec faiss  those whose name begins so
    python -m benchmarks.gpu --part 3     those of one part, of which each ends within nine minutes
    python -m benchmarks.gpu --rehearse   on the CPU with tiny sizes: that the checks themselves work

Each check runs in a child process with a time limit, so that a crash or a hang of one never stops the rest; what it had
found by then is kept. Exit code 0: all fine; 1: a check failed; 3: there is no GPU here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.checking import Note, Setting, Skipped
from benchmarks.hardware import RESULTS, gpus, result_path, write_result

ROOT = Path(__file__).parents[1]
NO_GPU = "benchmarks.gpu: no CUDA GPU is visible on this machine, so there is nothing to measure; run it where nvidia-smi lists one."


@dataclass(frozen=True)
class Check:
    """One question to the machine.

    Attributes:
        name: As on the command line and in the results.
        place: module:function, imported in the child only.
        question: For people.
        limit_s: Seconds after which it is killed.
    """

    name: str
    place: str
    question: str
    limit_s: float = 120


CHECKS = (
    Check("environment", "checks_device:environment", "driver, CUDA, NVDEC library, devices", 60),
    Check("nvdec", "checks_video:nvdec", "does DALI decode H.264 and VP9 on the GPU at all?", 60),
    Check(
        "faiss-after-torch", "checks_device:faiss_after_torch", "does FAISS (CUDA 12) load beside torch (CUDA 13)?", 90
    ),
    Check("faiss-before-torch", "checks_device:faiss_before_torch", "the same, loaded first", 90),
    Check("faiss-torch-dali", "checks_device:faiss_torch_dali", "all three in one process", 120),
    Check(
        "decode-exact", "checks_video:decode_exact", "the right frames, and how far from PyAV's, at many starts", 120
    ),
    Check("decode-sizes", "checks_video:decode_sizes", "which frame sizes does NVDEC take?", 120),
    Check("decode-recovery", "checks_video:decode_recovery", "does a broken video cost more than its batch?", 60),
    Check("decode-threads", "checks_video:decode_threads", "clips/s against num_threads", 180),
    Check(
        "decode-slices",
        "checks_video:decode_slices",
        "clips/s with and without cutting fragments; GOP; frame size",
        240,
    ),
    Check("decode-many-sizes", "checks_video:decode_many_sizes", "clips/s of one size and of many", 120),
    Check("decode-python", "checks_video:decode_python", "clips/s of PyAV by threads, the rival of NVDEC", 120),
    Check(
        "optical-flow", "checks_video:optical_flow", "hardware flow: grid 1, 2, 4, time and error on a known shift", 120
    ),
    Check(
        "cascade",
        "checks_mining:cascade",
        "torch backend equal to the oracle; ms per batch up to 4M slots, by dtype",
        300,
    ),
    Check("inline", "checks_mining:inline", "mining in the queue without a wait of the host", 90),
    Check("knn", "checks_mining:knn", "faiss.knn_gpu against torch mm + topk", 240),
    Check("bank-push", "checks_mining:bank_push", "embeddings from the device into the bank", 90),
    Check("bank-load", "checks_bank:bank_load", "the bank's actor under simulated workers: mined, fallback, age", 240),
    Check("train-step", "checks_training:train_step", "S3D bf16, 16x112² and 32x128²: clips/s, memory", 240),
    Check("step-words", "checks_training:step_words", "compile, channels_last, fused, fp32: ms of the same step", 300),
    Check("kernels", "checks_run:kernels", "profiler: how busy is the device, which kernels take its time", 120),
    Check("backbones", "checks_methods:backbones", "every network: equal to the CPU's, ms of a bf16 step", 240),
    Check("switches", "checks_methods:switches", "channels_last_3d and checkpointing: ms, memory", 180),
    Check("methods", "checks_methods:methods", "a bf16 step of every method: finite, ms", 240),
    Check("sinkhorn", "checks_methods:sinkhorn", "assignments equal to the CPU's, finite from fp16", 90),
    Check("loader", "checks_training:loader", "packed videos → ClipBatch on the device, nvdec and py", 300),
    Check("pixels", "checks_run:pixels", "the same clips by NVDEC and by PyAV: how far apart", 120),
    Check("training", "checks_run:training", "a whole training: rate, wait, NVDEC use, what the bank costs", 480),
)

PART_S = 540.0
"""Limits of the checks of one part together: what a machine that is lent for ten minutes can be asked at once."""


def parts() -> list[list[Check]]:
    """The checks in their order, in parts that end within nine minutes whatever happens."""
    found: list[list[Check]] = []
    for check in CHECKS:
        if not found or sum(one.limit_s for one in (*found[-1], check)) > PART_S:
            found.append([])
        found[-1].append(check)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks; returns the exit code."""
    args = _parser().parse_args(argv)
    if args.list:
        print(
            "\n".join(
                f"{number}  {one.name:<20}{one.question}" for number, part in enumerate(parts(), 1) for one in part
            )
        )
        return 0
    if args.part is not None and not 1 <= args.part <= len(parts()):
        print(f"benchmarks.gpu: --part {args.part}: there are parts 1 to {len(parts())}; see --list", file=sys.stderr)
        return 2
    asked = CHECKS if args.part is None else parts()[args.part - 1]
    chosen = [check for check in asked if not args.names or any(check.name.startswith(name) for name in args.names)]
    if not chosen:
        print(f"benchmarks.gpu: no check is called {', '.join(args.names)}; see --list", file=sys.stderr)
        return 2
    setting = Setting(device="cpu" if args.rehearse else "cuda", small=args.rehearse or args.small)
    if args.child:
        return run_here(next(check for check in CHECKS if check.name == args.names[0]), setting, Path(args.child))
    if not args.rehearse and not gpus():
        print(NO_GPU, file=sys.stderr)
        return 3
    path = result_path("gpu-rehearsal" if args.rehearse else "gpu", Path(args.out))
    results = run_all(chosen, setting, path)
    print(f"→ {path}")
    return 0 if all(result["ok"] or result["skipped"] for result in results) else 1


def run_all(checks: Sequence[Check], setting: Setting, path: Path) -> list[dict[str, Any]]:
    """Run checks one after the other; the file is written after each, so that a cut-off run keeps what it has."""
    results: list[dict[str, Any]] = []
    for check in checks:
        print(f"{check.name:<20}", end="", flush=True)
        results.append(run_in_child(check, setting))
        print(_line(results[-1]), flush=True)
        write_result(path, {"setting": vars(setting), "checks": results})
    return results


def run_in_child(check: Check, setting: Setting) -> dict[str, Any]:
    """One check in its own process group: {name, ok, skipped, seconds, figures, error}."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vidssl-gpu-") as folder:
        found, said = Path(folder) / "found.json", Path(folder) / "said.txt"
        command = [sys.executable, "-m", "benchmarks.gpu", check.name, "--child", str(found)]
        command += ["--rehearse"] if setting.device == "cpu" else ["--small"] if setting.small else []
        with said.open("w") as log:
            child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
            try:
                code = child.wait(check.limit_s)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                code = None
        notes = json.loads(found.read_text()) if found.is_file() else {}
        error = notes.pop("error", "")
        if code is None:
            error = f"killed after {check.limit_s:.0f} s"
        elif code != 0 and not error:
            error = f"exit code {code}: {' | '.join(said.read_text(errors='replace').strip().splitlines()[-3:])}"
    skipped = notes.pop("skipped", "")
    seconds = round(time.monotonic() - began, 2)
    ok = code == 0 and not error and not skipped
    return {"name": check.name, "ok": ok, "skipped": skipped, "seconds": seconds, "figures": notes, "error": error}


def run_here(check: Check, setting: Setting, found: Path) -> int:
    """The child's side: run the check's function and note what it finds."""
    note = Note(found)
    module, _, function = check.place.partition(":")
    try:
        getattr(importlib.import_module(f"benchmarks.{module}"), function)(setting, note)
    except Skipped as reason:
        note("skipped", str(reason))
    except ModuleNotFoundError as error:
        note("error", f"not installed: {error.name}")
    except Exception as error:  # whatever it is, it is the finding
        note("error", f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
    return 0


def _line(result: dict[str, Any]) -> str:
    word = "ok" if result["ok"] else "skipped" if result["skipped"] else "FAILED"
    said = result["error"] or result["skipped"] or _short(result["figures"])
    return f"{word:<8}{result['seconds']:>7.1f} s  {said}"


def _short(figures: dict[str, Any]) -> str:
    text = ", ".join(f"{key} {value}" for key, value in figures.items() if not isinstance(value, dict | list))
    return text if len(text) <= 110 else f"{text[:107]}…"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("names", nargs="*", help="checks to run (default: all)")
    parser.add_argument("--list", action="store_true", help="part, name and question of each")
    parser.add_argument("--part", type=int, help="only the checks of this part")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny: that the checks themselves work")
    parser.add_argument("--small", action="store_true", help="tiny sizes on the GPU")
    parser.add_argument("--out", default=str(RESULTS), help="folder for the JSON file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
