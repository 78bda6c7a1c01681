// What a page records of its streams: the client metrics of otel_sse, and a span for each connect.

import { context, SpanKind, SpanStatusCode, trace } from "@opentelemetry/api";
import { W3CTraceContextPropagator } from "@opentelemetry/core";
import {
  AggregationTemporalityPreference,
  OTLPMetricExporter,
} from "@opentelemetry/exporter-metrics-otlp-http";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { MeterProvider, MetricReader } from "@opentelemetry/sdk-metrics";
import { BatchSpanProcessor, TracerProvider } from "@opentelemetry/sdk-trace";
import { ExportingReader } from "./export.js";
import { readOptions } from "./options.js";

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

// Kind, name, unit, description, bucket advice. Names and buckets are those of otel_sse/semconv.py.
// prettier-ignore
const METRICS = {
  active: ["ObservableUpDownCounter", "sse.client.active_connections", "{connection}",
    "Connections open now."],
  stalled: ["ObservableUpDownCounter", "sse.client.stalled_connections", "{connection}",
    "Live connections without a message for at least the stall threshold."],
  connected: ["ObservableCounter", "sse.client.connected_time", "s",
    "Time that streams were connected, added up."],
  disconnected: ["ObservableCounter", "sse.client.disconnected_time", "s",
    "Time that streams were wanted and not connected, added up."],
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

const SCOPE = "otel_sse.browser";
const OTHER = "_OTHER";
const METHODS = new Set([
  "CONNECT",
  "DELETE",
  "GET",
  "HEAD",
  "OPTIONS",
  "PATCH",
  "POST",
  "PUT",
  "TRACE",
]);
const MAX_HOSTS = 200;
const MAX_EVENT_TYPES = 16;
const MAX_EVENT_TYPE_BYTES = 64;

const traceContext = new W3CTraceContextPropagator();

/** crypto.randomUUID() is for secure contexts only. */
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Keeps the values it is given, or else the first ones that it sees; any other is `_OTHER`. */
function cardinalityLimit(limit, values) {
  const known = new Set(values);
  return (value) => {
    if (!values && known.size < limit) known.add(value);
    return known.has(value) ? value : OTHER;
  };
}

export class Telemetry {
  #providers; // of its own
  #exporter; // where it exports itself
  #totals = new TotalsReader();
  #meters = []; // { instruments, stop }: of its own provider, and of the page's
  #tracer;
  #targets = new Map(); // by method and host: what all their streams add up to
  #streams = new Set();
  #limitHosts = cardinalityLimit(MAX_HOSTS);
  #limitEventTypes;
  #stallSeconds;
  #stopListening = new AbortController();
  #shutdown;
  #isShutDown = false;

  constructor(options) {
    const { eventTypes, meterProvider, stallSeconds = 60, ...rest } = readOptions(options);
    this.#stallSeconds = stallSeconds;
    const named = eventTypes && ["message", ...eventTypes];
    // Beside `message`, which is always known.
    const limited = cardinalityLimit(MAX_EVENT_TYPES, named);
    this.#limitEventTypes = (type) => {
      if (type === "message") return type;
      return new TextEncoder().encode(type).length > MAX_EVENT_TYPE_BYTES ? OTHER : limited(type);
    };
    this.#open(rest);
    for (const provider of [this.#providers.meters, meterProvider]) {
      if (provider) this.#meters.push(this.#createInstruments(provider.getMeter(SCOPE)));
    }
    const { signal } = this.#stopListening;
    addEventListener("pagehide", () => this.#onPageHide(), { signal });
    addEventListener(
      "visibilitychange",
      () => {
        if (document.visibilityState === "hidden") this.flush();
      },
      { signal },
    );
  }

  #open({ collector, service, headers, resourceAttributes, tracerProvider }) {
    const readers = [this.#totals];
    const resource = resourceFromAttributes({
      ...resourceAttributes,
      ...(service && { "service.name": service }),
      "service.instance.id": randomId(),
    });
    let traces;
    if (collector) {
      const exporter = new OTLPMetricExporter({
        url: `${collector}/v1/metrics`,
        headers,
        temporalityPreference: AggregationTemporalityPreference.DELTA,
      });
      this.#exporter = new ExportingReader(exporter, `${collector}/v1/metrics`);
      readers.push(this.#exporter);
      if (!tracerProvider) {
        const spans = new OTLPTraceExporter({ url: `${collector}/v1/traces`, headers });
        const processor = new BatchSpanProcessor({ exporter: spans });
        traces = new TracerProvider({ resource, spanProcessors: [processor] });
      }
    }
    this.#providers = { meters: new MeterProvider({ resource, readers }), traces };
    // Without any of them the page's own, where it has registered one, else none.
    this.#tracer = (tracerProvider ?? traces ?? trace).getTracer(SCOPE);
  }

  #createInstruments(meter) {
    const instruments = {};
    for (const [key, [kind, name, unit, description, buckets]] of Object.entries(METRICS)) {
      const advice = buckets && { explicitBucketBoundaries: buckets };
      instruments[key] = meter[`create${kind}`](name, { unit, description, advice });
    }
    const { active, stalled, connected, disconnected } = instruments;
    const observed = [active, stalled, connected, disconnected];
    const observe = (result) => this.#observe(result, instruments);
    meter.addBatchObservableCallback(observe, observed);
    return { instruments, stop: () => meter.removeBatchObservableCallback(observe, observed) };
  }

  /** Exports what there is, and waits until the collector has accepted it, or has not. */
  async flush() {
    if (this.#isShutDown) return;
    await Promise.all([this.#exporter?.flush(), this.#providers.traces?.forceFlush().catch(ignore)]);
  }

  /** All that has been recorded since the page began, by metric. */
  totals() {
    return this.#totals.read();
  }

  exportStatus() {
    return { ...(this.#exporter?.status ?? { exportedPoints: 0, droppedPoints: 0 }) };
  }

  /** Exports what there is, for the last time. Streams go on, and are recorded no longer. */
  shutdown() {
    this.#shutdown ??= this.#end();
    return this.#shutdown;
  }

  async #end() {
    this.#stopListening.abort();
    await this.#totals.keep();
    const { meters, traces } = this.#providers;
    await Promise.all([meters.shutdown(), traces?.shutdown().catch(ignore)]);
    this.#isShutDown = true;
    for (const { stop } of this.#meters) stop();
    this.#streams.clear();
  }

  #onPageHide() {
    for (const stream of [...this.#streams]) stream.onPageHide();
    this.#exporter?.flushAtPageHide();
    this.#providers.traces?.forceFlush().catch(ignore);
  }

  add(key, target, value = 1, extra = undefined) {
    if (this.#isShutDown) return;
    const attributes = extra ? { ...target.attributes, ...extra } : target.attributes;
    for (const { instruments } of this.#meters) instruments[key].add(value, attributes);
  }

  record(key, target, value, extra = undefined) {
    if (this.#isShutDown) return;
    const attributes = extra ? { ...target.attributes, ...extra } : target.attributes;
    for (const { instruments } of this.#meters) instruments[key].record(value, attributes);
  }

  eventType(type) {
    return { "sse.event.type": this.#limitEventTypes(type) };
  }

  /** A stream that is wanted from now on; `onPageHide` is called when the page goes. */
  stream(method, url, onPageHide) {
    const stream = new StreamState(this.#target(method, new URL(url)), onPageHide, () => {
      if (this.#streams.delete(stream)) stream.accountTime();
    });
    if (!this.#isShutDown) this.#streams.add(stream);
    return stream;
  }

  /**
   * Begins the span of a request, until the response's headers. A request to the page's own origin
   * carries it, so that the server's spans are its children; to another origin the header would
   * need the server's permission.
   */
  startConnect(request, target) {
    if (this.#isShutDown) return new ConnectSpan();
    const url = new URL(request.url);
    const span = this.#tracer.startSpan(`SSE ${target.attributes["http.request.method"]}`, {
      kind: SpanKind.CLIENT,
      attributes: {
        ...target.attributes,
        "url.path": url.pathname,
        "sse.resumed": request.headers.has("Last-Event-ID"),
      },
    });
    const active = trace.setSpan(context.active(), span);
    if (url.origin === location.origin && !request.headers.has("traceparent")) {
      const setter = { set: (headers, name, value) => headers.set(name, value) };
      traceContext.inject(active, request.headers, setter);
    }
    return new ConnectSpan(span, active);
  }

  #target(method, url) {
    const known = METHODS.has(method) ? method : OTHER;
    const host = url.hostname.replace(/^\[|\]$/g, "");
    const port = Number(url.port) || { "http:": 80, "https:": 443 }[url.protocol];
    const address = this.#limitHosts(`${host}:${port}`) === OTHER ? OTHER : host;
    const attributes = { "http.request.method": known, "server.address": address };
    if (address !== OTHER) attributes["server.port"] = port;
    const key = JSON.stringify(attributes);
    const target = this.#targets.get(key) ?? { attributes, connected: 0, disconnected: 0 };
    this.#targets.set(key, target);
    return target;
  }

  #observe(result, { active, stalled, connected, disconnected }) {
    const open = new Map();
    for (const stream of this.#streams) {
      stream.accountTime();
      const { connection, target } = stream;
      if (!connection) continue;
      const counts = open.get(target) ?? { active: 0, stalled: 0 };
      counts.active += 1;
      if (connection.idle >= this.#stallSeconds) counts.stalled += 1;
      open.set(target, counts);
    }
    for (const target of this.#targets.values()) {
      const counts = open.get(target);
      result.observe(active, counts?.active ?? 0, target.attributes);
      result.observe(stalled, counts?.stalled ?? 0, target.attributes);
      result.observe(connected, target.connected / 1000, target.attributes);
      result.observe(disconnected, target.disconnected / 1000, target.attributes);
    }
  }
}

/** The span of one connect; none where telemetry has been shut down. */
class ConnectSpan {
  #span;
  #context;

  constructor(span = undefined, active = undefined) {
    this.#span = span;
    this.#context = active;
  }

  run(call) {
    return this.#context ? context.with(this.#context, call) : call();
  }

  end(status, errorType) {
    if (status !== undefined) this.#span?.setAttribute("http.response.status_code", status);
    if (errorType !== undefined) {
      this.#span?.setAttribute("error.type", errorType);
      this.#span?.setStatus({ code: SpanStatusCode.ERROR });
    }
    this.#span?.end();
  }
}

/** A stream that is wanted. Until it ends, all its time is connected or disconnected. */
class StreamState {
  target;
  onPageHide;
  connection;
  opened = false; // once at least

  #since = performance.now();
  #remove;

  constructor(target, onPageHide, remove) {
    this.target = target;
    this.onPageHide = onPageHide;
    this.#remove = remove;
  }

  /** Adds up the time until now. */
  accountTime() {
    const now = performance.now();
    this.target[this.connection ? "connected" : "disconnected"] += now - this.#since;
    this.#since = now;
  }

  /** From now on there is this connection, or none. */
  setConnection(connection) {
    this.accountTime();
    this.connection = connection;
  }

  end() {
    this.connection?.end("client_close");
    this.#remove(this);
  }
}

/** Reads within the page; what it reads is added up since the page began. */
class TotalsReader extends MetricReader {
  #kept;

  async read() {
    if (this.#kept) return this.#kept;
    const { resourceMetrics } = await this.collect();
    const metrics = resourceMetrics.scopeMetrics.flatMap((scope) => scope.metrics);
    return Object.fromEntries(
      metrics.map(({ descriptor, dataPoints }) => [
        descriptor.name,
        { unit: descriptor.unit, points: dataPoints },
      ]),
    );
  }

  /** What it reads from now on is what it reads now. */
  async keep() {
    this.#kept = await this.read();
  }

  async onForceFlush() {}

  async onShutdown() {}
}

// An export of spans that failed: the browser has logged the request.
function ignore() {}
