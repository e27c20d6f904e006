// Data: what a run's training reads, in figures, and documents with what the loss covers.

import { Fault, get } from "./api.js";
import { field, h, replace } from "./dom.js";
import { figure, t } from "./i18n.js";
import { hasData } from "./runs.js";

const whole = (n) => n.toLocaleString("en");
const percent = (share) => `${figure(100 * share)} %`;
const half = (lengths) => (lengths.percentiles ? whole(lengths.percentiles[50]) : "–");
const known = (n) => (n === null ? "–" : whole(n));
const SCRIPTS = ["hanzi", "latin", "digits", "kana"];

function table(titles, rows) {
  return h("div", { class: "scroll", tabindex: 0 }, h("table", {}, h("thead", {}, h("tr", {}, titles.map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, rows.map(([name, ...cells]) => h("tr", {}, h("th", { scope: "row" }, name), cells.map((cell) => h("td", {}, cell)))))));
}

const section = (name, ...inside) => h("section", { class: "card" }, h("h2", {}, name), inside);

function overview(corpora) {
  return table(["corpus", "kind", "documents", "heldOut", "allTokens", "share", "charsPerToken", "inLoss"].map((key) => t(key)),
    corpora.map(([label, c]) => [label, c.kind, whole(c.documents), whole(c.splits.val.documents), whole(c.tokens), percent(c.share), figure(c.characters_per_token), percent(c.learned)]));
}

// How many documents have so many tokens, a bar for each power of two.
function lengths([label, { lengths: { histogram, most, percentiles } }]) {
  if (!histogram.length) return null;
  const longest = Math.max(...histogram.map(([, , count]) => count));
  return [h("h3", {}, label), h("p", { class: "muted" }, t("lengthsWhy", { half: whole(percentiles[50]), longest: whole(most) })),
    h("div", { class: "bars" }, histogram.map(([from, to, count]) => [h("span", {}, from === to ? whole(from) : `${whole(from)} – ${whole(to)}`),
      h("div", { class: "track" }, h("i", { style: { width: `${(100 * count) / longest}%` } })), h("span", {}, whole(count))]))];
}

function scripts(corpora) {
  const share = (c, name) => c.scripts[name]?.share ?? 0;
  return table([t("corpus"), ...SCRIPTS.map((name) => t(name)), t("others")], corpora.map(([label, c]) => {
    const shares = SCRIPTS.map((name) => share(c, name));
    return [label, ...shares.map(percent), percent(Math.max(0, 1 - shares.reduce((a, b) => a + b)))];
  }));
}

function duplicates(corpora) {
  return table([t("corpus"), t("thereWhy"), t("share"), t("elsewhere"), t("leaked")],
    corpora.map(([label, { duplicates: d }]) => [label, whole(d.documents), percent(d.share), whole(d.elsewhere), whole(d.held_out_in_training)]));
}

const TOLD = ["with_system", "with_tools", "with_calls", "with_thinking", "answers_not_learned"];
const chats = (found) => table([t("corpus"), t("answersMean"), t("answersMost"), ...TOLD.map((key) => t(key))],
  found.map(([label, { chats: c }]) => [label, figure(c.answers.mean), whole(c.answers.most), ...TOLD.map((key) => known(c[key]))]));
const pairs = (found) => table([t("corpus"), t("pairs"), t("promptHalf"), t("chosenHalf"), t("rejectedHalf"), t("chosenLonger")],
  found.map(([label, { pairs: p }]) => [label, whole(p.pairs), half(p.prompt), half(p.chosen), half(p.rejected), percent(p.chosen_longer)]));
const rated = (found) => table([t("corpus"), t("good"), t("badOnes"), t("promptHalf"), t("goodHalf"), t("badHalf")],
  found.map(([label, { rated: r }]) => [label, whole(r.good), whole(r.bad), half(r.prompt), half(r.good_answer), half(r.bad_answer)]));

function figures({ documents, tokens, corpora }) {
  const all = Object.entries(corpora), having = (key) => all.filter(([, c]) => c[key]);
  const some = (key, name, draw) => having(key).length > 0 && section(t(name), draw(having(key)));
  return [h("section", { class: "card" }, h("p", { class: "muted" }, t("counted", { documents: whole(documents), tokens: whole(tokens) })), overview(all)),
    section(t("lengths"), all.map(lengths)), section(t("scripts"), scripts(all)), section(t("there"), duplicates(all)),
    some("chats", "chatsWith", chats), some("pairs", "pairs", pairs), some("rated", "rated", rated)];
}

const piece = ([text, learned]) => (learned ? h("mark", {}, text) : text);

function document_({ corpus, split, document, tokens, kind, parts }) {
  return h("article", { class: "card" }, h("h3", {}, t("document", { corpus, split: t(split), n: whole(document), tokens: whole(tokens) })),
    parts.map((part) => [part.title && h("p", { class: "muted" }, t(part.title)),
      kind === "text" ? h("p", { class: "document learned" }, part.pieces.map(([text]) => text)) : h("p", { class: "document" }, part.pieces.map(piece)),
      part.left > 0 && h("p", { class: "muted" }, t("moreTokens", { n: whole(part.left) }))]));
}

// Random documents, drawn anew whenever a choice changes.
function documents(id, corpora) {
  const place = h("div", { "aria-live": "polite" });
  let seed = 0, turn = 0;
  const select = (values, name) => h("select", { onchange: look }, h("option", { value: "" }, t("allOf")), values.map((value) => h("option", { value }, name(value))));
  const number = () => h("input", { type: "number", min: 0, step: 1, onchange: look });
  const corpus = select(corpora, (label) => label), split = select(["train", "val"], (name) => t(name)), least = number(), most = number();

  async function look() {
    const mine = ++turn;
    const asked = { id, corpus: corpus.value, split: split.value, least: Math.trunc(least.value) || 0, most: Math.trunc(most.value) || 0, seed };
    try {
      const found = await get(`/api/documents?${new URLSearchParams(asked)}`);
      if (mine === turn) replace(place, found.documents.length ? found.documents.map(document_) : h("p", { class: "muted" }, t("noneFits")));
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      if (mine === turn) replace(place, h("p", { class: "fault", role: "alert" }, error.message));
    }
  }

  const others = h("button", { type: "button", class: "main", onclick: () => (seed++, look()) }, t("otherOnes"));
  return { look, element: h("section", {}, h("div", { class: "card" }, h("h2", {}, t("someDocuments")),
    h("div", { class: "row" }, field(t("corpus"), corpus), field(t("split"), split), field(t("least"), least), field(t("most"), most), others)), place) };
}

export async function show(main, about, path) {
  const runs = (await get("/api/runs")).runs.filter(hasData);
  const id = path.join("/") || runs[0]?.id;
  if (!id) return void replace(main, h("h1", {}, t("data")), h("p", { class: "why" }, t("noData")));
  const names = [...new Set([id, ...runs.map((run) => run.id)])];
  const place = h("div", {}, h("p", { class: "muted", role: "status" }, t("counting")));
  replace(main, h("h1", {}, t("data")), h("p", { class: "why" }, t("dataWhy")),
    field(t("run"), h("select", { onchange: (event) => (location.hash = `#/data/${event.target.value}`) }, names.map((name) => h("option", { value: name, selected: name === id }, name)))), place);
  const found = await get(`/api/data?${new URLSearchParams({ id })}`).catch((error) => error);
  if (found instanceof Error) {
    if (!(found instanceof Fault)) throw found;
    return void replace(place, h("p", { class: "fault", role: "alert" }, found.message));
  }
  const some = documents(id, Object.keys(found.corpora));
  replace(place, figures(found), some.element);
  await some.look();
}
