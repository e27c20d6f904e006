// Elements made in one call; text is always text, never HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, to] of Object.entries(value)) element.style.setProperty(key, to);
    else if (name === "value" || name === "checked" || name === "selected") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  add(element, children);
  return element;
}

export function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== undefined && child !== null && child !== false) element.append(child);
  }
  return element;
}

export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

export function replace(element, ...children) {
  element.replaceChildren();
  return add(element, children);
}

// The element's children become these; what is there already, in its place, is not touched.
export function arrange(element, children) {
  const wanted = new Set(children);
  for (const child of [...element.children]) if (!wanted.has(child)) child.remove();
  children.forEach((child, i) => element.children[i] === child || element.insertBefore(child, element.children[i] ?? null));
}

// Whether a key is an input method's, which takes Enter for the word that is chosen; Safari says so by this code alone.
export const composes = (event) => event.isComposing || event.keyCode === 229;

// Said to screen readers.
export function say(text) {
  document.getElementById("status").textContent = text;
}

// A file that the browser saves.
export function save(name, text, kind = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type: kind }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// The text of a file that the user picks; null when none is.
export function pick(accept) {
  return new Promise((resolve) => {
    const input = h("input", { type: "file", accept });
    input.addEventListener("change", async () => resolve(input.files[0] ? await input.files[0].text() : null));
    input.addEventListener("cancel", () => resolve(null));
    input.click();
  });
}

// A modal dialog with a title and a button that closes it.
export function dialog(title, close, ...children) {
  const shown = h("dialog", { "aria-label": title, class: "sheet" },
    h("form", { method: "dialog", class: "head" }, h("h2", {}, title),
      h("button", { class: "icon", "aria-label": close, title: close }, "✕")),
    children);
  shown.addEventListener("close", () => shown.remove());
  shown.addEventListener("click", (event) => event.target === shown && shown.close());
  document.body.append(shown);
  shown.showModal();
  return shown;
}

// A field with its name, and what it means.
export function field(name, control, meaning) {
  return h("label", { class: "field" }, h("span", { class: "name" }, name), control,
    meaning && h("small", {}, meaning));
}
