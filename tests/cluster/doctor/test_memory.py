"""Activations are counted without values as a real forward pass saves them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cluster.doctor import memory
from cluster.doctor.memory import ClipsWithGradient, activation_bytes, memory_lines
from tests.vidssl.methods.method_parts import a_batch, a_recipe
from vidssl.encoder import build_encoder
from vidssl.methods import build_method
from vidssl.recipe import Clips, Model, load_recipe, phase_recipe


def really_saved(model: Model, clips: Clips) -> int:
    encoder, saved, kept = build_encoder(model).train(), {}, []
    weights = {one.data_ptr() for one in (*encoder.parameters(), *encoder.buffers())}

    def note(one):
        kept.append(one)
        if one.untyped_storage().data_ptr() not in weights:
            saved[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        return one

    with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one):
        encoder(torch.randn(2, 3, clips.frames, clips.size, clips.size)).sum()
    return sum(saved.values()) // 2


@pytest.mark.parametrize("backbone", ["tiny", "r3d10", "c3d"])
def test_what_is_counted_is_what_a_forward_pass_saves(backbone):
    model, clips = Model(backbone=backbone), Clips(frames=16, size=32)
    assert activation_bytes(model, clips) == pytest.approx(really_saved(model, clips), rel=0.02)


def test_half_precision_halves_it_and_checkpointing_takes_less():
    plain, clips = Model(backbone="r3d10"), Clips(frames=16, size=112)
    full = activation_bytes(plain, clips)
    assert full == pytest.approx(0.1006e9, rel=0.01)
    assert activation_bytes(plain, clips, precision="bf16") == pytest.approx(full / 2, rel=0.01)
    assert activation_bytes(plain.model_copy(update={"checkpointing": True}), clips) < full


@pytest.mark.slow
def test_s3d_at_the_papers_sizes():
    found = [activation_bytes(Model(backbone="s3d"), Clips(frames=t, size=s)) for t, s in ((16, 112), (32, 128))]
    assert found == pytest.approx([0.122e9, 0.320e9], rel=0.01)
    checkpointed = Model(backbone="s3d", checkpointing=True)
    assert activation_bytes(checkpointed, Clips(frames=32, size=128)) < 0.5 * found[1]


@pytest.mark.parametrize(("name", "clips"), [("infonce", 4), ("cpr", 4), ("vicc", 8), ("iic", 8)])
def test_clips_with_gradient_are_counted_in_a_step(name, clips):
    words = {"warmup_steps": 0} | ({"vicc": {"queue": 0}} if name == "vicc" else {"iic": {"negatives": 4}})
    method, counted = build_method(a_recipe(name, "off", **words), instances=24).train(), ClipsWithGradient()
    counted.watch(method)
    method(a_batch(0))
    assert counted.clips == clips


def test_a_step_that_does_not_fit_is_said_with_what_helps(monkeypatch):
    recipe = phase_recipe(whole := load_recipe("cpr-ucf101-s3d"), whole.phases[2])
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"backbone": "tiny"})})
    method, batch = build_method(recipe).train(), a_batch(0)
    batch = replace(batch, clips={view: torch.empty(1, 2, 3, 32, 128, 128) for view in ("rgb", "flow")})
    here = memory_lines(recipe, method, batch, 1.0, torch.device("cpu"))
    assert "16 clips with gradient" in here[0]
    for gigabytes, word in ((80, "it fits"), (0.1, "try model.checkpointing=true or trainer.accumulate=2")):
        there = type("Device", (), {"total_memory": int(gigabytes * 1e9)})
        monkeypatch.setattr(memory.torch.cuda, "get_device_properties", lambda _, there=there: there)
        assert word in memory_lines(recipe, method, batch, 1.0, torch.device("cuda"))[0]
