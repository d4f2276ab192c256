// Pieces of the page, built from nodes and text: what people and models write is never parsed as HTML.

const make = (tag, className = "", text = "") => {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
};

const chip = (kind, text) => make("li", `chip ${kind}`, text);

export function bubble({ who, text, used = [], written = [] }) {
  const item = make("li", `turn ${who}`);
  item.append(make("span", "unseen", who === "her" ? "오로라: " : "나: "), make("p", "bubble", text));
  if (used.length || written.length) {
    const chips = make("ul", "chips");
    chips.append(...used.map((m) => chip("used", `떠올린 기억: ${m}`)));
    chips.append(...written.map((m) => chip("written", `기억했어: ${m}`)));
    item.append(chips);
  }
  return item;
}

export const say = (item, text) => (item.querySelector(".bubble").textContent = text);

export function typing() {
  const item = make("li", "turn her typing");
  const dots = make("p", "bubble");
  dots.setAttribute("aria-label", "오로라가 대답을 생각하고 있어요");
  dots.append(make("i"), make("i"), make("i"));
  item.append(dots);
  return item;
}

export function remembered(list, items) {
  list.replaceChildren(...items.map((m) => chip("written", m)));
}

export function toast(area, tone, message, action = "", onAction = () => {}) {
  area.replaceChildren(); // one at a time, the newest counts
  const box = make("div", `toast ${tone}`);
  box.append(make("p", "", message));
  const close = () => box.remove();
  if (action) {
    const button = make("button", "", action);
    button.type = "button";
    button.addEventListener("click", () => {
      close();
      onAction();
    });
    box.append(button);
  }
  const cross = make("button", "cross", "×");
  cross.type = "button";
  cross.setAttribute("aria-label", "알림 닫기");
  cross.addEventListener("click", close);
  box.append(cross);
  area.append(box);
  if (!action) setTimeout(close, 6000);
  return close;
}
