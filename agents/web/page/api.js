// The worker's own HTTP interface. Reads are plain; whatever changes something carries the token.

const KEY = "riffle-token";

export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let token = sessionStorage.getItem(KEY) ?? "";
const heard = new Set();

/** Take the token out of the address, so that it is neither bookmarked nor shared by accident. */
export function tokenFromAddress() {
  const found = /^#token=([\w-]+)/.exec(location.hash);
  if (found) {
    useToken(found[1]);
    history.replaceState(null, "", "#/live");
  }
}

export function useToken(value) {
  token = value.trim();
  if (token) sessionStorage.setItem(KEY, token);
  else sessionStorage.removeItem(KEY);
  for (const listener of heard) listener();
}

export const mayWrite = () => token !== "";
export const onToken = (listener) => heard.add(listener);

async function asked(path, options, signal) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "The worker does not answer.");
  }
  const body = await response.json().catch(() => ({}));
  if (response.ok || (path === "/readyz" && response.status === 503)) return body;
  const { code = "unreadable", message = `HTTP ${response.status}` } = body.error ?? {};
  if (code === "wrong_token") useToken("");
  throw new ApiError(response.status, code, message);
}

export const get = (path, signal) => asked(path, {}, signal);
export const id = encodeURIComponent;

/** Change something, or ask with a body; `body` is sent as JSON. */
export const change = (method, path, body) => asked(path, { method, body: body === undefined ? undefined : JSON.stringify(body) });

const unseen = new WeakMap();
const seen = typeof IntersectionObserver === "undefined" ? null : new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    unseen.get(target)?.();
    unseen.delete(target);
  }
}, { rootMargin: "200px" });

/** Show what is at `path` in an <img> once it comes into view. A browser sends no token for an address in `src`, so with one the picture is fetched. */
export function pictureInto(img, path) {
  if (!token || !seen) {
    img.src = path;
    return;
  }
  unseen.set(img, async () => {
    try {
      const response = await fetch(path, { headers: { Authorization: `Bearer ${token}` } });
      if (!response.ok) throw new ApiError(response.status, "unreadable", `HTTP ${response.status}`);
      const address = URL.createObjectURL(await response.blob());
      for (const name of ["load", "error"]) img.addEventListener(name, () => URL.revokeObjectURL(address), { once: true });
      img.src = address;
    } catch {
      img.dispatchEvent(new Event("error"));
    }
  });
  seen.observe(img);
}

/** Send one event; returns its token `{partition, offset}`. */
export async function send(event) {
  const answer = await asked("/v1/events", { method: "POST", body: JSON.stringify(event) });
  return answer.tokens[0];
}

const cards = new Map();
const MOST_CARDS = 2000;

/** Return catalogue entries by id, as a map; unknown ids are absent. */
export async function itemsOf(ids, signal) {
  if (cards.size > MOST_CARDS) cards.clear();
  const wanted = [...new Set(ids)].filter((one) => one && !cards.has(one));
  for (let n = 0; n < wanted.length; n += 50) {
    const query = wanted.slice(n, n + 50).map((one) => `id=${id(one)}`).join("&");
    for (const item of (await get(`/v1/items?${query}`, signal)).items) cards.set(item.item_id, item);
  }
  return cards;
}
