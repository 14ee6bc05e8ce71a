"""A pretended CUDA device, for machines without one: does the host wait for the device, are devices mixed?

Tensors say `cuda:0`, hold their values on the CPU, refuse to be mixed with CPU tensors as CUDA does, forward and backward,
and every wait of the host for the device is counted by name: a scalar that is read, a copy to the host, `nonzero`, and a
copy from memory that is not pinned. A wait for an event is counted apart, as it need not be for the newest work. What the
values are is torch's own computation; how fast a GPU is nobody learns here.

    with PretendedGpu() as gpu:
        found = work(gpu.holds(tensor))
    assert gpu.waits == Counter({"to host": 1})
"""

from __future__ import annotations

import contextlib
from collections import Counter
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
WAITING = {"nonzero", "masked_select", "unique", "_unique2", "unique_dim", "equal"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class _There(torch.Tensor):
    """A tensor on the pretended device. Torch's own code, which has no CUDA here, takes it for one on the CPU."""

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> _There:
        facts = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, here.size(), device="cpu", **facts)

    def __init__(self, here: torch.Tensor) -> None:
        self.here = here

    def numpy(self, *args, **options):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def tolist(self):
        _GPUS[-1].waits["to host"] += 1
        return self.here.tolist()

    def record_stream(self, stream: object) -> None:
        self.read_on = stream

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _GPUS[-1].run(function, args, kwargs or {})


class _Stream:
    """What `torch.cuda.Stream` is: an order of work, beside others; who waits for it waits for no other's."""

    def __init__(self, device: object = None) -> None:
        self.waited = 0

    def synchronize(self) -> None:
        self.waited += 1


class _Event:
    """What `torch.cuda.Event` is: recorded behind work, and somebody may wait for that."""

    def record(self, stream: object = None) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        _GPUS[-1].events += 1


class PretendedGpu(TorchDispatchMode):
    """While it is entered, what names the device `cuda` is made on the pretended one.

    Attributes:
        waits: By name, how often the host waited for the newest work of the device.
        events: How often it waited for an event.
        stream: The one that a training step is on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.events = 0
        self.stream = _Stream()
        self._open = contextlib.ExitStack()

    def holds(self, values: torch.Tensor) -> torch.Tensor:
        """The values as they would lie on the device, already there."""
        return _There(values)

    def moves(self, module: nn.Module) -> nn.Module:
        """The module with all that it holds on the device; copies, so that what it was made from stays as it is."""
        moved: dict[int, nn.Parameter] = {}
        for part in module.modules():
            for name, one in part._parameters.items():
                if one is not None:
                    copy = nn.Parameter(_There(one.detach().clone()), one.requires_grad)
                    part._parameters[name] = moved.setdefault(id(one), copy)
            for name, one in part._buffers.items():
                part._buffers[name] = None if one is None else _There(one.detach().clone())
        return module

    def __enter__(self):
        _GPUS.append(self)
        self._open.enter_context(mock.patch.object(torch.cuda, "Event", _Event))
        self._open.enter_context(mock.patch.object(torch.cuda, "Stream", _Stream))
        self._open.enter_context(mock.patch.object(torch.cuda, "current_stream", return_value=self.stream))
        self._open.enter_context(mock.patch.object(torch.cuda, "stream", contextlib.nullcontext))
        self._open.enter_context(mock.patch("torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype", _grouped))
        self._open.enter_context(_Functions(self))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._open.close()
        _GPUS.pop()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return self.run(function, args, kwargs or {})

    def run(self, function, args, kwargs):
        name, flat = function._overloadpacket.__name__, tree_flatten((args, kwargs))[0]
        there = [one for one in flat if isinstance(one, _There)]
        here = [one for one in flat if _is_tensor(one) and not isinstance(one, _There) and one.dim()]
        if there and here and name not in {"copy_", *INDEXING}:
            raise RuntimeError(f"Expected all tensors to be on the same device: {name} mixes cuda:0 and cpu")
        if there:
            self._count(name, args, kwargs, here)
        stays = isinstance(args[0], _There) if name == "copy_" else bool(there)
        result = function(*tree_map(_bare, args), **tree_map(_bare, kwargs))
        known = {id(one.here): one for one in there}
        return tree_map(lambda one: _there(one, known), result) if stays else result

    def _count(self, name, args, kwargs, here) -> None:
        if name == "_local_scalar_dense":
            self.waits["scalar"] += 1
        if name in WAITING:
            self.waits[name] += 1
        if name in INDEXING and any(_is_tensor(one) and one.dtype == torch.bool for one in tree_flatten(args[1])[0]):
            self.waits["nonzero"] += 1
        if name in INDEXING and here:
            self.waits["index or value from the host"] += 1
        goes_on = any(getattr(one, "is_pinned_here", False) for one in here) and (*args, False)[2]
        if name == "copy_" and here and not goes_on:
            self.waits["to device, not pinned" if isinstance(args[0], _There) else "to host"] += 1


class _Functions(TorchFunctionMode):
    """Calls that would ask the missing CUDA runtime: making a tensor there, sending one, pinning one."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if name == "pin_memory" or kwargs.pop("pin_memory", False):
            pinned = args[0].clone() if name == "pin_memory" else function(*args, **kwargs)
            pinned.is_pinned_here = True
            return pinned
        if name in {"to", "cpu"}:
            return self._sent(function, args, kwargs, name)
        if _is_cuda(kwargs.get("device")):
            if name in {"tensor", "as_tensor"}:
                self._gpu.waits["to device, not pinned"] += 1
            made = function(*map(_bare, args), **{**kwargs, "device": "cpu"})
            return made if isinstance(made, _There) else _There(made)
        return function(*args, **kwargs)

    def _sent(self, function, args, kwargs, name):
        """`to` and `cpu`: the device is taken out of the words, the dtype is torch's own business."""
        given, *rest = args
        devices = [one for one in (kwargs.get("device"), *rest) if isinstance(one, torch.device | str)]
        rest = [one for one in rest if not isinstance(one, torch.device | str)]
        kwargs.pop("device", None)
        as_wanted = function(given, *rest, **kwargs) if name == "to" and (rest or kwargs) else given
        if name == "cpu" or (devices and not _is_cuda(devices[0])):
            if not isinstance(given, _There):
                return as_wanted
            self._gpu.waits["to host"] += 1
            return as_wanted.here
        if not devices or isinstance(given, _There):
            return as_wanted
        if not (getattr(given, "is_pinned_here", False) and kwargs.get("non_blocking")):
            self._gpu.waits["to device, not pinned"] += 1
        return _There(as_wanted.detach())


_GPUS: list[PretendedGpu] = []


def _grouped(tables, *rest):
    """Torch groups gradients by device in code that does not see the pretended one."""
    found = _group_tensors_by_device_and_dtype(tables, *rest)
    return {(group[0][0].device, dtype): (group, places) for (_, dtype), (group, places) in found.items()}


def _there(one, known):
    """What an operation returns, on the device; what it changed in place is the tensor that was given."""
    if not isinstance(one, torch.Tensor):
        return one
    return known[id(one)] if id(one) in known else _There(one)


def _bare(one):
    if isinstance(one, _There):
        return one.here
    return torch.device("cpu") if isinstance(one, torch.device) and one.type == "cuda" else one


def _is_tensor(one) -> bool:
    return isinstance(one, torch.Tensor)


def _is_cuda(device) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"
