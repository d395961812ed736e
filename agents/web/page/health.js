// Health: what keeps the worker from answering, and what it could not use.
import { get, mayWrite } from "./api.js";
import { fill, h, loading, panel, state, table } from "./dom.js";
import { duration, number } from "./format.js";
import { letterPanel } from "./letters.js";
import { partitionTable, shares } from "./live.js";

const TABLES_MS = 5000;

export function health(body) {
  const leaving = new AbortController();
  const verdict = h("div");
  const partitions = h("div");
  const letters = h("div");
  const events = h("div");
  const tables = h("div", {}, loading("the tables"));
  const newest = letterPanel(leaving.signal);
  fill(body, verdict,
    panel("Partitions", "owned, standing by, or elsewhere", partitions),
    panel("Tables", "rows on this worker's disk, beside their changelogs", tables),
    h("div", { class: "columns" }, panel("Events", "by outcome, since the start", events), panel("Not usable", "events by reason, since the start; each became a dead letter", letters)), newest.element);
  async function read() {
    if (document.hidden) return;
    try {
      const { tables: found } = await get("/v1/tables", leaving.signal);
      fill(tables, found.length ? tableOf(found) : h("p", { class: "quiet-text" }, "No table is open."));
    } catch (error) {
      if (error.name !== "AbortError") fill(tables, state("error", "The tables cannot be read", error.message));
    }
  }
  read();
  newest.read(mayWrite());
  const timer = setInterval(read, TABLES_MS);
  return {
    update({ now, error }) {
      if (error || !now) {
        fill(verdict, state("error", "The worker does not answer", error?.message ?? ""));
        return;
      }
      fill(verdict, verdictOf(now.worker));
      fill(partitions, partitionTable(now.partitions));
      fill(letters, shares(now.totals.dead_letters, "None: every record could be used."));
      fill(events, shares(now.totals.events, "No event yet."));
    },
    token: () => newest.read(mayWrite()),
    close() {
      clearInterval(timer);
      leaving.abort();
    },
  };
}

function verdictOf(worker) {
  const list = (facts) => h("ul", { class: "findings" }, Object.entries(facts).map(([name, text]) => h("li", {}, h("b", {}, name), " ", typeof text === "string" ? text : JSON.stringify(text))));
  return panel(worker.ready ? "Ready" : "Not ready", `${worker.address} · up ${duration(worker.uptime_s)} · ${number(worker.items)} items · rules ${worker.rules || "none"}`,
    worker.ready ? h("p", {}, h("span", { class: "pill good" }, "answers requests")) : [h("p", {}, h("span", { class: "pill bad" }, "not ready"), " because of"), list(worker.reasons)],
    Object.keys(worker.warnings).length ? [h("h3", {}, "Warnings"), list(worker.warnings)] : null,
    Object.keys(worker.refused).length ? [h("h3", {}, "Refused releases"), list(worker.refused)] : null);
}

function tableOf(found) {
  const names = [...new Set(found.map((row) => row.table))];
  const rows = [...new Set(found.map((row) => row.partition))].map((partition) => ({ partition, of: Object.fromEntries(found.filter((row) => row.partition === partition).map((row) => [row.table, row])) }));
  return table("Tables", [["Partition", (row) => row.partition],
    ...names.flatMap((name) => [[name, (row) => (row.of[name] ? h("span", { class: `role ${row.of[name].role}` }, row.of[name].role) : "–")], [`${name}, changelog offset`, (row) => number(row.of[name]?.position), "n"]])], rows);
}
