// The page's behaviour: requests JSON under v1/mint every few seconds, one request at a time, and shows it.
import { h, at, morph, span } from "./elements.js";
import { POLICIES, adapter, overview, unclear, wave } from "./views.js";

const EVERY_S = 3, MOST_S = 60, LIMIT_MS = 15_000, SUGGEST_MS = 250;
const lists = Object.fromEntries(["bases", "training", "policies", "serving"].map((list) => [list, { after: [""], prefix: "" }]));
const $ = (id) => document.getElementById(id);

let answers = {}; // the answers shown, by question
let wrong = null; // the error of the last request, if it failed
let failures = 0, waitS = 0, updated = 0, timer = 0, pause = 0;
let busy = false, typed = null, lit = "";

// The key is kept for the tab, or only while the page is open if the browser denies storage (and throws).
const stored = (act) => { try { return act(sessionStorage); } catch { return null; } };
let key = stored((tab) => tab.getItem("mint-key")) ?? "";

function keep(given) {
  key = given;
  stored((tab) => (given ? tab.setItem("mint-key", given) : tab.removeItem("mint-key")));
}

class Refused extends Error {
  constructor(status, message, afterS = 0) {
    super(message);
    Object.assign(this, { status, afterS });
  }
}

async function ask(call, query) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const filled = new URLSearchParams(Object.entries(query).filter(([, value]) => value));
  const options = { headers, cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(LIMIT_MS) };
  const answer = await fetch(`v1/mint/${call}?${filled}`, options).catch((error) => {
    const late = error.name === "TimeoutError";
    throw new Refused(0, `The gateway ${late ? "has not answered in time" : "is not responding"}`);
  });
  const body = await answer.json().catch(() => null);
  if (answer.ok && body) return body;
  const message = body?.error?.message ?? `The gateway answered ${answer.status} without a readable body`;
  throw new Refused(answer.status, message, Number(answer.headers.get("Retry-After")) || 0);
}

const asked = () => new URLSearchParams(location.hash.slice(1));
const there = () => location.hash + JSON.stringify(lists); // what the user is looking at

function questions(about) {
  const page = (list) => ({ after: lists[list].after.at(-1), prefix: lists[list].prefix });
  const [of, name, base, start] = ["wave", "adapter", "base", "start"].map((each) => about.get(each));
  if (of !== null) return { wave: ["wave", { name: of, start, limit: POLICIES }] };
  if (name !== null) return { adapter: ["adapter", { name, base_model: base }] };
  const [training, serving] = ["training", "serving"].map((list) => [`waves/${list}`, page(list)]);
  return { bases: ["bases", page("bases")], training, policies: ["policies", page("policies")], serving };
}

async function look() {
  clearTimeout(timer);
  if (busy || document.hidden || !$("ask").hidden) return;
  busy = true;
  const began = Date.now(), before = there(), prefix = typed, found = {};
  typed = null;
  try {
    if (prefix) suggest((await ask("adapters", { prefix })).names);
    for (const [name, question] of Object.entries(questions(asked()))) found[name] = await ask(...question);
    if (before === there()) [answers, wrong, failures, updated] = [found, null, 0, Date.now()];
  } catch (error) {
    const defect = !(error instanceof Refused); // in this page or the browser: shown and retried, like the others
    if (defect) console.error(error);
    if (before === there()) refused(defect ? new Refused(0, `This page has failed (${error.message})`) : error);
  } finally {
    busy = false;
  }
  if (before !== there() || typed) return look();
  const jitter = 0.75 + Math.random() / 2, tookS = (Date.now() - began) / 1000;
  if (failures) waitS = Math.max(wrong.afterS, Math.min(MOST_S, EVERY_S * 2 ** failures)) * jitter;
  else waitS = Math.max(EVERY_S, 5 * tookS);
  timer = setTimeout(look, waitS * 1000);
  show();
}

const suggest = (names) => $("names").replaceChildren(...names.map((value) => h("option", { value })));

function refused(error) {
  const had = key;
  wrong = error;
  if ([400, 401, 404].includes(error.status)) [answers, failures, updated] = [{}, 0, Date.now()]; // a final answer
  else failures += 1;
  if (error.status !== 401) return;
  keep("");
  [$("ask").hidden, $("refused").textContent] = [false, had ? `Refused: ${error.message}` : ""];
  $("plain").hidden = isSecureContext; // TLS, or this machine itself
  $("key").focus();
}

