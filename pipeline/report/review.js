"use strict";
// The page of `review`. A verdict waits in `queue`, which localStorage has too, until a POST of it was answered.
const token = new URLSearchParams(location.search).get("token") || "", TAB = newId();
const $ = id => document.getElementById(id), view = $("view"), shot = $("shot"), boxes = $("boxes");
const MARKS = { accept: "✓ accepted", reject: "✗ rejected", unsure: "? unsure", fixed: "✓ moved", missing: "+ added" };
const AHEAD = 3, BATCH = 200, KEPT = 300, MINUTES = 5, SMALLEST = 1, DRAG = 4, UNDOS = 200;
const images = new Map(), stops = new Map(), pictures = new Map(), times = [];
let start, progress, stop = -1, image, due = [], items = [], selected = 0, phrase, draft, resizing = false, zoom = 1, turn = 0;
let queue = [], undos = [], sending = false, pause = 0, timer, trouble = "";

function newId() { return [...crypto.getRandomValues(new Uint8Array(16))].map(n => n.toString(16).padStart(2, "0")).join(""); }
const address = path => `${path}?token=${encodeURIComponent(token)}`;
const number = n => n.toLocaleString("en");
const element = (name, values = {}, ...children) => { const made = Object.assign(document.createElement(name), values); made.append(...children); return made; };

