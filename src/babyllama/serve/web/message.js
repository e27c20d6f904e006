// One message as it is shown, and an answer while it comes.

import { copyButton } from "./copy.js";
import { add, composes, h, replace } from "./dom.js";
import { figure, t } from "./i18n.js";
import { parts, showMarkdown } from "./markdown.js";

export const button = (text, onclick) => h("button", { type: "button", class: "small", onclick }, text);

// The answer's parts, each rendered in its own element so that an open one stays open while more comes.
export function showAnswer(body, found, done) {
  const said = parts(found.text);
  if (found.tools) said.unshift({ kind: "tool_call", text: found.tools });
  if (found.thinking) said.unshift({ kind: "think", text: found.thinking, open: !found.text });
  while (body.children.length > said.length) body.lastChild.remove();
  said.forEach((part, i) => {
    let element = body.children[i];
    if (!element || element.dataset.kind !== part.kind) {
      const made = part.kind === "text" ? h("div", { class: "text", "data-kind": "text" })
        : h("details", { class: "apart", "data-kind": part.kind, open: part.open }, h("summary", {}, t(part.kind === "think" ? "thinking" : "tool")), h("div", {}));
      if (element) element.replaceWith(made);
      else body.append(made);
      element = made;
    }
    if (part.kind === "text") showMarkdown(element, part.text, done);
    else if (part.kind === "think") showMarkdown(element.lastChild, part.text, done);
    else element.lastChild.textContent = part.text;
  });
}

// Calls `draw` at most once a frame.
export function paced(draw) {
  let waiting = 0;
  return {
    soon: () => (waiting ||= requestAnimationFrame(() => {
      waiting = 0;
      draw();
    })),
    stop: () => cancelAnimationFrame(waiting),
  };
}

export function figuresOf(found) {
  const figures = [];
  if (found.tokens) figures.push(t("tokens", { n: found.tokens }));
  // Over the whole wait: a short answer comes in one piece, and then nothing lies between its first token and its end.
  if (found.tokens && found.seconds > 0) figures.push(t("speed", { n: figure(found.tokens / found.seconds) }));
  if (found.first !== null && found.first !== undefined) figures.push(t("first", { s: figure(found.first, 2) }));
  if (found.finish === "length") figures.push(t("cut"));
  if (found.finish === "stopped") figures.push(t("stopped"));
  if (found.finish === "left") figures.push(t("left"));
  if (found.cut) figures.push(t("beginningCut", { n: found.cut }));
  if (found.forgotten) figures.push(t("forgotten", { n: found.forgotten }));
  return figures.join(" · ");
}

function branches(node, all, choose) {
  if (all.length < 2) return null;
  const at = all.indexOf(node);
  const step = (to, name, sign) => h("button", { type: "button", class: "small", "aria-label": name, title: name, disabled: !all[to],
    onclick: () => choose(all[to]) }, sign);
  return h("span", { class: "branches" }, step(at - 1, t("before"), "‹"),
    h("span", { "aria-label": t("branch", { at: at + 1, count: all.length }), role: "img" }, `${at + 1}/${all.length}`), step(at + 1, t("after"), "›"));
}

function thumb(node, good, sign, acts) {
  const name = t(good ? "goodAnswer" : "badAnswer"), given = node.rated?.good === good;
  return h("button", { type: "button", class: "small thumb", "aria-label": name, title: name, "aria-pressed": String(given),
    onclick: () => acts.rate(given ? null : good) }, sign);
}

// `acts`: {edit(), leave(), send(text), retry(), goOn() where there is a rest to write, rate(good) where it has ended, inspect(), choose(node)}.
// `draft`: what an open edit has.
export function messageElement(node, all, acts, draft) {
  const body = h("div", { class: "body" });
  const foot = h("footer", {});
  const element = h("article", { class: `message ${node.role}`, "data-id": node.id, "aria-label": node.role === "user" ? t("you") : node.model },
    node.role === "assistant" && h("div", { class: "who" }, node.model), body, foot);
  if (node.role === "user") {
    body.append(h("div", { class: "plain" }, node.text));
    add(foot, [button(t("edit"), acts.edit), copyButton(node.text)]);
  } else {
    showAnswer(body, node, true);
    if (node.fault) body.append(h("p", { class: "fault", role: "alert" }, node.fault));
    add(foot, [acts.goOn && button(t("goOn"), acts.goOn), button(t("retry"), acts.retry), copyButton(node.text), button(t("inspect"), acts.inspect),
      acts.rate && [thumb(node, true, "👍", acts), thumb(node, false, "👎", acts)],
      h("span", { class: "figures" }, figuresOf(node))]);
  }
  const chooser = branches(node, all, acts.choose);
  if (chooser) foot.prepend(chooser);
  if (draft !== undefined) editIn(element, body, foot, acts, draft);
  return element;
}

function editIn(element, body, foot, acts, draft) {
  const area = h("textarea", { rows: Math.min(8, draft.split("\n").length + 1), value: draft, "aria-label": t("edit") });
  const send = () => area.value.trim() && acts.send(area.value);
  area.addEventListener("keydown", (event) => {
    if (composes(event)) return;
    if (event.key === "Escape") acts.leave();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
  });
  element.classList.add("editing");
  replace(body, area);
  replace(foot, h("button", { type: "button", class: "small main", onclick: send }, t("editSend")), button(t("cancel"), acts.leave));
}
