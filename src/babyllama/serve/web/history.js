// The conversations of this browser: a list to search, export and import.

import { h, pick, replace, save, say } from "./dom.js";
import { t } from "./i18n.js";
import { chats, exported, imported, matches, ratings, votes } from "./store.js";

// `open(id | null)` shows another conversation; `current()` is the id of the one that is shown.
export function historyPanel(open, current) {
  const list = h("ul", { class: "chats" });
  const search = h("input", { type: "search", placeholder: t("search"), "aria-label": t("search"), oninput: () => draw() });
  let rated = [];
  const saving = h("button", { type: "button", hidden: true, onclick: () =>
    save("ratings.jsonl", rated.map((line) => `${JSON.stringify(line)}\n`).join(""), "application/jsonl") });
  const note = h("p", { class: "note", role: "status" });

  async function draw() {
    const all = await chats.all().catch(() => []);
    const found = search.value.trim() ? all.filter((chat) => matches(chat, search.value.trim())) : all;
    replace(list, found.map((chat) => h("li", { "aria-current": chat.id === current() ? "true" : undefined },
      h("a", { href: `#/chat/${chat.id}` }, chat.title || t("untitled")),
      h("button", { type: "button", class: "icon", "aria-label": `${t("remove")}: ${chat.title}`, title: t("remove"), onclick: () => remove(chat) }, "✕"))));
    rated = ratings(all, await votes.all().catch(() => []));
    saving.hidden = !rated.length;
    saving.textContent = t("saveRatings", { n: rated.length });
    note.textContent = all.length === 0 ? t("noChats") : found.length === 0 ? t("noMatch") : "";
  }

  async function remove(chat) {
    if (!confirm(t("removeSure", { title: chat.title }))) return;
    await chats.remove(chat.id);
    if (chat.id === current()) open(null);
    draw();
  }

  async function bring() {
    const text = await pick(".json,application/json");
    if (text === null) return;
    try {
      const count = await imported(text);
      await draw();
      note.textContent = t("imported", { count });
    } catch {
      note.textContent = t("importBad");
    }
    say(note.textContent);
  }

  const element = h("aside", { class: "history", id: "history", "aria-label": t("history") }, search, list, note,
    h("div", { class: "row" },
      h("button", { type: "button", onclick: async () => save("babyllama-chats.json", await exported()) }, t("exportAll")),
      h("button", { type: "button", onclick: bring }, t("importAll")), saving));
  const toggle = h("button", { type: "button", class: "icon", "aria-expanded": "false", "aria-controls": "history", onclick: () => {
    toggle.setAttribute("aria-expanded", element.classList.toggle("open"));
  } }, `☰ ${t("history")}`);
  list.addEventListener("click", (event) => event.target.closest("a") && element.classList.remove("open"));
  return { element, toggle, draw };
}
