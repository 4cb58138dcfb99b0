"""One web page that shows where in its prompt a reply looks: attention of each reply token, no network, no library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import fsum

from esc_lab.report.page import page, read


def heat_map_page(
    title: str,
    prompt: Sequence[str],
    reply: Sequence[str],
    attention: Sequence[Sequence[float]],
    *,
    spans: Sequence[tuple[int, int, str]] = (),
    facts: Mapping[str, str] | None = None,
) -> str:
    """A self-contained HTML page: prompt tokens coloured by the attention that the reply's tokens give them.

    At first the mean over the reply tokens is shown; choosing a reply token shows its own row. The first prompt token
    takes the null attention, which usually dwarfs the rest; it is marked and kept out of the colour scale.

    Args:
        title: heading of the page.
        prompt: texts of the prompt's tokens [P]; any characters.
        reply: texts of the reply's tokens [R].
        attention: for reply token r what the query that predicts it gives to each token it sees, mean over layers and
            heads, between 0 and 1: P + r values, on the prompt and on the reply tokens before it. Kept to 1e-6.
        spans: strategy-relevant ranges of prompt tokens as (start, end, label); they may overlap.
        facts: shown at the top: strategy, template, SRA and the like.

    Raises:
        ValueError: no prompt, no reply, lengths or spans that do not fit, or attention outside 0 to 1.
    """
    length = len(prompt)
    if not prompt or not reply or [len(row) for row in attention] != [length + r for r in range(len(reply))]:
        raise ValueError(f"attention has to be {len(reply)} rows of {length} values and more, one more in each row")
    if not all(0 <= value <= 1 + 1e-3 for row in attention for value in row):  # half precision rounds sums up
        raise ValueError("attention has to be between 0 and 1")
    if not all(0 <= start < end <= length for start, end, _ in spans):
        raise ValueError(f"a span is empty or not within the prompt's {length} tokens: {list(spans)}")
    mean = [fsum(column) / len(reply) for column in zip(*(row[:length] for row in attention), strict=True)]
    data = {
        "prompt": list(prompt),
        "reply": list(reply),
        "rows": [[round(value * 1e6) for value in row] for row in (mean, *attention)],
        "spans": [list(span) for span in spans],
        "boxes": _boxes(length, spans),
    }
    return page(title, _MAIN, data, style=_STYLE, script=read("page.js") + _SCRIPT, facts=facts)


def _boxes(length: int, spans: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Runs of tokens that lie in the same spans, as (start, end, labels): boxes that do not overlap."""
    boxes = []
    inside = [tuple(n for n, (start, end, _) in enumerate(spans) if start <= token < end) for token in range(length)]
    for members, run in groupby(range(length), key=inside.__getitem__):
        tokens = list(run)
        if members:
            boxes.append((tokens[0], tokens[-1] + 1, ", ".join(dict.fromkeys(spans[n][2] for n in members))))
    return boxes


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --soft: #595959; --rule: #c4c4c4; --hot: #f08a24;
  --span: #0b57b0; --on-span: #fff; --bar: #f4f4f4; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171c; --ink: #f4f4f4; --soft: #b4b8c0; --rule: #52565f;
  --hot: #ad4800; --span: #a8d1ff; --on-span: #0b1b2e; --bar: #22252c; } }
