"use strict";
// Plays texts being filled in. Whatever a model wrote enters the page as text alone.

const PLAYING_TIME = 8000; // milliseconds, of all moments at normal speed
const SHORTEST = 30; // between two moments

function make(name, className, text) {
  const element = document.createElement(name);
  element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// control characters are shown by their pictures
function printable(text) {
  return text.replace(/[\x00-\x08\x0b-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0))).replace(/\x7f/g, "\u2421");
}

// a single token: its spaces and line breaks too
function named(text) {
  return printable(text).replace(/ /g, "\u2423").replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5") || "(nothing)";
}

function percent(share) {
  return share < 0.0001 && share > 0 ? "< 0.01 %" : `${(100 * share).toFixed(share < 0.1 ? 2 : 1)} %`;
}

class Player {
  // held: of every position of every row, whether it was given; masks: whether there are any;
  // absorbs: whether what is no mask has been decided
  constructor(root, { held, masks, absorbs }) {
    Object.assign(this, { held, masks, absorbs, most: 0, frames: [], index: -1, timer: null, pointed: null });
    const box = make("div", "");
    box.append(this.legend(), ...held.map((row, i) => this.sample(row, i)), this.bar(), this.card());
    box.addEventListener("mouseover", (event) => this.point(event.target.closest("[data-place]")));
    box.addEventListener("mouseleave", () => this.point(null));
    box.addEventListener("focusin", (event) => this.point(event.target.closest("[data-place]")));
    box.addEventListener("focusout", () => this.point(null));
    box.addEventListener("keydown", (event) => this.walk(event));
    this.leaving = new AbortController();
    window.addEventListener("scroll", () => this.point(null), { passive: true, signal: this.leaving.signal });
    root.replaceChildren(box);
  }

  // before another player takes its place
  leave() {
    this.pause();
    this.leaving.abort();
  }

  legend() {
    const legend = make("div", "legend");
    const kinds = [["given", "given", "and kept"], ["drawn", "drawn", "by the model"], ["fresh", "new", "at this moment"]];
    if (!this.absorbs) kinds.push(["unsure", "noise", "may still change"]);
    for (const [kind, name, meaning] of kinds) {
      const entry = make("span", "");
      entry.append(make("span", `token ${kind}`, name), ` ${meaning}`);
      legend.append(entry);
    }
    if (this.masks) {
      const entry = make("span", "");
      entry.append(make("span", "hole"), " still masked");
      legend.append(entry);
    }
    return legend;
  }

  sample(held, row) {
    const sample = make("article", "sample"), header = make("header", "");
    header.append(make("span", "", `Sample ${row + 1}`), make("span", "spent"));
    const text = make("p", "text");
    text.dir = "auto";
    held.forEach((_, place) => {
      const token = make("span", "token");
      token.dataset.place = place;
      token.dataset.row = row;
      token.tabIndex = place ? -1 : 0; // one stop for the tab key; arrows go on from there
      text.append(token);
    });
    sample.append(header, text);
    (this.texts ??= []).push(text);
    (this.spent ??= []).push(header.lastChild);
    return sample;
  }

  bar() {
    const bar = make("div", "controls");
    const button = (text, label, action) => {
      const made = make("button", "", text);
      made.type = "button";
      made.setAttribute("aria-label", label);
      made.title = label;
      made.addEventListener("click", action);
      bar.append(made);
      return made;
    };
    button("\u2190", "Step back", () => this.step(-1));
    this.button = button("Play", "Play or pause", () => (this.timer ? this.pause() : this.play()));
    button("\u2192", "Step forward", () => this.step(1));
    this.slider = make("input", "");
    Object.assign(this.slider, { type: "range", min: 0, max: 0, value: 0 });
    this.slider.setAttribute("aria-label", "Moment");
    this.slider.addEventListener("input", () => { this.pause(); this.show(Number(this.slider.value)); });
    this.speed = make("select", "");
    this.speed.setAttribute("aria-label", "Speed");
    for (const speed of [0.25, 0.5, 1, 2, 4]) this.speed.append(new Option(`${speed}\u00d7`, speed, speed === 1, speed === 1));
    this.status = make("output", "");
    this.status.setAttribute("aria-live", "off"); // it is rewritten at every moment
    bar.append(this.slider, this.speed, this.status);
    return bar;
  }

  card() {
    this.guess = make("div", "guess");
    this.guess.id = "guess";
    this.guess.hidden = true;
    this.guess.setAttribute("role", "tooltip");
    return this.guess;
  }

