// The browser of dialogues; comes after comparison_page.js in the same script. Rows are made when they are shown.
const PAGE = 50;
const { dialogues = [], decisions = [], texts = [], runs = [] } = browser ?? {};
const codes = browser?.codes ?? [], labels = browser?.strategies ?? [];
// By run and decision the numbers of its rows: several where several prompts or samples were evaluated.
const rowsOf = runs.map((run) => {
  const found = decisions.map(() => []);
  run.decision.forEach((decision, row) => found[decision].push(row));
  return found;
});
const entry = (run, name, row) => run[name]?.[row] ?? null;
// What a run chose at a decision: the most probable strategy, or else what its reply names; null: nothing was asked.
function choice(number, decision) {
  const run = runs[number];
  for (const name of ["chosen", "written"]) {
    const row = rowsOf[number][decision].find((one) => entry(run, name, one) !== null);
    if (row !== undefined) return entry(run, name, row);
  }
  return null;
}
const choices = runs.map((_, number) => decisions.map((_, decision) => choice(number, decision)));
const right = (number, decision) => choices[number][decision] === null ? null
  : decisions[decision][2].includes(choices[number][decision]);
// How many runs wrote a reply at each decision. Often only some decisions have any, and one with many is shown first.
const replied = decisions.map((_, decision) => runs.filter((run, number) => rowsOf[number][decision]
  .some((row) => entry(run, "reply", row) !== null)).length);
const saidBy = (turn) => typeof turn[1] === "number" ? texts[turn[1]] : turn[1];
const nameOf = (number) => number === null ? "nothing" : labels[number] ?? "(none named)";
const percent = (thousandths) => thousandths > 0 && thousandths < 10 ? "< 1 %" : `${Math.round(thousandths / 10)} %`;

let matches = decisions.map((_, number) => number), firstShown = 0;
let chosenDecision = replied.indexOf(Math.max(...replied));

function tagOf(strategy, parent) {
  const known = strategy !== null && strategy >= 0;
  const properties = { className: `tag ${known ? `s${strategy % 16}` : ""}`, title: nameOf(strategy) };
  make("span", { ...properties, textContent: known ? codes[strategy] : "?" }, parent);
}

// --- filters

let searched = null;  // lower-cased texts, once one searches
function holds(decision, words) {
  searched ??= {
    texts: texts.map((text) => text.toLowerCase()),
    turns: dialogues.map((one) => one.turns.map((turn) => saidBy(turn).toLowerCase())),
  };
  const [dialogue, turn, , reply] = decisions[decision];
  if (searched.texts[reply].includes(words) || dialogues[dialogue].situation.toLowerCase().includes(words)) return true;
  if (searched.turns[dialogue].slice(0, turn).some((text) => text.includes(words))) return true;
  return runs.some((run, number) => rowsOf[number][decision]
    .some((row) => entry(run, "reply", row) !== null && searched.texts[run.reply[row]].includes(words)));
}
function filter() {
  const value = (id) => at(id).value === "" ? null : Number(at(id).value);
  const [run, gold, chosen] = [value("by-run"), value("by-gold"), value("by-chosen")];
  const words = at("find").value.trim().toLowerCase();
  for (const option of [...at("by-outcome").options].slice(1)) {
    option.textContent = run === null && runs.length > 1 ? `${option.value} in all runs` : option.value;
  }
  const outcome = at("by-outcome").value, problem = at("by-problem").value, split = at("by-disagreement").checked;
  const said = at("by-replies").checked;
  const asked = run === null ? runs.map((_, number) => number) : [run];
  matches = decisions.flatMap(([dialogue, , golds], decision) => {
    if (gold !== null && !golds.includes(gold)) return [];
    if (chosen !== null && !asked.some((one) => choices[one][decision] === chosen)) return [];
    if (problem && dialogues[dialogue].problem !== problem) return [];
    if (outcome && !asked.every((one) => right(one, decision) === (outcome === "right"))) return [];
    if (split && new Set(runs.map((_, one) => choices[one][decision])).size < 2) return [];
    if (said && !replied[decision]) return [];
    return words && !holds(decision, words) ? [] : [decision];
  });
  firstShown = 0;
  if (matches.length && !matches.includes(chosenDecision)) chosenDecision = matches[0];
  reveal();
  showList();
  showDecision();
}
function filterTo({ run, gold, chosen }) {
  at("filters").reset();
  at("by-run").value = run;
  at("by-gold").value = gold;
  at("by-chosen").value = chosen;
  filter();
  at("dialogues").scrollIntoView();
  at("dialogues").focus({ preventScroll: true });
}

