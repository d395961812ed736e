// Two slates of one request, side by side.
import { id } from "./api.js";
import { picture, sourceTag } from "./charts.js";
import { h } from "./dom.js";
import { number } from "./format.js";

/** Both slates as columns: what is only in the first, and how each item of the second moved. `names`: their headings. */
export function sideBySide(names, [one, other], known) {
  const before = new Map(one.items.map((item, place) => [item.item_id, place]));
  const after = new Set(other.items.map((item) => item.item_id));
  const moved = (item, place) => {
    const old = before.get(item.item_id);
    if (old === undefined) return h("em", { class: "up" }, "new");
    return old === place ? null : h("em", { class: old > place ? "up" : "down" }, `${old > place ? "↑" : "↓"} ${Math.abs(old - place)}`);
  };
  const gone = (item) => (after.has(item.item_id) ? null : h("em", { class: "down" }, "gone"));
  const side = (name, slate, mark) => h("div", {}, h("h3", {}, name), h("ol", { class: "ranking", "aria-label": name }, slate.items.map((item, place) =>
    h("li", { class: after.has(item.item_id) ? "" : "gone", "data-item": item.item_id }, h("span", { class: "rank" }, place + 1),
      h("a", { class: "item-cell", href: `#/items/${id(item.item_id)}` }, picture(known.get(item.item_id), item.item_id), h("span", {}, known.get(item.item_id)?.title || item.item_id)),
      mark(item, place), sourceTag(item.sources[0] ?? "rules")))));
  return h("div", { class: "columns below" }, side(names[0], one, gone), side(names[1], other, moved));
}

/** How much two slates have in common, as a sentence. */
export function shared([one, other]) {
  const held = new Set(one.items.map((item) => item.item_id));
  const both = other.items.filter((item) => held.has(item.item_id)).length;
  const same = other.items.filter((item, place) => one.items[place]?.item_id === item.item_id).length;
  return `${number(both)} of ${number(other.items.length)} items are in both slates, ${number(same)} at the same place.`;
}

/** A note on the slates that are degraded, which compare a release without a part of it; null if none is. */
export function lacking(names, slates) {
  const parts = slates.flatMap((slate, n) => (slate.degraded.length ? [`${names[n]}: ${slate.degraded.join(", ")}`] : []));
  return parts.length ? h("p", { class: "note", "data-degraded": "" }, `Degraded: ${parts.join("; ")}.`) : null;
}
