// Brings the parts together: snapshots from the connection into the history, and from there, once a frame at most, into
// the document; the state of the connection into the header. The modules it imports say what each part does.

import { Connection } from "./connection.js";
import { Piece, show } from "./elements.js";
import { Groups } from "./groups.js";
import { Models } from "./models.js";
import { Overview } from "./overview.js";
import { clock, duration, plural, STATES } from "./words.js";

const TOKEN = "jaxserve-token"; // in the session's storage
const get = (id) => document.getElementById(id);

const groups = new Groups(get("group-list"), get("groups-count"));
const models = new Models(get("model-list"), get("models-count"), { filter: get("filter"), sort: get("sort") });
const overview = new Overview(document.querySelector(".figures"), get("troubles"));
const serverState = new Piece(get("server-state"));

let latest = null; // the last snapshot
let latestAt = null; // when it came, as a Date
let drawnAt = null; // the same of the one that is shown
let paused = false;
let restarted = false;
let lostBecause = ""; // until there is a snapshot again
let frame = 0;
let said = { server: "", troubles: [] }; // to who cannot see it

const connection = new Connection({
  url: "events",
  token: sessionStorage.getItem(TOKEN),
  onSnapshot(snapshot) {
    const now = snapshot.server.uptime_s;
    restarted = latest !== null && now < latest.server.uptime_s;
    groups.take(now, snapshot.groups);
    models.take(now, snapshot.models);
    overview.take(now, snapshot, groups.all, models.all);
    [latest, latestAt, lostBecause] = [snapshot, new Date(), ""];
    soon();
  },
  onChange() {
    if (connection.state === "lost") lostBecause = connection.reason;
    drawConnection();
  },
});

/** Draws at the next frame: a page in the background has none, and takes snapshots without drawing them. */
function soon() {
  frame ||= requestAnimationFrame(draw);
}

function draw() {
  frame = 0;
  if (!paused) drawSnapshot();
  drawConnection();
}

function drawSnapshot() {
  const { server } = latest;
  put("server-name", server.name);
  put("uptime", duration(server.uptime_s));
  const listens = server.addresses.length ? `, listens on ${server.addresses.join(", ")}` : "";
  put("addresses", `${server.name} ${server.version}${listens}`);
  show(get("uptime-line"), true);
  show(get("shown"), true);
  groups.draw();
  models.draw();
  overview.draw();
  drawnAt = latestAt;
}

/** What the header says: is this now, and if not, of when is it and why. */
function drawConnection() {
  const { state } = connection;
  const live = state === "live";
  const server = shownState();
  serverState.state(server);
  const at = drawnAt ? clock(drawnAt) : "";
  put("freshness", !drawnAt ? "" : paused ? `Paused at ${at}` : live ? `Live, ${at}` : `Stale, as of ${at}`);
  get("shown").classList.toggle("stale", drawnAt !== null && !live);
  put("banner-text", banner());
  show(get("banner"), banner() !== "");
  show(get("pause"), drawnAt !== null);
  show(document.querySelector("nav"), drawnAt !== null);
  if (document.activeElement === get("retry") && live) get("pause").focus(); // the button goes away
  show(get("retry"), lostBecause !== "" && state !== "locked");
  drawTokenForm();
  document.title = `${server.words} - ${latest?.server.name ?? "jaxserve"}`;
  announce(server);
}

function banner() {
  const { state, reason } = connection;
  if (state === "live") {
    const waiting = plural(latest.server.in_flight, "request");
    if (latest.server.accepting) return "";
    return `The server is draining: it takes in nothing more, and finishes the ${waiting} in flight.`;
  }
  if (state === "locked") return drawnAt ? `What is shown is stale, as of ${clock(drawnAt)}.` : "";
  if (!lostBecause) return "";
  const stopped = latest && !latest.server.accepting ? " It was draining: it may have stopped." : "";
  const shown = drawnAt ? ` What is shown is stale, as of ${clock(drawnAt)}${age()}.` : "";
  const wait_s = Math.max(1, Math.ceil((connection.retryAt - Date.now()) / 1000));
  const next = state === "connecting" ? "Trying again now." : `Trying again in ${wait_s}\u00a0s.`;
  return `Not connected: ${reason || lostBecause}.${stopped}${shown} ${next}`;
}

function age() {
  const passed_s = (Date.now() - drawnAt) / 1000;
  return passed_s < 1 ? "" : `, ${duration(passed_s)} ago`;
}

function shownState() {
  if (connection.state === "locked") return STATES.locked;
  if (connection.state !== "live") return lostBecause ? STATES.lost : STATES.connecting;
  if (!latest.server.accepting) return STATES.draining;
  return latest.server.ready ? STATES.ready : STATES.notReady;
}

/** Tells a screen reader what has changed for good or bad: not every figure, and nothing twice. */
function announce(server) {
  const troubles = connection.state === "live" ? overview.troubles : said.troubles;
  const news = troubles.filter((words) => !said.troubles.includes(words));
  if (said.troubles.length && !troubles.length) news.push("Nothing needs attention any more");
  if (server.words !== said.server && !(server === STATES.connecting)) news.unshift(`Server: ${server.words}`);
  if (restarted) news.unshift("The server has been restarted");
  restarted = false;
  said = { server: server === STATES.connecting ? said.server : server.words, troubles };
  if (news.length) put("announcement", `${news.join(". ")}.`);
}

function put(id, words) {
  const element = get(id);
  if (element.textContent !== words) element.textContent = words;
}

/** The form stays until the token that it was given has brought something to see. */
function drawTokenForm() {
  const form = get("token-form");
  const locked = connection.state === "locked";
  const shown = locked || (!form.hidden && (connection.state === "connecting" || drawnAt === null));
  const hadFocus = form.contains(document.activeElement) || document.activeElement === document.body;
  show(form, shown);
  show(get("forget"), !shown && sessionStorage.getItem(TOKEN) !== null);
  put("token-error", locked ? connection.reason : "");
  if (locked && hadFocus) get("token").focus();
  else if (!shown && form.contains(document.activeElement)) get("pause").focus();
}

get("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, get("token").value);
  get("token").value = "";
  connection.use(sessionStorage.getItem(TOKEN));
});

get("forget").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN);
  connection.use(null);
});

get("pause").addEventListener("click", () => {
  paused = !paused;
  put("pause", paused ? "Resume" : "Pause");
  soon();
});

get("retry").addEventListener("click", () => connection.open());
get("choose").addEventListener("submit", (event) => event.preventDefault());
document.querySelector('nav a[href="#words"]').addEventListener("click", () => { get("words").open = true; });
const retry = () => { if (connection.state === "lost") connection.open(); };
addEventListener("online", retry);
addEventListener("visibilitychange", () => { if (!document.hidden) retry(); });
setInterval(() => { if (lostBecause && !document.hidden) put("banner-text", banner()); }, 1000);

connection.open();
