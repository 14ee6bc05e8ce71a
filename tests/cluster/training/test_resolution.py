from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.training.plan import plan_run
from cluster.training.resolution import too_small, wanted_side
from pipelines.dataset.manifest import load_manifest
from pipelines.packing.options import pack_options
from tests.cluster.training.small_runs import small
from vidssl.headers import header_of
from vidssl.recipe import RECIPES, load_recipe, phase_recipe, recipe_names


def test_a_pack_smaller_than_the_recipe_wants_is_said_in_a_sentence_when_the_run_begins(packed, tmp_path):
    plan = plan_run(small(packed, tmp_path, "clips.pack_size=240"))
    assert plan.notes == (
        f"the videos of {packed} have a short side of 128 pixels and {plan.recipe.name} wants 240 (clips of "
        f"{plan.recipe.clips.size}), so it trains on enlarged crops; to give it what it wants, pack again with size=240",
    )
    assert plan_run(small(packed, tmp_path, "clips.pack_size=128")).notes == ()
    assert plan_run(small(packed, tmp_path)).notes == ()


@pytest.mark.parametrize(
    ("words", "side"),
    [
        (["clips.size=112", "augment.preset=crop"], 128),
        (["clips.size=113", "augment.preset=crop"], 130),
        (["clips.size=130", "augment.preset=paper"], 130),
        (["clips.size=130", "augment.preset=paper", "clips.pack_size=256"], 256),
    ],
)
def test_without_a_word_it_wants_what_its_crops_take_unenlarged(packed, tmp_path, words, side):
    recipe = small(packed, tmp_path, *words)
    assert wanted_side(recipe) == side
    manifest = load_manifest(packed)
    assert too_small(recipe, replace(manifest, short_side=side)) == ()
    assert f"size={side + side % 2}" in too_small(recipe, replace(manifest, short_side=side - 2))[0]


def test_every_published_recipe_names_its_pack_and_wants_what_it_names():
    published = [name for name in recipe_names() if "ucf101" in name or "k400" in name]
    assert len(published) >= 14
    for name in published:
        options = pack_options(header_of(RECIPES / f"{name}.yaml").pack.split())
        recipe = load_recipe(name)
        assert (options.fps, options.size) == ("source", recipe.clips.pack_size), name
        flow = "flow" in recipe.views or any("flow" in phase_recipe(recipe, one).views for one in recipe.phases)
        assert (options.flow, options.flow_encoding) == (("tvl1", "parity") if flow else ("none", "companded")), name
