"""What stands in the head of a preview page: what made it, and its look, that of a run's report."""

# Says that the page may be replaced.
GENERATOR = '<meta name="generator" content="fusmae-ingest preview">'

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; background: #f4f6f9; margin: 0; }
main { max-width: 1340px; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p { max-width: 90ch; }
.simulated { background: #b4470f; color: #fff; border-radius: 8px; padding: .8rem 1.2rem;
  margin: 0 0 1.5rem; max-width: none; font-size: 1.1rem; }
.simulated strong { font-size: 1.7rem; letter-spacing: .08em; margin-right: .8rem;
  vertical-align: -.1em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; margin: 1rem 0; }
dt { color: #55617a; } dd { margin: 0; overflow-wrap: anywhere; }
dl.stretch { font-size: .88rem; margin: .4rem 0 .8rem; }
table { border-collapse: collapse; background: #fff; border: 1px solid #dde3ec; }
th, td { padding: .25rem .9rem; text-align: right; border-bottom: 1px solid #eef1f6;
  font-variant-numeric: tabular-nums; vertical-align: top; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
td.text, th.text { text-align: left; overflow-wrap: anywhere; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; padding: 0;
  margin: 0 0 .8rem; font-size: .85rem; }
.legend i { display: inline-block; width: .9em; height: .9em; margin-right: .4em;
  border: 1px solid #55617a; vertical-align: -.1em; }
.heads, .sample { display: grid; gap: .6rem; grid-template-columns:
  minmax(15rem, 1.75fr) repeat(var(--pictures), minmax(0, 1fr)); }
.heads { position: sticky; top: 0; z-index: 1; background: #f4f6f9; padding: .5rem .8rem;
  font-size: .85rem; font-weight: 600; }
.sample { background: #fff; border: 1px solid #dde3ec; border-radius: 8px; padding: .8rem;
  margin: 0 0 .6rem; align-items: start; }
.sample figure { margin: 0; }
.sample img { width: 100%; height: auto; display: block; }
.sample .classes img { image-rendering: pixelated; }
.sample figcaption { display: none; }
.sample h3 { font: 600 .8rem/1.3 ui-monospace, monospace; margin: 0 0 .3rem;
  overflow-wrap: anywhere; }
.sample p { margin: 0 0 .3rem; font-size: .82rem; line-height: 1.35; }
.note, figcaption { color: #55617a; font-size: .88rem; }
.sample .note { font-size: .78rem; }
.flag { background: #1f5fa8; color: #fff; border-radius: 4px; padding: 0 .4rem; font-size: .76rem;
  white-space: nowrap; }
.chart { background: #fff; border: 1px solid #dde3ec; border-radius: 8px; margin: 0 0 1.2rem;
  padding: 1rem; min-width: 0; }
.chart img { width: 100%; height: auto; display: block; }
.chart figcaption { margin-top: .5rem; }
.pair { display: flex; gap: 1.2rem; align-items: stretch; }
@media (max-width: 900px) {
  .heads { display: none; }
  .sample { grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); }
  .sample > div { grid-column: 1 / -1; }
  .sample figcaption { display: block; font-size: .75rem; }
  .pair { display: block; }
}
"""
