// What the page tells of its streams, and how it leaves the page: the client metrics of otel_sse.
// Counters and histograms are told as deltas, so the figures of all pages add up.

import {
  OTLPMetricExporter,
  AggregationTemporalityPreference,
} from "@opentelemetry/exporter-metrics-otlp-http";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { MeterProvider, MetricReader } from "@opentelemetry/sdk-metrics";
import { ExportResultCode } from "@opentelemetry/core";

const FIRST = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300];
const LIFETIME = [
  0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 28800, 43200,
  86400,
];
const GAP = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 300,
];
const SIZE = [64, 128, 256, 512, 1024, 2048, 4096, 10000, 16384, 65536, 262144, 1048576, 16777216];
// 0.05 s is where a handler begins to be slow: longer work delays what the user does.
const WORK = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];

// Kind, name, unit, description, bucket advice. The names and what they mean are the contract.
// prettier-ignore
const METRICS = {
  active: ["ObservableUpDownCounter", "sse.client.active_connections", "{connection}",
    "Connections open now."],
  stalled: ["ObservableUpDownCounter", "sse.client.stalled_connections", "{connection}",
    "Live connections without a message for at least the stall threshold."],
  connected: ["ObservableCounter", "sse.client.connected_time", "s",
    "Time that streams were connected, added up."],
  disconnected: ["ObservableCounter", "sse.client.disconnected_time", "s",
    "Time that streams were asked for and not connected, added up."],
  connections: ["Counter", "sse.client.connections", "{connection}",
    "Connections opened."],
  reconnections: ["Counter", "sse.client.reconnections", "{connection}",
    "Connections opened to resume an earlier one."],
  messages: ["Counter", "sse.client.messages", "{message}",
    "Messages read."],
  comments: ["Counter", "sse.client.comments", "{comment}",
    "Comment lines read."],
  io: ["Counter", "sse.client.io", "By",
    "Body bytes read, after content decoding."],
  skewed: ["Counter", "sse.client.delivery.skewed", "{message}",
    "Messages that came before they were sent: the clocks disagree."],
  connect: ["Histogram", "sse.client.connect.duration", "s",
    "From the request's start to the response's headers.", FIRST],
  duration: ["Histogram", "sse.client.connection.duration", "s",
    "Lifetime of a connection, from the request's start to its end.", LIFETIME],
  first: ["Histogram", "sse.client.connection.time_to_first_message", "s",
    "From the request's start to the first message read.", FIRST],
  size: ["Histogram", "sse.client.message.size", "By",
    "Wire bytes of a message, from its first field to its blank line.", SIZE],
  gap: ["Histogram", "sse.client.message.gap", "s",
    "How long the reader waited between two consecutive messages.", GAP],
  delivery: ["Histogram", "sse.client.delivery.duration", "s",
    "From the server's send to the receipt.", FIRST],
  handler: ["Histogram", "sse.client.handler.duration", "s",
    "The page's own work for a message.", WORK],
};

const OTHER = "_OTHER";
const METHODS = new Set("CONNECT DELETE GET HEAD OPTIONS PATCH POST PUT TRACE".split(" "));
const MAX_HOSTS = 200;
const MAX_EVENT_TYPES = 16;
const MAX_EVENT_TYPE_BYTES = 64;

const INTERVAL = 10_000;
const MAX_INTERVAL = 300_000;

/** crypto.randomUUID() is for secure contexts only. */
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Keeps the values it is given, or else the first ones that it sees; any other is `_OTHER`. */
function capped(limit, values) {
  const known = new Set(values);
  return (value) => {
    if (!values && known.size < limit) known.add(value);
    return known.has(value) ? value : OTHER;
  };
}

export class Telemetry {
  /** Everything that the page has told so far, to be read here. */
  totals;

  #reader;
  #instruments = {};
  #places = new Map(); // by method and host: what all their streams add up to
  #links = new Set();
  #host = capped(MAX_HOSTS);
  #eventType;
  #stallSeconds;

