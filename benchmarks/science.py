"""Do the three papers' ideas work on generated videos? Claims registered first, then five seeds, whatever comes out.

    python -m benchmarks.science [a] [b] [c] --seeds 0 1 2 3 4
    python -m benchmarks.science d e --seeds 10 11 12 13 14 15 16 17

(a) CPR's cascade against its rivals, (b) IIC with and without intra-negatives, (c) ViCC's second stream, (d) spaces to mine
in on simulated banks, (e) spaces and strategies in training, in several worlds (`e` is four of them, `e-poor` is one); beside
these `e-more` (other strategies), `e-soft` (weights), `e-cycles`, and the real clips of `e-thermal` and `e-gestures`.
What is claimed, against what and after how many updates is printed and stored before the first seed runs; every seed
goes through all experiments before the next one begins; finished seeds are stored as they come and not run again, so
that a run that was cut off goes on. Seeds from 100 on are for pilots: they are shown, never stored.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.hardware import hardware, versions
from vidssl.files import write_json

if TYPE_CHECKING:
    from benchmarks.science_data import Clips

__all__ = ["Experiment", "experiment_of", "main", "run_experiments", "summary"]

RESULT = Path(__file__).parent / "results" / "science.json"
PILOT_FROM = 100
T_QUANTILE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's .975 quantile for 1, 2, … degrees of freedom; the last stands for all above (a little too wide)."""
WORLDS = {"e": ("e-even", "e-poor", "e-small", "e-shared")}
EXPERIMENTS = ("a", "b", "c", "d", *WORLDS["e"], "e-more", "e-cycles", "e-thermal", "e-soft", "e-gestures")

Table = Mapping[str, float]


@dataclass(frozen=True)
class Experiment:
    """One table of the result file.

    Attributes:
        name: One of `EXPERIMENTS`; what follows the dash is the world.
        module: Has `register`, `comparisons` and `run`.
        setup: Its sizes; its `world` is None where it needs no videos.
    """

    name: str
    module: Any
    setup: Any


def experiment_of(name: str) -> Experiment:
    """The experiment of a name, with its registered sizes."""
    letter, _, world = name.partition("-")
    module = importlib.import_module(f"benchmarks.science_{letter}")
    return Experiment(name, module, module.SETUPS[world] if world else module.Setup())


