// Conversations and votes, kept in this browser (IndexedDB).
//
// A conversation is a tree: every message has a parent, siblings are the branches; `leaf` is the message whose path is shown.

const NAME = "babyllama";

const opened = new Promise((resolve, reject) => {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("chats", { keyPath: "id" });
    request.result.createObjectStore("votes", { keyPath: "id" });
  };
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});
opened.catch(() => {});

async function act(store, mode, work) {
  const database = await opened;
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(store, mode);
    const request = work(transaction.objectStore(store));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, "0")).join("");

const over = (node) => node.role === "user" || Boolean(node.fault || (node.finish && node.finish !== "left"));

// `rounds`: how often an answer was gone on with.
const further = (one, other) => ((one.rounds ?? 0) - (other.rounds ?? 0) || over(one) - over(other)) > 0;

// Answers that nobody writes on: the page was left.
function ended(chat) {
  for (const node of Object.values(chat?.nodes ?? {})) if (!over(node)) node.finish = "left";
  return chat;
}

const removed = new Set(); // an answer to one may still be coming

export const chats = {
  all: async () => (await act("chats", "readonly", (s) => s.getAll())).sort((a, b) => b.changed - a.changed),
  one: async (id) => ended(await act("chats", "readonly", (s) => s.get(id))),
  // Beside what another tab wrote into the same conversation: of an answer, who wrote on it last, and else who saw its end; the last rating.
  put: async (chat) => removed.has(chat.id) || act("chats", "readwrite", (s) => {
    s.get(chat.id).onsuccess = ({ target }) => {
      for (const [id, node] of Object.entries(target.result?.nodes ?? {})) {
        const mine = chat.nodes[id];
        if (!mine || further(node, mine)) chat.nodes[id] = node;
        else if ((node.rated?.time ?? 0) > (mine.rated?.time ?? 0)) mine.rated = node.rated;
      }
      s.put(chat);
    };
  }),
  remove: (id) => {
    removed.add(id);
    return act("chats", "readwrite", (s) => s.delete(id));
  },
};

export const votes = {
  all: async () => (await act("votes", "readonly", (s) => s.getAll())).sort((a, b) => a.time - b.time),
  put: (vote) => act("votes", "readwrite", (s) => s.put(vote)),
  clear: () => act("votes", "readwrite", (s) => s.clear()),
};

// ── a conversation ──────────────────────────────────────────────────────────────────────────────────────────────
export const newChat = () => ({ id: newId(), title: "", created: Date.now(), changed: Date.now(), nodes: {}, leaf: null });

export function addMessage(chat, parent, role, text, more = {}) {
  const node = { id: newId(), parent, role, text, time: Date.now(), ...more };
  chat.nodes[node.id] = node;
  chat.leaf = node.id;
  chat.changed = Date.now();
  if (!chat.title && role === "user") chat.title = text.trim().replace(/\s+/g, " ").slice(0, 60);
  return node;
}

export function path(chat, leaf = chat.leaf) {
  const found = new Set();
  for (let node = chat.nodes[leaf]; node && !found.has(node); node = chat.nodes[node.parent]) found.add(node);
  return [...found].reverse();
}

// Of every message, its branches: messages by their parent, the oldest first.
export function families(chat) {
  const found = new Map();
  for (const node of Object.values(chat.nodes)) found.set(node.parent, [...(found.get(node.parent) ?? []), node]);
  for (const all of found.values()) all.sort((a, b) => a.time - b.time);
  return found;
}

// Show the branch of a message: down to its newest end.
export function choose(chat, node) {
  const family = families(chat);
  let last = node;
  while (family.has(last.id)) last = family.get(last.id).at(-1);
  chat.leaf = last.id;
}

export function matches(chat, words) {
  const text = [chat.title, ...Object.values(chat.nodes).map((n) => n.text)].join("\n").toLowerCase();
  return words.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

// The answers that were found good or bad, also those of votes that found all bad: lines as KTO takes them.
export function ratings(all, cast) {
  const line = (prompt, { text, model }, label, time) => ({ prompt, completion: [{ role: "assistant", content: text }], label, model, time: new Date(time).toISOString() });
  const rated = all.flatMap((chat) => Object.values(chat.nodes)).filter(({ rated }) => typeof rated?.good === "boolean");
  return [...rated.map((node) => line(node.rated.prompt, node, node.rated.good, node.rated.time)),
    ...cast.filter(({ best }) => best === "bad").flatMap(({ answers, time }) => answers.map((one) => line(one.prompt, one, false, time)))];
}

// ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────
export async function exported() {
  return JSON.stringify({ babyllama: "chats", version: 1, chats: await chats.all(), votes: await votes.all() }, null, 1);
}

const isText = (value) => typeof value === "string";

const isTime = (value) => !Number.isNaN(new Date(value).getTime()) && typeof value === "number";

const soundRating = (rated) => !rated || ([true, false, null].includes(rated.good) && isTime(rated.time) && Array.isArray(rated.prompt));

function soundNode(id, node) {
  return node && node.id === id && isText(node.text) && ["user", "assistant"].includes(node.role) && isTime(node.time) && soundRating(node.rated);
}

function soundVote(vote) {
  return isText(vote?.id) && isTime(vote.time) && Array.isArray(vote.answers) && (!Number.isInteger(vote.best) || vote.best in vote.answers) &&
    vote.answers.every((one) => isText(one?.text) && isText(one.model) && Array.isArray(one.prompt));
}

// Whether every message comes down from a first one: no parents in a circle.
function isTree(nodes) {
  const below = families({ nodes }), found = Object.values(nodes).filter(({ parent }) => !(parent in nodes));
  for (const node of found) found.push(...(below.get(node.id) ?? [])); // goes on to what is added
  return found.length === Object.keys(nodes).length;
}

function soundChat(chat) {
  return chat && isText(chat.id) && isText(chat.title) && Number.isFinite(chat.changed) && chat.nodes &&
    typeof chat.nodes === "object" && Object.entries(chat.nodes).every(([id, node]) => soundNode(id, node)) &&
    isTree(chat.nodes) && (chat.leaf === null || chat.leaf in chat.nodes);
}

// How many conversations came in; throws where the file is another's.
export async function imported(text) {
  const found = JSON.parse(text);
  if (found?.babyllama !== "chats" || !Array.isArray(found.chats) || !found.chats.every(soundChat) || !(found.votes ?? []).every(soundVote)) throw new Error("format");
  for (const chat of found.chats) {
    removed.delete(chat.id);
    await chats.put(chat);
  }
  for (const vote of found.votes ?? []) await votes.put(vote);
  return found.chats.length;
}
