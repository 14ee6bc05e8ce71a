"""A loader without cost serves the first batches of a real one again and again."""

import threading

import pytest
import torch

from cluster.training.cached import CachedLoader
from pipelines.loader import LoaderSpec, TrainLoader
from tests.pipelines.small_packs import make_pack
from vidssl.recipe import Augment, Clips, Loader


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return make_pack(tmp_path_factory.mktemp("pack"), "h264")


def real(pack):
    spec = LoaderSpec(Clips(frames=4, size=32, per_video=2), Augment(preset="light"), Loader(), ("rgb",), 2, 0)
    return TrainLoader(pack, spec, rank=0, world=1, device=torch.device("cpu"))


def test_kept_batches_are_the_first_ones_in_turn_and_known_ahead(pack):
    straight, cached = real(pack), CachedLoader(real(pack), 3)
    first = [straight.next() for _ in range(3)]
    straight.close()
    wanted = [cached.upcoming(ahead).tolist() for ahead in range(1, 8)]
    for step in range(7):
        batch = next(cached)
        assert batch.step == step
        assert torch.equal(batch.clips["rgb"], first[step % 3].clips["rgb"])
        assert batch.instance.tolist() == wanted[step] == first[step % 3].instance.tolist()
    assert cached.seen == 14


def test_the_real_loader_has_ended_when_the_first_kept_batch_is_served(pack):
    cached = CachedLoader(real(pack), 2)
    next(cached)
    assert not [thread for thread in threading.enumerate() if thread.name == "vidssl-loader"]
    with pytest.raises(RuntimeError, match="does not go on from a state"):
        cached.load_state_dict(cached.state_dict())
