"use strict";
// Figures of labelled images: labels, filter, order, enlarging. Texts are only ever set as text, never as HTML.
const SMALL = 32 ** 2, MEDIUM = 96 ** 2; // COCO's sizes, in square pixels
const all = (where, selector) => [...where.querySelectorAll(selector)];
const text = box => box.dataset.phrase + (box.dataset.score && ` ${(+box.dataset.score).toFixed(2)}`);
const MARKS = { right: "✓ ", wrong: "✗ ", missed: "missed: " };

/** Places the boxes' labels so that none covers another; a label without room is shown on hover only. */
function label(shot) {
  all(shot, ".label").forEach(old => old.remove());
  const svg = shot.querySelector("svg");
  if (!svg || !shot.clientWidth) return;
  const width = shot.clientWidth, height = shot.clientHeight, scale = width / svg.viewBox.baseVal.width, placed = [];
  for (const box of all(svg, ".box:not([hidden])").reverse()) { // small boxes first: they have less room
    const tag = document.createElement("span"), rect = box.querySelector("rect");
    const [x, y, w, h] = ["x", "y", "width", "height"].map(name => rect[name].baseVal.value * scale);
    tag.className = "label";
    tag.textContent = Object.keys(MARKS).filter(k => box.classList.contains(k)).map(k => MARKS[k]).join("") + text(box);
    tag.style.background = getComputedStyle(box).getPropertyValue("--c");
    shot.append(tag);
    const wide = tag.offsetWidth, high = tag.offsetHeight;
    const spots = [[x, y - high], [x, y + h], [x, y], [x + w - wide, y - high], [x + w, y], [x - wide, y]]
      .map(([left, top]) => [Math.max(0, Math.min(left, width - wide)), Math.max(0, Math.min(top, height - high))]);
    const free = ([l, t]) => placed.every(p => l >= p[0] + p[2] || l + wide <= p[0] || t >= p[1] + p[3] || t + high <= p[1]);
    const quiet = box.classList.contains("dropped") || box.classList.contains("ignored");
    const spot = quiet ? undefined : spots.find(free);
    const [left, top] = spot || spots[0];
    tag.style.left = `${left}px`;
    tag.style.top = `${top}px`;
    tag.hidden = !spot;
    if (spot) placed.push([left, top, wide, high]);
    tag.dataset.home = tag.hidden ? "hover" : "";
    box.tag = tag;
  }
}

/** Marks boxes, with their labels and lines in the list, while the pointer is on one of them or on their phrase. */
function mark(figure, boxes, on) {
  const items = all(figure, ".boxes li"), every = all(figure, ".box");
  for (const box of boxes) {
    box.classList.toggle("on", on);
    items[every.indexOf(box)]?.classList.toggle("on", on);
    if (!box.tag) continue;
    box.tag.classList.toggle("on", on);
    box.tag.hidden = !on && box.tag.dataset.home === "hover";
  }
}

function listen(figure) {
  const boxes = all(figure, ".box");
  const show = (element, of) => {
    element.addEventListener("pointerenter", () => mark(figure, of(), true));
    element.addEventListener("pointerleave", () => mark(figure, of(), false));
  };
  boxes.forEach(box => show(box, () => [box]));
  all(figure, ".boxes li").forEach((item, n) => boxes[n] && show(item, () => [boxes[n]]));
  all(figure, ".phrase").forEach(part => show(part, () => boxes.filter(b => b.dataset.phrase === part.dataset.phrase)));
}

/** Whether a box meets the form's conditions; pipeline.inspection.selection has the same rules. */
function meets(box, query) {
  const { phrase, score, area, kinds } = box.dataset, size = area < SMALL ? "small" : area < MEDIUM ? "medium" : "large";
  return phrase.toLowerCase().includes(query.phrase.toLowerCase()) && !(score !== "" && +score < query.least)
    && (!query.size || size === query.size)
    && (query.kind === "all" || kinds.split(" ").includes(query.kind || "dropped") === Boolean(query.kind));
}

