// The page's views: the overview, one wave, one adapter; each is rebuilt from the answers.
import {
  adapterLink, at, bar, baseLink, card, code, compact, count, digest, dim, empty, facts, h, known, labelled, more,
  pair, part, pill, plural, reward, section, share, small, span, swatch, table, tint, waveLink, yes,
} from "./elements.js";

export const POLICIES = 24; // of a wave, per page

const tile = (name, big, beside, below) =>
  h("div", { class: "tile" }, dim(name), h("b", {}, big, beside && small(` ${beside}`)), below);

export function overview({ bases, training, policies: taught, serving }, lists) {
  const all = bases.total, used = known(all.slots_used), slots = [all.slots_used, all.slots_total];
  const waves = (page, columns) => [page, plural(page.total, "wave"), (rows) => card(table(rows, "wave", columns))];
  const left = (page) => page.pending > 0 && dim(`${count(page.pending)} not admitted`);
  return [
    h("h1", { class: "hidden" }, "Overview"),
    h("div", { class: "tiles" },
      tile("Engines ready", count(all.ready), `of ${count(all.engines)}`, share(all.ready, all.engines, "ready")),
      used ? tile("Device slots used", count(slots[0]), `of ${count(slots[1])}`, share(...slots, "slots used"))
        : tile("Device slots", count(slots[1])),
      tile("Requests", count(all.running), "running", dim(`${count(all.waiting)} waiting`)),
      tile("Adapters placed", count(all.placed), "", dim(`on ${plural(all.bases, "base")}`)),
      tile("Training waves", count(training.total), "", left(training)),
      tile("Serving waves", count(serving.total), "", left(serving))),
    listed("Base models", "bases", lists, [bases, plural(all.bases, "base"), (rows) => rows.map(base)],
      "No base model is served yet", "Apply a BaseModel: ", code("kubectl apply -f basemodel.yaml"),
      ". It appears here once the operator has picked it up."),
    listed("Training", "training", lists, waves(training, TRAINS),
      "No training waves", "An AdapterWave with ", code("train"), " trains policies on a base that is served."),
    (taught.total > 0 || lists.policies.prefix) && listed("Training by Trainer calls", "policies", lists,
      [taught, policies(taught.total), (rows) => card(table(rows, "policy", TAUGHT, (p) => `${p.policy} ${p.engine}`))]),
    listed("Serving", "serving", lists, waves(serving, SERVES),
      "No serving waves", "An AdapterWave names the adapters to hold; others load on demand."),
  ].filter(Boolean);
}

function listed(title, list, lists, [page, summary, shown], ...none) {
  const { after, prefix } = lists[list], rows = page.bases ?? page.waves ?? page.policies, back = after.length > 1;
  const turn = (way, text) =>
    h("button", { type: "button", "data-turn": way, "data-list": list, "data-key": `${list} ${way}` }, text);
  const about = { "aria-label": `${title}: names that begin with`, placeholder: "Prefix…", "data-list": list };
  const filter = h("input", { type: "search", "data-key": `${list} names`, ...about });
  const beside = more(
    (page.next || back || prefix) && filter, back && turn("back", "‹ Back"), page.next && turn("on", "More ›"));
  const nothing = prefix ? empty("No matching names") : empty(...none);
  return section(title, [dim(summary), beside], rows.length ? shown(rows) : nothing);
}

const TIERS = ["Device", "Host", "Disk", "Failed"];
const held = (of, tier) => of.held[tier.toLowerCase()];

