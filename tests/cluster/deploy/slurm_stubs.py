"""`sbatch`, `srun` and `scontrol` of a cluster whose two machines are this one: real processes, on loopback.

`install` writes them into a folder for the PATH; each is this file under another name. What they were asked is kept in
`asked.jsonl` beside them. The batch script runs as Slurm would run it, and again when it asked to be queued again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HOSTS = ("n1", "n2")
JOB = 4242

_NODE = """\
# `ray` on a second node of one machine: its address stays 127.0.0.1, so its servers listen there alone
import sys
from ray._private import services
services.resolve_ip_for_localhost = lambda host: host
from ray.scripts.scripts import main
sys.argv[0] = "ray"
main()
"""


def install(folder: Path) -> None:
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        shutil.copy(__file__, folder / f"{name}.py")
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder / name}.py" {name} "$@"\n')
        (folder / name).chmod(0o755)
    (folder / "node.py").write_text(_NODE)


def sbatch(words: list[str], here: Path) -> int:
    """Options, the script, its words. Runs it in the foreground; `batch.pid` names the shell that a signal of `B:` reaches."""
    at = next(index for index, word in enumerate(words) if not word.startswith("-"))
    script, given = words[at], [*_directives(Path(words[at])), *words[:at]]
    _note(here, "sbatch", given)
    env = os.environ | {
        "SLURM_JOB_ID": str(JOB),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_CPUS_ON_NODE": "1",
    }
    restarts = 0
    while True:
        if restarts:
            env["SLURM_RESTART_COUNT"] = str(restarts)
        batch = subprocess.Popen(["bash", script, *words[at + 1 :]], env=env)
        (here / "batch.pid").write_text(str(batch.pid))
        code = batch.wait()
        if not (here / "requeue").exists():
            return code
        (here / "requeue").unlink()
        restarts += 1


def _directives(script: Path) -> list[str]:
    return re.findall(r"^#SBATCH (\S+)$", script.read_text(), re.M)


def scontrol(words: list[str], here: Path) -> int:
    _note(here, "scontrol", words)
    if words[:2] == ["show", "hostnames"]:
        sys.stdout.write("\n".join(HOSTS) + "\n")
    elif words == ["requeue", str(JOB)]:
        (here / "requeue").touch()
    else:
        return 1
    return 0


def srun(words: list[str], here: Path) -> int:
    """The command of a step, in place of this process: what ends the step ends it."""
    at = next(index for index, word in enumerate(words) if not word.startswith("-"))
    options = dict(word.removeprefix("--").partition("=")[::2] for word in words[:at])
    command, hosts = words[at:], options.get("nodelist", ",".join(HOSTS)).split(",")
    _note(here, "srun", words)
    if set(hosts) - set(HOSTS) or int(options["nodes"]) != len(hosts) or options["nodes"] != options["ntasks"]:
        return 1
    if command[:2] == ["ray", "start"]:
        command += json.loads(os.environ["STUB_RAY_WORDS"])[hosts[0]]
        if "--head" not in command:
            os.environ.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")  # with it a second node refuses to start
            command = [sys.executable, str(here / "node.py"), *command[1:], "--node-ip-address=127.0.0.1"]
    return os.execvp(command[0], command)


def _note(here: Path, name: str, words: list[str]) -> None:
    with (here / "asked.jsonl").open("a") as file:
        file.write(json.dumps([name, *words]) + "\n")


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    sys.exit({"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[name](rest, Path(__file__).parent))
