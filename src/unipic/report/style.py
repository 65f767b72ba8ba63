"""How a page looks: a readable width, tabular numbers, light and dark, and on paper."""

from __future__ import annotations

# For light and dark. For every kind of colour vision, any two are 17 or more apart (CIEDE2000), and all stand out from
# the ground by 3:1. Dashes tell curves apart in grey.
COLORS = (
    ("#00619b", "#51a3d9"),
    ("#992800", "#c7530b"),
    ("#5ba073", "#7dffb4"),
    ("#5d364e", "#9c7c85"),
    ("#73787e", "#ced1d8"),
    ("#c96800", "#f0a900"),
)
DASHES = ("none", "7 3", "2 3", "9 3 2 3")

_LIGHT = "--paper: #fff; --ink: #1b1b1b; --faint: #666; --rule: #d9d9d9; --good: #11722f; --bad: #b3261e;"
_DARK = "--paper: #16181b; --ink: #e6e6e6; --faint: #a0a0a0; --rule: #3a3d42; --good: #5dc97d; --bad: #ff8a80;"


def _palette(theme: int) -> str:
    return " ".join(f"--c{i}: {pair[theme]};" for i, pair in enumerate(COLORS))


def _looks() -> str:
    colors = [f".c{i} {{ stroke: var(--c{i}); }}" for i in range(len(COLORS))]
    dashes = [f".line.d{i} {{ stroke-dasharray: {dash}; }}" for i, dash in enumerate(DASHES)]
    return "\n".join(colors + dashes)


# Colours of the dark are for screens alone: paper is white.
CSS = f"""
:root {{ color-scheme: light dark; {_LIGHT} {_palette(0)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK} {_palette(1)} }} }}
body {{ margin: 2.5rem auto; padding: 0 1.25rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: break-word; }}
h1 {{ font-size: 1.75rem; line-height: 1.2; margin: 0 0 1.5rem; }}
h2 {{ font-size: 1.2rem; line-height: 1.3; margin: 2.5rem 0 0.75rem; break-after: avoid; }}
h3 {{ font-size: 1rem; font-weight: 500; margin: 1.25rem 0 0.5rem; max-width: 42rem; break-after: avoid; }}
p {{ max-width: 42rem; margin: 0.75rem 0; white-space: pre-line; }}
.note {{ font-size: 0.85rem; color: var(--faint); margin: 0.35rem 0; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; margin: 0.25rem 0;
  border-top: 1.5px solid var(--ink); border-bottom: 1.5px solid var(--ink); }}
th, td {{ padding: 0.25rem 0.9rem; text-align: left; font-weight: normal; vertical-align: baseline; }}
th:first-child, td:first-child {{ padding-left: 0.25rem; }}
thead th {{ color: var(--faint); border-bottom: 1px solid var(--ink); }}
tbody tr + tr > * {{ border-top: 1px solid var(--rule); }}
.n {{ text-align: right; white-space: nowrap; }}
.settings th, .settings td {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 0.82rem; white-space: pre-wrap; overflow-wrap: anywhere; }}
.settings th {{ color: var(--faint); }}
figure {{ margin: 0; break-inside: avoid; }}
.chart svg {{ display: block; width: 100%; min-width: 30rem; max-width: 45rem; }}
svg text {{ font-size: 12px; fill: var(--faint); font-variant-numeric: tabular-nums; }}
svg .name {{ fill: var(--ink); }}
svg .m {{ text-anchor: middle; }}
svg .e {{ text-anchor: end; }}
svg path {{ fill: none; stroke-linejoin: round; }}
.grid {{ stroke: var(--rule); stroke-width: 0.75; }}
.ground {{ stroke: var(--faint); }}
.line {{ stroke-width: 1.75; }}
.raw {{ stroke-width: 1; opacity: 0.35; }}
.line-dots, .raw-dots {{ stroke-width: 5; stroke-linecap: round; }}
.raw-dots {{ opacity: 0.35; }}
.chart svg.swatch {{ display: inline-block; width: 34px; min-width: 34px; height: 10px; }}
{_looks()}
.pictures {{ display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }}
.pictures figure {{ min-width: 7rem; max-width: 100%; }}
.pictures img {{ display: block; max-width: 100%; height: auto; outline: 1px solid var(--rule); }}
.pixels {{ image-rendering: pixelated; }}
.good img {{ outline: 3px solid var(--good); }}
.bad img {{ outline: 3px dashed var(--bad); }}
figcaption {{ font-size: 0.82rem; line-height: 1.35; margin-top: 0.45rem; white-space: pre-line; }}
.good b {{ color: var(--good); }}
.bad b {{ color: var(--bad); }}
@media print {{ body {{ margin: 0; max-width: none; font-size: 11pt; }} tr {{ break-inside: avoid; }} }}
"""