async function get(path) {
  const answer = await fetch(address(path));
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

// What must outlive the tab: verdicts that wait, refused ones, and what undo takes back.
const stored = name => `review:${start.id}:${name}`;
function keep(name, values) {
  try { values.length ? localStorage.setItem(stored(name), JSON.stringify(values)) : localStorage.removeItem(stored(name)); }
  catch (error) { trouble = `This browser keeps nothing for this page (${error.message}): a verdict that is not saved is lost with the tab.`; }
}
function kept(name) { try { return JSON.parse(localStorage.getItem(stored(name)) || "[]"); } catch { return []; } }
/** Takes the waiting verdicts of tabs that were closed; if one is open still, both send them, and each counts once. */
function adopt() {
  const names = Object.keys(localStorage).filter(name => name.startsWith(stored("queue:")));
  queue = names.flatMap(name => kept(name.slice(stored("").length)));
  keep(`queue:${TAB}`, queue);
  names.forEach(name => localStorage.removeItem(name));
}

async function flush() {
  if (sending) return;
  sending = true;
  clearTimeout(timer);
  try {
    while (queue.length) {
      const batch = queue.slice(0, BATCH);
      const answer = await fetch(address("verdicts"), { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(batch) });
      if (!answer.ok) throw new Error((await answer.text()).trim());
      const result = await answer.json(), done = new Set([...result.saved, ...Object.keys(result.refused)]);
      const refused = batch.filter(v => v.id in result.refused).map(v => ({ ...v, reason: result.refused[v.id] }));
      if (refused.length) keep("refused", [...kept("refused"), ...refused]);
      queue = queue.filter(v => !done.has(v.id));
      keep(`queue:${TAB}`, queue);
      [progress, trouble, pause] = [result.progress, "", 0];
    }
  } catch (error) {
    const why = error instanceof TypeError ? "review does not answer; start it again with the same --port, and open the address that it prints" : error.message;
    trouble = `Not saved: ${why}. The verdicts are kept in this browser and sent again.`;
    pause = Math.min(10, 2 * pause || 1);
    timer = setTimeout(flush, 1000 * pause);
  }
  sending = false;
  showState();
  showList();
}

function payload(target, state = target) {
  const of = target.box ? image.phrases[target.phrase] : target;
  return {
    id: newId(), verdict: state.verdict || "withdrawn", shard: image.shard, key: image.key, phrase: of.phrase,
    start: of.start, end: of.end, box: target.box || null, boxes: state.verdict ? state.boxes : [],
  };
}
function send(target, values) {
  target.last = values.id;
  queue.push(values);
}
/** Changes verdicts of regions or phrases. changes: [target, verdict, boxes]. */
function decide(...changes) {
  undos.push({ stop, before: changes.map(([target]) => payload(target, { verdict: target.verdict, boxes: target.boxes })) });
  undos = undos.slice(-UNDOS);
  for (const [target, verdict, of = []] of changes) {
    Object.assign(target, { verdict, boxes: of });
    send(target, payload(target));
    times.push(Date.now());
  }
  keep("undo", undos);
  keep(`queue:${TAB}`, queue);
  flush();
}
async function undo() {
  if (draft) return cancel();
  const last = undos.pop();
  if (!last) return say("There is nothing to undo.");
  keep("undo", undos);
  await show(Math.min(last.stop, start.stops - 1));
  for (const before of last.before) {
    const here = image && before.shard === image.shard && before.key === image.key;
    const of = p => p.phrase === before.phrase && p.start === before.start && p.end === before.end;
    const same = r => of(image.phrases[r.phrase]) && r.box.every((v, i) => v === before.box[i]);
    const target = here && (before.box ? image.regions.find(same) : image.phrases.find(of));
    const values = { ...before, id: newId() };
    if (target) {
      Object.assign(target, { verdict: before.verdict === "withdrawn" ? "" : before.verdict, boxes: before.boxes });
      target.last = values.id;
      times.pop();
    }
    queue.push(values);
    arrange();
    if (target && before.box) selected = items.findIndex(item => item.target === target);
  }
  keep(`queue:${TAB}`, queue);
  choose(Math.max(0, Math.min(selected, items.length - 1)));
  flush();
}

/** Loads a stop once. */
function load(n) {
  if (!stops.has(n)) {
    const loading = get(`stop/${n}`).then(found => {
      if (!images.has(found.image.number)) images.set(found.image.number, found.image);
      picture(found.image.number);
      return { due: found.due, image: found.image.number };
    });
    loading.catch(() => stops.delete(n));
    stops.set(n, loading);
  }
  return stops.get(n);
}
function picture(n) {
  if (!pictures.has(n)) {
    const made = Object.assign(new Image(), { id: "image", alt: "", draggable: false, src: address(`image/${n}`) });
    pictures.set(n, made);
    made.addEventListener("error", () => pictures.delete(n));
  }
  return pictures.get(n);
}
function forget() {
  if (!queue.length && images.size > KEPT) { images.clear(); stops.clear(); }
  for (const n of pictures.keys()) if (pictures.size > 4 * AHEAD) pictures.delete(n);
}

async function show(n, which) {
  save();
  const mine = ++turn;
  let found;
  try { found = await load(n); } catch (error) { return mine === turn && say(`Image ${n + 1} cannot be shown: ${error.message}`, true); }
  if (mine !== turn) return;
  [stop, image, due, phrase, zoom] = [n, images.get(found.image), found.due, undefined, 1];
  arrange();
  const drawn = picture(image.number);
  $("image").replaceWith(drawn);
  $("unseen").hidden = true;
  shot.hidden = false;
  drawn.onerror = async () => {
    const why = await fetch(drawn.src).then(answer => answer.text(), error => error.message);
    if (mine !== turn) return;
    $("unseen").textContent = `The image cannot be shown: ${why}`;
    [$("unseen").hidden, shot.hidden] = [false, true];
  };
  const open = items.findIndex(item => item.due && !item.target.verdict);
  choose(which ?? Math.max(0, open));
  say("");
  forget();
  const ahead = () => [1, 2, AHEAD, -1].map(i => n + i).filter(i => i >= 0 && i < start.stops).forEach(i => load(i).catch(() => {}));
  drawn.complete ? ahead() : drawn.addEventListener("load", ahead, { once: true }); // this image first
}
/** The boxes of the image: regions to review in order, drawn ones, and its other regions. */
function arrange() {
  const of = region => ({ target: region, phrase: image.phrases[region.phrase], due: due.includes(region.region) });
  const regions = new Map(image.regions.map(region => [region.region, of(region)]));
  const drawn = image.phrases.flatMap(p => p.boxes.map((_, n) => ({ target: p, phrase: p, n, due: false })));
  items = [...due.map(n => regions.get(n)), ...drawn, ...[...regions.values()].filter(item => !item.due)];
}
const isRegion = item => item.target.box !== undefined;
const boxOf = item => draft && draft.item === item ? draft.box : isRegion(item) ? (item.target.verdict === "fixed" ? item.target.boxes[0] : item.target.box) : item.target.boxes[item.n];

function choose(n) {
  selected = n;
  if (items[n]) phrase = items[n].phrase;
  phrase ||= image.phrases[0];
  paint();
  fit();
}
/** Goes on to the next region without a verdict: of this image, else of the stops after it. */
async function advance() {
  const open = items.map((item, n) => [item, n]).filter(([item]) => item.due && !item.target.verdict).map(([, n]) => n);
  if (open.length) return choose(open.find(n => n > selected) ?? open[0]);
  for (let n = stop + 1; n < start.stops; n++) {
    if (n > stop + 30) return show(Math.max(progress.open, 0));
    const found = await load(n).catch(() => null), of = found && images.get(found.image);
    if (!of || of.regions.some(r => found.due.includes(r.region) && !r.verdict)) return show(n);
  }
  paint();
  say(progress.decided + queue.length < progress.regions ? "This was the last one; g goes to the first region without a verdict." : "Every region has a verdict.");
}

const ACTIONS = {
  accept: () => judge("accept"), reject: () => judge("reject"), unsure: () => judge("unsure"),
  acceptAll: () => {
    save();
    const open = items.filter(item => item.due && !item.target.verdict);
    if (open.length) decide(...open.map(item => [item.target, "accept"]));
    return advance();
  },
  undo, nextRegion: () => move(1), previousRegion: () => move(-1),
  nextImage: () => stop + 1 < start.stops ? show(stop + 1) : say("This is the last one."),
  previousImage: () => stop > 0 ? show(stop - 1) : say("This is the first one."),
  firstOpen: () => progress.decided < progress.regions ? show(progress.open) : say("Every region has a verdict."),
  draw: () => {
    save();
    if (!phrase) return say("There is no phrase to draw a box of.");
    const w = image.width / 4, h = image.height / 4, x = (image.width - w) / 2, y = (image.height - h) / 2;
    [draft, resizing] = [{ item: null, phrase, box: [x, y, x + w, y + h].map(Math.round) }, false];
    paint();
  },
  resize: () => { resizing = !resizing; paint(); },
  finish: () => draft ? (save(), advance()) : move(1), cancel,
  nextPhrase: () => turnPhrase(1), previousPhrase: () => turnPhrase(-1), pick,
  zoomIn: () => scale(1.5), zoomOut: () => scale(1 / 1.5), whole: () => { zoom = 1; fit(); },
  closer: () => {
    const item = items[selected];
    if (!item) return;
    const [x1, y1, x2, y2] = boxOf(item), room = Math.min(image.width / (x2 - x1), image.height / (y2 - y1));
    zoom = zoom > 1 ? 1 : Math.max(1.5, Math.min(12, 0.6 * room));
    fit();
  },
  help: () => $("help").open ? $("help").close() : $("help").showModal(),
};
/** [keys, action, words of the overlay]; a key with "^" is held with Ctrl. */
const KEYS = [
  [["a"], "accept", "accept, go on"], [["r", "x", "Delete"], "reject", "reject (or remove a box of yours)"], [["u"], "unsure", "unsure, go on"],
  [["A"], "acceptAll", "accept all that are open, go on"], [["z", "^z"], "undo", "undo"], [["g", "Home"], "firstOpen", "first region without a verdict"],
  [["Tab", "."], "nextRegion", "next region"], [["⇧Tab", ","], "previousRegion", "previous region"],
  [["n", "PageDown"], "nextImage", "next image"], [["p", "PageUp"], "previousImage", "previous image"],
  [["← → ↑ ↓"], "", "move the box 1 px (⇧: 10 px)"], [["s"], "resize", "arrows resize / move"],
  [["Enter"], "finish", "save a moved or new box"], [["Escape"], "cancel", "put the box back"],
  [["d"], "draw", "new box of the phrase"], [["]"], "nextPhrase", "next phrase for new boxes"], [["["], "previousPhrase", "previous phrase"],
  [["/"], "pick", "choose a phrase by its text"], [["+", "="], "zoomIn", "zoom in"], [["-"], "zoomOut", "zoom out"], [["0"], "whole", "whole image"],
  [["f"], "closer", "zoom to the box / back"], [["?", "h"], "help", "these keys"],
];
const BY_KEY = new Map(KEYS.flatMap(([keys, action]) => action ? keys.map(key => [key, action]) : []));
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function judge(verdict) {
  const item = items[selected];
  if (draft && verdict === "accept") return ACTIONS.finish(); // the box as it is now
  const fresh = draft && !draft.item;
  cancel();
  if (fresh || !item) return;
  if (isRegion(item)) decide([item.target, verdict]);
  else if (verdict !== "reject") return advance();
  else change(item.target, item.target.boxes.filter((_, n) => n !== item.n));
  advance();
}
/** Replaces the boxes that the teacher overlooked of a phrase. */
function change(of, drawn) {
  decide([of, drawn.length ? "missing" : "", drawn]);
  arrange();
}
function move(step) {
  save();
  const n = items.length;
  if (n) choose((selected + step + n) % n);
}
function turnPhrase(step) {
  const all = image.phrases, n = all.indexOf(phrase);
  if (!all.length) return;
  phrase = all[(n + step + all.length) % all.length];
  if (draft && !draft.item) draft.phrase = phrase;
  paint();
}
function pick() {
  $("names").replaceChildren(...(start.names || image.phrases.map(p => p.phrase)).map(value => element("option", { value })));
  $("wanted").value = "";
  $("pick").showModal();
}
function picked() {
  const text = $("wanted").value.trim(), same = p => p.phrase.toLowerCase() === text.toLowerCase();
  const name = (start.names || []).find(phrase => same({ phrase }));
  $("pick").close();
  let found = image.phrases.find(same);
  if (!found && name) image.phrases.push(found = { start: null, end: null, phrase: name, colour: "#5a616e", verdict: "", boxes: [] });
  if (!found) return text && say(`There is no phrase ${text}.`);
  phrase = found;
  if (draft && !draft.item) draft.phrase = phrase;
  paint();
}

// Moving and drawing: a draft is a box that was changed and is no verdict yet.
function nudge(dx, dy) {
  const item = items[selected];
  if (!draft && !item) return;
  draft ||= { item, phrase: item.phrase, box: [...boxOf(item)] };
  const [x1, y1, x2, y2] = draft.box, { width, height } = image;
  if (resizing) draft.box = [x1, y1, within(x2 + dx, x1 + SMALLEST, Math.max(width, x2)), within(y2 + dy, y1 + SMALLEST, Math.max(height, y2))];
  else {
    dx = within(dx, Math.min(0, -x1), Math.max(0, width - x2));
    dy = within(dy, Math.min(0, -y1), Math.max(0, height - y2));
    draft.box = [x1 + dx, y1 + dy, x2 + dx, y2 + dy];
  }
  paint();
}
const within = (value, low, high) => Math.max(low, Math.min(high, value));
/** Makes the draft a verdict; nothing if the box is where it was. */
function save() {
  if (!draft) return;
  const { item, phrase: of, box } = draft;
  const before = item && boxOf({ ...item });
  draft = undefined;
  if (before && before.every((v, i) => v === box[i])) return;
  if (item && isRegion(item)) decide([item.target, "fixed", [box]]);
  else {
    const drawn = of.verdict === "missing" ? [...of.boxes] : [], n = item ? item.n : drawn.length;
    drawn[n] = box;
    change(of, drawn);
    selected = items.findIndex(other => other.target === of && other.n === n);
  }
  paint();
}
function cancel() {
  draft = undefined;
  resizing = false;
  paint();
}

// Showing
function fit() {
  if (!image) return;
  const whole = Math.min((view.clientWidth - 12) / image.width, (view.clientHeight - 46) / image.height), item = items[selected];
  shot.style.width = `${zoom * whole * image.width}px`;
  shot.style.height = `${zoom * whole * image.height}px`;
  if (zoom === 1 || !item) return;
  const [x1, y1, x2, y2] = boxOf(item), inner = shot.getBoundingClientRect(), outer = view.getBoundingClientRect();
  view.scrollLeft += inner.left - outer.left + (x1 + x2) / 2 * zoom * whole - view.clientWidth / 2;
  view.scrollTop += inner.top - outer.top + (y1 + y2) / 2 * zoom * whole - view.clientHeight / 2;
}
function scale(times) { zoom = within(zoom * times, 1, 40); fit(); }

function svg(name, values) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  return made;
}
const area = item => { const [x1, y1, x2, y2] = boxOf(item); return (x2 - x1) * (y2 - y1); };
function paint() {
  if (!image) return;
  boxes.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
  shot.querySelectorAll(".label, .corner").forEach(old => old.remove());
  const shown = draft && !draft.item ? [...items, { target: draft.phrase, phrase: draft.phrase, fresh: true }] : items;
  const current = shown.find(item => item.fresh) || items[selected];
  const order = [...shown].sort((a, b) => (a === current) - (b === current) || area2(b) - area2(a));
  boxes.replaceChildren(...order.map(item => {
    const [x1, y1, x2, y2] = corners(item), values = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
    const group = svg("g", { class: classes(item, current) });
    group.style.setProperty("--c", item.phrase.colour);
    group.append(...["halo", "line", "grab"].map(name => svg("rect", { ...values, class: name })));
    group.lastChild.item = item;
    const score = item.target.score, label = element("span", { className: `label ${classes(item, current)}` });
    label.textContent = `${mark(item)}${item.phrase.phrase}${score === undefined ? "" : ` ${score.toFixed(2)}`}`;
    label.style.background = item.phrase.colour;
    label.style.left = `${100 * within(x1 / image.width, 0, 0.97)}%`;
    label.style.top = `${100 * Math.max(0, y1 / image.height)}%`;
    shot.append(label);
    return group;
  }));
  if (current) {
    const [x1, y1, x2, y2] = corners(current);
    for (const [name, x, y] of [["nw", x1, y1], ["ne", x2, y1], ["sw", x1, y2], ["se", x2, y2]]) {
      const corner = element("i", { className: `corner ${name}` });
      [corner.style.left, corner.style.top] = [`${100 * x / image.width}%`, `${100 * y / image.height}%`];
      shot.append(corner);
    }
  }
  showCaption();
  showList();
  showState();
}
const corners = item => item.fresh ? draft.box : boxOf(item);
const area2 = item => item.fresh ? 0 : area(item);
const mark = item => isRegion(item) && item.target.verdict ? `${MARKS[item.target.verdict].slice(0, 1)} ` : !isRegion(item) ? "+ " : "";
function classes(item, current) {
  const own = isRegion(item) ? item.target.verdict || "open" : "missing";
  return [own, isRegion(item) && !item.due ? "other" : "", item === current ? "selected" : "", draft && (item.fresh || draft.item === item) ? "editing" : ""].filter(Boolean).join(" ");
}

