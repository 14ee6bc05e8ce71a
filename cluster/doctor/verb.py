"""`vidssl doctor [RECIPE data=…]`: this machine in words, what would be chosen on it, and what a training would need and wait for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from cluster.doctor.machine import Finding, findings

__all__ = ["run_doctor"]

_SIGNS = {"ok": "  ", "note": "~ ", "fault": "! "}


def run_doctor(recipe: str | None, words: Sequence[str], say: Callable[[str], None]) -> int:
    """Print what was found.

    Args:
        recipe: A training that is asked about; None: only the machine.
        words: `key=value` of it.
        say: Prints a line.

    Returns:
        0.

    Raises:
        DeviceError: something is at fault; all the rest was said before.
        RecipeError: words without a recipe.
        VidsslError: a recipe or data that cannot be used.
    """
    from vidssl.errors import DeviceError, RecipeError

    if recipe is None and words:
        raise RecipeError(
            f"'{words[0]}' is a word of a recipe and none is named; type vidssl doctor RECIPE data=PACKED"
        )
    found = findings()
    for finding in found:
        say(_line(finding))
    for line in choices():
        say(line)
    if recipe is not None:
        from cluster.doctor.training import looked_at

        for line in looked_at(recipe, words):
            say(line)
    faults = [finding.name for finding in found if finding.state == "fault"]
    if faults:
        raise DeviceError(f"to be mended before a training: {', '.join(faults)}; what and how stands above")
    return 0


def _line(finding: Finding) -> str:
    mend = f"; {finding.mend}" if finding.mend else ""
    return f"{_SIGNS[finding.state]}{finding.name:24}{finding.words}{mend}"


def choices() -> list[str]:
    """What `auto` would take here, and why."""
    import torch

    cuda = torch.cuda.is_available()
    decode = "nvdec for H.264 and VP9" if cuda else "py (FFmpeg in threads) for H.264, dali-cpu for VP9"
    precision = (
        "trainer.precision=bf16 can be typed: this GPU has it"
        if cuda and torch.cuda.get_device_capability()[0] >= 8
        else "trainer.precision=fp32; bf16 brings nothing here"
    )
    mining = (
        "the GPU with mining.gpus_per_miner, else a calibrated CPU engine"
        if cuda
        else "numpy, torch or FAISS: whichever is fastest here, measured once and kept"
    )
    return [
        "chosen here:",
        f"  trainer.device=auto     {'cuda' if cuda else 'cpu'}",
        f"  loader.decode=auto      {decode}",
        f"  mining.backend=auto     {mining}",
        f"  precision               {precision}",
        f"  Python                  {sys.executable}",
    ]
