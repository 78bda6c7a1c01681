// One response that is an event stream, read to its end, and what is recorded of it.

import { unwrap } from "./envelope.js";
import { EventStreamParser } from "./event-stream.js";

// The trace comment: when the server sent the message that follows, in Unix ns.
const TRACE_COMMENT = /^ otel traceparent=[\da-f-]{55};ts=(\d+)$/;
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

/** Requests the stream. Raises what `fetch` raises, or NotAStream. */
export async function open(telemetry, stream, request, lastEventId) {
  const span = telemetry.startConnect(request, stream.target);
  const started = performance.now();
  let response;
  try {
    response = await span.run(() => fetch(request));
  } catch (error) {
    const reason = request.signal.aborted ? request.signal.reason : error;
    // What the page aborts itself is no failure.
    const failed = !request.signal.aborted || reason?.name === "TimeoutError";
    connectEnded(telemetry, stream, request, started, span, { errorType: failed && reason?.name });
    throw error;
  }
  const [type] = (response.headers.get("Content-Type") ?? "").split(";");
  const isStream = type.trim().toLowerCase() === "text/event-stream" && response.body;
  const errorType = response.status >= 400 && String(response.status);
  connectEnded(telemetry, stream, request, started, span, { response, isStream, errorType });
  if (!isStream) throw new NotAStream(response);
  return new Connection(telemetry, stream, request, response, started, lastEventId);
}

/** Without a stream only a request that names the media type is known to have wanted one. */
function connectEnded(telemetry, stream, request, started, span, outcome) {
  const { response, isStream, errorType } = outcome;
  span.end(response?.status, errorType || undefined);
  const wanted = request.headers.get("Accept")?.includes("text/event-stream");
  if (!isStream && !(wanted && errorType)) return;
  const extra = errorType ? { "error.type": errorType } : undefined;
  telemetry.record("connect", stream.target, (performance.now() - started) / 1000, extra);
}

class Connection {
  response;
  parser;

  #telemetry;
  #stream;
  #signal;
  #started;
  #ended = false;
  #hasMessage = false;
  #uncounted = 0; // bytes
  #waited = 0; // ms of waiting since the last message
  #waitStarted; // where it waits
  #sentAt; // Unix ms, of the message that comes next

  constructor(telemetry, stream, request, response, started, lastEventId) {
    this.response = response;
    this.parser = new EventStreamParser(lastEventId);
    this.#telemetry = telemetry;
    this.#stream = stream;
    this.#signal = request.signal;
    this.#started = started;
    this.#add("connections", 1, { "sse.resumed": request.headers.has("Last-Event-ID") });
    this.#add("reconnections", stream.opened ? 1 : 0);
    stream.opened = true;
    stream.setConnection(this);
  }

  /** Seconds without a message; the page's own work is no time that the stream is idle. */
  get idle() {
    const waiting = this.#waitStarted === undefined ? 0 : performance.now() - this.#waitStarted;
    return (this.#waited + waiting) / 1000;
  }

  /** The messages. The time until the next one is requested is the page's work for this one. */
  async *read() {
    const reader = this.response.body.getReader();
    try {
      for (;;) {
        this.#waitStarted = performance.now();
        const { value: chunk, done } = await reader.read();
        this.#waited = this.idle * 1000;
        this.#waitStarted = undefined;
        if (done) return this.end("completed");
        const receivedAt = Date.now();
        const items = this.parser.feed(chunk);
        this.#countBytes(chunk, items);
        for (const item of items) {
          if (item.comment !== undefined) {
            this.#onComment(item);
            continue;
          }
          this.#onMessage(item, receivedAt);
          const { type, lastEventId } = item;
          const data = await unwrap(item.data);
          const handed = performance.now();
          try {
            yield { type, data, lastEventId };
          } finally {
            const worked = (performance.now() - handed) / 1000;
            this.#telemetry.record("handler", this.#stream.target, worked);
          }
        }
      }
    } catch (error) {
      this.end(...this.#closeReason(error));
      throw error;
    } finally {
      this.end("client_close");
      reader.cancel().catch(() => {});
    }
  }

  /** Recorded once; of several reasons the first one counts. Afterwards nothing counts any more. */
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
    this.#stream.setConnection(undefined);
  }

  #closeReason(error) {
    const { aborted, reason } = this.#signal;
    const name = (aborted ? reason : error)?.name;
    if (name === "TimeoutError") return ["timeout", name];
    if (aborted) return ["client_close"];
    // What a stream that breaks off is to `fetch`.
    return name === "TypeError" ? ["disconnected"] : ["error", name];
  }

  /** All but the trace comments: they are no part of the stream. */
  #countBytes(chunk, items) {
    this.#uncounted += chunk.length;
    for (const { comment, size } of items) {
      if (comment !== undefined && TRACE_COMMENT.test(comment)) this.#uncounted -= size;
    }
    // Below 0 where most of a trace comment has come, and been counted, with the chunk before.
    if (this.#uncounted <= 0) return;
    this.#add("io", this.#uncounted);
    this.#uncounted = 0;
  }

  #onComment({ comment }) {
    const traced = TRACE_COMMENT.exec(comment);
    if (traced) this.#sentAt = Number(traced[1]) / 1e6;
    else this.#add("comments");
  }

  #onMessage({ type, size }, receivedAt) {
    this.#add("messages", 1, this.#telemetry.eventType(type));
    this.#record("size", size);
    if (this.#hasMessage) this.#record("gap", this.#waited / 1000);
    else this.#record("first", this.#age());
    this.#hasMessage = true;
    this.#waited = 0;
    if (this.#sentAt === undefined) return;
    const late = receivedAt - this.#sentAt;
    if (late < -TICK) this.#add("skewed");
    else this.#record("delivery", Math.max(late, 0) / 1000);
    this.#sentAt = undefined;
  }

  #add(key, value = 1, extra = undefined) {
    if (!this.#ended) this.#telemetry.add(key, this.#stream.target, value, extra);
  }

  #record(key, value, extra = undefined) {
    if (!this.#ended) this.#telemetry.record(key, this.#stream.target, value, extra);
  }

  #age() {
    return (performance.now() - this.#started) / 1000;
  }
}
