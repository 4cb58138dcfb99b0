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
