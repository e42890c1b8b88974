"""The style sheet of a report: a wide screen, a phone, paper."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light; --ink: #1b2430; --soft: #596475; --line: #dde2e8; --wash: #f5f7f9; --accent: #0072b2; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 2rem 4rem; color: var(--ink); background: #fff;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header { border-bottom: 3px solid var(--accent); padding-bottom: 1rem; margin-bottom: 2rem; }
.kind { margin: 0; font-size: .8rem; letter-spacing: .08em; text-transform: uppercase; color: var(--soft); }
h1 { margin: .1rem 0 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0; font-size: 1.35rem; line-height: 1.3; }
h3 { margin: 1.4rem 0 .4rem; font-size: 1rem; }
a { color: var(--accent); }
.columns { display: grid; grid-template-columns: 13rem minmax(0, 1fr); gap: 3rem; align-items: start; }
nav { position: sticky; top: 1.5rem; font-size: .9rem; }
nav ol { list-style: none; margin: 0; padding: 0; border-left: 2px solid var(--line); }
nav a { display: block; padding: .25rem 0 .25rem .9rem; color: var(--soft); text-decoration: none; }
nav a:hover { color: var(--accent); }
section { margin-bottom: 3.2rem; scroll-margin-top: 1rem; }
.note { margin: .15rem 0 1rem; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 0 0 1.6rem; }
.tile { background: var(--wash); border-radius: 6px; margin: 0; padding: .7rem .9rem; }
.tile dt { font-size: .85rem; color: var(--soft); }
.tile dd { margin: 0; font-size: 1.7rem; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile dd.aside { font-size: .8rem; font-weight: 400; color: var(--soft); }
.facts { display: grid; grid-template-columns: 11rem minmax(0, 1fr); margin: 0; border-top: 1px solid var(--line); }
.facts dt, .facts dd { margin: 0; padding: .4rem 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
.facts dt { padding-right: .6rem; color: var(--soft); }
figure { margin: 0 0 1.2rem; }
.plot { overflow-x: auto; }
.plot svg { display: block; max-width: 100%; height: auto; }
.plot text { font-family: inherit !important; }
figcaption, .remark { margin: .5rem 0 1.2rem; max-width: 44rem; font-size: .9rem; color: var(--soft); }
.beside { display: grid; grid-template-columns: minmax(0, 30rem) minmax(14rem, 1fr); gap: 2rem; align-items: center; }
.scroll { overflow-x: auto; margin: 0 0 .6rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; overflow-wrap: anywhere;
  min-width: 8rem; }
thead th { font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody th { padding-top: .9rem; font-weight: 600; }
.beside th, .beside td { padding: .35rem .45rem; white-space: normal; min-width: 0; }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
summary { cursor: pointer; font-weight: 600; }
details .facts { margin: .5rem 0 1rem; font-size: .85rem; column-gap: 1rem;
  grid-template-columns: 11rem minmax(0, 1fr) 11rem minmax(0, 1fr); }
@media (max-width: 60rem) {
  body { padding: 1.2rem 1rem 3rem; }
  .columns { display: block; }
  nav { position: static; margin-bottom: 2rem; }
  nav ol { columns: 2; column-gap: 1.5rem; border: 0; }
  nav a { padding-left: 0; color: var(--accent); }
  .beside { display: block; }
}
@media (max-width: 40rem) {
  h1 { font-size: 1.45rem; }
  table { font-size: .76rem; }
  th, td { padding: .3rem; }
  thead th { white-space: normal; }
  th:first-child, td:first-child { min-width: 5rem; }
  .facts, details .facts { grid-template-columns: 8rem minmax(0, 1fr); }
  .plot svg { min-width: 32rem; }
  .beside .plot svg { min-width: 20rem; }
}
@media print {
  @page { margin: 14mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .columns { display: block; }
  nav { display: none; }
  section { margin-bottom: 2rem; }
  .opening, thead, tbody th, h3, summary { break-after: avoid; }
  .opening, figure, tr, .tile, .beside, .remark { break-inside: avoid; }
  .plot, .scroll { overflow: visible; }
  .plot svg { min-width: 0; max-height: 235mm; }
  .beside { display: grid; grid-template-columns: 3fr 2fr; }
  .beside .plot svg { min-width: 0; max-height: 90mm; }
  .tile { border: 1px solid var(--line); }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