function base(b) {
  const words = TIERS.map((tier) => `${tier} ${count(held(b, tier))}`), slots = [b.slots_used, b.slots_total];
  const states = Object.entries(b.states).sort().map(([word, n]) => pill(word, `${count(n)} ${word}`));
  const does = `${plural(b.placed, "adapter")} placed, ${count(b.running)} running, ${count(b.waiting)} waiting`;
  const legend = TIERS.map((tier, i) => h("span", {}, swatch({ class: tier.toLowerCase() }), words[i]));
  const used = known(b.slots_used) ? `${count(slots[0])} of ${count(slots[1])} used` : plural(slots[1], "slot");
  const copies = plural(b.held.device + b.held.host + b.held.disk, "copy", "copies");
  return h("article", { class: "card", "data-key": b.base_model },
    h("div", { class: "row" }, h("h3", {}, baseLink(b.base_model)),
      states.length ? states : pill("", "no engine has reported"), dim(does)),
    b.map_version === null && h("p", { class: "warn" },
      "The placement map is not complete for this base: its last known state is shown."),
    pair(labelled("Device slots", used, known(b.slots_used) && share(...slots, "slots used")),
      labelled("Where adapters are", copies,
        bar(words.join(", "), ...TIERS.map((tier) => [tier.toLowerCase(), held(b, tier)])),
        h("p", { class: "key" }, legend))),
    table(b.engines, "name", ENGINES),
    b.more_engines > 0 && h("p", { class: "dim" }, `and ${plural(b.more_engines, "more engine")}`));
}

const noted = (text, bad) => text && h("span", { class: bad ? "bad" : "dim" }, text);
const ENGINES = [
  ["Engine", "name", (e) => e.name],
  ["State", "", (e) => pill(e.state)],
  ["Slots", "", (e) => (known(e.slots_used) ? part(e.slots_used, e.slots_total, "slots used") : e.slots_total)],
  ["Running", "num", (e) => count(e.running)],
  ["Waiting", "num", (e) => count(e.waiting)],
  ...TIERS.map((tier) => [tier, "num", (e) => count(held(e, tier))]),
  ["", "said", (e) => noted(e.said, e.state === "Failed")],
];
const policies = (n) => plural(n, "policy", "policies");
const named = (w, what) => [waveLink(w.wave), h("br", {}), small(`${what}on ${w.base_model}`)];
const TRAINS = [
  ["Wave", "", (w) => named(w, `${policies(w.policies)} `)],
  ["Phase", "", (w) => pill(w.phase)],
  ["Step", "", (w) => part(w.step, w.steps, "steps")],
  ["Reward", "num", (w) => reward(w.reward)],
  ["Best", "num", (w) => reward(w.best)],
  ["Tokens", "num", (w) => compact(w.tokens)],
  ["Left", "num", (w) => span(w.eta_s)],
  ["", "said", (w) => noted(w.message, w.phase === "Failed")],
];
const TAUGHT = [
  ["Policy", "", (p) => [adapterLink(p.policy, p.base_model), h("br", {}), small(`on ${p.base_model}`)]],
  ["Engine", "name", (p) => p.engine],
  ["Steps", "num", (p) => count(p.step)],
  ["Calls", "num", (p) => count(p.calls)],
];
const SERVES = [
  ["Wave", "", (w) => named(w, "")],
  ["Phase", "", (w) => [pill(w.phase), w.position > 0 && small(` #${w.position} in the queue`)]],
  ["Copies ready", "", (w) => part(w.ready, w.wanted, "copies ready", w.failed > 0 && `, ${count(w.failed)} failed`)],
  ["Asks for", "", (w) => `${plural(w.adapters, "adapter")} × ${w.replicas} on ${w.residency}`],
  ["By", "", (w) => w.chosen_by],
  ["Priority", "num", (w) => w.priority],
  ["", "said", (w) => noted(w.message, w.phase === "Failed")],
];

export function wave({ explanation: why, progress: p }, name, start) {
  const serves = why && why.chosen_by !== "train", copies = serves && why.admitted && [why.ready, why.wanted];
  const of = p ?? why, message = serves || !why?.admitted ? why?.decided_by : p?.message;
  const head = [h("h1", { class: "name" }, name), pill(of.phase), dim("on ", baseLink(of.base_model))];
  return [h("section", {}, card(
    h("div", { class: "row" }, head),
    message && h("p", { class: "answer" }, message),
    copies && pair(labelled("Copies ready", `${count(copies[0])} of ${count(copies[1])}`, share(...copies, "ready"))),
    p && learns(p))),
  p?.policies.length > 0 && rewards(p, start), why && stands(why)].filter(Boolean);
}

const learns = (p) => [
  pair(labelled("Step of the slowest policy", ...part(p.step, p.steps, "steps")),
    labelled("Time left", span(p.eta_s), h("p", {}, dim(`${count(p.tokens)} tokens learnt from`)))),
  facts({
    Policies: count(p.policy_count), Evaluation: known(p.evaluation) && reward(p.evaluation),
    Reward: `last step ${reward(p.reward_mean)}, last ten ${reward(p.reward_recent)}, best ${reward(p.reward_best)}`,
  })];

