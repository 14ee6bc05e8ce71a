"""R@1 of held-out training groups, against neighbours counted by hand; the test split is never looked at."""

from __future__ import annotations

import numpy as np
import torch

from cluster.sweep.held_out import held_out_recall, held_out_rows, kept_at
from pipelines.dataset.manifest import load_manifest
from pipelines.loader import EvalLoader, LoaderSpec
from tests.cluster.sweep.worlds import manifest_of
from vidssl.methods import build_method
from vidssl.recipe import load_recipe
from vidssl.saved.checkpoint import Meta, save_checkpoint
from vidssl.saved.run_folder import RunFolder


def test_whole_groups_of_every_class_are_held_out_and_always_the_same_ones(tmp_path):
    manifest = manifest_of(tmp_path)
    asking, searched = held_out_rows(manifest, 0.25)
    samples = manifest.samples
    assert sorted([*asking, *searched]) == list(range(len(manifest)))
    assert not set(samples.group[asking]) & set(samples.group[searched])
    assert np.array_equal(np.bincount(samples.label[asking]), np.full(10, 6))  # of 12 groups of two each, three
    assert np.array_equal(asking, held_out_rows(manifest, 0.25)[0])


def test_the_answer_is_that_of_neighbours_counted_by_hand(packed, tmp_path):
    manifest = load_manifest(packed)
    words = ["clips.frames=4", "clips.size=32", "model.width=4", "model.dim=8", "trainer.device=cpu"]
    recipe = load_recipe("infonce-tiny", [*words, f"data={packed}", "evaluation.windows=1", "evaluation.held_out=0.4"])
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.recipe.write_text(recipe.to_yaml())
    method = build_method(recipe, seed=3)
    meta = Meta(7, recipe.fingerprint(), manifest.hash, 1, 0)
    save_checkpoint(folder, meta, 0, {}, {"method": method.state_dict(), "optimizer": {}})
    found = held_out_recall(folder.path, recipe.evaluation, "me")

    asking, searched = held_out_rows(manifest, 0.4)
    assert not set(asking) & set(manifest.rows("test"))
    assert not set(searched) & set(manifest.rows("test"))
    spec, encoder = (
        LoaderSpec(recipe.clips, recipe.augment, recipe.loader, ("rgb",), 8, 0),
        method.eval().encoder("rgb"),
    )
    rows = {}
    with torch.no_grad():
        for name, wanted in {"asking": asking, "searched": searched}.items():
            loader = EvalLoader(manifest, spec, windows=1, device=torch.device("cpu"), instances=wanted)
            seen = torch.cat([encoder.features(batch.clips["rgb"][:, 0]) for batch in loader]).double().numpy()
            rows[name] = seen / np.linalg.norm(seen, axis=1, keepdims=True)
    centre = rows["searched"].mean(0)
    unit = {name: (one - centre) / np.linalg.norm(one - centre, axis=1, keepdims=True) for name, one in rows.items()}
    nearest = searched[(unit["asking"] @ unit["searched"].T).argmax(1)]
    by_hand = dict(
        zip(asking.tolist(), (manifest.samples.label[nearest] == manifest.samples.label[asking]).tolist(), strict=True)
    )
    assert dict(zip(found.videos, found.hits, strict=True)) == by_hand
    assert found.r1 == round(float(np.mean(found.hits)), 6)
    assert (found.step, found.gallery, found.share) == (7, len(searched), 0.4)
    assert kept_at(folder, 7, "me") == found
    assert kept_at(folder, 7, "somebody else") is None
