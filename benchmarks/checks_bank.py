"""The bank's actor beside what this machine has: can its miners feed simulated workers?"""

from __future__ import annotations

from benchmarks.checking import Note, Setting

__all__ = ["bank_load"]


def bank_load(setting: Setting, note: Note) -> None:
    """Half and twice of what the bank can mine: fallback, age, rates; its miners as the machine allows."""
    from benchmarks.bank_load import Load, capacity, loaded_bank, phase
    from cluster.launch import ray_session

    load = Load(4, 8, 512) if setting.small else Load(8, 64, 240_000)
    seconds = 1.0 if setting.small else 30.0
    with ray_session(2), loaded_bank(load) as (ranks, pid):
        mined = capacity(ranks, seconds)
        note("can_mine_per_s", mined)
        for name, share in (("half", 0.5), ("twice", 2.0)):
            note(name, phase(ranks, pid, seconds, load.world * load.batch / (share * mined)))
