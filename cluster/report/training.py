"""How was it made? The parts of the report about mining, training and protocol; what is missing is said in words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final, NamedTuple

import numpy as np

from cluster.report.page import Section, bare, card, not_evaluated, pairs, percent, table
from cluster.report.pictures import Curve, Stage, funnel, line_chart
from vidssl.health import PrototypeHealth, examine_prototypes
from vidssl.recipe import Recipe
from vidssl.tables.strategies import RIVALS, STRATEGIES

__all__ = ["again", "curves_part", "mining_part", "protocol_part", "prototype_health"]

Json = Mapping[str, Any]


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
        "Cosine to the other view minus cosine to the clip's own intra-negative: it has to grow above zero.",
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
        ("bank_age_steps", "bank/age_steps"),
        "Steps between mining and use: how stale the bank's answer is.",
        either=True,
    ),
    Chart("Clips per second", ("clips_per_second",), "Throughput of all workers together."),
    Chart(
        "Waiting for data",
        ("wait_ratio",),
        "Share of the step time in which the step stood still for the loader.",
        share=True,
    ),
    Chart("Time of a push", ("bank/push_ms",), "Milliseconds that handing one batch of rows to the bank takes."),
    Chart("Step time", ("step_ms",), "Median milliseconds of a step."),
    Chart("Learning rate", ("lr",), "As the schedule says."),
)


def mining_part(result: Json | None, recipe: Recipe, run: str) -> Section:
    """The cascade: how it narrows, how pure it gets, and its rivals on the same bank."""
    title = "What the bank hands out"
    lead = (
        "The cascade narrows the bank of all videos view by view; each stage keeps those most similar in one view. "
        "Measured afterwards on the last snapshot of the bank, with labels that mining itself never sees."
    )
    if not recipe.mines:
        known = recipe.method.traits
        why = f"{known.title} {known.positives}" if known.positives else f"mining.where={recipe.mining.where}"
        return Section(title, lead, f'<p class="missing">This run does not mine: {escape(why)}.</p>')
    if result is None:
        return Section(title, lead, not_evaluated(run))
    if result["results"] is None:
        return Section(title, lead, f'<p class="missing">No numbers: {escape(result["reason"])}.</p>')
    stages = [Stage(item["name"], item["left"], item["purity"]) for item in result["stages"]]
    rows = [
        [
            name,
            bare(r["precision"]),
            bare(r["hit"]),
            f"{100 * r['coverage_median']:.0f} ({100 * r['coverage_q1']:.0f} – {100 * r['coverage_q3']:.0f})",
        ]
        for name, r in result["results"].items()
    ]
    siblings = max(r["sibling_rate"] for r in result["results"].values())
    shape = card(
        "From the whole bank to the positives",
        funnel(stages),
        "Top to bottom: how many videos are left after each stage (mean over queries; widths are logarithmic) and the share of "
        "them with the query's class. A cascade that works gets purer on the way down.",
    )
    head = ["percent", "precision@k", "hit@k", "coverage"]
    rivals = card(
        "Against its rivals, on the same bank",
        table(head, rows, strong=0),
        "precision@k: share of mined videos with the query's class. hit@k: queries with at least one. coverage: share of a class that "
        f"its own queries find, median over classes (quartiles). Single and aux use one view alone, {_fused()} both at "
        "once; random is the floor. "
        f"Videos cut from the query's own source were {percent(siblings)} of the mined (they are excluded).",
    )
    about = result["protocol"]
    words = f"Plan: {about['plan']}. k = {about['k']}. Bank of step {about['bank_step']}, {about['filled']} of {about['slots']} slots filled."
    return Section(title, lead, f'<div class="grid wide">{shape}{rivals}</div><p class="note">{escape(words)}</p>')


def _fused() -> str:
    """Names of the rivals that use both views at once."""
    return " and ".join(name for name in RIVALS if STRATEGIES[name].fuses)


def curves_part(
    log: Sequence[Mapping[str, float]], health: Json | None, prototypes: PrototypeHealth | None = None
) -> Section:
    """What was logged, and whether the embeddings (and ViCC's prototypes) are healthy."""
    title, lead = "How training went", "Logged by the run itself, over optimizer steps; every chart has its own scale."
    if not log:
        return Section(title, lead, '<p class="missing">Nothing was logged: there is no log.jsonl, or it is empty.</p>')
    tags = {tag for row in log for tag in row}
    cards = [_chart(chart, log, tags) for chart in _CHARTS if tags & set(chart.tags)]
    rest = tags - {"step", "epoch", "loss/total"}.union(*(chart.tags for chart in _CHARTS))
    others = "".join(card(tag, line_chart([_curve(tag, log)])) for tag in sorted(rest))
    more = "<details><summary>everything else that was logged</summary>" if others else ""
    more += f'<div class="grid">{others}</div></details>' if others else ""
    return Section(
        title, lead, f'<div class="grid">{"".join(cards)}</div>{more}{_health(health)}{_prototypes(prototypes)}'
    )


def _chart(chart: Chart, log: Sequence[Mapping[str, float]], tags: set[str]) -> str:
    have = [tag for tag in chart.tags if tag in tags]
    curves = [_curve(tag, log, known=chart.from_zero) for tag in (have[:1] if chart.either else have)]
    return card(chart.title, line_chart(curves, floor=0.0 if chart.from_zero else None, share=chart.share), chart.note)


def _curve(tag: str, log: Sequence[Mapping[str, float]], known: bool = False) -> Curve:
    """One tag over steps; with `known`, values below zero (they stand for "nothing to measure") are left out."""
    values = [float(row.get(tag, np.nan)) for row in log]
    return Curve(tag, [row["step"] for row in log], [np.nan if known and value < 0 else value for value in values])


def _health(health: Json | None) -> str:
    if not health:
        return ""
    items = [
        ("verdict", health["verdict"]),
        ("effective rank (RankMe)", f"{health['rankme']:.1f} of at most {min(health['rows'], health['dim'])}"),
        ("spread", f"{health['std']:.2f}; 1 is evenly spread over the sphere, 0 is collapse"),
        ("uniformity", f"{health['uniformity']:.2f}; near 0 is collapse, -2 and below is well spread"),
    ]
    if health.get("alignment") is not None:
        near = (
            f"{health['alignment']:.2f}; mean squared distance of two windows of a video, small beside a low uniformity"
        )
        items.append(("alignment", near))
    if health.get("dead"):
        items.append(("quiet dimensions", f"{health['dead']} of {health['dim']} hardly vary"))
    return f"<h3>Health of the embeddings</h3>{pairs(items)}"


def prototype_health(log: Sequence[Mapping[str, float]], recipe: Recipe) -> PrototypeHealth | None:
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


def protocol_part(results: Sequence[tuple[str, Json | None]], recipe: Recipe, facts: Json) -> Section:
    """Everything that is needed to compare a number of this page with another one."""
    groups: list[tuple[str, list[tuple[str, str]]]] = []
    told: dict[str, Any] = {}
    for name, result in results:
        if result:  # what both share is said once
            new = {key: value for key, value in result["protocol"].items() if key not in told or told[key] != value}
            told |= new
            groups.append((name, [(key, _plain(value)) for key, value in new.items()]))
    versions = facts.get("versions") or {}
    machine = [(key, str(facts[key])) for key in ("started", "machine", "python", "data_hash") if key in facts]
    groups.append(("the run", machine + [(str(k), str(v)) for k, v in versions.items()]))
    body = "".join(card(name, pairs(items)) for name, items in groups if items)
    body = f'<div class="grid wide">{body}</div>'
    body += f"<details><summary>the recipe</summary><pre>{escape(recipe.to_yaml())}</pre></details>"
    return Section("Protocol", "Numbers may be compared where these lines agree, and nowhere else.", body)


def again(recipe: Recipe, facts: Json, run: str) -> Section:
    """The commands that make the run and this page again."""
    lines = [str(facts.get("command") or f"vidssl train {shlex.quote(run + '/recipe.yaml')}")]
    lines += [f"vidssl evaluate {shlex.quote(run)}", f"vidssl report {shlex.quote(run)}"]
    hint = f"The data must be there: {recipe.data}." if recipe.data else ""
    return Section(
        "Do it again",
        f"These words make the run, its numbers and this page. {escape(hint)}",
        f"<pre>{escape(chr(10).join(lines))}</pre>",
    )


def _plain(value: object) -> str:
    return "–" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
