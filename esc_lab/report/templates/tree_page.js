// What one does with the tree, and the dialogue beside it; comes after tree_drawing.js in the same script.

// Moves the focus to a node, showing it first if it is hidden.
function go(number) {
  const node = nodes[number];
  if (!elements.has(number)) {
    for (const above of path(node.parent)) folded.delete(above);
    if (node.never && !showsNever(nodes[node.parent])) flip(node.parent);
    draw();
  }
  if (!elements.has(number)) {
    at("pairs").checked = pairsOnly = false;
    draw();
  }
  bringIn(number);
  elements.get(number).focus({ preventScroll: true });
}
function choose(number) {
  chosen = current = number;
  mark();
  talk();
}
function flip(number) {
  if (!flipped.delete(number)) flipped.add(number);
}
// Opens all branches, or only those that lead to what is preferred, of the seed, or selected.
function openAll(open) {
  const main = new Set(path(chosen));
  for (const node of nodes) if (node.preferred || node.seed) main.add(node.number);
  folded.clear();
  if (!open) for (const node of nodes) if (node.branches.length && !main.has(node.number)) folded.add(node.number);
}
function fold(number, shut) {
  if (shut) folded.add(number); else folded.delete(number);
  draw();
  talkTools();
}

function tag(node, parent, kind = "span") {
  const element = make(kind, { className: `tag ${colour(node)}`, textContent: codes[node.strategy] }, parent);
  if (kind !== "button") return;
  const title = `Show ${label(node)} in the tree`;
  Object.assign(element, { type: "button", title, ariaLabel: title, onclick: () => go(node.number) });
}
function headline(node, parent, kind) {
  if (node.number) tag(node, parent, kind);
  make("b", { textContent: label(node), dir: "auto" }, parent);
  const signs = { preferred: "\u2713 ", rejected: "\u2715 ", seed: "" };
  for (const mark of marks(node)) {
    make("span", { className: `mark ${mark in signs ? mark : ""}`, textContent: (signs[mark] ?? "") + mark }, parent);
  }
}
function readOut() {
  const focused = at("tree").contains(document.activeElement) ? current : null;
  const node = nodes[hovered ?? focused ?? chosen], out = at("readout");
  out.replaceChildren();
  headline(node, make("p", {}, out));
  const list = make("dl", {}, out);
  for (const [name, value] of figures(node)) {
    const row = make("div", {}, list);
    make("dt", { textContent: name }, row);
    make("dd", { textContent: value }, row);
  }
  make("span", { className: "text", textContent: node.text ?? "", dir: "auto" }, out);
}

