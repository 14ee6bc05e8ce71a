"""What Prometheus is told is what the log says, under the names that the dashboard asks for."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest

import cluster.deploy
from cluster.training.gauges import CLOCK, GAUGES, RunGauges
from tests.cluster.test_job import free_ports

NAMES = {f"ray_{name}" for name, _ in (*GAUGES.values(), CLOCK)}


def dashboard() -> dict:
    return json.loads((Path(cluster.deploy.__path__[0]) / "grafana.json").read_text())


def test_the_dashboard_asks_for_every_gauge_that_is_exported_and_for_no_other():
    asked = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    assert {name for expr in asked for name in re.findall(r"\bray_vidssl_\w+", expr)} == NAMES
    assert all('{run=~"$run"}' in expr for expr in asked)


def test_panels_of_the_dashboard_do_not_overlap_and_each_says_what_it_shows():
    panels = dashboard()["panels"]
    places = [(one["gridPos"]["x"], one["gridPos"]["y"]) for one in panels]
    assert len(set(places)) == len({one["id"] for one in panels}) == len(panels)
    assert all(one["description"] and one["title"] and len(one["targets"]) > 0 for one in panels)
    for panel in panels:
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_every_gauge_is_a_column_that_a_log_row_has():
    """The names of rows are written down where they are made; a gauge of a column that nobody writes would stay empty."""
    sources = Path(cluster.deploy.__path__[0]).parents[1]
    files = ("cluster/training/meter.py", "cluster/bank/tally.py", "cluster/bank/client.py", "cluster/bank/presence.py")
    text = "".join((sources / file).read_text() for file in files)
    stages = {f"data/{stage}_ms" for stage in ("read", "decode", "augment", "handover")}
    missing = [column for column in GAUGES if f'"{column}"' not in text and column not in stages]
    assert not missing


def test_without_ray_nothing_is_exported_and_nothing_breaks():
    gauges = RunGauges("small")
    gauges._served = False
    gauges.show({"step": 1})
    assert not gauges._gauges


@pytest.mark.slow
@pytest.mark.ray
def test_a_scrape_of_a_node_finds_the_numbers_of_the_row_under_the_name_of_the_run():
    import ray

    if ray.is_initialized():
        pytest.skip("another test of this process holds a Ray without a known metrics port")
    (port,) = free_ports(1)
    ray.init(
        address="local", num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1", _metrics_export_port=port
    )
    try:
        shown = {column: at + 0.25 for at, column in enumerate(GAUGES)}
        before = time.time()
        RunGauges("small").show(shown)
        found = scraped(port)
        for column, (name, _) in GAUGES.items():
            assert found[f"ray_{name}"] == pytest.approx(shown[column] + (column == "step")), column
        assert before - 1 <= found[f"ray_{CLOCK[0]}"] <= time.time()
        assert set(found) == NAMES
    finally:
        ray.shutdown()


def scraped(port: int) -> dict[str, float]:
    """Ours of what a node serves, read as Prometheus reads it; the agent passes new gauges on every few seconds."""
    from prometheus_client.parser import text_string_to_metric_families

    deadline, found = time.monotonic() + 90, {}
    while time.monotonic() < deadline and len(found) < len(NAMES):
        time.sleep(0.5)
        try:
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        except OSError:
            continue
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        found = {one.name: one.value for one in samples if one.labels.get("run") == "small"}
    return found
