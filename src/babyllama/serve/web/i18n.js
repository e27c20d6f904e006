// Words in the reader's language.

import { settings } from "./settings.js";
import { WORDS } from "./words.js";

export const language = () => settings.language || ((navigator.languages ?? [navigator.language])[0].startsWith("zh") ? "zh" : "en");

export function t(key, values = {}) {
  const [english, chinese] = WORDS[key] ?? [key, key];
  return (language() === "zh" ? chinese : english).replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export const figure = (value, digits = 3) => Number.isFinite(value) ? Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 }) : "–";
