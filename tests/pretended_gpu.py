"""A pretended CUDA device, for machines without one: does the host wait for the device, are devices mixed?

Tensors say `cuda:0`, hold their values on the CPU, refuse to be mixed with CPU tensors as CUDA does, and every wait of
the host for the device is counted by name: a scalar that is read, a copy to the host, `nonzero`, and a copy from memory
that is not pinned. What the values are is torch's own computation; how fast a GPU is nobody learns here.

    with PretendedGpu() as gpu:
        found = work(gpu.holds(tensor))
    assert gpu.waits == Counter({"to host": 1})
"""

from __future__ import annotations

from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
WAITING = {"nonzero", "masked_select", "unique", "_unique2", "unique_dim", "equal"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
MADE = {"full", "empty", "zeros", "ones", "arange", "tensor", "as_tensor", "randn", "rand", "linspace"}


class _There(torch.Tensor):
    """A tensor on the pretended device."""

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> _There:
        facts = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, here.size(), device=CUDA, **facts)

    def __init__(self, here: torch.Tensor) -> None:
        self.here = here

    def numpy(self, *args, **options):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _GPUS[-1].run(function, args, kwargs or {})


class PretendedGpu(TorchDispatchMode):
    """While it is entered, what names the device `cuda` is made on the pretended one."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._functions = _Functions(self)

    def holds(self, values: torch.Tensor) -> torch.Tensor:
        """The values as they would lie on the device, already there."""
        return _There(values)

    def __enter__(self):
        torch._C._ensureCUDADeviceGuardSet()
        _GPUS.append(self)
        self._functions.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._functions.__exit__(*error)
        _GPUS.pop()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return self.run(function, args, kwargs or {})

    def run(self, function, args, kwargs):
        name, flat = function._overloadpacket.__name__, tree_flatten((args, kwargs))[0]
        there = [one for one in flat if isinstance(one, _There)]
        here = [one for one in flat if isinstance(one, torch.Tensor) and not isinstance(one, _There) and one.dim()]
        goes_to = kwargs.get("device")
        if there and here and name not in {"copy_", "_to_copy", *INDEXING}:
            raise RuntimeError(f"Expected all tensors to be on the same device: {name} mixes cuda:0 and cpu")
        self._count(name, args, there, here, goes_to)
        stays = bool(there) and not (name == "_to_copy" and goes_to is not None and not _is_cuda(goes_to))
        if name == "copy_":
            stays = isinstance(args[0], _There)
        result = function(*tree_map(_bare, args), **tree_map(_bare, kwargs))
        known = {id(one.here): one for one in there}
        return tree_map(lambda one: _there(one, known), result) if stays else result

    def _count(self, name, args, there, here, goes_to) -> None:
        if not there:
            return
        if name == "_local_scalar_dense":
            self.waits["scalar"] += 1
        if name in WAITING:
            self.waits[name] += 1
        if name in INDEXING and any(_is_tensor(one) and one.dtype == torch.bool for one in tree_flatten(args[1])[0]):
            self.waits["nonzero"] += 1
        if name in INDEXING and here:
            self.waits["index from the host"] += 1
        if name == "_to_copy" and goes_to is not None and not _is_cuda(goes_to):
            self.waits["to host"] += 1
        if name == "copy_" and here:
            self.waits["to device, not pinned" if isinstance(args[0], _There) else "to host"] += 1


class _Functions(TorchFunctionMode):
    """Calls that would ask the missing CUDA runtime: making a tensor there, sending one, pinning one."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if name == "pin_memory":
            pinned = args[0].clone()
            pinned.is_pinned_here = True
            return pinned
        device = kwargs.get("device", args[1] if name == "to" and len(args) > 1 else None)
        if name == "to" and _is_cuda(device):
            if isinstance(args[0], _There):
                return args[0]
            if not (getattr(args[0], "is_pinned_here", False) and kwargs.get("non_blocking")):
                self._gpu.waits["to device, not pinned"] += 1
            return _There(args[0].detach())
        if name in MADE and _is_cuda(device):
            if name in {"tensor", "as_tensor"}:
                self._gpu.waits["to device, not pinned"] += 1
            return _There(function(*args, **{**kwargs, "device": "cpu"}))
        if name in {"__getitem__", "__setitem__"} and isinstance(args[0], _There):
            return self._indexed(*args)
        return function(*args, **kwargs)

    def _indexed(self, there, index, *values):
        """`there[index]`, or with a value `there[index] = value`; torch's own would look for the device's driver."""
        for one in tree_flatten((index, values))[0]:
            if _is_tensor(one) and one.dim() and not isinstance(one, _There):
                self._gpu.waits["index or value from the host"] += 1
            if _is_tensor(one) and one.dtype == torch.bool:
                self._gpu.waits["nonzero"] += 1
        with torch._C.DisableTorchFunction():
            if values:
                there.here[tree_map(_bare, index)] = _bare(values[0])
                return None
            return _There(there.here[tree_map(_bare, index)])


_GPUS: list[PretendedGpu] = []


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
