// Items: the catalogue as this worker has it.
import { change, get, id, mayWrite } from "./api.js";
import { picture, sourceTag } from "./charts.js";
import { action, bar, confirmed, fill, h, loading, panel, state, tell } from "./dom.js";
import { day, number } from "./format.js";
import { itemForm, settled } from "./item_form.js";
import { overTime } from "./item_history.js";

const NEAR = 12;

export function items(body, [itemId, mode]) {
  const leaving = new AbortController();
  const list = h("ul", { class: "hits catalogue" });
  const detail = h("div", { class: "detail" });
  const input = h("input", { type: "search", placeholder: "words or an id", "aria-label": "Search items", autocomplete: "off" });
  let asked = null;
  let waiting = 0;
  async function search() {
    asked?.abort();
    asked = new AbortController();
    try {
      const { items: found } = await get(`/v1/items?limit=40&q=${id(input.value)}`, asked.signal);
      fill(list, found.length ? found.map((item) => entryOf(item, itemId)) : h("li", { class: "quiet-text" }, input.value ? "Nothing has these words." : "The catalogue is empty: riffle load DIR fills it."));
    } catch (error) {
      if (error.name !== "AbortError") fill(list, h("li", { class: "quiet-text" }, error.message));
    }
  }
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 150);
  });
  const form = h("form", { role: "search" }, input);
  form.addEventListener("submit", (event) => event.preventDefault());
  fill(body, h("div", { class: "split" }, panel("Catalogue", "most popular first, until you type", h("div", { class: "picker" }, form, h("a", { class: "button", href: "#/items//new" }, "New item"), list)), detail));
  search();
  const show = () => {
    if (mode === "new") fill(detail, panel("New item", "an entry of the catalogue", itemForm(null)));
    else if (mode === "edit") editedItem(detail, itemId, leaving.signal);
    else if (itemId) shownItem(detail, itemId, leaving.signal);
  };
  if (itemId || mode) show();
  else fill(detail, state("empty", "Pick an item", "Its text, its statistics and the items like it appear here."));
  return {
    token: show,
    close() {
      leaving.abort();
      asked?.abort();
    },
  };
}

const entryOf = (item, chosen) =>
  h("li", {}, h("a", { href: `#/items/${id(item.item_id)}`, "aria-current": item.item_id === chosen ? "true" : null }, picture(item, item.item_id),
    h("span", { class: "event" }, h("b", {}, item.title || item.item_id), h("small", {}, `${item.item_id} · ${number(item.statistics.events)} events`))));

async function editedItem(detail, itemId, signal) {
  fill(detail, loading("the item"));
  try {
    fill(detail, panel("Change an item", itemId, itemForm(await get(`/v1/items/${id(itemId)}`, signal))));
  } catch (error) {
    if (error.name !== "AbortError") fill(detail, state(error.status === 404 ? "empty" : "error", "The item cannot be read", error.message));
  }
}

/** What may be done to an item. */
const actionsOf = (item) =>
  h("div", { class: "row" }, h("a", { class: "button", href: `#/items/${id(item.item_id)}/edit` }, "Change"),
    action("Withdraw", mayWrite(), async () => {
      if (!(await confirmed("Withdraw this item?", [`${item.title || item.item_id} is removed from the catalogue of every worker, and no slate shows it any more. Put it again to bring it back; its statistics stay.`], "Withdraw"))) return;
      await change("DELETE", `/v1/items/${id(item.item_id)}`);
      await settled(item.item_id, (found) => found === null);
      tell("The item is withdrawn.");
      location.hash = "#/items";
    }, "danger quiet"));

async function shownItem(detail, itemId, signal) {
  fill(detail, loading("the item"));
  try {
    const [{ items: own }, alike] = await Promise.all([get(`/v1/items?id=${id(itemId)}`, signal), get(`/v1/similar/${id(itemId)}?k=80`, signal)]);
    const item = own[0];
    const ids = alike.items.map((one) => `id=${id(one.item_id)}`).join("&");
    const near = ids ? (await get(`/v1/items?${ids}`, signal)).items : [];
    const known = new Map(near.map((one) => [one.item_id, one]));
    fill(detail, panel(item.title || item.item_id, item.item_id, factsOf(item), actionsOf(item)), statisticsOf(item), overTime(itemId, signal),
      similarPanel("Chosen together", "by behaviour: co-visitation", alike.items.filter((one) => one.sources.includes("covisitation")).slice(0, NEAR), known),
      similarPanel("Alike in content", "by words and categories", alike.items.filter((one) => !one.sources.includes("covisitation")).slice(0, NEAR), known));
  } catch (error) {
    if (error.name === "AbortError") return;
    fill(detail, error.status === 404 ? state("empty", "There is no such item", `The catalogue has no ${itemId}.`) : state("error", "The item cannot be read", error.message));
  }
}

const factsOf = (item) =>
  h("div", { class: "item-head" }, picture(item, item.item_id),
    h("div", {}, h("p", {}, item.text || "No text."), h("p", { class: "tags" }, item.categories.map((name) => h("span", { class: "tag" }, name))),
      h("dl", { class: "facts-row" }, [["Price", number(item.price)], ["Published", day(item.published_at)], ["Shown", item.available ? (item.published ? "yes" : "not yet published") : "unavailable"]]
        .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))))));

function statisticsOf({ statistics }) {
  const actions = Object.entries(statistics.actions).sort((one, other) => other[1] - one[1]);
  const most = actions[0]?.[1] ?? 1;
  return panel("Statistics", `first event ${day(statistics.first_event_time)}`,
    h("dl", { class: "facts-row" }, [["Events", number(statistics.events)], ["Popularity now", number(statistics.popularity)], ["Mean value", number(statistics.mean_value)], ["Neighbours", number(statistics.neighbours)]]
      .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    actions.length ? h("ul", { class: "bars" }, actions.map(([name, n]) => bar(name, n / most, number(n)))) : h("p", { class: "quiet-text" }, "No event yet."));
}

const similarPanel = (title, note, found, known) =>
  panel(title, note, found.length
    ? h("ol", { class: "slate small" }, found.map((one) => h("li", { class: "card" },
      h("a", { class: "cover", href: `#/items/${id(one.item_id)}` }, picture(known.get(one.item_id), one.item_id),
        h("span", { class: "card-text" }, h("b", {}, known.get(one.item_id)?.title || one.item_id), h("small", {}, number(one.score)), sourceTag(one.sources[0]))))))
    : h("p", { class: "quiet-text" }, "None."));
