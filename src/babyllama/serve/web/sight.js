// What a model sees of a conversation: the turns that it answered, as many as its training's chats had, as far as they fit.

import { post } from "./api.js";

// Earlier turns that the model learned to read; undefined: all.
export const memory = (about, name) => about.memory?.[name];

const said = (node) => node.text || node.thinking || node.tools;

// Of messages {role, text, …} up to a question, or up to an answer's end.
export function seen(about, name, nodes) {
  const kept = nodes.filter((node, i) => i === nodes.length - 1 || (node.role === "user" ? nodes[i + 1].role === "user" || said(nodes[i + 1]) : said(node)));
  return memory(about, name) === undefined ? kept : kept.slice(-2 * memory(about, name) - 1);
}

// What is sent: without the oldest turns where no quarter of the context were left for the answer, as in a terminal's chat.
export async function fitting(name, told, messages, signal) {
  for (let forgotten = 0; ; forgotten += 1) {
    const asked = [...told, ...messages.slice(2 * forgotten)];
    if (messages.length < 2 * forgotten + 3) return { messages: asked, forgotten };
    const { count, max_model_len: context } = await post("/v1/tokenize", { model: name, messages: asked }, signal);
    if (count <= 0.75 * context) return { messages: asked, forgotten };
  }
}

// The end of a text that is continued, likewise: as token ids where its beginning had to go.
export async function ending(name, text, signal) {
  const { tokens, count, max_model_len: context } = await post("/v1/tokenize", { model: name, prompt: text }, signal);
  const room = Math.floor(0.75 * context);
  return count <= room ? { prompt: text } : { prompt: tokens.slice(-room), cut: count - room };
}

export const content = ({ role, text }) => ({ role, content: text });

// An answer that goes on: with its thought, which stays open where nothing was said after it.
export const begun = ({ role, text, thinking }) => (!thinking ? { role, content: text }
  : text ? { role, content: text, reasoning_content: thinking } : { role, content: `<think>\n${thinking}` });

// Whether an answer has a rest that its model can still write; not where it filled the context and its question stood `alone` before it.
export function hasRest(about, node, alone) {
  const full = alone && node.total >= about.context[node.model];
  return said(node) && !["stop", "tool_calls"].includes(node.finish) && about.models.includes(node.model) && !full;
}
