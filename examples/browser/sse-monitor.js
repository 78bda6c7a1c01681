// Watches the event streams of a page: `EventSource`, and streams that `fetch` reads.
//
//   import { monitor } from "./dist/sse-monitor.js";
//   const collector = "https://collector.example";
//   const { EventSource, events } = monitor({ collector, service: "shop" });
//   new EventSource("/events").onmessage = (event) => show(event.data);
//   for await (const { data } of events("/chat", { method: "POST", body })) append(data);

import { NotAStream, open } from "./stream.js";
import { Telemetry } from "./telemetry.js";

export { unwrap } from "./envelope.js";
export { EventStreamParser } from "./event-stream.js";
export { NotAStream };

const FIRST_DELAY = 1000;
const MAX_DELAY = 30_000;
const MAX_TIMER = 2 ** 31 - 1;

/**
 * Records every stream that is opened by what this gives, see sse-monitor.d.ts for its types:
 *
 * - `EventSource`: a class with the API of the browser's own;
 * - `events(input, init)`: the messages of one request, which takes what `fetch` takes;
 * - `totals()`: all that the page has recorded, by metric;
 * - `flush()`: exports it now;
 * - `exportStatus()`: how many data points the collector accepted, and how many it refused;
 * - `shutdown()`: exports it for the last time; streams go on, and are recorded no longer.
 *
 * Options: `collector`, the base URL of an OTLP/HTTP receiver, or null to export nothing;
 * `service`, the page's service.name; `headers` for the collector; `resourceAttributes`;
 * `meterProvider` in place of a collector; `tracerProvider` for the spans; `eventTypes`, which are
 * recorded by name (else the first 16 seen); `stallSeconds` without a message after which a stream
 * counts as stalled (60). Raises a TypeError that names the option that is wrong.
 */
export function monitor(options) {
  const telemetry = new Telemetry(options);
  return {
    EventSource: class EventSource extends MonitoredEventSource {
      constructor(url, init) {
        super(telemetry, url, init);
      }
    },
    events: (input, init) => events(telemetry, input, init),
    totals: () => telemetry.totals(),
    flush: () => telemetry.flush(),
    exportStatus: () => telemetry.exportStatus(),
    shutdown: () => telemetry.shutdown(),
  };
}

async function* events(telemetry, input, init) {
  const request = new Request(input, init);
  const stream = telemetry.stream(request.method, request.url, () => stream.end());
  try {
    const connection = await open(telemetry, stream, request);
    yield* connection.read();
  } finally {
    stream.end();
  }
}

class MonitoredEventSource extends EventTarget {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSED = 2;

  url;
  withCredentials;
  readyState = MonitoredEventSource.CONNECTING;

  #telemetry;
  #stop; // ends the run that is
  #handlers = {};
  #lastEventId = "";
  #retry = FIRST_DELAY;
  #failures = 0; // since the last message

  constructor(telemetry, url, { withCredentials = false } = {}) {
    super();
    try {
      this.url = new URL(url, document.baseURI).href;
    } catch {
      throw new DOMException(`Cannot open an EventSource to '${url}'.`, "SyntaxError");
    }
    this.withCredentials = Boolean(withCredentials);
    this.#telemetry = telemetry;
    this.#run();
  }

  close() {
    this.readyState = MonitoredEventSource.CLOSED;
    this.#stop();
  }

  async #run() {
    const stop = new AbortController();
    const stream = this.#telemetry.stream("GET", this.url, () => this.#onPageHide());
    this.#stop = () => {
      stream.end();
      stop.abort();
    };
    while (!stop.signal.aborted) {
      const wait = await this.#follow(stream, stop.signal);
      if (stop.signal.aborted) break;
      this.readyState =
        wait === undefined ? MonitoredEventSource.CLOSED : MonitoredEventSource.CONNECTING;
      this.dispatchEvent(new Event("error"));
      if (wait === undefined) this.#stop();
      else await sleep(Math.max(this.#backoff(), wait), stop.signal);
    }
  }

  /** Follows one stream to its end. Gives the least wait before the next, if there is one. */
  async #follow(stream, signal) {
    let connection;
    try {
      connection = await open(this.#telemetry, stream, this.#request(signal), this.#lastEventId);
    } catch (error) {
      return error instanceof NotAStream ? refused(error.response) : 0;
    }
    const { response, parser } = connection;
    if (response.status !== 200) {
      connection.end("client_close");
      return refused(response);
    }
    this.readyState = MonitoredEventSource.OPEN;
    this.dispatchEvent(new Event("open"));
    const { origin } = new URL(response.url);
    try {
      for await (const { type, data, lastEventId } of connection.read()) {
        if (signal.aborted) return 0;
        this.#failures = 0;
        this.#lastEventId = lastEventId;
        this.dispatchEvent(new MessageEvent(type, { data, lastEventId, origin }));
        if (signal.aborted) return 0;
      }
    } catch {
      // Cut: the connection has recorded it; it is opened again.
    }
    this.#lastEventId = parser.lastEventId;
    this.#retry = parser.retry ?? this.#retry;
    return 0;
  }

  #request(signal) {
    const headers = { Accept: "text/event-stream" };
    // In UTF-8, as the standard has it: a header takes bytes, each written as one character.
    const id = String.fromCharCode(...new TextEncoder().encode(this.#lastEventId));
    if (id) headers["Last-Event-ID"] = id;
    const credentials = this.withCredentials ? "include" : "same-origin";
    return new Request(this.url, { headers, credentials, cache: "no-store", signal });
  }

  /** Doubles up to 30 s; randomly up to half of it less, so that not all come back at once. */
  #backoff() {
    const delay = Math.min(
      this.#retry * 2 ** this.#failures,
      Math.max(MAX_DELAY, this.#retry),
      MAX_TIMER,
    );
    this.#failures += 1;
    return delay * (1 - Math.random() / 2);
  }

  /** The page goes. It may come back, from the browser's cache. */
  #onPageHide() {
    this.#stop();
    this.readyState = MonitoredEventSource.CONNECTING;
    const resume = () => this.readyState === MonitoredEventSource.CONNECTING && this.#run();
    addEventListener("pageshow", resume, { once: true });
  }

  static {
    for (const [name, value] of Object.entries({ CONNECTING: 0, OPEN: 1, CLOSED: 2 })) {
      Object.defineProperty(this.prototype, name, { value, enumerable: true });
    }
    for (const type of ["open", "message", "error"]) {
      Object.defineProperty(this.prototype, `on${type}`, {
        enumerable: true,
        configurable: true,
        get() {
          return this.#handlers[type] ?? null;
        },
        set(handler) {
          this.removeEventListener(type, this.#handlers[type]);
          this.#handlers[type] = typeof handler === "function" ? handler : undefined;
          if (this.#handlers[type]) this.addEventListener(type, this.#handlers[type]);
        },
      });
    }
  }
}

/** The wait that the answer asks for; undefined where another try would not help. */
function refused(response) {
  response.body?.cancel().catch(() => {});
  if (response.status !== 429 && response.status < 500) return undefined;
  return Math.min((Number(response.headers.get("Retry-After")) || 0) * 1000, MAX_TIMER);
}

function sleep(delay, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, delay);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
