// Trainings: how far those that run are, and how the last ones ended.
import { get } from "./api.js";
import { bar, fill, h, panel } from "./dom.js";
import { duration, moment, percent } from "./format.js";

const LOOK_MS = 2000;
const LATER_MS = 10000;
const STATES = {
  running: ["warn", "running"], silent: ["bad", "no report"], accepted: ["good", "accepted"], refused: ["bad", "refused"],
  skipped: ["", "skipped"], failed: ["bad", "failed"], interrupted: ["", "interrupted"],
};

/** What it does now, or how it ended, as a sentence. */
function sentence(one, now) {
  const why = one.reasons.length ? `: ${one.reasons.join("; ")}` : "";
  switch (one.state) {
    case "running": return one.left_s === null ? `${one.part}, after ${duration(one.elapsed_s)}` : `${one.part}, about ${duration(one.left_s)} left`;
    case "silent": return `Its last report came ${duration((now - one.reported_at) / 1000)} ago, during ${one.part}: it was probably killed.`;
    case "accepted": return `The gate accepted ${one.release} after ${duration(one.elapsed_s)}.`;
    case "refused": return `The gate refused ${one.release} after ${duration(one.elapsed_s)}${why}`;
    case "skipped": return `There was too little to learn yet${why}`;
    case "interrupted": return `It was interrupted after ${duration(one.elapsed_s)}, during ${one.part}.`;
    default: return `It failed after ${duration(one.elapsed_s)}, during ${one.part}${why}`;
  }
}

/** The parts of a running training, each with its own bar: those before the one under way are done. */
function partsOf(one) {
  const names = one.parts.map((part) => part.name);
  const under = names.findIndex((name) => one.part.startsWith(name));
  if (under < 0) return null;
  return h("ol", { class: "bars parts" }, one.parts.map(({ name, expected_s: expected }, n) =>
    bar(name, n < under ? 1 : n === under ? one.part_share : 0, `${duration(expected)} expected`, n < under ? "var(--second)" : null)));
}

function entry(one, now) {
  const [kind, name] = STATES[one.state] ?? ["", one.state];
  const live = one.state === "running";
  const whole = live || one.state === "silent" ? h("div", { class: "progress", role: "progressbar", "aria-label": `Training ${one.training}`, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": one.share === null ? null : Math.round(one.share * 100) },
    h("span", { class: one.share === null ? "unknown" : "", style: { width: one.share === null ? "100%" : `${one.share * 100}%` } })) : null;
  return h("li", { class: `training ${one.state}`, "data-training": one.training },
    h("p", { class: "training-head" }, h("span", { class: `pill ${kind}` }, name), " ", h("b", {}, one.kind === "incremental" ? "update" : "full training"), h("small", {}, `began ${moment(one.started_at)} UTC on ${one.host}`),
      one.share !== null && live ? h("b", { class: "training-share" }, percent(Math.round(one.share * 1000) / 1000)) : null),
    whole, h("p", { class: "training-now" }, sentence(one, now)), live ? partsOf(one) : null);
}

/** The panel of trainings, which looks again by itself. `onEnd` is called when one ended. */
export function trainingsPanel(signal, onEnd) {
  const list = h("div", {}, h("p", { class: "quiet-text" }, "Loading the trainings …"));
  let timer = 0;
  let running = new Set();
  async function read() {
    let next = LATER_MS;
    if (!document.hidden) {
      try {
        const { trainings } = await get("/v1/trainings", signal);
        fill(list, trainings.length ? h("ul", { class: "trainings" }, trainings.map((one) => entry(one, Date.now())))
          : h("p", { class: "quiet-text" }, "None reported in the last seven days. riffle train starts one, and shows here how far it is."));
        const still = new Set(trainings.filter((one) => one.state === "running").map((one) => one.training));
        if ([...running].some((name) => !still.has(name))) onEnd();
        running = still;
      } catch (error) {
        if (error.name === "AbortError") return;
        fill(list, h("p", { class: "quiet-text" }, `The trainings cannot be read: ${error.message}`));
      }
      if (running.size) next = LOOK_MS;
    }
    timer = setTimeout(read, next);
  }
  read();
  signal.addEventListener("abort", () => clearTimeout(timer));
  return panel("Trainings", "by riffle train, wherever it runs", list);
}
