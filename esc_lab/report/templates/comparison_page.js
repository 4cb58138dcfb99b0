// Tables that one sorts and chooses from; page.js comes before and dialogue_browser.js after it in the same script.
const { columns, cells, groups, left_out: smallGroups, least, primary } = data.comparison;
const browser = data.browser;
const metricOf = (name) => columns.find((column) => column.metric === name);
const signs = (text) => text.replace(/-(?=[\d.])/g, "\u2212");
const fixed = (value, decimals) => value === null || value === undefined ? "\u2013" : signs(value.toFixed(decimals));
const signed = (value, decimals) => (value > 0 ? "+" : "") + fixed(value, decimals);
const ends = (one, decimals) => one.low === null ? "" : `${fixed(one.low, decimals)} to ${fixed(one.high, decimals)}`;
const pText = (p) => p === null ? "\u2013" : p < 0.001 ? "< 0.001" : p.toFixed(3);
const options = (id, pairs, chosen) => {
  for (const [value, text] of pairs) make("option", { value, textContent: text, selected: value === chosen }, at(id));
};

// A table from texts and elements: heads, and rows whose first entry is the head of its row.
function fill(id, heads, rows) {
  const table = at(id);
  table.replaceChildren();
  const line = make("tr", {}, make("thead", {}, table));
  for (const head of heads) make("th", { scope: "col", textContent: head }, line);
  const body = make("tbody", {}, table);
  for (const [name, ...entries] of rows) {
    const row = make("tr", {}, body);
    make("th", { scope: "row", textContent: name }, row);
    for (const entry of entries) {
      const cell = make("td", {}, row);
      if (entry instanceof Node) cell.append(entry);
      else cell.textContent = entry;
    }
  }
}

// --- the tables of results

function sort(head) {
  const table = head.closest("table"), place = [...head.parentNode.children].indexOf(head);
  const kind = head.dataset.kind, downFirst = kind === "number";
  const down = head.ariaSort === "none" ? downFirst : head.ariaSort === "ascending";
  for (const other of head.parentNode.children) other.ariaSort = "none";
  head.ariaSort = down ? "descending" : "ascending";
  const key = (row) => row.children[place].dataset.sort;
  const compare = kind === "text" ? (a, b) => a.localeCompare(b, "en", { numeric: true }) : (a, b) => a - b;
  const rows = [...table.tBodies[0].rows].sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === undefined || b === undefined || a === "nan" || b === "nan") {
      return (a === undefined || a === "nan") - (b === undefined || b === "nan");  // what is missing comes last
    }
    return down ? compare(b, a) : compare(a, b);
  });
  table.tBodies[0].append(...rows);
}
for (const head of document.querySelectorAll(".results thead th")) head.firstElementChild.onclick = () => sort(head);

// --- intervals as drawings

// A point with its interval between the least and the greatest of all that it stands among.
function whisker(one, [low, high], mark) {
  const box = Object.assign(document.createElement("div"), { className: "whisker" });
  const place = (value) => `${(100 * (value - low) / (high - low || 1)).toFixed(2)}%`;
  if (mark !== undefined && mark >= low && mark <= high) make("i", { className: "mark" }, box).style.left = place(mark);
  if (one.low !== null) {
    const line = make("i", { className: "line" }, box);
    line.style.left = place(one.low);
    line.style.width = `${(100 * (one.high - one.low) / (high - low || 1)).toFixed(2)}%`;
  }
  if (one.value !== null) make("i", { className: "point" }, box).style.left = place(one.value);
  return box;
}
function range(all, ...more) {
  const values = all.flatMap((one) => [one.low ?? one.value, one.high ?? one.value]).concat(more)
    .filter((value) => value !== null);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return [low - 0.04 * (high - low || 1), high + 0.04 * (high - low || 1)];
}

// --- one metric

function showMetric() {
  const column = metricOf(at("metric-choice").value), { metric, decimals } = column;
  at("metric-meaning").textContent = column.meaning;
  const found = cells.filter((cell) => cell.metrics[metric]);
  const scale = range(found.map((cell) => cell.metrics[metric]));
  const changes = found.map((cell) => cell.metrics[metric].difference).filter((one) => one);
  const changeScale = range(changes, 0);
  const rows = found.map((cell) => {
    const one = cell.metrics[metric], change = one.difference;
    const own = [cell.label, fixed(one.value, decimals), whisker(one, scale), ends(one, decimals)];
    own.push(one.values.length > 1 ? one.values.map((value) => fixed(value, decimals)).join(", ") : "");
    own.push(one.n === null ? "\u2013" : Math.round(one.n).toLocaleString("en"));
    if (!change) return [...own, "", "", "", ""];
    const told = `${signed(change.value, decimals)}${change.marks}`;
    return [...own, told, whisker(change, changeScale, 0), ends(change, decimals), pText(change.corrected)];
  });
  const heads = ["Run", column.heading, `from ${fixed(scale[0], decimals)} to ${fixed(scale[1], decimals)}`,
    "95 % interval", "Seeds", "n", "To the baseline", "Below or above 0", "95 % interval", "p"];
  const useful = heads.map((head, place) => place < 3 || rows.some((row) => row[place] !== ""));
  fill("metric-table", heads.filter((_, place) => useful[place]),
    rows.map((row) => row.filter((_, place) => useful[place])));
}
options("metric-choice", columns.map(({ metric, heading }) => [metric, heading]), primary);
at("metric-choice").onchange = showMetric;
showMetric();

// --- strategy by strategy

