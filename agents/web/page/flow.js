// The picture of a request: candidates flow from sources through the stages, and what leaves on the way falls.
import { colorOf } from "./charts.js";
import { s } from "./dom.js";
import { ms, number } from "./format.js";

export const WIDTH = 960;
export const HEIGHT = 330;
export const TOP = 46;
export const MOST = 190;
export const BAR = 14;

/** Heights are square roots, so that a slate of ten can be seen beside thousands of candidates. */
export const height = (n, most) => (n > 0 ? Math.max(4, Math.sqrt(n / most) * MOST) : 0);

export function ribbon(x1, y1, h1, x2, y2, h2) {
  const middle = (x1 + x2) / 2;
  return `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}V${y2 + h2}C${middle} ${y2 + h2} ${middle} ${y1 + h1} ${x1} ${y1 + h1}Z`;
}

/** Parts of a stage's bar, by source, in proportion to the source's candidates there. */
function parts(sources, key, x, total, most) {
  const tall = height(total, most);
  const sum = sources.reduce((n, source) => n + source[key], 0) || 1;
  let y = TOP + (MOST - tall) / 2;
  return sources.map((source) => {
    const part = { x, y, tall: (source[key] / sum) * tall };
    y += part.tall;
    return part;
  });
}

export const label = (x, y, text, name = "", anchor = "middle") => s("text", { x, y, class: name, "text-anchor": anchor }, text);

export function fallen(x, from, count, text) {
  if (!count) return [];
  const wide = Math.max(3, Math.min(26, Math.sqrt(count)));
  const down = HEIGHT - 52;
  return [
    s("path", { class: "fall", d: `M${x} ${from}C${x + 34} ${from} ${x + 40} ${from + 20} ${x + 40} ${down}H${x + 40 + wide}C${x + 40 + wide} ${from + 10} ${x + 40} ${from - wide} ${x} ${from - wide}Z` }),
    label(x + 40 + wide / 2, down + 16, `−${number(count)}`, "fall-count"),
    ...text.map((line, n) => label(x + 40 + wide / 2, down + 31 + n * 13, line, "fall-name")),
  ];
}

export function flow(trace, timings) {
  const sources = trace.sources.filter((source) => source.brought > 0).map((source) => ({ ...source, distinct: source.passed + source.dropped }));
  const dropped = trace.filters.filter((filter) => filter.dropped > 0);
  const brought = sources.reduce((sum, source) => sum + source.brought, 0);
  const most = Math.max(brought, 1);
  const stages = [
    ["brought", 176, brought, "retrieved", timings.retrieve],
    ["distinct", 348, trace.merged, "merged", timings.merge],
    ["passed", 520, trace.passed, "filtered", timings.filter],
    ["ranked", 706, trace.ranked, trace.heads.length ? "ranked" : "ordered", (timings.light ?? 0) + (timings.rank ?? 0)],
    ["shown", 896, trace.shown, "slate", timings.select],
  ];
  const bars = stages.map(([key, x, total]) => parts(sources, key, x, total, most));
  const shapes = [];
  // names at the left, spread evenly where the parts of the first bar are thin
  const tall = Math.max(24, Math.min(46, (HEIGHT - 60) / sources.length));
  const start = TOP + MOST / 2 - (tall * sources.length) / 2;
  sources.forEach((source, n) => {
    const y = start + n * tall + tall / 2;
    const part = bars[0][n];
    shapes.push(s("path", { class: "ribbon", style: { fill: colorOf(source.name) }, d: ribbon(112, y - Math.min(tall, part.tall) / 2, Math.min(tall, part.tall), part.x, part.y, part.tall) }));
    shapes.push(label(104, y - 1, source.name, "source", "end"), label(104, y + 12, number(source.brought), "small", "end"));
    for (let n2 = 0; n2 + 1 < bars.length; n2 += 1) {
      const [one, other] = [bars[n2][n], bars[n2 + 1][n]];
      if (other.tall) shapes.push(s("path", { class: "ribbon", style: { fill: colorOf(source.name) }, d: ribbon(one.x + BAR, one.y, one.tall, other.x, other.y, other.tall) },
        s("title", {}, `${source.name}: ${number(source[stages[n2][0]])} → ${number(source[stages[n2 + 1][0]])}`)));
    }
    for (const bar of bars) if (bar[n].tall) shapes.push(s("rect", { x: bar[n].x, y: bar[n].y, width: BAR, height: bar[n].tall, style: { fill: colorOf(source.name) } }));
  });
  const bottom = (n) => TOP + MOST / 2 + height(stages[n][2], most) / 2;
  shapes.push(...fallen(stages[0][1] + BAR, bottom(0), brought - trace.merged, ["of several sources"]));
  shapes.push(...fallen(stages[1][1] + BAR, bottom(1), trace.merged - trace.passed, dropped.map((filter) => `${filter.name} ${number(filter.dropped)}`)));
  shapes.push(...fallen(stages[2][1] + BAR, bottom(2), trace.passed - trace.ranked, ["below the cut"]));
  shapes.push(...fallen(stages[3][1] + BAR, bottom(3), trace.ranked - trace.shown, ["beyond the slate"]));
  for (const [, x, total, name, took] of stages) {
    shapes.push(label(x + BAR / 2, 16, name, "stage"), label(x + BAR / 2, 33, `${number(total)}${took === undefined ? "" : ` · ${ms(took)}`}`, "small"));
  }
  const text = `${number(brought)} retrieved, ${number(trace.merged)} distinct, ${number(trace.passed)} passed the filters, ${number(trace.ranked)} ranked, ${number(trace.shown)} shown`;
  return s("svg", { class: "flow", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": text }, shapes);
}
