// Look inside: one text, one model, six views of what is computed between them.

import { Fault, get, post } from "./api.js";
import { dialog, field, h, replace } from "./dom.js";
import { t } from "./i18n.js";
import { keep, settings } from "./settings.js";
import { VIEWS } from "./views.js";

const KEPT = "babyllama.inspect"; // what an answer's button left here

function asked() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT)) ?? {};
  } catch {
    return {};
  }
}

async function showCode(view) {
  const { file, line, text } = await get(`/api/source?${new URLSearchParams({ view })}`);
  const lines = text.split("\n").map((words, i) => h("span", { class: i + 1 === line ? "here" : "" }, words));
  const shown = dialog(`${file}:${line}`, t("close"), h("pre", { class: "scroll", tabindex: 0 }, h("code", { class: "source" }, lines)));
  shown.classList.add("wide");
  lines[line - 1].scrollIntoView({ block: "center" });
}

export async function show(main, about, [name]) {
  const view = name in VIEWS ? name : "text";
  const { draw, controls = () => [], needsText = true } = VIEWS[view];
  const before = asked();
  let messages = before.messages ?? null;
  const model = h("select", { onchange: () => (keep({ model: model.value }), look()) },
    about.models.map((m) => h("option", { value: m, selected: m === (before.model ?? settings.model) }, m)));
  const text = h("textarea", { rows: 3, value: before.text ?? (messages ? messages.map((m) => `${m.role}: ${m.content}`).join("\n") : "今天天气很好，我们去公园散步。"),
    oninput: () => (messages = null) });
  const chat = h("input", { type: "checkbox", checked: before.chat ?? false });
  const result = h("div", { class: "card", "aria-live": "polite" });
  const extra = {};
  let turn = 0;

  // What is asked of the server: a text as it is, a question, or the chat that an answer was written in.
  function question() {
    if (!needsText) return { model: model.value, ...extra };
    if (messages) return { model: model.value, messages, ...extra };
    const said = chat.checked ? { messages: [{ role: "user", content: text.value }] } : { text: text.value };
    return { model: model.value, ...said, ...extra };
  }

  async function look(event) {
    event?.preventDefault();
    const mine = ++turn;
    sessionStorage.setItem(KEPT, JSON.stringify({ model: model.value, text: messages ? undefined : text.value, messages, chat: chat.checked }));
    result.setAttribute("aria-busy", "true");
    try {
      const found = await post(`/api/inside/${view}`, question());
      if (mine === turn) replace(result, draw(found, { extra, look, pick: (id) => (location.hash = `#/inside/neighbours/${id}`) }));
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      if (mine === turn) replace(result, h("p", { class: "fault", role: "alert" }, error.message));
    }
    result.setAttribute("aria-busy", "false");
  }

  const code = h("button", { type: "button", class: "small", onclick: () => showCode(view) }, "");
  get(`/api/source?${new URLSearchParams({ view })}`).then(({ file, line }) => (code.textContent = t("code", { place: `${file}:${line}` })));
  const own = controls(extra, look, decodeURIComponent(location.hash.split("/")[3] ?? ""));
  replace(main, h("h1", {}, t("inside")),
    h("div", { class: "tabs", role: "navigation", "aria-label": t("inside") }, Object.keys(VIEWS).map((v) =>
      h("a", { href: `#/inside/${v}`, "aria-current": v === view ? "page" : undefined }, t(`v_${v}`)))),
    h("p", { class: "why" }, t(`${view}Why`)), code,
    h("form", { class: "stack", onsubmit: look }, needsText && field(t("text"), text),
      h("div", { class: "row" }, field(t("model"), model), needsText && h("label", {}, chat, ` ${t("asChat")}`), own,
        h("button", { class: "main" }, t("look")))), result);
  await look();
}
