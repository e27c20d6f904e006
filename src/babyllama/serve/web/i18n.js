// Words in the reader's language.

import { settings } from "./settings.js";
import { WORDS } from "./words.js";

export const language = () => settings.language || ((navigator.languages ?? [navigator.language])[0].startsWith("zh") ? "zh" : "en");

export function t(key, values = {}) {
  const [english, chinese] = WORDS[key] ?? [key, key];
  return (language() === "zh" ? chinese : english).replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export const figure = (value, digits = 3) => Number.isFinite(value) ? Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 }) : "–";

// A time such as 2026-11-30T01:04:24+0000, as the reader's clock and language have it; not every browser reads a zone without its colon.
export function moment(text) {
  const time = new Date(text?.replace(/([+-]\d\d)(\d\d)$/, "$1:$2"));
  return Number.isNaN(time.getTime()) ? (text ?? "") : time.toLocaleString(language() === "zh" ? "zh-CN" : "en", { dateStyle: "medium", timeStyle: "short" });
}
