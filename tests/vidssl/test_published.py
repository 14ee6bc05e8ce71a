"""Importing published checkpoints: names, prefixes, aliases, and what is refused."""

import pytest
import torch
from torch import nn

from vidssl.encoder import Encoder
from vidssl.errors import CheckpointError
from vidssl.published import from_coclr, import_encoder, read_published, to_coclr


class Block(nn.Module):
    features = 4

    def __init__(self):
        super().__init__()
        self.block1 = nn.Conv3d(3, 4, 1)

    def forward(self, clips):
        return self.block1(clips)


@pytest.fixture
def file():
    """A published-looking checkpoint of an encoder, with an alias, a key encoder and a queue."""
    torch.manual_seed(0)
    encoder = Encoder(Block(), 5)
    state = to_coclr(encoder.state_dict())
    state["encoder_q.0.Conv_1a.weight"] = torch.full((4, 3, 1, 1, 1), 9.0)
    state |= {key.replace("encoder_q", "encoder_k"): 2 * value for key, value in to_coclr(encoder.state_dict()).items()}
    return encoder, state | {"queue": torch.zeros(5, 8)}


def test_export_and_import_are_inverse_and_heads_are_pointwise_convolutions(file):
    encoder, state = file
    assert state["encoder_q.2.weight"].shape == (4, 4, 1, 1, 1)
    back = from_coclr(state)
    assert back.keys() == encoder.state_dict().keys()
    for key, value in encoder.state_dict().items():
        assert torch.equal(back[key], value), key


def test_either_encoder_can_be_read_with_or_without_the_prefix_of_ddp(file):
    encoder, state = file
    target = Encoder(Block(), 5)
    imported = import_encoder(target, {f"module.{key}": value for key, value in state.items()}, "encoder_k")
    assert torch.equal(target.head[0].bias, 2 * encoder.head[0].bias)
    assert "module.queue" in imported.ignored
    assert set(imported.loaded) == set(target.state_dict())


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}, lambda s: s])
def test_files_are_read_in_all_published_wrappings(file, tmp_path, wrap):
    _, state = file
    torch.save(wrap({f"module.{key}": value for key, value in state.items()}), tmp_path / "epoch299.pth.tar")
    found = read_published(tmp_path / "epoch299.pth.tar")
    assert found.keys() == state.keys()


def test_another_encoder_is_refused_and_nothing_is_loaded(file):
    _, state = file
    target = Encoder(Block(), 6)
    before = target.head[0].bias.clone()
    with pytest.raises(CheckpointError, match=r"2 have another shape \(first: head\.2\.bias\); set model\.backbone"):
        import_encoder(target, state)
    assert torch.equal(target.head[0].bias, before)
    del state["encoder_q.4.bias"]
    state["encoder_q.0.block9.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 layers are missing in it, 1 are unknown"):
        import_encoder(Encoder(Block(), 5), state)


def test_a_file_without_such_an_encoder_is_refused_with_what_it_has():
    with pytest.raises(CheckpointError, match=r"no key begins with 'encoder_q\.'; this file has backbone, queue"):
        from_coclr({"queue": torch.zeros(1), "backbone.x": torch.zeros(1)})


def test_files_that_are_no_safe_checkpoints_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_published(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="is no checkpoint that can be read safely"):
        read_published(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_published(tmp_path / "list.pth")
