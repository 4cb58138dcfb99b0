// One page of the questionnaire at a time; answers are kept in the browser's storage until they are saved as a file.
const place = `esc-lab survey ${data.survey} ${data.questionnaire}`;
const pages = data.pages, questions = data.form.questions, pair = data.form.unit === "pair";
let state = { page: 0, answers: {}, seconds: {}, comment: "" };
let shown = Date.now();

try {
  const kept = JSON.parse(localStorage.getItem(place) || "null");
  if (kept) { state = kept; at("help").open = false; }
} catch (error) { /* `keep` says so */ }

// Another window with the same questionnaire: both show what was answered last, so that neither undoes the other.
addEventListener("storage", (event) => {
  if (event.key !== place || !event.newValue) return;
  const page = state.page;
  state = Object.assign(JSON.parse(event.newValue), { page });
  shown = Date.now();
  draw();
});

function keep() {
  const page = pages[state.page], now = Date.now();
  at("saved").textContent = "";
  if (page) state.seconds[page.name] = (state.seconds[page.name] || 0) + (now - shown) / 1000;
  shown = now;
  try {
    localStorage.setItem(place, JSON.stringify(state));
  } catch (error) {
    at("notice").textContent = "This browser keeps nothing of a page opened so: do not close it before you have saved.";
    at("notice").hidden = false;
  }
}

const answered = (page) => questions.every((question) => (state.answers[page.name] || {})[question.name] !== undefined);

function drawScale(question, page, form) {
  const group = make("fieldset", {}, form);
  make("legend", { textContent: question.text }, group);
  const scale = make("div", { className: "scale" }, group);
  data.scale.forEach((value, number) => {
    const label = make("label", {}, scale);
    const input = make("input", { type: "radio", name: question.name, value: String(value) }, label);
    input.checked = (state.answers[page.name] || {})[question.name] === value;
    label.append(String(value).replace("-", "\u2212"));
    const ends = { 0: question.low, [data.scale.length - 1]: question.high };
    if (ends[number]) input.setAttribute("aria-label", `${value}, ${ends[number]}`);
    input.addEventListener("change", () => {
      (state.answers[page.name] = state.answers[page.name] || {})[question.name] = value;
      keep();
      drawProgress();
    });
  });
  const ends = make("div", { className: "ends" }, group);
  ends.ariaHidden = "true";
  for (const text of [question.low, question.high]) make("span", { textContent: text }, ends);
}

function drawPage(page) {
  const form = at("page");
  form.replaceChildren();
  const talk = make("ol", { className: "talk", tabIndex: 0 }, form);
  talk.setAttribute("aria-label", "Conversation so far");
  for (const [speaker, text] of page.history) {
    const line = make("li", { className: speaker }, talk);
    make("b", { textContent: speaker }, line);
    make("span", { className: "said", textContent: text }, line);
  }
  talk.scrollTop = talk.scrollHeight;
  if (page.strategy) {
    const strategy = make("p", { className: "strategy" }, form);
    make("strong", { textContent: `Strategy: ${page.strategy}. ` }, strategy);
    strategy.append(page.definition);
  }
  const replies = make("div", { className: "replies" }, form);
  page.replies.forEach((text, number) => {
    const reply = make("div", { className: "reply" }, replies);
    make("b", { textContent: pair ? `Reply ${"AB"[number]}` : "Reply" }, reply);
    make("span", { className: "said", textContent: text }, reply);
  });
  for (const question of questions) drawScale(question, page, form);
}

function drawProgress() {
  const done = pages.filter(answered).length;
  Object.assign(at("progress"), { max: pages.length, value: done });
  at("progress").textContent = `${done} of ${pages.length}`;
}

function drawEnd() {
  const open = pages.map((page, number) => [page, number]).filter(([page]) => !answered(page));
  at("left").textContent = open.length
    ? `${open.length} of ${pages.length} pages have open questions. Answer them, or save what you have.`
    : "All questions are answered. Save your answers as a file, and send it back.";
  at("end").classList.toggle("done", !open.length);
  at("gaps").replaceChildren();
  for (const [, number] of open) {
    const button = make("button", { type: "button", textContent: `Page ${number + 1}` }, make("li", {}, at("gaps")));
    button.addEventListener("click", () => go(number));
  }
  at("comment").value = state.comment;
}

function draw() {
  const page = pages[state.page];
  at("page").hidden = !page;
  at("end").hidden = Boolean(page);
  at("back").disabled = state.page === 0;
  at("next").disabled = !page;
  at("place").textContent = page ? `Page ${state.page + 1} of ${pages.length}` : "The end";
  if (page) drawPage(page); else drawEnd();
  drawProgress();
}

function go(number) {
  keep();
  state.page = Math.max(0, Math.min(pages.length, number));
  keep();
  draw();
  at("help").open = false;
  window.scrollTo(0, 0);
  at("place").focus();
}

function save() {
  keep();
  const { answers, seconds, comment } = state;
  const content = { format: data.format, survey: data.survey, questionnaire: data.questionnaire, answers, seconds, comment };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  link.download = `${data.questionnaire}_${data.survey}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  const open = pages.filter((page) => !answered(page)).length;
  at("saved").textContent = `Saved as ${link.download}, where this browser keeps its downloads.` +
    (open ? ` ${open} of ${pages.length} pages have open questions.` : "");
}

let typed = { text: "" }; // just before, on a scale: 10 and -4 are two keys

document.addEventListener("keydown", (event) => {
  const on = event.target, page = pages[state.page];
  if (event.ctrlKey || event.altKey || event.metaKey || ["TEXTAREA", "BUTTON", "SUMMARY"].includes(on.tagName)) return;
  const groups = [...at("page").querySelectorAll("fieldset")];
  const open = groups.find((group) => !group.querySelector(":checked"));
  if (event.key === "Enter" && page) {
    event.preventDefault();
    if (open) focusScale(open); else go(state.page + 1);
  } else if (/^[0-9]$/.test(event.key) && page) {
    const group = on.closest("fieldset") || open || groups[0];
    const before = [undefined, group].includes(typed.group) ? typed.text : "";
    const text = [before + event.key, event.key].find((number) => data.scale.includes(+number));
    const input = text && group.querySelector(`input[value="${+text}"]`);
    if (input) { input.focus(); input.click(); }
    typed = { text: text || "", group };
    return;
  }
  typed = { text: event.key === "-" ? "-" : "" };
});

function focusScale(group) {
  (group.querySelector(":checked") || group.querySelector("input")).focus();
}

at("page").addEventListener("submit", (event) => event.preventDefault());
at("comment").addEventListener("input", () => { state.comment = at("comment").value; keep(); });
at("back").addEventListener("click", () => go(state.page - 1));
at("next").addEventListener("click", () => go(state.page + 1));
at("save").addEventListener("click", save);
draw();
keep();
