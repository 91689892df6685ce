"""The style of a report's page, light and dark."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfc; --card: #ffffff; --ink: #1f2328; --quiet: #656c76; --line: #e4e6ea;
  --right: #00664b; --right-back: #d9f0e6; --wrong: #9a4312; --wrong-back: #fbe6d8;
  --cut: #55606c; --cut-back: #e9ecf0; --accent: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1a1e22; --ink: #e6e8eb; --quiet: #9aa3ad; --line: #2e343b;
    --right: #6fdcb5; --right-back: #12382c; --wrong: #f5a673; --wrong-back: #472612;
    --cut: #b3bcc6; --cut-back: #2b3138; --accent: #56b4e9;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
main { max-width: 62rem; margin: 0 auto; padding: 3.5rem 1.5rem 6rem; }
h1 { font-size: 2.1rem; font-weight: 650; letter-spacing: -0.015em; line-height: 1.2; margin: 0; }
h2 { font-size: 1.3rem; font-weight: 620; letter-spacing: -0.01em; margin: 0 0 .75rem; }
h3 { font-size: 1rem; font-weight: 620; margin: 0; }
h3 span { color: var(--quiet); font-weight: 400; margin-left: .5rem; }
p { margin: .4rem 0; max-width: 44rem; }
a { color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: 3px; }
section { margin-top: 3.5rem; }
.quiet, figcaption, .reference { color: var(--quiet); }
.hidden {
  font: .75em ui-monospace, monospace; color: var(--wrong); background: var(--wrong-back);
  border-radius: 3px; padding: 0 .25em;
}
.reached {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1.25rem 2rem;
  margin: 2.5rem 0 1rem; padding: 1.25rem 0; border: solid var(--line); border-width: 1px 0;
}
.reached div:first-child { grid-column: 1 / -1; }
.reached dt { color: var(--quiet); font-size: .85rem; }
.reached dd { margin: .1rem 0 0; font-variant-numeric: tabular-nums; }
.reached dd span { color: var(--quiet); }
.reached strong { font-weight: 620; }
.reached div:first-child dd { font-size: 1.9rem; letter-spacing: -0.015em; line-height: 1.3; }
.grid { display: grid; grid-template-columns: 1fr 1fr; gap: 2.5rem 2.5rem; }
figure { margin: 0; min-width: 0; }
figure:first-child { grid-column: 1 / -1; }
figure img { display: block; width: 100%; height: auto; margin: .5rem 0 .25rem; }
figcaption { font-size: .85rem; line-height: 1.45; max-width: 44rem; }
@media (max-width: 46rem) { .grid { grid-template-columns: 1fr; } }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { font-weight: 400; text-align: left; }
th, td { padding: .35rem 1.5rem .35rem 0; vertical-align: top; }
td { text-align: right; }
thead th { color: var(--quiet); font-size: .85rem; text-align: right; }
thead th:first-child { text-align: left; }
tbody tr { border-top: 1px solid var(--line); }
tfoot tr { border-top: 1px solid var(--quiet); }
.facts td { text-align: left; overflow-wrap: anywhere; }
.facts th { color: var(--quiet); white-space: nowrap; }
ul { margin: 0; padding-left: 1.1rem; max-width: 44rem; }
li { margin: .25rem 0; }
.wide { overflow-x: auto; margin: 1.25rem 0 .5rem; padding-bottom: .25rem; }
.overview th, .overview td { padding: 1px; text-align: center; border: 0; }
.overview tr { border: 0; }
.overview th[scope=row], .overview thead th:first-child[rowspan] {
  text-align: left; white-space: nowrap; padding-right: 1rem; font-size: .85rem;
  position: sticky; left: 0; background: var(--paper);
}
.overview thead th:first-child[rowspan] { vertical-align: bottom; }
.overview .stage { text-align: left; padding-left: .35rem; }
th.step:nth-child(n) { text-align: center; }
.overview .step { vertical-align: bottom; font-size: .7rem; }
.overview .step span { writing-mode: vertical-rl; transform: rotate(180deg); }
.overview .edge, .overview .stage + .stage { padding-left: .8rem; }
.overview tfoot td, .overview tfoot th {
  color: var(--quiet); font-size: .75rem; padding-top: .4rem;
}
.mark {
  display: inline-block; width: 1.5rem; height: 1.5rem; line-height: 1.5rem; border-radius: 4px;
  text-align: center; font-size: .85rem; font-weight: 600; cursor: pointer; user-select: none;
}
.right { color: var(--right); } .wrong { color: var(--wrong); } .cut { color: var(--cut); }
.absent { color: var(--quiet); cursor: default; }
.mark.right { background: var(--right-back); }
.mark.wrong { background: var(--wrong-back); }
.mark.cut { background: var(--cut-back); }
label.mark:hover { outline: 2px solid var(--accent); outline-offset: -2px; }
.legend { color: var(--quiet); font-size: .85rem; display: flex; gap: 1.5rem; flex-wrap: wrap; }
.legend .mark { cursor: default; }
.problem { margin-top: 3rem; }
.question, .sample, .recipe { white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; }
.question { margin-top: .35rem; max-width: 44rem; unicode-bidi: plaintext; }
.strip {
  display: flex; flex-wrap: wrap; align-items: center; gap: 3px; margin-top: .75rem;
  isolation: isolate;
}
.strip .stage { color: var(--quiet); font-size: .75rem; margin: 0 .25rem 0 .6rem; }
.strip .stage:first-child { margin-left: 0; }
.strip input {
  appearance: none; width: 0; height: 0; margin: 0 -3px 0 0; border: 0; outline: 0;
  scroll-margin: 12rem 0 20rem;
}
.strip input:checked + label { box-shadow: 0 0 0 2px var(--paper), 0 0 0 4px var(--ink); }
.strip input:focus-visible + label { box-shadow: 0 0 0 2px var(--paper), 0 0 0 4px var(--accent); }
.strip article {
  display: none; order: 1; flex: 0 0 100%; margin-top: .75rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; overflow: hidden;
}
.strip input:checked + label + article { display: block; }
article header {
  display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; align-items: baseline;
  padding: .6rem 1rem; border-bottom: 1px solid var(--line); font-size: .85rem;
}
article header strong { font-weight: 620; }
article header > span:last-of-type { color: var(--quiet); }
article nav { margin-left: auto; display: flex; gap: 1rem; user-select: none; }
article nav label { color: var(--accent); cursor: pointer; }
article nav span { color: var(--line); }
.sample { display: flex; flex-wrap: wrap; padding: .9rem 1rem; gap: 1rem 2rem; min-height: 9rem; }
.part { flex: 1 1 17rem; min-width: 0; max-height: 24rem; overflow: auto; }
.part:first-child:not(:nth-last-child(1)) { flex-grow: 2; }
.part div { unicode-bidi: plaintext; }
.note { flex: 1 0 100%; margin: 0; }
h4 { color: var(--quiet); font-size: .75rem; font-weight: 400; margin: 0 0 .35rem; }
.thought {
  font-family: Charter, "Bitstream Charter", "Iowan Old Style", Georgia, "Noto Serif", serif;
  color: var(--quiet); border-left: 2px solid var(--line); padding-left: .9rem;
}
.tag { font: .75rem/1.6 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
.tag, .note { color: var(--quiet); }
.note { font-size: .85rem; font-style: italic; }
summary { cursor: pointer; color: var(--accent); }
.recipe {
  font: .8rem/1.55 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace;
  margin-top: .75rem; padding: 1rem; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); overflow-x: auto;
}
@media print { .part { max-height: none; } }
"""
