// Pieces of the document that are made once, from a template, and from then on only written to where something changed:
// a reader's focus, selection and place stay. All text goes into text nodes, so a name is never markup.

import { SLOTS } from "./history.js";

const SVG = "http://www.w3.org/2000/svg";

/** An element with the parts of it that change, by the names in their data attributes. */
export class Piece {
  #texts = {};
  #bars = {};
  #marks = {};
  #lines = {};
  #state = null;
  #kind = "";

  constructor(element) {
    this.element = element;
    const parts = (kind) => element.querySelectorAll(`[data-${kind}]`);
    for (const part of parts("field")) this.#texts[part.dataset.field] = part.appendChild(new Text());
    for (const part of parts("bar")) this.#bars[part.dataset.bar] = part;
    for (const part of parts("mark")) this.#marks[part.dataset.mark] = part;
    for (const part of parts("trail")) this.#lines[part.dataset.trail] = line(part);
    const state = element.matches("[data-kind]") ? element : element.querySelector("[data-state]");
    if (state) {
      const [mark, words] = [state.querySelector(".mark"), state.querySelector("[data-text]")];
      mark.textContent = words.textContent = "";
      this.#state = { element: state, mark: mark.appendChild(new Text()), words: words.appendChild(new Text()) };
    }
  }

  static of(templateId) {
    return new Piece(document.getElementById(templateId).content.firstElementChild.cloneNode(true));
  }

  text(name, words, attention = false) {
    const text = this.#texts[name];
    if (text.data === words) return;
    text.data = words;
    if ((text.attention ?? false) === attention) return;
    text.parentNode.classList.toggle("attention", (text.attention = attention));
  }

  /** Fills a bar up to a share of it; null empties it. */
  bar(name, share) {
    style(this.#bars[name], `scaleX(${clamp(share ?? 0).toFixed(3)})`);
  }

  /** Sets the mark for what the plan predicts; null takes it away. */
  mark(name, share) {
    const mark = this.#marks[name];
    mark.hidden = share === null || share === undefined;
    if (!mark.hidden) style(mark, `translateX(${(clamp(share) * 100).toFixed(1)}%)`);
  }

  state({ kind, mark, words }) {
    if (this.#kind !== kind) this.#state.element.dataset.kind = this.#kind = kind;
    if (this.#state.mark.data !== mark) this.#state.mark.data = mark;
    if (this.#state.words.data !== words) this.#state.words.data = words;
  }

  /** Draws a trail, once for each of its slots; `top` is what the height of the box stands for. */
  trail(name, trail, top) {
    const drawn = this.#lines[name];
    if (drawn.slot === trail.newest) return;
    drawn.slot = trail.newest;
    const { line, area } = trail.paths(top);
    drawn.line.setAttribute("d", line);
    drawn.area.setAttribute("d", area);
  }
}

const clamp = (share) => Math.min(Math.max(share, 0), 1);

function style(part, transform) {
  if (part.shown !== transform) part.style.transform = part.shown = transform;
}

function line(svg) {
  svg.setAttribute("viewBox", `0 -0.06 ${SLOTS} 1.12`);
  svg.setAttribute("preserveAspectRatio", "none");
  const [area, line] = ["area", "line"].map((name) => {
    const path = svg.appendChild(document.createElementNS(SVG, "path"));
    path.classList.add(name);
    return path;
  });
  return { area, line, slot: null };
}

/** Puts elements into a list in this order, and moves only those that stand elsewhere; what else is there goes. */
export function arrange(list, elements) {
  const wanted = new Set(elements);
  for (const element of [...list.children]) if (!wanted.has(element)) element.remove();
  let next = list.firstElementChild;
  for (const element of elements) {
    if (element === next) next = next.nextElementSibling;
    else list.insertBefore(element, next);
  }
}

export function show(element, shown) {
  if (element.hidden === shown) element.hidden = !shown;
}