* { box-sizing: border-box; }
html { scroll-padding: 1rem 0 9rem; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header, main { max-width: 84rem; margin: 0 auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 1rem 0 .5rem; } h2 { font-size: 1.05rem; margin: 1rem 0 .25rem; }
p, ul { margin: .4rem 0; } .soft { color: var(--soft); font-size: .875rem; max-width: 70ch; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .25rem 1rem; margin: 0; }
dt { color: var(--soft); font-size: .875rem; } dd { margin: 0; font-weight: 600; }
ul { list-style: none; padding: 0; } li { margin: .3rem 0; }
button { font: inherit; color: inherit; background: var(--bar); border: 1px solid var(--rule); border-radius: 4px;
  padding: .1rem .5rem; min-height: 24px; cursor: pointer; overflow-wrap: anywhere; text-align: start; }
button[aria-pressed=true] { border-color: var(--ink); box-shadow: inset 0 0 0 1px var(--ink); font-weight: 600; }
:focus-visible { outline: 3px solid var(--ink); outline-offset: 1px; }
.tokens { white-space: pre-wrap; unicode-bidi: plaintext; line-height: 2; border: 1px solid var(--rule);
  border-radius: 6px; padding: .5rem; }
.token { background: color-mix(in srgb, var(--hot) calc(var(--heat, 0) * 100%), var(--paper)); border-radius: 2px; }
.token[aria-selected=true] { outline: 2px solid var(--ink); outline-offset: 1px; }
button.token { white-space: pre-wrap; padding: 0; line-height: 1.5; border-color: transparent; max-width: 100%; }
button.token:hover { border-color: var(--rule); }
button.later { color: var(--soft); }
.null { background: repeating-linear-gradient(45deg, var(--paper) 0 4px, var(--rule) 4px 5px); }
.box { border: 2px solid var(--span); border-radius: 4px; padding: 1px 0; -webkit-box-decoration-break: clone;
  box-decoration-break: clone; }
.tag { background: var(--span); color: var(--on-span); font-size: .75rem; font-weight: 600; padding: .15rem .3rem;
  margin-right: 1px; }
footer { position: sticky; bottom: 0; background: var(--bar); border-top: 1px solid var(--rule); }
footer > div { max-width: 84rem; margin: 0 auto; padding: .4rem 1rem; display: grid; gap: .25rem 2rem; }
#readout { min-height: 3em; margin: 0; overflow-wrap: anywhere; }
.bar { height: .8rem; border: 1px solid var(--rule); background: linear-gradient(90deg, var(--paper), var(--hot)); }
.ticks { display: flex; justify-content: space-between; font-size: .75rem; font-variant-numeric: tabular-nums; }
@media (min-width: 60rem) {
  main { display: grid; grid-template-columns: 24rem minmax(0, 1fr); gap: 0 2rem; align-items: start; }
  aside { position: sticky; top: 0; max-height: calc(100vh - 6rem); overflow: auto; padding: 0 4px 1rem; }
  footer > div { grid-template-columns: 22rem 1fr; align-items: center; }
}
"""

_SCRIPT = r"""
const { prompt, reply, rows, spans, boxes } = data;
const MEAN = -1;
let view = MEAN, resting = "";

// White space and control characters are made visible: attention often rests on them.
const visible = (text) => text.replace(/\n/g, "\u21b5\n").replace(/\t/g, "\u21e5\t").replace(/\x7f/g, "\u2421")
  .replace(/[\0-\x08\x0b-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0))) || "\u2205";
const inline = (text) => visible(text).replaceAll("\n", "");
const quoted = (text) => `\u201c${inline(text).slice(0, 60)}${inline(text).length > 60 ? "\u2026" : ""}\u201d`;
const number = (millionths) => millionths ? String(millionths / 1e6) : "below 0.000001";

const promptTokens = [], replyTokens = [];
for (let index = 0, box = 0, parent = at("prompt"); index < prompt.length; index++) {
  if (boxes[box] && boxes[box][0] === index) {
    parent = make("span", { className: "box", role: "group", ariaLabel: boxes[box][2] }, at("prompt"));
    make("span", { className: "tag", textContent: boxes[box][2], ariaHidden: "true" }, parent);
  }
  const properties = { className: index ? "token" : "token null", role: "option", tabIndex: index ? -1 : 0 };
  promptTokens.push(make("span", { ...properties, textContent: visible(prompt[index]) }, parent));
  if (boxes[box] && boxes[box][1] === index + 1) { parent = at("prompt"); box++; }
}
reply.forEach((text, index) => {
  const name = { textContent: inline(text), ariaLabel: `token ${index + 1}: ${quoted(text)}` };
  replyTokens.push(make("button", { type: "button", className: "token", ...name }, at("reply")));
  if (text.includes("\n")) at("reply").append("\n");
});
const spanRows = spans.map(([start, end, label]) => {
  const item = make("li", {}, at("spans"));
  const button = make("button", { type: "button", textContent: label, title: "go to it in the prompt" }, item);
  button.onclick = () => promptTokens[start].focus();
  return { start, end, value: make("span", {}, item) };
});

function describe(index) {
  const value = rows[view + 1][index];
  if (value === undefined) return "";
  const inside = boxes.filter(([start, end]) => start <= index && index < end).map((box) => `, in ${box[2]}`).join("");
  const first = index ? "" : ", null attention, not on the colour scale";
  const [text, place] = index < prompt.length ? [prompt[index], `prompt token ${index + 1}`]
    : [reply[index - prompt.length], `reply token ${index - prompt.length + 1}`];
  return `${quoted(text)} (${place}${inside}): ${view === MEAN ? "mean " : ""}attention ${number(value)}${first}`;
}

