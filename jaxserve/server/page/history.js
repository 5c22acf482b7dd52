// What counters did of late: rates over a few seconds, and trails of the last minutes for the lines that are drawn.
// Time is the server's uptime, so that neither a slow network nor a page in the background bends a rate.

const SLOT_S = 3; // one point of a line
export const SLOTS = 60;

/** A few counters that only grow, until whoever counts starts anew. */
export class Counters {
  #window_s;
  #samples = []; // {at, values}, oldest first; the second is younger than the window

  /** Rates are means over `window_s`, where as much was seen. */
  constructor(window_s = 5) {
    this.#window_s = window_s;
  }

  add(at, values) {
    const samples = this.#samples;
    if (samples.at(-1)?.at === at) return; // sent once more, as to a stream that was just opened
    if (samples.length && !follows(samples.at(-1), at, values)) samples.length = 0;
    samples.push({ at, values });
    while (samples.length > 2 && samples[1].at <= at - this.#window_s) samples.shift();
  }

  /** What counter `i` gains in a second, over the window; null until there are two samples. */
  rate(i) {
    return this.#since(this.#samples[0], i);
  }

  /** The same since the sample before the last. */
  step(i) {
    return this.#since(this.#samples.at(-2), i);
  }

  #since(first, i) {
    const last = this.#samples.at(-1);
    return first && first !== last ? (last.values[i] - first.values[i]) / (last.at - first.at) : null;
  }
}

function follows(last, at, values) {
  return at > last.at && values.length === last.values.length && values.every((value, i) => value >= last.values[i]);
}

/** The last minutes of one number, in slots of a few seconds. */
export class Trail {
  newest = null; // the number of the slot that is being filled
  #slots = []; // {slot, sum, count, highest}, oldest first; none where nothing is known

  /** Adds a sample; null where the number is not known. */
  add(at, value) {
    const slot = Math.floor(at / SLOT_S);
    if (slot < this.newest) this.#slots = []; // the server started anew
    this.newest = slot;
    while (this.#slots[0]?.slot <= slot - SLOTS) this.#slots.shift();
    if (value === null) return;
    if (this.#slots.at(-1)?.slot !== slot) this.#slots.push({ slot, sum: 0, count: 0, highest: 0 });
    const last = this.#slots.at(-1);
    last.sum += value;
    last.count += 1;
    last.highest = Math.max(last.highest, value);
  }

  highest() {
    return this.#slots.reduce((highest, slot) => Math.max(highest, slot.highest), 0);
  }

  /** The line of the means, and the area under it, as SVG paths in a box of SLOTS by 1 whose top is `top`. */
  paths(top) {
    let line = "";
    let area = "";
    let start = null;
    let before = null;
    for (const { slot, sum, count } of this.#slots) {
      const x = SLOTS - (this.newest - slot);
      const y = (1 - Math.min(sum / count / (top || 1), 1)).toFixed(3);
      if (before === slot - 1) {
        line += `L${x} ${y}`;
        area += `L${x} ${y}`;
      } else {
        if (start !== null) area += `V1H${start}Z`; // nothing was seen in between
        line += `M${x} ${y}`;
        area += `M${x} 1V${y}`;
        start = x;
      }
      before = slot;
    }
    return { line, area: start === null ? "" : `${area}V1H${start}Z` };
  }
}