function chip(of, text) {
  const made = element("span", { className: `phrase${of === phrase ? " chosen" : ""}`, textContent: text, title: `new boxes are of "${of.phrase}"` });
  made.style.background = of.colour;
  if (!image.regions.some(r => image.phrases[r.phrase] === of) && !of.boxes.length) made.classList.add("bare");
  made.addEventListener("click", () => { phrase = of; paint(); });
  return made;
}
function showCaption() {
  const text = image.caption, parts = [];
  if (text !== null) {
    const points = [...text], cover = new Array(points.length); // spans count code points
    image.phrases.filter(p => p.start !== null).reverse().forEach(p => cover.fill(p, p.start, p.end));
    for (let from = 0, to; from < points.length; from = to) {
      for (to = from + 1; to < points.length && cover[to] === cover[from]; to++);
      const piece = points.slice(from, to).join("");
      parts.push(cover[from] ? chip(cover[from], piece) : piece);
    }
  }
  $("caption").replaceChildren(...parts);
  $("phrases").replaceChildren("new boxes: ", ...(text === null ? image.phrases.map(p => chip(p, p.phrase)) : phrase ? [chip(phrase, phrase.phrase)] : []));
  const words = !draft ? "" : `${draft.item ? "Box changed" : `New box of "${draft.phrase.phrase}"`}: arrows ${resizing ? "resize" : "move"} it (s: ${resizing ? "move" : "resize"}), Enter saves, Esc ${draft.item ? "puts it back" : "drops it"}.`;
  $("draft").textContent = words || (resizing ? "Arrows resize the box (s: move)." : "");
  $("draft").hidden = !$("draft").textContent;
}
function showList() {
  if (!image) return;
  $("list").replaceChildren(...items.map((item, n) => {
    const region = isRegion(item), verdict = region ? item.target.verdict : "missing", waits = queue.some(v => v.id === item.target.last);
    const row = element("li", { className: `${verdict}${n === selected ? " selected" : ""}${region && !item.due ? " other" : ""}` });
    row.style.setProperty("--c", item.phrase.colour);
    const extra = region ? Object.entries(item.target.evidence).map(([name, value]) => `${name.replace("_", " ")} ${value}`).join(", ") : "";
    const text = element("span", { className: "text" }, item.phrase.phrase, element("span", { className: "soft", textContent: region ? `  ${item.target.score.toFixed(2)}` : "" }));
    if (extra) text.append(element("div", { className: "soft", textContent: extra }));
    row.append(element("i"), text, element("b", { textContent: verdict ? (waits ? "saving…" : MARKS[verdict]) : region && !item.due ? "" : "open" }));
    row.addEventListener("click", () => { save(); choose(n); });
    return row;
  }));
  $("list").children[selected]?.scrollIntoView({ block: "nearest" });
}
function showState() {
  if (!start) return;
  const now = Date.now(), recent = times.filter(t => now - t < 60000 * MINUTES), span = recent.length ? Math.max(1, (now - recent[0]) / 60000) : 1;
  const inImage = items.filter(item => item.due), at = items[selected]?.due ? `, region ${selected + 1} of ${inImage.length}` : "";
  $("position").textContent = start.sample ? `sample ${number(stop + 1)} of ${number(start.stops)}` : `image ${number(stop + 1)} of ${number(start.stops)}${at}`;
  $("name").textContent = image ? `${image.shard}/${image.key}` : "";
  $("bar").value = progress.decided / progress.regions;
  $("count").textContent = `${number(progress.decided)} of ${number(progress.regions)} regions have a verdict` + (times.length ? `; ${times.length} here, ${Math.round(recent.length / span)} a minute` : "");
  const e = progress.estimate, percent = value => (100 * value).toFixed(1);
  $("estimate").hidden = !start.sample;
  $("estimate").textContent = (e ? `precision ${percent(e.precision)} % (95 %: ${percent(e.low)} to ${percent(e.high)})` + (e.more ? `; ${number(e.more)} more for ±2 points` : "") : "precision: too few verdicts yet")
    + (progress.beyond ? `; ${number(progress.beyond)} verdicts after the first open region do not count yet` : "");
  $("saved").textContent = queue.length ? `${queue.length} not saved yet` : times.length || progress.decided ? "all saved" : "";
  $("saved").className = queue.length ? (trouble ? "waiting" : "") : "all";
  const refused = kept("refused");
  if (trouble) say(trouble, true);
  else if (refused.length) {
    say(`${refused.length} verdicts were refused: ${refused[0].reason}. `, true);
    $("problem").append(element("button", { textContent: "forget them", onclick: () => { keep("refused", []); say(""); showState(); } }));
  } else if ($("problem").dataset.bad) say("");
}
/** Shows a line; bad: until it is true no more. */
function say(words, bad = false) {
  if (!words && $("problem").dataset.bad && (trouble || kept("refused").length)) return;
  $("problem").textContent = words;
  $("problem").hidden = !words;
  bad ? $("problem").dataset.bad = "1" : delete $("problem").dataset.bad;
}

