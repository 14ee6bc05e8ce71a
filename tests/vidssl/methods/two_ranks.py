"""Two gloo ranks (or more) for a test: its own file, run as a module by as many processes, each leaving what it found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WORLD = 2


def as_one_rank(find: Callable[[int], dict[str, Any]]) -> None:
    """The script's side (`python -m MODULE FOLDER RANK WORLD`): join the others and save what `find(rank)` gives."""
    folder, me, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=me, world_size=world)
    torch.save(find(me), f"{folder}/rank-{me}.pt")
    dist.destroy_process_group()


def found_by_ranks(file: str, folder: Path, world: int = WORLD) -> list[dict[str, Any]]:
    """The test's side: start all ranks and read what they found."""
    root = Path(__file__).parents[3]
    module = ".".join(Path(file).relative_to(root).with_suffix("").parts)
    command = [sys.executable, "-m", module, str(folder)]
    started = [
        subprocess.Popen([*command, str(me), str(world)], cwd=root, stderr=subprocess.PIPE, text=True)
        for me in range(world)
    ]
    try:
        complaints = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * world, complaints
    return [torch.load(folder / f"rank-{me}.pt", weights_only=True) for me in range(world)]
