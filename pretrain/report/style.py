"""The page's style: one column, light or dark as the reader's system is, from phone to desktop, and on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #fff; --text: #1c2024; --soft: #5c6670; --line: #dfe3e6; --code: #f3f4f5;
  --first: #2463b0; --second: #c2570c; --strong: #2463b0; --plain: #b8c2cc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1b1f23; --text: #e4e7ea; --soft: #9aa5b0; --line: #32393f; --code: #22272c;
    --first: #6ea8f0; --second: #f09a56; --strong: #6ea8f0; --plain: #4d5964;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 64rem; padding: 1.5rem 1.25rem 4rem; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: break-word;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0 0.25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 3rem 0 0.75rem; padding-bottom: 0.3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
p { max-width: 46rem; margin: 0.5rem 0; }
.lead, .missing, figcaption, .tile span, .reason { color: var(--soft); }
.missing { font-style: italic; }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; margin: 1rem 0 0; font-size: 0.9rem; }
a { color: var(--first); text-decoration: none; }
a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: 0.75rem; margin: 1.25rem 0; }
.tile, figure, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: 0.75rem 0.9rem; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.25; font-weight: 650; }
.tile span { display: block; font-size: 0.82rem; line-height: 1.35; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0.9rem; }
figure { margin: 0; padding: 0.75rem 0.75rem 0.4rem; }
figcaption { font-size: 0.85rem; font-weight: 600; margin: 0 0 0.35rem 0.25rem; }
svg { display: block; width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt; }
.scroll { overflow-x: auto; margin: 0.75rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; min-width: 60%; }
th, td { padding: 0.3rem 0.9rem 0.3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; text-align: left; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { white-space: normal; }
tfoot td { font-weight: 600; border-bottom: 0; }
.bars { display: grid; grid-template-columns: max-content 1fr; gap: 0.45rem 0.9rem; margin: 1rem 0; max-width: 46rem; }
.bars dt, .bars dd { margin: 0; font-size: 0.9rem; }
.bars dd { display: flex; align-items: center; gap: 0.6rem; font-variant-numeric: tabular-nums; padding-right: 4rem; }
.bars dd span:last-child { margin-right: -4rem; white-space: nowrap; }
.bar { height: 1.1rem; min-width: 2px; border-radius: 3px; background: var(--plain); }
.strong { font-weight: 650; }
.strong .bar { background: var(--strong); }
pre {
  margin: 0.4rem 0 0.9rem; padding: 0.7rem 0.9rem; background: var(--code); border-radius: 6px; unicode-bidi: isolate;
  font: 0.82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 32rem; overflow-y: auto;
}
code { font: 0.9em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre b { color: var(--first); }
details { margin: 0.4rem 0; }
summary { cursor: pointer; }
.reason { font-size: 0.85rem; margin: 0.6rem 0 0; max-width: none; overflow-wrap: anywhere; }
@media (max-width: 34rem) {
  body { padding: 1rem 0.9rem 3rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  table { font-size: 0.82rem; }
}
@media print { body { max-width: none; } pre { max-height: none; } figure, .tile { break-inside: avoid; } }
"""
