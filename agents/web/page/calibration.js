// Whether predicted probabilities come true: one plot for each head, with logarithmic axes.
import { h, s } from "./dom.js";
import { percent } from "./format.js";

const SIZE = 100;

/** Bins `{predicted, observed, weight}` of a head as dots around the diagonal; a bin in which nothing was observed lies on the floor. */
export function calibration(head, bins) {
  const known = bins.filter((bin) => bin.predicted > 0 && bin.weight > 0);
  const values = known.flatMap((bin) => [bin.predicted, bin.observed]).filter((value) => value > 0);
  const low = Math.floor(Math.log10(Math.min(...values, 0.1)));
  const at = (value) => (value > 0 ? (Math.max(Math.log10(value), low) - low) / -low : 0) * SIZE;
  const total = known.reduce((sum, bin) => sum + bin.weight, 0);
  const off = known.reduce((sum, bin) => sum + Math.abs(bin.predicted - bin.observed) * bin.weight, 0) / Math.max(total, 1e-9);
  const decades = Array.from({ length: -low + 1 }, (_, n) => n);
  const line = s("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    decades.map((n) => [s("line", { class: "grid", x1: 0, x2: SIZE, y1: (n / -low) * SIZE, y2: (n / -low) * SIZE }), s("line", { class: "grid", y1: 0, y2: SIZE, x1: (n / -low) * SIZE, x2: (n / -low) * SIZE })]),
    s("path", { class: "line b", d: `M0 ${SIZE}L${SIZE} 0` }));
  const dots = known.map((bin) => h("i", { class: "spot", title: `predicted ${percent(bin.predicted)}, observed ${percent(bin.observed)}`, style: { left: `${at(bin.predicted)}%`, top: `${SIZE - at(bin.observed)}%` } }));
  const text = known.map((bin) => `${percent(bin.predicted)} predicted, ${percent(bin.observed)} observed`).join("; ");
  return h("figure", { class: "chart square", role: "img", "aria-label": `${head}: ${text}` },
    h("figcaption", {}, head, h("b", { title: "expected calibration error: how far predictions are off on average" }, `off by ${percent(off)}`)),
    h("div", { class: "plot" }, line, dots),
    h("div", { class: "ends" }, h("span", {}, percent(10 ** low)), h("span", {}, "predicted → · observed ↑"), h("span", {}, "100 %")));
}
