// Elements from data. Every value becomes text or an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, of] of Object.entries(value)) element.style.setProperty(key, of);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Make an HTML element: `h("p", {class: "note"}, "text", other)`. */
export const h = (tag, props, ...children) => filled(document.createElement(tag), props, children);

/** The same for SVG. */
export const s = (tag, props, ...children) => filled(document.createElementNS(SVG, tag), props, children);

/** Replace an element's children. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const ICONS = {
  live: "M3 12h4l3-8 4 16 3-8h4",
  user: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8ZM4 21c.6-4 3.600-6 8-6s7.400 2 8 6",
  pipeline: "M3 5h5v5H3zM3 14h5v5H3zM16 9.500h5v5h-5zM8 7.500h3c2 0 2 4.500 5 4.500M8 16.500h3c2 0 2-4.500 5-4.500",
  why: "M4 5h6M4 12h10M4 19h6M14 5c4 0 2 7 6 7M14 19c4 0 2-7 6-7",
  items: "M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z",
  models: "M12 3 3 8l9 5 9-5-9-5ZM3 12.500l9 5 9-5M3 17l9 5 9-5",
  health: "M12 21s-8-5-8-11a4.500 4.500 0 0 1 8-3 4.500 4.500 0 0 1 8 3c0 6-8 11-8 11Z",
  like: "M12 20s-7-4.400-7-9.700A4 4 0 0 1 12 8a4 4 0 0 1 7 2.300C19 15.600 12 20 12 20Z",
  click: "M5 4l14 7-6 2-2 6z",
  skip: "M6 6l12 12M18 6 6 18",
  lock: "M7 11V8a5 5 0 0 1 10 0v3M5 11h14v9H5z",
  pen: "M4 20h4L19 9l-4-4L4 16z",
};

/** An icon of 24 units, drawn in the text's colour. */
export const icon = (name) =>
  s("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, s("path", { d: ICONS[name] }));

export const panel = (title, note, ...body) =>
  h("section", { class: "panel" }, h("header", {}, h("h2", {}, title), note ? h("p", { class: "note" }, note) : null), body);

/** A designed state in place of content: `kind` is `empty`, `loading` or `error`. */
export const state = (kind, title, ...text) =>
  h("div", { class: `state ${kind}`, role: kind === "error" ? "alert" : "status" }, h("strong", {}, title), h("p", {}, ...text));

export const loading = (what) => state("loading", `Loading ${what} …`);

/** A table: `columns` are `[heading, cell(row), kind]`; kind `n` is for numbers. */
export const table = (caption, columns, rows) =>
  h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, columns.map(([name, , kind]) => h("th", { scope: "col", class: kind }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, columns.map(([, cell, kind]) => h("td", { class: kind }, cell(row))))))));

/** A bar of `share` (0 to 1) beside its label and value. */
export const bar = (label, share, value, color) =>
  h("li", { class: "bar" }, h("span", { class: "bar-label" }, label),
    h("span", { class: "bar-track" }, h("span", { style: { width: `${Math.max(0, Math.min(1, share)) * 100}%`, background: color ?? "" } })),
    h("span", { class: "bar-value" }, value));

/** Ask before something that cannot be taken back; resolves to whether it was confirmed. `word` must be typed, if given. */
export function confirmed(title, text, action, { word = "", kind = "danger" } = {}) {
  const input = word ? h("input", { autocomplete: "off", spellcheck: "false", "aria-label": `Type ${word} to confirm` }) : null;
  const yes = h("button", { value: "yes", class: kind, disabled: word !== "" }, action);
  input?.addEventListener("input", () => (yes.disabled = input.value !== word));
  const dialog = h("dialog", { "aria-label": title }, h("form", { method: "dialog" }, h("h2", {}, title), text.map((line) => h("p", {}, line)),
    word ? h("label", {}, h("span", {}, "Type ", h("code", {}, word), " to confirm"), input) : null,
    h("div", { class: "row" }, yes, h("button", { value: "no", class: "quiet", autofocus: !word }, "Cancel"))));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => {
    dialog.remove();
    resolve(dialog.returnValue === "yes" && !yes.disabled);
  }));
}

/** A button that changes something: disabled without the token, and while it works. Errors are shown. */
export function action(name, may, act, kind = "") {
  const button = h("button", { type: "button", class: kind, disabled: !may, title: may ? null : "Read only: enter the token first" }, name);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await act();
    } catch (error) {
      if (error.name !== "AbortError") tell(error.message);
    } finally {
      button.disabled = !may;
    }
  });
  return button;
}

let fading = 0;

/** Show a short message, which is also read out. */
export function tell(text) {
  const notice = document.getElementById("notice");
  clearTimeout(fading);
  notice.textContent = text;
  fading = setTimeout(() => (notice.textContent = ""), 6000);
}
