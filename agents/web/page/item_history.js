// What happened to one item: how often it was shown, and what users did with it, by minute or by hour.
import { get, id } from "./api.js";
import { chart } from "./charts.js";
import { fill, h, panel, state } from "./dom.js";
import { clock, moment, number } from "./format.js";

const AGAIN_MS = 5000;
const ACTIONS = 3;
const RANGES = [
  ["minute", "Last hour", (length) => `${length - 1} min ago`, clock],
  ["hour", "Last two days", (length) => `${length - 1} h ago`, moment],
];
const KINDS = ["b", "c", "d"];

const sum = (values) => values.reduce((all, value) => all + value, 0);

/** The panel of an item's counts over time. It asks again until `signal` is aborted. */
export function overTime(itemId, signal) {
  const place = h("div");
  const totals = h("p", { class: "note", "data-totals": "" });
  let [range] = RANGES;
  let asking = 0;
  let drawn = null;

  /** A new chart where the range or the actions are others, because its colours and its key belong to them. */
  function chartOf(names) {
    const key = `${range[0]} ${names.join(" ")}`;
    if (drawn?.key !== key) {
      const series = [["shown", "a"], ...names.map((name, n) => [name, KINDS[n]])];
      drawn = { key, chart: chart(`Of the item, ${range[1].toLowerCase()}`, series, number, range[2], range[3]) };
      fill(place, drawn.chart.element);
    }
    return drawn.chart;
  }

  async function read() {
    clearTimeout(asking);
    const [per] = range;
    try {
      const found = await get(`/v1/items/${id(itemId)}/history?per=${per}`, signal);
      if (per !== range[0]) return;
      const names = Object.keys(found.actions).sort((one, other) => sum(found.actions[other]) - sum(found.actions[one]));
      const counted = [["shown", sum(found.shown)], ...names.map((name) => [name, sum(found.actions[name])])];
      if (found.began === null) fill(place, state("loading", "Counting begins", "as soon as this worker is ready."));
      else chartOf(names.slice(0, ACTIONS)).draw(found.at, [found.shown, ...names.slice(0, ACTIONS).map((name) => found.actions[name])], Math.max(found.at.length, 2));
      totals.textContent = found.began === null ? "" : `${counted.map(([name, n]) => `${name} ${number(n)}`).join(" · ")}, since ${moment(found.began)}`;
    } catch (error) {
      if (error.name === "AbortError") return;
      drawn = null;
      fill(place, state("error", "The counts cannot be read", error.message));
    }
    if (!signal.aborted) asking = setTimeout(read, AGAIN_MS);
  }

  const buttons = RANGES.map((one) => h("button", { type: "button", "aria-pressed": String(one === range), onclick: () => {
    range = one;
    buttons.forEach((button, n) => button.setAttribute("aria-pressed", RANGES[n] === range));
    read();
  } }, one[1]));
  signal.addEventListener("abort", () => clearTimeout(asking));
  read();
  return panel("Over time", "shown by this worker, and the events of all users, as this worker got them", h("div", { class: "row switch" }, buttons), place, totals);
}
