// Live: what the worker does now, and did in the last minutes.
import { chart, colorOf, sparkline } from "./charts.js";
import { bar, fill, h, panel, state, table } from "./dom.js";
import { ms, number } from "./format.js";

const LENGTH = 300;
const TILES = [
  ["events", "Events", "a second", number],
  ["requests", "Requests", "a second", number],
  ["p50_ms", "Latency p50", "last 10 s", ms],
  ["p99_ms", "Latency p99", "last 10 s", ms],
  ["freshness_ms", "Event to slate", "median, last 10 s", ms],
  ["lag", "Lag", "records waiting", number],
];

const newest = (values) => values.at(-1) ?? null;

export function shares(counts, empty, color = () => null) {
  const entries = Object.entries(counts).sort((one, other) => other[1] - one[1]);
  const most = entries[0]?.[1] ?? 0;
  if (!entries.some(([, n]) => n > 0)) return h("p", { class: "quiet-text" }, empty);
  return h("ul", { class: "bars" }, entries.filter(([, n]) => n > 0).map(([name, n]) => bar(name, n / most, number(n), color(name))));
}

/** A link to the page of another worker. */
const pageOf = (address) => (address ? h("a", { href: `${location.protocol}//${address}/`, rel: "noreferrer" }, address) : "unknown");

export const partitionTable = (partitions) =>
  table("Partitions", [
    ["Partition", (row) => row.partition],
    ["Here", (row) => h("span", { class: `role ${row.role}` }, row.role)],
    ["Owner", (row) => (row.role === "owner" || row.role === "restoring" ? "this worker" : pageOf(row.owner))],
    ["Standbys", (row) => row.standbys.length ? row.standbys.map((one, n) => [n ? ", " : "", pageOf(one)]) : "none"],
    ["Applied", (row) => number(row.applied), "n"],
    ["Not yet durable", (row) => (row.applied === undefined ? number(null) : number(row.applied - row.durable)), "n"],
    ["Lag, events", (row) => number(row.lag?.interactions), "n"],
    ["Lag, requests", (row) => number(row.lag?.requests), "n"],
  ], partitions);

export function live(body) {
  const tiles = TILES.map(([key, name, unit, show]) => {
    const value = h("strong", { "data-figure": key }, "–");
    const spark = sparkline();
    return { key, show, value, spark, element: h("li", { class: "tile-card" }, h("span", { class: "tile-name" }, name), value, h("small", {}, unit), spark.element) };
  });
  const flow = chart("Events and requests a second", [["events/s", "a"], ["requests/s", "b"]], number);
  const latency = chart("Latency of answers", [["p50", "a"], ["p99", "b"], ["event to slate", "c"]], ms);
  const partitions = h("div");
  const requests = h("div");
  const degraded = h("div");
  const dropped = h("div");
  const sources = h("div");
  const problem = h("div", { hidden: true });
  const content = [
    problem,
    h("ul", { class: "tiles" }, tiles.map((tile) => tile.element)),
    h("div", { class: "columns" },
      panel("Flow", "events applied and requests answered by this worker", flow.element),
      panel("Answer times", "this worker, over the last 10 seconds each", latency.element)),
    panel("Partitions", "who holds which users", partitions),
    h("div", { class: "columns four" },
      panel("Shown items", "by source", sources),
      panel("Answers", "since the start", requests),
      panel("Degraded slates", "by what they lack", degraded),
      panel("Dropped candidates", "by filter", dropped)),
  ];
  fill(body, state("loading", "Waiting for the first figures …"));
  let built = false;
  return {
    update({ now, samples, error }) {
      if (error && !built) {
        fill(body, state("error", "The worker does not show itself", error.message));
        return;
      }
      if (!built) {
        fill(body, content);
        built = true;
      }
      problem.hidden = !error;
      fill(problem, error ? state("error", "No answer", "The figures below are from before. Trying again every second.") : null);
      for (const { key, show, value, spark } of tiles) {
        value.textContent = show(newest(samples[key]));
        spark.draw(samples[key], LENGTH);
      }
      flow.draw(samples.at, [samples.events, samples.requests], LENGTH);
      latency.draw(samples.at, [samples.p50_ms, samples.p99_ms, samples.freshness_ms], LENGTH);
      fill(partitions, partitionTable(now.partitions));
      fill(requests, shares(now.totals.requests, "No request yet."));
      fill(degraded, shares(now.totals.degraded, "None: every slate was whole."));
      fill(sources, shares(now.totals.shown, "No slate yet.", colorOf));
      fill(dropped, shares(now.totals.dropped, "No candidate was dropped yet."));
    },
  };
}