function rewards(p, start) {
  const rows = p.policies.map((each, i) => ({ ...each, base: p.base_model, i: start + i, curve: curve(each) }));
  const end = start + rows.length, before = Math.max(0, start - POLICIES);
  const go = (from, text) => h("a", { href: at({ wave: p.wave, start: from }) }, text);
  const turns = more(start > 0 && go(before, "‹ Back"), end < p.policy_count && go(end, "More ›"));
  const beside = [dim(`${count(start + 1)} to ${count(end)} of ${policies(p.policy_count)}`), turns];
  const drawn = rows.filter((each) => each.curve.length);
  return section("Rewards", beside, card(
    drawn.length ? chart(drawn) : h("p", { class: "dim" }, "No step has finished yet: curves start with the first."),
    table(rows, "policy", POLICY)));
}
const POLICY = [
  ["Policy", "name", (p) => [swatch({ fill: tint(p.i) }), p.revision ? adapterLink(p.policy, p.base) : p.policy]],
  ["Stage", "", (p) => pill(p.stage)],
  ["Step", "", (p) => part(p.step, p.steps, "steps")],
  ["Last", "num", (p) => reward(p.reward_mean)],
  ["Last ten", "num", (p) => reward(p.reward_recent)],
  ["Best", "num", (p) => reward(p.reward_best)],
  ["Eval", "num", (p) => reward(p.evaluation)],
  ["Tokens", "num", (p) => compact(p.tokens)],
  ["Left", "num", (p) => span(p.eta_s)],
  ["Engine", "said", (p) => noted(p.failure_message || p.engine || "–", p.failure_message)],
];

// Points as [step, reward]: each stands for `every` steps, the last point for those up to the policy's last step.
function curve({ rewards: values, step, every }) {
  const last = Math.max(step, values.length), n = values.length - 1;
  return values.map((y, i) => [last - (n - i) * every, y]).filter(([, y]) => known(y));
}
const smooth = (points, window = 5) => points.map(([x], end) => {
  const some = points.slice(Math.max(0, end - window + 1), end + 1);
  return [x, some.reduce((sum, [, y]) => sum + y, 0) / some.length];
});

