"""What a recipe says of the bank reaches the bank."""

from __future__ import annotations

from cluster.training.checks import check
from cluster.training.driver import _bank_spec
from tests.cluster.training.small_runs import small
from vidssl.saved.run_folder import RunFolder


def test_a_recipe_can_ask_for_a_bank_of_half_precision(packed, tmp_path):
    for word, dtype in (("mining.bank_dtype=float16", "float16"), ("mining.topk=2", "float32")):
        spec = _bank_spec(check(small(packed, tmp_path, word)), RunFolder(tmp_path))
        assert spec is not None
        assert spec.dtype == dtype