function show(next) {
  view = next;
  const row = rows[view + 1];
  const top = row.slice(1, prompt.length).reduce((most, one) => Math.max(most, one), 0);
  [...promptTokens, ...replyTokens].forEach((token, index) => {
    const heat = top && row[index] ? Math.sqrt(Math.min(1, row[index] / top)) : 0;
    token.style.setProperty("--heat", heat.toFixed(4));
    token.title = describe(index);
  });
  replyTokens.forEach((token, index) => {
    token.ariaPressed = String(index === view);
    token.tabIndex = index === Math.max(view, 0) ? 0 : -1;
    token.classList.toggle("later", view !== MEAN && index > view);
  });
  at("mean").ariaPressed = String(view === MEAN);
  for (const { start, end, value } of spanRows) {
    const mean = row.slice(start, end).reduce((sum, one) => sum + one, 0) / (end - start);
    value.textContent = ` ${number(Math.round(mean))} a token`;
  }
  [...at("ticks").children].forEach((tick, n) => { tick.textContent = n ? (top * n * n / 16e6).toPrecision(2) : "0"; });
  const who = view === MEAN ? `Mean over the ${reply.length} reply tokens.`
    : `Reply token ${view + 1} of ${reply.length}, ${quoted(reply[view])}: what the query that predicts it sees.`;
  resting = `${who} Null attention, on the first token: ${number(row[0])}.`;
  rest();
}

// The token on the line above or below that starts nearest to this one.
function nextLine(tokens, from, step) {
  const place = (token) => token.getClientRects()[0];
  const here = place(tokens[from]);
  let best = from, line = null, gap = Infinity;
  for (let index = from + step; tokens[index]; index += step) {
    const there = place(tokens[index]);
    if (line === null && Math.abs(there.top - here.top) < 12) continue;
    line ??= there.top;
    if (Math.abs(there.top - line) >= 12) break;
    if (Math.abs(there.left - here.left) < gap) { best = index; gap = Math.abs(there.left - here.left); }
  }
  return best;
}

function arrows(tokens) {
  return (event) => {
    const from = tokens.indexOf(event.target);
    if (from < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    const steps = { ArrowRight: () => from + 1, ArrowLeft: () => from - 1, Home: () => 0, End: () => tokens.length - 1,
      ArrowDown: () => nextLine(tokens, from, 1), ArrowUp: () => nextLine(tokens, from, -1) };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const to = Math.min(Math.max(step(), 0), tokens.length - 1);
    tokens[to].focus();
    if (tokens === replyTokens) show(to);
  };
}

function readOut(event) {
  const index = [...promptTokens, ...replyTokens].indexOf(event.target);
  const text = index < 0 ? "" : describe(index);
  if (text) at("readout").textContent = text;
}
// What is read out while the pointer is nowhere: the focused token, or else the view.
function rest() {
  at("readout").textContent = resting;
  readOut({ target: document.activeElement });
}
at("prompt").addEventListener("focusin", (event) => {
  for (const token of promptTokens) {
    token.tabIndex = token === event.target ? 0 : -1;
    token.ariaSelected = String(token === event.target);
  }
  readOut(event);
});
for (const [id, tokens] of [["prompt", promptTokens], ["reply", replyTokens]]) {
  at(id).addEventListener("keydown", arrows(tokens));
  at(id).addEventListener("pointerover", readOut);
  at(id).addEventListener("pointerleave", rest);
}
at("reply").addEventListener("click", (event) => {
  const index = replyTokens.indexOf(event.target);
  if (index >= 0) show(index);
});
at("mean").onclick = () => show(MEAN);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") show(MEAN); });
at("span-list").hidden = !spans.length;
show(MEAN);
"""

_MAIN = """<main>
<aside aria-label="Reply, spans and colours">
<h2 id="reply-name">Reply</h2>
<p class="soft">Choose a token to see where the query that predicts it looks. Arrow keys move along the reply and the
prompt, Escape goes back to the mean.</p>
<p><button type="button" id="mean">Mean over the reply</button></p>
<div class="tokens" id="reply" role="toolbar" aria-labelledby="reply-name"></div>
<div id="span-list"><h2 id="spans-name">Outlined spans</h2>
<ul id="spans" aria-labelledby="spans-name"></ul></div>
<h2>Colours</h2>
<p class="soft">Attention as the mean over layers and heads, on a square-root scale from 0 to the largest value that a
prompt token has in this view. The first token is left out of the scale and hatched: it takes the null attention, what
heads give to nothing in particular, and would dwarf the rest. Earlier reply tokens have the same scale; above its end
they have its last colour.</p>
</aside>
<section aria-labelledby="prompt-name">
<h2 id="prompt-name">Prompt</h2>
<noscript><p>The tokens are drawn by a script in this file; please allow it to run.</p></noscript>
<div class="tokens" id="prompt" role="listbox" aria-labelledby="prompt-name"></div>
</section>
</main>
<footer><div>
<div role="group" aria-label="Colour scale: attention">
<div class="bar"></div>
<div class="ticks" id="ticks"><span></span><span></span><span></span><span></span><span></span></div>
</div>
<p id="readout" role="status" aria-live="polite"></p>
</div></footer>"""
