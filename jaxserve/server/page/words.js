// Numbers and states in words. Null is "not known", and is shown as a dash.

export const UNKNOWN = "—";
const SPACE = "\u00a0"; // keeps a number and its unit on one line

const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

const known = (value) => value !== null && value !== undefined;
const short = (value) => String(Number(value.toPrecision(3)));

export function count(value) {
  return known(value) ? grouped.format(value) : UNKNOWN;
}

/** A share of requests, rounded down: only what is complete is 100 %, and near to that the second nine counts. */
export function attainment(share) {
  if (!known(share)) return UNKNOWN;
  if (share >= 1) return `100${SPACE}%`;
  const digits = share >= 0.99 ? 2 : 1;
  const unit = 10 ** digits;
  return `${(Math.floor(share * 100 * unit + 1e-6) / unit).toFixed(digits)}${SPACE}%`;
}

/** A share of time. */
export function busy(share) {
  return known(share) ? `${Math.round(share * 100)}${SPACE}%` : UNKNOWN;
}

export function rate(perSecond) {
  if (!known(perSecond)) return UNKNOWN;
  if (perSecond > 0 && perSecond < 0.1) return "<0.1/s";
  return `${perSecond < 9.95 ? Number(perSecond.toFixed(1)) : grouped.format(perSecond)}/s`;
}

export function latency(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds === 0) return `0${SPACE}ms`;
  if (seconds < 0.0009995) return `${short(seconds * 1e6)}${SPACE}µs`;
  if (seconds < 0.9995) return `${short(seconds * 1e3)}${SPACE}ms`;
  return `${short(seconds)}${SPACE}s`;
}

export function duration(seconds) {
  const whole = Math.floor(seconds);
  const minutes = Math.floor(whole / 60) % 60;
  const hours = Math.floor(whole / 3600) % 24;
  const days = Math.floor(whole / 86400);
  if (days) return `${days}${SPACE}d ${hours}${SPACE}h`;
  if (hours) return `${hours}${SPACE}h ${minutes}${SPACE}min`;
  if (minutes) return `${minutes}${SPACE}min ${whole % 60}${SPACE}s`;
  return `${whole}${SPACE}s`;
}

export function clock(date) {
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map((part) => String(part).padStart(2, "0")).join(":");
}

/** 0, 1, 2, 5 as "0-2, 5". */
export function ranges(numbers) {
  const runs = [];
  for (const number of [...numbers].sort((a, b) => a - b)) {
    const run = runs.at(-1);
    if (run && number === run[1] + 1) run[1] = number;
    else runs.push([number, number]);
  }
  return runs.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(", ");
}

/** Names as a list that stays short. */
export function some(names, most) {
  const shown = names.length > most + 1 ? names.slice(0, most) : names;
  const rest = names.length - shown.length;
  return shown.join(", ") + (rest ? ` and ${count(rest)} more` : "");
}

export function plural(number, one, many = `${one}s`) {
  return `${count(number)}${SPACE}${number === 1 ? one : many}`;
}

/** How what is observed compares with what the plan predicts, both shares; null where either is not known. */
export function difference(observed, predicted) {
  if (!known(observed) || !known(predicted)) return null;
  const points = (observed - predicted) * 100;
  const size = Math.abs(points).toFixed(1);
  if (size === "0.0") return { points: 0, words: "= as planned" };
  return { points, words: points > 0 ? `▲ ${size} points above plan` : `▼ ${size} points below plan` };
}

/** What may become of a request beside being served, in the order in which it is shown. */
export const OUTCOMES = [
  { key: "late", refused: true, why: "refused, could not be in time" },
  { key: "cold", refused: true, why: "refused, weights not on the devices" },
  { key: "full", refused: true, why: "refused, the queue is full" },
  { key: "share", refused: true, why: "refused, its tenant has its share" },
  { key: "down", refused: true, why: "refused, none of its groups is well" },
  { key: "expired", missed: true, why: "while it waited or ran" },
  { key: "failed", missed: true, why: "the model or its group did" },
  { key: "cancelled", why: "by the caller" },
  { key: "invalid", why: "inputs do not fit the model" },
];

export const STATES = {
  ready: { kind: "good", mark: "✓", words: "Ready" },
  notReady: { kind: "bad", mark: "✕", words: "Not ready" },
  draining: { kind: "warn", mark: "!", words: "Draining" },
  healthy: { kind: "good", mark: "✓", words: "Healthy" },
  stuck: { kind: "warn", mark: "!", words: "Stuck" },
  failed: { kind: "bad", mark: "✕", words: "Failed" },
  connecting: { kind: "quiet", mark: "…", words: "Connecting" },
  lost: { kind: "warn", mark: "!", words: "Not connected" },
  locked: { kind: "quiet", mark: "!", words: "Token needed" },
};
