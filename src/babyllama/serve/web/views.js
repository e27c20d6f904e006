// How each view of Look inside is drawn. Figures come from the server as babyllama.inside computes them.

import { chart, COLOURS } from "./chart.js";
import { field, h, replace } from "./dom.js";
import { figure, t } from "./i18n.js";
import { control } from "./sampling.js";
import { SAMPLING } from "./settings.js";

const bits = (nats) => nats / Math.LN2;
const percent = (logprob) => `${figure(100 * Math.exp(logprob))} %`;

// A token as people read it: blanks and breaks are shown, parts of a character by their bytes.
export function label(token) {
  if (token.special) return token.text;
  if (token.text.includes("\ufffd")) return `<${token.bytes}>`;
  return token.text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";
}

function bars(rows, pick) {
  const most = Math.max(...rows.flatMap((row) => [row.p, row.pale ?? 0]), 1e-9);
  const wide = (p, kind) => h("i", { class: kind, style: { width: `${(100 * p) / most}%` } });
  return h("div", { class: "bars" }, rows.map((row) => [
    h("button", { type: "button", class: "small token", title: `${t("id")} ${row.token.id} · ${row.token.bytes}`, onclick: () => pick?.(row.token.id) }, label(row.token)),
    h("div", { class: "track" }, row.pale !== undefined && wide(row.pale, "pale"), wide(row.p, "")),
    h("span", {}, row.say ?? `${figure(100 * row.p)} %`)]));
}

const candidates = (top, pick) => bars(top.map((token) => ({ token, p: Math.exp(token.logprob) })), pick);

function drawText({ tokens, next }, { pick }) {
  const known = tokens.filter((token) => token.logprob !== null);
  const mean = known.reduce((sum, token) => sum - token.logprob, 0) / (known.length || 1);
  const detail = h("div", { "aria-live": "polite" });
  const buttons = tokens.map((token) => {
    const surprise = token.logprob === null ? 0 : bits(-token.logprob);
    const said = token.logprob === null ? "" : ` · ${t("bits", { n: figure(surprise) })}`;
    const made = h("button", { type: "button", class: token.special ? "special" : "", "data-id": token.id, "aria-pressed": "false", title: `${t("id")} ${token.id}${said}`,
      style: { "--share": `${Math.min(45, surprise * 3)}%` }, onclick: () => {
        buttons.forEach((b) => b.setAttribute("aria-pressed", b === made));
        replace(detail, h("h2", {}, `${t("token")} “${label(token)}”`), h("dl", { class: "facts" },
          [["id", token.id], ["bytes", token.bytes], ...(token.special ? [["isSpecial", "✓"]] : []),
            ...(token.logprob === null ? [] : [["probability", percent(token.logprob)], ["rank", token.rank + 1]])]
            .map(([key, value]) => h("div", {}, h("dt", {}, t(key)), h("dd", {}, String(value))))),
        token.top.length > 0 && [h("h3", {}, t("expected")), candidates(token.top, pick)]);
      } }, label(token));
    return made;
  });
  return [h("p", { class: "muted" }, t("mean", { tokens: tokens.length, bits: figure(bits(mean)), loss: figure(mean) })),
    h("div", { class: "tokens" }, buttons), detail, h("h2", {}, t("nextToken")), candidates(next.top, pick)];
}

// Rows of weights on a canvas: one pixel a pair of tokens.
function paint(canvas, rows) {
  canvas.width = canvas.height = rows.length;
  const context = canvas.getContext("2d");
  const ink = getComputedStyle(canvas).getPropertyValue("color");
  context.fillStyle = ink;
  rows.forEach((row, y) => row.forEach((weight, x) => {
    context.globalAlpha = Math.min(1, weight ** 0.7);
    context.fillRect(x, y, 1, 1);
  }));
}

function drawAttention({ tokens, layer, layers, weights }, { extra, look }) {
  const map = h("canvas", { class: "map", role: "img", "aria-label": t("v_attention"), style: { color: "var(--first)" } });
  const told = h("p", { class: "muted", "aria-live": "polite" });
  let shown = 0;
  const row = h("input", { type: "range", min: 0, max: tokens.length - 1, value: tokens.length - 1, oninput: () => tell(Number(row.value)) });
  const tops = h("div", {});

  function tell(y, x = null) {
    row.value = y;
    const found = weights[shown][y];
    const at = x ?? found.indexOf(Math.max(...found));
    told.textContent = t("from_to", { from: label(tokens[y]), to: label(tokens[at]), w: `${figure(100 * found[at])} %` });
    const best = found.map((p, i) => ({ token: tokens[i], p })).sort((a, b) => b.p - a.p).slice(0, 6);
    replace(tops, bars(best));
  }

  const small = weights.map((rows, n) => {
    const canvas = h("canvas", { style: { color: "var(--first)" } });
    const made = h("button", { type: "button", "aria-pressed": String(n === 0), onclick: () => choose(n) }, canvas, t("head", { n }));
    return { made, canvas, rows };
  });

  function choose(n) {
    shown = n;
    small.forEach(({ made }, i) => made.setAttribute("aria-pressed", String(i === n)));
    paint(map, weights[n]);
    tell(Number(row.value));
  }

  map.addEventListener("pointermove", (event) => {
    const box = map.getBoundingClientRect();
    const y = Math.floor(((event.clientY - box.top) / box.height) * tokens.length);
    const x = Math.floor(((event.clientX - box.left) / box.width) * tokens.length);
    if (y >= 0 && y < tokens.length && x >= 0 && x <= y) tell(y, x);
  });
  const select = h("select", { onchange: () => {
    extra.layer = Number(select.value);
    look();
  } }, Array.from({ length: layers }, (_, i) => h("option", { value: i, selected: i === layer }, String(i))));
  requestAnimationFrame(() => {
    small.forEach(({ canvas, rows }) => paint(canvas, rows));
    choose(0);
  });
  return [field(t("layer"), select), h("div", { class: "heads", style: { margin: "1rem 0" } }, small.map(({ made }) => made)),
    h("div", { class: "columns" }, map, h("div", {}, field(t("token"), row), told, tops))];
}

