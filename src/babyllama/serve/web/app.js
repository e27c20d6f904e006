// The frame of all pages: navigation, language, light and dark.

import { h, replace } from "./dom.js";
import { language, t } from "./i18n.js";
import { keep, settings, showTheme } from "./settings.js";
import { Fault, get } from "./api.js";

const PAGES = {
  chat: () => import("./chat.js"),
  compare: () => import("./compare.js"),
  runs: () => import("./runs.js"),
  data: () => import("./data.js"),
  inside: () => import("./inside.js"),
};
const main = document.getElementById("main");
let leave = null; // what the page that is shown does before another comes
let turn = 0;
const lost = new Set(); // pages whose code could not be fetched, for which the browser asks no more until it loads anew
let names = Object.keys(PAGES); // of those that make sense here: without models only runs are shown

function frame(page) {
  document.documentElement.lang = language() === "zh" ? "zh-CN" : "en";
  document.title = `${t(page)} · babyllama`;
  document.getElementById("skip").textContent = t("skip");
  const nav = document.getElementById("nav");
  nav.setAttribute("aria-label", t("pages"));
  replace(nav, names.map((name) =>
    h("a", { href: `#/${name}`, "aria-current": name === page ? "page" : undefined }, t(name))));
  replace(document.getElementById("tools"),
    h("button", { class: "icon", type: "button", lang: language() === "zh" ? "en" : "zh-CN", onclick: () => {
      keep({ language: language() === "zh" ? "en" : "zh" });
      show();
    } }, t("language")),
    h("button", { class: "icon", type: "button", "aria-label": t("theme"), title: t("theme"), onclick: () => {
      const dark = settings.theme ? settings.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      keep({ theme: dark ? "light" : "dark" });
      showTheme();
    } }, "◐"));
}

async function show() {
  const mine = ++turn;
  const [name, ...rest] = location.hash.replace(/^#\//, "").split("/").map(decodeURIComponent);
  const page = names.includes(name) ? name : names[0];
  leave?.();
  leave = null;
  frame(page);
  try {
    const before = lost.has(page);
    const [module, about] = await Promise.all([PAGES[page]().catch(() => void lost.add(page)), get("/api/app")]);
    if (mine !== turn) return;
    if (!module && before) return void location.reload();
    if (!module) throw new Fault(t("unreachable"));
    if (!about.models.length && names.length > 2) {
      names = ["runs", "data"];
      return void show();
    }
    main.className = page;
    leave = (await module.show(main, about, rest)) ?? null;
  } catch (error) {
    if (mine !== turn) return;
    if (!(error instanceof Fault)) console.error(error);
    replace(main, h("p", { class: "fault", role: "alert" }, error.message));
  }
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", show);
showTheme();
show();
