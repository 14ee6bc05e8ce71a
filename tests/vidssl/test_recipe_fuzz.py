"""Every key of a recipe against hostile values: accepted and meaningful, or refused in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import nn

from vidssl.errors import RecipeError
from vidssl.methods import mining_of
from vidssl.mining.plan import plan_from
from vidssl.mining.progress import topk_at
from vidssl.optimizers import build_optimizer
from vidssl.recipe import Recipe, load_recipe, recipe_from_file, validated
from vidssl.schedule import learning_rate

NUMBERS = [
    float("inf"), float("-inf"), float("nan"), 0, -1, 1, 2, 3, 1.5, 0.5, -0.5, 1e-300, 1e300, 1e30, 1e31, 5e-324, -0.0,
    10**23, -(10**23), 10**5000, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 0.999999999999, 1.0000000001, 1e-3, 100,
]  # fmt: skip
TEXTS = [
    "", " ", "\t", "\n", "\x00", "a\nb", "\ud800", "inf", "nan", "-inf", "1e400", "NaN", "null", "~", "true", "off", "no",
    "???", "${seed}", "${nope}", "${oc.env:HOME}", "\\${seed}", "%s", "{}", "0x10", "1_000", "１２", "٣", "1,5", "1.000,5",
    "1e3", "08", "2024-01-01", "12:30", "../x", "/", ".", "..", "a/b", "~root", "C:\\x", "s3://b/x", "-", "--fresh", "=",
    "a=b", "x" * 10_000, "rgb", "cpr", "\u202eabc", "é", "日本", "null\x00", "!!python/object:os.system", "&a *a", "#x",
]  # fmt: skip
TREES: list[Any] = [
    None, True, False, [], [[]], {}, [None], [True], {"a": 1}, {"": 1}, {1: 2}, [1, 2], [0.5], ["x"], [float("nan")],
    [-1], [float("inf")], [10**23], [0], [1.0], [0.9, 0.1], [[0, 1]], [[0, 1], [0, 2]], [[1, 1]], [[0, 99]], [[0]], [[-1, 1]],
    [1] * 5000, [[[[[[1]]]]]], {"name": "x"}, [{"name": "x"}], [{"name": "x", "words": {"a": 1}}],
    [{"name": "../x"}], [{"name": "a", "start": "a"}], [{"name": "a", "words": {"optim.lr": -1}}],
]  # fmt: skip
HOSTILE: list[Any] = [*NUMBERS, *TEXTS, *TREES]
ENTRIES = [".inf", ".nan", "1e400", "[", "{", "[1,", "'", '"', "{a: 1}", "[[[[1]]]]", "!!python/name:os.system", "&a [*a]",
           "${", "${}", "${seed", "${${seed}}", "???", "2024-13-45", "2024-02-30", "0o17", "1:30:00", "|", ">", "@", "`", "%",
           ": :", "- 1", "? x", "9" * 5000, "[" * 3000, "\ud800", "\x00", "\x1b[31m", "=", "==", "a: b: c", "*x", "<<: 1"]  # fmt: skip


def leaves(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from leaves(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, info


KEYS = dict(leaves())


def tree_of(key: str, value: object) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    *folders, last = key.split(".")
    inner = tree
    for folder in folders:
        inner = inner.setdefault(folder, {})
    inner[last] = value
    return tree


def assert_a_sentence(error: RecipeError, about: object) -> None:
    text = str(error)
    assert text, about
    assert len(text.splitlines()) == 1, about
    assert len(text) < 1000, about
    assert "pydantic" not in text, about


def assert_meaningful(recipe: Recipe) -> None:
    """What was accepted works where it is used first."""
    optim, total = recipe.optim, recipe.trainer.steps or 1000
    if optim.warmup_steps < total:
        rates = [learning_rate(optim, step, total) for step in (0, total // 2, total - 1)]
        assert all(math.isfinite(rate) and rate >= 0 for rate in rates)
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.full((2, 2), 1e-3)
    build_optimizer(optim, [weight]).step()
    assert not weight.isnan().any()
    assert all(0 < share < 1 for share in (*optim.milestones, *recipe.finetune.milestones))
    assert all(k >= 1 for k in (*recipe.evaluation.ks, *recipe.evaluation.shots))
    assert all(0 < rate < math.inf for rate in recipe.evaluation.probe_lr)
    assert all(0 <= decay < math.inf for decay in recipe.evaluation.probe_weight_decay)
    assert 1 <= topk_at(recipe.mining, 10) <= recipe.mining.topk
    try:
        plan = plan_from(mining_of(recipe), 100_000)
    except RecipeError as error:
        assert_a_sentence(error, recipe.mining)
    else:
        assert plan.k <= plan.last_pool <= 100_000
        assert all(plan.k <= size <= 100_000 for size in plan.sizes(100_000))


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("key", KEYS)
def test_a_hostile_value_is_refused_in_a_sentence_or_works(key, every, tmp_path):
    """What works is itself again from its file: of every value in the slow form, else of the first two kinds."""
    refused, kinds = 0, set()
    for value in HOSTILE:
        try:
            recipe = validated(tree_of(key, value))
        except RecipeError as error:
            assert_a_sentence(error, (key, value if not isinstance(value, int) else float(value % 10**9)))
            refused += 1
            continue
        if every or (type(value) not in kinds and len(kinds) < 2):
            (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
            assert recipe_from_file(tmp_path / "recipe.yaml") == recipe
            kinds.add(type(value))
        assert_meaningful(recipe)
    assert refused >= 20
    assert len(HOSTILE) >= 80


@pytest.mark.parametrize(
    "key",
    ["seed", "optim.lr", "optim.milestones", "data", "method.name", "phases", "augment.flip", "mining.progressive"],
)
def test_a_hostile_word_is_refused_in_a_sentence_or_works(key):
    for entry in ENTRIES:
        try:
            recipe = load_recipe("cpr-tiny", [f"{key}={entry}"])
        except RecipeError as error:
            assert_a_sentence(error, (key, entry[:50]))
        else:
            assert_meaningful(recipe)


@pytest.mark.parametrize("word", ["", "=", "=1", "a", ".", ".=1", "a..b=1", ":x=1", "*:=1", "x" * 5000 + "=1", "seed.x=1", "\x00=1", "é=1", "clips=1", "clips={}", "*:seed=1", "a:seed=1"])  # fmt: skip
def test_a_word_that_is_no_setting_is_refused_in_a_sentence(word):
    with pytest.raises(RecipeError) as caught:
        load_recipe("cpr-tiny", [word])
    assert_a_sentence(caught.value, word[:50])


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_a_sentence_and_every_number_a_finite_range(key):
    info = KEYS[key]
    assert info.description
    assert len(info.description) > 8 or "|" in info.description, info.description
    if info.annotation in (int, float):
        said = {
            name: getattr(bound, name)
            for bound in info.metadata
            for name in ("gt", "ge", "lt", "le")
            if hasattr(bound, name)
        }
        assert {"gt", "ge"} & said.keys(), key
        assert {"lt", "le"} & said.keys(), key
        assert all(math.isfinite(bound) for bound in said.values())
