// The models as tiles: attainment and latency beside what the plan predicts, and what became of requests, and why.

import { arrange, Piece, show } from "./elements.js";
import { Counters, Trail } from "./history.js";
import { attainment, count, difference, latency, OUTCOMES, ranges, rate, STATES } from "./words.js";

const REORDER_S = 5; // tiles change places no more often than this, and not while something in them is selected
const WINDOWS = [["1m", "1 min"], ["5m", "5 min"], ["1h", "1 h"]];

// The counters of a model in the order in which its history keeps them.
const REQUESTS = 0;
const BATCHES = 1;
const SERVED = 2;
const FIRST_OUTCOME = 3;

const outcome = (model, { key, refused }) => (refused ? model.refused[key] : model[key]) ?? 0;

class Model {
  #piece = Piece.of("model-template");
  #counters = new Counters();
  #minute = new Counters(60);
  #traffic = new Trail();
  #outcomes = OUTCOMES.map(() => null); // a row of its own once there is one

  constructor() {
    this.element = this.#piece.element;
  }

  take(now, model) {
    this.latest = model;
    const outcomes = OUTCOMES.map((each) => outcome(model, each));
    this.#counters.add(now, [model.requests, model.batches, model.served, ...outcomes]);
    this.#minute.add(now, [model.requests]);
    this.#traffic.add(now, this.#counters.step(REQUESTS));
  }

  get rate() {
    return this.#counters.rate(REQUESTS);
  }

  /** The mean rate of the last minute: the weight of its attainment in that time. */
  get weight() {
    return this.#minute.rate(0);
  }

  get servedRate() {
    return this.#counters.rate(SERVED);
  }

  outcomeRate(i) {
    return this.#counters.rate(FIRST_OUTCOME + i);
  }

  get refused() {
    return OUTCOMES.reduce((sum, each) => (each.refused ? sum + outcome(this.latest, each) : sum), 0);
  }

  /** The youngest attainment that is known, and over how long. */
  get attained() {
    const window = WINDOWS.find(([key]) => (this.latest.attainment[key] ?? null) !== null);
    return window ? { share: this.latest.attainment[window[0]], over: window[1] } : { share: null, over: "" };
  }

