// Models: the releases of this home, and what the gate says of each.
import { get } from "./api.js";
import { colorOf } from "./charts.js";
import { bar, fill, h, loading, panel, state, table } from "./dom.js";
import { day, number, percent } from "./format.js";

const METRICS = [["ndcg@10", "NDCG@10"], ["hr@10", "Hit rate@10"], ["recall@50", "Recall@50"], ["mrr", "MRR"], ["catalogue@10", "Coverage@10"]];

export function models(body) {
  const leaving = new AbortController();
  fill(body, loading("the releases"));
  get("/v1/releases", leaving.signal).then(
    ({ serving, releases }) => fill(body, releases.length ? releases.map((release) => releasePanel(release, serving)) : state("empty", "No release yet",
      "Slates come from co-visitation, content and popularity, in the order of the light score. riffle train makes a release from the archived stream, and the gate judges it.")),
    (error) => error.name !== "AbortError" && fill(body, state("error", "The releases cannot be read", error.message)),
  );
  return { close: () => leaving.abort() };
}

function verdict(gate, parent) {
  if (gate.passed === undefined) return h("p", { class: "verdict" }, h("span", { class: "pill" }, "not judged"), " The gate never judged this release, so it cannot be promoted without force.");
  const against = parent === "none" ? "serving without a release" : `release ${parent}`;
  if (!gate.passed) return h("div", { class: "verdict" }, h("p", {}, h("span", { class: "pill bad" }, "refused"), ` compared with ${against}, because:`), h("ul", {}, (gate.reasons ?? []).map((reason) => h("li", {}, reason))));
  return h("p", { class: "verdict" }, h("span", { class: "pill good" }, "accepted"), ` It is better than ${against} beyond noise, on events that training did not read${measured(gate)}.`);
}

function measured(gate) {
  if (!Array.isArray(gate.interval)) return "";
  return `: NDCG@10 by ${gate.interval.map(number).join(" to ")} (95 % interval, ${number(gate.queries)} queries of ${number(gate.people)} users)`;
}

const ENDS = { ranked: "ranked", light_cut: "below the cut of the light score", not_retrieved: "not retrieved" };

/** Bars of shares, those of `names` first. */
const shareBars = (shares, name = (key) => key, color = () => null) =>
  h("ul", { class: "bars" }, Object.entries(shares).sort((one, other) => other[1] - one[1]).map(([key, share]) => bar(name(key), share, percent(share), color(key))));

function releasePanel(release, serving) {
  const light = Object.entries(release.light).sort((one, other) => other[1] - one[1]);
  const most = Math.max(...light.map(([, weight]) => Math.abs(weight)), 1e-9);
  const rows = METRICS.filter(([key]) => typeof release.after[key] === "number");
  const change = (key) => {
    const [before, after] = [release.before[key], release.after[key]];
    if (typeof before !== "number" || !before) return "–";
    const by = after / before - 1;
    return h("span", { class: by > 0 ? "up" : by < 0 ? "down" : "" }, `${by > 0 ? "+" : "−"}${number(Math.abs(by) * 100)} %`);
  };
  return panel(release.release, `trained until ${day(release.trained_until)} on ${number(release.trained_events)} events · after ${release.parent === "none" ? "no release" : release.parent}`,
    h("p", {}, release.release === serving ? h("span", { class: "pill good" }, "serving") : h("span", { class: "pill" }, "not serving"), " liked means ", h("code", {}, release.positive)),
    verdict(release.gate, release.parent),
    h("div", { class: "columns" },
      h("div", {}, h("h3", {}, "On held-out events"), rows.length ? table("Metrics", [["Metric", ([, name]) => name], ["Before", ([key]) => number(release.before[key] ?? null), "n"], ["With this release", ([key]) => number(release.after[key]), "n"], ["Change", ([key]) => change(key), "n"]], rows) : h("p", { class: "quiet-text" }, "Not measured.")),
      h("div", {}, h("h3", {}, "Weights of the light score"), h("ul", { class: "bars" }, light.map(([name, weight]) => bar(name, Math.abs(weight) / most, number(weight), colorOf(name)))),
        h("p", { class: "note below" }, `The ranker predicts ${release.heads.join(", ")}.`)),
      release.after.stages ? h("div", {}, h("h3", {}, "Where liked items of held-out events end"), shareBars(release.after.stages, (key) => ENDS[key] ?? key)) : null,
      release.after.sources ? h("div", {}, h("h3", {}, "Share of them that each source retrieves"), shareBars(release.after.sources, (key) => key, colorOf)) : null));
}
