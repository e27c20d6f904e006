// Runs: all below runs/, where each came from, its curves while it trains, samples, recipe, evaluations.

import { get } from "./api.js";
import { chart, COLOURS } from "./chart.js";
import { field, h, replace } from "./dom.js";
import { figure, moment, t } from "./i18n.js";
import { rollouts } from "./rollouts.js";

const EVERY = 2000; // milliseconds between two looks at a training

// Shown anew whenever a run begins, ends or first logs. `kept`: what the reader has chosen, and curves that are here already.
export async function show(main, about, path) {
  const id = path.join("/");
  const kept = { logs: new Map(), chosen: new Map(), curve: "", smooth: 0, log: false };
  let end = null, left = false, timer = 0, shown = "";

  async function draw(runs) {
    end?.();
    end = null;
    if (!runs.length) return void replace(main, h("h1", {}, t("runs")), h("p", { class: "why" }, t(about.models.length ? "noRuns" : "noneYet")));
    end = await (id ? one(main, id, runs, kept) : overview(main, runs, kept));
    if (left) end();
  }

  async function round(first) {
    const found = await get("/api/runs").catch((error) => {
      if (first) throw error;
      return null;
    });
    if (left) return;
    const state = found && JSON.stringify(found.runs.filter((run) => !id || run.id === id).map((run) => [run.id, run.status, run.logged, run.drew]));
    if (found && state !== shown) {
      await draw(found.runs);
      shown = state;
    }
    timer = setTimeout(round, EVERY);
  }

  await round(true);
  return () => {
    left = true;
    clearTimeout(timer);
    end?.();
  };
}

// The curves and samples of a run, brought up to date by `look`.
class Log {
  curves = {};
  samples = [];
  cursor = "";

  constructor(id) {
    this.id = id;
  }

  // Whether anything came.
  async look() {
    let some = false;
    for (;;) {
      const found = await get(`/api/metrics?${new URLSearchParams({ id: this.id, cursor: this.cursor })}`);
      if (found.reset) Object.assign(this, { curves: {}, samples: [] });
      for (const [name, [steps, values]] of Object.entries(found.curves)) {
        const [before, past] = (this.curves[name] ??= [[], []]);
        before.push(...steps);
        past.push(...values);
        some = true;
      }
      this.samples.push(...found.samples);
      some ||= found.samples.length > 0 || found.reset;
      this.cursor = found.cursor;
      if (!found.more) return some;
    }
  }
}

// Looks again and again while any is live; the function that ends it.
function follow(logs, live, draw) {
  let timer = 0, ended = false;
  const round = async () => {
    let some = false;
    for (const log of live() ? logs() : []) some = (await log.look().catch(() => false)) || some;
    if (ended) return;
    if (some) draw();
    timer = setTimeout(round, EVERY);
  };
  timer = setTimeout(round, EVERY);
  return () => {
    ended = true;
    clearTimeout(timer);
  };
}

const chip = (run) => h("span", { class: `chip ${run.status}` }, t(run.status === "stopped" ? "stoppedRun" : run.status));
// Whether it holds or reads prepared data, as far as its recipe tells.
export const hasData = (run) => run.verb === "prepare" || Boolean(run.from["data.path"] || run.from.data);
const link = (id) => h("a", { href: `#/runs/${id}` }, id);

