"""A published checkpoint file, imported by its path alone, gives the features of the network that wrote it.

The files are rebuilt from the key lists of the papers' own checkpoints; nothing tells the importer which paper or
which backbone it is.
"""

from argparse import Namespace

import pytest
import torch

from tests.conformance.rebuilt import array, assert_same, checkpoint, load
from vidssl.encoder import build_encoder, unit_rows
from vidssl.saved.published import import_published

CASES = {
    "coclr_s3d": ("coclr", "s3d", {"encoder_k", "queue", "queue_ptr"}),
    "coclr_s3dg": ("coclr", "s3dg", {"encoder_k", "queue", "queue_ptr"}),
    "coclr_r50": ("coclr", "r2d3d50", {"encoder_k", "queue", "queue_ptr"}),
    "vicc_s3d": ("vicc", "s3d", set()),
    "vicc_r21d": ("vicc", "r21d10", set()),
    "iic_r3d": ("iic", "r3d10", set()),
    "iic_r21d": ("iic", "r21d10", set()),
    "iic_c3d": ("iic", "c3d", set()),
}


@pytest.mark.parametrize("case", CASES)
def test_a_published_file_gives_the_published_features(case, tmp_path):
    source, backbone, beside = CASES[case]
    said, stored = load(f"encoder_{case}")
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
    if case != "vicc_r21d":  # that network pools inside
        assert maps.shape == tuple(stored["backbone_shape"])
    assert_same(features, stored["backbone_pooled"])
    assert_same(embedding, stored["embedding_unnormalised"])
    if source == "vicc":
        scores = unit_rows(embedding) @ found.artifact["extra.prototypes.weight"].T
        assert_same(scores, stored["prototype_scores"])
