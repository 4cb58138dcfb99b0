// Tables that are wider than the screen, or than paper: what is out of sight is told, and printed all the same.
const PAPER = 690; // CSS pixels between the margins of A4
const SMALLER = 11 / 14; // print to screen, by their fonts

for (const box of document.querySelectorAll(".scroll")) {
  const hint = document.createElement("p");
  Object.assign(hint, { className: "soft more-hint", textContent: "More columns: scroll sideways \u2192", hidden: true });
  box.before(hint);
  const look = () => {
    const more = box.scrollLeft + box.clientWidth < box.scrollWidth - 2;
    box.classList.toggle("more", more);
    hint.hidden = box.scrollWidth <= box.clientWidth + 2;
    hint.style.visibility = more ? "visible" : "hidden";
  };
  box.addEventListener("scroll", look, { passive: true });
  const watch = new ResizeObserver(look);
  for (const element of [box, ...box.children]) watch.observe(element);
}

// The numbers of the columns that fit on paper together, beside the first one, which each part repeats.
function parts(table) {
  table.style.minWidth = 0;  // as wide as it needs to be, and not as the screen is
  const widths = [...table.tHead.rows[0].cells].map((cell) => cell.offsetWidth * SMALLER);
  table.style.minWidth = "";
  const found = [];
  let room = 0;
  widths.forEach((width, column) => {
    if (!column) return;
    if (width > room) { found.push([]); room = PAPER - widths[0]; }
    found.at(-1).push(column);
    room -= width;
  });
  return found;
}
let copies = [];
addEventListener("beforeprint", () => {
  for (const box of document.querySelectorAll(".scroll:has(> table)")) {
    const table = box.querySelector("table");
    const together = table.tHead?.rows.length ? parts(table) : [];
    if (together.length < 2) continue;
    box.classList.add("split");
    for (const shown of together.reverse()) {
      const copy = box.cloneNode(true);
      copy.className = "scroll on-paper";
      for (const part of copy.querySelectorAll("[id]")) part.removeAttribute("id");
      for (const row of copy.querySelector("table").rows) {
        [...row.cells].forEach((cell, column) => { if (column && !shown.includes(column)) cell.remove(); });
      }
      box.after(copy);
      copies.push(copy);
    }
  }
});
addEventListener("afterprint", () => {
  for (const copy of copies) copy.remove();
  copies = [];
  for (const box of document.querySelectorAll(".scroll.split")) box.classList.remove("split");
});
