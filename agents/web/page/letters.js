// Dead letters: records that could not be used, with their reasons, and their replay.
import { change, get, id } from "./api.js";
import { action, confirmed, fill, h, loading, panel, state, tell } from "./dom.js";
import { moment, number } from "./format.js";

const SHOWN = 50;

export function letterPanel(signal) {
  const list = h("div");
  const codes = h("div", { class: "row wrap" });
  const element = panel("Dead letters", "the newest, as they were sent; replay them once the cause is fixed", codes, list);
  let chosen = "";

  async function read(may) {
    if (!may) {
      fill(codes);
      fill(list, h("p", { class: "quiet-text" }, "They hold what others sent, so they are shown with the token only."));
      return;
    }
    fill(list, loading("the dead letters"));
    try {
      const found = await get(`/v1/letters?limit=${SHOWN}${chosen ? `&code=${id(chosen)}` : ""}`, signal);
      const counts = Object.entries(found.codes);
      fill(codes, action("Refresh", true, () => read(true)),
        chosen ? [action("All reasons", true, () => choose("")), action(`Replay all ${chosen}`, true, replayAll, "primary")]
          : counts.map(([code, n]) => action(`${code} ${number(n)}`, true, () => choose(code))));
      fill(list, found.letters.length ? h("ul", { class: "letters" }, found.letters.map(letterOf)) : state("empty", "No dead letters", "Every record could be used."));
    } catch (error) {
      if (error.name !== "AbortError") fill(list, state("error", "The dead letters cannot be read", error.message));
    }
  }

  function choose(code) {
    chosen = code;
    return read(true);
  }

  async function replayAll() {
    if (!(await confirmed(`Replay all ${chosen}?`, ["The newest records with this reason are produced again to their topics. Events that were applied meanwhile are dropped as duplicates."], "Replay", { kind: "primary" }))) return;
    report(await change("POST", "/v1/letters/replay", { code: chosen }));
    await read(true);
  }

  const letterOf = (letter) =>
    h("li", {}, h("details", {}, h("summary", {}, h("span", { class: "tag code" }, letter.code), h("b", {}, letter.key ?? "no key"), h("small", {}, moment(letter.timestamp))),
      h("p", {}, letter.reason), h("p", { class: "note" }, letter.topic ? `letter ${letter.letter}, from ${letter.topic}-${letter.partition} at offset ${letter.offset}, ${number(letter.bytes)} bytes` : `letter ${letter.letter}`),
      letter.value ? h("pre", { tabindex: "0", "aria-label": "Value" }, letter.value) : null,
      letter.topic ? action("Replay", true, async () => report(await change("POST", "/v1/letters/replay", { letters: [letter.letter] }))) : null));

  return { element, read };
}

function report(outcome) {
  const rest = [["superseded", "not sent, because a newer record followed"], ["cut", "too large to be kept whole"], ["unreadable", "no dead letters"], ["erased", "not sent, because their users were erased later"], ["failed", "not acknowledged by Kafka: try again"]];
  tell([`${number(outcome.sent)} produced again`, ...rest.filter(([key]) => outcome[key]).map(([key, text]) => `${number(outcome[key])} ${text}`)].join(", "));
}
