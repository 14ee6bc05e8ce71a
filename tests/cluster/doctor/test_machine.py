"""What `vidssl doctor` says of a machine: every look is taken, a bad one is a fault and stops no other."""

from __future__ import annotations

import pytest
import torch

from cluster.cli import main
from cluster.doctor import machine
from cluster.doctor.machine import Finding, findings


def test_every_look_says_something_and_a_machine_that_runs_these_tests_is_without_fault(capsys):
    names = [finding.name for finding in findings()]
    assert {"Python", "cores", "memory", "disk here", "packages", "codecs", "DALI", "FAISS", "Ray"} <= set(names)
    assert [finding for finding in findings() if finding.state == "fault"] == []
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "chosen here:" in said
    assert all(name in said for name in names)


def test_a_look_that_raises_is_a_fault_and_the_others_are_taken(monkeypatch, capsys):
    def _broken():
        raise RuntimeError("half installed")
        yield

    monkeypatch.setattr(machine, "_LOOKS", (_broken, machine._python))
    assert [(one.name, one.state) for one in findings()] == [("broken", "fault"), ("Python", "ok")]
    assert main(["doctor"]) == 2
    said = capsys.readouterr()
    assert "! broken" in said.out
    assert "RuntimeError: half installed" in said.out
    assert said.err == "vidssl: to be mended before a training: broken; what and how stands above\n"


@pytest.mark.parametrize(
    ("driver", "built", "state", "words"),
    [
        (None, "13.0", "note", "no CUDA driver on this machine; everything runs on the CPU"),
        ((12, 4), "13.0", "fault", "the driver knows CUDA 12.4 and this torch was built for 13.0"),
        ((12, 4), None, "fault", "this torch is a build for CPUs"),
        ((13, 0), "13.0", "fault", "torch finds no GPU"),
        ((12, 2), "12.6", "fault", "torch finds no GPU"),  # minor versions of one CUDA go together
    ],
)
def test_a_gpu_that_cannot_be_used_is_said_with_what_mends_it(monkeypatch, driver, built, state, words):
    monkeypatch.setattr(machine, "_driver", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", built)
    found = next(machine._gpu())
    assert (found.name, found.state) == ("GPU", state)
    assert words in found.words
    assert bool(found.mend) == (state == "fault")


def test_packages_outside_the_tested_bounds_are_named(monkeypatch):
    monkeypatch.setattr(machine.metadata, "requires", lambda name: ["numpy<1", "no-such-thing>=2", "torch>=2"])
    (found,) = machine._packages()
    assert found.state == "fault"
    assert "numpy" in found.words
    assert "(tested: <1)" in found.words
    assert "no-such-thing is missing" in found.words
    assert "torch" not in found.words


def test_an_extra_that_is_missing_is_a_note_with_its_pip_line(monkeypatch):
    monkeypatch.setattr(machine.metadata, "requires", lambda name: ["torch>=2", "no-such-thing>=2; extra == 'stores'"])
    first, second = machine._packages()
    assert first.state == "ok"
    assert second == Finding(
        "extra 'stores'", "not installed: without it no s3:// and gs://", "note", "pip install 'vidssl[stores]'"
    )


def test_words_without_a_recipe_are_refused(capsys):
    assert main(["doctor", "trainer.batch=3"]) == 2
    assert "is a word of a recipe and none is named; type vidssl doctor RECIPE data=PACKED" in capsys.readouterr().err
