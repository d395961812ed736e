// The form of a catalogue entry.
import { change, get, id, mayWrite } from "./api.js";
import { h, tell } from "./dom.js";

const WAITS = 40;
const WAIT_MS = 150;

/** Ask until the worker's catalogue is as expected: `as` gets the entry, or null if there is none. */
export async function settled(itemId, as) {
  for (let n = 0; n < WAITS; n += 1) {
    const found = await get(`/v1/items/${id(itemId)}`).catch((error) => {
      if (error.status === 404) return null;
      throw error;
    });
    if (as(found)) return true;
    await new Promise((done) => setTimeout(done, WAIT_MS));
  }
  return false;
}

const field = (label, control, hint) => h("label", { class: "field" }, h("span", {}, label, hint ? h("small", {}, ` ${hint}`) : null), control);

/** `item`: the entry as `GET /v1/items/ID` returns it; null for a new one. Fields that the form does not show are kept. */
export function itemForm(item) {
  const input = (name, props = {}) => h("input", { name, autocomplete: "off", ...props });
  const itemId = input("item_id", { required: true, value: item?.item_id ?? "", readonly: item !== null });
  const title = input("title", { value: item?.title ?? "" });
  const text = h("textarea", { name: "text", rows: "5" }, item?.text ?? "");
  const categories = input("categories", { value: (item?.categories ?? []).join(" | ") });
  const price = input("price", { inputmode: "decimal", value: item?.price ?? "" });
  const image = input("image", { value: item?.image ?? "" });
  const published = input("published_at", { value: item?.published_at ? new Date(item.published_at).toISOString() : "" });
  const available = h("input", { type: "checkbox", name: "available", checked: item?.available ?? true });
  const save = h("button", { class: "primary", disabled: !mayWrite(), title: mayWrite() ? null : "Read only: enter the token first" }, item ? "Save" : "Put");
  const form = h("form", { class: "form" },
    field("Id", itemId), field("Title", title), field("Text", text), field("Categories", categories, "separated by |"),
    h("div", { class: "columns" }, field("Price", price), field("Published", published, "ISO 8601, empty: always")),
    field("Image", image, "an http(s) URL"), h("label", { class: "check" }, available, "available"),
    h("div", { class: "row" }, save, h("a", { class: "button", href: item ? `#/items/${id(item.item_id)}` : "#/items" }, "Cancel")));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    save.disabled = true;
    try {
      const body = { ...item, item_id: itemId.value, title: title.value, text: text.value, available: available.checked,
        categories: categories.value.split("|").map((one) => one.trim()).filter(Boolean),
        price: price.value.trim() === "" ? null : Number(price.value), image: image.value.trim() || null, published_at: published.value.trim() || null };
      if (Number.isNaN(body.price)) throw new Error("The price is no number.");
      await change("PUT", `/v1/items/${id(body.item_id)}`, body);
      const taken = await settled(body.item_id, (found) => found !== null && ["title", "text", "price", "available"].every((name) => found[name] === body[name]));
      tell(taken ? "The catalogue has it." : "It is stored; the worker has not read it yet.");
      location.hash = `#/items/${id(body.item_id)}`;
    } catch (error) {
      tell(error.message);
      save.disabled = !mayWrite();
    }
  });
  return form;
}
