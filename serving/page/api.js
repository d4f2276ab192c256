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

export const chat = async (session, message) =>
  (
    await call("/api/chat", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ session, message }),
    })
  ).json();

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
