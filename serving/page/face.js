// Her face: cross-fades between expressions and blinks while nothing else happens.

import * as api from "./api.js";

const FRAME_MS = 60; // lids half down, closed, half up
const between = (low, high) => low + Math.random() * (high - low);
const wait = (ms) => new Promise((done) => setTimeout(done, ms));

export class Face {
  #layers;
  #lid;
  #shown = 0;
  #frames = null; // pictures of a blink in the present expression
  #change = 0; // counts expressions, so that a late answer for an old one is dropped
  #timer = 0;

  constructor(frame) {
    this.frame = frame;
    this.#layers = [...frame.querySelectorAll(".layer")];
    this.#lid = frame.querySelector(".lid");
    document.addEventListener("visibilitychange", () => this.#schedule());
  }

  set busy(value) {
    this.frame.dataset.state = value ? "thinking" : "idle";
    this.#schedule();
  }

  async show(image, expression) {
    const change = ++this.#change;
    const next = this.#layers[1 - this.#shown];
    next.src = image;
    await next.decode().catch(() => {});
    if (change !== this.#change) return;
    this.#lid.classList.remove("on");
    next.classList.add("on");
    this.#layers[this.#shown].classList.remove("on");
    this.#shown = 1 - this.#shown;
    this.frame.setAttribute("aria-label", `오로라의 얼굴, ${expression.label}`);
    this.#prepareBlink(expression, change);
  }

  async #prepareBlink(expression, change) {
    for (const url of Object.values(this.#frames ?? {})) URL.revokeObjectURL(url);
    this.#frames = null;
    if (expression.eyes < 0.25) return; // nothing to close
    try {
      const closed = await api.face({ ...expression, eyes: 0 });
      const half = await api.face({ ...expression, eyes: Math.min(0.4, expression.eyes / 2).toFixed(2) });
      if (change === this.#change) this.#frames = { closed, half };
    } catch {
      // She looks at you without blinking until the next expression.
    }
    this.#schedule();
  }

  #schedule() {
    clearTimeout(this.#timer);
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (document.hidden || still || !this.#frames || this.frame.dataset.state !== "idle") return;
    this.#timer = setTimeout(() => this.#blink(), between(3000, 6000));
  }

  async #blink() {
    const { closed, half } = this.#frames;
    const change = this.#change;
    for (const url of [half, closed, closed, half]) {
      if (change !== this.#change) break;
      this.#lid.src = url;
      await this.#lid.decode().catch(() => {});
      this.#lid.classList.add("on");
      await wait(FRAME_MS / 2);
    }
    this.#lid.classList.remove("on");
    this.#schedule();
  }
}
