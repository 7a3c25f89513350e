"""Style sheet of the pages that :mod:`circuitbase.page` makes."""

from __future__ import annotations

from typing import Final

__all__ = ["STYLE"]

STYLE: Final = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfc; --raised: #ffffff; --sunk: #f4f4f1; --line: #e3e2dd;
  --ink: #1c1e21; --soft: #5c6066; --faint: #8d9096;
  --accent: #0f6f62; --second: #2c6fb3; --third: #7a4fb5; --warm: #b4532a; --negative: #c23b4e;
  --bar: rgb(44 111 179 / .13);
  --sans: ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans",
          sans-serif;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "URW Palladio L", P052, "Book Antiqua",
           Georgia, "Noto Serif", "DejaVu Serif", serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Code", Menlo, Consolas, "Noto Sans Mono",
          "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181b; --raised: #1d2024; --sunk: #22262b; --line: #33383e;
    --ink: #e8e8e4; --soft: #a9adb3; --faint: #7d828a;
    --accent: #5ec6b4; --second: #7fb2e8; --third: #bb9df0; --warm: #e59a74; --negative: #f0808f;
    --bar: rgb(127 178 232 / .17);
  }
}
*, *::before, *::after { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
       font: 400 1.0625rem/1.62 var(--sans); overflow-wrap: break-word; }
main, header.top { max-width: 68rem; margin: 0 auto; padding: 0 clamp(1rem, 4vw, 3rem); }
header.top { padding-top: clamp(2rem, 6vw, 4.5rem); }
main { padding-bottom: 5rem; }
h1 { font: 600 clamp(1.9rem, 4.6vw, 3rem)/1.14 var(--serif); letter-spacing: -.012em;
     margin: 0 0 1rem; max-width: 26ch; text-wrap: balance; }
.lead { font: 400 clamp(1.1rem, 2vw, 1.28rem)/1.55 var(--serif); color: var(--soft);
        max-width: 60ch; margin: 0 0 1.6rem; }
section { margin-top: 3.6rem; scroll-margin-top: 1rem; }
h2 { font: 600 clamp(1.4rem, 2.8vw, 1.85rem)/1.25 var(--serif); letter-spacing: -.008em;
     margin: 0 0 .7rem; text-wrap: balance; }
h3 { font: 600 1.05rem/1.4 var(--sans); margin: 2rem 0 .4rem; }
p { max-width: 68ch; margin: 0 0 1rem; }
strong { font-weight: 650; }
code { font: .9em var(--mono); background: var(--sunk); padding: .08em .34em; border-radius: .3em; }
nav { display: flex; flex-wrap: wrap; gap: .35rem 1.5rem; padding: .85rem 0; counter-reset: part;
      border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); font-size: .9rem; }
nav a { color: var(--soft); text-decoration: none; counter-increment: part; }
nav a::before { content: counter(part) " "; color: var(--faint);
                font-variant-numeric: tabular-nums; margin-right: .25em; }