function drawLens({ tokens, depths }) {
  const last = depths.length - 1;
  const name = (depth) => (depth === 0 ? t("embedding") : `${t("layer")} ${depth - 1}`);
  const cell = ({ top }) => h("td", { style: { "--share": `${Math.round(45 * Math.exp(top[0].logprob))}%` },
    title: top.map((c) => `${label(c)} ${percent(c.logprob)}`).join("\n") }, label(top[0]));
  return h("div", { class: "scroll", tabindex: 0 }, h("table", { class: "lens" },
    h("thead", {}, h("tr", {}, h("th", {}, t("token")), tokens.map((token) => h("th", { scope: "col" }, label(token))))),
    h("tbody", {}, depths.map((_, i) => last - i).map((depth) => h("tr", {}, h("th", { scope: "row" }, name(depth)), depths[depth].map(cell))))));
}

function drawSampling({ candidates: rows, kept, vocabulary, entropy_before, entropy_after }, { pick }) {
  return [h("p", { class: "muted" }, t("kept", { kept, all: vocabulary, a: figure(bits(entropy_before)), b: figure(bits(entropy_after)) })),
    bars(rows.map((row) => ({ token: row, p: row.after, pale: row.before, say: `${figure(100 * row.before)} → ${figure(100 * row.after)} %` })), pick)];
}

function samplingControls(extra, look) {
  extra.top = 16;
  return h("div", { class: "pairs" }, Object.keys(SAMPLING).slice(0, 5).map((name) => control(name, null, (value) => {
    if (value === undefined) delete extra[name];
    else extra[name] = value;
    look();
  }, extra[name])));
}

function drawRope({ own, theta, trained, length, frequencies }) {
  const lines = Object.entries(frequencies).filter(([kind]) => kind !== "none").map(([kind, values], i) => ({ name: kind, colour: COLOURS[i % COLOURS.length], dots: true,
    steps: values.map((_, n) => n), values: values.map((value, n) => value / frequencies.none[n]) }));
  return [h("p", { class: "muted" }, t("ropeNote", { trained, length, theta: figure(theta, 7), own })), h("p", { class: "muted" }, t("ratio")),
    chart(lines, { title: t("v_rope"), x: t("pair") })];
}

function ropeControls(extra, look) {
  extra.factor = 4;
  const value = h("output", {}, "4");
  return field(t("factor"), h("span", { class: "row" }, h("input", { type: "range", min: 1, max: 16, step: 0.5, value: 4, "aria-label": t("factor"), oninput: (event) => {
    value.textContent = event.target.value;
    extra.factor = Number(event.target.value);
    look();
  } }), value));
}

function drawNeighbours({ token, near }, { extra, look }) {
  const pick = (id) => {
    extra.token = id;
    look();
  };
  return [h("h2", {}, `“${label(token)}” · ${t("id")} ${token.id} · ${token.bytes}`), h("div", { class: "columns" }, Object.entries(near).map(([name, rows]) =>
    h("div", {}, h("h3", {}, t(name === "head" ? "byHead" : "byEmbedding")), bars(rows.map((row) => ({ token: row, p: Math.max(0, row.cosine), say: figure(row.cosine) })), pick))))];
}

function neighboursControls(extra, look, id) {
  extra.token = /^\d+$/.test(id) ? Number(id) : "天";
  return field(t("aToken"), h("input", { value: String(extra.token), name: "token", onchange: (event) => {
    const found = event.target.value;
    extra.token = /^\d{1,9}$/.test(found) ? Number(found) : found;
  } }));
}

export const VIEWS = {
  text: { draw: drawText },
  attention: { draw: drawAttention },
  lens: { draw: drawLens },
  sampling: { draw: drawSampling, controls: samplingControls },
  rope: { draw: drawRope, controls: ropeControls, needsText: false },
  neighbours: { draw: drawNeighbours, controls: neighboursControls, needsText: false },
};
