// Charts over time, as SVG that stretches: shapes are drawn in units of 1000 by 100, text is HTML beside them.
import { id, pictureInto } from "./api.js";
import { fill, h, s } from "./dom.js";
import { NONE, clock } from "./format.js";

const WIDTH = 1000;
const HEIGHT = 100;

function ceiling(most) {
  if (!(most > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= most * 0.999);
}

/** The path of a series; a null value breaks it. Returns the line and the closed area below it. */
function paths(values, top, length) {
  const step = WIDTH / Math.max(length - 1, 1);
  const from = length - values.length;
  const runs = [];
  let run = [];
  values.forEach((value, n) => {
    if (value === null) {
      if (run.length) runs.push(run);
      run = [];
    } else run.push([(from + n) * step, HEIGHT - (Math.min(value, top) / top) * (HEIGHT - 4)]);
  });
  if (run.length) runs.push(run);
  const spot = ([x, y]) => `${x.toFixed(1)} ${y.toFixed(2)}`;
  // a lone value would have no extent
  const wide = runs.map((points) => (points.length > 1 ? points : [points[0], [points[0][0] + step, points[0][1]]]));
  return {
    line: wide.map((points) => `M${points.map(spot).join("L")}`).join(""),
    area: wide.map((points) => `M${spot([points[0][0], HEIGHT])}L${points.map(spot).join("L")}L${spot([points.at(-1)[0], HEIGHT])}Z`).join(""),
  };
}

const stretched = (name, ...shapes) =>
  s("svg", { class: name, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, shapes);

/** A chart without axes. `draw(values, length)` shows the newest values at its right end. */
export function sparkline() {
  const area = s("path", { class: "area a" });
  const line = s("path", { class: "line a" });
  const element = stretched("spark", area, line);
  return {
    element,
    draw(values, length) {
      const found = paths(values, ceiling(Math.max(...values.filter((value) => value !== null), 0)), length);
      area.setAttribute("d", found.area);
      line.setAttribute("d", found.line);
    },
  };
}

const minutesAgo = (length) => `${Math.round((length - 1) / 60)} min ago`;

/** A chart with axes and a reading under the pointer. `series`: `[name, class]`; `show(value)` formats a value, `since(length)` names
 * the left end of so many values, and `when(at)` the time under the pointer. */
export function chart(label, series, show, since = minutesAgo, when = clock) {
  const areas = series.map(([, name], n) => (n === 0 ? s("path", { class: `area ${name}` }) : null)).filter(Boolean);
  const lines = series.map(([, name]) => s("path", { class: `line ${name}` }));
  const grid = [25, 50, 75].map((y) => s("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y }));
  const cursor = h("i", { class: "cursor", hidden: true });
  const marks = [h("span"), h("span"), h("span")];
  const keys = series.map(([name, kind]) => h("li", {}, h("i", { class: `key ${kind}` }), name, h("b", {}, NONE)));
  const time = h("li", { class: "time" });
  const plot = h("div", { class: "plot" }, stretched("", grid, areas, lines), cursor, h("div", { class: "marks" }, marks));
  const ends = h("div", { class: "ends" }, h("span"), h("span", {}, "now"));
  const element = h("figure", { class: "chart", role: "img", "aria-label": label }, h("ul", { class: "keys" }, keys, time), plot, ends);
  let held = { at: [], columns: [], length: 1 };
  let pointer = null;

  function read() {
    const place = pointer === null ? held.at.length - 1 : Math.round(pointer * (held.length - 1)) - (held.length - held.at.length);
    const known = place >= 0 && place < held.at.length;
    keys.forEach((key, n) => (key.lastChild.textContent = known ? show(held.columns[n][place]) : NONE));
    time.textContent = pointer !== null && known ? when(held.at[place]) : "";
    cursor.hidden = pointer === null || !known;
    if (known && pointer !== null) cursor.style.left = `${pointer * 100}%`;
  }
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    pointer = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    read();
  });
  plot.addEventListener("pointerleave", () => {
    pointer = null;
    read();
  });
  return {
    element,
    draw(at, columns, length) {
      held = { at, columns, length };
      const top = ceiling(Math.max(0, ...columns.flat().filter((value) => value !== null)));
      columns.forEach((values, n) => {
        const found = paths(values, top, length);
        lines[n].setAttribute("d", found.line);
        if (n === 0) areas[0].setAttribute("d", found.area);
      });
      marks.forEach((mark, n) => (mark.textContent = show((top * (2 - n)) / 2)));
      ends.firstChild.textContent = since(length);
      read();
    },
  };
}

/** A line through one value for each of a few entries: `[name, when, value]`, oldest first. A value may be null. */
export function trend(label, entries, show) {
  const known = entries.filter(([, , value]) => value !== null);
  const top = ceiling(Math.max(0, ...known.map(([, , value]) => value)));
  const x = (n) => (entries.length > 1 ? (n / (entries.length - 1)) * 100 : 50);
  const y = (value) => 100 - (value / top) * 92;
  const spots = entries.map(([, , value], n) => (value === null ? null : [x(n), y(value)])).filter(Boolean);
  const line = s("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" },
    [25, 50, 75].map((at) => s("line", { class: "grid", x1: 0, x2: 100, y1: at, y2: at })),
    spots.length ? s("path", { class: "line a", d: `M${spots.map(([one, other]) => `${one.toFixed(2)} ${other.toFixed(2)}`).join("L")}` }) : null);
  const dots = entries.map(([name, when, value], n) => (value === null ? null
    : h("i", { class: "spot", title: `${name}, ${when}: ${show(value)}`, style: { left: `${x(n)}%`, top: `${y(value)}%` } })));
  const text = known.map(([name, , value]) => `${name} ${show(value)}`).join(", ");
  return h("figure", { class: "chart trend", role: "img", "aria-label": `${label}: ${text}` }, h("figcaption", {}, label, h("b", {}, known.length ? show(known.at(-1)[2]) : NONE)),
    h("div", { class: "plot" }, line, dots, h("div", { class: "marks" }, [top, top / 2, 0].map((mark) => h("span", {}, show(mark))))),
    h("div", { class: "ends" }, h("span", {}, entries[0]?.[1] ?? ""), h("span", {}, entries.at(-1)?.[1] ?? "")));
}

/** The colours of sources, the same wherever a source is shown. */
const ORDER = ["covisitation", "content", "learned", "ease", "popular", "fresh", "requested", "rules", "transitions", "history"];
export const colorOf = (source) => `var(--c${(ORDER.indexOf(source) + ORDER.length) % ORDER.length})`;

const REASONS = {
  covisitation: "often chosen together with their items",
  content: "similar to what they liked",
  learned: "close to their learned taste",
  ease: "goes with their items",
  popular: "popular now",
  fresh: "new in the catalogue",
  requested: "named by the request",
  rules: "placed by a rule",
  transitions: "often chosen next in a session",
  history: "seen before, and may be repeated",
};
export const reasonOf = (source) => REASONS[source] ?? source;

export const sourceTag = (source, text) =>
  h("span", { class: "tag", title: `${source}: ${reasonOf(source)}` }, h("i", { class: "dot", style: { background: colorOf(source) } }), text ?? source);

/** A picture of an item, or a tile of its own colour where there is none. */
export function picture(item, itemId) {
  const name = item?.title || itemId;
  const tile = () => {
    let hash = 0;
    for (const letter of itemId) hash = (hash * 31 + letter.codePointAt(0)) % 360;
    return h("span", { class: "tile", style: { "--hue": hash }, "aria-hidden": "true", "data-letters": [...name.trim()].slice(0, 2).join("").toUpperCase() });
  };
  if (!item?.has_image) return h("span", { class: "pic" }, tile());
  const frame = h("span", { class: "pic" });
  const img = h("img", { alt: "", loading: "lazy", width: 96, height: 96 });
  img.addEventListener("error", () => fill(frame, tile()));
  pictureInto(img, `/v1/items/${id(itemId)}/image`);
  return fill(frame, img);
}
