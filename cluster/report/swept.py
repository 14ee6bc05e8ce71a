"""What did a sweep find? A part of the page of a run that was searched or is a trial, and the page of a sweep of trainings."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from cluster.page.parts import Section, bare, card, page, table
from cluster.sweep.outcome import Arm, against_best, conclusion
from cluster.sweep.parallel import AXES_PICTURE
from cluster.sweep.written import OUTCOME, PICTURE, SweptOutcome
from vidssl.errors import StorageError
from vidssl.files import storage_error, write_whole
from vidssl.marks import mark_of
from vidssl.records import read_record

__all__ = ["swept_parts", "write_sweep_report"]


def swept_parts(home: Path) -> list[Section]:
    """Of the sweep on a run's bank, and of the sweep that a run is a trial of; nothing where there is neither.

    Args:
        home: The run's folder.

    Raises:
        CheckpointError: outcome.json is damaged.
    """
    whole = home.parent.parent
    trained = _trained(whole, home.name) if home.parent.name == "trials" and _is_sweep(whole) else None
    return [part for part in (_searched(home / "sweep"), trained) if part is not None]


def write_sweep_report(path: str | Path) -> Path:
    """Write `report.html` into a sweep's folder, from what lies there.

    Raises:
        CheckpointError: outcome.json is damaged.
        StorageError: nothing is there to tell of yet, or the page cannot be written.
    """
    home = Path(path).expanduser().resolve()
    part = _trained(home) or _searched(home)
    if part is None:
        raise StorageError(f"{path} has no result yet; type the words of the sweep again, it goes on")
    where, subtitle = home / "report.html", escape(str(home))
    try:
        write_whole(where, page(home.name, subtitle, [part]))
    except OSError as error:
        raise storage_error(error, where, instead="make room and type vidssl report again") from error
    return where


def _trained(home: Path, run: str = "") -> Section | None:
    """A sweep of trainings; `run` is the trial whose arm stands out instead of the best."""
    path = home / OUTCOME
    if not path.is_file():
        return None
    swept = read_record(SweptOutcome, path, "type the words of the sweep again")
    arms = swept.found.arms
    own = next((number for number, arm in enumerate(arms) if any(row.run == run for row in arm.rows)), None)
    lead = (
        f"{len(arms)} of {swept.possible} points of {escape(swept.name)}, {len(swept.seeds)} seed(s) each, chosen by "
        f"{swept.sampler}, trained to the end ({'every one' if swept.schedule == 'all' else 'those that halving let go on'}) "
        "and asked for R@1 of held-out training groups among the other training videos; no test video."
    )
    said = "".join(f"<p>{escape(line)}.</p>" for line in conclusion(swept.found, len(swept.seeds)))
    if run:
        name = f"This run is <b>{escape(arms[own].label)}</b>" if own is not None else "This run has no row yet"
        said = f"<p>{name}, one of that sweep ({escape(str(home))}).</p>{said}"
    strong = own if run else (0 if swept.found.best else None)
    body = said + card(
        "Arms, best first", _arms(arms, strong), "Percent; the interval is over videos or seeds, the wider."
    )
    body += _pictures(
        home, (PICTURE, "Arms, R@1 against p, and the rungs"), (AXES_PICTURE, "Which values the good points share")
    )
    if (home / "best.yaml").is_file():
        body += f"<p>The best one, trained anew: <code>vidssl train {escape(str(home / 'best.yaml'))}</code></p>"
    return Section("The sweep it is of" if run else "What was compared", lead, body)


def _is_sweep(folder: Path) -> bool:
    found = mark_of(folder)
    return found is not None and found.kind == "sweep"


def _arms(arms: tuple[Arm, ...], strong: int | None) -> str:
    rows = []
    for number, arm in enumerate(arms):
        pool = "–" if arm.pool is None else str(arm.pool)
        interval = f"{bare(arm.interval95[0])} – {bare(arm.interval95[1])}"
        rows.append([arm.label, pool, str(len(arm.finished)), bare(arm.r1), interval, against_best(arm, number == 0)])
    return table(["trained", "p", "seeds", "R@1", "95 %", "against the best"], rows, strong=strong)


def _searched(home: Path) -> Section | None:
    """A sweep on a bank: its picture, and the words of its best point."""
    if not _is_sweep(home) or (home / OUTCOME).is_file() or not (home / PICTURE).is_file():
        return None
    body = _pictures(home, (PICTURE, "Every point"))
    best = home / "best.yaml"
    if best.is_file():
        body += card("best.yaml", f"<pre>{escape(best.read_text())}</pre>")
    lead = f"Ways of mining tried offline on a bank's snapshot by <code>vidssl sweep</code>; every point is in {escape(str(home / 'sweep.csv'))}."
    return Section("The sweep on its bank", lead, body)


def _pictures(home: Path, *named: tuple[str, str]) -> str:
    """Pictures that are there, inside the page."""
    shown = ""
    for name, title in named:
        if (home / name).is_file():
            data = base64.b64encode((home / name).read_bytes()).decode()
            image = f'<img alt="{escape(title)}" style="max-width:100%" src="data:image/png;base64,{data}">'
            shown += card(title, image)
    return f'<div class="grid later" style="grid-template-columns:1fr">{shown}</div>' if shown else ""
