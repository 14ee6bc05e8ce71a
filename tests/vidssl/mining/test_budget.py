"""Scores may take a quarter of the memory that is free, in the machine or in what of it this process may use."""

from __future__ import annotations

import torch

from vidssl.mining.budget import LEAST, device_budget, host_budget

GB = 1 << 30


def system(folder, available_kb, limit=None, used=0):
    meminfo = folder / "meminfo"
    meminfo.write_text(f"MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable: {available_kb} kB\n")
    group = folder / "group"
    group.mkdir(exist_ok=True)
    if limit is not None:
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
    return meminfo, group


def test_a_quarter_of_what_is_available(tmp_path):
    assert host_budget(*system(tmp_path, 16 * GB // 1024)) == 4 * GB
    assert host_budget(*system(tmp_path, 16 * GB // 1024, "max")) == 4 * GB


def test_a_container_has_what_its_limit_leaves(tmp_path):
    assert host_budget(*system(tmp_path, 16 * GB // 1024, 10 * GB, 2 * GB)) == 2 * GB


def test_never_so_little_that_queries_go_one_by_one(tmp_path):
    assert host_budget(*system(tmp_path, 1000)) == LEAST


def test_a_system_that_says_nothing_gets_a_budget_too(tmp_path):
    assert host_budget(tmp_path / "no", tmp_path / "neither") >= LEAST
    assert device_budget(torch.device("cpu")) >= LEAST
