from __future__ import annotations

import numpy as np
import pytest
import torch

from vidssl.batch import ClipBatch
from vidssl.errors import DataError
from vidssl.evaluation.encode import EncoderReader, HistogramReader, describe_videos
from vidssl.methods import build_method
from vidssl.recipe import Recipe


def batches_of(clips, instance, size):
    for start in range(0, len(instance), size):
        rows = slice(start, start + size)
        n = len(instance[rows])
        yield ClipBatch(
            clips={"rgb": clips[rows, None]},
            instance=torch.as_tensor(instance[rows]),
            group=torch.arange(n),
            label=torch.zeros(n, dtype=torch.int64),
            epoch=0,
            step=0,
            start=torch.zeros(n, 1, dtype=torch.int64),
        )


def values(clips):
    return {"v": clips["rgb"][:, :, 0, 0, 0]}


def test_window_rows_are_made_unit_before_the_mean_and_keep_the_asked_order():
    clips = torch.tensor([[10.0, 0, 0], [0, 0.1, 0], [3, 4, 0]])[:, :, None, None, None]
    found = describe_videos(batches_of(clips, np.array([7, 7, 2]), 2), [values], np.array([7, 2]))
    np.testing.assert_allclose(found.rows["v"], [[0.5, 0.5, 0], [0.6, 0.8, 0]], atol=1e-7)
    assert found.windows == 3


def test_the_result_does_not_depend_on_the_batch_size():
    torch.manual_seed(0)
    recipe = Recipe.model_validate(
        {"clips": {"frames": 4, "size": 16}, "model": {"width": 4, "dim": 8}, "method": {"name": "infonce", "queue": 8}}
    )
    reader = EncoderReader(build_method(recipe, 0).eval().encoder("rgb"), "rgb")
    clips, instance = torch.randn(11, 3, 4, 16, 16), np.repeat([3, 0, 5, 1], [4, 1, 3, 3])
    wanted = np.array([0, 1, 3, 5])
    one, other = (
        describe_videos(batches_of(clips, instance, size), [reader, HistogramReader()], wanted) for size in (1, 4)
    )
    assert set(one.rows) == {"feature/rgb", "embedding/rgb", "histogram"}
    for name in one.rows:
        np.testing.assert_allclose(one.rows[name], other.rows[name], atol=1e-5)


def test_videos_that_never_came_are_left_out_and_named():
    clips = torch.ones(2, 3, 1, 1, 1)
    found = describe_videos(batches_of(clips, np.array([4, 9]), 2), [values], np.array([9, 6, 4]))
    assert found.instance.tolist() == [9, 4]
    assert found.missing.tolist() == [6]
    assert len(found.rows["v"]) == 2


def test_no_readable_video_at_all_is_refused():
    with pytest.raises(DataError, match="none of 3 videos could be read"):
        describe_videos([], [values], np.arange(3))


def test_maps_and_probabilities_are_averaged_as_they_come_and_windows_are_counted():
    clips = torch.tensor([[10.0, 0, 0], [0, 2, 0], [3, 4, 0]])[:, :, None, None, None]
    names = ("trained/map/rgb", "trained/probability/rgb", "trained/feature/rgb")
    look = lambda some: dict.fromkeys(names, some["rgb"][:, :, 0, 0, 0])  # noqa: E731
    found = describe_videos(batches_of(clips, np.array([7, 7, 2]), 2), [look], np.array([7, 2]))
    for name in names[:2]:
        np.testing.assert_allclose(found.rows[name], [[5, 1, 0], [3, 4, 0]])
    np.testing.assert_allclose(found.rows[names[2]], [[0.5, 0.5, 0], [0.6, 0.8, 0]], atol=1e-7)
    assert found.seen.tolist() == [2, 1]


def test_the_histogram_reads_colours_by_the_recipes_normalisation():
    from vidssl.evaluation.histogram import IMAGENET_MEAN, IMAGENET_STD

    colours = torch.rand(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    plain = HistogramReader("unit")({"rgb": colours})["histogram"]
    torch.testing.assert_close(HistogramReader()({"rgb": (colours - mean) / std})["histogram"], plain)
