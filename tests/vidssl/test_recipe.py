from __future__ import annotations

import pytest

from vidssl.errors import RecipeError
from vidssl.recipe import Recipe, load_recipe, recipe_from_file, recipe_names
from vidssl.tables.methods import METHODS


def either(names):
    """'a', 'b' or 'c', as refusals say it."""
    quoted = [f"'{name}'" for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]])


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_reads_and_opens_with_its_command(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    from vidssl.recipe import RECIPES

    first = (RECIPES / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# vidssl ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trainer.worker=2"], r"unknown key 'trainer.worker'; did you mean 'trainer.workers'\?"),
        (["workers=2"], r"unknown key 'workers'; did you mean 'trainer.workers'\?"),
        (["mining.stages=0"], r"mining.stages=0: input should be greater than or equal to 1"),
        (["trainer.batch=many"], r"trainer.batch='many': input should be a valid integer"),
        (
            ["method.name=byol"],
            f"method.name='byol': input should be {either(METHODS)}",
        ),
        (["mining.ratio=0.5", "mining.pool=20"], r"mining.ratio and mining.pool are two names of one choice"),
        (["mining.dtype=float16"], r"is about miners, and mining.miners=0 has none; type mining.miners=1"),
        (["mining.shard_node=big"], r"is about shards, and mining.shards=1 has none; type mining.shards=2"),
        (
            ["mining.shards=2", "mining.where=off"],
            r"shards=2 are of a bank, and mining.where=off has none; type mining.where=actor",
        ),
        (
            ["mining.shards=2", "mining.strategy=minrank"],
            r"minrank ranks the whole bank, and mining.shards=2 hold a part each; type mining.shards=1, or mining.strategy=cascade or single",
        ),
        (
            ["mining.shards=2", "mining.miners=1"],
            r"miners=1 hold a copy of the whole bank each, and mining.shards=2 hold a",
        ),
        (
            ["mining.shards=2", "mining.pool_slots=64"],
            r"pool_slots=64 are gathered in one process, and mining.shards=2",
        ),
        (
            ["mining.shards=2", "mining.backend=faiss"],
            r"faiss is for a bank in one process, .* type mining.backend=auto",
        ),
        (["mining.miners=1", "mining.gpus_per_miner=1.5"], r"no share of a GPU and no number of them; type \.5 or 1"),
        (
            ["mining.miners=2", "trainer.deterministic=true"],
            r"mining.miners=2 mine whenever they can, and trainer.deterministic=true mines in order; type mining.miners=0",
        ),
        (
            ["method.view=residual", "method.second_view=residual"],
            r"method.second_view=residual is the trained view too",
        ),
        (["method.name=inofnce"], r"'vicc' or 'iic'; did you mean 'method.name=infonce'\?"),
        (["model.backbone=resnet50"], r"model.backbone='resnet50': input should be 'tiny', .*'s3d', .*'r18_2d3d'"),
        (["model.backbone=s3d_g"], r"did you mean 'model.backbone=s3dg'\?"),
        (["mining.strategy=minrnk"], r"did you mean 'mining.strategy=minrank'\?"),
        (["trainer.device=cud"], r"did you mean 'trainer.device=cuda'\?"),
        (["method.name=vicc", "method.cascade=true"], r"vicc assigns clips to prototypes and mines nothing"),
        (["method.name=ubernce", "method.cascade=true"], r"use it with infonce or iic, or type method.name=cpr"),
        (["method.name=coclr", "method.cascade=true"], r"coclr mines in one stage; type method.name=cpr"),
        (
            ["method.name=infonce", "method.cascade=true", "mining.where=off"],
            r"mining.where=off mines nothing; type mining.where=actor, or method.cascade=false",
        ),
        (
            ["method.name=iic", "method.cascade=true", "mining.where=off"],
            r"mining.where=off mines nothing; type mining.where=inline, or method.cascade=false",
        ),
        (["method.name=iic", "method.cascade=true"], r"iic mines in its own memories; type mining.where=inline"),
        (["trainer"], r"'trainer' is no setting; type key=value"),
        (["optim.milestones=[0.8"], r"cpr-tiny.yaml optim.milestones=\[0.8: while parsing"),
    ],
)
def test_a_wrong_word_gets_one_sentence(words, sentence):
    with pytest.raises(RecipeError, match=sentence) as caught:
        load_recipe("cpr-tiny", words)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match=r"no recipe 'cpr-tinny'; there are .*did you mean 'cpr-tiny'\?"):
        load_recipe("cpr-tinny")


@pytest.mark.parametrize("name", ["cpr-tiny", "vicc-tiny"])
def test_a_recipe_survives_its_own_yaml(tmp_path, name):
    recipe = load_recipe(name, ["optim.milestones=[0.5,0.9]", "data=somewhere", "mining.stages=5"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert recipe_from_file(tmp_path / "recipe.yaml") == recipe


def test_an_unknown_key_in_a_file_is_refused(tmp_path):
    (tmp_path / "own.yaml").write_text("clips: {frame: 8}\n")
    with pytest.raises(RecipeError, match=r"unknown key 'clips.frame'; did you mean 'clips.frames'\?"):
        load_recipe(str(tmp_path / "own.yaml"))


def test_the_fingerprint_changes_with_what_changes_the_numbers_only():
    base = Recipe()
    assert base.model_copy(update={"name": "other"}).fingerprint() == base.fingerprint()
    assert base.model_copy(update={"seed": 1}).fingerprint() != base.fingerprint()


def test_off_is_a_word_and_not_yaml_s_false(tmp_path):
    (tmp_path / "own.yaml").write_text("mining: {where: off}\n")
    assert recipe_from_file(tmp_path / "own.yaml").mining.where == "off"
    assert load_recipe("cpr-tiny", ["mining.where=off"]).mining.where == "off"


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.endswith("-canonical")])
def test_a_canonical_sister_is_the_published_recipe_with_one_word(name):
    published = load_recipe(name.removesuffix("-canonical"))
    assert published.mining.space == "raw"
    mining = published.mining.model_copy(update={"space": "canonical"})
    assert load_recipe(name) == published.model_copy(update={"name": name, "mining": mining})
