from __future__ import annotations

import numpy as np
import pytest
import torch

from vidssl.batch import ClipBatch
from vidssl.encoder import Encoder
from vidssl.evaluation.encode import EncoderReader, describe_videos
from vidssl.evaluation.iic_retrieval import MapReader, joint, pooled_map
from vidssl.evaluation.retrieval import Side, retrieve


def pooled_plainly(clip_map):
    """Loops over a map [F, t, h, w]."""
    f, t, h, w = clip_map.shape
    out = []
    for channel in range(f):
        for time in range(t):
            for y in range(h // 2):
                for x in range(w // 2):
                    out.append(clip_map[channel, time, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].max())
    return np.array(out)


class Small(torch.nn.Module):
    """A backbone with a map of 3 x 5 places."""

    features = 6

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv3d(3, 6, 3, padding=1)

    def forward(self, clips):
        return self.layer(clips)


def windows(clips, instance):
    n = len(instance)
    yield ClipBatch(
        clips={"rgb": clips[:, None]},
        instance=torch.as_tensor(instance),
        group=torch.arange(n),
        label=torch.zeros(n, dtype=torch.int64),
        epoch=0,
        step=0,
        start=torch.zeros(n, 1, dtype=torch.int64),
    )


def test_the_pooled_map_equals_the_loops_and_drops_the_odd_row():
    maps = np.random.default_rng(0).normal(size=(2, 3, 2, 5, 4)).astype(np.float32)
    expected = np.stack([pooled_plainly(one) for one in maps])
    np.testing.assert_array_equal(pooled_map(torch.from_numpy(maps)).numpy(), expected)


def test_iics_r3d_map_gives_9216_numbers():
    assert pooled_map(torch.zeros(1, 512, 2, 7, 7)).shape == (1, 9216)


def test_a_map_of_one_place_is_kept():
    maps = torch.arange(6.0).view(1, 3, 2, 1, 1)
    assert pooled_map(maps).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_a_video_is_the_raw_mean_of_its_clips_maps():
    encoder = Encoder(Small(), 4).eval()
    clips = torch.randn(3, 3, 2, 3, 5)
    found = describe_videos(windows(clips, [7, 7, 2]), [MapReader(encoder, "rgb")], np.array([7, 2]))
    with torch.no_grad():
        flat = [pooled_plainly(one) for one in encoder.backbone(clips).numpy()]
    np.testing.assert_allclose(found.rows["map/rgb"], [(flat[0] + flat[1]) / 2, flat[2]], rtol=1e-5)


def test_one_pass_gives_the_same_features_and_embeddings_as_the_usual_reader():
    encoder = Encoder(Small(), 4).eval()
    clips = {"rgb": torch.randn(2, 3, 2, 3, 5)}
    with torch.no_grad():
        both, usual = MapReader(encoder, "rgb")(clips), EncoderReader(encoder, "rgb")(clips)
    for name, rows in usual.items():
        torch.testing.assert_close(both[name], rows)


def test_p2_ranks_by_the_cosine_of_raw_rows_and_joint_lays_streams_side_by_side():
    rng = np.random.default_rng(3)
    rgb, other, label = rng.normal(size=(30, 5)) + 2, 10 * rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    both = joint(rgb, other)
    assert both.shape == (30, 9)
    found = retrieve(Side(both, label, np.arange(30), np.arange(30)), None, protocol="p2", ks=(1,))
    hits = 0
    for i in range(30):
        cosine = [
            -9.0 if i == j else float(both[i] @ both[j] / np.linalg.norm(both[i]) / np.linalg.norm(both[j]))
            for j in range(30)
        ]
        hits += label[int(np.argmax(cosine))] == label[i]
    assert found.at[1] == pytest.approx(hits / 30)
    assert found.similarity[0, 0] == pytest.approx(
        max(both[0] @ both[j] / np.linalg.norm(both[0]) / np.linalg.norm(both[j]) for j in range(1, 30))
    )
