"""Do the three papers' ideas work on generated videos? Claims registered first, then five seeds, whatever comes out.

    python -m benchmarks.science [a] [b] [c] --seeds 0 1 2 3 4

(a) CPR's cascade against its rivals, (b) IIC with and without intra-negatives, (c) ViCC's second stream. What is claimed,
against what and after how many updates is printed and stored before the first seed runs; finished seeds are stored as
they come and not run again, so that a run that was cut off goes on. Seeds from 100 on are for pilots: they are shown, never stored.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.hardware import hardware, versions
from vidssl.files import write_json

__all__ = ["main", "run_experiment", "summary"]

RESULT = Path(__file__).parent / "results" / "science.json"
PILOT_FROM = 100

Table = Mapping[str, float]


def main(words: Sequence[str] | None = None) -> int:
    """Run the experiments that were named (all when none is); 0 whatever they find."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=[], metavar="a b c")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "vidssl-science")
    parser.add_argument("--pictures", type=Path, help="folder for one picture of each experiment")
    given = parser.parse_args(words)
    for name in given.experiments or ["a", "b", "c"]:
        if name not in ("a", "b", "c"):
            parser.error(f"there is no experiment '{name}'; name some of a b c")
        module = importlib.import_module(f"benchmarks.science_{name}")
        entry = run_experiment(name, module, module.Setup(), given.seeds, given.result, given.cache)
        if given.pictures and entry["seeds"]:
            from benchmarks.science_picture import draw

            print(f"picture: {draw(name, entry, given.pictures)}")
    return 0


def run_experiment(
    name: str, module: Any, setup: Any, seeds: Sequence[int], result: Path, cache: Path
) -> dict[str, Any]:
    """One experiment: print what is registered, run what is missing, print what came out.

    Args:
        name: a, b or c.
        module: Has `register`, `comparisons` and `run`.
        setup: Its sizes.
        seeds: Those wanted.
        result: JSON file that keeps finished seeds.
        cache: Folder of the videos.

    Returns:
        The experiment's part of the JSON file: every registered seed that is finished.

    Raises:
        SystemExit: the file holds seeds of another registration.
    """
    registered = _plain(module.register(setup))
    print(f"=== experiment ({name}), registered before the run ===\n{json.dumps(registered, indent=1)}", flush=True)
    entry = _begin(name, registered, result)
    missing = [seed for seed in seeds if str(seed) not in entry["seeds"]]
    if missing:
        _run_seeds(name, module, setup, missing, entry, result, cache)
    finished = {key: one["values"] for key, one in entry["seeds"].items() if int(key) in seeds}
    comparisons = module.comparisons(setup)
    _print(finished, summary(list(finished.values()), comparisons) if len(finished) > 1 else None)
    entry = _registered(entry)
    if len(entry["seeds"]) > 1:
        entry["summary"] = summary([one["values"] for one in entry["seeds"].values()], comparisons)
        _store(name, entry, result)
    return entry


def summary(tables: Sequence[Table], comparisons: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """Mean and deviation of every column over seeds, and of every difference with its signs.

    Args:
        tables: One of each seed.
        comparisons: (what, arm, rival); arm minus rival.
    """
    columns = {key: _spread([table[key] for table in tables]) for key in tables[0]}
    pairs = {what: _spread([table[arm] - table[rival] for table in tables]) for what, arm, rival in comparisons}
    for row in pairs.values():
        row["signs"] = "".join("+" if value > 0 else "-" if value < 0 else "0" for value in row["values"])
    return {"columns": columns, "differences": pairs}


def _spread(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values), "values": values}


def _run_seeds(
    name: str, module: Any, setup: Any, seeds: Sequence[int], entry: dict[str, Any], result: Path, cache: Path
) -> None:
    import torch

    from benchmarks.science_data import draw_sources, load_world

    torch.set_num_threads(1)
    pool, test = load_world(setup.world, cache)
    for seed in seeds:
        wall, cpu = time.perf_counter(), time.process_time()
        values = module.run(setup, draw_sources(pool, seed), test, seed)
        spent = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
        print(f"({name}) seed {seed}: {spent['cpu_seconds']:.0f} CPU seconds", flush=True)
        entry["seeds"][str(seed)] = {"values": values, **spent}
        if seed < PILOT_FROM:
            _store(name, entry, result)


def _begin(name: str, registered: dict[str, Any], result: Path) -> dict[str, Any]:
    entry = _read(result).get("experiments", {}).get(name, {"registration": registered, "seeds": {}})
    if entry["registration"] != registered:
        if entry["seeds"]:
            raise SystemExit(f"{result} holds seeds of another registration of ({name}); give another --result")
        entry = {"registration": registered, "seeds": {}}
    _store(name, entry, result)
    return entry


def _store(name: str, entry: dict[str, Any], result: Path) -> None:
    """The file is whole or as it was before; pilots stay out of it."""
    tree = _read(result)
    tree |= {"command": "python -m benchmarks.science", "hardware": hardware(), "versions": versions()}
    tree["experiments"] = {**tree.get("experiments", {}), name: _registered(entry)}
    result.parent.mkdir(parents=True, exist_ok=True)
    write_json(result, tree)


def _registered(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "seeds": {seed: one for seed, one in entry["seeds"].items() if int(seed) < PILOT_FROM}}


def _read(result: Path) -> dict[str, Any]:
    return json.loads(result.read_text()) if result.exists() else {}


def _plain(tree: object) -> dict[str, Any]:
    """As it will be read back from JSON (tuples are lists there)."""
    return json.loads(json.dumps(tree))


def _print(finished: Mapping[str, Table], said: Mapping[str, Any] | None) -> None:
    if not finished:
        return
    print("seed".ljust(54) + "".join(key.rjust(8) for key in finished) + "    mean      sd")
    for column in next(iter(finished.values())):
        values = "".join(f"{table[column]:8.3f}" for table in finished.values())
        print(column.ljust(54) + values + (_mean_sd(said["columns"][column]) if said else ""))
    for what, row in (said["differences"] if said else {}).items():
        values = "".join(f"{value:+8.3f}" for value in row["values"])
        print(what.ljust(54) + values + _mean_sd(row) + f"  {row['signs']}")


def _mean_sd(row: Mapping[str, float]) -> str:
    return f"{row['mean']:8.3f}{row['sd']:8.3f}"


if __name__ == "__main__":
    sys.exit(main())
