// The frame of the page: views by address, the worker's state every second, and the token.
import { ApiError, get, mayWrite, onToken, tokenFromAddress, useToken } from "./api.js";
import { fill, h, icon, tell } from "./dom.js";
import { duration } from "./format.js";
import { health } from "./health.js";
import { items } from "./items.js";
import { live } from "./live.js";
import { models } from "./models.js";
import { pipeline } from "./pipeline.js";
import { user } from "./user.js";
import { why } from "./why.js";

const VIEWS = { live, user, why, pipeline, items, models, health };
const NAMES = { live: "Live", user: "User", why: "Why", pipeline: "Pipeline", items: "Items", models: "Models", health: "Health" };
const POLL_MS = 1000;
const KEPT = 300;

const view = document.getElementById("view");
const links = Object.fromEntries(
  Object.keys(VIEWS).map((name) => [name, h("a", { href: `#/${name}` }, icon(name), h("span", {}, NAMES[name]))]),
);
const title = h("h1");
const pill = h("span", { class: "pill", role: "status" }, "connecting");
const release = h("span", { class: "fact" });
const body = h("div", { class: "body" });
const status = { now: null, error: null, samples: null };
let shown = null;
let next = 0;

function merged(samples) {
  const known = status.samples;
  if (known === null || samples.next < next) return samples;
  const joined = { ...samples };
  for (const [name, values] of Object.entries(samples))
    if (Array.isArray(values)) joined[name] = [...known[name], ...values].slice(-KEPT);
  return joined;
}

async function poll() {
  if (!document.hidden) {
    try {
      let answer = await get(`/v1/live?since=${next}`);
      if (answer.samples.next < next) {
        // the worker started anew
        status.samples = null;
        answer = await get("/v1/live?since=0");
      }
      status.samples = merged(answer.samples);
      next = answer.samples.next;
      status.now = answer;
      status.error = null;
    } catch (error) {
      status.error = error;
    }
    paint();
  }
  setTimeout(poll, POLL_MS);
}

// a live region that is set to what it says already might be read out again
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function paint() {
  const { now, error } = status;
  if (error) {
    pill.className = "pill bad";
    say(pill, error instanceof ApiError && error.status === 401 ? "needs the token" : "no answer");
  } else {
    const warned = Object.keys(now.worker.warnings).length;
    pill.className = `pill ${now.worker.ready ? (warned ? "warn" : "good") : "bad"}`;
    say(pill, now.worker.ready ? (warned ? `ready, ${warned} warning${warned > 1 ? "s" : ""}` : "ready") : "not ready");
    fill(release, "release ", h("b", {}, now.worker.release));
    fill(document.getElementById("address"), now.worker.address, h("br"), `up ${duration(now.worker.uptime_s)}`);
  }
  shown?.update?.(status);
}

/** Show the view that the address names: `#/user/ID`, parts percent-encoded. */
function route() {
  const [name, ...rest] = location.hash.replace(/^#\//, "").split("/");
  const chosen = Object.hasOwn(VIEWS, name) ? name : "live";
  for (const [key, link] of Object.entries(links)) {
    if (key === chosen) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  title.textContent = NAMES[chosen];
  document.title = `${NAMES[chosen]} · Riffle`;
  shown?.close?.();
  let parts = [];
  try {
    parts = rest.map(decodeURIComponent);
  } catch {
    tell("This address cannot be read.");
  }
  fill(body);
  shown = VIEWS[chosen](body, parts) ?? null;
  if (status.now || status.error) shown?.update?.(status);
}

function tokenButton() {
  const button = document.getElementById("token");
  fill(button, icon(mayWrite() ? "pen" : "lock"), mayWrite() ? "Changes allowed" : "Read only");
  button.title = mayWrite() ? "Actions send events with the token of this home" : "Enter the token that riffle up prints";
}

function start() {
  tokenFromAddress();
  fill(document.getElementById("nav"), Object.values(links));
  fill(view, h("div", { class: "top" }, title, h("div", { class: "facts" }, release, pill)), body);
  const dialog = document.getElementById("token-dialog");
  const input = document.getElementById("token-input");
  document.getElementById("token").addEventListener("click", () => dialog.showModal());
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "save") useToken(input.value);
    if (dialog.returnValue === "forget") useToken("");
    input.value = "";
  });
  onToken(() => {
    tokenButton();
    shown?.token?.();
  });
  tokenButton();
  addEventListener("hashchange", () => {
    tokenFromAddress();
    route();
    view.focus({ preventScroll: true });
    scrollTo(0, 0);
  });
  addEventListener("unhandledrejection", (event) => {
    if (event.reason?.name === "AbortError") event.preventDefault();
    else if (event.reason instanceof ApiError) {
      event.preventDefault();
      tell(event.reason.message);
    }
  });
  route();
  poll();
}

start();
