// The settings of answers: system prompt, sampling.

import { dialog, field, h, replace } from "./dom.js";
import { t } from "./i18n.js";
import { keep, SAMPLING, settings } from "./settings.js";

// A number with its meaning; empty: what the server does.
export function control(name, server, changed, value = settings.sampling[name]) {
  const { min, max, step } = SAMPLING[name];
  const given = server === undefined || server === null ? "" : t("asServer", { value: server });
  return field(t(name), h("input", {
    type: "number", name, min: Math.max(min, 0), max: name === "max_tokens" || name === "seed" ? undefined : max, step,
    value: value ?? "", placeholder: given,
    oninput: (event) => changed(event.target.value === "" ? undefined : Number(event.target.value)),
  }), t(`${name}Why`));
}

// `served`: what the server does where nothing is said. `changed` is called when what the page shows depends on it.
export function openSettings(served, changed = () => {}) {
  const form = h("div", { class: "stack" });
  const draw = () => replace(form,
    field(t("system"), h("textarea", { rows: 3, name: "system", value: settings.system,
      oninput: (event) => keep({ system: event.target.value }) }), t("systemWhy")),
    h("div", { class: "field" }, h("label", {}, h("input", { type: "checkbox", name: "continues", checked: settings.continues,
      "aria-describedby": "continuesWhy", onchange: (event) => {
        keep({ continues: event.target.checked });
        changed();
      } }), ` ${t("continues")}`), h("small", { id: "continuesWhy" }, t("continuesWhy"))),
    h("div", { class: "pairs" }, Object.keys(SAMPLING).map((name) => control(name, served[name], (value) => {
      const sampling = { ...settings.sampling };
      if (value === undefined) delete sampling[name];
      else sampling[name] = value;
      keep({ sampling });
    }))),
    h("button", { type: "button", onclick: () => {
      keep({ sampling: {}, system: "", continues: false });
      changed();
      draw();
    } }, t("reset")));
  draw();
  dialog(t("settings"), t("close"), form);
}
