"""Files that start a cluster: every field is one that its reader knows, every word one that can be typed, and they are in the wheel."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

import cluster.deploy
from cluster.commands.table import VERBS
from cluster.commands.words import read_words
from tests.cluster.deploy.kuberay_fields import RAY_CLUSTER, RAY_JOB
from vidssl.recipe import load_recipe

ROOT = Path(__file__).parents[3]
HERE = Path(cluster.deploy.__path__[0])
FILES = ("Dockerfile", "rayjob.yaml", "raycluster.yaml", "up-aws.yaml", "up-local.yaml", "slurm.sh", "grafana.json")
STARTED_BY = {
    "Dockerfile": "docker build -f cluster/deploy/Dockerfile -t vidssl .",
    "rayjob.yaml": "kubectl apply -f rayjob.yaml",
    "raycluster.yaml": "kubectl apply -f raycluster.yaml",
    "up-aws.yaml": "ray up -y up-aws.yaml",
    "up-local.yaml": "ray up -y up-local.yaml",
}


def read(name: str) -> dict:
    return yaml.safe_load((HERE / name).read_text())


def ray_cluster() -> dict:
    return read("raycluster.yaml")["spec"]


def pods(spec: dict) -> list[dict]:
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


@pytest.mark.parametrize(("name", "command"), STARTED_BY.items())
def test_the_first_line_says_how_the_file_is_started(name, command):
    assert (HERE / name).read_text().splitlines()[0].startswith(f"# {command}")


@pytest.mark.parametrize(("name", "schema"), [("rayjob.yaml", RAY_JOB), ("raycluster.yaml", RAY_CLUSTER)])
def test_kuberay_knows_every_field(name, schema):
    jsonschema.validate(read(name), schema)


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        (("spec",), {"autOptions": {"mode": "token"}}),
        (("spec", "headGroupSpec", "rayStartParams"), {"num-cpus": 0}),
        (("spec", "workerGroupSpecs", 0), {"maxReplica": 3}),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0), {"volumeMount": []}),
    ],
)
def test_the_table_of_fields_finds_a_mistake(where, wrong):
    changed = copy.deepcopy(read("raycluster.yaml"))
    place = changed
    for step in where:
        place = place[step]
    place.update(wrong)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed, RAY_CLUSTER)


def test_a_job_brings_the_same_cluster_that_stays_in_the_other_file():
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"] == ray_cluster()


def test_pods_mount_volumes_that_they_have_and_share_one_folder():
    for pod in pods(ray_cluster()):
        mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
        assert mounted["shared"] == "/shared"


def test_the_clusters_want_a_token_and_the_version_of_ray_that_was_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    spec = ray_cluster()
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] in project["tool"]["vidssl"]["tested"]["ray"]
    for name in ("up-aws.yaml", "up-local.yaml"):
        starts = [line for key in ("head", "worker") for line in read(name)[f"{key}_start_ray_commands"]]
        assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
        assert read(name)["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


def typed(command: str) -> None:
    """Raises where `python -m cluster …` is none that can be typed."""
    _, words = command.split("python -m cluster ", 1)
    verb, *rest = shlex.split(words)
    given = read_words(verb, VERBS[verb].places, VERBS[verb].options, rest)
    load_recipe(given.place("RECIPE"), given.settings)


def commands(name: str) -> list[str]:
    lines = (line.strip("# \\") for line in (HERE / name).read_text().splitlines())
    return [line for line in lines if "python -m cluster train " in line]


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml", "up-aws.yaml"])
def test_the_trainings_that_the_files_show_can_be_typed(name):
    assert commands(name)
    for command in commands(name):
        typed(command.removeprefix("entrypoint: "))


def test_the_words_that_slurm_is_shown_can_be_typed():
    second = (HERE / "slurm.sh").read_text().splitlines()[1]
    typed(f"python -m cluster train {second.split('slurm.sh ')[1]}")


def test_a_job_on_kubernetes_has_the_environment_of_runtime_env_yaml():
    ours = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text())["env_vars"]
    assert yaml.safe_load(read("rayjob.yaml")["spec"]["runtimeEnvYAML"]) == {"env_vars": ours}


def test_workers_of_the_job_are_as_many_as_its_nodes_have_gpus():
    spec = read("rayjob.yaml")["spec"]
    asked = int(re.search(r"trainer\.workers=(\d+)", spec["entrypoint"])[1])
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    per_pod = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert asked == group["minReplicas"] * per_pod


@pytest.mark.parametrize("name", ["up-aws.yaml", "up-local.yaml"])
def test_ray_up_takes_the_file_by_its_own_schema_and_by_what_it_makes_of_it(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read(name)
    jsonschema.validate(config, json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text()))
    whole = prepare_config(config)
    validate_config(whole)
    nodes = whole["available_node_types"]
    assert sum(kind["min_workers"] for kind in nodes.values()) == 2
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(
            config | {"max_worker": 1},
            json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text()),
        )


# --- the image


def instructions() -> list[tuple[str, str]]:
    """Dockerfile → (instruction, rest), comments and continuations away."""
    lines = [line for line in (HERE / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def test_everything_that_the_image_copies_exists_and_is_let_through():
    let_through = {line[1:] for line in (HERE / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")}
    copied: set[str] = set()
    for name, rest in instructions():
        assert name in {"FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER", "CMD"}
        if name == "COPY" and not rest.startswith("--from="):
            copied |= set(rest.split()[:-1])
    assert all((ROOT / name).exists() for name in copied)
    assert copied == let_through
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= copied


def test_the_image_gives_nvdec_to_its_containers_and_runs_as_nobody_special():
    said = dict(instructions()[::-1])
    environment = " ".join(rest for name, rest in instructions() if name == "ENV")
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in environment
    assert said["USER"] == "1000"
    cuda = re.search(r"nvidia/cuda:(\d+)\.", (HERE / "Dockerfile").read_text())
    dali = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert any(line.startswith(f"nvidia-dali-cuda{cuda[1]}0") for line in dali)


def test_verbs_that_the_dockerfile_names_exist():
    named = re.findall(r"\bvidssl vidssl (\w+)|&& vidssl (\w+)", (HERE / "Dockerfile").read_text())
    verbs = {one or other for one, other in named}
    assert {"demo", "train", "doctor", "recipes"} <= verbs <= set(VERBS)


@pytest.mark.parametrize(("tool", "name"), [("shellcheck", "slurm.sh"), ("hadolint", "Dockerfile")])
def test_linters_have_nothing_to_say(tool, name):
    program = shutil.which(tool, path=str(Path(sys.executable).parent)) or shutil.which(tool)
    if program is None:
        pytest.skip(f"{tool} is not installed here (a tool for development)")
    done = subprocess.run([program, str(HERE / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# --- the wheel


def test_the_files_are_in_the_wheel(tmp_path):
    for name in ("vidssl", "pipelines", "cluster"):
        shutil.copytree(ROOT / name, tmp_path / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "src")
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "src", capture_output=True, text=True)
    if "No module named" in done.stderr:
        pytest.skip("setuptools is not installed here")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as held:
        names = set(held.namelist())
        assert {f"cluster/deploy/{name}" for name in (*FILES, "Dockerfile.dockerignore", "__init__.py")} < names
        assert held.read("cluster/deploy/slurm.sh") == (HERE / "slurm.sh").read_bytes()
    assert {"cluster/runtime_env.yaml", "vidssl/recipes/cpr-tiny.yaml"} < names
