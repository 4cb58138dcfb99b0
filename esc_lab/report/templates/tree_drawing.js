// What the page knows and how it draws the tree; page.js comes before and tree_page.js after it in the same script.
const { strategies, codes, situation, start, nodes } = data;
function shape(tag, attributes, parent, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return parent.appendChild(element);
}

// Pixels at scale 1: a node, the place of its count of hidden ones, a column of the tree, and a node never reached.
const CODE = 34, PILL = 78, HEIGHT = 22, CHIP = 30, COLUMN = 156, ROW = 32, SMALL = CODE + 6, MARGIN = 14;
const CHECK = "M-3 .2 -.8 2.4 3-2.2", CROSS = "M-2.3-2.3 2.3 2.3M2.3-2.3-2.3 2.3";

nodes.forEach((node, number) => Object.assign(node, { number, children: [], against: [] }));
for (const node of nodes.slice(1)) nodes[node.parent].children.push(node);
for (const node of nodes) {
  node.never = node.number > 0 && node.text === undefined && !node.lost;
  for (const other of node.rejects ?? []) nodes[other].against.push(node.number);
}
for (const node of nodes) {
  node.rejected = node.against.length > 0;
  node.unreached = node.children.filter((child) => child.never).sort((a, b) => b.prior - a.prior);
  node.branches = node.children.filter((child) => !child.never)
    .sort((a, b) => b.visits - a.visits || b.value - a.value || b.prior - a.prior);
}

const folded = new Set(), flipped = new Set();  // flipped: never reached ones are shown unlike the box says, or hidden
let all = false, pairsOnly = false;
let chosen = 0, current = 0, hovered = null;  // numbers of nodes: selected, in the tab order, under the pointer
let scale = 1, size = [0, 0], order = [], elements = new Map();  // of what is drawn: its nodes and their elements

const fixed = (value, digits = 2) => value === undefined || value === null ? "\u2013"
  : value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1").replace("-", "\u2212");
const times = (count, one, many) => `${count} ${count === 1 ? one : many}`;
const label = (node) => node.number ? strategies[node.strategy] : "Start of the talk";
const colour = (node) => node.number ? `s${node.strategy % 16}` : "root";
const showsNever = (node) => !folded.has(node.number) && all !== flipped.has(node.number);
const branches = (node) => node.branches.filter((one) => !pairsOnly || one.preferred || one.rejected);
const shownBranches = (node) => folded.has(node.number) ? [] : branches(node);
const shownNever = (node) => showsNever(node) ? node.unreached : [];
const shownChildren = (node) => [...shownBranches(node), ...shownNever(node)];
function path(number) {
  const found = [];
  for (; number >= 0; number = nodes[number].parent) found.unshift(number);
  return found;
}
function marks(node) {
  const found = ["preferred", "rejected", "seed"].filter((mark) => node[mark]);
  return found.concat(node.ended ? "talk ended" : [], node.lost ? "lost" : [], node.never ? "never reached" : []);
}
function named(node) {
  const value = node.visits ? [`Q ${fixed(node.value)}`] : [];
  const hidden = showsNever(node) ? 0 : node.unreached.length;
  const more = hidden ? [`${times(hidden, "child", "children")} never reached`] : [];
  return [label(node), ...value, `N ${node.visits}`, ...marks(node), ...more].join(", ");
}
function figures(node) {
  const latest = node.scorings > 1 ? ` (latest of ${node.scorings})` : "";
  const score = fixed(node.score) + (node.score === undefined ? "" : latest);
  const rows = [["Q", node.visits ? fixed(node.value) : "\u2013"], ["N", String(node.visits)]];
  if (node.number) rows.push(["P", fixed(node.prior, 3)], ["PUCT", fixed(node.puct)], ["Turn score", score]);
  // A seed node without what it started with.
  if (node.judged) rows.push(["Search alone", `Q ${fixed(node.judged[1])}, N ${node.judged[0]}`]);
  return rows;
}

