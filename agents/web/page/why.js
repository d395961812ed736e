// Why: one request as a picture.
import { get, id, itemsOf } from "./api.js";
import { picture, sourceTag } from "./charts.js";
import { fill, h, loading, panel, state, table } from "./dom.js";
import { clock, ms, number } from "./format.js";
import { flow } from "./flow.js";
import { userPicker } from "./user.js";

const STAGES = ["hydrate", "retrieve", "merge", "filter", "light", "rank", "select"];
const RECENT_MS = 5000;
// candidates listed below the slate
const MISSED = 10;

export function why(body, [userId, many]) {
  const k = Math.min(Math.max(Number.parseInt(many, 10) || 10, 1), 100);
  const detail = h("div", { class: "detail" });
  const recent = h("div");
  const pick = (one) => (location.hash = `#/why/${id(one)}`);
  fill(body, h("div", { class: "split" },
    h("div", { class: "side" }, panel("Explain a request of", null, userPicker(pick, "User to explain")), panel("Newest requests", "answered by this worker in the last 10 minutes", recent)),
    detail));
  const leaving = new AbortController();
  const timer = setInterval(list, RECENT_MS);
  async function list() {
    if (document.hidden) return;
    try {
      const { requests } = await get("/v1/recent?limit=40", leaving.signal);
      fill(recent, requests.length ? h("ul", { class: "hits" }, requests.map(recentOf)) : h("p", { class: "quiet-text" }, "No request yet."));
    } catch (error) {
      if (error.name !== "AbortError") fill(recent, h("p", { class: "quiet-text" }, error.message));
    }
  }
  async function explain() {
    fill(detail, loading("the trace"));
    try {
      const found = await get(`/v1/explain/${id(userId)}?k=${k}`, leaving.signal);
      const known = await itemsOf(found.trace.candidates.map((one) => one.item_id), leaving.signal);
      fill(detail, pictureOf(userId, found, known));
    } catch (error) {
      if (error.name !== "AbortError") fill(detail, state("error", "This request cannot be explained", error.message));
    }
  }
  list();
  if (userId) explain();
  else fill(detail, state("empty", "Pick a user or a request", "The request is answered once more, now, and each stage is observed. Nothing is logged as shown."));
  return {
    close() {
      clearInterval(timer);
      leaving.abort();
    },
  };
}

const recentOf = (request) =>
  h("li", {}, h("a", { href: `#/why/${id(request.user_id)}/${request.k}`, title: `request ${request.request_id} over ${request.interface}, k ${request.k}` },
    h("b", {}, request.user_id), h("small", {}, clock(request.at)),
    h("span", { class: `ms ${request.outcome === "slate" ? "" : "warn"}` }, request.outcome === "slate" ? ms(request.ms) : request.outcome)));

function pictureOf(userId, { slate, trace }, known) {
  const total = STAGES.reduce((sum, stage) => sum + (slate.timings_ms[stage] ?? 0), 0);
  const sources = trace.sources.filter((source) => source.brought > 0);
  return [
    panel(`A request of ${userId}, k ${slate.items.length}`, `${slate.release === "none" ? "no release" : `release ${slate.release}`} · ${ms(total)}${slate.degraded.length ? ` · degraded: ${slate.degraded.join(", ")}` : ""}`,
      sources.length ? h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Candidates through the stages" }, flow(trace, slate.timings_ms)) : state("empty", "No candidates", "No source brought anything for this user."),
      timeline(slate.timings_ms, total)),
    panel("Sources", "how many candidates of each source reach which stage; a candidate may come from several", sourceTable(sources)),
    panel("Candidates", trace.heads.length ? "in the ranker's order; the selector then varies categories" : "in the order of the light score; the selector then varies categories", candidateTable(trace, known)),
  ];
}

function timeline(timings, total) {
  const stages = STAGES.filter((stage) => timings[stage] !== undefined);
  return h("div", { class: "stage-times" }, h("div", { class: "stack", "aria-hidden": "true" }, stages.map((stage, n) =>
    h("span", { style: { "flex-grow": String(Math.max(timings[stage], total / 200)), "--step": String(n) } }))),
  h("ul", { class: "keys" }, stages.map((stage, n) => h("li", {}, h("i", { class: "key step", style: { "--step": String(n) } }), stage, h("b", {}, ms(timings[stage]))))));
}

const sourceTable = (sources) =>
  table("Sources", [
    ["Source", (row) => sourceTag(row.name)],
    ["Brought", (row) => number(row.brought), "n"],
    ["Dropped by filters", (row) => number(row.dropped), "n"],
    ["Passed", (row) => number(row.passed), "n"],
    ["By no other", (row) => number(row.alone), "n"],
    ["Ranked", (row) => number(row.ranked), "n"],
    ["In the slate", (row) => number(row.shown), "n"],
  ], sources);

function candidateTable(trace, known) {
  const best = Math.max(...trace.candidates.map((one) => one.score ?? 0), 1e-9);
  const heads = trace.heads.map((name, n) => [name, (row) => number(row.heads[n]), "n"]);
  const move = (row) => {
    if (row.position === null) return h("span", { class: "quiet-text" }, "–");
    const by = row.light_rank - row.position;
    return h("span", { class: by > 0 ? "up" : by < 0 ? "down" : "" }, `${row.position + 1}`, by ? ` (${by > 0 ? "↑" : "↓"} ${Math.abs(by)})` : "");
  };
  return table("Candidates", [
    ["Item", (row) => h("a", { class: "item-cell", href: `#/items/${id(row.item_id)}` }, picture(known.get(row.item_id), row.item_id), known.get(row.item_id)?.title || row.item_id)],
    ["Place", move, "n"],
    ["By light", (row) => number(row.light_rank + 1), "n"],
    [trace.heads.length ? "By ranker" : "Ranked", (row) => number(row.rank + 1), "n"],
    ["Score", (row) => h("span", { class: "score" }, h("span", { class: "meter" }, h("span", { style: { width: `${(Math.max(row.score, 0) / best) * 100}%` } })), number(row.score)), "n"],
    ["Light", (row) => number(row.light), "n"],
    ...heads,
    ["Scores by source", (row) => h("span", { class: "tags" }, Object.entries(row.sources).map(([name, score]) => sourceTag(name, number(score))))],
  ], trace.candidates.filter((one) => one.rank < trace.shown + MISSED || one.position !== null));
}