function show() {
  const about = asked(), shown = h("div", { id: "shown" }), notes = h("div", { id: "notices", role: "alert" });
  if (answers.wave) shown.append(...wave(answers.wave, about.get("wave"), Number(about.get("start"))));
  else if (answers.adapter) shown.append(adapter(answers.adapter));
  else if (answers.bases) shown.append(...overview(answers, lists));
  else if (wrong && !failures && $("ask").hidden) shown.append(unclear(about, wrong.message));
  const torn = [...new Set([...(answers.training?.incomplete ?? []), ...(answers.serving?.incomplete ?? [])])].join(", ");
  const note = (text, style = "") => text && notes.append(h("p", { class: `notice ${style}` }, text));
  const stale = "The last known state is shown.";
  note(failures && `${wrong.message}. ${answers.bases || answers.wave || answers.adapter ? stale : ""}`, "bad");
  const away = "Redis is not responding: requests are routed by the last known map, and nobody knows which engines are alive.";
  note(answers.bases?.map_away && away);
  const silent = answers.policies?.silent.join(", ");
  note(silent && `No answer from ${silent}: policies that programs train there may be missing.`);
  note(torn && `The placement map is not complete for ${torn}: some waves may be missing until it is.`);
  morph($("shown"), shown);
  morph($("notices"), notes);
  const named = about.get("wave") || about.get("adapter") || about.get("base");
  document.title = named ? `${named} · MinT` : "MinT";
  $("forget").hidden = !key;
  highlight(lit);
  tick();
}

// Screen readers announce changes of the first text only: the second changes every second.
function tick() {
  const ago = (Date.now() - updated) / 1000, since = updated ? `, as of ${span(ago)} ago` : "";
  let [style, state, more] = updated ? ["on", "Live", ago > 3 * EVERY_S ? since : ""] : ["", "Connecting…", ""];
  if (failures) [style, state, more] = ["off", "Retrying", ` in ${span(waitS)}${since}`];
  if (!$("ask").hidden) [style, state, more] = ["", "Waiting for a key", ""];
  const texts = h("span", {}, h("span", { role: "status" }, state), h("span", {}, more));
  $("live").className = style;
  morph($("live").lastElementChild, texts);
}

function highlight(i) {
  lit = i;
  const drawn = document.querySelector(".chart");
  drawn?.classList.toggle("one", i !== "");
  drawn?.querySelectorAll("g").forEach((g) => g.classList.toggle("on", g.dataset.i === i));
}

const pointed = ({ target }) => highlight(target.closest?.("[data-i]")?.dataset.i ?? "");
addEventListener("hashchange", () => {
  [answers, wrong, failures, updated, lit] = [{}, null, 0, 0, ""];
  scrollTo(0, 0);
  look();
});
addEventListener("resize", () => answers.wave && show());
document.addEventListener("visibilitychange", look);
document.addEventListener("mouseover", pointed);
document.addEventListener("focusin", pointed);
document.addEventListener("click", (event) => {
  const { turn, list } = event.target.closest("[data-turn]")?.dataset ?? {}, after = lists[list]?.after;
  // A button stays until the next page is here, and a second click must not turn from the page that is still shown.
  if (event.target.closest(".skip")) [event.preventDefault(), $("main").focus()];
  else if (turn === "back" && after.length > 1) [after.pop(), look()];
  else if (turn === "on" && after.at(-1) !== answers[list].next) [after.push(answers[list].next), look()];
});
document.addEventListener("input", ({ target }) => {
  const text = target.value.trim(), { list } = target.dataset;
  if (target.id === "name") typed = text;
  else if (list) lists[list] = { prefix: text, after: [""] };
  else return;
  clearTimeout(pause);
  pause = setTimeout(look, SUGGEST_MS);
});
document.addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target.id, given = $("key").value.trim();
  if (form === "find") location.hash = at({ adapter: $("name").value.trim() });
  else if (form === "over") location.hash = at({ adapter: asked().get("adapter"), base: $("base").value.trim() });
  else if (!/^[\x21-\x7e]+$/.test(given)) $("refused").textContent = "A key must be printable ASCII without spaces.";
  else {
    keep(given);
    [$("key").value, $("ask").hidden, wrong] = ["", true, null];
    look();
  }
});
$("forget").addEventListener("click", () => {
  keep("");
  look();
});
setInterval(tick, 1000);
look();
