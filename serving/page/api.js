// Calls of the API. Every failure is an ApiError whose message a person can read.

const PATIENCE_MS = 290_000; // the server gives up after 300 s
const TOKEN = "ohlora.token";

export class ApiError extends Error {
  constructor(code, message, status = 0, retryAfter = 0) {
    super(message);
    Object.assign(this, { code, status, retryAfter });
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (value) => sessionStorage.setItem(TOKEN, value),
};

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, signal: AbortSignal.timeout(PATIENCE_MS) });
  } catch (error) {
    throw error.name === "TimeoutError"
      ? new ApiError("timeout", "대답이 너무 오래 걸려요.")
      : new ApiError("offline", "오로라와 연결이 끊겼어요.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const { code = "internal", message = "문제가 생겼어요." } = body.error?.code ? body.error : {};
  throw new ApiError(code, message, response.status, Number(response.headers.get("Retry-After")) || 0);
}

export const greeting = async () => (await call("/api/greeting")).json();

const post = (path, session, message) =>
  call(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ session, message }),
  });

// One turn. `onSpeech` gets all that she has said so far, again and again, while she is still writing; a
// stream that does not come through is replaced by an answer in one piece.
export async function chat(session, message, onSpeech) {
  try {
    return await streamed(await post("/api/chat/stream", session, message), onSpeech);
  } catch (error) {
    if (error.status || error.code === "timeout") throw error; // the server has answered: no
    onSpeech("");
    return (await post("/api/chat", session, message)).json();
  }
}

async function streamed(response, onSpeech) {
  let waiting = "";
  let said = "";
  for await (const piece of pieces(response.body.pipeThrough(new TextDecoderStream()))) {
    const blocks = (waiting + piece).split("\n\n");
    waiting = blocks.pop();
    for (const block of blocks) {
      const [, name, data] = block.match(/^event: (\w+)\ndata: (.*)$/);
      const told = JSON.parse(data);
      if (name === "speech") onSpeech((said += told.text));
      if (name === "turn") return told;
      if (name === "error") throw new ApiError(told.error.code, told.error.message, 500);
    }
  }
  throw new ApiError("offline", "오로라와 연결이 끊겼어요.");
}

async function* pieces(stream) {
  const reader = stream.getReader();
  try {
    for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}

export const memories = async (session) =>
  (await (await call(`/api/memories?session=${encodeURIComponent(session)}`)).json()).memories;

export async function face({ eyes, mouth, pose }) {
  const query = new URLSearchParams({ eyes, mouth, pose });
  return URL.createObjectURL(await (await call(`/api/face?${query}`)).blob());
}

// Why the service is not ready: "" once it is, "loading", or what is wrong.
export async function unreadiness() {
  try {
    const response = await fetch("/readyz");
    return response.ok ? "" : (await response.text()).trim() || "loading";
  } catch {
    return "loading";
  }
}
