"""Every `vidssl …` that README, docs and recipes show is one that can be typed: verb, options, keys and values exist."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from cluster.commands.table import VERBS
from cluster.commands.words import read_words
from vidssl.errors import RecipeError
from vidssl.headers import header_of
from vidssl.recipe import RECIPES, load_recipe, recipe_names

ROOT = Path(__file__).parent.parent
PAGES = [path for path in (ROOT / "README.md", *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")) if path.is_file()]
COMMAND = re.compile(r"(?:^|[\s/])(?:vidssl|python -m cluster) (.+)")


def commands_of(text: str) -> list[str]:
    """What stands behind `vidssl` or `python -m cluster` in code blocks and between backticks."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    rest = re.sub(r"```.*?```", "", text, flags=re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [span for span in re.findall(r"`([^`\n]+)`", rest) if span.startswith(("vidssl ", "python -m cluster "))]
    found = (COMMAND.search(line.split("  #")[0].split("|")[0]) for line in lines)
    return [match[1].strip() for match in found if match and not match[0].lstrip().startswith("#")]


def documented() -> list[tuple[str, str]]:
    """Where it stands, and the command."""
    pages = [(path.name, command) for path in dict.fromkeys(PAGES) for command in commands_of(path.read_text())]
    headers = {name: header_of(RECIPES / f"{name}.yaml").command for name in recipe_names()}
    return pages + [(name, command.removeprefix("vidssl ")) for name, command in headers.items()]


def check(command: str) -> None:
    verb, *words = shlex.split(command)
    if verb in ("VERB", "…", "--help"):
        return
    assert verb in VERBS
    if "--help" in words:
        return
    about = VERBS[verb]
    if "…" in words:  # some words are left out: those that stand there must exist all the same
        words = [word for word in words if word != "…"] + [place.name for place in about.places if place.needed]
        words = words[: len(about.places) + 1] if len(words) > len(about.places) + 1 else words
    given = read_words(verb, about.places, about.options, words)
    known = {key.name for group in about.groups() for key in group.keys}
    for setting in given.settings:
        key = setting.partition("=")[0].rpartition(":")[2]
        assert key in known or key == "key", key
    name = given.place("RECIPE")
    if name is not None and name != "RECIPE":
        load_recipe(name, [word for word in given.settings if word != "key=value"])


@pytest.mark.parametrize(("where", "command"), documented(), ids=lambda text: str(text)[:60])
def test_a_documented_command_can_be_typed(where, command):
    check(command)


def test_the_readme_shows_the_usual_verbs():
    shown = {command.split()[0] for where, command in documented() if where == "README.md"}
    assert {"demo", "pack", "train", "evaluate", "sweep", "report", "finetune", "import", "export", "recipes"} <= shown


@pytest.mark.parametrize(
    "wrong", ["trian cpr-tiny", "train cpr-tinny", "train cpr-tiny trainer.wrkers=2", "pack a b c d"]
)
def test_a_command_that_cannot_be_typed_is_found(wrong):
    with pytest.raises((AssertionError, RecipeError), match=r"trian|no recipe|trainer\.wrkers|too many"):
        check(wrong)


@pytest.mark.parametrize("by", ["runtime_env.yaml", ".gitignore"])
def test_a_log_that_grows_in_the_folder_does_not_change_what_a_job_uploads(by, tmp_path):
    from ray._private.runtime_env.packaging import get_uri_for_directory

    excludes = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text())["excludes"]
    if by == ".gitignore":  # where no runtime environment was named
        excludes = []
        (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    names = ("x.log", "job.out", "deep/er.log")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "code.py").write_text("pass\n")
    for name in names:
        (tmp_path / name).write_text("step 1\n")
    before = get_uri_for_directory(str(tmp_path), True, excludes=excludes)
    for name in names:
        (tmp_path / name).write_text("step 1\nstep 2\n")
    assert get_uri_for_directory(str(tmp_path), True, excludes=excludes) == before
    (tmp_path / "deep" / "code.py").write_text("print()\n")
    assert get_uri_for_directory(str(tmp_path), True, excludes=excludes) != before


def test_the_tables_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for row in re.findall(r"^\| \w[\w ]* \| `(.+?)` \| `(.+?)` \| `(.+?)` \|", text, re.M):
        assert all((ROOT / place).exists() for place in row[:2]), row
        module, _, name = row[2].rpartition(".")
        assert hasattr(importlib.import_module(module), name), row
    assert text.count("\n| ") == 7
