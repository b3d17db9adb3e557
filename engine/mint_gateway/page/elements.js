// The page's elements, words and numbers.
// Names come from other people: they become text nodes and attributes, never markup.
const SVG = "http://www.w3.org/2000/svg", DRAWN = new Set(["svg", "g", "path", "rect", "line", "text", "circle"]);
const KINDS = {
  good: ["Ready", "Complete"],
  busy: ["Training", "Running", "Loading", "Placing", "Starting"],
  warn: ["Degraded", "Pending", "Queued", "Paused", "Draining", "Expired", "Cancelled"],
  bad: ["Failed", "Silent"],
};

export function h(tag, about, ...inner) {
  const made = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(about))
    if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value);
  made.append(...inner.flat(4).filter((each) => each !== undefined && each !== null && each !== false));
  return made;
}

// Changes only what differs, so that focus, selection, scrolling and typed text are preserved.
export function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName || old.dataset?.key !== fresh.dataset?.key) return old.replaceWith(fresh);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const before = [...old.childNodes], after = [...fresh.childNodes];
  after.forEach((each, i) => (i < before.length ? morph(before[i], each) : old.append(each)));
  before.slice(after.length).forEach((each) => each.remove());
}

export const known = Number.isFinite; // neither absent nor "NaN", as which JSON has it
export const count = (n) => n.toLocaleString("en");
export const compact = (n) => n.toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 });
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
export const reward = (n) => (known(n) ? n.toFixed(3) : "–");
export const digest = (revision) => revision.replace(/^sha256:/, "").slice(0, 12) || "–";
export function span(n) {
  if (!known(n)) return "–";
  const all = Math.round(n), minutes = Math.floor(all / 60), two = (of) => String(of % 60).padStart(2, "0");
  if (minutes >= 60) return `${Math.floor(minutes / 60)}h${two(minutes)}m`;
  return minutes ? `${minutes}m${two(all)}s` : `${all}s`;
}

export const kind = (word) => Object.keys(KINDS).find((each) => KINDS[each].includes(word)) ?? "";
export const pill = (word, text = word) => h("span", { class: `pill ${kind(word)}` }, text || "–");
export const small = (...text) => h("small", {}, text);
export const dim = (...text) => h("span", { class: "dim" }, text);
export const at = (about) => `#${new URLSearchParams(about)}`;
export const link = (name, about) => h("a", { class: "name", href: at(about) }, name);
export const waveLink = (name) => link(name, { wave: name });
export const baseLink = (name) => link(name, { adapter: "", base: name });
export const adapterLink = (name, base) => link(name, { adapter: name, base });
export const tint = (i) => `hsl(${(Math.round(i * 137.5) + 160) % 360} 60% 50%)`;
export const swatch = (about) => h("svg", { class: "swatch", viewBox: "0 0 10 10", "aria-hidden": true },
  h("rect", { width: 10, height: 10, rx: 3, ...about }));
export const yes = (is) => (is ? "yes" : h("b", { class: "bad" }, "no"));

export function bar(label, ...parts) {
  const all = Math.max(1, parts.reduce((sum, [, n]) => sum + n, 0));
  let x = 0;
  const rects = parts.map(([name, n]) => {
    const width = (100 * n) / all;
    x += width;
    return h("rect", { class: name, x: x - width, width, height: 8 });
  });
  const about = { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", role: "img", "aria-label": label };
  return h("svg", about, rects);
}
export const share = (n, all, what) =>
  bar(`${n} of ${all} ${what}`, ["fill", Math.min(n, all)], ["rest", Math.max(0, all - n)]);
export const part = (n, all, what, ...more) => [small(`${count(n)} of ${count(all)}`, more), share(n, all, what)];

// Columns are [title, class, function from a row to its content]; on a phone, titles stand beside the values.
export function table(rows, name, columns, key = (row) => row[name]) {
  const head = ([title, style]) => h("th", { class: style === "name" ? "" : style, scope: "col" }, title);
  const heads = columns.map(head);
  const cell = (row, [title, style, make]) => h("td", { class: style, "data-label": title }, make(row));
  const cells = (row) => columns.map((column) => cell(row, column));
  const body = rows.map((row) => h("tr", { "data-key": key(row), "data-i": row.i }, cells(row)));
  const made = h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, body));
  return rows.length > 0 && h("div", { class: "wide" }, made);
}
export const card = (...inner) => h("div", { class: "card" }, inner);
export const section = (title, beside, ...inner) =>
  h("section", { "aria-label": title }, h("div", { class: "head" }, h("h2", {}, title), beside), inner);
export const labelled = (name, value, ...inner) => h("div", {}, h("p", {}, dim(name), h("span", {}, value)), inner);
export const pair = (...inner) => h("div", { class: "pair" }, inner);
export const more = (...inner) => h("span", { class: "more" }, inner);
export const empty = (title, ...text) => h("div", { class: "card empty" }, h("b", {}, title), text);
export const code = (text) => h("code", {}, text);
export function facts(about) {
  const filled = Object.entries(about).filter(([, value]) => value);
  return h("dl", {}, filled.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}
