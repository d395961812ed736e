// Models: the releases of this home, and what the gate says of each.
import { change, get, id, mayWrite } from "./api.js";
import { calibration } from "./calibration.js";
import { colorOf, trend } from "./charts.js";
import { action, bar, confirmed, fill, h, loading, panel, state, table, tell } from "./dom.js";
import { day, number, percent } from "./format.js";
import { trainingsPanel } from "./trainings.js";

const METRICS = [["ndcg@10", "NDCG@10"], ["hr@10", "Hit rate@10"], ["recall@50", "Recall@50"], ["mrr", "MRR"], ["catalogue@10", "Coverage@10"]];

export function models(body) {
  const leaving = new AbortController();
  let serving = null;
  let champion;
  const releases = h("div", { class: "detail" }, loading("the releases"));
  async function read() {
    try {
      const found = await get("/v1/releases", leaving.signal);
      ({ serving, champion } = found);
      fill(releases, found.releases.length ? [servingPanel(found), trends(found.releases), found.releases.map((release) => releasePanel(release, found))] : state("empty", "No release yet",
        "Slates come from co-visitation, content and popularity, in the order of the light score. riffle train makes a release from the archived stream, and the gate judges it."));
    } catch (error) {
      if (error.name !== "AbortError") fill(releases, state("error", "The releases cannot be read", error.message));
    }
  }
  fill(body, trainingsPanel(leaving.signal, () => read()), releases);
  read();
  return {
    token: read,
    update({ now }) {
      if (now && serving !== null && (now.worker.release !== serving || now.worker.champion !== champion)) read(); // another release serves since, or will
    },
    close: () => leaving.abort(),
  };
}

function servingPanel({ serving, champion: expected, releases }) {
  const current = releases.find((release) => release.release === serving);
  const back = action("Roll back", mayWrite(), async () => {
    const sure = await confirmed("Roll back?", [`Every worker goes back from ${expected === "none" ? "no release" : expected} to what served before, within seconds and while it serves.`, "Once more goes forward again."], "Roll back");
    if (!sure) return;
    const { champion } = await change("POST", "/v1/releases/rollback", { expected });
    tell(champion === "none" ? "No release serves from now on." : `${champion} serves as soon as each worker has verified it.`);
  });
  return panel("Serving", serving === "none" ? "no release: the light score orders" : `${serving}${current ? `, trained until ${day(current.trained_until)}` : ""}`,
    h("p", {}, current ? sentence(current.gate, current.parent) : serving === "none" ? "Promote a release that the gate accepted." : "This release is not in this worker's folder any more."), h("div", { class: "row" }, back));
}

/** One line for each metric over the releases, oldest first. */
function trends(releases) {
  if (releases.length < 2) return null;
  const oldest = releases.slice().reverse();
  const known = METRICS.filter(([key]) => oldest.some((release) => typeof release.after[key] === "number")).slice(0, 4);
  return panel("Over time", `${releases.length} releases, each on the events that were newest when it was made`, h("div", { class: "columns four" },
    known.map(([key, name]) => trend(name, oldest.map((release) => [release.release, day(release.trained_until), release.after[key] ?? null]), number))));
}

/** The verdict as one sentence. */
function sentence(gate, parent) {
  if (gate.passed === undefined) return "The gate never judged it.";
  const against = parent === "none" ? "serving without a release" : `release ${parent}`;
  return gate.passed ? `The gate accepted it: it is better than ${against} beyond noise, on events that training did not read${measured(gate)}.` : `The gate refused it, compared with ${against}: ${(gate.reasons ?? []).join("; ")}.`;
}

function promotion(release, serving, expected) {
  if (release.release === serving || !release.gate.passed) return null;
  return h("div", { class: "row" }, action("Promote", mayWrite(), async () => {
    const sure = await confirmed(`Promote ${release.release}?`, [sentence(release.gate, release.parent), "Every worker verifies it again, warms it up and swaps it in. It can be rolled back."], "Promote", { kind: "primary" });
    if (!sure) return;
    const { champion } = await change("POST", `/v1/releases/${id(release.release)}/promote`, { expected });
    tell(`${champion} serves as soon as each worker has verified it.`);
  }, "primary"));
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

function releasePanel(release, { serving, champion }) {
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
    promotion(release, serving, champion),
    h("div", { class: "columns" },
      h("div", {}, h("h3", {}, "On held-out events"), rows.length ? table("Metrics", [["Metric", ([, name]) => name], ["Before", ([key]) => number(release.before[key] ?? null), "n"], ["With this release", ([key]) => number(release.after[key]), "n"], ["Change", ([key]) => change(key), "n"]], rows) : h("p", { class: "quiet-text" }, "Not measured.")),
      h("div", {}, h("h3", {}, "Weights of the light score"), h("ul", { class: "bars" }, light.map(([name, weight]) => bar(name, Math.abs(weight) / most, number(weight), colorOf(name)))),
        h("p", { class: "note below" }, `The ranker predicts ${release.heads.join(", ")}.`)),
      release.after.stages ? h("div", {}, h("h3", {}, "Where liked items of held-out events end"), shareBars(release.after.stages, (key) => ENDS[key] ?? key)) : null,
      Object.keys(release.reliability ?? {}).length ? h("div", {}, h("h3", {}, "Whether the ranker's probabilities come true"), h("div", { class: "row squares" }, Object.entries(release.reliability).map(([head, bins]) => calibration(head, bins)))) : null,
      release.after.sources ? h("div", {}, h("h3", {}, "Share of them that each source retrieves"), shareBars(release.after.sources, (key) => key, colorOf)) : null));
}
