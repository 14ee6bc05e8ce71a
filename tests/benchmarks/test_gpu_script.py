"""`python -m benchmarks.gpu`: what it does without a GPU, that its checks run, and that no check stops the others."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import checks_methods, gpu, hardware
from benchmarks.checking import Note, Setting, Skipped
from benchmarks.checks_run import decoder_column

ROOT = Path(__file__).parents[2]

REHEARSAL = Setting(device="cpu", small=True)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "gpus", list)


def child(check: gpu.Check, path: Path) -> dict[str, object]:
    note = path / "found.json"
    assert gpu.run_here(check, REHEARSAL, note) == 0
    return json.loads(note.read_text())


def test_without_a_gpu_it_says_so_in_one_sentence_and_exits_with_3(no_gpu, capsys):
    assert gpu.main([]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.strip().count("\n") == 0
    assert said.err.startswith("benchmarks.gpu: no CUDA GPU is visible on this machine")


def test_the_command_itself_exits_with_3_where_no_driver_is_found():
    env = {**os.environ, "PATH": "/nowhere"}
    code = "from benchmarks import gpu, hardware; hardware._devices_of_the_driver = lambda: 0; raise SystemExit(gpu.main([]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 3
    assert "no CUDA GPU" in done.stderr


def test_an_unknown_check_is_refused_and_the_list_names_every_question(capsys):
    assert gpu.main(["decod-exact"]) == 2
    assert gpu.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(check.name in listed and check.question in listed for check in gpu.CHECKS)


def test_every_check_names_a_function_that_exists():
    for check in gpu.CHECKS:
        module, _, function = check.place.partition(":")
        assert callable(getattr(importlib.import_module(f"benchmarks.{module}"), function))


def test_every_check_is_in_one_part_and_no_part_can_take_longer_than_nine_minutes():
    parts = gpu.parts()
    assert [check for part in parts for check in part] == list(gpu.CHECKS)
    assert all(sum(check.limit_s for check in part) <= 9 * 60 for part in parts)


def test_a_part_that_is_not_there_is_refused_with_those_that_are(capsys):
    for number in ("0", str(len(gpu.parts()) + 1)):
        assert gpu.main(["--part", number]) == 2
        assert f"--part {number}: there are parts 1 to {len(gpu.parts())}" in capsys.readouterr().err


def test_the_use_of_the_decoder_is_read_from_what_nvidia_smi_prints():
    said = (
        "# gpu     sm    mem    enc    dec    jpg    ofa\n# Idx      %      %      %      %      %      %\n"
        "    0     97     41      0     88      0      0\n    1      0      0      0     12      0      0\n    0      -      -      -      -      -      -\n"
        "    0     95     40      0     93      0      0\n"
    )
    assert decoder_column(said) == [88, 93]
    assert decoder_column("") == decoder_column("No devices were found") == []


@pytest.mark.parametrize("arm", ["infonce + cascade", "cpr", "iic + cascade"])
def test_an_arm_that_is_to_mine_does_so_in_the_steps_that_are_timed(arm):
    assert "method.warmup_steps=0" in dict(checks_methods._arms())[arm]


@pytest.mark.parametrize("name", ["environment", "decode-exact", "cascade", "bank-push"])
def test_a_rehearsal_of_a_check_finds_figures_on_the_cpu(name, tmp_path):
    check = next(check for check in gpu.CHECKS if check.name == name)
    found = child(check, tmp_path)
    assert "error" not in found
    assert found


@pytest.mark.slow
def test_the_whole_rehearsal_passes(tmp_path):
    assert gpu.main(["--rehearse", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("gpu-rehearsal_*.json")
    tree = json.loads(path.read_text())
    assert [one["name"] for one in tree["checks"]] == [check.name for check in gpu.CHECKS]
    assert {"hardware", "versions", "written", "setting"} <= set(tree)
    assert {one["name"] for one in tree["checks"] if one["skipped"]} == {"optical-flow"}


def test_a_check_that_needs_a_gpu_is_skipped_with_a_reason():
    with pytest.raises(Skipped, match="hardware optical flow needs a GPU"):
        REHEARSAL.need_gpu("hardware optical flow")


def test_a_crash_a_hang_and_a_missing_package_stop_nobody_and_keep_what_was_found(tmp_path, monkeypatch):
    module = tmp_path / "benchmarks_fakes.py"
    module.write_text(
        "import os, time\n"
        "def crash(setting, note):\n    note('before', 1.23456)\n    os.abort()\n"
        "def hang(setting, note):\n    note('before', 2)\n    time.sleep(60)\n"
        "def lacking(setting, note):\n    import a_package_that_is_not_there\n"
        "def wrong(setting, note):\n    raise ValueError('a\\nfinding')\n"
        "def good(setting, note):\n    note('value', 3)\n"
    )
    # A child that imports this module under the benchmarks' name.
    runner = tmp_path / "runner.py"
    runner.write_text(
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n"
        "import benchmarks_fakes; sys.modules['benchmarks.fakes'] = benchmarks_fakes\n"
        "from pathlib import Path\nfrom benchmarks import gpu\nfrom benchmarks.checking import Setting\n"
        "name, found = sys.argv[1], sys.argv[sys.argv.index('--child') + 1]\n"
        "sys.exit(gpu.run_here(gpu.Check(name, f'fakes:{name}', ''), Setting('cpu', True), Path(found)))\n"
    )
    real = subprocess.Popen

    def popen(command, **options):
        return real([sys.executable, str(runner), *command[3:]], **options)

    monkeypatch.setattr(gpu.subprocess, "Popen", popen)
    limits = {"crash": 20, "hang": 4, "lacking": 20, "wrong": 20, "good": 20}
    checks = [gpu.Check(name, f"fakes:{name}", "", limit) for name, limit in limits.items()]
    path = tmp_path / "out.json"
    crash, hang, lacking, wrong, good = gpu.run_all(checks, REHEARSAL, path)
    assert (crash["ok"], crash["figures"]) == (False, {"before": 1.235})
    assert "exit code -6" in crash["error"]
    assert (hang["figures"], hang["error"]) == ({"before": 2}, "killed after 4 s")
    assert lacking["error"] == "not installed: a_package_that_is_not_there"
    assert wrong["error"] == "ValueError: a finding"
    assert (good["ok"], good["figures"]) == (True, {"value": 3})
    assert len(json.loads(path.read_text())["checks"]) == 5


def test_what_a_note_holds_is_on_disk_at_once(tmp_path):
    note = Note(tmp_path / "found.json")
    note("a", {"b": 0.123456, "c": [1, 2.34567]})
    assert json.loads((tmp_path / "found.json").read_text()) == {"a": {"b": 0.1235, "c": [1, 2.346]}}


@pytest.mark.parametrize(
    ("devices", "name"),
    [
        ([{"name": "NVIDIA H200", "memory": "", "driver": ""}], "h200"),
        ([{"name": "NVIDIA A100-SXM4-80GB", "memory": "", "driver": ""}] * 8, "8xa100-sxm4-80gb"),
        ([{"name": "NVIDIA GeForce RTX 4090", "memory": "", "driver": ""}], "rtx-4090"),
    ],
)
def test_a_result_file_is_named_by_what_hardware_and_date(devices, name, monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "gpus", lambda: devices)
    path = hardware.result_path("gpu", tmp_path)
    assert path.name.startswith(f"gpu_{name}_20")
    assert path.suffix == ".json"


def test_missing_packages_are_named_and_not_an_error(monkeypatch):
    monkeypatch.setattr(hardware, "PACKAGES", ("numpy", "no-such-package-here"))
    found = hardware.versions()
    assert found["no-such-package-here"] == "not installed"
    assert found["numpy"][0].isdigit()
