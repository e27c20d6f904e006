// What the user chose, kept in this browser.

const KEY = "babyllama.settings";
export const SAMPLING = {
  temperature: { min: 0, max: 2, step: 0.05 },
  top_p: { min: 0, max: 1, step: 0.01 },
  top_k: { min: 0, max: 200, step: 1 },
  min_p: { min: 0, max: 1, step: 0.01 },
  repetition_penalty: { min: 0.5, max: 2, step: 0.05 },
  max_tokens: { min: 0, max: 4096, step: 1 },
  seed: { min: -1, max: 2147483647, step: 1 },
};

function read() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY));
    return found && typeof found === "object" ? found : {};
  } catch {
    return {};
  }
}

export const settings = { language: "", theme: "", key: "", model: "", system: "", continues: false, sampling: {}, compare: [], ...read() };

export function keep(changes) {
  Object.assign(settings, changes);
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // private windows may refuse: the choice then holds until the page is closed
  }
}

export function showTheme() {
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
}

// The part of a request that says how to sample: nothing where the user changed nothing, else that and, for the rest, what
// the page shows as the server's, which a request with a part of it would not get.
export function sampling(served = {}) {
  const changed = Object.fromEntries(Object.entries(settings.sampling).filter(([name, value]) =>
    name in SAMPLING && Number.isFinite(value) && !(name === "max_tokens" && value < 1) && !(name === "seed" && value < 0)));
  return Object.keys(changed).length ? { ...served, ...changed } : {};
}
