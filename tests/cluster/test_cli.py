"""Typing the wrong thing: one sentence, exit code 2, no traceback, nothing started."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cluster.cli import main


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian", "cpr-tiny"], "no verb 'trian'; there are .*; did you mean 'train'?"),
        (["train", "cpr-tinny", "data=x"], "no recipe 'cpr-tinny'; .*did you mean 'cpr-tiny'?"),
        (["train", "data=x"], "no recipe named; type vidssl train RECIPE"),
        (["train", "cpr-tiny"], "no data given; type data=FOLDER"),
        (["train", "cpr-tiny", "data=nowhere"], "nowhere is no packed data .*vidssl pack"),
        (["train", "cpr-tiny", "--frsh", "data=x"], "unknown option '--frsh'; see: vidssl train --help"),
        (["train", "cpr-tiny", "trainer.worker=2"], "unknown key 'trainer.worker'; did you mean 'trainer.workers'?"),
        (["train", "--resume", "nowhere"], "nowhere is no run folder"),
        (["evaluate", "nowhere"], "nowhere is no run folder"),
        (["embed", "nowhere"], "nowhere is no run folder"),
        (["embed", "nowhere"], "and no card folder .*`vidssl import` or `vidssl export` named"),
        (["report", "nowhere"], "nowhere is no run folder"),
        (["export", "nowhere", "--out", "card"], "nowhere is no run folder"),
        (["export", "nowhere"], "no folder for the card; type --out CARD"),
        (["import", "nowhere.pth", "--from", "cpr", "--out", "card"], "no checkpoint at nowhere.pth"),
        (
            ["import", "nowhere.pth"],
            "nobody was named as the file's author; type --from with one of coclr, cpr, vicc, iic",
        ),
        (["recipes", "--name", "cpr-tiny", "mining.pol=3"], "unknown key 'mining.pol'; did you mean 'mining.pool'?"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(words, sentence, capsys, tmp_path, monkeypatch):
    import re

    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("vidssl: ")
    assert said.count("\n") == 1
    assert re.search(sentence.replace("?", r"\?"), said)
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_heavy_library():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "cluster", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "vidssl demo" in done.stdout
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"ray", "nvidia", "faiss", "torch"}


def test_the_module_and_the_script_are_the_same_words():
    done = subprocess.run([sys.executable, "-m", "cluster", "recipes"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "cpr-tiny" in done.stdout.split()
