// Two or three models answer the same questions side by side; votes are preference data.

import { answer, Fault, joined } from "./api.js";
import { add, composes, field, h, replace, save, say } from "./dom.js";
import { t } from "./i18n.js";
import { button, figuresOf, paced, showAnswer } from "./message.js";
import { openSettings } from "./sampling.js";
import { keep, sampling, settings } from "./settings.js";
import { begun, content, fitting, hasRest, seen } from "./sight.js";
import { newId, votes } from "./store.js";

const LETTERS = "ABC";

// What is the same for all of them.
function shared([first, ...others]) {
  return Object.fromEntries(Object.entries(first).filter(([name, value]) => others.every((other) => other[name] === value)));
}

export async function show(main, about) {
  let turns = []; // {question, answers: [{model, text, …, body, foot}], voted}
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
    stopping = null;
    send.textContent = t("send");
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
    const last = turns.at(-1);
    const turn = { question, answers: columns.map(({ model, body: column }) => {
      const node = { role: "assistant", model, text: "", body: h("div", {}), foot: h("footer", { class: "muted" }) };
      column.append(h("div", { class: "turn" }, h("p", { class: "muted" }, question), node.body, node.foot));
      return node;
    }) };
    turns.push(turn);
    last?.answers.forEach((_, i) => draw(last, i));
    return write(turn, columns.map((_, i) => i));
  }

  // The answers of these columns, or the rest of them.
  async function write(turn, which) {
    const mine = stopping = new AbortController();
    send.textContent = t("stop");
    replace(ballot);
    say(t("answering"));
    turn.answers.forEach((_, i) => draw(turn, i));
    await Promise.all(which.map((i) => one(turn, i, mine.signal)));
    if (stopping !== mine || !grid.isConnected) return;
    stopping = null;
    send.textContent = t("send");
    say(t("answered"));
    turn.answers.forEach((_, i) => draw(turn, i));
    if (!turn.voted && turn.answers.every((a) => a.text && !a.fault)) vote(turn);
  }

  const told = () => (settings.system.trim() ? [{ role: "system", content: settings.system }] : []);

  // What a column's model sees up to a question.
  const before = (turn, i) => seen(about, columns[i].model, [...turns.slice(0, turns.indexOf(turn)).flatMap((past) => [
    { role: "user", text: past.question }, past.answers[i]]), { role: "user", text: turn.question }]);

  function draw(turn, i) {
    const node = turn.answers[i], goOn = !stopping && turn === turns.at(-1) && hasRest(about, node, before(turn, i).length === 1);
    showAnswer(node.body, node, !stopping);
    if (node.fault) node.body.append(h("p", { class: "fault", role: "alert" }, node.fault));
    add(replace(node.foot), [goOn && button(t("goOn"), () => write(turn, [i])), figuresOf(node)]);
  }

  async function one(turn, i, signal) {
    const node = turn.answers[i], start = node.text || node.thinking ? { ...node } : null;
    Object.assign(node, { finish: null, fault: null });
    const pace = paced(() => draw(turn, i));
    try {
      const rest = start ? [begun(node)] : [];
      const { messages, forgotten } = await fitting(node.model, told(), [...before(turn, i).map(content), ...rest], signal);
      Object.assign(node, { prompt: start ? node.prompt : messages, forgotten });
      await answer({ model: node.model, messages, ...sampling(about.sampling[node.model]) }, signal, (found) => {
        Object.assign(node, start ? joined(start, found) : found);
        pace.soon();
      });
    } catch (error) {
      if (error.name === "AbortError") node.finish = "stopped";
      else node.fault = error instanceof Fault ? error.message : t("unreachable");
    }
    pace.stop();
    draw(turn, i);
  }

  function vote(turn) {
    const cast = async (best) => {
      turn.voted = true;
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
    const pairs = preferences(all);
    replace(tally, h("span", { class: "muted" }, t("votes", { n: all.length })),
      [...wins].map(([model, n]) => h("span", { class: "chip" }, t("wins", { model, n }))),
      h("button", { type: "button", disabled: !pairs.length, onclick: () => save("votes.jsonl", pairs.join(""), "application/jsonl") }, t("saveVotes", { n: pairs.length })));
  }

  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !composes(event) && !stopping) ask(event);
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

// Each answer that lost against the best one of its vote: a preference pair, as DPO takes them; lines.
export function preferences(all) {
  return all.filter((vote) => Number.isInteger(vote.best)).flatMap((vote) => {
    const chosen = vote.answers[vote.best];
    return vote.answers.filter((a) => a !== chosen && a.text !== chosen.text).map((a) => `${JSON.stringify({
      prompt: chosen.prompt, chosen: [{ role: "assistant", content: chosen.text }], rejected: [{ role: "assistant", content: a.text }],
      chosen_model: chosen.model, rejected_model: a.model, time: new Date(vote.time).toISOString() })}\n`);
  });
}
