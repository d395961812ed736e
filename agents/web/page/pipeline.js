// Pipeline: what flows through the stages, how long they take, and what a set of rules would change.
import { change, get, id, itemsOf } from "./api.js";
import { colorOf } from "./charts.js";
import { action, bar, fill, h, loading, panel, state, tell } from "./dom.js";
import { ms, number, percent } from "./format.js";
import { shares } from "./live.js";
import { graph } from "./pipeline_graph.js";
import { sideBySide } from "./slates.js";

const POLL_MS = 2000;
const KEPT = 30;

export function pipeline(body, [userId]) {
  const leaving = new AbortController();
  const picturePanel = h("div");
  const times = h("div");
  const drops = h("div");
  const sources = h("div");
  const failures = h("div");
  const looks = [];
  let recent = false;
  const choose = (one) => {
    recent = one;
    all.setAttribute("aria-pressed", String(!one));
    last.setAttribute("aria-pressed", String(one));
    paint();
  };
  const all = h("button", { type: "button", "aria-pressed": "true", onclick: () => choose(false) }, "Since the start");
  const last = h("button", { type: "button", "aria-pressed": "false", onclick: () => choose(true) }, "Last minute");
  fill(body,
    panel("Stages", "candidates of a request on average, and the mean time of a batch in each stage", h("div", { class: "row switch", role: "group", "aria-label": "Period" }, all, last), picturePanel),
    h("div", { class: "columns four" }, panel("Time of a batch", "mean by stage", times), panel("Dropped candidates", "by filter", drops),
      panel("Shown items", "share by source; an item of several counts for each", sources), panel("Failures", "of sources, hydrators and the ranker", failures)),
    rulesPanel(userId ?? "", leaving.signal));
  fill(picturePanel, loading("the figures"));

  function paint() {
    if (!looks.length) return;
    const now = looks.at(-1);
    const figures = recent && looks.length > 1 ? since(now, looks[0]) : recent ? since(now, now) : now;
    if (!figures.requests) {
      fill(picturePanel, state("empty", recent ? "No request in the last minute" : "No request yet", "Ask for a slate: riffle ask USER, or the view User."));
    } else fill(picturePanel, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Stages of the pipeline" }, graph(figures)));
    const timed = figures.stages.filter((stage) => stage.batches > 0).map((stage) => [stage.name, (stage.seconds / stage.batches) * 1000]);
    const longest = Math.max(...timed.map(([, took]) => took), 1e-9);
    fill(times, timed.length ? h("ul", { class: "bars" }, timed.map(([name, took]) => bar(name, took / longest, ms(took)))) : h("p", { class: "quiet-text" }, "No batch."),
      h("p", { class: "note below" }, `Requests per batch: ${number(figures.batches ? figures.requests / figures.batches : null)}`));
    fill(drops, shares(Object.fromEntries(figures.filters.map((filter) => [filter.name, filter.dropped])), "No candidate was dropped."));
    const total = figures.sources.reduce((sum, source) => sum + source.shown, 0);
    const shown = figures.sources.filter((source) => source.shown > 0).sort((one, other) => other.shown - one.shown);
    fill(sources, shown.length ? h("ul", { class: "bars" }, shown.map((source) => bar(source.name, source.shown / total, percent(source.shown / total), colorOf(source.name)))) : h("p", { class: "quiet-text" }, "No item was shown."));
    fill(failures, shares(figures.failed, "None."));
  }

  async function read() {
    if (document.hidden) return;
    try {
      const found = await get("/v1/pipeline", leaving.signal);
      if (looks.length && found.batches < looks.at(-1).batches) looks.length = 0; // the worker began anew
      looks.push(found);
      if (looks.length > KEPT) looks.shift();
      paint();
    } catch (error) {
      if (error.name !== "AbortError" && !looks.length) fill(picturePanel, state("error", "The figures cannot be read", error.message));
    }
  }
  read();
  const timer = setInterval(read, POLL_MS);
  return {
    close() {
      clearInterval(timer);
      leaving.abort();
    },
  };
}

/** The sums of `now` without those of `before`. */
function since(now, before) {
  const list = (name, keys) => now[name].map((one) => {
    const old = before[name].find((other) => other.name === one.name) ?? {};
    return { ...one, ...Object.fromEntries(keys.map((key) => [key, one[key] - (old[key] ?? 0)])) };
  });
  const map = (name) => Object.fromEntries(Object.entries(now[name]).map(([key, n]) => [key, n - (before[name][key] ?? 0)]));
  return { ...now, requests: now.requests - before.requests, batches: now.batches - before.batches, stages: list("stages", ["seconds", "batches"]),
    sources: list("sources", ["retrieved", "shown"]), filters: list("filters", ["dropped"]), candidates: map("candidates"), failed: map("failed") };
}

const EXAMPLE = { rules: [{ name: "an example", kind: "boost", factor: 2, where: { categories: ["a category"] } }] };

/** A set of rules, tried on one user's request. Nothing is published. */
function rulesPanel(userId, signal) {
  const text = h("textarea", { rows: "9", spellcheck: "false", class: "code", "aria-label": "Rules as JSON" });
  const who = h("input", { value: userId, placeholder: "user id", "aria-label": "User to try them on", autocomplete: "off", spellcheck: "false" });
  const found = h("div", { "aria-live": "polite" });
  get("/v1/rules", signal).then((serving) => {
    const rules = serving.rules.map(({ state: _state, matches: _matches, ...rule }) => rule);
    if (!text.value) text.value = JSON.stringify(rules.length ? { rules } : EXAMPLE, null, 1);
  }, () => {});
  const look = action("Preview", true, async () => {
    let rules;
    try {
      rules = JSON.parse(text.value);
    } catch (error) {
      fill(found, state("error", "This is not JSON", error.message));
      return;
    }
    const wanted = who.value.trim();
    fill(found, loading("both slates"));
    try {
      const answer = await change("POST", "/v1/rules/preview", wanted ? { rules, request: { user_id: wanted, k: 12 } } : { rules });
      const ids = [answer.serving, answer.proposed].flatMap((slate) => slate?.items ?? []).map((item) => item.item_id);
      fill(found, compared(answer, await itemsOf(ids, signal)));
    } catch (error) {
      if (error.name !== "AbortError") fill(found, state("error", "These rules are refused", error.message));
    }
  }, "primary");
  const form = h("form", { class: "form" }, text, h("div", { class: "row" }, who, look));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    look.click();
  });
  return panel("Try rules", "one request, with the serving rules and with these. Nothing is published: riffle rules put FILE does that", form, found);
}

function compared({ rules, serving, proposed }, known) {
  const matches = h("ul", { class: "findings" }, rules.map((rule) => h("li", {}, h("b", {}, rule.name), ` ${rule.kind}, ${rule.state}, matches ${number(rule.matches)} item${rule.matches === 1 ? "" : "s"}`)));
  if (!serving) return [h("h3", {}, "Rules"), matches, h("p", { class: "note" }, "Name a user to see both slates.")];
  if (!proposed.items.length) tell("Both slates are empty.");
  return [h("h3", {}, "Rules"), matches, sideBySide(["Serving rules", "These rules"], [serving, proposed], known)];
}
