// The chat page: one conversation, one message at a time; what a person typed is never lost.

import * as api from "./api.js";
import { Face } from "./face.js";
import * as store from "./store.js";
import * as view from "./view.js";

const $ = (id) => document.getElementById(id);
const log = $("log");
const message = $("message");
const send = $("send");
const face = new Face($("face"));

let conversation = store.load();
let hello = null; // the answer of /api/greeting
let waiting = false;
let closeToast = () => {};

const length = (text) => [...text].length; // code points, as the server counts
const toast = (...what) => (closeToast = view.toast($("toasts"), ...what));

function add(node) {
  log.append(node);
  log.scrollTo({ top: log.scrollHeight, behavior: "smooth" });
  return node;
}

function render() {
  log.replaceChildren();
  add(view.bubble({ who: "her", text: hello.text }));
  conversation.turns.forEach((turn) => add(view.bubble(turn)));
  log.scrollTop = log.scrollHeight;
}

function refresh() {
  const used = length(message.value);
  const limit = hello?.max_message_chars ?? Infinity;
  $("counter").textContent = used > 0.8 * limit ? `${used} / ${limit}` : "";
  $("counter").classList.toggle("over", used > limit);
  message.disabled = !hello || waiting;
  send.disabled = message.disabled || !message.value.trim() || used > limit;
  $("new-chat").disabled = message.disabled;
  message.style.height = "auto";
  message.style.height = `${Math.min(message.scrollHeight, 160)}px`;
}

function setWaiting(value) {
  waiting = value;
  face.busy = value;
  log.setAttribute("aria-busy", value);
  refresh();
  if (!value && matchMedia("(hover: hover)").matches) message.focus();
}

async function say(text) {
  closeToast();
  const mine = add(view.bubble({ who: "me", text }));
  let shown = add(view.typing()); // dots, then what she has said so far
  const show = (node) => {
    shown.remove();
    shown = add(node);
  };
  const listen = (said) => {
    if (!said) return show(view.typing());
    if (shown.matches(".typing")) show(view.bubble({ who: "her", text: said }));
    else view.say(shown, said);
    log.scrollTop = log.scrollHeight;
  };
  message.value = "";
  setWaiting(true);
  $("mood").textContent = "생각하는 중";
  try {
    const turn = await api.chat(conversation.session, text, listen);
    const hers = { who: "her", text: turn.text, used: turn.memories_used, written: turn.memories_written };
    conversation.turns.push({ who: "me", text }, hers);
    conversation.draft = "";
    store.save(conversation);
    show(view.bubble(hers));
    hello.expression = turn.expression;
    await face.show(turn.image, turn.expression);
  } catch (error) {
    shown.remove();
    mine.remove();
    message.value = text;
    explain(error, () => say(message.value.trim()));
  } finally {
    $("mood").textContent = hello.expression.label;
    setWaiting(false);
  }
}

function explain(error, again) {
  if (error.status === 401) return askToken(again);
  if (!(error instanceof api.ApiError)) console.error(error);
  const text = error instanceof api.ApiError ? error.message : "문제가 생겼어요.";
  toast("trouble", error.retryAfter ? `${text} (${error.retryAfter}초쯤 뒤)` : text, "다시 시도", again);
}

function askToken(then) {
  const dialog = $("token-dialog");
  $("token").value = "";
  $("token-form").onsubmit = (event) => {
    event.preventDefault();
    api.token.set($("token").value.trim());
    dialog.close();
    then();
  };
  dialog.showModal();
}

async function wake() {
  for (let state = await api.unreadiness(); state; state = await api.unreadiness()) {
    if (state !== "loading") {
      $("mood").textContent = "일어나지 못했어요";
      return toast("trouble", `오로라를 깨우지 못했어요. (${state.slice(0, 200)})`, "다시 시도", wake);
    }
    await new Promise((done) => setTimeout(done, 1000));
  }
  try {
    hello = await api.greeting();
  } catch (error) {
    return explain(error, wake);
  }
  document.title = `${hello.name} · Oh-LoRA`;
  $("name").textContent = hello.name;
  $("profile").textContent = hello.profile;
  $("mood").textContent = hello.expression.label;
  message.value ||= conversation.draft;
  render();
  setWaiting(false);
  await face.show(hello.image, hello.expression);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!send.disabled) say(message.value.trim());
});

message.addEventListener("keydown", (event) => {
  // While a Hangul syllable is being composed, Enter belongs to the input method.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  $("composer").requestSubmit();
});

message.addEventListener("input", () => {
  conversation.draft = message.value;
  store.save(conversation);
  refresh();
});

$("new-chat").addEventListener("click", () => {
  const before = { ...conversation };
  conversation = store.fresh();
  conversation.draft = before.draft;
  store.save(conversation);
  render();
  toast("calm", "새 대화를 시작했어요. 오로라도 처음 만난 것처럼 이야기해요.", "되돌리기", () => {
    conversation = before;
    store.save(conversation);
    render();
  });
  message.focus();
});

$("show-memories").addEventListener("click", async () => {
  try {
    const items = await api.memories(conversation.session);
    view.remembered($("memories-list"), items);
    $("memories-empty").hidden = items.length > 0;
    $("memories").showModal();
  } catch (error) {
    explain(error, () => $("show-memories").click());
  }
});

// A composer that grows or a keyboard that opens must not hide what she just said.
new ResizeObserver(() => (log.scrollTop = log.scrollHeight)).observe(log);

refresh();
wake();