function chart(drawn) {
  const room = document.getElementById("shown").clientWidth - 40;
  const wide = Math.min(1160, Math.max(280, room)), high = wide < 600 ? 200 : 280;
  const points = drawn.flatMap((p) => p.curve), [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  const [low, top, from] = [Math.min(0, ...ys), Math.max(1, ...ys), Math.min(...xs)], to = Math.max(from + 1, ...xs);
  const X = (x) => 40 + ((x - from) / (to - from)) * (wide - 52);
  const Y = (y) => high - 26 - ((y - low) / (top - low)) * (high - 36);
  const path = (line) => `M${line.map(([x, y]) => `${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("L")}`;
  const rough = (to - from) / (wide < 600 ? 4 : 10), ten = 10 ** Math.floor(Math.log10(rough));
  const gap = Math.max(1, [1, 2, 5, 10].find((each) => each * ten >= rough) * ten), steps = [];
  for (let x = Math.ceil(from / gap) * gap; x <= to; x += gap) steps.push(x);
  const heights = [0, 1, 2, 3, 4].map((i) => low + (i / 4) * (top - low));
  const label = `Mean reward of steps ${from} to ${to}, of ${policies(drawn.length)}`;
  return h("svg", { class: "chart", viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": label },
    heights.map((y) => [h("line", { class: "grid", x1: 40, x2: wide - 12, y1: Y(y), y2: Y(y) }),
      h("text", { x: 34, y: Y(y) + 4, "text-anchor": "end" }, y.toFixed(2))]),
    steps.map((x) => h("text", { x: X(x), y: high - 8, "text-anchor": "middle" }, x)),
    drawn.map((p) => {
      const mean = smooth(p.curve), [x, y] = mean.at(-1);
      return h("g", { stroke: tint(p.i), "data-i": p.i }, h("path", { class: "each", d: path(p.curve) }),
        h("path", { class: "mean", d: path(mean) }), h("circle", { cx: X(x), cy: Y(y), r: 3, fill: tint(p.i) }));
    }));
}

function stands(w) {
  const c = w.capacity, engines = w.allowed_engines.join(", ") || "any engine", serves = w.chosen_by !== "train";
  const asks = serves ? `${plural(w.adapters, "adapter")} by ${w.chosen_by} × ${w.replicas} on ${w.residency}`
    : policies(w.adapters);
  const holds = `${count(c.slots_held)} of ${count(c.slots_max)} slots held by ${plural(c.waves_admitted, "wave")}`;
  const has = `${c.engines} of ${c.engines_max} engines × ${plural(c.slots_per_engine, "slot")}`;
  return section("Why it is in this state", null, card(
    facts({
      "Asks for": `${asks} = ${plural(w.slots, "device slot")}, priority ${w.priority}, ${engines}`,
      Copies: serves && w.admitted && `${count(w.wanted)} wanted, ${count(w.placed)} placed, ${count(w.ready)} ready`,
      Queue: w.position > 0 && `position ${w.position} of ${w.queue}`,
      Capacity: `${holds}; ${has}`,
      "Map version": w.map_version,
    }),
    w.missing.length > 0 && h("h3", {}, `Not ready: ${count(w.missing.length)} of ${count(w.missing_count)}`),
    table(w.missing, "adapter", [
      ["Adapter", "", (m) => adapterLink(m.adapter, w.base_model)], ["Engine", "name", (m) => m.engine],
      ["Why", "said", (m) => m.why],
    ], (m) => `${m.adapter} ${m.engine}`),
    table(w.engines, "engine", [
      ["Engine", "name", (e) => e.engine], ["Answers", "", (e) => yes(e.available)],
      ...["Wanted", "Ready", "Failed"].map((title) => [title, "num", (e) => count(e[title.toLowerCase()])]),
    ]),
    w.namespaces.length > 1 && table(w.namespaces, "namespace", [
      ["Namespace", "name", (n) => n.namespace], ["Weight", "num", (n) => n.weight],
      ["Quota", "num", (n) => n.quota || "–"],
      ["Slots held", "num", (n) => count(n.slots_held)], ["Admitted", "num", (n) => count(n.waves_admitted)],
      ["Waiting", "num", (n) => count(n.waves_waiting)],
    ])));
}

export function adapter(e) {
  const chosen = h("b", { class: "name" }, e.chosen_engine);
  const goes = e.chosen_engine ? ["A request sent now goes to ", chosen, ": "] : "No engine can answer now: ";
  const head = h("h1", {}, e.adapter ? h("span", { class: "name" }, e.adapter) : "The bare base");
  const waves = e.waves.length > 0 && e.waves.map((name) => [waveLink(name), " "]);
  return h("section", {}, card(
    h("div", { class: "row" }, head, dim("on ", baseLink(e.base_model))),
    h("p", { class: "answer" }, goes, e.chosen_because),
    facts({
      "Wanted by": e.adapter && (waves || "no wave: its home engine is computed"),
      "Fetched from": e.source_uri && h("span", { class: "name" }, e.source_uri), "Map version": e.map_version,
    }),
    table(e.holders, "engine", [
      ["Engine", "name", (o) => [o.engine, o.engine === e.chosen_engine && [" ", pill("Ready", "answers next")]]],
      ["Answers", "", (o) => yes(o.available)],
      ["Wanted here", "", (o) => [o.wanted || "–", o.wanted_because && small(` ${o.wanted_because}`)]],
      ["Held here", "", (o) => o.residency || "–"],
      ["Revision", "name", (o) => digest(o.revision)],
      ["", "said", (o) => noted(o.failure, true)],
    ])));
}

// The name is unknown or ambiguous: the user can name the base.
export const unclear = (about, message) => h("section", {}, card(
  h("h1", { class: "name" }, about.get("wave") || about.get("adapter") || about.get("base")),
  h("p", { class: "answer bad" }, message),
  about.get("adapter") && h("form", { id: "over", class: "row" }, h("label", { for: "base" }, "On the base model"),
    h("input", { id: "base", placeholder: "namespace/name", required: "" }), h("button", {}, "Why here?"))));
