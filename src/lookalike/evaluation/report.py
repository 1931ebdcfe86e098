"""A report as one page that needs nothing else: tables with intervals, curves, queries with their hits, confusion."""

from __future__ import annotations

import base64
import math
from html import escape
from pathlib import Path
from typing import Any

from lookalike import images
from lookalike.errors import InputError
from lookalike.evaluation.protocol import Report, heading

_STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#222, #eee); --soft: light-dark(#777, #aaa); --line: light-dark(#ddd, #444);
  --good: light-dark(#1a7f4b, #5fd39a); --bad: light-dark(#b3261e, #ff8a80); }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: light-dark(#fff, #181818); max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2.5rem; } p { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } th, td { white-space: nowrap; } td small { color: var(--soft); }
.confusion td, .confusion th { font-size: 12px; padding: .15rem .35rem; text-align: right; border: 0; }
.confusion thead th { writing-mode: vertical-rl; text-align: left; }
.query { margin: 1rem 0; } .hits { display: flex; gap: .5rem; flex-wrap: wrap; }
figure { margin: 0; width: 96px; font-size: 11px; color: var(--soft); }
figure img { width: 96px; height: 128px; object-fit: contain; background: #fff;
  border: 2px solid var(--line); border-radius: 4px; }
figure.good img { border-color: var(--good); }
figcaption { display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical; overflow: hidden; }
.plot { max-width: 100%; background: #fff; border-radius: 4px; }
.miss { color: var(--bad); }
svg text { fill: var(--soft); font-size: 12px; } svg .axis { stroke: var(--line); }
svg .name { stroke: light-dark(#fff, #181818); stroke-width: 4px; paint-order: stroke; }
"""
_LINES = ("#8c2f4b", "#2b6cb0", "#2f855a", "#b7791f", "#6b46c1", "#4a5568", "#c05621")


def write(report: Report, file: Path) -> None:
    """Write ``report`` (see ``protocol``) as HTML. Raises InputError where the file cannot be written."""
    parts = [f"<h1>{escape(heading(report))}</h1><p>{escape(report.get('note', ''))}</p>"]
    parts += [_table(t) for t in report["tables"]]
    parts += [f"<h2>{escape(plot['name'])}</h2>" + _plot(plot) for plot in report.get("plots", [])]
    if report.get("curves"):
        title = report.get("about_curves", "By the number of hits")
        parts.append(f"<h2>{escape(title)}</h2>" + _curves(report["curves"]))
    for name, picture in report.get("pictures", ()):
        data = base64.b64encode(Path(picture).read_bytes()).decode()
        parts.append(
            f'<h2>{escape(name)}</h2><img class="plot" alt="{escape(name)}" src="data:image/png;base64,{data}">'
        )
    if report.get("confusion"):
        parts.append("<h2>Confusion</h2><p>Rows: what was asked; columns: what was found; in percent.</p>")
        parts.append(_confusion(report["confusion"]))
    if report.get("gallery"):
        parts.append("<h2>Queries</h2><p>A green frame is right.</p>" + "".join(_query(q) for q in report["gallery"]))
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(report['title'])}</title><style>{_STYLE}</style><body>{''.join(parts)}</body></html>"
    )
    try:
        file.write_text(page, "utf-8")
    except OSError as error:
        raise InputError(f"{file}: the report cannot be written ({error.strerror})") from error


def _table(table: dict[str, Any]) -> str:
    figures = list(dict.fromkeys(f for row in table["rows"].values() for f in row))
    head = "".join(f"<th>{escape(f)}</th>" for f in figures)
    body = ""
    for name, row in table["rows"].items():
        cells = "".join(f"<td>{_figure(row.get(f))}</td>" for f in figures)
        body += f"<tr><td>{escape(name)}</td>{cells}</tr>"
    title = f"<h2>{escape(table['name'])}</h2><p>{table['queries']:,} queries; mean and 95% interval</p>"
    return f'{title}<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(value: dict[str, Any] | None) -> str:
    if value is None:
        return "–"
    if "shown" in value:
        return escape(str(value["shown"]))
    return f"{value['mean']:.3f}" + (
        f" <small>{value['low']:.3f}–{value['high']:.3f}</small>" if "low" in value else ""
    )


def _curves(curves: list[dict[str, Any]]) -> str:
    """All curves over ranks in one drawing, the ranks evenly spaced."""
    ranks = sorted({k for curve in curves for k, _ in curve["points"]})
    wide, high = 560, 260

    def place(n: int, value: float) -> str:
        return f"{50 + n * wide / max(1, len(ranks) - 1):.1f},{20 + high * (1 - value):.1f}"

    out = '<div class="wide"><svg viewBox="0 0 860 320" width="860" role="img" aria-label="figures by the number of hits">'
    for value in (0, 0.25, 0.5, 0.75, 1):
        y = 20 + high * (1 - value)
        out += (
            f'<line class="axis" x1="50" x2="{50 + wide}" y1="{y}" y2="{y}"/><text x="8" y="{y + 4}">{value:.2f}</text>'
        )
    for n, k in enumerate(ranks):
        out += f'<text x="{50 + n * wide / max(1, len(ranks) - 1) - 6:.0f}" y="{high + 42}">{k}</text>'
    for curve, colour, n in zip(curves, _LINES * 3, range(len(curves)), strict=False):
        points = " ".join(place(ranks.index(k), value) for k, value in curve["points"])
        out += f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'
        out += f'<rect x="{wide + 75}" y="{24 + n * 22}" width="14" height="4" fill="{colour}"/>'
        out += f'<text x="{wide + 96}" y="{32 + n * 22}">{escape(curve["name"])} ({escape(curve["figure"])})</text>'
    return out + "</svg></div>"


def _plot(plot: dict[str, Any]) -> str:
    """Points with their intervals: y from 0 to 1, x on a logarithmic scale; names beside them, moved apart where they meet."""
    points = sorted(plot["points"], key=lambda p: -p["y"])
    wide, high, left, top = 560, 300, 60, 20
    exponents = [math.log10(p["x"]) for p in points]
    lowest, highest = math.floor(min(exponents) * 2) / 2 - 0.25, math.ceil(max(exponents) * 2) / 2 + 0.25
    bottom: float = math.floor(min(p["low"] for p in points) * 10) / 10
    above: float = max(bottom + 0.1, math.ceil(max(p["high"] for p in points) * 10) / 10)

    def across(x: float) -> float:
        return left + wide * (math.log10(x) - lowest) / (highest - lowest)

    def down(y: float) -> float:
        return top + high * (above - y) / (above - bottom)

    name = escape(plot["name"])
    out = f'<div class="wide"><svg viewBox="0 0 860 380" width="860" role="img" aria-label="{name}">'
    steps = round((above - bottom) * 10)
    for n in range(steps + 1):
        value = bottom + n / 10
        y = down(value)
        out += f'<line class="axis" x1="{left}" x2="{left + wide}" y1="{y:.1f}" y2="{y:.1f}"/>'
        out += f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>'
    for power in range(math.floor(lowest), math.ceil(highest) + 1):
        for factor in (1, 2, 5):
            value = factor * 10.0**power
            if lowest <= math.log10(value) <= highest:
                x = across(value)
                out += f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{top + high}" y2="{top + high + 5}"/>'
                out += f'<text x="{x:.1f}" y="{top + high + 20}" text-anchor="middle">{value:,g}</text>'
    out += f'<text x="{left + wide / 2}" y="{top + high + 44}" text-anchor="middle">{escape(plot["x"])}</text>'
    out += f'<text x="{left}" y="{top - 8}">{escape(plot["y"])}</text>'
    named: list[tuple[float, float]] = []
    for point in points:
        colour, x, y = _LINES[point["series"] % len(_LINES)], across(point["x"]), down(point["y"])
        ends = f'y1="{down(point["low"]):.1f}" y2="{down(point["high"]):.1f}"'
        out += f'<line stroke="{colour}" stroke-width="2" x1="{x:.1f}" x2="{x:.1f}" {ends}/>'
        out += f'<circle fill="{colour}" r="5" cx="{x:.1f}" cy="{y:.1f}"/>'
        beside = y + 4
        while any(abs(beside - other) < 14 and abs(x - at) < 260 for at, other in named):
            beside += 2
        named.append((x, beside))
        out += f'<text class="name" x="{x + 10:.1f}" y="{beside:.1f}">{escape(_short(point["name"]))} {point["y"]:.3f}</text>'
    return out + "</svg></div>"


def _short(name: str) -> str:
    return name if len(name) <= 36 else f"{name[:20]}…{name[-15:]}"


def _confusion(confusion: dict[str, Any]) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in confusion["columns"])
    body = ""
    for name, shares in zip(confusion["rows"], confusion["shares"], strict=True):
        cells = "".join(
            f'<td style="background: rgb(140 47 75 / {share:.2f}){"; color: #fff" if share > 0.5 else ""}">'
            f"{round(share * 100) or ''}</td>"
            for share in shares
        )
        body += f"<tr><th>{escape(name)}</th>{cells}</tr>"
    table = f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table class="confusion">{table}</table></div>'


def _query(query: dict[str, Any]) -> str:
    hits = "".join(
        f'<figure class="{"good" if hit["relevant"] else ""}">{_photo(hit["path"])}'
        f"<figcaption>{escape(hit['title'])}</figcaption></figure>"
        for hit in query["hits"]
    )
    missed = "" if query["found"] else ' <span class="miss">not found</span>'
    return f'<div class="query"><b>{escape(query["query"])}</b>{missed}<div class="hits">{hits}</div></div>'


def _photo(path: str) -> str:
    try:
        data = base64.b64encode(images.thumbnail(images.read(path, at_least=96), 96)).decode()
    except InputError:
        return "<i>the photo is gone</i>"
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'
