"""Encoders are compiled whole: no graph breaks in them, nor in InfoNCE, and nothing else changes (eager backend, so no compiler)."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from tests.vidssl.methods.method_parts import a_batch, a_recipe
from vidssl.encoder import build_encoder
from vidssl.methods import build_method
from vidssl.methods.infonce import info_nce_of
from vidssl.recipe import Model

# Python 3.13.0 alone is told by torch that later ones are faster.
pytestmark = pytest.mark.filterwarnings("ignore:Guards may run slower")

QUICK = ("tiny", "r3d10")


@pytest.fixture(autouse=True)
def forgotten():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", [*QUICK, pytest.param("s3d", marks=pytest.mark.slow)])
def test_an_encoder_is_one_graph(name):
    encoder, clips = build_encoder(Model(backbone=name, width=4)).train(), torch.randn(2, 3, 8, 32, 32)
    found = torch._dynamo.explain(encoder)(clips)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
    torch._dynamo.reset()
    torch.compile(encoder, backend="eager", fullgraph=True)(clips).sum().backward()


def test_info_nce_is_one_graph():
    method, batch = build_method(a_recipe("infonce")), a_batch(0)
    rows = nn.functional.normalize(torch.randn(4, 8), dim=1)

    def loss(query, key):
        return info_nce_of(query, key, method.queue, "rgb", batch, method.options)[0]

    found = torch._dynamo.explain(loss)(rows, rows.flip(0))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


@pytest.mark.parametrize("name", ["cpr", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vicc", "iic"))])
def test_a_compiled_run_gives_the_same_numbers_and_the_same_names(name, monkeypatch):
    monkeypatch.setattr(
        nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="eager", fullgraph=True)
    )
    made = []
    for compiled in (False, True):
        recipe = a_recipe(
            name, "inline" if name == "cpr" else "off", warmup_steps=0, vicc={"queue": 0, "prototypes": 5}
        )
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"compile": compiled})})
        method = build_method(recipe, instances=24).train()
        assert (method.encoder("rgb")._compiled_call_impl is not None) == compiled
        losses = [method(a_batch(step)).loss for step in range(2)]
        losses[-1].backward()
        made.append((torch.stack(losses).detach(), method.state_dict()))
    assert torch.equal(made[0][0], made[1][0])
    assert made[0][1].keys() == made[1][1].keys()