// --- the list

function reveal() {
  const place = matches.indexOf(chosenDecision);
  if (place >= 0) firstShown = PAGE * Math.floor(place / PAGE);
}
function showList() {
  const list = at("list"), last = Math.min(firstShown + PAGE, matches.length);
  const all = matches.length === decisions.length ? "" : ` of ${decisions.length.toLocaleString("en")}`;
  const counted = `${matches.length.toLocaleString("en")}${all} ${decisions.length === 1 ? "decision" : "decisions"}`;
  at("count").textContent = matches.length > PAGE ? `${counted}; ${firstShown + 1} to ${last} listed` : counted;
  list.replaceChildren();
  list.start = firstShown + 1;
  for (const decision of matches.slice(firstShown, last)) {
    const [dialogue, turn, golds, reply] = decisions[decision];
    const button = make("button", { type: "button" }, make("li", {}, list));
    button.dataset.decision = decision;
    const line = make("span", { className: "line" }, button);
    for (const gold of golds) tagOf(gold, line);
    make("b", { textContent: `${dialogues[dialogue].problem || dialogues[dialogue].id}, turn ${turn + 1}` }, line);
    const marks = make("span", { className: "marks" }, line);
    runs.forEach((run, number) => {
      const good = right(number, decision);
      const told = good === null ? "no choice" : good ? "right" : "wrong";
      const sign = good === null ? "\u00b7" : good ? "\u2713" : "\u2715";
      make("i", { className: told.replace(" ", "-"), title: `${run.name}: ${told}`, textContent: sign }, marks);
    });
    make("span", { className: "text", textContent: texts[reply] }, button);
    button.onclick = () => choose(decision);
  }
  at("page-before").disabled = firstShown === 0;
  at("page-after").disabled = last >= matches.length;
  mark();
}
function mark() {
  for (const button of at("list").querySelectorAll("button")) {
    const here = Number(button.dataset.decision) === chosenDecision;
    button.ariaCurrent = here ? "true" : null;
    if (!here) continue;
    const [box, own] = [at("list").getBoundingClientRect(), button.getBoundingClientRect()];
    if (own.top < box.top) at("list").scrollTop += own.top - box.top - 4;
    if (own.bottom > box.bottom) at("list").scrollTop += own.bottom - box.bottom + 4;
  }
}
function choose(decision, focus = false) {
  chosenDecision = decision;
  const before = firstShown;
  reveal();
  if (firstShown !== before) showList(); else mark();
  showDecision();
  const [dialogue, turn] = decisions[decision];
  history.replaceState(null, "", `#decision=${dialogues[dialogue].id}.${turn + 1}`);
  if (focus) at("list").querySelector("[aria-current]")?.focus({ preventScroll: true });
}
function move(steps, focus) {
  const place = matches.indexOf(chosenDecision), next = matches[place + steps];
  if (next !== undefined) choose(next, focus);
}

// --- one decision

