// Whole talks, the runs side by side; comes after dialogue_browser.js in the same script, whose names stay its own.
{
  const { talks, texts, runs, strategies, codes, success, max_turns: most } = data.talks;
  const ENDS = {
    seeker: "The seeker ends the talk", supporter: "The supporter ends the talk", max_turns: "The talk has the most turns",
    seeker_missing: "The seeker says nothing that can be used", too_long: "The talk exceeds a model's context",
    supporter_missing: "The supporter says nothing that can be used",
  };
  const DASHES = ["", "7 3", "2 3", "8 3 2 3"];
  const several = talks.some((one) => one.talk > 0);
  const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
  const known = (value) => value !== null && value !== undefined;
  const nameOf = (number) => {
    const { card, talk, problem } = talks[number];
    return `${card.replace(/_/g, " ")}${several ? `, talk ${talk + 1}` : ""}${problem ? `: ${problem}` : ""}`;
  };
  const address = (number, run) => {
    const place = run === undefined ? "" : `.${run + 1}`;
    return `#talk=${encodeURIComponent(talks[number].card)}.${talks[number].talk + 1}${place}`;
  };
  // How far apart the runs are in what they did to the emotion.
  const spread = (number) => {
    const values = runs.map((run) => run.talks[number].relief).filter(known);
    return values.length > 1 ? Math.max(...values) - Math.min(...values) : -1;
  };
  const ORDERS = { "as in the cards": talks.map((_, number) => number) };
  if (talks.some((_, number) => spread(number) > 0)) {
    ORDERS["where relief differs most"] = talks.map((_, number) => number).sort((a, b) => spread(b) - spread(a));
  }
  const visible = runs.map(() => true);
  let order = ORDERS["as in the cards"], chosen = order[0];

  const draw = (tag, attributes, parent) => {
    const element = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const look = (run) => ({
    stroke: `var(--c${run % 8})`, "stroke-width": 2, "stroke-dasharray": DASHES[(run + (run >> 3)) % 4], fill: "none",
  });
  function swatch(run, parent) {
    const line = draw("svg", { viewBox: "0 0 30 10", class: "swatch", "aria-hidden": "true" }, parent);
    draw("line", { x1: 0, x2: 30, y1: 5, y2: 5, ...look(run) }, line);
  }

  // The intensity after the opening and after each turn, of all runs on one pair of axes.
  function chart(parent) {
    const shown = runs.map((run) => run.talks[chosen].intensity).map((values, run) => visible[run] ? values : []);
    if (!shown.some((values) => values.some(known))) return;
    const [width, height, left, right, top, bottom] = [640, 205, 34, 12, 16, 48];
    const last = Math.max(1, ...shown.map((values) => values.length - 1));
    const x = (turn) => left + (width - left - right) * turn / last;
    const y = (value) => top + (height - top - bottom) * (5 - value) / 4;
    const told = runs.map((run, number) => `${run.name}: ${shown[number].filter(known).map((v) => v.toFixed(1)).join(", ")}`);
    const label = `Intensity of the emotion after each turn. ${told.filter((_, number) => shown[number].length).join("; ")}`;
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "curve" }, parent);
    for (let value = 1; value <= 5; value += 1) {
      draw("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "grid" }, svg);
      draw("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, svg).textContent = value;
    }
    draw("line", { x1: left, x2: width - right, y1: y(success), y2: y(success), class: "limit" }, svg);
    draw("text", { x: width - right, y: y(success) - 4, "text-anchor": "end" }, svg).textContent = "success";
    for (let turn = 0; turn <= last; turn += last > 10 ? 2 : 1) {
      draw("text", { x: x(turn), y: height - 27, "text-anchor": "middle" }, svg).textContent = turn;
    }
    draw("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, svg).textContent =
      "supporter turns";
    shown.forEach((values, run) => {
      const points = values.map((value, turn) => [turn, value]).filter(([, value]) => known(value));
      draw("polyline", { points: points.map(([turn, value]) => `${x(turn)},${y(value)}`).join(" "), ...look(run) }, svg);
      for (const [turn, value] of points) {
        const dot = draw("circle", { cx: x(turn), cy: y(value), r: 3, fill: `var(--c${run % 8})` }, svg);
        draw("title", {}, dot).textContent = `${runs[run].name}, turn ${turn}: ${value.toFixed(2)}`;
      }
    });
  }

  // A turn of the supporter with what the seeker answers; the first one is the greeting.
  function exchanges(turns) {
    const found = [];
    for (const turn of turns) {
      if (turn[0] === 1 || !found.length) found.push([]);
      found.at(-1).push(turn);
    }
    return found;
  }
  function say([speaker, text, strategy], intensity, parent) {
    const labelled = speaker === 1 && strategy >= 0, colour = labelled ? ` s${strategy % 16}` : "";
    const item = make("div", { className: `turn ${speaker ? `supporter${colour}` : "seeker"}` }, parent);
    const who = make("p", { className: "who" }, item);
    if (labelled) {
      make("span", { className: `tag${colour}`, textContent: codes[strategy], title: strategies[strategy] }, who);
    }
    who.append(labelled ? strategies[strategy] : speaker ? "Supporter" : "Seeker");
    if (known(intensity)) {
      const title = "intensity of the emotion, from 1 to 5";
      make("span", { className: "verdict", textContent: intensity.toFixed(1), title }, who).ariaLabel = `${title}: ${intensity}`;
    }
    make("p", { className: "said", textContent: texts[text], dir: "auto" }, item);
  }
  function end(run, cell) {
    const { ends, turns, relief, success: reached, turns_to_success: after } = runs[run].talks[chosen];
    const count = exchanges(turns).length - 1;
    make("p", { className: "ends", textContent: `${ENDS[ends]} after ${counted(count, "turn")}.` }, cell);
    if (known(relief)) {
      const outcome = reached ? `success after ${counted(after, "turn")}` : "no success";
      make("p", { textContent: `Relief ${signed(relief, 2)}, ${outcome}.` }, cell);
    }
    const { card, talk } = talks[chosen], links = make("p", { className: "soft" }, cell);
    make("a", { href: address(chosen, run), textContent: "Link to this talk" }, links);
    if (runs[run].journals === null) return;
    const href = `${runs[run].journals}/${encodeURIComponent(`${card}-${talk}`)}.journal.jsonl`;
    links.append(" \u00b7 ");
    make("a", { href, textContent: "its journal" }, links);
  }

  function show() {
    const about = talks[chosen], box = at("talk"), place = order.indexOf(chosen);
    box.replaceChildren();
    at("talk-choice").value = String(chosen);
    const head = make("div", { className: "row" }, box);
    make("h3", { textContent: nameOf(chosen) }, head).setAttribute("aria-live", "polite");
    const nav = make("span", { className: "pages" }, head);
    for (const [name, text, step] of [["Previous", "\u2190 Previous", -1], ["Next", "Next \u2192", 1]]) {
      const button = make("button", { type: "button", textContent: text, ariaLabel: `${name} talk` }, nav);
      button.disabled = order[place + step] === undefined;
      button.onclick = () => {
        move(step);
        [...box.querySelectorAll(".pages button")].find((one) => one.textContent === text)?.focus();
      };
    }
    const facts = [about.emotion && `Emotion: ${about.emotion}`, about.hard && `Hard: ${about.hard.replace(/_/g, " ")}`];
    facts.push(`card ${about.card}`, `${place + 1} of ${talks.length}`);
    make("p", { className: "soft", textContent: facts.filter((one) => one).join(" \u00b7 ") }, box);
    if (about.situation) make("p", { className: "situation said", textContent: about.situation, dir: "auto" }, box);
    chart(box);
    const region = make("div", { className: "scroll talks", tabIndex: 0, ariaLabel: "The talks side by side" }, box);
    region.setAttribute("role", "region");
    const table = make("table", {}, region), top = make("tr", {}, make("thead", {}, table));
    make("th", { scope: "col" }, top).append("Turn");
    const columns = runs.map((_, run) => run).filter((run) => visible[run]);
    table.style.setProperty("--columns", columns.length);
    for (const run of columns) {
      const cell = make("th", { scope: "col", id: `talk-run-${run + 1}` }, top);
      swatch(run, cell);
      cell.append(runs[run].name);
    }
    const parts = columns.map((run) => exchanges(runs[run].talks[chosen].turns)), body = make("tbody", {}, table);
    for (let turn = 0; turn < Math.max(...parts.map((part) => part.length)); turn += 1) {
      const row = make("tr", {}, body);
      make("th", { scope: "row", textContent: turn || "\u2013", title: turn ? `turn ${turn}` : "opening" }, row);
      columns.forEach((run, number) => {
        const cell = make("td", {}, row), said = parts[number][turn] ?? [];
        // After the opening the seeker's message is rated, then each of the supporter's, the last time the end.
        const rated = turn && turn < parts[number].length - 1 ? 0 : said.length - 1;
        said.forEach((one, part) => say(one, part === rated
          ? runs[run].talks[chosen].intensity[turn] : null, cell));
      });
    }
    const row = make("tr", {}, make("tfoot", {}, table));
    make("th", { scope: "row", textContent: "End" }, row);
    for (const run of columns) end(run, make("td", {}, row));
  }
  function choose(number) {
    chosen = number;
    show();
    history.replaceState(null, "", address(number));
  }
  function move(step) {
    const next = order[order.indexOf(chosen) + step];
    if (next !== undefined) choose(next);
  }
  function list() {
    at("talk-choice").replaceChildren();
    options("talk-choice", order.map((number) => [String(number), nameOf(number)]), String(chosen));
  }
  function follow() {
    const found = location.hash.match(/^#talk=([^.]+)\.(\d+)(?:\.(\d+))?$/);
    if (!found) return;
    const [card, talk, run] = [decodeURIComponent(found[1]), Number(found[2]) - 1, Number(found[3] ?? 0) - 1];
    const number = talks.findIndex((one) => one.card === card && one.talk === talk);
    if (number < 0) return;
    chosen = number;
    if (runs[run] && !visible[run]) at("talk-runs").querySelectorAll("input")[run].click();
    show();
    at("talks").scrollIntoView();
    const head = at(`talk-run-${run + 1}`);
    if (!head) return;
    head.classList.add("linked");
    const region = head.closest(".talks");
    region.scrollLeft = head.offsetLeft - head.parentNode.firstElementChild.offsetWidth;
  }

  const section = at("talks");
  section.tabIndex = -1;
  runs.forEach((run, number) => {
    const label = make("label", {}, make("li", {}, at("talk-runs")));
    const box = make("input", { type: "checkbox", checked: true }, label);
    swatch(number, label);
    label.append(run.name);
    box.onchange = () => {
      visible[number] = box.checked;
      if (!visible.some((one) => one)) visible[number] = box.checked = true;
      show();
    };
  });
  options("talk-order", Object.keys(ORDERS).map((name) => [name, name]));
  at("talk-order").closest("label").hidden = Object.keys(ORDERS).length < 2;
  at("talk-order").onchange = () => { order = ORDERS[at("talk-order").value]; list(); choose(order[0]); };
  at("talk-choice").onchange = () => choose(Number(at("talk-choice").value));
  at("talk-filters").onsubmit = (event) => event.preventDefault();
  section.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select, .talks")) return;
    const step = { j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    move(step);
  });
  addEventListener("hashchange", follow);
  list();
  show();
  follow();
}
