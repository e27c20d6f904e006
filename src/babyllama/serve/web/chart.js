// Curves of several runs in one chart, drawn as SVG; the figures under the pointer are told, and stand in a table too.

import { h, replace, svg } from "./dom.js";
import { figure, t } from "./i18n.js";

const W = 860, H = 340, DIGIT = 14.5, RIGHT = 14, TOP = 12, BOTTOM = 30;
export const COLOURS = [0, 1, 2, 3, 4, 5].map((i) => `var(--c${i})`);

// Round numbers between two, about `count` of them.
export function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((m) => m * power >= rough) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

// A running mean that forgets: `amount` from 0 (off) to 1.
export function smoothed(values, amount) {
  let mean = 0, weight = 0;
  return values.map((value) => {
    mean = amount * mean + (1 - amount) * value;
    weight = amount * weight + (1 - amount);
    return mean / weight;
  });
}

function nearest(steps, at) {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < at) low = middle;
    else high = middle;
  }
  return Math.abs(steps[low] - at) <= Math.abs(steps[high] - at) ? low : high;
}

// `lines`: [{name, colour, steps, values}]; options: {title, x, log, smooth}.
export function chart(lines, { title, x = t("step"), log = false, smooth = 0 }) {
  const shown = lines.map((line) => {
    const kept = line.values.map((v, i) => [line.steps[i], v]).filter(([, v]) => Number.isFinite(v) && (!log || v > 0));
    return { ...line, steps: kept.map(([s]) => s), values: smoothed(kept.map(([, v]) => v), smooth) };
  }).filter((line) => line.steps.length);
  if (!shown.length) return h("p", { class: "muted" }, t("noCurves"));
  const scale = log ? Math.log10 : (v) => v;
  const extent = (pick) => shown.reduce(([a, b], line) => pick(line).reduce(([c, d], v) => [Math.min(c, v), Math.max(d, v)], [a, b]), [Infinity, -Infinity]);
  const [first, last] = extent((line) => line.steps);
  let [low, high] = extent((line) => line.values).map(scale);
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const rows = ticks(low, high, 5).map((at) => (log ? 10 ** at : at));
  const left = 12 + DIGIT * Math.max(3, ...rows.map((v) => figure(v).length)); // as wide as a phone's letters are
  const right = (s) => left + ((s - first) / (last - first || 1)) * (W - left - RIGHT);
  const up = (v) => H - BOTTOM - ((scale(v) - low) / (high - low)) * (H - TOP - BOTTOM);
  const mark = svg("line", { class: "grid", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
  const picture = svg("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title}: ${shown.map((l) => `${l.name} ${figure(l.values.at(-1))}`).join(", ")}` },
    rows.map((v) => [svg("line", { class: "grid", x1: left, x2: W - RIGHT, y1: up(v), y2: up(v) }),
      svg("text", { x: left - 8, y: up(v) + 4, "text-anchor": "end" }, figure(v))]),
    ticks(first, last, 6).map((s) => svg("text", { x: right(s), y: H - 8, "text-anchor": "middle" }, figure(s, 6))),
    svg("text", { x: W - RIGHT, y: H - 8 - 16, "text-anchor": "end" }, x), mark,
    shown.map((line) => [svg("path", { stroke: line.colour, d: line.steps.map((s, i) => `${i ? "L" : "M"}${right(s).toFixed(1)} ${up(line.values[i]).toFixed(1)}`).join("") }),
      (line.steps.length === 1 || line.dots) && line.steps.map((s, i) => svg("circle", { cx: right(s), cy: up(line.values[i]), r: 3, fill: line.colour }))]));
  const figures = shown.map(() => h("span", {}));
  const tell = (at) => shown.forEach((line, i) => {
    const n = at === null ? line.steps.length - 1 : nearest(line.steps, at);
    figures[i].textContent = `${line.name}: ${figure(line.values[n], 4)} (${x} ${figure(line.steps[n], 7)})`;
  });
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const at = first + (((event.clientX - box.left) / box.width) * W - left) / (W - left - RIGHT) * (last - first);
    mark.setAttribute("visibility", "visible");
    const place = right(Math.min(last, Math.max(first, at)));
    mark.setAttribute("x1", place);
    mark.setAttribute("x2", place);
    tell(at);
  });
  picture.addEventListener("pointerleave", () => {
    mark.setAttribute("visibility", "hidden");
    tell(null);
  });
  tell(null);
  const box = h("div", { class: "scroll", tabindex: 0 });
  const table = h("details", { ontoggle: () => table.open && replace(box, asTable(shown, x)) }, h("summary", { class: "muted" }, t("asTable")), box);
  return h("figure", { style: { margin: "0" } }, picture,
    h("figcaption", { class: "legend" }, shown.map((line, i) => h("span", {}, h("i", { style: { background: line.colour } }), figures[i]))), table);
}

function asTable(shown, x) {
  const steps = [...new Set(shown.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const kept = steps.filter((_, i) => i % Math.ceil(steps.length / 60) === 0 || i === steps.length - 1);
  const at = shown.map((line) => new Map(line.steps.map((s, i) => [s, line.values[i]])));
  return h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, x), shown.map((line) => h("th", {}, line.name)))),
    h("tbody", {}, kept.map((s) => h("tr", {}, h("td", {}, String(s)), at.map((found) => h("td", {}, found.has(s) ? figure(found.get(s), 5) : ""))))));
}