function showDecision() {
  const box = at("decision");
  box.replaceChildren();
  if (!matches.length) {
    make("p", { className: "soft", textContent: "No decision is like this. Clear the filters to see all." }, box);
    return;
  }
  const [dialogue, turn, golds, reply] = decisions[chosenDecision], about = dialogues[dialogue];
  const place = matches.indexOf(chosenDecision);
  const head = make("div", { className: "row" }, box);
  make("h3", { textContent: `Reply at turn ${turn + 1}` + (about.problem ? `: ${about.problem}` : "") }, head);
  const nav = make("span", { className: "pages" }, head);
  for (const [name, text, step] of [["Previous", "\u2190 Previous", -1], ["Next", "Next \u2192", 1]]) {
    const button = make("button", { type: "button", textContent: text, ariaLabel: `${name} decision` }, nav);
    button.disabled = matches[place + step] === undefined;
    button.onclick = () => {
      move(step);
      [...at("decision").querySelectorAll(".pages button")].find((one) => one.textContent === text)?.focus();
    };
  }
  const emotion = about.emotion && `Emotion: ${about.emotion}`;
  const told = [emotion, `dialogue ${about.id}`, `${place + 1} of ${matches.length}`];
  make("p", { className: "soft", textContent: told.filter((one) => one).join(" \u00b7 ") }, box);
  if (about.situation) make("p", { className: "situation said", textContent: about.situation, dir: "auto" }, box);
  if (about.tree) make("a", { href: about.tree, textContent: "Search tree of this dialogue" }, make("p", {}, box));
  showContext(about, turn, box);
  const given = make("div", { className: `turn supporter gold ${golds.length ? `s${golds[0] % 16}` : ""}` }, box);
  const who = make("p", { className: "who" }, given);
  who.append("In the corpus");
  golds.forEach((gold) => { tagOf(gold, who); who.append(labels[gold]); });
  make("p", { className: "said", textContent: texts[reply], dir: "auto" }, given);
  const cards = make("div", { className: "cards" }, box);
  runs.forEach((_, number) => showRun(number, golds, cards));
}
function showContext(about, turn, box) {
  if (!about.turns.length) {
    make("p", { className: "soft", textContent: "What was said before is not known here." }, box);
    return;
  }
  const context = make("div", { className: "context", tabIndex: 0, ariaLabel: "What was said before" }, box);
  context.setAttribute("role", "region");
  for (const one of about.turns.slice(0, turn)) {
    const supporter = one[0] === 1, colour = supporter && one[2].length ? `s${one[2][0] % 16}` : "";
    const item = make("div", { className: `turn ${supporter ? `supporter ${colour}` : "seeker"}` }, context);
    const who = make("p", { className: "who", textContent: supporter ? "Supporter" : "Seeker" }, item);
    if (supporter) one[2].forEach((strategy) => tagOf(strategy, who));
    make("p", { className: "said", textContent: saidBy(one), dir: "auto" }, item);
  }
  if (!turn) make("p", { className: "soft", textContent: "Nothing was said before." }, context);
  context.scrollTop = context.scrollHeight;
}
function showRun(number, golds, cards) {
  const run = runs[number], rows = rowsOf[number][chosenDecision];
  const card = make("section", { className: "card", ariaLabel: run.name }, cards);
  const head = make("p", { className: "who" }, card);
  make("b", { textContent: run.name }, head);
  const made = choices[number][chosenDecision], good = right(number, chosenDecision);
  if (made !== null) {
    const line = make("p", { className: "chose" }, card), verdict = good ? "\u2713 right" : "\u2715 wrong";
    tagOf(made, line);
    line.append(nameOf(made));
    make("span", { className: `verdict ${good ? "good" : "bad"}`, textContent: verdict }, line);
  }
  let last = null;
  for (const row of rows) {
    const shares = entry(run, "shares", row);
    if (shares && String(shares) !== String(last)) bars(shares, golds, made, card);
    last = shares ?? last;
    replyOf(run, row, golds, rows.length > 1, card);
  }
  const said = rows.some((row) => entry(run, "reply", row) !== null);
  const many = run.reply && new Set(run.decision.filter((_, row) => run.reply[row] !== null)).size;
  const none = !rows.length ? "Not evaluated here."
    : many ? `No reply was written here: this run has replies at ${many} of its ${new Set(run.decision).size} decisions.`
      : "This run wrote no replies.";
  if (!said) make("p", { className: "soft", textContent: none }, card);
}
function bars(shares, golds, made, card) {
  const list = make("ul", { className: "shares" }, card);
  list.ariaLabel = "Probability of each strategy";
  shares.forEach((share, strategy) => {
    const gold = golds.includes(strategy);
    const className = `s${strategy % 16}${strategy === made ? " made" : ""}`;
    const item = make("li", { className, title: labels[strategy] }, list);
    make("span", { className: "code", textContent: codes[strategy] + (gold ? " \u25c0" : "") }, item);
    make("i", {}, make("span", { className: "bar" }, item)).style.width = `${share / 10}%`;
    make("span", { className: "share", textContent: percent(share) }, item);
    const told = `${labels[strategy]}${gold ? ", right" : ""}: ${percent(share)}`;
    make("span", { className: "unseen", textContent: told }, item);
    for (const part of [...item.children].slice(0, 3)) part.ariaHidden = "true";
  });
}
function replyOf(run, row, golds, several, card) {
  const [asked, wrote, said] = ["prompted", "written", "reply"].map((name) => entry(run, name, row));
  const [judged, adheres, sample] = ["judged", "adheres", "sample"].map((name) => entry(run, name, row));
  const [sra, map, cut] = ["sra", "map", "cut"].map((name) => entry(run, name, row));
  const facts = [];
  if (asked !== null) facts.push(`told to use ${nameOf(asked)}`);
  if (wrote !== null) facts.push(wrote < 0 ? "the reply names no strategy" : `the reply names ${nameOf(wrote)}`);
  if (sample !== null || (several && said !== null && asked === null)) facts.push(`sample ${(sample ?? 0) + 1}`);
  if (judged !== null) facts.push(`classifier: ${nameOf(judged)}${adheres ? " (as it was to be)" : ""}`);
  if (sra !== null) facts.push(`attention on the strategy ${sra.toPrecision(2)}`);
  if (said !== null) {
    const textContent = texts[said] || "(an empty reply)";
    const text = make("p", { className: "said reply", dir: "auto", textContent }, card);
    if (asked !== null && asked >= 0) text.classList.add(`s${asked % 16}`);
    if (cut) make("span", { className: "cut", textContent: " [cut off at the token limit]" }, text);
  }
  const line = make("p", { className: "soft", textContent: facts.join(" \u00b7 ") }, card);
  if (map) make("a", { href: map, textContent: "where it looks" }, line).before(facts.length ? " \u00b7 " : "");
  if (!line.textContent) line.remove();
}

