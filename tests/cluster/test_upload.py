"""What travels with `ray job submit --working-dir .`: the code and nothing else, measured by Ray's own packaging."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package, get_uri_for_directory

ROOT = Path(__file__).parents[2]
EXCLUDES = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text())["excludes"]
MB = 2**20

OF_A_RUN = (
    "checkpoints/step-00000008/model.pt",
    "checkpoints/step-00000008/rank-0.pt",
    "bank/snap-8/view-rgb/c/0/0",
    "bank/snap-8/zarr.json",
    "tensorboard/events.out.tfevents.1.host.1.0",
    "eval/embeddings.zarr/features/c/0",
    "eval/class_scores.npz",
    "log.jsonl",
    "events.jsonl",
    "report.html",
    ".vidssl.lock",
)
OF_A_PACK = ("shard-00000.tar", "samples.npz")
OTHERS = (
    "clips/a/film.mp4",
    "clips/b/film.avi",
    "card/encoder.safetensors",
    "slurm-1.log",
    "nohup.out",
    ".venv-new/lib/x.so",
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A copy of what lies in this repository, after work: a run, a pack, videos and a card somewhere in it."""
    here = tmp_path_factory.mktemp("upload")
    for name in ("vidssl", "pipelines", "cluster", "tests", "docs", "benchmarks"):
        shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", ".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, here / name)
    places = [f"exp/first/{name}" for name in OF_A_RUN] + [f"packed/{name}" for name in OF_A_PACK] + list(OTHERS)
    for place in places:
        (here / place).parent.mkdir(parents=True, exist_ok=True)
        (here / place).write_bytes(os.urandom(MB))  # bytes that no compression makes small
    (here / "exp" / "first" / "latest").symlink_to(here / "nowhere")
    return here


def upload(folder: Path, to: Path, excludes: list[str]) -> tuple[float, set[str]]:
    """Megabytes, and names of the files."""
    create_package(str(folder), to, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(to) as package:
        return to.stat().st_size / MB, {name for name in package.namelist() if not name.endswith("/")}


@pytest.mark.parametrize("named", [True, False], ids=["with --runtime-env", "without"])
def test_only_code_travels_though_runs_shards_and_videos_lie_in_the_folder(repository, tmp_path, named):
    size, names = upload(repository, tmp_path / "package.zip", EXCLUDES if named else [])
    heavy = {name for name in names if (repository / name).stat().st_size == MB}
    assert not heavy
    assert size < 3  # Ray does not compress
    files = [path for top in ("vidssl", "pipelines", "cluster") for path in (repository / top).rglob("*")]
    assert {str(path.relative_to(repository)) for path in files if path.is_file()} < names  # no pattern is too wide


def test_a_run_that_goes_on_below_the_folder_does_not_change_what_is_uploaded(repository):
    run = repository / "exp" / "first"
    before = get_uri_for_directory(str(repository), True, excludes=EXCLUDES)
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 1}\n')
    (run / ".vidssl.lock").unlink()
    (run / "checkpoints" / "step-00000016").mkdir()
    (run / "checkpoints" / "step-00000016" / "meta.json").write_text("{}")
    assert get_uri_for_directory(str(repository), True, excludes=EXCLUDES) == before


def test_who_names_no_runtime_environment_leaves_the_same_behind():
    lines = (ROOT / ".rayignore").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == EXCLUDES
