// User: who they are, what they did, and the slate that follows from it.
import { change, get, id, itemsOf, mayWrite, send } from "./api.js";
import { picture, reasonOf, sourceTag } from "./charts.js";
import { action, bar, confirmed, fill, h, icon, loading, panel, state, tell } from "./dom.js";
import { duration, moment, ms, number, percent } from "./format.js";
import { lacking, shared, sideBySide } from "./slates.js";

const K = 12;
const AGAIN_MS = 2_000;
const LONGEST_MS = 120_000;
const ACTIONS = [["like", "Like"], ["click", "Click"], ["skip", "Skip"]];

/** An id just before `text` in the order of bytes, from which on a page begins with `text` itself. */
function before(text) {
  const last = text.codePointAt([...text].slice(0, -1).join("").length);
  const start = text.slice(0, text.length - String.fromCodePoint(last).length);
  if (last === 0) return start;
  return start + String.fromCodePoint(last === 0xe000 ? 0xd7ff : last - 1) + "\u{10ffff}";
}

/** A search box with the users whose id begins with what is typed. */
export function userPicker(chosen, label) {
  const list = h("ul", { class: "hits", "aria-label": "Users" });
  const input = h("input", { type: "search", placeholder: "user id", "aria-label": label, autocomplete: "off", spellcheck: "false" });
  let asked = null;
  let waiting = 0;
  async function search() {
    asked?.abort();
    asked = new AbortController();
    const text = input.value.trim();
    try {
      const after = text ? `&after=${id(before(text))}` : "";
      const page = (n) => get(`/v1/users?partition=${n}&limit=40${after}`, asked.signal);
      const first = await page(0);
      const others = await Promise.all(Array.from({ length: first.partitions - 1 }, (_, n) => page(n + 1)));
      const names = [first, ...others].flatMap((one) => one.users).filter((one) => one.startsWith(text)).sort().slice(0, 40);
      fill(list, names.length ? names.map((one) => h("li", {}, h("button", { type: "button", onclick: () => chosen(one) }, one)))
        : h("li", { class: "quiet-text" }, text ? "No user begins with this." : "No user has events yet."));
    } catch (error) {
      if (error.name !== "AbortError") fill(list, h("li", { class: "quiet-text" }, error.message));
    }
  }
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 150);
  });
  const form = h("form", { role: "search" }, input);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (input.value.trim()) chosen(input.value.trim());
  });
  search();
  return h("div", { class: "picker" }, form, list);
}

export function user(body, [userId]) {
  const detail = h("div", { class: "detail" });
  const pick = (one) => (location.hash = `#/user/${id(one)}`);
  fill(body, h("div", { class: "split" }, panel("Users", null, userPicker(pick, "Search users by id")), detail));
  if (!userId) {
    fill(detail, state("empty", "Pick a user", "Their history and their slate appear here. A like, click or skip changes the slate while you watch."));
    return {};
  }
  return shownUser(detail, userId);
}

