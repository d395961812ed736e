// The pipeline as a graph: sources, stages, what flows between them, and what leaves.
import { colorOf } from "./charts.js";
import { s } from "./dom.js";
import { BAR, HEIGHT, MOST, TOP, WIDTH, fallen, height, label, ribbon } from "./flow.js";
import { ms, number, percent } from "./format.js";

const TIMES = { retrieved: ["hydrate", "retrieve"], merged: ["merge"], filtered: ["filter"], ranked: ["light", "rank"], slate: ["select"] };

/** `figures`: sums as `GET /v1/pipeline` returns them. */
export function graph(figures) {
  const each = (n) => n / figures.requests;
  const took = Object.fromEntries(figures.stages.filter((stage) => stage.batches > 0).map((stage) => [stage.name, (stage.seconds / stage.batches) * 1000]));
  const sources = figures.sources.filter((source) => source.retrieved > 0);
  const shown = figures.sources.filter((source) => source.shown > 0);
  const brought = sources.reduce((sum, source) => sum + source.retrieved, 0);
  const { merge, filter, light, select } = figures.candidates;
  const most = Math.max(brought, 1);
  const stages = [["retrieved", 176, brought], ["merged", 330, merge], ["filtered", 484, filter], ["ranked", 638, light], ["slate", 792, select]];
  const shapes = [];
  const top = (n) => TOP + (MOST - height(n, most)) / 2;
  // sources into the first stage, each in its colour
  const tall = Math.max(24, Math.min(46, (HEIGHT - 60) / Math.max(sources.length, 1)));
  const start = TOP + MOST / 2 - (tall * sources.length) / 2;
  let y = top(brought);
  sources.forEach((source, n) => {
    const part = (source.retrieved / most) * height(brought, most);
    const from = start + n * tall + tall / 2;
    const thick = Math.min(tall, part);
    shapes.push(s("path", { class: "ribbon", style: { fill: colorOf(source.name) }, d: ribbon(112, from - thick / 2, thick, 176, y, part) }, s("title", {}, `${source.name}: ${number(each(source.retrieved))} candidates of a request`)));
    shapes.push(s("rect", { x: 176, y, width: BAR, height: part, style: { fill: colorOf(source.name) } }));
    shapes.push(label(104, from - 1, source.name, "source", "end"), label(104, from + 12, number(each(source.retrieved)), "small", "end"));
    y += part;
  });
  stages.forEach(([name, x, n], place) => {
    const tallness = height(n, most);
    if (place > 0) {
      const [, before, old] = stages[place - 1];
      shapes.push(s("path", { class: "ribbon body", d: ribbon(before + BAR, top(old), height(old, most), x, top(n), tallness) }, s("title", {}, `${name}: ${number(each(n))} of ${number(each(old))}`)));
      shapes.push(s("rect", { class: "stage-bar", x, y: top(n), width: BAR, height: tallness }));
    }
    const time = TIMES[name].reduce((sum, stage) => sum + (took[stage] ?? 0), 0);
    shapes.push(label(x + BAR / 2, 16, name, "stage"), label(x + BAR / 2, 33, `${number(each(n))} · ${ms(time)}`, "small"));
  });
  // the slate, by the sources of its items
  const items = shown.reduce((sum, source) => sum + source.shown, 0);
  const high = Math.max(26, Math.min(40, (HEIGHT - 60) / Math.max(shown.length, 1)));
  const begin = TOP + MOST / 2 - (high * shown.length) / 2;
  let at = top(select);
  shown.slice().sort((one, other) => other.shown - one.shown).forEach((source, n) => {
    const part = (source.shown / items) * height(select, most);
    const to = begin + n * high + high / 2;
    const thick = Math.max(2, (source.shown / items) * high);
    shapes.push(s("path", { class: "ribbon", style: { fill: colorOf(source.name) }, d: ribbon(792 + BAR, at, part, 872, to - thick / 2, thick) }));
    shapes.push(label(878, to - 1, source.name, "source", "start"), label(878, to + 12, percent(source.shown / items), "small", "start"));
    at += part;
  });
  const bottom = (n) => TOP + MOST / 2 + height(n, most) / 2;
  const dropped = figures.filters.filter((one) => one.dropped > 0).sort((one, other) => other.dropped - one.dropped).slice(0, 3);
  shapes.push(...fallen(176 + BAR, bottom(brought), each(brought - merge), ["of several sources"]));
  shapes.push(...fallen(330 + BAR, bottom(merge), each(merge - filter), dropped.map((one) => `${one.name} ${number(each(one.dropped))}`)));
  shapes.push(...fallen(484 + BAR, bottom(filter), each(filter - light), ["below the cut"]));
  shapes.push(...fallen(638 + BAR, bottom(light), each(light - select), ["beyond the slate"]));
  const text = `Of a request: ${stages.map(([name, , n]) => `${number(each(n))} ${name}`).join(", ")}`;
  return s("svg", { class: "flow", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": text }, shapes);
}
