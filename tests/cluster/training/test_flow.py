"""The published two-stream recipes on packed flow: they start, train, and are evaluated stream by stream and together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cluster.cli import main
from cluster.training.checks import check
from pipelines.dataset.manifest import load_manifest
from pipelines.pack import pack, pack_options
from vidssl.errors import DataError
from vidssl.recipe import RECIPES, Recipe, load_recipe, recipe_names
from vidssl.saved.card import read_card

OF_FLOW = [name for name in recipe_names() if "second_view: flow" in (RECIPES / f"{name}.yaml").read_text()]
SMALL = ["clips.frames=4", "clips.size=32", "trainer.workers=1", "trainer.batch=4", "trainer.steps=2"]


@pytest.fixture(scope="session")
def flowing(packed, tmp_path_factory) -> Path:
    """The packed motions with DIS flow added."""
    root = tmp_path_factory.mktemp("flowing") / "packed"
    shutil.copytree(packed, root)
    pack("csv", "gone", root, pack_options(["add=flow"]), workers=2)
    return root


def published(name: str, data: Path, *words: str) -> Recipe:
    """A published recipe on a few small videos."""
    few = [
        *SMALL,
        "method.queue=16",
        "mining.stages=3",
        "mining.topk=2",
        "method.vicc.queue=8",
        "method.vicc.prototypes=8",
        "method.iic.negatives=8",
    ]
    phases = [f"*:{word}" for word in ("trainer.batch=4", "trainer.steps=2")] if load_recipe(name).phases else []
    return load_recipe(name, [f"data={data}", *few, *phases, *words])


def test_every_family_of_the_papers_has_recipes_of_flow():
    assert [name for name in recipe_names() if load_recipe(name).method.second_view == "flow"] == OF_FLOW
    assert {name.split("-")[0] for name in OF_FLOW} == {"coclr", "cpr", "vicc"}
    assert len(OF_FLOW) >= 6


@pytest.mark.parametrize("name", OF_FLOW)
def test_a_published_recipe_of_flow_may_begin_on_a_pack_with_flow_and_not_without(packed, flowing, name):
    assert check(published(name, flowing)).manifest.flow is not None
    words = rf"{packed} holds no optical flow, which the view 'flow' is made of; type vidssl pack csv .* {packed} add=flow, or type"
    with pytest.raises(DataError, match=words):
        check(published(name, packed))


@pytest.mark.parametrize("view", ["u", "v", "flow"])
def test_iic_may_contrast_rgb_with_any_view_of_flow(packed, flowing, view):
    words = [f"method.second_view={view}", "model.flow_channels=3"]
    assert check(published("iic-ucf101-r3d", flowing, *words)).recipe.views == ("rgb", view)
    with pytest.raises(DataError, match=f"which the view '{view}' is made of"):
        check(published("iic-ucf101-r3d", packed, *words))


def vidssl_says(capsys, *words) -> tuple[int, str]:
    code, said = main([str(word) for word in words]), capsys.readouterr()
    return code, said.out + said.err


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data's own settings, read inside Ray Train
@pytest.mark.slow  # six trainings
def test_a_published_cycle_trains_on_flow_and_both_streams_are_evaluated_together(
    flowing, tmp_path, capsys, ray_cluster
):
    small = ["model.backbone=tiny", "model.dim=16", f"trainer.storage={tmp_path}", "evaluation.windows=1"]
    few = [
        *SMALL,
        "*:trainer.batch=4",
        "*:trainer.steps=2",
        "method.queue=16",
        "mining.stages=3",
        "mining.topk=2",
        "--no-evaluation",
    ]
    code, said = vidssl_says(capsys, "train", "cpr-ucf101-s3d", f"data={flowing}", *small, *few, "name=cycle")
    assert code == 0, said
    assert "second-2      done     cpr flow | rgb" in said
    run = tmp_path / "cycle" / "first-2"
    assert json.loads((run / "run.json").read_text())["flow"] == "companded"
    code, said = vidssl_says(capsys, "evaluate", run, "view=joint", "what=retrieval")
    assert code == 0, said
    results = [json.loads(path.read_text()) for path in (run / "eval").glob("*.json")]
    assert any("flow" in str(result) for result in results)
    # the stream of flow as a card, and data whose flow is of the other kind
    assert vidssl_says(capsys, "export", run, "--out", tmp_path / "card", "view=flow")[0] == 0
    card = read_card(tmp_path / "card")
    assert (card.view, card.normalization.flow) == ("flow", "companded")
    assert "pixels per frame" in card.normalization.words
    assert vidssl_says(capsys, "evaluate", tmp_path / "card", f"data={flowing}", "what=retrieval")[0] == 0


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("view", ["u", "v"])
def test_iic_trains_on_rgb_with_one_component_of_flow(flowing, tmp_path, capsys, ray_cluster, view):
    words = [
        *SMALL,
        "model.backbone=tiny",
        "model.dim=128",
        "trainer.log_every_steps=1",
        "method.iic.negatives=8",
        f"method.second_view={view}",
        "name=iic",
    ]
    code, said = vidssl_says(
        capsys, "train", "iic-ucf101-r3d", f"data={flowing}", f"trainer.storage={tmp_path}", *words
    )
    assert code == 0, said
    rows = [json.loads(line) for line in (tmp_path / "iic" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]


def test_flow_in_pixels_and_flow_as_pictures_are_not_shown_to_each_others_encoders(packed, flowing, tmp_path, capsys):
    """A published encoder of flow reads pictures; the pack holds pixels per frame."""
    import torch

    from vidssl.encoder import build_encoder
    from vidssl.recipe import Model
    from vidssl.saved.published import to_coclr

    encoder = build_encoder(Model(width=4, dim=8, flow_channels=3), "flow")
    torch.save({"state_dict": to_coclr(encoder.state_dict()), "epoch": 9}, tmp_path / "flow.pth.tar")
    card = tmp_path / "card"
    code, said = vidssl_says(
        capsys, "import", tmp_path / "flow.pth.tar", "--from", "coclr", "--out", card, "method.view=flow"
    )
    assert code == 0, said
    assert read_card(card).normalization.flow == "parity"
    code, said = vidssl_says(capsys, "embed", card, f"data={flowing}")
    assert code == 2
    assert (
        f"card reads flow of flow_encoding=parity and {flowing} holds flow_encoding=companded; pack the videos with"
        in said
    )
    code, said = vidssl_says(capsys, "embed", card, f"data={packed}")
    assert code == 2
    assert "holds no optical flow; type the words that it was packed with and add=flow flow_encoding=parity" in said
    assert load_manifest(flowing).flow is not None