// Keys and mouse
addEventListener("keydown", event => {
  if (!image || event.metaKey || event.altKey || $("pick").open) return;
  const arrow = ARROWS[event.key], key = `${event.ctrlKey ? "^" : ""}${event.shiftKey && event.key === "Tab" ? "⇧" : ""}${event.key}`;
  const action = BY_KEY.get(key);
  if ($("help").open && action !== "help") return;
  if (document.activeElement?.tagName === "BUTTON" && (event.key === "Enter" || event.key === " ")) return;
  if (arrow && !event.ctrlKey) nudge(...arrow.map(v => v * (event.shiftKey ? 10 : 1)));
  else if (action) ACTIONS[action]();
  else return;
  event.preventDefault();
});
document.querySelectorAll("[data-do]").forEach(button => button.addEventListener("click", () => { button.blur(); ACTIONS[button.dataset.do](); }));
$("pick").addEventListener("keydown", event => { if (event.key === "Enter") { event.preventDefault(); picked(); } });
$("keys").append(...KEYS.flatMap(([keys, , words]) => [element("span", {}, ...keys.map(key => element("kbd", { textContent: key.replace("^", "Ctrl ").replace("⇧", "⇧ ") })).flatMap((k, n) => n ? [" ", k] : [k])), element("span", { textContent: words })]));

