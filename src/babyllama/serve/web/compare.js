// Two or three models answer the same questions side by side; votes are preference data.

import { answer, Fault } from "./api.js";
import { field, h, replace, save, say } from "./dom.js";
import { t } from "./i18n.js";
import { figuresOf, paced, showAnswer } from "./message.js";
import { openSettings } from "./sampling.js";
import { keep, sampling, settings } from "./settings.js";
import { content, fitting, seen } from "./sight.js";
import { newId, votes } from "./store.js";

const LETTERS = "ABC";

// What is the same for all of them.
function shared([first, ...others]) {
  return Object.fromEntries(Object.entries(first).filter(([name, value]) => others.every((other) => other[name] === value)));
}

export async function show(main, about) {
  let turns = []; // {question, answers: [{model, text, …}]}
  let stopping = null;
  let columns = []; // {model, body}
  let blind = false;
  const chosen = about.models.filter((name) => settings.compare.includes(name)).slice(0, 3);
  while (chosen.length < 2) chosen.push(about.models.find((name) => !chosen.includes(name)) ?? about.models[0]);
  const pickers = [0, 1, 2].map((i) => h("select", { onchange: pick }, i === 2 && h("option", { value: "" }, t("third")),
    about.models.map((name) => h("option", { value: name, selected: chosen[i] === name }, name))));
  const input = h("textarea", { rows: 2, placeholder: t("askHere"), "aria-label": t("ask") });
  const send = h("button", { class: "main", type: "submit" }, t("send"));
  const grid = h("div", { class: "columns" });
  const ballot = h("div", { class: "row", role: "group" });
  const tally = h("div", { class: "row" });
  const hide = h("input", { type: "checkbox", onchange: begin });

  function pick() {
    keep({ compare: pickers.map((p) => p.value).filter(Boolean) });
    begin();
  }

  // New columns; hidden names come in a random order.
  function begin() {
    stopping?.abort();
    turns = [];
    blind = hide.checked;
    const models = pickers.map((p) => p.value).filter(Boolean);
    if (blind) models.sort(() => Math.random() - 0.5);
    columns = models.map((model) => ({ model, body: h("div", { class: "body" }), name: h("h2", {}) }));
    replace(grid, columns.map(({ body, name }) => h("section", { class: "card" }, name, body)));
    reveal(!blind);
    replace(ballot);
  }

  function reveal(yes) {
    columns.forEach(({ model, name }, i) => (name.textContent = yes ? `${LETTERS[i]} · ${model}` : t("slot", { n: LETTERS[i] })));
  }

  async function ask(event) {
    event?.preventDefault();
    if (stopping) return stopping.abort();
    const question = input.value.trim();
    if (!question) return undefined;
    input.value = "";
    if (!columns.length) begin();
    const turn = { question, answers: [] };
    turns.push(turn);
    stopping = new AbortController();
    send.textContent = t("stop");
    replace(ballot);
    say(t("answering"));
    await Promise.all(columns.map((column, i) => one(column, i, turn, stopping.signal)));
    stopping = null;
    if (!grid.isConnected) return undefined;
    send.textContent = t("send");
    say(t("answered"));
    if (turn.answers.every((a) => a.text && !a.fault)) vote(turn);
    return undefined;
  }

  const told = () => (settings.system.trim() ? [{ role: "system", content: settings.system }] : []);

  // What a column's model sees up to a question.
  const before = (turn, i) => seen(about, columns[i].model, [...turns.slice(0, turns.indexOf(turn)).flatMap((past) => [
    { role: "user", text: past.question }, { ...past.answers[i], role: "assistant" }]), { role: "user", text: turn.question }]).map(content);

  async function one(column, i, turn, signal) {
    const node = (turn.answers[i] = { model: column.model, text: "" });
    const body = h("div", {});
    const figures = h("footer", { class: "muted" });
    column.body.append(h("div", { class: "turn" }, h("p", { class: "muted" }, turn.question), body, figures));
    const draw = (done) => {
      showAnswer(body, node, done);
      figures.textContent = figuresOf(node);
    };
    const pace = paced(() => draw(false));
    try {
      const { messages, forgotten } = await fitting(column.model, told(), before(turn, i), signal);
      Object.assign(node, { prompt: messages, forgotten });
      await answer({ model: column.model, messages, ...sampling(about.sampling[column.model]) }, signal, (found) => {
        Object.assign(node, found);
        pace.soon();
      });
    } catch (error) {
      if (error.name === "AbortError") node.finish = "stopped";
      else node.fault = error instanceof Fault ? error.message : t("unreachable");
    }
    pace.stop();
    draw(true);
    if (node.fault) body.append(h("p", { class: "fault", role: "alert" }, node.fault));
  }

  function vote(turn) {
    const cast = async (best) => {
      await votes.put({ id: newId(), time: Date.now(), best, blind,
        answers: turn.answers.map(({ model, text, prompt }) => ({ model, text, prompt })) });
      replace(ballot, h("span", {}, t("voted")));
      reveal(true);
      say(t("voted"));
      count();
    };
    replace(ballot, columns.map((_, i) => h("button", { type: "button", onclick: () => cast(i) }, `${LETTERS[i]}: ${t("better")}`)),
      h("button", { type: "button", onclick: () => cast("tie") }, t("tie")), h("button", { type: "button", onclick: () => cast("bad") }, t("bad")));
  }

  async function count() {
    const all = await votes.all().catch(() => []);
    const wins = new Map();
    for (const vote of all) if (Number.isInteger(vote.best)) {
      const { model } = vote.answers[vote.best];
      wins.set(model, (wins.get(model) ?? 0) + 1);
    }
    replace(tally, h("span", { class: "muted" }, t("votes", { n: all.length })),
      [...wins].map(([model, n]) => h("span", { class: "chip" }, t("wins", { model, n }))),
      h("button", { type: "button", disabled: !all.length, onclick: () => save("votes.jsonl", preferences(all), "application/jsonl") }, t("saveVotes")));
  }

  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !stopping) ask(event);
  });
  replace(main, h("h1", {}, t("compare")), h("p", { class: "why" }, t("compareWhy")),
    about.models.length < 2 && h("p", { class: "fault" }, t("compareSame")),
    h("div", { class: "row" }, pickers.map((p, i) => field(t("slot", { n: LETTERS[i] }), p)),
      h("label", {}, hide, ` ${t("blind")}`),
      h("button", { type: "button", class: "icon", onclick: () => openSettings(shared(pickers.map((p) => about.sampling[p.value] ?? {}))) }, `⚙ ${t("settings")}`),
      h("button", { type: "button", class: "icon", onclick: begin }, t("startAnew"))),
    h("form", { class: "composer", onsubmit: ask }, input, send), ballot, grid, tally);
  begin();
  await count();
  return () => stopping?.abort();
}

// Each answer that lost against the best one of its vote: a preference pair, as DPO takes them.
export function preferences(all) {
  const lines = all.filter((vote) => Number.isInteger(vote.best)).flatMap((vote) => {
    const chosen = vote.answers[vote.best];
    return vote.answers.filter((a) => a !== chosen && a.text !== chosen.text).map((a) => JSON.stringify({
      prompt: chosen.prompt, chosen: [{ role: "assistant", content: chosen.text }], rejected: [{ role: "assistant", content: a.text }],
      chosen_model: chosen.model, rejected_model: a.model, time: new Date(vote.time).toISOString() }));
  });
  return lines.map((line) => `${line}\n`).join("");
}