// Layout: depth goes right. A node and its first branches share a row; each further branch takes the first row that is
// free in its columns, so branches move up beside each other and links never cross.
function layout() {
  const rows = [];  // first free row of each column
  let width = 0;
  order = [];
  const take = (first, count, least) => {
    let row = least;
    for (let column = first; column < first + count; column++) row = Math.max(row, rows[column] ?? 0);
    for (let column = first; column < first + count; column++) rows[column] = row + 1;
    return row;
  };
  const put = (node, column, row, shift = 0) => {
    Object.assign(node, { column, row, x: MARGIN + column * COLUMN + shift, y: MARGIN + HEIGHT / 2 + row * ROW });
    width = Math.max(width, node.x + (node.never ? CODE : PILL + CHIP));
  };
  const place = (top, column) => {
    const chain = [];
    for (let node = top; node; node = shownBranches(node)[0]) chain.push(node);
    const row = take(column, chain.length, 0);
    chain.forEach((node, index) => put(node, column + index, row));
    for (let index = chain.length - 1; index >= 0; index--) {
      for (const branch of shownBranches(chain[index]).slice(1)) place(branch, column + index + 1);
      const never = shownNever(chain[index]);
      if (!never.length) continue;
      const line = take(column + index + 1, Math.ceil(never.length * SMALL / COLUMN), row);
      never.forEach((node, place) => put(node, column + index + 1, line, place * SMALL));
    }
  };
  const list = (node) => {
    order.push(node);
    for (const child of shownChildren(node)) list(child);
  };
  place(nodes[0], 0);
  list(nodes[0]);
  return [width + MARGIN, Math.max(...order.map((node) => node.y)) + HEIGHT / 2 + MARGIN];
}

// Draws everything anew; the focused node stays where it is on the screen.
function draw() {
  const focused = at("tree").contains(document.activeElement), box = at("box");
  const before = order.includes(nodes[current]) && { x: nodes[current].x, y: nodes[current].y };
  size = layout();
  current = path(current).findLast((number) => order.includes(nodes[number]));
  for (const id of ["bands", "edges", "links", "nodes"]) at(id).replaceChildren();
  elements = new Map();
  const most = Math.max(1, ...nodes.slice(1).map((node) => node.visits));
  for (const node of order) {
    if (node.number && !node.never) drawLink(node, most);
    drawNode(node);
  }
  for (const node of order) for (const [index, one] of shownNever(node).entries()) if (!index) drawLink(one, most);
  mark();
  resize();
  if (before) box.scrollBy((nodes[current].x - before.x) * scale, (nodes[current].y - before.y) * scale);
  if (focused) elements.get(current).focus({ preventScroll: true });
}

function drawLink(node, most) {
  const parent = nodes[node.parent];
  const from = parent.x + PILL, turn = parent.x + PILL + CHIP, middle = (turn + node.x) / 2;
  const line = `M${from} ${parent.y}H${turn}` + (parent.row === node.row ? `H${node.x}`
    : `C${middle} ${parent.y} ${middle} ${node.y} ${node.x} ${node.y}`);
  if (node.seed) shape("path", { class: "band", d: `M${parent.x} ${parent.y}L${line.slice(1)}h${PILL}` }, at("bands"));
  const width = node.never ? 1 : 1.25 + 8 * Math.sqrt(node.visits / most);
  node.link = shape("path", { class: `link ${colour(node)}`, d: line, "stroke-width": width.toFixed(2) }, at("links"));
  if (node.never) node.link.setAttribute("stroke-dasharray", "2 3");
}