const point = event => {
  const r = shot.getBoundingClientRect();
  return [(event.clientX - r.left) / r.width * image.width, (event.clientY - r.top) / r.height * image.height];
};
shot.addEventListener("pointerdown", event => {
  if (event.button || !image) return;
  event.preventDefault();
  document.activeElement?.blur();
  const from = point(event), corner = event.target.closest(".corner"), grabbed = event.target.item;
  if (grabbed && !grabbed.fresh && items[selected] !== grabbed) { save(); choose(items.indexOf(grabbed)); }
  const fresh = draft && !draft.item, base = corner || grabbed ? [...(fresh ? draft.box : boxOf(items[selected]))] : null;
  let moved = false;
  const drag = now => {
    if (!moved && Math.hypot(now.clientX - event.clientX, now.clientY - event.clientY) < DRAG) return;
    const first = !moved, to = point(now).map((v, i) => within(v, 0, i ? image.height : image.width));
    moved = true;
    if (!base) {
      if (first) save();
      if (!phrase) return say("There is no phrase to draw a box of.");
      draft = { item: null, phrase, box: ordered(from, to) };
    } else if (corner) {
      const east = corner.classList.contains("ne") || corner.classList.contains("se"), south = corner.classList.contains("sw") || corner.classList.contains("se");
      const fixed = [east ? base[0] : base[2], south ? base[1] : base[3]];
      draft = { ...(fresh ? draft : { item: items[selected], phrase: items[selected].phrase }), box: ordered(fixed, to) };
    } else {
      draft = { ...(fresh ? draft : { item: items[selected], phrase: items[selected].phrase }), box: base };
      const was = resizing;
      resizing = false;
      nudge(to[0] - from[0], to[1] - from[1]);
      resizing = was;
    }
    paint();
  };
  const end = now => {
    shot.removeEventListener("pointermove", drag);
    if (moved) return save();
    if (base) return;
    const [x, y] = point(now), hit = items.map((item, n) => [item, n]).filter(([item]) => { const [a, b, c, d] = boxOf(item); return a <= x && x <= c && b <= y && y <= d; }).sort((p, q) => area(p[0]) - area(q[0]))[0];
    if (hit) { save(); choose(hit[1]); }
  };
  shot.setPointerCapture(event.pointerId);
  shot.addEventListener("pointermove", drag);
  shot.addEventListener("pointerup", end, { once: true });
});
function ordered([x1, y1], [x2, y2]) {
  const sides = [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)];
  if (sides[2] - sides[0] < SMALLEST) sides[2] = sides[0] + SMALLEST;
  if (sides[3] - sides[1] < SMALLEST) sides[3] = sides[1] + SMALLEST;
  return sides.map(v => Math.round(100 * v) / 100);
}
view.addEventListener("wheel", event => { if (event.ctrlKey) { event.preventDefault(); scale(event.deltaY < 0 ? 1.2 : 1 / 1.2); } }, { passive: false });
addEventListener("resize", fit);
addEventListener("online", flush);
addEventListener("unhandledrejection", event => say(`The page failed: ${event.reason}`, true));

(async () => {
  try { start = await get("start"); } catch (error) { return say(`This cannot be shown: ${error.message}`, true); }
  progress = start.progress;
  document.title = `review ${start.store}`;
  undos = kept("undo");
  adopt();
  await flush();
  await show(progress.decided < progress.regions ? progress.open : 0);
})();