// The dialogue of the selected path.
function said(className, who, text, parent = at("turns")) {
  const item = make("li", { className }, parent);
  make("p", { className: "who", textContent: who }, item);
  make("p", { className: "said", textContent: text, dir: "auto" }, item);
}
const shortly = (node) => figures(node).map((pair) => pair.join(" ").replaceAll(" ", "\u00a0")).join(" \u00b7 ");
function reply(node, parent, className = "") {
  const item = make("li", { className }, parent);
  headline(node, make("p", { className: "who" }, item), "button");
  make("p", { className: "figures", textContent: shortly(node) }, item);
  const none = node.lost ? "No usable text could be had for this reply." : "Never reached: it has no text.";
  if (node.text !== undefined) make("p", { className: "said", textContent: node.text, dir: "auto" }, item);
  else make("p", { className: "soft", textContent: none }, item);
  return item;
}
function others(numbers, className, title, parent) {
  if (!numbers.length) return;
  const box = make("details", { className }, parent);
  make("summary", { textContent: title }, box);
  const list = make("ul", {}, box);
  for (const number of numbers) reply(nodes[number], list);
}
// Why a preferred reply is so beside one of higher Q; nothing where there is none.
function whyPreferred(node) {
  const siblings = node.preferred ? nodes[node.parent].children : [];
  const better = siblings.filter((one) => !one.preferred && one.visits && one.value > node.value)
    .sort((a, b) => b.value - a.value)[0];
  if (!better) return "";
  let last = node;
  for (let next = node; next; next = last.children.find((child) => child.preferred)) last = next;
  const which = last === node ? "as this one does" : `here ${label(last)} with Q ${fixed(last.value)}`;
  return `${label(better)} beside it has a higher Q, ${fixed(better.value)}. Preferred is what leads to a last reply `
    + `that passes the limits on Q or visits, ${which}, whatever the Q on the way.`;
}
function talk() {
  at("turns").replaceChildren();
  let opened = false;
  for (const [speaker, text, names] of start) {
    opened ||= speaker === "seeker";
    const who = speaker === "seeker" ? "Seeker" : `Supporter${opened ? "" : ", opening"}${names ? `: ${names}` : ""}`;
    said(speaker, who, text);
  }
  let last = at("turns").lastElementChild;
  for (const number of path(chosen).slice(1)) {
    const node = nodes[number];
    last = reply(node, at("turns"), `supporter ${colour(node)}${number === chosen ? " here" : ""}`);
    const why = whyPreferred(node);
    if (why) make("p", { className: "soft why", textContent: why }, last);
    const rejects = node.rejects ?? [];
    others(rejects, "", `${times(rejects.length, "reply", "replies")} rejected for it`, last);
    others(node.against, "instead", "Preferred in its place", last);
    if (node.answer) said("seeker", "Seeker", node.answer);
    if (node.ended) make("li", { className: "end", textContent: "The seeker ended the talk." }, at("turns"));
  }
  talkTools();
  const panel = document.querySelector(".talk");
  const below = last ? last.getBoundingClientRect().bottom - panel.getBoundingClientRect().bottom : 0;
  if (panel.scrollHeight > panel.clientHeight) panel.scrollTop += Math.max(below + 24, -panel.scrollTop);
}
function talkTools() {
  const node = nodes[chosen];
  at("fold").hidden = !branches(node).length;
  at("fold").textContent = folded.has(chosen) ? "Open branch" : "Fold branch";
  at("fold").onclick = () => fold(chosen, !folded.has(chosen));
}

// Keyboard, after the tree pattern of WAI-ARIA.
function keys(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const node = nodes[current], place = order.indexOf(node);
  const move = (to) => to && go(to.number);
  const actions = {
    ArrowDown: () => move(order[place + 1]), ArrowUp: () => move(order[place - 1]),
    Home: () => move(order[0]), End: () => move(order.at(-1)),
    ArrowRight: () => folded.has(current) ? fold(current, false) : move(shownChildren(node)[0]),
    ArrowLeft: () => shownBranches(node).length && current ? fold(current, true) : move(nodes[node.parent]),
    Enter: () => choose(current), " ": () => choose(current),
    u: () => { flip(current); draw(); },
    "+": () => { zoom(scale * 1.25); bringIn(current); }, "-": () => { zoom(scale / 1.25); bringIn(current); },
  };
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
}
at("tree").addEventListener("keydown", keys);

