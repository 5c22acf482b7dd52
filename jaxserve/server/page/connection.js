// Keeps a stream of snapshots open: says what became of it, and tries again with longer and longer pauses.
//
//   connecting -> live        the first snapshot came
//   live       -> lost        it ended, or said nothing for SILENT_S
//   connecting -> lost        it could not be opened
//   lost       -> connecting  after a pause, at once when the reader asks or the network is back
//   connecting -> locked      the server wants a token, or another one
//   locked     -> connecting  there is one

import { EventParser } from "./events.js";

const SILENT_S = 5;
const OPENING_S = 15; // for the first snapshot of a stream
const FIRST_PAUSE_S = 1;
const LONGEST_PAUSE_S = 30;

export class Connection {
  state = "connecting";
  reason = ""; // why it is lost or locked
  retryAt = 0; // by Date.now(), while it is lost
  #url;
  #token;
  #onSnapshot;
  #onChange;
  #attempt = null;
  #pause = FIRST_PAUSE_S;
  #timer = 0;

  constructor({ url, token, onSnapshot, onChange }) {
    this.#url = url;
    this.#token = token;
    this.#onSnapshot = onSnapshot;
    this.#onChange = onChange;
  }

  /** Opens the stream, in place of the one there is. */
  async open() {
    this.#attempt?.abort();
    clearTimeout(this.#timer);
    const attempt = (this.#attempt = new AbortController());
    this.#become("connecting");
    this.#expect(OPENING_S);
    try {
      await this.#read(attempt.signal);
    } catch (error) {
      if (attempt.signal.aborted) return; // another one took its place
      if (error instanceof Locked) this.#become("locked", error.message);
      else this.#lose(error instanceof Broken ? error.message : "the server cannot be reached");
    }
    attempt.abort();
  }

  use(token) {
    this.#token = token;
    this.#pause = FIRST_PAUSE_S;
    return this.open();
  }

  async #read(signal) {
    const headers = { Accept: "text/event-stream" };
    if (this.#token) headers.Authorization = `Bearer ${this.#token}`;
    const response = await fetch(this.#url, { headers, cache: "no-store", redirect: "error", signal });
    if (response.status === 401) throw new Locked(this.#token ? "The server did not accept this token." : "");
    if (response.status === 403) throw new Locked("The server knows this token, but does not let it watch.");
    if (!response.ok) throw new Broken(`the server answered with status ${response.status}`);
    const type = response.headers.get("Content-Type") ?? "";
    if (!type.startsWith("text/event-stream")) throw new Broken(`the server sent ${type || "no type"}, not events`);
    const parser = new EventParser();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        throw signal.aborted ? error : new Broken("the connection broke");
      });
      if (done) throw new Broken("the server ended the connection");
      for (const event of parser.feed(value)) if (event.name === "snapshot") this.#take(event.data);
    }
  }

  #take(data) {
    try {
      this.#onSnapshot(JSON.parse(data));
    } catch (error) {
      throw new Broken(`a snapshot was not understood (${error.message})`);
    }
    this.#pause = FIRST_PAUSE_S;
    this.#become("live");
    this.#expect(SILENT_S);
  }

  /** From now on there has to be a snapshot in time. */
  #expect(within_s) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#attempt.abort();
      this.#lose(`the server said nothing for ${within_s} s`);
    }, within_s * 1000);
  }

  #lose(reason) {
    clearTimeout(this.#timer);
    const pause_ms = this.#pause * 1000 * (0.75 + Math.random() / 4); // many pages do not come back at one moment
    this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE_S);
    this.retryAt = Date.now() + pause_ms;
    this.#timer = setTimeout(() => this.open(), pause_ms);
    this.#become("lost", reason);
  }

  #become(state, reason = "") {
    if (state === this.state && reason === this.reason) return;
    if (state === "locked") clearTimeout(this.#timer);
    this.state = state;
    this.reason = reason;
    this.#onChange();
  }
}

class Broken extends Error {}
class Locked extends Error {}