nav a:hover, nav a:focus { color: var(--accent); text-decoration: underline; }
figure { margin: 1.6rem 0 1.8rem; }
.picture { overflow-x: auto; border-radius: .6rem; }
.picture > svg { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.picture.wide > svg { min-width: 46rem; }
.picture.white { background: #fff; border: 1px solid var(--line); padding: .4rem; }
figcaption, caption { color: var(--soft); font-size: .88rem; line-height: 1.5; text-align: left;
                      max-width: 80ch; }
figcaption { margin-top: .6rem; }
caption { caption-side: bottom; padding-top: .6rem; }
.scroll { overflow-x: auto; margin: 1.2rem 0 1.6rem; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.4; min-width: min(100%, 24rem);
        font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--soft); font-size: .8rem; letter-spacing: .01em;
     text-align: left; vertical-align: bottom; white-space: nowrap;
     border-bottom: 1.5px solid var(--faint); padding: .35rem 1.1rem .4rem 0; }
td { padding: .38rem 1.1rem .38rem 0; border-bottom: 1px solid var(--line);
     vertical-align: baseline; min-width: 3rem; max-width: 34rem; }
tbody tr:hover td { background: var(--sunk); }
th.number, td.number { text-align: right; white-space: nowrap; }
td.bar { position: relative; padding-left: .5rem; min-width: 6.5rem; }
td.bar::before { content: ""; position: absolute; inset: .22rem 1.1rem .22rem auto;
                 width: calc((100% - 1.1rem) * var(--part)); background: var(--bar);
                 border-radius: 2px; }
td.bar > span { position: relative; padding-right: .35rem; }
td.short { white-space: nowrap; }
td:not([class]) { min-width: 13rem; }
td.id { font: .84em var(--mono); white-space: nowrap; }
tr.strong td { font-weight: 650; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr));
         gap: 1px; background: var(--line); border: 1px solid var(--line); border-radius: .6rem;
         overflow: hidden; margin: 1.4rem 0 1.8rem; }
.facts div { background: var(--raised); padding: .85rem 1.05rem .8rem; }
.facts dt { color: var(--soft); font-size: .8rem; line-height: 1.35; }
.facts dd { margin: .1rem 0 0; font: 600 1.5rem/1.25 var(--serif);
            font-variant-numeric: lining-nums tabular-nums; }
.aside { border-left: 3px solid var(--accent); padding: .1rem 0 .1rem 1.1rem; color: var(--soft);
         font-size: .96rem; margin: 1.2rem 0 1.4rem; }
.aside p:last-child { margin: 0; }
details { margin: 1rem 0 1.6rem; border: 1px solid var(--line); border-radius: .6rem;
          background: var(--raised); }
summary { cursor: pointer; padding: .55rem .95rem; font-size: .86rem; font-weight: 600;
          color: var(--soft); }
summary:hover { color: var(--accent); }
details[open] > summary { border-bottom: 1px solid var(--line); }
details > .inside { padding: .2rem 1rem .6rem; }
pre { margin: 0; padding: .9rem 1.05rem; overflow-x: auto; font: .82rem/1.58 var(--mono);
      tab-size: 2; }
.block { margin: 1rem 0 1.6rem; border: 1px solid var(--line); border-radius: .6rem;
         background: var(--raised); overflow: hidden; }
.block > .name { padding: .5rem 1.05rem; font-size: .8rem; font-weight: 600; color: var(--soft);
                 border-bottom: 1px solid var(--line); }
.given { border-top: 1px solid var(--line); background: var(--sunk); font: .8rem/1.6 var(--mono);
         padding: .55rem 1.05rem; overflow-x: auto; white-space: pre; }
.k { color: var(--third); font-weight: 600; } .s { color: var(--accent); }
.n { color: var(--warm); } .p { color: var(--warm); font-weight: 600; }
.l { color: var(--second); } .c { color: var(--faint); font-style: italic; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line);
         color: var(--soft); font-size: .84rem; }
@media (max-width: 40rem) {
  body { font-size: 1rem; }
  section { margin-top: 2.6rem; }
  table { font-size: .84rem; }
  td { padding-right: .8rem; } th { padding-right: .8rem; }
  .facts { grid-template-columns: repeat(2, 1fr); }
}
@media print {
  :root { --paper: #fff; --raised: #fff; --sunk: #f6f6f6; --line: #ccc; --ink: #000; --soft: #333;
          --accent: #0f6f62; --second: #2c6fb3; --third: #7a4fb5; --warm: #b4532a; }
  body { font-size: 10pt; } nav { display: none; }
  section { break-inside: auto; margin-top: 1.6rem; } h2, h3 { break-after: avoid; }
  figure, tr, .block, .facts { break-inside: avoid; }
  .scroll, .picture, pre { overflow: visible; } pre { white-space: pre-wrap; }
}
"""
