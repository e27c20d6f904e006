// Markdown → nodes. HTML in it stays text; what comes out is sanitised all the same. TeX becomes MathML when there is some.

import { Marked } from "./vendor/marked.js";
import "./vendor/purify.js";
import { copyButton } from "./copy.js";
import { h } from "./dom.js";

const escaped = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const ADDRESS = /^(https?:|mailto:)/i;

const TEX = [
  { name: "texBlock", level: "block", start: /\$\$|\\\[/, rule: /^(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])/, display: true },
  { name: "tex", level: "inline", start: /\$|\\\(/, display: false,
    rule: /^(?:\$\$([\s\S]+?)\$\$|\$(?!\s)((?:\\.|[^$\\\n])+?)(?<!\s)\$(?!\d)|\\\(([\s\S]+?)\\\))/ },
];

const extensions = TEX.map(({ name, level, start, rule, display }) => ({
  name,
  level,
  start: (source) => source.match(start)?.index,
  tokenizer(source) {
    const found = rule.exec(source);
    if (found) return { type: name, raw: found[0], text: found.slice(1).find(Boolean), display: display || found[0].startsWith("$$") };
  },
  renderer: (token) => `<code class="tex" data-display="${token.display ? 1 : ""}">${escaped(token.text)}</code>`,
}));

const marked = new Marked({ gfm: true, breaks: true });
marked.use({
  extensions,
  renderer: {
    html: (token) => escaped(token.text),
    image: (token) => escaped(token.text || token.href), // a picture would tell another server that it was looked at
    link(token) {
      const inner = this.parser.parseInline(token.tokens);
      return ADDRESS.test(token.href) ? `<a href="${escaped(token.href)}" rel="noopener noreferrer" target="_blank">${inner}</a>` : inner;
    },
  },
});

const CLEAN = {
  RETURN_DOM_FRAGMENT: true, ADD_ATTR: ["target"], ALLOW_ARIA_ATTR: false,
  ALLOWED_TAGS: ["p", "br", "hr", "em", "strong", "del", "code", "pre", "blockquote", "ul", "ol", "li", "a", "h1", "h2", "h3", "h4", "h5",
    "h6", "table", "thead", "tbody", "tr", "th", "td", "input"],
  ALLOWED_ATTR: ["href", "rel", "target", "class", "start", "type", "checked", "disabled", "align", "data-display"],
};

let temml = null; // the library, once there was TeX

function loadTemml() {
  temml ??= new Promise((resolve) => {
    document.head.append(h("script", { src: new URL("vendor/temml.js", import.meta.url), onload: () => resolve(globalThis.temml), onerror: () => resolve(null) }));
  });
  return temml;
}

async function drawTex(codes) {
  const library = await loadTemml();
  for (const code of codes) {
    if (!library || !code.isConnected) continue;
    const holder = h("span", { class: code.dataset.display ? "math block" : "math", tabindex: code.dataset.display ? 0 : undefined });
    try {
      library.render(code.textContent, holder, { displayMode: Boolean(code.dataset.display), throwOnError: true, trust: false });
      code.replaceWith(holder);
    } catch {
      // not TeX that can be read: it stays as it was written
    }
  }
}

// Blocks of code get a button that copies them; wide things scroll by themselves, by the keyboard too.
function furnish(fragment) {
  for (const pre of fragment.querySelectorAll("pre")) {
    const code = pre.textContent;
    const language = pre.firstElementChild?.className.replace("language-", "") ?? "";
    pre.tabIndex = 0;
    const box = h("div", { class: "code" }, h("div", { class: "head" }, h("span", {}, language), copyButton(code)));
    pre.replaceWith(box);
    box.append(pre);
  }
  for (const table of fragment.querySelectorAll("table")) {
    const box = h("div", { class: "scroll", tabindex: 0 });
    table.replaceWith(box);
    box.append(table);
  }
  for (const box of fragment.querySelectorAll("input")) box.setAttribute("aria-label", box.checked ? "✓" : "–");
}

function drawn(html) {
  const fragment = globalThis.DOMPurify.sanitize(html, CLEAN);
  furnish(fragment);
  return fragment;
}

const coming = new WeakMap(); // element → the blocks of a text that is being written: {raw, nodes}

// While a text comes (`done` is false) blocks that are as before stay: what is selected in them, too.
export function showMarkdown(element, text, done = true) {
  if (done) {
    coming.delete(element);
    element.replaceChildren(drawn(marked.parse(text)));
    const codes = [...element.querySelectorAll("code.tex")];
    if (codes.length) drawTex(codes);
    return;
  }
  const blocks = marked.lexer(text), before = coming.get(element) ?? [];
  let same = 0;
  while (same < before.length && before[same].raw === blocks[same]?.raw) same += 1;
  const now = before.slice(0, same);
  if (same) for (const { nodes } of before.slice(same)) for (const node of nodes) node.remove();
  else element.replaceChildren();
  for (const block of blocks.slice(same)) {
    const fragment = drawn(marked.parser([block]));
    now.push({ raw: block.raw, nodes: [...fragment.childNodes] });
    element.append(fragment);
  }
  coming.set(element, now);
}

// An answer's parts: what the model thinks and calls is shown apart from what it says.
export function parts(text) {
  const found = [];
  const rule = /<(think|tool_call)>([\s\S]*?)(?:<\/\1>|$)/g;
  let from = 0;
  for (const match of text.matchAll(rule)) {
    if (text.slice(from, match.index).trim()) found.push({ kind: "text", text: text.slice(from, match.index) });
    found.push({ kind: match[1], text: match[2].trim(), open: !match[0].endsWith(`</${match[1]}>`) });
    from = match.index + match[0].length;
  }
  if (text.slice(from).trim() || !found.length) found.push({ kind: "text", text: text.slice(from) });
  return found;
}