def main(words: Sequence[str] | None = None) -> int:
    """Run the experiments that were named (all when none is); 0 whatever they find."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=[], metavar="a b c d e")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "vidssl-science")
    parser.add_argument(
        "--pictures", type=Path, help="folder for one picture of each letter, and one of what follows (e)"
    )
    given = parser.parse_args(words)
    names = [name for word in given.experiments or ["a", "b", "c"] for name in WORLDS.get(word, (word,))]
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        parser.error(f"there is no experiment '{unknown[0]}'; name some of {' '.join([*EXPERIMENTS, *WORLDS])}")
    chosen = [experiment_of(name) for name in names]
    entries = run_experiments(chosen, given.seeds, given.result, given.cache)
    if given.pictures:
        _draw(entries, given.pictures)
    return 0


def _draw(entries: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    from benchmarks.science_picture import draw, draw_worlds

    drawn = {name: entry for name, entry in entries.items() if entry["seeds"]}
    worlds = {name: entry for name, entry in drawn.items() if name in WORLDS["e"]}
    for name, entry in drawn.items():
        if name.startswith("e-") and name not in worlds:
            print(f"picture: {draw_worlds({name: entry}, folder, name)}")
        elif name not in worlds:
            print(f"picture: {draw(name, entry, folder)}")
    if worlds:
        print(f"picture: {draw_worlds(worlds, folder)}")


def run_experiments(
    experiments: Sequence[Experiment], seeds: Sequence[int], result: Path, cache: Path
) -> dict[str, dict[str, Any]]:
    """Print what is registered, run what is missing, seed by seed, print what came out.

    Args:
        experiments: Which, in this order within a seed.
        seeds: Those wanted.
        result: JSON file that keeps finished seeds.
        cache: Folder of the videos.

    Returns:
        Name → its part of the JSON file: every registered seed that is finished.

    Raises:
        SystemExit: the file holds seeds of another registration.
    """
    entries = {one.name: _begin(one, result) for one in experiments}
    for seed in seeds:
        for one in experiments:
            if str(seed) not in entries[one.name]["seeds"]:
                _run_seed(one, seed, entries[one.name], result, cache)
    return {one.name: _conclude(one, seeds, entries[one.name], result) for one in experiments}


def _conclude(one: Experiment, seeds: Sequence[int], entry: dict[str, Any], result: Path) -> dict[str, Any]:
    finished = {key: found["values"] for key, found in entry["seeds"].items() if int(key) in seeds}
    comparisons = one.module.comparisons(one.setup)
    print(f"=== ({one.name}) ===")
    _print(finished, summary(list(finished.values()), comparisons) if len(finished) > 1 else None)
    entry = _registered(entry)
    if len(entry["seeds"]) > 1:
        entry["summary"] = summary([found["values"] for found in entry["seeds"].values()], comparisons)
        _store(one.name, entry, result)
    return entry


def summary(tables: Sequence[Table], comparisons: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """Mean and deviation of every column over seeds, and of every difference with its signs and 95 % interval.

    Args:
        tables: One of each seed.
        comparisons: (what, arm, rival); arm minus rival.
    """
    columns = {key: _spread([table[key] for table in tables]) for key in tables[0]}
    for row in columns.values():
        del row["values"]  # they stand with their seeds
    pairs = {what: _spread([table[arm] - table[rival] for table in tables]) for what, arm, rival in comparisons}
    for row in pairs.values():
        row["interval"] = _interval(row["values"])
        row["signs"] = "".join("+" if value > 0 else "-" if value < 0 else "0" for value in row["values"])
    return {"columns": columns, "differences": pairs}


def _spread(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values), "values": values}


def _interval(values: list[float]) -> list[float]:
    """Student's 95 % interval of the mean of paired differences."""
    half = T_QUANTILE[min(len(values) - 1, len(T_QUANTILE)) - 1] * statistics.stdev(values) / len(values) ** 0.5
    return [statistics.mean(values) - half, statistics.mean(values) + half]


def _run_seed(one: Experiment, seed: int, entry: dict[str, Any], result: Path, cache: Path) -> None:
    import torch

    torch.set_num_threads(1)
    videos = _videos(one, seed, cache)
    wall, cpu = time.perf_counter(), time.process_time()
    values = one.module.run(one.setup, *videos, seed)
    spent = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
    print(f"({one.name}) seed {seed}: {spent['cpu_seconds']:.0f} CPU seconds", flush=True)
    entry["seeds"][str(seed)] = {"values": values, **spent}
    if seed < PILOT_FROM:
        _store(one.name, entry, result)


def _videos(one: Experiment, seed: int, cache: Path) -> tuple[Clips | None, Clips | None]:
    from benchmarks.science_data import draw_sources, load_world

    if one.setup.world is None:
        return None, None  # it simulates what it needs
    pool, test = load_world(one.setup.world, cache)
    return (pool if getattr(one.module, "WHOLE_POOL", False) else draw_sources(pool, seed)), test


def _begin(one: Experiment, result: Path) -> dict[str, Any]:
    registered = _plain(one.module.register(one.setup))
    said = json.dumps(registered, indent=1, ensure_ascii=False)
    print(f"=== experiment ({one.name}), registered before the run ===\n{said}", flush=True)
    entry = _read(result).get("experiments", {}).get(one.name, {"registration": registered, "seeds": {}})
    if entry["registration"] != registered:
        if entry["seeds"]:
            raise SystemExit(f"{result} holds seeds of another registration of ({one.name}); give another --result")
        entry = {"registration": registered, "seeds": {}}
    _store(one.name, entry, result)
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
        low, high = row["interval"]
        print(what.ljust(54) + values + _mean_sd(row) + f"  {row['signs']}  [{low:+.3f}, {high:+.3f}]")


def _mean_sd(row: Mapping[str, float]) -> str:
    return f"{row['mean']:8.3f}{row['sd']:8.3f}"


if __name__ == "__main__":
    sys.exit(main())
