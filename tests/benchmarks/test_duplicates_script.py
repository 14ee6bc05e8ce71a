from __future__ import annotations

import argparse

import numpy as np
import pytest

from benchmarks.duplicates import at_scale, copies, scenes
from tests.pipelines.test_pack_duplicates import film, write


def test_the_search_alone_finds_what_was_put_in():
    row = at_scale(300, seed=0)
    assert row["right"] == row["wanted"] == row["found"] == 3


@pytest.mark.slow
def test_the_table_of_copies_counts_what_was_made_of_films_that_are_none(tmp_path):
    paths = [write(tmp_path / f"{seed}.mp4", film(seed)) for seed in range(6)]
    given = argparse.Namespace(copied=3, crf=23, workers=1)
    result = copies(paths, given, np.random.default_rng(0))
    assert {row["kind"]: row["copies"] for row in result["rows"]} == dict.fromkeys(
        ("re-encoded", "scaled", "cropped", "shortened", "mirrored"), 3
    )
    assert sum(row["found"] for row in result["rows"]) >= 14
    assert result["false"] == 0


@pytest.mark.slow
def test_real_clips_that_were_joined_are_cut_where_they_were_joined(clips_root):
    paths = sorted((clips_root / "gestures").rglob("*.mp4"))[::4]
    assert scenes(paths, np.random.default_rng(0), 6.0)["scenes"]["f1"] >= 0.95
