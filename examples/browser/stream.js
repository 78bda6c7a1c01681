// One response that is an event stream, read to its end, and all that is told of it.

import { unwrap } from "./envelope.js";
import { EventStreamParser } from "./event-stream.js";

// The comment in which the server says when it sent the message that follows.
const SENT = /^ otel traceparent=[\da-f-]{55};ts=(\d+)$/;
// How far Date.now() lags behind, in ms: it only ticks so often.
const TICK = 1;

/** The answer is no event stream. */
export class NotAStream extends Error {
  name = "NotAStream";
  response;

  constructor(response) {
    super(`no event stream: ${response.status} ${response.headers.get("Content-Type") ?? ""}`);
    this.response = response;
  }
}

/** Asks, and gives the connection; raises what `fetch` raises, or NotAStream. */
export async function open(telemetry, link, request, lastEventId) {
  const started = performance.now();
  const response = await fetch(request);
  const [type] = (response.headers.get("Content-Type") ?? "").split(";");
  if (type.trim().toLowerCase() !== "text/event-stream" || !response.body) {
    throw new NotAStream(response);
  }
  return new Connection(telemetry, link, request, response, started, lastEventId);
}

class Connection {
  response;
  parser;

  #telemetry;
  #link;
  #signal;
  #started;
  #ended = false;
  #seen = false; // a message
  #uncounted = 0; // bytes
  #silence = 0; // ms of waiting since the last message
  #asked; // since when it waits, where it does
  #sent; // Unix ms, of the message that comes next

  constructor(telemetry, link, request, response, started, lastEventId) {
    this.response = response;
    this.parser = new EventStreamParser(lastEventId);
    this.#telemetry = telemetry;
    this.#link = link;
    this.#signal = request.signal;
    this.#started = started;
    this.#record("connect", this.#age());
    this.#add("connections", 1, { "sse.resumed": request.headers.has("Last-Event-ID") });
    this.#add("reconnections", link.opened ? 1 : 0);
    link.opened = true;
    link.turn(this);
  }

  /** Seconds without a message; the page's own work is not the stream's silence. */
  get silence() {
    const waiting = this.#asked === undefined ? 0 : performance.now() - this.#asked;
    return (this.#silence + waiting) / 1000;
  }

  /** The messages. The time until the next one is asked for is the page's work for this one. */
  async *read() {
    const reader = this.response.body.getReader();
    try {
      for (;;) {
        this.#asked = performance.now();
        const { value: chunk, done } = await reader.read();
        this.#silence = this.silence * 1000;
        this.#asked = undefined;
        if (done) return this.end("completed");
        const came = Date.now();
        const told = this.parser.feed(chunk);
        this.#bytes(chunk, told);
        for (const item of told) {
          if (item.comment !== undefined) {
            this.#comment(item);
            continue;
          }
          this.#message(item, came);
          const { type, lastEventId } = item;
          const data = await unwrap(item.data);
          const handed = performance.now();
          try {
            yield { type, data, lastEventId };
          } finally {
            const worked = (performance.now() - handed) / 1000;
            this.#telemetry.record("handler", this.#link.place, worked);
          }
        }
      }
    } catch (error) {
      this.end(...this.#verdict(error));
      throw error;
    } finally {
      this.end("client_close");
      reader.cancel().catch(() => {});
    }
  }

  /** Told once; of several reasons the first one counts. Afterwards nothing counts any more. */
  end(reason, errorType = undefined) {
    if (this.#ended) return;
    const { status } = this.response;
    const type = errorType ?? (status >= 500 ? String(status) : undefined);
    this.#record("duration", this.#age(), {
      "sse.close.reason": reason,
      "http.response.status_code": status,
      ...(type && { "error.type": type }),
    });
    this.#ended = true;
    this.#link.turn(undefined);
  }

  #verdict(error) {
    const { aborted, reason } = this.#signal;
    const name = (aborted ? reason : error)?.name;
    if (name === "TimeoutError") return ["timeout", name];
    if (aborted) return ["client_close"];
    // What a stream that breaks off is to `fetch`.
    return name === "TypeError" ? ["disconnected"] : ["error", name];
  }

  /** All but the lines that say when the server sent: they are no part of the stream. */
  #bytes(chunk, told) {
    this.#uncounted += chunk.length;
    for (const { comment, size } of told) {
      if (comment !== undefined && SENT.test(comment)) this.#uncounted -= size;
    }
    // Below 0 where most of such a line has come, and been counted, with the chunk before.
    if (this.#uncounted <= 0) return;
    this.#add("io", this.#uncounted);
    this.#uncounted = 0;
  }

  #comment({ comment }) {
    const sent = SENT.exec(comment);
    if (sent) this.#sent = Number(sent[1]) / 1e6;
    else this.#add("comments");
  }

  #message({ type, size }, came) {
    this.#add("messages", 1, this.#telemetry.eventType(type));
    this.#record("size", size);
    if (this.#seen) this.#record("gap", this.#silence / 1000);
    else this.#record("first", this.#age());
    this.#seen = true;
    this.#silence = 0;
    if (this.#sent === undefined) return;
    const late = came - this.#sent;
    if (late < -TICK) this.#add("skewed");
    else this.#record("delivery", Math.max(late, 0) / 1000);
    this.#sent = undefined;
  }

  #add(key, value = 1, extra = undefined) {
    if (!this.#ended) this.#telemetry.add(key, this.#link.place, value, extra);
  }

  #record(key, value, extra = undefined) {
    if (!this.#ended) this.#telemetry.record(key, this.#link.place, value, extra);
  }

  #age() {
    return (performance.now() - this.#started) / 1000;
  }
}