const choosers = cells.filter((cell) => cell.strategies);
const strategies = choosers[0]?.strategies.rows.map((row) => row.strategy) ?? [];
function showStrategy() {
  const number = Number(at("strategy-choice").value);
  const rows = choosers.map((cell) => [cell.label, cell.strategies.rows[number]]);
  const scale = range(rows.map(([, row]) => row.preference), 1);
  at("strategy-meaning").textContent = `${strategies[number]}: of the decisions at which a run chose it, precision is `
    + "the share at which it is right (gold: the supporter in the corpus used it); of the decisions at which it is "
    + "right, recall is the share at which the run chose it. F1 is their harmonic mean. Preference 1 = chosen wrongly "
    + "as often as missed.";
  fill("strategy-table", ["Run", "Precision", "Recall", "F1", "Gold", "Chosen", "Preference", "Below or above 1",
    "95 % interval"], rows.map(([name, row]) => [name,
    fixed(row.precision, 3), fixed(row.recall, 3), fixed(row.f1, 3),
    fixed(row.gold, row.gold % 1 ? 1 : 0), fixed(row.predicted, row.predicted % 1 ? 1 : 0),
    fixed(row.preference.value, 2), whisker(row.preference, scale, 1), ends(row.preference, 2)]));
}
function showConfusion() {
  const cell = choosers[Number(at("confusion-choice").value)], { confusion } = cell.strategies;
  const known = browser?.runs.find((run) => run.cell === cell.name);
  const names = [...strategies, ...(confusion.at(-1).some((count) => count) ? ["(none named)"] : [])];
  const rows = strategies.map((name, gold) => {
    const sum = confusion.reduce((total, row) => total + row[gold], 0);
    return [name, ...names.map((other, chosen) => {
      const count = confusion[chosen][gold], share = sum ? count / sum : 0;
      const text = fixed(count, count % 1 ? 1 : 0);
      const label = `${text} decisions: ${name} was right, ${other} chosen (${Math.round(100 * share)} %)`;
      const single = known && browser.runs.filter((run) => run.cell === cell.name).length === 1;
      const linked = single && count && chosen < strategies.length;
      const shown = make(linked ? "button" : "span", { className: "count", textContent: text, title: label }, document
        .createDocumentFragment());
      shown.style.setProperty("--share", share.toFixed(3));
      if (linked) {
        Object.assign(shown, { type: "button", ariaLabel: label });
        shown.onclick = () => filterTo({ run: browser.runs.indexOf(known), gold, chosen });
      }
      return shown;
    })];
  });
  fill("confusion-table", ["Gold \\ chosen", ...names], rows);
}
if (choosers.length) {
  options("strategy-choice", strategies.map((name, number) => [String(number), name]), "0");
  options("confusion-choice", choosers.map((cell, number) => [String(number), cell.label]), "0");
  at("strategy-choice").onchange = showStrategy;
  at("confusion-choice").onchange = showConfusion;
  showStrategy();
  showConfusion();
}

// --- groups of decisions

const KINDS = { problem: "Problem", emotion: "Emotion", depth: "Turns before the reply" };
// What is left out of a kind of group, and why there may be none.
function restOf(kind) {
  const small = smallGroups.filter((one) => one.startsWith(`${kind} `)).map((one) => one.slice(kind.length + 1));
  if (small.length) return `Too few decisions to be shown, ${least} at least: ${small.join(", ")}.`;
  if (groups.some((one) => one.kind === kind)) return "";
  return kind === "depth" ? "Nothing was measured of it." : `The dialogues name no ${kind}.`;
}
function showGroups() {
  const kind = at("group-kind").value, column = metricOf(at("group-metric").value);
  const found = groups.filter((one) => one.kind === kind && one.metric === column.metric);
  const names = [...new Set(found.map((one) => one.name))];
  const shown = cells.filter((cell) => found.some((one) => one.cell === cell.name));
  at("group-table").parentNode.hidden = !names.length;
  at("group-meaning").textContent = `${column.meaning} Half of the 95 % interval follows each value.`;
  at("group-rest").textContent = names.length ? restOf(kind) : `Nothing to show here. ${restOf(kind)}`;
  fill("group-table", [KINDS[kind], "Decisions", ...shown.map((cell) => cell.label)], names.map((name) => {
    const own = found.filter((one) => one.name === name);
    return [name, own[0].decisions.toLocaleString("en"), ...shown.map((cell) => {
      const one = own.find((other) => other.cell === cell.name);
      if (!one) return "\u2013";
      const half = one.low === null ? "" : ` \u00b1\u2009${((one.high - one.low) / 2).toFixed(column.decimals)}`;
      return fixed(one.value, column.decimals) + half;
    })];
  }));
}
if (groups.length) {
  const kinds = Object.keys(KINDS), metrics = [...new Set(groups.map((one) => one.metric))];
  options("group-kind", kinds.map((kind) => [kind, KINDS[kind]]), groups[0].kind);
  options("group-metric", metrics.map((metric) => [metric, metricOf(metric).heading]), primary);
  at("group-kind").onchange = at("group-metric").onchange = showGroups;
  showGroups();
} else if (at("group-rest")) {
  for (const id of ["group-kind", "group-meaning", "group-table"]) at(id).parentNode.hidden = id !== "group-meaning";
  const rest = Object.keys(KINDS).filter((kind) => smallGroups.some((one) => one.startsWith(`${kind} `)));
  at("group-rest").textContent = rest.length ? rest.map((kind) => `${KINDS[kind]}: ${restOf(kind)}`).join(" ")
    : "Nothing was measured that is told by group.";
}

// --- commands, and what is opened for paper

for (const button of document.querySelectorAll(".copy")) {
  const code = button.previousElementSibling;
  button.ariaLabel = `Copy: ${code.textContent}`;
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {  // a browser that lets no file write to the clipboard: the text is marked, for Ctrl+C
      getSelection().selectAllChildren(code);
      button.textContent = "Marked";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };
}
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
