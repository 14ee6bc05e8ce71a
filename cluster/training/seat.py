"""Where does one rank sit? Its number, its device and its node: of a Ray Train worker, or of a process by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Seat", "alone", "ray_seat"]


@dataclass(frozen=True)
class Seat:
    """One rank's place.

    Attributes:
        rank: 0 … world − 1.
        world: How many there are.
        device: It computes there.
        node: Address of its machine.
    """

    rank: int
    world: int
    device: torch.device
    node: str = "127.0.0.1"


def ray_seat() -> Seat:
    """Of the Ray Train worker that asks."""
    import ray.train
    import ray.train.torch
    import ray.util

    context = ray.train.get_context()
    return Seat(
        context.get_world_rank(),
        context.get_world_size(),
        ray.train.torch.get_device(),
        ray.util.get_node_ip_address(),
    )


def alone(use_gpu: bool) -> Seat:
    """Of a process by itself."""
    import torch

    return Seat(0, 1, torch.device("cuda:0" if use_gpu else "cpu"))
