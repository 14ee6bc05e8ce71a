"""How was it made? The parts of the report about training and protocol; what is missing is said in words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final, NamedTuple

import numpy as np

from cluster.page.parts import Section, card, pairs, percent
from cluster.page.pictures import Curve, line_chart
from cluster.report.run import Facts, Log
from vidssl.evaluation.protocol import Protocol
from vidssl.health import Health, PrototypeHealth, examine_prototypes
from vidssl.recipe import Recipe
from vidssl.records import to_tree

__all__ = ["again", "curves_part", "protocol_part", "prototype_health"]

Row = Mapping[str, float]
"""One logged step."""


class Chart(NamedTuple):
    """A picture of the log: which tags, what they say, where its axis starts, whether they are shares.

    `either`: the tags are names of one thing, and the first that was logged is drawn.
    """

    title: str
    tags: tuple[str, ...]
    note: str
    from_zero: bool = True
    share: bool = False
    either: bool = False


_CHARTS: Final = (
    Chart(
        "Loss",
        ("loss", "loss/rgb", "loss/residual", "loss/first", "loss/second"),
        "What training lowers. A step where mining starts is normal: the task changes.",
        from_zero=False,
    ),
    Chart(
        "Own clip recognised",
        ("train/acc@1", "train/acc@1_residual", "train/acc@1_rgb"),
        "How often a clip's other clip scores highest of all in the queue. It falls when mined positives make the task harder.",
        share=True,
    ),
    Chart(
        "Below ln P",
        ("vicc/ln_p_gap",),
        "How far the loss is below ln P, the answer of somebody who knows nothing. At zero the prototypes are of no use yet.",
        from_zero=False,
    ),
    Chart(
        "Prototypes in use",
        ("prototypes/used", "prototypes/entropy", "prototypes/row_entropy"),
        "used: prototypes that are some row's best; entropy: of the mean assignment (100 % is even use); row entropy: of one row's own.",
        share=True,
    ),
    Chart(
        "Busiest prototype",
        ("prototypes/max_mass",),
        "Its share of all assignments, as a multiple of the even share: 1 is even.",
    ),
    Chart(
        "Margin over its own broken clip",
        ("iic/intra_margin",),
        "Cosine to the second view minus cosine to the clip's own intra-negative: it has to grow above zero.",
        from_zero=False,
    ),
    Chart(
        "Positives per row",
        ("mining/positives_mean", "mining/mined_mean"),
        "How many videos each clip is pulled towards; mined ones come from the cascade.",
    ),
    Chart(
        "Mined right",
        ("mining/precision_at_k", "mining/hit_at_k"),
        "precision: share of mined positives that have the row's class; hit: rows with at least one. Labels are used for this curve only, never for mining.",
        share=True,
    ),
    Chart(
        "Rows without mined positives",
        ("mining/fallback_rate", "bank/fallback_ratio"),
        "They learn from their own second clip alone.",
        share=True,
        either=True,
    ),
    Chart(
        "Age of mined positives",
        ("bank/age_p50", "bank/age_p99", "bank_age_steps"),
        "Steps between mining and use: half of the rows are younger than p50, all but one in a hundred than p99.",
    ),
    Chart(
        "Rows mined per second",
        ("bank/mined_per_s", "bank/needed_per_s"),
        "What the miners do against what training asks for. Where they do less, positives grow older.",
    ),
    Chart("Clips per second", ("clips_per_second",), "Throughput of all workers together."),
    Chart(
        "Waiting for data",
        ("wait_ratio",),
        "Share of the step time in which the step stood still for the loader.",
        share=True,
    ),
    Chart(
        "Making a batch, ms",
        ("data/read_ms", "data/decode_ms", "data/augment_ms", "data/handover_ms"),
        "One stage after the other, on the loader's thread: the largest is what to make faster. Where DALI decodes, decode holds augment.",
    ),
    Chart(
        "Batches ready when one is asked for",
        ("data/queue",),
        "Share of loader.prefetch that was waiting: full while the loader is faster than the step.",
        share=True,
    ),
    Chart("Time of a push", ("bank/push_ms",), "Milliseconds that handing one batch of rows to the bank takes."),
    Chart("Step time", ("step_ms",), "Median milliseconds of a step."),
    Chart("Learning rate", ("lr",), "As the schedule says."),
)


def curves_part(log: Log, health: Health | None, prototypes: PrototypeHealth | None = None) -> Section:
    """What was logged, and whether the embeddings (and ViCC's prototypes) are healthy."""
    title, lead = "How training went", "Logged by the run itself, over optimizer steps; every chart has its own scale."
    lost = "".join(f'<p class="missing">{escape(said)}</p>' for said in (log.lost, _bank_trouble(log.rows)) if said)
    if not log.rows:
        none = '<p class="missing">Nothing was logged: there is no log.jsonl, or it is empty.</p>'
        return Section(title, lead, lost or none)
    tags = {tag for row in log.rows for tag in row}
    cards = [_chart(chart, log.rows, tags) for chart in _CHARTS if tags & set(chart.tags)]
    rest = tags - {"step", "epoch", "loss/total"}.union(*(chart.tags for chart in _CHARTS))
    others = "".join(card(tag, line_chart([_curve(tag, log.rows)])) for tag in sorted(rest))
    more = "<details><summary>everything else that was logged</summary>" if others else ""
    more += f'<div class="grid">{others}</div></details>' if others else ""
    body = f'<div class="grid">{"".join(cards)}</div>{more}{_health(health)}{_prototypes(prototypes)}{lost}'
    return Section(title, lead, body)


def _bank_trouble(rows: Sequence[Row]) -> str:
    """What mining cost the run, in a sentence; "" where nothing did."""
    told = [row for row in rows if "bank/push_ms" in row]
    if not told:
        return ""
    outages, seconds, refused, dropped = (
        max(row.get(f"bank/{name}", 0.0) for row in told) for name in ("outages", "away_s", "rejected", "dropped")
    )
    said = [f"was away {outages:.0f} time(s), {seconds:.0f} s in all"] if outages else []
    said += [f"took {dropped:.0f} pushes of a rank less than were made"] if dropped else []
    said += [f"refused {refused:.0f} rows"] if refused else []
    return (
        f"The bank {', and '.join(said)}: rows without mined positives learn from their own second clip."
        if said
        else ""
    )


def _chart(chart: Chart, log: Sequence[Row], tags: set[str]) -> str:
    have = [tag for tag in chart.tags if tag in tags]
    curves = [_curve(tag, log, known=chart.from_zero) for tag in (have[:1] if chart.either else have)]
    return card(chart.title, line_chart(curves, floor=0.0 if chart.from_zero else None, share=chart.share), chart.note)


def _curve(tag: str, log: Sequence[Row], known: bool = False) -> Curve:
    """One tag over steps; with `known`, values below zero (they stand for "nothing to measure") are left out."""
    values = [float(row.get(tag, np.nan)) for row in log]
    return Curve(tag, [row["step"] for row in log], [np.nan if known and value < 0 else value for value in values])


def _health(health: Health | None) -> str:
    if health is None:
        return ""
    items = [
        ("verdict", health.verdict),
        ("effective rank (RankMe)", f"{health.rankme:.1f} of at most {min(health.rows, health.dim)}"),
        ("spread", f"{health.std:.2f}; 1 is evenly spread over the sphere, 0 is collapse"),
        ("uniformity", f"{health.uniformity:.2f}; near 0 is collapse, -2 and below is well spread"),
    ]
    if health.alignment is not None:
        near = f"{health.alignment:.2f}; mean squared distance of two windows of a video, small beside a low uniformity"
        items.append(("alignment", near))
    if health.dead:
        items.append(("quiet dimensions", f"{health.dead} of {health.dim} hardly vary"))
    return f"<h3>Health of the embeddings</h3>{pairs(items)}"


def prototype_health(log: Sequence[Row], recipe: Recipe) -> PrototypeHealth | None:
    """The verdict on a ViCC run's prototypes from the last tenth of its log; None for other methods and empty logs."""
    rows = [row for row in log if "loss" in row]
    if not recipe.method.traits.prototypes or not rows:
        return None
    from vidssl.prototypes import stuck_at_ln_p

    count, last = recipe.method.vicc.prototypes, rows[-max(1, len(rows) // 10) :]
    stuck = stuck_at_ln_p([int(row["step"]) for row in rows], [row["loss"] for row in rows], count)
    loss, entropy, used = (
        float(np.mean([row.get(tag, np.nan) for row in last]))
        for tag in ("loss", "prototypes/entropy", "prototypes/used")
    )
    return examine_prototypes(count, loss, entropy, used, stuck)


def _prototypes(health: PrototypeHealth | None) -> str:
    if health is None:
        return ""
    items = [("verdict", health.verdict), ("prototypes", str(health.prototypes))]
    if np.isfinite(health.entropy):
        items.append(("entropy of the mean assignment", f"{percent(health.entropy)} of ln P; 100 % is even use"))
    if np.isfinite(health.used):
        items.append(("some row's best", percent(health.used)))
    return f"<h3>Health of the prototypes</h3>{pairs(items)}"


def protocol_part(protocols: Mapping[str, Protocol], recipe: Recipe, facts: Facts) -> Section:
    """Everything that is needed to compare a number of this page with another one."""
    groups: list[tuple[str, list[tuple[str, str]]]] = []
    first: dict[str, object] = {}
    for name, protocol in protocols.items():
        tree = {key: value for key, value in to_tree(protocol).items() if value not in ([], {})}
        first = first or tree
        own = {key: value for key, value in tree.items() if tree is first or key not in first or first[key] != value}
        groups.append((name, [(key, _plain(value)) for key, value in own.items()]))
    groups.append(("the run", facts.lines()))
    body = "".join(card(name, pairs(items)) for name, items in groups if items)
    body = f'<div class="grid wide">{body}</div>'
    body += f"<details><summary>the recipe</summary><pre>{escape(recipe.to_yaml())}</pre></details>"
    lead = (
        "Numbers may be compared where these lines agree, and nowhere else. "
        "The lines of the first card hold for the other evaluations too, where they say nothing else."
    )
    return Section("Protocol", lead, body)


def again(recipe: Recipe, facts: Facts, run: str) -> Section:
    """The commands that make the run and this page again."""
    lines = [facts.command or f"vidssl train {shlex.quote(run + '/recipe.yaml')}"]
    lines += [f"vidssl evaluate {shlex.quote(run)}", f"vidssl report {shlex.quote(run)}"]
    hint = f"The data must be there: {recipe.data}." if recipe.data else ""
    return Section(
        "Do it again",
        f"These words make the run, its numbers and this page. {escape(hint)}",
        f"<pre>{escape(chr(10).join(lines))}</pre>",
    )


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items() if one is not None)
    return "–" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
