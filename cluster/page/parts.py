"""The page itself: one file, no request, light and dark by the reader's setting, one column on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = [
    "Section",
    "bar_list",
    "bare",
    "between",
    "card",
    "class_bars",
    "not_evaluated",
    "page",
    "pairs",
    "percent",
    "table",
    "tiles",
]


_MANY_CLASSES = 24


@dataclass(frozen=True)
class Section:
    """One part of the page: a heading, what it shows and how to read it, and its body (HTML)."""

    title: str
    lead: str
    body: str


def page(title: str, subtitle: str, sections: Sequence[Section], alarms: Sequence[str] = ()) -> str:
    """The whole HTML document; `alarms` are plain sentences that stand before everything else."""
    bells = "".join(f'<p class="alarm">{escape(sentence)}</p>' for sentence in alarms)
    anchors = [(f"s{i}", section) for i, section in enumerate(sections)]
    links = "".join(f'<a href="#{anchor}">{escape(section.title)}</a>' for anchor, section in anchors)
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(s.title)}</h2><p class="lead">{s.lead}</p>{s.body}</section>'
        for anchor, s in anchors
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)} · vidssl report</title><style>{_CSS}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{subtitle}</p>{bells}<nav>{links}</nav></header><main>{body}</main></body></html>\n"
    )


def tiles(items: Sequence[tuple[str, str, str]]) -> str:
    """Big numbers: (value, name, note) each; the first one stands out."""
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span><small>{escape(note)}</small></div>'
        for value, name, note in items
    )
    return f'<div class="tiles">{cells}</div>'


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], strong: int | None = None, words: Sequence[int] = ()
) -> str:
    """A table that scrolls inside itself on narrow screens; row `strong` stands out, columns `words` hold running text."""

    def cells(kind: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{kind}{' class=words' if i in words else ''}>{escape(cell)}</{kind}>" for i, cell in enumerate(row)
        )

    body = "".join(f"<tr{' class=strong' if i == strong else ''}>{cells('td', row)}</tr>" for i, row in enumerate(rows))
    kind = " class=wordy" if words else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{cells("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'


def pairs(items: Sequence[tuple[str, str]]) -> str:
    """Names and values, one under the other."""
    return '<dl class="pairs">' + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items) + "</dl>"


def card(title: str, body: str, note: str = "") -> str:
    """A framed picture with its heading and, under it, what it shows."""
    under = f'<p class="note">{note}</p>' if note else ""
    return f'<figure class="card"><figcaption>{escape(title)}</figcaption>{body}{under}</figure>'


def bar_list(rows: Sequence[tuple[str, float, float | None]]) -> str:
    """Shares as bars: (name, share, where another share stands, drawn as a tick)."""
    cells = []
    for name, share, other in rows:
        tick = "" if other is None else f'<u style="left:{100 * min(max(other, 0), 1):.1f}%"></u>'
        cells.append(
            f'<div class="bar"><span title="{escape(name)}">{escape(name)}</span>'
            f'<i><em style="width:{100 * min(max(share, 0), 1):.1f}%"></em>{tick}</i><b>{100 * share:.0f}</b></div>'
        )
    return f'<div class="bars">{"".join(cells)}</div>'


def class_bars(rows: Sequence[tuple[str, float, float | None]]) -> str:
    """`bar_list` of classes, best first; of many the best and the worst, and all of them folded away."""
    ordered = sorted(rows, key=lambda row: (-row[1], row[0]))
    if len(ordered) <= _MANY_CLASSES:
        return bar_list(ordered)
    half = _MANY_CLASSES // 2
    body = f"<h3>best {half}</h3>{bar_list(ordered[:half])}<h3>worst {half}</h3>{bar_list(ordered[-half:])}"
    return body + f"<details><summary>all {len(ordered)} classes</summary>{bar_list(ordered)}</details>"


def not_evaluated(run: str) -> str:
    """What stands where there are no results yet."""
    words = f"Not evaluated yet. Type <code>vidssl evaluate {escape(run)}</code>, which writes this report again."
    return f'<p class="missing">{words}</p>'


def percent(share: float | None) -> str:
    """A share with its sign, one decimal."""
    return "–" if share is None else f"{bare(share)} %"


def bare(share: float | None) -> str:
    """A share in percent without its sign, one decimal."""
    return "–" if share is None else f"{100 * share:.1f}"


def between(interval: tuple[float, float] | None) -> str:
    """The edges of an interval of shares in percent; nothing where there is none."""
    return f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}" if interval else ""


_CSS = """
:root{--bg:#f7f7f5;--card:#fff;--ink:#1d1d1f;--soft:#6a6a70;--line:#e3e3df;--good:#1f9d55;--bad:#d64545;--mark:#2f6fdb;
--c0:#2f6fdb;--c1:#e07b29;--c2:#2a9d8f;--c3:#c2408f;--c4:#7a5cd6;--c5:#a07c1b;--c6:#3aa0d8;--c7:#d1495b;--c8:#5f8a3a;--c9:#8a6f5c}
@media(prefers-color-scheme:dark){:root{--bg:#131416;--card:#1c1e21;--ink:#ececee;--soft:#9b9ca3;--line:#2e3136;--good:#4ac07f;
--bad:#f07a7a;--mark:#78a6ff;--c0:#78a6ff;--c1:#f2a25c;--c2:#55c7b8;--c3:#e77fbd;--c4:#a793f5;--c5:#d6b45a;--c6:#72c5f0;
--c7:#f08a97;--c8:#9cc773;--c9:#c0a692}}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",
Arial,sans-serif;font-variant-numeric:tabular-nums}
header,main{max-width:1080px;margin:0 auto;padding:0 20px}header{padding-top:44px}
h1{font-size:clamp(1.7rem,5vw,2.5rem);line-height:1.15;margin:0 0 .3em;letter-spacing:-.02em;overflow-wrap:anywhere}
header p{margin:0 0 1em;font-size:1.06rem;color:var(--soft);max-width:75ch}header p b{color:var(--ink);font-weight:600}
nav{display:flex;gap:6px 8px;flex-wrap:wrap;margin:18px 0 0}nav a{color:var(--ink);text-decoration:none;border:1px solid var(--line);
background:var(--card);border-radius:99px;padding:3px 12px;font-size:.86rem}nav a:hover{border-color:var(--mark)}
section{padding:34px 0 4px}h2{font-size:1.35rem;margin:0 0 .25em;letter-spacing:-.01em}
h3{font-size:1rem;margin:1.4em 0 .5em}
.verdict{font-weight:600;margin:0 0 1em}
.lead{margin:0 0 1.1em;color:var(--soft);max-width:75ch}.note,.missing{color:var(--soft);font-size:.88rem;margin:.6em 0 0}
.missing{padding:14px 16px;border:1px dashed var(--line);border-radius:10px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-bottom:16px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 16px;display:flex;flex-direction:column}
.tile b{font-size:1.9rem;line-height:1.15;font-weight:650;letter-spacing:-.02em}.tile:first-child b{color:var(--mark)}
.tile span{font-weight:550}.tile small{color:var(--soft);line-height:1.35}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:12px}
table{border-collapse:collapse;width:100%;font-size:.94rem}th,td{padding:8px 14px;text-align:right;white-space:nowrap}
th{color:var(--soft);font-weight:550;font-size:.84rem}td{border-top:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}tr.strong td{font-weight:650}
table.wordy td{vertical-align:top}th.words,td.words{white-space:normal;text-align:left}td.words{min-width:8em;font-size:.86rem}
td.words:first-child{min-width:11em}td.words:last-child{min-width:22em;color:var(--soft)}
.card th,.card td{padding:7px 9px}
.alarm{border:1px solid var(--bad);border-left-width:6px;border-radius:10px;background:var(--card);padding:10px 16px;
font-weight:600;margin:14px 0 0}header p.alarm{color:var(--ink);max-width:none;margin:14px 0 0}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(300px,100%),1fr));gap:14px}
.grid.later{margin-top:16px}.grid.wide{grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr))}
.card{margin:0;background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 16px}
figcaption{font-weight:600;font-size:.94rem;margin-bottom:6px}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:11px;font-family:inherit}
svg text.on{fill:var(--ink);opacity:.82}svg text.strong{fill:var(--ink);font-weight:650;font-size:13px}line.gridline{stroke:var(--line)}
polyline.curve{fill:none;stroke-width:1.9;stroke-linejoin:round;stroke-linecap:round}
svg.map circle{fill-opacity:.78}svg.map text.halo{fill:var(--ink);font-size:15px;font-weight:650;paint-order:stroke;
stroke:var(--card);stroke-width:5px;stroke-linejoin:round}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;margin:.5em 0 0;font-size:.84rem;color:var(--soft)}
.legend i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px}
.query{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px;margin-bottom:14px;display:grid;
grid-template-columns:repeat(3,1fr);gap:12px}
.shot{margin:0;min-width:0}.shot img,.shot .gone{width:100%;display:block;border-radius:8px;border:3px solid var(--line)}
.shot .gone{padding:22px 8px;text-align:center;color:var(--soft);font-size:.82rem}
.shot.ask img{border-color:var(--mark)}.shot.right img{border-color:var(--good)}.shot.wrong img{border-color:var(--bad)}
.shot figcaption{font-weight:500;font-size:.84rem;margin:4px 0 0;display:flex;justify-content:space-between;gap:6px;min-width:0}
.shot figcaption span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}.shot figcaption small{color:var(--soft);white-space:nowrap}
.ask figcaption b{color:var(--mark)}.right figcaption b{color:var(--good)}.wrong figcaption b{color:var(--bad)}
.query.pair{grid-template-columns:repeat(2,1fr)}.card+.query{margin-top:14px}.bars.one{grid-template-columns:1fr}
@media(max-width:640px){th,td{padding:7px 8px}table{font-size:.86rem}.query{grid-template-columns:repeat(2,1fr)}.query.pair{grid-template-columns:1fr}header{padding-top:28px}}
.bars{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(280px,100%),1fr));gap:5px 26px}
.bar{display:grid;grid-template-columns:minmax(0,9.5em) 1fr 2.2em;gap:10px;align-items:center;font-size:.86rem}
.bar span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}.bar b{text-align:right;font-weight:550}
.bar i{position:relative;height:10px;background:var(--line);border-radius:5px}.bar em{position:absolute;inset:0 auto 0 0;
background:var(--c0);border-radius:5px}.bar u{position:absolute;top:-3px;width:2px;height:16px;background:var(--ink);opacity:.65}
.pairs{display:grid;grid-template-columns:minmax(0,13em) minmax(0,1fr);gap:3px 18px;margin:0;font-size:.92rem}
.pairs dt{color:var(--soft)}.pairs dd{margin:0;overflow-wrap:anywhere}
.card .pairs{grid-template-columns:minmax(0,11em) minmax(0,1fr);font-size:.88rem}
@media(max-width:640px){.pairs,.card .pairs{grid-template-columns:minmax(0,8.5em) minmax(0,1fr)}}
pre{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 16px;overflow-x:auto;font:13px/1.6
ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;margin:.6em 0}details{margin:.8em 0}summary{cursor:pointer;font-weight:550}
main{padding-bottom:70px}
@media print{nav{display:none}section{break-inside:avoid}}
"""
