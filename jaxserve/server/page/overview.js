// All of the server at a glance: figures over all models and groups, and what needs attention, in words.

import { Piece, show } from "./elements.js";
import { Trail } from "./history.js";
import { attainment, busy, count, difference, OUTCOMES, plural, rate, some, STATES } from "./words.js";

const NAMED = 5; // of those that need attention

export class Overview {
  #piece;
  #troubles;
  #trails = { rate: new Trail(), refused: new Trail(), in_flight: new Trail(), busy: new Trail() };

  constructor(element, troubles) {
    this.#piece = new Piece(element);
    this.#troubles = troubles;
  }

  take(now, snapshot, groups, models) {
    this.snapshot = snapshot;
    this.groups = groups;
    this.models = models;
    this.outcomes = OUTCOMES.map((each, i) => ({ ...each, rate: sum(models, (model) => model.outcomeRate(i)) }));
    this.rate = sum(models, (model) => model.rate);
    this.refused = sum(this.outcomes.filter((each) => each.refused), (each) => each.rate);
    this.busy = mean(groups, (group) => group.busy, (group) => group.latest.inter_op);
    this.predictedBusy = mean(groups, (group) => group.latest.predicted_utilization, (group) => group.latest.inter_op);
    this.attained = mean(models, (model) => model.latest.attainment["1m"], (model) => model.weight);
    this.#trails.rate.add(now, this.rate);
    this.#trails.refused.add(now, this.refused);
    this.#trails.in_flight.add(now, snapshot.server.in_flight);
    this.#trails.busy.add(now, this.busy);
  }

  draw() {
    const piece = this.#piece;
    const plan = this.snapshot.plan;
    const compared = difference(this.attained, plan?.slo_attainment);
    piece.text("attainment", attainment(this.attained));
    piece.bar("attainment", this.attained);
    piece.mark("attainment", plan?.slo_attainment);
    const predicted = plan && `the plan predicts ${attainment(plan.slo_attainment)} (${plan.policy})`;
    piece.text("plan", predicted ?? "no plan to compare with");
    piece.text("difference", compared?.words ?? "", compared?.points <= -1);
    piece.text("rate", rate(this.rate));
    piece.text("served", `${rate(sum(this.models, (model) => model.servedRate))} served`);
    piece.text("refused", rate(this.refused));
    piece.text("reasons", this.#reasons());
    piece.text("in_flight", count(this.snapshot.server.in_flight));
    const waiting = this.groups.filter((group) => group.latest.queue > 0);
    const queued = waiting.reduce((total, group) => total + group.latest.queue, 0);
    piece.text("queued", queued ? `${count(queued)} queued in ${plural(waiting.length, "group")}` : "none queued");
    piece.text("busy", busy(this.busy));
    const planned = this.predictedBusy !== null;
    piece.text("busy_plan", planned ? `the plan predicts ${busy(this.predictedBusy)}` : "mean of all stages");
    for (const [name, trail] of Object.entries(this.#trails)) {
      piece.trail(name, trail, name === "busy" ? 1 : trail.highest());
    }
    this.#drawTroubles();
  }

  #reasons() {
    const now = (kind) => {
      const some = this.outcomes.filter((each) => each[kind] && each.rate > 0);
      return some.map((each) => `${each.key} ${rate(each.rate)}`).join(", ");
    };
    const missed = now("missed");
    return (now("refused") || "none") + (missed && `, also ${missed}`);
  }

  /** What needs attention, as sentences. */
  get troubles() {
    const found = [];
    const named = (words, names) => { if (names.length) found.push(`${words} ${some(names, NAMED)}`); };
    const indices = (state) => this.groups.filter((group) => group.state === state).map((group) => group.latest.index);
    named("Failed: group", indices(STATES.failed));
    named("Stuck, so that nobody is taken in: group", indices(STATES.stuck));
    named("Not ready:", this.models.filter((model) => !model.latest.ready).map((model) => model.latest.name));
    return found;
  }

  #drawTroubles() {
    const troubles = this.troubles;
    const list = this.#troubles;
    show(list, troubles.length > 0);
    while (list.childElementCount > troubles.length) list.lastElementChild.remove();
    while (list.childElementCount < troubles.length) list.append(document.createElement("li"));
    troubles.forEach((words, i) => {
      if (list.children[i].textContent !== words) list.children[i].textContent = words;
    });
  }
}

/** The sum of what is known; null while nothing is. */
function sum(items, value) {
  let total = items.length ? null : 0;
  for (const item of items) {
    const each = value(item);
    if (each !== null) total = (total ?? 0) + each;
  }
  return total;
}

/** The weighted mean of what is known; null while nothing is. */
function mean(items, value, weight) {
  let [total, weights] = [0, 0];
  for (const item of items) {
    const [each, by] = [value(item) ?? null, weight(item) ?? 0];
    if (each === null) continue;
    total += each * by;
    weights += by;
  }
  return weights > 0 ? total / weights : null;
}