  draw() {
    const { name, ready, groups, deadline_s, latency_p99_s, predicted_attainment: predicted } = this.latest;
    const piece = this.#piece;
    piece.state(ready ? STATES.ready : STATES.notReady);
    piece.text("name", name);
    piece.text("rate", rate(this.rate));
    piece.trail("rate", this.#traffic, this.#traffic.highest());
    piece.text("where", this.#where(groups));
    for (const [key] of WINDOWS) piece.text(key, attainment(this.latest.attainment[key]));
    piece.text("predicted_attainment", attainment(predicted));
    const { share, over } = this.attained;
    piece.bar("attainment", share);
    piece.mark("attainment", predicted);
    const compared = difference(share, predicted);
    const window = over === WINDOWS[0][1] ? "" : `${over}: `;
    piece.text("difference", compared ? window + compared.words : "", compared?.points <= -1);
    piece.text("p50", latency(this.latest.latency_p50_s));
    piece.text("p99", latency(latency_p99_s));
    piece.text("deadline", latency(deadline_s));
    piece.text("predicted_latency", latency(this.latest.predicted_latency_s));
    piece.text("over", deadline_s && latency_p99_s > deadline_s ? "▲ p99 is over the deadline" : "", true);
    piece.text("drift", this.#drift());
    this.#drawOutcomes();
  }

  #where(groups) {
    const where = groups.length ? `On ${groups.length > 1 ? "groups" : "group"} ${ranges(groups)}` : "On no group";
    const batches = this.#counters.rate(BATCHES);
    return batches > 0 && this.servedRate > 0 ? `${where}, ${(this.servedRate / batches).toFixed(1)} requests a batch` : where;
  }

  #drift() {
    const { drift, predicted_error_p50_s: error } = this.latest;
    const words = [];
    if ((drift ?? null) !== null) words.push(`drift ${drift.toFixed(2)}`);
    if ((error ?? null) !== null) {
      words.push(`answered ${latency(Math.abs(error))} ${error < 0 ? "sooner" : "later"} than predicted`);
    }
    return words.join(", ");
  }

  #drawOutcomes() {
    const { requests, served } = this.latest;
    this.#piece.text("since", `${count(served)} of ${count(requests)} served`);
    let grown = false;
    OUTCOMES.forEach((each, i) => {
      const number = outcome(this.latest, each);
      if (!number && !this.#outcomes[i]) return;
      const row = (this.#outcomes[i] ??= ((grown = true), Piece.of("outcome-template")));
      row.text("count", count(number));
      row.text("word", `${each.key}:`);
      row.text("why", each.why);
      row.text("now", this.outcomeRate(i) ? rate(this.outcomeRate(i)) : "");
      show(row.element, number > 0);
    });
    if (!grown) return;
    const rows = this.#outcomes.filter(Boolean).map((row) => row.element);
    arrange(this.element.querySelector(".outcomes"), rows);
  }
}

const byName = (a, b) => (a.latest.name < b.latest.name ? -1 : a.latest.name > b.latest.name ? 1 : 0);
const rounded = (value, unit) => Math.round(value * unit) / unit; // so that what is about the same stays where it is

// Each gives a number by which to sort, the smallest first; names settle ties.
const ORDERS = {
  name: () => 0,
  worst: (model) => (model.latest.ready ? rounded(model.attained.share ?? 2, 1000) : -1),
  traffic: (model) => -Number((model.rate ?? 0).toPrecision(2)),
  refused: (model) => -model.refused,
};

export class Models {
  #list;
  #summary;
  #controls;
  #models = new Map();
  #arrangedAt = -Infinity;
  #now = 0;
  #stale = true; // the order is not that of these models

  constructor(list, summary, controls) {
    this.#list = list;
    this.#summary = summary;
    this.#controls = controls;
    for (const control of Object.values(controls)) control.addEventListener("input", () => this.#arrange());
  }

  get all() {
    return [...this.#models.values()];
  }

  take(now, models) {
    const before = this.#models;
    this.#models = new Map(models.map(({ name }) => [name, before.get(name) ?? new Model()]));
    for (const latest of models) this.#models.get(latest.name).take(now, latest);
    this.#stale ||= before.size !== this.#models.size || models.some(({ name }) => !before.has(name));
    this.#now = now;
  }

  draw() {
    for (const model of this.#models.values()) model.draw();
    const passed = this.#now - this.#arrangedAt;
    if (this.#stale || ((passed >= REORDER_S || passed < 0) && !this.#selected())) this.#arrange();
  }

  #arrange() {
    const key = ORDERS[this.#controls.sort.value];
    const sorted = this.all.map((model) => ({ model, key: key(model) }));
    sorted.sort((a, b) => a.key - b.key || byName(a.model, b.model));
    const wanted = this.#controls.filter.value.trim().toLowerCase();
    let shown = 0;
    for (const { model } of sorted) {
      const matches = model.latest.name.toLowerCase().includes(wanted);
      show(model.element, matches);
      shown += matches;
    }
    arrange(this.#list, sorted.map(({ model }) => model.element));
    this.#arrangedAt = this.#now;
    this.#stale = false;
    this.#sum(shown);
  }

  #sum(shown) {
    const all = this.#models.size;
    const some = shown === all ? `${count(all)} loaded` : `${count(shown)} of ${count(all)} shown`;
    const words = all ? some : "No models are loaded.";
    if (this.#summary.textContent !== words) this.#summary.textContent = words;
  }

  #selected() {
    const selection = getSelection();
    return !selection.isCollapsed && this.#list.contains(selection.anchorNode);
  }
}