function select(form) {
  const query = Object.fromEntries(new FormData(form)), figures = form.figures;
  const conditions = query.phrase || query.size || !["", "all"].includes(query.kind) || +query.least > 0, rank = new Map();
  form.querySelector("output").textContent = (+query.least).toFixed(2);
  for (const figure of figures) {
    const boxes = all(figure, ".box"), items = all(figure, ".boxes li");
    boxes.forEach((box, n) => { items[n].hidden = !meets(box, query); box.toggleAttribute("hidden", items[n].hidden); });
    const met = boxes.filter((_, n) => !items[n].hidden), scores = met.filter(b => b.dataset.score).map(b => +b.dataset.score);
    figure.hidden = conditions && !met.length;
    rank.set(figure, query.sort === "boxes" ? -met.length : query.sort === "score" ? -Math.max(...scores) :
      query.sort === "low_score" ? Math.min(...scores) : 0);
  }
  if (!form.hasAttribute("data-live")) {
    const order = (a, b) => (rank.get(a) === rank.get(b) ? 0 : rank.get(a) - rank.get(b)) || a.dataset.order - b.dataset.order;
    figures.sort(order).forEach(figure => figure.parentNode.append(figure));
    const shown = figures.filter(figure => !figure.hidden).length;
    form.querySelector(".shown").textContent = `${shown} of ${figures.length} images`;
  }
  figures.forEach(figure => { if (!figure.hidden) all(figure, ".shot").forEach(label); });
}

let dialog;
function enlarge(figure) {
  const shown = () => all(document, ".grid figure").filter(f => !f.hidden && f.querySelector("img"));
  dialog?.remove();
  dialog = document.createElement("dialog");
  const view = document.createElement("div"), side = document.createElement("div"), bar = document.createElement("div");
  const shot = figure.querySelector(".shot").cloneNode(true), image = shot.querySelector("img");
  [view.className, side.className, bar.className] = ["view", "side", "bar"];
  shot.removeAttribute("tabindex");
  all(shot, ".label").forEach(old => old.remove());
  let zoom = 1;
  const ratio = () => (+image.getAttribute("width") || image.naturalWidth) / (+image.getAttribute("height") || image.naturalHeight);
  const fit = () => { shot.style.width = `${zoom * Math.min(view.clientWidth, view.clientHeight * ratio())}px`; label(shot); };
  const turn = step => { const f = shown(), n = f.indexOf(figure); if (n >= 0) enlarge(f[(n + step + f.length) % f.length]); };
  const actions = { "+": () => { zoom *= 1.5; fit(); }, "−": () => { zoom = Math.max(1, zoom / 1.5); fit(); }, "‹": () => turn(-1), "›": () => turn(1), "close": () => dialog.close() };
  const names = { "+": "zoom in", "−": "zoom out", "‹": "previous image", "›": "next image", "close": "close" };
  for (const [words, action] of Object.entries(actions)) {
    const button = document.createElement("button");
    button.textContent = words;
    button.setAttribute("aria-label", names[words]);
    button.addEventListener("click", action);
    bar.append(button);
  }
  side.append(bar, ...all(figure, "figcaption")[0].cloneNode(true).childNodes);
  view.append(shot);
  dialog.append(view, side);
  document.body.append(dialog);
  dialog.addEventListener("keydown", event => {
    const action = { ArrowLeft: "‹", ArrowRight: "›", "+": "+", "-": "−" }[event.key];
    if (action) { event.preventDefault(); actions[action](); }
  });
  listen(dialog);
  dialog.showModal();
  dialog.refit = fit;
  image.complete ? fit() : image.addEventListener("load", fit);
}

/** Sorts a table by the column whose head is clicked, numbers downwards first. */
function sortable(table) {
  const body = table.tBodies[0], heads = all(table, "thead th");
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") === "descending", value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const order = (a, b) => (isNaN(value(a)) || isNaN(value(b)) ? value(b).localeCompare(value(a)) : value(b) - value(a)) * (up ? -1 : 1);
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...[...body.rows].sort(order));
  }));
}

for (const figure of all(document, "figure")) {
  const shot = figure.querySelector(".shot");
  listen(figure);
  shot?.addEventListener("click", () => enlarge(figure));
  shot?.addEventListener("keydown", event => { if (event.key === "Enter") enlarge(figure); });
}
for (const form of all(document, "form.filters")) {
  let grid = form;
  while (!grid.matches(".grid")) grid = grid.nextElementSibling;
  form.figures = all(grid, "figure");
  form.addEventListener("input", () => select(form));
  form.addEventListener("submit", event => { if (!form.hasAttribute("data-live")) event.preventDefault(); });
  if (form.hasAttribute("data-live")) form.addEventListener("change", () => form.requestSubmit());
  select(form);
}
all(document, "table.sortable").forEach(sortable);
let resized;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => { all(document, ".grid figure:not([hidden]) .shot").forEach(label); if (dialog?.open) dialog.refit(); }, 100);
});
addEventListener("load", () => all(document, ".grid figure:not([hidden]) .shot").forEach(label));
