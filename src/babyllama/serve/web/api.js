// The server: JSON, and streams of events. Asks for a key once where one is needed.

import { settings, keep } from "./settings.js";
import { dialog, h, field } from "./dom.js";
import { t } from "./i18n.js";
import { WORDS } from "./words.js";

// What the server says is wrong; before it, where the reader has another language, the kind of fault in that.
export class Fault extends Error {
  constructor(message, code, status) {
    const kind = [code, `status${status}`].find((key) => key in WORDS);
    super(kind && t(kind) ? `${t(kind)}（${message}）` : message);
  }
}

let asking = null;

function askKey() {
  asking ??= new Promise((resolve) => {
    const input = h("input", { type: "password", autocomplete: "off", required: true, value: settings.key });
    const shown = dialog(t("keyTitle"), t("close"), h("form", {
      class: "stack",
      onsubmit: (event) => {
        event.preventDefault();
        keep({ key: input.value.trim() });
        shown.close("given");
      },
    }, settings.key && h("p", { class: "fault", role: "alert" }, t("keyWrong")), h("p", {}, t("keyWhy")), field(t("key"), input), h("button", { class: "main" }, t("keyUse"))));
    shown.addEventListener("close", () => {
      asking = null;
      resolve(shown.returnValue === "given");
    });
    input.focus();
  });
  return asking;
}

// `path` is below the place that this page came from, which a proxy may have put below a path of its own.
async function ask(path, options = {}) {
  for (;;) {
    const headers = { ...options.headers };
    if (settings.key) headers.Authorization = `Bearer ${settings.key}`;
    let answer;
    try {
      answer = await fetch(new URL(`..${path}`, import.meta.url), { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Fault(t("unreachable"));
    }
    if (answer.status === 401 && (await askKey())) continue;
    if (!answer.ok) {
      const body = await answer.json().catch(() => null);
      throw new Fault(body?.error?.message ?? `${answer.status} ${answer.statusText}`, body?.error?.code, answer.status);
    }
    return answer;
  }
}

export const get = async (path) => (await ask(path)).json();

function posted(body, signal) {
  return { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal };
}

export const post = async (path, body, signal) => (await ask(path, posted(body, signal))).json();

// The events of a streamed completion.
export async function* stream(path, body, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const answer = await ask(path, posted(asked, signal));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        const data = line.slice(6).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Fault(event.error.message, event.error.code, 500);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// One answer to a chat, or what follows a text (body.prompt), with its figures, while it comes. `show(answer)` is called after every event.
export async function answer(body, signal, show) {
  const began = performance.now();
  const found = { text: "", thinking: "", tools: "", first: null, seconds: 0, tokens: 0, finish: null };
  const figures = () => {
    found.seconds = (performance.now() - began) / 1000;
    show(found);
  };
  const route = body.prompt === undefined ? "/v1/chat/completions" : "/v1/completions";
  for await (const event of stream(route, body, signal)) {
    const choice = event.choices?.[0];
    const delta = choice?.delta ?? { content: choice?.text };
    const came = delta.content || delta.reasoning_content || delta.tool_calls;
    if (came && found.first === null) found.first = (performance.now() - began) / 1000;
    if (delta.content) found.text += delta.content;
    if (delta.reasoning_content) found.thinking += delta.reasoning_content;
    for (const call of delta.tool_calls ?? []) found.tools += (call.function?.name ?? "") + (call.function?.arguments ?? "");
    if (choice?.finish_reason) found.finish = choice.finish_reason;
    if (event.usage) Object.assign(found, { tokens: event.usage.completion_tokens, total: event.usage.total_tokens });
    figures();
  }
  return found;
}

// An answer and what followed it, as one. How many tokens it has is not known where it was stopped.
export function joined(start, found) {
  const tokens = start.tokens && found.tokens ? start.tokens + found.tokens : 0;
  return { ...found, text: start.text + found.text, thinking: (start.thinking ?? "") + found.thinking, tools: (start.tools ?? "") + found.tools,
    first: start.first ?? found.first, seconds: (start.seconds ?? 0) + found.seconds, tokens };
}