function shownUser(detail, userId) {
  const leaving = new AbortController();
  const person = h("div");
  const took = h("p", { class: "took", role: "status", "aria-live": "polite" }, "Each action sends an event, and asks for the slate that reflects it.");
  const grid = h("ol", { class: "slate", "aria-label": `Slate of ${userId}` });
  const facts = h("span");
  let before = new Map();
  let busy = false;

  const past = h("div");
  fill(detail,
    panel(userId, null, person),
    panel("Slate", facts, took, grid),
    comparing(userId, leaving.signal),
    panel("History", null, past));
  fill(person, loading("the history"));
  fill(grid, h("li", {}, loading("the slate")));

  async function act(action, itemId, card) {
    if (busy || !mayWrite()) return;
    busy = true;
    card.classList.add("sent");
    const began = performance.now();
    try {
      const token = await send({ user_id: userId, item_id: itemId, action });
      const stored = performance.now();
      const found = await asked(`&after=${token.partition}:${token.offset}`);
      const done = performance.now();
      const changed = paint(found.slate, await itemsOf(found.slate.items.map((item) => item.item_id)));
      fill(took, h("b", {}, ms(done - began)), ` from the ${action} to a new slate: `, `stored in ${ms(stored - began)}, `,
        `applied ${ms(found.waited_ms)} later, answered in ${ms(done - stored)}. ${changed} of ${found.slate.items.length} places changed.`);
      await history();
    } catch (error) {
      tell(error.message);
    } finally {
      busy = false;
      card.classList.remove("sent");
    }
  }

  const asked = (more = "") => get(`/v1/explain/${id(userId)}?k=${K}${more}`, leaving.signal);

  /** Show a slate; returns how many places differ from the one before. */
  function paint(slate, known) {
    const old = new Map([...grid.children].filter((card) => card.dataset.item).map((card) => [card.dataset.item, card.getBoundingClientRect()]));
    const best = Math.max(...slate.items.map((item) => item.score), 1e-9);
    let changed = 0;
    const cards = slate.items.map((entry, place) => {
      const moved = before.size ? before.get(entry.item_id) : place;
      if (moved !== place) changed += 1;
      return cardOf(entry, place, known.get(entry.item_id), best, moved, act);
    });
    fill(grid, cards.length ? cards : h("li", {}, state("empty", "An empty slate", "Nothing in the catalogue may be shown to this user.")));
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches)
      for (const card of cards) {
        const from = old.get(card.dataset.item);
        const to = card.getBoundingClientRect();
        if (from && (from.left !== to.left || from.top !== to.top))
          card.animate([{ transform: `translate(${from.left - to.left}px, ${from.top - to.top}px)` }, { transform: "none" }], { duration: 350, easing: "ease-out" });
        else if (!from && old.size) card.animate([{ opacity: 0, transform: "scale(.96)" }, { opacity: 1, transform: "none" }], { duration: 350 });
      }
    before = new Map(slate.items.map((item, place) => [item.item_id, place]));
    fill(facts, slate.release === "none" ? "no release: the light score orders" : `release ${slate.release}`,
      slate.degraded.length ? ` · degraded: ${slate.degraded.join(", ")}` : "",
      " · ", h("a", { href: `#/why/${id(userId)}` }, "why these?"));
    return changed;
  }

  async function history() {
    try {
      const found = await get(`/v1/users/${id(userId)}`, leaving.signal);
      const known = await itemsOf(found.recent.map((event) => event.item_id), leaving.signal);
      fill(person, summaryOf(found), h("div", { class: "row below" }, eraser(), h("a", { class: "button", href: `#/pipeline/${id(userId)}` }, "Try rules")));
      fill(past, historyOf(found, known));
    } catch (error) {
      if (error.name === "AbortError") return;
      fill(past, h("p", { class: "quiet-text" }, "None."));
      fill(person, error.status === 404
        ? state("empty", "No events yet", "This user is not known. Their slate is that of a newcomer: popular and fresh items.")
        : state("error", "The history cannot be read", error.message));
    }
  }

  const eraser = () => action("Erase this user", mayWrite(), async () => {
    if (!(await confirmed("Erase this user?", ["Their history, affinities and seen items are removed from every worker, its changelog, Redis and later trainings. This cannot be taken back.", "Records of theirs that could not be used stay raw in the dead letters for 30 days; replaying skips them."], "Erase", { word: userId }))) return;
    const { token } = await change("DELETE", `/v1/users/${id(userId)}`);
    const found = await asked(`&after=${token.partition}:${token.offset}`);
    paint(found.slate, await itemsOf(found.slate.items.map((item) => item.item_id)));
    await history();
    tell("The user is erased.");
  }, "danger quiet");

  async function slate() {
    try {
      const found = await asked();
      paint(found.slate, await itemsOf(found.slate.items.map((item) => item.item_id), leaving.signal));
    } catch (error) {
      if (error.name !== "AbortError") fill(grid, h("li", {}, state("error", "There is no slate", error.message)));
    }
  }
  history();
  slate();
  return {
    token() {
      slate();
      history();
    },
    close: () => leaving.abort(),
  };
}

/** The slate of the serving release beside that of another one. Nothing is promoted, and nothing counts as shown. */
function comparing(userId, signal) {
  const found = h("div", { "aria-live": "polite" });
  const choice = h("select", { "aria-label": "Release to compare with", onchange: compare });
  const list = panel("Compare releases", "this user's slate as another release would make it, from the same events; nothing is promoted", h("div", { class: "row" }, choice), found);
  let asked = 0;

  async function compare() {
    const turn = (asked += 1);
    const name = choice.value;
    if (!name) {
      fill(found);
      return;
    }
    fill(found, loading(`the slate of ${name}`));
    const ask = (more) => get(`/v1/explain/${id(userId)}?k=${K}${more}`, signal);
    const until = performance.now() + LONGEST_MS;
    /** The slate of the other release; while the worker loads it, it is asked again. */
    async function once() {
      for (;;) {
        try {
          return (await ask(`&release=${id(name)}`)).slate;
        } catch (error) {
          if (error.code !== "busy" || turn !== asked || performance.now() > until) throw error;
          fill(found, loading(`the release ${name}`));
          await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
        }
      }
    }
    try {
      const other = await once();
      const serving = (await ask("")).slate;
      const known = await itemsOf([...serving.items, ...other.items].map((item) => item.item_id), signal);
      const names = [`${named(serving.release)} (serving)`, named(other.release)];
      if (turn === asked) fill(found, h("p", { class: "note" }, shared([serving, other])), lacking(names, [serving, other]), sideBySide(names, [serving, other], known));
    } catch (error) {
      if (error.name !== "AbortError" && turn === asked) fill(found, state("error", "There is no slate of this release", error.message));
    }
  }

  get("/v1/releases", signal).then(({ serving, releases }) => {
    const others = [...releases.map((release) => release.release), "none"].filter((name) => name !== serving);
    fill(choice, h("option", { value: "" }, others.length ? "choose a release" : "there is no other release"), others.map((name) => h("option", { value: name }, named(name))));
  }, () => fill(choice, h("option", { value: "" }, "the releases cannot be read")));
  return list;
}

