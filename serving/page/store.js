// What survives a reload: session, what was said, and a message that is not sent yet.

const KEY = "ohlora.conversation";
const KEPT = 100; // bubbles

const newSession = () =>
  [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");

export const fresh = () => ({ session: newSession(), turns: [], draft: "" });

export function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY));
    if (/^[\w-]{1,64}$/.test(kept.session) && Array.isArray(kept.turns)) return { ...fresh(), ...kept };
  } catch {
    // Nothing kept, or a browser that keeps nothing.
  }
  return fresh();
}

export function save(conversation) {
  conversation.turns = conversation.turns.slice(-KEPT);
  try {
    localStorage.setItem(KEY, JSON.stringify(conversation));
  } catch {
    // Then this conversation lasts as long as the page.
  }
}
