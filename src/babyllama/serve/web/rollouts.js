// The answers that a training drew and learned from: by step, prompt and token. One page of the file at a time.

import { get } from "./api.js";
import { add, field, h, replace } from "./dom.js";
import { figure, t } from "./i18n.js";

const MOST = 45; // percent of colour, which text stays readable on
const signed = (value) => (value > 0 ? "+" : "") + figure(value);

// Positive and negative advantages have colours of their own, full at 2; a log-probability is the stronger the less likely it was.
function shade(by, advantage, logprob) {
  if (by === "logprobs") return { "--share": `${logprob == null ? 0 : Math.min(MOST, -6 * logprob)}%`, "--tint": "var(--heat)" };
  return { "--share": `${Math.min(MOST, (Math.abs(advantage ?? 0) * MOST) / 2)}%`, "--tint": advantage < 0 ? "var(--heat)" : "var(--first)" };
}

const visible = (piece) => piece.replaceAll("\n", "↵\n");

function tokens(answer, by) {
  if (!answer.pieces) return h("span", { style: shade(by, answer.advantage, null) }, answer.answer);
  const several = answer.advantages ?? answer.logprobs; // null where a tool wrote
  return answer.pieces.map((piece, i) => {
    const given = several && several[i] === null;
    const advantage = answer.advantages ? answer.advantages[i] : answer.advantage, logprob = answer.logprobs?.[i];
    const said = given ? [t("byTool")] : [advantage != null && `${t("advantage")} ${signed(advantage)}`, logprob != null && t("logprob", { n: figure(logprob) })];
    return h("span", { class: given ? "given" : "", title: said.filter(Boolean).join(" · "), style: given ? {} : shade(by, advantage, logprob) }, visible(piece));
  });
}

function one(answer, by) {
  const { reward, parts, advantage, ended, calls, answered, fault } = answer, judged = Object.entries(parts ?? {}); // distillation judges none
  return h("li", {}, h("p", { class: "drawn" }, tokens(answer, by)), h("p", { class: "note" },
    [judged.length && `${t("reward")} ${figure(reward ?? NaN)}`, ...judged.map(([name, value]) => `${name} ${figure(value)}`), judged.length && `${t("advantage")} ${signed(advantage)}`,
      !ended && t("cut"), calls > 0 && t("calls", { calls, answered }), fault].filter(Boolean).join(" · ")));
}

// What is shown is `kept.at`, a step, or the newest rollout where that is undefined; `look` brings it up to date.
export async function rollouts(id, kept) {
  let found = null, answers = [], asked = 0;
  const list = h("div", { class: "groups" }), note = h("p", { class: "muted" });
  const step = h("input", { type: "range", step: 1, onchange: () => go(Number(step.value)), oninput: () => (number.textContent = step.value) });
  const number = h("output", {});
  const button = (name, to) => h("button", { type: "button", onclick: () => go(to()) }, t(name));
  const earlier = button("earlier", () => found.before), later = button("later", () => found.after), newest = button("newest", () => undefined);
  const by = h("select", { onchange: () => draw((kept.by = by.value)) },
    ["advantage", "logprobs"].map((name) => h("option", { value: name, selected: name === kept.by }, t(name))));
  const more = h("button", { type: "button", onclick: next }, t("more"));

  const ask = (where) => get(`/api/rollouts?${new URLSearchParams({ id, ...where })}`);

  async function go(to) {
    kept.at = to;
    const mine = ++asked, page = await ask(to === undefined ? {} : { step: to });
    if (mine !== asked) return;
    found = page;
    answers = page.answers;
    draw();
  }

  async function next() {
    const mine = ++asked, page = await ask({ at: found.more });
    if (mine !== asked) return;
    found.more = page.more;
    answers.push(...page.answers);
    draw();
  }

  function controls() {
    Object.assign(step, { min: found.first ?? 0, max: found.last ?? 0, value: found.step ?? 0 });
    number.textContent = found.step ?? "–";
    earlier.disabled = found.before === null;
    later.disabled = found.after === null;
    newest.disabled = kept.at === undefined;
    more.hidden = found.more === null;
  }

  function draw() {
    controls();
    note.textContent = by.value === "logprobs" && answers.length && !answers.some((answer) => answer.logprobs) ? t("noLogprobs") : "";
    replace(list);
    for (let i = 0; i < answers.length; ) {
      const begin = i, { prompt, reference } = answers[i];
      while (i < answers.length && answers[i].prompt === prompt && answers[i].reference === reference) i++;
      add(list, [h("section", {}, h("h3", { class: "plain" }, prompt), h("p", { class: "muted plain" }, `${t("reference")}: ${reference}`),
        h("ul", {}, answers.slice(begin, i).map((answer) => one(answer, by.value))))]);
    }
  }

  // The newest one follows the training; of another only what there is beside it changes.
  async function look() {
    const mine = asked, page = await ask(kept.at === undefined ? {} : { step: kept.at }).catch(() => null);
    if (!page || mine !== asked) return;
    const other = page.step !== found.step;
    found = { ...page, more: other ? page.more : found.more };
    if (other) draw((answers = page.answers));
    else controls();
  }

  await go(kept.at);
  return { look, element: h("section", { class: "card rollouts" }, h("h2", {}, t("rollouts")), h("p", { class: "why" }, t("rolloutsWhy")),
    h("div", { class: "row" }, field(t("atStep"), h("span", { class: "row" }, step, number)), earlier, later, newest, field(t("colourBy"), by)), note, list, more) };
}
