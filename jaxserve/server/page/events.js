// Server-sent events out of text that comes in pieces (HTML standard, "Parsing an event stream").
// EventSource would do it, but cannot send a token, and says nothing of why a connection was refused.

export class EventParser {
  #rest = ""; // the last line as far as it has come
  #name = "";
  #data = [];

  /** Takes the next piece of text; returns the events that it completes, as {name, data}. */
  feed(text) {
    const events = [];
    const all = this.#rest + text;
    // A carriage return at the very end may be half of a line end: it waits for what follows.
    const end = all.endsWith("\r") ? all.length - 1 : all.length;
    const lines = all.slice(0, end).split(/\r\n|\r|\n/);
    this.#rest = lines.pop() + all.slice(end);
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) events.push({ name: this.#name || "message", data: this.#data.join("\n") });
        this.#name = "";
        this.#data = [];
      } else {
        this.#take(line);
      }
    }
    return events;
  }

  #take(line) {
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon); // empty for a comment
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "event") this.#name = value;
    else if (field === "data") this.#data.push(value);
  }
}