function drawNode(node) {
  const kinds = ["preferred", "rejected", "lost", "never"].filter((kind) => node[kind]).join(" ");
  const siblings = node.number ? shownChildren(nodes[node.parent]) : [node];
  const group = shape("g", {
    class: `${colour(node)} ${kinds}`, transform: `translate(${node.x} ${node.y})`, "data-node": node.number,
    role: "treeitem", tabindex: -1, "aria-label": named(node), "aria-level": path(node.number).length,
    "aria-setsize": siblings.length, "aria-posinset": siblings.indexOf(node) + 1,
  }, at("nodes"));
  if (branches(node).length) group.setAttribute("aria-expanded", String(!folded.has(node.number)));
  const width = node.never ? CODE : PILL, top = -HEIGHT / 2;
  shape("rect", { class: "ring", x: -4, y: top - 4, width: width + 8, height: HEIGHT + 8, rx: 8 }, group);
  shape("rect", { class: "body", x: 0, y: top, width, height: HEIGHT, rx: 5 }, group);
  if (!node.number) {
    shape("text", { x: PILL / 2, y: 0 }, group, "Start");
  } else {
    if (!node.never) {
      shape("path", { class: "code", d: `M${CODE} -9.5H5a4 4 0 0 0-3.5 4v11a4 4 0 0 0 3.5 4H${CODE}Z` }, group);
      const value = node.lost ? "lost" : fixed(node.visits ? node.value : null);
      shape("text", { class: "value", x: (CODE + PILL) / 2, y: 0 }, group, value);
    }
    shape("text", { class: "code-text", x: CODE / 2 + 1, y: 0 }, group, codes[node.strategy]);
    if (node.ended) shape("path", { class: "stop", d: `M${PILL + 1} -11h5v22h-5Z` }, group);
    if (node.preferred || node.rejected) badge(node.preferred, group);
  }
  drawChip(node, group);
  elements.set(node.number, group);
}

function badge(good, parent) {
  const group = shape("g", { transform: "translate(1 -10)" }, parent);
  shape("circle", { class: `badge ${good ? "good" : "bad"}`, r: 7 }, group);
  shape("path", { class: "sign", d: good ? CHECK : CROSS }, group);
}

// How many are hidden at a node: its folded branch, or the strategies that were never reached.
function drawChip(node, parent) {
  const shut = folded.has(node.number);
  const inside = (one) => branches(one).reduce((sum, child) => sum + 1 + inside(child), 0);
  if (shut ? !inside(node) : !node.unreached.length) return;
  const text = shut ? `\u25b8${inside(node)}` : showsNever(node) ? "\u2212" : `+${node.unreached.length}`;
  chip(text, shut, shape("g", { "aria-hidden": "true", transform: `translate(${PILL + 2} 0)` }, parent));
}
function chip(text, shut, parent) {
  const group = shape("g", { class: shut ? "chip shut" : "chip" }, parent);
  shape("rect", { y: -8, width: CHIP - 4, height: 16, rx: 8 }, group);
  shape("text", { x: CHIP / 2 - 2, y: 0 }, group, text);
}

// Selection, focus and scale, without a new layout.
function mark() {
  const onPath = new Set(path(chosen));
  at("edges").replaceChildren();
  for (const [number, element] of elements) {
    element.setAttribute("aria-selected", String(number === chosen));
    element.setAttribute("tabindex", number === current ? 0 : -1);
    element.classList.toggle("chosen", onPath.has(number));
    const link = nodes[number].link;
    if (!onPath.has(number) || !link?.isConnected) continue;
    const width = Number(link.getAttribute("stroke-width")) + 4;
    shape("path", { class: "edge", d: link.getAttribute("d"), "stroke-width": width }, at("edges"));
  }
  readOut();
}
function resize() {
  at("tree").setAttribute("viewBox", `0 0 ${size[0]} ${size[1]}`);
  at("tree").setAttribute("width", size[0] * scale);
  at("tree").setAttribute("height", size[1] * scale);
}
function zoom(next, x = at("box").clientWidth / 2, y = at("box").clientHeight / 2) {
  const box = at("box"), before = scale;
  const [left, top] = [(box.scrollLeft + x) / before, (box.scrollTop + y) / before];
  scale = Math.min(2.5, Math.max(0.08, next));
  resize();
  box.scrollTo(left * scale - x, top * scale - y);
}
const whole = () => Math.min(at("box").clientWidth / size[0], at("box").clientHeight / size[1]) * 0.99;
// Scrolls the tree's box, never the page, until a node is well inside.
function bringIn(number) {
  const box = at("box"), node = nodes[number], near = 24;
  const need = (low, high, from, length) => low - near < from ? low - near : high + near > from + length
    ? Math.min(low - near, high + near - length) : from;
  box.scrollTo(need(node.x * scale, (node.x + PILL + CHIP) * scale, box.scrollLeft, box.clientWidth),
    need((node.y - ROW / 2) * scale, (node.y + ROW / 2) * scale, box.scrollTop, box.clientHeight));
}

