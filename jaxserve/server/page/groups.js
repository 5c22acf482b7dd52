// The mesh groups as rows: stages in the order of the pipeline, what each runs and how busy it is, and the queue.

import { arrange, Piece } from "./elements.js";
import { Counters, Trail } from "./history.js";
import { busy, count, plural, ranges, rate, some, STATES } from "./words.js";

const NAMES = 8; // of a group's models

class Group {
  #piece = Piece.of("group-template");
  #stages = [];
  #busyTime = new Counters();
  #requests = new Counters();
  #queue = new Trail();

  constructor() {
    this.element = this.#piece.element;
  }

  /** Whether it can serve. */
  get state() {
    if (this.latest.stuck) return STATES.stuck;
    return this.latest.healthy ? STATES.healthy : STATES.failed;
  }

  /** The mean of its stages' shares of time; null if not known yet. */
  get busy() {
    const known = this.#stages.map((stage) => stage.busy).filter((share) => share !== null);
    return known.length ? known.reduce((sum, share) => sum + share, 0) / known.length : null;
  }

  take(now, group) {
    this.latest = group;
    while (this.#stages.length > group.busy_s.length) this.#stages.pop();
    while (this.#stages.length < group.busy_s.length) {
      this.#stages.push({ piece: Piece.of("stage-template"), trail: new Trail(), busy: null });
    }
    this.#busyTime.add(now, group.busy_s);
    this.#requests.add(now, [group.requests]);
    this.#queue.add(now, group.queue);
    this.#stages.forEach((stage, k) => {
      stage.busy = share(this.#busyTime.rate(k));
      stage.trail.add(now, share(this.#busyTime.step(k)));
    });
  }

  draw() {
    const { index, intra_op, inter_op, queue, in_flight, models, predicted_utilization: predicted } = this.latest;
    const piece = this.#piece;
    piece.state(this.state);
    piece.text("index", String(index));
    piece.text("shape", `${plural(inter_op, "stage")} on ${plural(intra_op, "device")}${inter_op > 1 ? " each" : ""}`);
    piece.text("queue", count(queue));
    piece.text("peak", `peak ${count(this.#queue.highest())}`);
    piece.trail("queue", this.#queue, Math.max(this.#queue.highest(), 4));
    piece.text("traffic", `${count(in_flight)} in flight, ${rate(this.#requests.rate(0))}`);
    piece.text("predicted", `Busy ${busy(this.busy)}, planned ${busy(predicted)}`);
    piece.text("models", models.length ? `Holds ${some(models, NAMES)}` : "Holds no model");
    this.#stages.forEach((stage, k) => this.#drawStage(stage.piece, stage, k));
    const list = this.element.querySelector(".stages");
    if (list.childElementCount !== this.#stages.length) arrange(list, this.#stages.map((stage) => stage.piece.element));
  }

  #drawStage(piece, stage, k) {
    const { devices, intra_op, running, predicted_utilization: predicted } = this.latest;
    const own = devices.slice(k * intra_op, (k + 1) * intra_op);
    const model = running[k] ?? null;
    piece.text("name", `Stage ${k}`);
    piece.text("devices", own.length ? `${own.length > 1 ? "devices" : "device"} ${ranges(own)}` : "");
    piece.text("busy", busy(stage.busy));
    piece.bar("busy", stage.busy);
    piece.mark("busy", predicted);
    piece.trail("busy", stage.trail, 1);
    piece.text("verb", model === null ? "idle" : "runs");
    piece.text("running", model ?? "");
  }
}

const share = (perSecond) => (perSecond === null ? null : Math.min(Math.max(perSecond, 0), 1));

export class Groups {
  #list;
  #summary;
  #groups = new Map();

  constructor(list, summary) {
    this.#list = list;
    this.#summary = summary;
  }

  get all() {
    return [...this.#groups.values()];
  }

  take(now, groups) {
    const kept = new Map();
    for (const latest of groups) {
      const group = this.#groups.get(latest.index) ?? new Group();
      group.take(now, latest);
      kept.set(latest.index, group);
    }
    this.#groups = kept;
  }

  draw() {
    for (const group of this.#groups.values()) group.draw();
    arrange(this.#list, this.all.map((group) => group.element));
    const healthy = this.all.filter((group) => group.state === STATES.healthy).length;
    const all = this.#groups.size;
    const words = all ? `${count(healthy)} of ${count(all)} healthy` : "There are no groups.";
    if (this.#summary.textContent !== words) this.#summary.textContent = words;
  }
}
