// The button that copies a text.

import { h, say } from "./dom.js";
import { t } from "./i18n.js";

// A page that came from another machine without https has no navigator.clipboard.
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h("textarea", { value: text, style: { position: "fixed", opacity: 0 } });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("refused");
  return undefined;
}

export const copyButton = (text) => h("button", { type: "button", class: "small", onclick: () =>
  copy(text).then(() => say(t("copied")), () => say(t("notCopied"))) }, t("copy"));
