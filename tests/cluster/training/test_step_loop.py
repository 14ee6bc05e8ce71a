"""What the loop does around a step waits for nothing either: the finite watch, the meter, what goes to the bank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cluster.bank.spec import Push, Wanted
from cluster.training.failure import Halt
from cluster.training.finite import LAG, FiniteWatch
from cluster.training.meter import StepMeter
from pipelines.loader import LoaderMeter
from tests.cluster.training.small_runs import small
from tests.pretended_gpu import CUDA, PretendedGpu
from tests.vidssl.methods.test_host_waits import a_batch, on_the
from vidssl.batch import Embeddings
from vidssl.methods import StepOutput
from vidssl.saved.run_folder import RunFolder
from vidssl.transfer import Later

NONE = np.zeros(0, np.int64)


def test_a_loss_on_a_gpu_is_looked_at_two_steps_later_without_a_wait_for_its_own_step(tmp_path, packed):
    watch, ids = FiniteWatch(small(packed, tmp_path), RunFolder(tmp_path / "small"), 24), np.arange(4)
    with PretendedGpu() as gpu:
        for step in range(LAG):
            watch.note(step, gpu.holds(torch.tensor(float("nan") if step == 0 else 1.0)), ids)
            assert (gpu.events, gpu.waits.total()) == (0, 0)
        with pytest.raises(Halt, match=r"at step 1 of 24 \(rank 0, videos 0, 1, 2, 3\)"):
            watch.note(LAG, gpu.holds(torch.tensor(1.0)), ids)
        assert (gpu.events, gpu.waits.total()) == (1, 0)
        watch.settle()


def test_the_meter_reads_the_device_in_log_rows_alone():
    with PretendedGpu() as gpu:
        batch = on_the(gpu, a_batch(0, ("rgb",)))
        meter = StepMeter(_Same(batch, LoaderMeter()), None, "rgb", 16, CUDA, nn.Identity())
        for _ in range(3):
            assert meter.timed_next() is batch
            rows = gpu.holds(torch.nn.functional.normalize(torch.randn(8, 4), dim=1))
            meter.step_done(
                StepOutput(gpu.holds(torch.tensor(2.0)), {"rgb": rows}, {"a": gpu.holds(torch.tensor(3.0))})
            )
            assert not gpu.waits
        row = meter.read(2, 0, 0.1)
        assert (row["loss"], row["a"]) == (2.0, 3.0)
        assert gpu.waits


class _Same:
    def __init__(self, batch, meter):
        self.batch, self.meter = batch, meter

    def __next__(self):
        return self.batch


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_for_the_bank_leave_the_device_behind_an_event_that_the_clients_thread_waits_for(dtype):
    rows = torch.randn(4, 8)
    wanted = Wanted(NONE, NONE, NONE)
    at_once = Push(1, 0, 5, Embeddings({"rgb": rows.numpy()}, np.arange(4), 5, 0), wanted).arrived(dtype)
    with PretendedGpu() as gpu:
        push = Push(1, 0, 5, Embeddings({"rgb": Later(gpu.holds(rows))}, np.arange(4), 5, 0), wanted)
        assert (gpu.events, gpu.waits.total()) == (0, 0)
        here = push.arrived(dtype)
        assert (gpu.events, gpu.waits.total()) == (1, 0)
    assert at_once.rows is not None
    assert here.rows is not None
    assert np.array_equal(here.rows.views["rgb"], at_once.rows.views["rgb"])
    assert Push(1, 0, 5, None, wanted).arrived(dtype).rows is None