const nodeAt = (event) => {
  const element = event.target.closest("[role=treeitem]");
  return element && Number(element.dataset.node);
};
let drag = null, dragged = false;
// An SVG element that listens for focus would be a tab stop itself, so the box around it listens.
at("box").addEventListener("focusin", (event) => { current = nodeAt(event) ?? current; mark(); });
at("box").addEventListener("focusout", readOut);
at("tree").addEventListener("pointerover", (event) => { hovered = nodeAt(event); readOut(); });
at("tree").addEventListener("pointerleave", () => { hovered = null; readOut(); });
at("tree").addEventListener("click", (event) => {
  const number = nodeAt(event);
  if (number === null || dragged) return;
  if (!event.target.closest(".chip")) choose(number);
  else if (folded.has(number)) fold(number, false);
  else { flip(number); draw(); }
});
at("box").addEventListener("pointerdown", (event) => {
  dragged = false;
  if (event.pointerType !== "mouse" || event.button) return;
  drag = { x: event.clientX, y: event.clientY, left: at("box").scrollLeft, top: at("box").scrollTop };
});
addEventListener("pointermove", (event) => {
  if (!drag) return;
  const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
  if (!dragged && Math.hypot(x, y) < 5) return;
  dragged = true;
  at("box").classList.add("dragging");
  at("box").scrollTo(drag.left - x, drag.top - y);
});
addEventListener("pointerup", () => { drag = null; at("box").classList.remove("dragging"); });
at("box").addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  const edge = at("box").getBoundingClientRect();
  zoom(scale * Math.exp(-event.deltaY / 300), event.clientX - edge.left, event.clientY - edge.top);
}, { passive: false });
at("in").onclick = () => zoom(scale * 1.25);
at("out").onclick = () => zoom(scale / 1.25);
at("fit").onclick = () => zoom(whole());
at("pairs").onchange = () => { pairsOnly = at("pairs").checked; draw(); };
at("branches").onchange = () => { openAll(at("branches").checked); draw(); talkTools(); };
at("unreached").onchange = () => { all = at("unreached").checked; flipped.clear(); draw(); };

// What stands still: situation and legend.
const told = Object.entries(situation).filter(([, text]) => text);
for (const [name, text] of told) {
  const row = make("div", { className: name === "Situation" ? "" : "short" }, at("situation"));
  make("dt", { textContent: name }, row);
  make("dd", { textContent: text, className: "said", dir: "auto" }, row);
}
at("situation").hidden = !told.length;
strategies.forEach((name, index) => {
  const item = make("li", {}, at("strategies"));
  make("span", { className: `tag s${index % 16}`, textContent: codes[index] }, item);
  make("span", { textContent: name, title: name, dir: "auto" }, item);
});
function sample(text, width, paint) {
  const item = make("li", {}, at("marks"));
  const svg = shape("svg", { width, height: 20, viewBox: `0 -10 ${width} 20`, "aria-hidden": "true" }, item);
  paint(svg);
  make("span", { textContent: text }, item);
}
sample("preferred", 18, (svg) => badge(true, shape("g", { transform: "translate(8 10)" }, svg)));
sample("rejected", 18, (svg) => badge(false, shape("g", { transform: "translate(8 10)" }, svg)));
sample("seed dialogue", 28, (svg) => shape("path", { class: "band", d: "M0 0H28" }, svg));
sample("talk ended", 8, (svg) => shape("path", { class: "stop", d: "M1 -9h5V9h-5Z" }, svg));
sample("lost", 26, (svg) => {
  shape("rect", { class: "body", y: -8, x: 1, width: 24, height: 16, rx: 4 }, shape("g", { class: "lost" }, svg));
});
sample("never reached", 28, (svg) => chip("+7", false, shape("g", { transform: "translate(1 0)" }, svg)));
sample("folded branch", 28, (svg) => chip("\u25b89", true, shape("g", { transform: "translate(1 0)" }, svg)));
sample("more visits", 30, (svg) => shape("path", { class: "stop", d: "M0 -1 30 -5V5L0 1Z" }, svg));

const wide = matchMedia("(min-width: 60rem)");
wide.onchange = () => { at("legend").open = wide.matches; };
wide.onchange();

// At first the best reply at the end of a path is selected: a preferred one if there are any, and not of the seed.
const ends = (pool) => pool.filter((node) => !pool.some((other) => other.parent === node.number));
const reached = nodes.filter((node) => node.number && node.visits && node.text !== undefined);
const preferred = ends(nodes.filter((node) => node.preferred));
const best = (preferred.length ? preferred : ends(reached)).sort((a, b) => !!a.seed - !!b.seed || b.value - a.value)[0];
at("pairs").disabled = !preferred.length;
chosen = current = best?.number ?? 0;
at("branches").checked = nodes.filter((node) => !node.never).length < (wide.matches ? 60 : 20);
openAll(at("branches").checked);
draw();
scale = Math.min(1.25, Math.max(0.9, whole()));
resize();
talk();
document.querySelector(".talk").scrollTop = 0;