  // a moment: {calls, most, evaluations, rows, guesses or none}; shown unless an earlier one is
  // looked at; `most` is the most calls in all, and of the last moment its own
  add(frame) {
    this.most = frame.most;
    const following = this.index === this.frames.length - 1;
    this.frames.push(frame);
    this.slider.max = this.frames.length - 1;
    if (following) this.show(this.frames.length - 1);
  }

  show(index) {
    const frame = this.frames[index], before = this.frames[Math.max(index - 1, 0)];
    const ended = frame.calls >= this.most, forward = index > this.index;
    this.index = index;
    let filled = 0, free = 0;
    frame.rows.forEach((row, i) => {
      const tokens = this.texts[i].children;
      row.forEach((text, place) => {
        const held = this.held[i][place], guess = frame.guesses?.[i][place];
        const fresh = !held && text !== null && text !== before.rows[i][place];
        const unsure = !held && !this.absorbs && !ended;
        const kind = held ? "given" : text === null ? "hole" : unsure ? "unsure" : "drawn";
        const token = tokens[place];
        token.className = `token ${kind}${fresh ? " fresh" : ""}${fresh && forward ? " moving" : ""}`;
        token.textContent = text === null ? "" : printable(text);
        for (const [name, value] of [["role", "img"], ["aria-label", "masked"]]) {
          if (text === null) token.setAttribute(name, value);
          else token.removeAttribute(name);
        }
        if (guess) token.dataset.guess = "";
        else delete token.dataset.guess;
        token.style.setProperty("--sure", guess ? guess[0][0][1] : 0.15);
        free += !held;
        filled += !held && (this.absorbs ? text !== null : ended);
      });
      this.spent[i].textContent = frame.evaluations[i] === 1 ? "1 evaluation" : `${frame.evaluations[i]} evaluations`;
    });
    this.slider.value = index;
    const rest = this.absorbs ? ` \u00b7 ${Math.round((100 * filled) / Math.max(free, 1))} % filled` : "";
    this.status.textContent = `call ${frame.calls} of ${this.most}${rest}`;
    this.slider.setAttribute("aria-valuetext", this.status.textContent);
    this.explain();
  }

  step(by) {
    this.pause();
    this.show(Math.min(Math.max(this.index + by, 0), this.frames.length - 1));
  }

  play() {
    if (this.index >= this.frames.length - 1) this.show(0);
    this.button.textContent = "Pause";
    const next = () => {
      if (this.index >= this.frames.length - 1) return this.pause();
      this.show(this.index + 1);
      const time = Math.max(PLAYING_TIME / this.frames.length, SHORTEST) / Number(this.speed.value);
      this.timer = setTimeout(next, time);
    };
    this.timer = setTimeout(next, SHORTEST);
  }

  pause() {
    clearTimeout(this.timer);
    this.timer = null;
    this.button.textContent = "Play";
  }

  point(token) {
    this.pointed?.removeAttribute("aria-describedby");
    this.pointed = token;
    token?.setAttribute("aria-describedby", "guess");
    this.explain();
  }

  // the card beside the token that is pointed at
  explain() {
    const { row, place } = this.pointed?.dataset ?? {};
    const guess = row === undefined ? null : this.frames[this.index]?.guesses?.[row][place];
    this.guess.hidden = !guess;
    if (!guess) return;
    // the place of the drawn token among the likeliest, or the token itself
    const [likeliest, drawn] = guess, listed = typeof drawn === "number";
    const shown = listed ? likeliest : [...likeliest, drawn], end = listed ? drawn : likeliest.length;
    const bars = shown.map(([text, share], place) => {
      const bar = make("div", place === end ? "bar end" : "bar"), length = make("i", "");
      length.style.setProperty("--share", share / likeliest[0][1]);
      bar.append(make("code", "", named(text)), length, make("b", "", percent(share)));
      return bar;
    });
    const foot = make("p", "", `The sampler ends with \u201c${named(shown[end][0])}\u201d here.`);
    this.guess.replaceChildren(make("p", "", `Position ${Number(place) + 1}: the model expects`), ...bars, foot);
    const at = this.pointed.getBoundingClientRect(), size = this.guess.getBoundingClientRect();
    const left = Math.min(Math.max(at.left, 8), document.documentElement.clientWidth - size.width - 8);
    const below = at.bottom + 8 + size.height <= window.innerHeight;
    this.guess.style.left = `${left}px`;
    this.guess.style.top = `${below ? at.bottom + 8 : Math.max(at.top - size.height - 8, 8)}px`;
  }

  // the arrow keys go from token to token
  walk(event) {
    const token = event.target.closest("[data-place]");
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!token || !by) return;
    const next = token.parentNode.children[Number(token.dataset.place) + by];
    if (!next) return;
    event.preventDefault();
    token.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}