// --- keyboard, address, start

function keys(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select, .context")) return;
  const inList = at("list").contains(event.target);
  const steps = { j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1, ...(inList ? { ArrowDown: 1, ArrowUp: -1 } : {}) };
  const step = steps[event.key];
  if (!step) return;
  event.preventDefault();
  move(step, inList);
}
function follow() {
  const found = location.hash.match(/^#decision=(.+)\.(\d+)$/);
  if (!found) return false;
  const dialogue = dialogues.findIndex((one) => one.id === decodeURIComponent(found[1]));
  const decision = decisions.findIndex((one) => one[0] === dialogue && one[1] === Number(found[2]) - 1);
  if (decision < 0) return false;
  if (!matches.includes(decision)) { at("filters").reset(); chosenDecision = decision; filter(); }
  choose(decision);
  at("dialogues").scrollIntoView();
  return true;
}
if (decisions.length) {
  const section = at("dialogues");
  section.tabIndex = -1;
  const problems = [...new Set(dialogues.map((one) => one.problem))].filter((one) => one).sort();
  options("by-run", [["", "any"], ...runs.map((run, number) => [number, run.name])]);
  options("by-gold", [["", "any"], ...labels.map((name, number) => [number, name])]);
  options("by-chosen", [["", "any"], ...labels.map((name, number) => [number, name])]);
  const all = runs.length > 1 ? " in all runs" : "";
  options("by-outcome", [["", "any"], ...["right", "wrong"].map((one) => [one, one + all])]);
  options("by-problem", [["", "any"], ...problems.map((name) => [name, name])]);
  at("by-replies").closest("label").hidden = new Set(replied.map(Boolean)).size < 2;
  let waiting = 0;
  at("find").oninput = () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); };
  at("filters").onchange = (event) => { if (event.target.id !== "find") filter(); };
  at("filters").onsubmit = (event) => { event.preventDefault(); filter(); };
  at("filters").onreset = () => setTimeout(filter);
  at("page-before").onclick = () => { firstShown -= PAGE; showList(); };
  at("page-after").onclick = () => { firstShown += PAGE; showList(); };
  section.addEventListener("keydown", keys);
  addEventListener("hashchange", follow);
  labels.forEach((name, strategy) => {
    const item = make("li", {}, at("key"));
    tagOf(strategy, item);
    item.append(name);
  });
  reveal();
  showList();
  if (!follow()) showDecision();
}