  constructor({ collector, service, eventTypes, stallSeconds = 60 }) {
    this.#stallSeconds = stallSeconds;
    const named = eventTypes && ["message", ...eventTypes];
    // Beside `message`, which is always known.
    const other = capped(MAX_EVENT_TYPES, named);
    this.#eventType = (type) => {
      if (type === "message") return type;
      return new TextEncoder().encode(type).length > MAX_EVENT_TYPE_BYTES ? OTHER : other(type);
    };
    this.#reader = new Outbox(
      new OTLPMetricExporter({
        url: new URL(`${collector.replace(/\/*$/, "")}/v1/metrics`, document.baseURI).href,
        temporalityPreference: AggregationTemporalityPreference.DELTA,
      }),
    );
    this.totals = new Totals();
    const meter = new MeterProvider({
      resource: resourceFromAttributes({
        "service.name": service,
        "service.instance.id": randomId(),
      }),
      readers: [this.#reader, this.totals],
    }).getMeter("otel_sse.browser");
    for (const [key, [kind, name, unit, description, buckets]] of Object.entries(METRICS)) {
      const advice = buckets && { explicitBucketBoundaries: buckets };
      this.#instruments[key] = meter[`create${kind}`](name, { unit, description, advice });
    }
    const { active, stalled, connected, disconnected } = this.#instruments;
    const observed = [active, stalled, connected, disconnected];
    meter.addBatchObservableCallback((result) => this.#observe(result), observed);

    addEventListener("pagehide", () => {
      for (const link of [...this.#links]) link.leave();
      this.#reader.leave();
    });
    addEventListener("visibilitychange", () => {
      if (document.visibilityState === "hidden") this.#reader.tell();
    });
  }

  /** Sends what there is to send, and waits until the collector has taken it, or has not. */
  flush() {
    return this.#reader.tell();
  }

  add(key, place, value = 1, extra = undefined) {
    this.#instruments[key].add(value, extra ? { ...place.attributes, ...extra } : place.attributes);
  }

  record(key, place, value, extra = undefined) {
    this.#instruments[key].record(
      value,
      extra ? { ...place.attributes, ...extra } : place.attributes,
    );
  }

  eventType(type) {
    return { "sse.event.type": this.#eventType(type) };
  }

  /** A stream that is wanted from now on; `leave` is called when the page goes. */
  link(method, url, leave) {
    const link = new Link(this.#place(method, new URL(url)), leave, () => {
      if (this.#links.delete(link)) link.settle();
    });
    this.#links.add(link);
    return link;
  }

  #place(method, url) {
    const known = METHODS.has(method) ? method : OTHER;
    const host = url.hostname.replace(/^\[|\]$/g, "");
    const port = Number(url.port) || { "http:": 80, "https:": 443 }[url.protocol];
    const address = this.#host(`${host}:${port}`) === OTHER ? OTHER : host;
    const attributes = { "http.request.method": known, "server.address": address };
    if (address !== OTHER) attributes["server.port"] = port;
    const key = JSON.stringify(attributes);
    const place = this.#places.get(key) ?? { attributes, connected: 0, disconnected: 0 };
    this.#places.set(key, place);
    return place;
  }

  #observe(result) {
    const open = new Map();
    for (const link of this.#links) {
      link.settle();
      const { connection, place } = link;
      if (!connection) continue;
      const counts = open.get(place) ?? { active: 0, stalled: 0 };
      counts.active += 1;
      if (connection.silence >= this.#stallSeconds) counts.stalled += 1;
      open.set(place, counts);
    }
    const { active, stalled, connected, disconnected } = this.#instruments;
    for (const place of this.#places.values()) {
      const counts = open.get(place);
      result.observe(active, counts?.active ?? 0, place.attributes);
      result.observe(stalled, counts?.stalled ?? 0, place.attributes);
      result.observe(connected, place.connected / 1000, place.attributes);
      result.observe(disconnected, place.disconnected / 1000, place.attributes);
    }
  }
}

/** A stream that is wanted. Until it ends, all its time is connected or disconnected. */
class Link {
  place;
  leave;
  connection;
  opened = false; // once at least

  #since = performance.now();
  #forget;

  constructor(place, leave, forget) {
    this.place = place;
    this.leave = leave;
    this.#forget = forget;
  }

  /** Accounts for the time up to now. */
  settle() {
    const now = performance.now();
    this.place[this.connection ? "connected" : "disconnected"] += now - this.#since;
    this.#since = now;
  }

  /** From now on there is this connection, or none. */
  turn(connection) {
    this.settle();
    this.connection = connection;
  }

  end() {
    this.connection?.end("client_close");
    this.#forget(this);
  }
}

/**
 * Sends every few seconds. What the collector has not taken is sent again, and until then the SDK
 * goes on adding up: nothing is lost, one batch is waiting at most, and nothing grows.
 */
class Outbox extends MetricReader {
  #exporter;
  #unsent;
  #sending;
  #failures = 0;

  constructor(exporter) {
    super({
      aggregationTemporalitySelector: (type) => exporter.selectAggregationTemporality(type),
    });
    this.#exporter = exporter;
    this.#wait();
  }

  tell() {
    this.#sending ??= this.#send().finally(() => (this.#sending = undefined));
    return this.#sending;
  }

  /** The page goes: what is on its way stays so (keepalive), all else goes now, at once. */
  leave() {
    if (this.#unsent && !this.#sending) this.#export(this.#unsent);
    this.#unsent = undefined;
    this.#collect().then((batch) => this.#export(batch));
  }

  #wait() {
    const delay = Math.min(INTERVAL * 2 ** this.#failures, MAX_INTERVAL);
    setTimeout(() => this.tell().finally(() => this.#wait()), delay);
  }

  async #send() {
    if (this.#unsent) await this.#deliver();
    if (this.#unsent) return;
    this.#unsent = await this.#collect();
    await this.#deliver();
  }

  async #deliver() {
    const batch = this.#unsent;
    if (await this.#export(batch)) {
      this.#failures = 0;
      if (this.#unsent === batch) this.#unsent = undefined;
    } else {
      this.#failures += 1;
    }
  }

  async #collect() {
    return (await this.collect()).resourceMetrics;
  }

  #export(batch) {
    if (!batch.scopeMetrics.length) return Promise.resolve(true);
    return new Promise((resolve) => {
      this.#exporter.export(batch, ({ code }) => resolve(code === ExportResultCode.SUCCESS));
    });
  }
}

/** Reads within the page; what it reads is added up since the page began. */
class Totals extends MetricReader {
  async read() {
    const { resourceMetrics } = await this.collect();
    const metrics = resourceMetrics.scopeMetrics.flatMap((scope) => scope.metrics);
    return Object.fromEntries(
      metrics.map(({ descriptor, dataPoints }) => [
        descriptor.name,
        { unit: descriptor.unit, points: dataPoints },
      ]),
    );
  }
}
