// Chat: one conversation, its branches, and the history beside it.

import { answer, Fault, joined } from "./api.js";
import { arrange, composes, h, replace, say } from "./dom.js";
import { historyPanel } from "./history.js";
import { t } from "./i18n.js";
import { figuresOf, messageElement, paced, showAnswer } from "./message.js";
import { openSettings } from "./sampling.js";
import { keep, sampling, settings } from "./settings.js";
import { begun, content, ending, fitting, hasRest, memory, seen } from "./sight.js";
import { addMessage, chats, choose, families, newChat, path } from "./store.js";

export async function show(main, about, [id]) {
  let chat = (id && (await chats.one(id).catch(() => null))) || newChat();
  let stopping = null; // of the answer that is being written
  let editing = null; // the id of the question that is being edited
  let shown = new Map(); // of the messages on the page, what each shows: {node, key, element}
  const heading = h("h1", { class: "quiet" }, t("chat"));
  const log = h("div", { class: "log", role: "log", "aria-live": "off", tabindex: 0, "aria-label": t("chat") });
  const history = historyPanel((chosen) => (location.hash = chosen ? `#/chat/${chosen}` : "#/chat"), () => chat.id);
  const input = h("textarea", { rows: 1, placeholder: t("askHere"), "aria-label": t("ask"), enterkeyhint: "send" });
  const send = h("button", { class: "main", type: "submit" }, t("send"));
  const model = h("select", { "aria-label": t("model"), onchange: () => {
    keep({ model: model.value });
    draw();
  } },
    about.models.map((name) => h("option", { value: name, selected: name === settings.model }, name)));

  const store = () => chats.put(chat).then(history.draw, () => say(t("noStore")));
  const hint = h("small", { class: "hint" });
  const told = () => (settings.system.trim() ? [{ role: "system", content: settings.system }] : []);

  function draw() {
    const nodes = path(chat), turns = memory(about, model.value);
    if (!nodes.some(({ id }) => id === editing)) editing = null;
    const back = place(), low = atEnd(), top = log.scrollTop;
    hint.textContent = settings.continues || turns === undefined ? "" : t(turns ? "remembers" : "alone", { turns });
    input.placeholder = t(settings.continues ? "beginHere" : "askHere");
    arrange(log, nodes.length ? [heading, ...messages(nodes)]
      : [h("div", { class: "hello" }, h("h1", {}, t("hello")), h("p", {}, t("helloWhy")), suggestions())]);
    log.scrollTop = low ? log.scrollHeight : top;
    back?.();
  }

  // Their elements: those of before where nothing changed, since a conversation may have thousands.
  function messages(nodes) {
    const before = shown, family = families(chat);
    shown = new Map();
    return nodes.map((node) => {
      const all = family.get(node.parent), draws = acts(node), had = before.get(node.id);
      const key = JSON.stringify([node, all.map(({ id }) => id), Boolean(draws.goOn), Boolean(draws.rate), editing === node.id]);
      const draft = editing === node.id ? (had?.element.querySelector("textarea")?.value ?? node.text) : undefined;
      const element = had?.node === node && had.key === key ? had.element : messageElement(node, all, draws, draft);
      shown.set(node.id, { node, key, element });
      return element;
    });
  }

  const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 80;

  // Who goes by the keyboard stays at the button that was used, or near it, when all is drawn anew.
  function place() {
    const { activeElement: used } = document;
    if (!log.contains(used)) return null;
    const at = [...log.children].indexOf(used.closest(".message")), { selectionStart, selectionEnd } = used;
    return () => {
      if (document.activeElement === used) return;
      const area = log.children[at]?.querySelector("textarea");
      if (area) {
        area.focus({ preventScroll: true });
        area.setSelectionRange(selectionStart, selectionEnd);
        return;
      }
      const buttons = [...(log.children[at]?.querySelectorAll("footer button:enabled") ?? [])];
      (buttons.find((button) => button.textContent === used.textContent) ?? buttons[0] ?? log).focus({ preventScroll: true });
    };
  }

  // Questions of the model's own training, to begin with.
  function suggestions() {
    const asked = settings.continues ? [] : (about.questions?.[model.value] ?? []);
    return asked.length ? h("p", { class: "suggestions" }, asked.slice(0, 4).map((text) => h("button", { type: "button", onclick: () => {
      input.value = text;
      submit();
    } }, text))) : null;
  }

  // What an answer's model was asked.
  const asked = (node) => [...told(), ...seen(about, node.model, path(chat, node.parent)).map(content)];

  const acts = (node) => ({
    choose: (other) => {
      choose(chat, other);
      draw();
      store();
    },
    edit: () => {
      editing = node.id;
      draw();
      log.querySelector(".editing textarea").focus();
    },
    leave: () => {
      editing = null;
      draw();
    },
    send: (text) => {
      if (stopping) return;
      editing = null;
      respond(addMessage(chat, node.parent, "user", text));
    },
    retry: () => stopping || respond(chat.nodes[node.parent]),
    goOn: !stopping && node.id === chat.leaf && brokenOff(node) && (() => write(node)),
    rate: !settings.continues && node.finish && node.text && ((good) => {
      node.rated = { good, time: Date.now(), prompt: good === null ? [] : asked(node) };
      chat.changed = node.rated.time;
      draw();
      store();
    }),
    inspect: () => {
      sessionStorage.setItem("babyllama.inspect", JSON.stringify({ model: node.model, messages: [...asked(node), content(node)] }));
      location.hash = "#/inside/text";
    },
  });

  // Whether an answer has a rest that its model can still write.
  const brokenOff = (node) => hasRest(about, node, !settings.continues && seen(about, node.model, path(chat, node.parent)).length === 1);

  const respond = (question) => write(addMessage(chat, question.id, "assistant", "", { model: model.value }));

  // An answer, or the rest of one.
  async function write(node) {
    const start = node.text || node.thinking ? { ...node } : null;
    const before = path(chat, node.parent), rest = start ? [node] : [];
    const mine = chat;
    const rated = node.rated && { good: null, time: Date.now(), prompt: [] }; // it was of another answer
    Object.assign(node, { finish: null, fault: null, rated, rounds: start ? (node.rounds ?? 0) + 1 : 0 });
    chat.changed = Date.now();
    stopping = new AbortController();
    busy(true);
    if (log.contains(document.activeElement)) send.focus();
    draw();
    log.scrollTop = log.scrollHeight;
    store();
    const pace = paced(() => {
      const shown = log.querySelector(`[data-id="${node.id}"]`); // drawn anew, or gone, where somebody chose something meanwhile
      if (!shown) return;
      const low = atEnd();
      showAnswer(shown.querySelector(".body"), node, false);
      shown.querySelector(".figures").textContent = figuresOf(node);
      if (low) log.scrollTop = log.scrollHeight;
    });
    say(t("answering"));
    addEventListener("pagehide", store); // what was written so far
    try {
      const { forgotten, cut, ...body } = settings.continues ? await ending(node.model, [...before, ...rest].map(({ text }) => text).join(""), stopping.signal)
        : await fitting(node.model, told(), [...seen(about, node.model, before).map(content), ...rest.map(begun)], stopping.signal);
      Object.assign(node, { forgotten, cut });
      await answer({ model: node.model, ...body, ...sampling(about.sampling[node.model]) }, stopping.signal, (found) => {
        Object.assign(node, start ? joined(start, found) : found);
        pace.soon();
      });
      say(`${t("answered")} ${node.text.slice(start?.text.length)}`);
    } catch (error) {
      if (error.name === "AbortError") node.finish = "stopped";
      else node.fault = error instanceof Fault ? error.message : t("unreachable");
    }
    pace.stop();
    removeEventListener("pagehide", store);
    stopping = null;
    mine.changed = Date.now();
    await store();
    if (mine !== chat || !log.isConnected) return;
    busy(false);
    draw();
  }

  function busy(yes) {
    log.setAttribute("aria-busy", yes);
    send.textContent = t(yes ? "stop" : "send");
    send.classList.toggle("stop", yes);
  }

  function submit(event) {
    event?.preventDefault();
    if (stopping) return stopping.abort();
    const text = settings.continues ? input.value : input.value.trim();
    if (!text.trim()) return undefined;
    input.value = "";
    grow();
    if (location.hash !== `#/chat/${chat.id}`) window.history.replaceState(null, "", `#/chat/${chat.id}`);
    return respond(addMessage(chat, chat.leaf, "user", text));
  }

  function grow() {
    input.style.height = "auto";
    input.style.height = `${Math.min(input.scrollHeight, 220)}px`;
  }

  input.addEventListener("input", grow);
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || composes(event) || stopping) return;
    submit(event);
  });
  const bar = h("div", { class: "bar" }, history.toggle,
    h("button", { type: "button", class: "icon", onclick: () => (location.hash === "#/chat" ? reset() : (location.hash = "#/chat")) }, `＋ ${t("newChat")}`),
    h("span", { class: "gap" }), model, h("button", { type: "button", class: "icon", onclick: () => openSettings(about.sampling[model.value] ?? {}, draw) }, `⚙ ${t("settings")}`));

  function reset() {
    chat = newChat();
    draw();
    history.draw();
    input.focus();
  }

  replace(main, history.element, h("section", { class: "talk" }, bar, log,
    h("form", { class: "composer", onsubmit: submit }, input, send), hint));
  draw();
  history.draw();
  if (matchMedia("(min-width: 60rem)").matches) input.focus();

  // What another tab wrote meanwhile.
  async function look() {
    if (document.hidden || stopping || editing) return;
    const stored = await chats.one(chat.id).catch(() => null);
    if (stopping || !(stored?.changed > chat.changed)) return;
    chat = stored;
    draw();
    history.draw();
  }
  document.addEventListener("visibilitychange", look);
  return () => {
    document.removeEventListener("visibilitychange", look);
    stopping?.abort();
  };
}