// Which curve, and how it is drawn.
function curveControls(names, draw, kept) {
  const changed = () => {
    Object.assign(kept, { curve: curve.value, smooth: Number(smooth.value), log: log.checked });
    draw();
  };
  const curve = h("select", { onchange: changed });
  const smooth = h("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: kept.smooth, oninput: changed });
  const log = h("input", { type: "checkbox", checked: kept.log, onchange: changed });
  const offer = () => {
    const all = names();
    if (all.length === curve.options.length) return;
    const before = [curve.value, kept.curve, "train/loss"].find((name) => all.includes(name)) ?? all[0];
    replace(curve, all.map((name) => h("option", { value: name, selected: name === before }, name)));
  };
  return { curve, offer, options: () => ({ title: curve.value, smooth: Number(smooth.value), log: log.checked }),
    element: h("div", { class: "row" }, field(t("curve"), curve), field(t("smooth"), smooth), h("label", {}, log, ` ${t("logScale")}`)) };
}

async function overview(main, runs, kept) {
  const logged = runs.filter((run) => run.logged);
  const colours = new Map([...logged].reverse().map((run, i) => [run.id, COLOURS[i % COLOURS.length]])); // the oldest first: they stay
  const first = [...new Set([...logged.filter((run) => run.status === "running"), ...logged])].slice(0, 3);
  const shown = new Map(); // id → log
  const place = h("div", { class: "card" });
  const names = () => [...new Set([...shown.values()].flatMap((log) => Object.keys(log.curves)))].sort();
  const controls = curveControls(names, draw, kept);
  const box = h("div", {});

  function draw() {
    controls.offer();
    replace(box, chart([...shown].filter(([, log]) => controls.curve.value in log.curves).map(([name, log]) => {
      const [steps, values] = log.curves[controls.curve.value];
      return { name, colour: colours.get(name), steps, values };
    }), controls.options()));
  }

  async function toggle(id, on) {
    if (!on) return void (shown.delete(id), draw());
    if (!kept.logs.has(id)) kept.logs.set(id, new Log(id));
    await kept.logs.get(id).look();
    shown.set(id, kept.logs.get(id));
    draw();
  }

  const wanted = (run) => run.logged && (kept.chosen.get(run.id) ?? first.includes(run));
  const box_of = (run) => h("input", { type: "checkbox", checked: wanted(run), disabled: !run.logged, "aria-label": `${t("inChart")}: ${run.id}`,
    onchange: (event) => {
      kept.chosen.set(run.id, event.target.checked);
      toggle(run.id, event.target.checked);
    } });
  replace(main, h("h1", {}, t("runs")), h("ul", { class: "runs-list" }, runs.map((run) => h("li", {}, box_of(run),
    h("span", { class: "swatch", style: { background: colours.get(run.id) ?? "transparent" } }), link(run.id), h("span", { class: "chip" }, run.verb), chip(run),
    Object.keys(run.from).length > 0 && h("span", { class: "muted" }, `${t("from")} `, [...new Set(Object.values(run.from))].map((id, i) => [i ? ", " : "", link(id)])),
    h("span", { class: "muted" }, reached(run))))), place);
  if (logged.length) replace(place, controls.element, box);
  else place.remove();
  for (const run of runs.filter(wanted)) await toggle(run.id, true);
  const live = () => runs.some((run) => shown.has(run.id) && run.status === "running");
  return follow(() => [...shown.values()], live, draw);
}

// How well a finished training did on what was held out, to compare it with others on the same data.
function reached({ figures: { bits_per_byte: bits, validation_loss: loss } }) {
  return Number.isFinite(bits) ? t("heldOutBits", { n: figure(bits) }) : Number.isFinite(loss) && t("heldOutLoss", { n: figure(loss) });
}

// Where it came from and where it leads to, with the keys by which it does.
function lineage(run, runs) {
  const up = Object.entries(run.from);
  const down = runs.filter((other) => Object.values(other.from).includes(run.id));
  if (!up.length && !down.length) return null;
  const ancestors = (id, seen = new Set()) => seen.has(id) ? [] : [{ id, from: [...new Set(Object.values(runs.find((r) => r.id === id)?.from ?? {}))].flatMap((f) => ancestors(f, new Set([...seen, id]))) }];
  const tree = (nodes) => nodes.length ? h("ul", {}, nodes.map((n) => h("li", {}, n.id === run.id ? h("strong", {}, n.id) : link(n.id), tree(n.from)))) : null;
  return h("section", { class: "card" }, h("h2", {}, t("lineage")), tree(ancestors(run.id)),
    down.length > 0 && h("p", {}, `${t("to")}: `, down.map((other, i) => [i ? ", " : "", link(other.id)])));
}

// Any JSON as nested lists of facts: what an evaluation holds differs from task to task.
function facts(value, depth = 0) {
  if (value === null || typeof value !== "object") return typeof value === "number" ? figure(value, 5) : String(value);
  const entries = Object.entries(value);
  const plain = entries.filter(([, v]) => v === null || typeof v !== "object");
  const deep = entries.filter(([, v]) => v !== null && typeof v === "object" && Object.keys(v).length);
  return h("div", {}, plain.length > 0 && h("dl", { class: "facts" }, plain.slice(0, 60).map(([k, v]) => h("div", {}, h("dt", {}, k), h("dd", {}, facts(v))))),
    deep.slice(0, 40).map(([k, v]) => h("details", { open: depth < 3 && entries.length < 8 }, h("summary", {}, k), h("div", { style: { "padding-left": "1rem" } }, facts(v, depth + 1)))));
}

const section = (name, ...inside) => h("section", { class: "card" }, h("h2", {}, name), inside);
const folded = (name, text) => text && h("details", { class: "card" }, h("summary", {}, name), h("pre", { tabindex: 0 }, h("code", {}, text)));
const filled = (value) => value && Object.keys(value).length > 0;

async function one(main, id, runs, kept) {
  const run = await get(`/api/run?${new URLSearchParams({ id })}`);
  if (!kept.logs.has(id)) kept.logs.set(id, new Log(id));
  const log = kept.logs.get(id);
  await log.look();
  const box = h("div", {}), samples = h("div", {}), progress = h("span", { class: "muted" });
  const controls = curveControls(() => Object.keys(log.curves).sort(), draw, kept);
  const drawn = run.drew ? await rollouts(id, kept) : null;

  function draw() {
    controls.offer();
    const found = log.curves[controls.curve.value];
    replace(box, found ? chart([{ name: controls.curve.value, colour: COLOURS[0], steps: found[0], values: found[1] }], controls.options())
      : h("p", { class: "muted" }, t("noCurves")));
    const last = Math.max(0, ...Object.values(log.curves).map(([steps]) => steps.at(-1)));
    progress.textContent = run.steps && last ? t("steps", { at: last, all: run.steps }) : "";
    const newest = log.samples.slice(-12).reverse();
    replace(samples, newest.length > 0 && section(t("samples"), newest.map((s) => h("div", { class: "turn" },
      h("p", { class: "muted" }, `${t("step")} ${s.step} · ${s.prompt}`), h("p", { class: "plain" }, s.text)))));
  }

  replace(main, h("p", {}, h("a", { href: "#/runs" }, `‹ ${t("allRuns")}`)), h("h1", {}, id),
    h("p", { class: "row" }, h("span", { class: "chip" }, run.verb), chip(run), progress, h("span", { class: "muted" }, moment(run.created)),
      run.status === "running" && h("span", { class: "muted" }, t("live")), hasData(run) && h("a", { href: `#/data/${id}` }, t("itsData"))),
    Object.keys(log.curves).length + (run.status === "running") > 0 && h("section", { class: "card" }, controls.element, box), drawn?.element, samples, lineage(run, runs),
    filled(run.summary) && section(t("figures"), facts(run.summary)), filled(run.evals) && section(t("evaluations"), facts(run.evals)),
    filled(run.reports) && section(t("reports"), facts(run.reports)), folded(t("recipe"), run.recipe),
    folded(t("config"), filled(run.config) && JSON.stringify(run.config, null, 2)), folded(t("environment"), filled(run.env) && JSON.stringify(run.env, null, 2)));
  draw();
  return follow(() => [log], () => run.status === "running", () => {
    draw();
    drawn?.look();
  });
}
