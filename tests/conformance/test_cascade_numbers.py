"""CPR's published cascade, run once on inputs that anyone can rebuild: every backend keeps the same sets, stage by stage."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.rebuilt import cases, load, unit
from vidssl.mining.cascade import mine
from vidssl.mining.exclusions import GroupIndex
from vidssl.mining.plan import CascadePlan


@pytest.mark.parametrize("backend", ["oracle", "numpy", "torch", "faiss"])
@pytest.mark.parametrize("case", cases("cascade"))
def test_positives_and_every_stage_equal_the_published_code(case, backend):
    said, stored = load(case)
    names, salt = said["arrays"], said["salt"]
    queries = [unit(names[f"query_{view}"], said["B"], said["dim"], salt=salt).numpy() for view in "ab"]
    bank = [unit(names[f"bank_{view}"], said["N"], said["dim"], salt=salt).numpy() for view in "ab"]
    plan = CascadePlan(said["N"], said["stages"], said["ratio"], said["topk"])
    exclude = GroupIndex(stored["bank_source"]).exclusions(stored["query_source"])
    result = mine(queries, bank, plan, exclude=exclude, backend=backend, trace=True)
    np.testing.assert_array_equal(result.ids, stored["positives"])
    for stage, survivors in enumerate(result.stages):  # best first within float32 rounding: the sets are exact
        np.testing.assert_array_equal(np.sort(survivors), np.sort(stored[f"survivors_{stage}"]))
    assert (result.survivors == [stage.shape[1] for stage in result.stages]).all()
