"""A batch is handed to a GPU beside the training step: pinned, on the loader's own stream; asked of a pretended one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from pipelines.loader import LoaderSpec, _batch_of
from pipelines.loading import beside as module
from pipelines.loading.beside import beside
from tests.pretended_gpu import CUDA, PretendedGpu
from vidssl.recipe import Augment, Clips, Loader


def made(clips, device):
    plan = SimpleNamespace(instance=np.array([3, 1]), start=np.array([[4, 9], [0, 7]]), epoch=2, step=11)
    samples = SimpleNamespace(group=np.array([5, 6, 7, 8]), label=np.array([0, 1, 2, 3]))
    manifest = SimpleNamespace(samples=samples, flow=None)
    spec = LoaderSpec(Clips(), Augment(), Loader(), ("rgb", "residual"), 2, 0)
    return _batch_of(SimpleNamespace(plan=plan), {"rgb": clips}, manifest, spec, device)


def test_a_batch_reaches_the_device_without_a_wait_of_the_training_stream():
    clips = torch.randn(2, 2, 3, 4, 8, 8)
    expected = made(clips, torch.device("cpu"))
    module._stream.cache_clear()
    with PretendedGpu() as gpu:
        batch = made(gpu.holds(clips), CUDA)
        assert not gpu.waits
        assert gpu.stream.waited == 0
        assert module._stream(CUDA).waited == 1
        for one in (batch.instance, batch.group, batch.label, batch.start, *batch.clips.values()):
            assert one.device == CUDA
            assert one.read_on is gpu.stream
        for name in ("instance", "group", "start"):
            assert (
                batch.on_host(name).tolist() == getattr(expected, name).tolist() == getattr(batch, name).here.tolist()
            )
        assert not gpu.waits
    module._stream.cache_clear()
    assert torch.equal(batch.clips["residual"].here, expected.clips["residual"])
    assert (batch.epoch, batch.step) == (2, 11)


def test_on_a_cpu_nothing_changes():
    with beside(torch.device("cpu")) as lent:
        lent.append(torch.zeros(1))