const named = (release) => (release === "none" ? "without a release" : release);

function cardOf(entry, place, item, best, moved, act) {
  const title = item?.title || entry.item_id;
  const main = Object.entries(entry.explanation?.sources ?? {}).map(([name]) => name);
  const mark = moved === undefined ? h("em", { class: "mark new" }, "new")
    : moved > place ? h("em", { class: "mark up" }, `↑ ${moved - place}`)
      : moved < place ? h("em", { class: "mark down" }, `↓ ${place - moved}`) : null;
  const card = h("li", { class: `card${moved === undefined ? " fresh" : ""}`, "data-item": entry.item_id },
    h("a", { class: "cover", href: `#/items/${id(entry.item_id)}`, "aria-label": title }, picture(item, entry.item_id)),
    h("span", { class: "place" }, place + 1), mark,
    h("div", { class: "card-text" },
      h("h3", { title }, title),
      h("p", { class: "score" }, h("span", { class: "meter" }, h("span", { style: { width: `${Math.max(0, entry.score / best) * 100}%` } })),
        h("span", { "data-score": entry.score }, number(entry.score))),
      h("p", { class: "reason" }, main.slice(0, 2).map(reasonOf).join("; ")),
      h("p", { class: "tags" }, main.map((name) => sourceTag(name)))));
  const buttons = ACTIONS.map(([action, name]) =>
    h("button", { type: "button", disabled: !mayWrite(), title: mayWrite() ? `${name} ${title}` : "Read only: enter the token first", "aria-label": `${name} ${title}`, onclick: () => act(action, entry.item_id, card) }, icon(action), name));
  card.append(h("div", { class: "actions" }, buttons));
  return card;
}

function summaryOf(found) {
  const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  return h("dl", { class: "facts-row" },
      fact("Events", number(found.events)),
      fact("Seen items", number(found.seen)),
      found.seen_set ? fact("Hidden by mistake", h("span", { title: `Of the items that this user has not seen, so many are hidden: ${found.seen_set.tiers} filter tiers, ${number(found.seen_set.bytes)} bytes` }, found.seen_set.false_positive_rate < 1e-5 ? "< 0.001 %" : percent(found.seen_set.false_positive_rate))) : null,
      ...Object.entries(found.counts).map(([action, n]) => fact(action, number(n))),
      fact("First event", moment(found.first_event_time)),
      fact("Newest event", moment(found.last_event_time)),
      fact("Session", found.session.events ? `${number(found.session.events)} event${found.session.events === 1 ? "" : "s"}` : "none"));
}

function historyOf(found, known) {
  const most = Math.max(...Object.values(found.affinities), 1e-9);
  const affinities = Object.entries(found.affinities).filter(([, weight]) => weight >= most / 100);
  return h("div", { class: "columns" },
      h("div", {}, h("h3", {}, "Newest events"), h("ol", { class: "timeline" }, found.recent.slice(0, 12).map((event) => eventOf(event, known)))),
      h("div", {}, h("h3", {}, "Affinities"), affinities.length
        ? h("ul", { class: "bars" }, affinities.slice(0, 10).map(([name, weight]) => bar(name, weight / most, number(weight))))
        : h("p", { class: "quiet-text" }, "None: the items have no categories.")));
}

function eventOf(event, known) {
  const item = known.get(event.item_id);
  const name = item?.title || event.item_id || "unknown item";
  const age = (Date.now() - event.event_time) / 1000;
  return h("li", {}, h("a", { href: event.item_id ? `#/items/${id(event.item_id)}` : "#/items", title: name }, picture(item, event.item_id ?? "?"),
    h("span", { class: "event" }, h("b", {}, name), h("small", {}, event.action, event.value === null ? "" : ` ${number(event.value)}`, " · ",
      age >= 0 ? `${duration(age)} ago` : moment(event.event_time)))));
}
