"""A published checkpoint file, imported by its path alone, gives the features of the network that wrote it.

The files are rebuilt from the key lists of the papers' own checkpoints; nothing tells the importer which paper or
which backbone it is.
"""

from argparse import Namespace

import pytest
import torch

from tests.conformance.rebuilt import array, assert_same, cases, checkpoint, load
from vidssl.encoder import build_encoder, unit_rows
from vidssl.saved.published import import_published

BACKBONES = {"s3d": "s3d", "s3dg": "s3dg", "r50": "r2d3d50", "r21d": "r21d10", "r3d": "r3d10", "c3d": "c3d"}
"""By the second word of a case's name; the first is whose code wrote the file."""
BESIDE = {"coclr": {"encoder_k", "queue", "queue_ptr"}, "vicc": set(), "iic": set()}


@pytest.mark.parametrize("case", cases("encoder"))
def test_a_published_file_gives_the_published_features(case, tmp_path):
    source, net = case.split("_")[1:3]  # encoder_SOURCE_NET
    backbone, beside = BACKBONES[net], BESIDE[source]
    said, stored = load(case)
    # what their training loops wrote beside the weights
    besides = {"opt": Namespace(lr=0.01), "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]}}
    torch.save(checkpoint(said) | besides, tmp_path / "epoch299.pth.tar")
    found = import_published(tmp_path / "epoch299.pth.tar")
    (tmp_path / "epoch299.pth.tar").unlink()

    assert (found.source, found.model.backbone) == (source, backbone)
    assert {key.split(".")[0] for key in found.report.ignored} == beside
    assert not found.report.missing
    assert not found.report.unexpected
    encoder = build_encoder(found.model).eval()
    encoder.load_state_dict({key: rows for key, rows in found.artifact.items() if not key.startswith("extra.")})
    name, shape = said["input"]
    clips = array(name, *shape, salt=said["salt"])
    if backbone == "c3d":  # its clips are large; in evaluation mode rows do not see each other
        clips, stored = clips[:1], {key: rows[:1] for key, rows in stored.items()}
    with torch.no_grad():
        maps = encoder.backbone(clips)
        features = maps.mean((2, 3, 4))
        embedding = encoder.head(features)
    assert maps.shape[:2] == (len(clips), encoder.width)
    if source == "iic":
        assert_same(features, stored["feature"])
        assert_same(embedding, stored["feature"])  # no head
        return
    if (source, net) != ("vicc", "r21d"):  # that network pools inside
        assert maps.shape == tuple(stored["backbone_shape"])
    assert_same(features, stored["backbone_pooled"])
    assert_same(embedding, stored["embedding_unnormalised"])
    if source == "vicc":
        scores = unit_rows(embedding) @ found.artifact["extra.prototypes.weight"].T
        assert_same(scores, stored["prototype_scores"])
