// Exports metrics to an OTLP/HTTP receiver.
//
// Counters and histograms are collected as deltas. A batch is collected only when the one before is
// done with: accepted, or refused permanently and then dropped and counted. Meanwhile the SDK goes
// on adding up, so nothing is lost while the collector is away, and nothing grows.

import { ExportResultCode } from "@opentelemetry/core";
import { MetricReader } from "@opentelemetry/sdk-metrics";

const INTERVAL = 10_000;
const MAX_INTERVAL = 300_000;
const TOO_LARGE = 413;
// A batch of so few data points that is too large is not split again: the limit is the receiver's
// mistake then, and each part would be a request.
const MIN_POINTS = 8;

// How the exporter of OTLP/HTTP names a status after which it does not retry, as OTLP has it: all
// but 429, 502, 503 and 504. It has no field for it; a text that is none of these is a failure that
// passes. @opentelemetry/exporter-metrics-otlp-http 0.301.0.
const REFUSED = /non-retryable status (\d+)/;

export class ExportingReader extends MetricReader {
  /** Data points that the collector accepted, and that it refused permanently; the last failure. */
  status = { exportedPoints: 0, droppedPoints: 0, lastError: undefined };

  #exporter;
  #url;
  #pending = []; // batches, and parts of them
  #flushing;
  #failures = 0; // since a batch was accepted
  #maxPoints = Infinity; // of a batch, by the receiver's limit
  #timer;
  #warned = new Set(); // status codes

  constructor(exporter, url) {
    super({
      aggregationTemporalitySelector: (type) => exporter.selectAggregationTemporality(type),
    });
    this.#exporter = exporter;
    this.#url = url;
    this.#schedule();
  }

  /** Exports what there is. Resolves when the collector has accepted it, or has not. */
  flush() {
    this.#flushing ??= this.#flush().finally(() => (this.#flushing = undefined));
    return this.#flushing;
  }

  /** The page is hidden for good, perhaps: what is under way stays so, all else is sent at once. */
  flushAtPageHide() {
    const waiting = this.#flushing ? this.#pending.slice(1) : this.#pending;
    this.#pending = [];
    for (const batch of waiting) this.#export(batch);
    this.#collect().then((batch) => this.#export(batch));
  }

  onForceFlush() {
    return this.flush();
  }

  async onShutdown() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    await this.flush();
    await this.#exporter.shutdown();
  }

  #schedule() {
    const delay = Math.min(INTERVAL * 2 ** this.#failures, MAX_INTERVAL);
    this.#timer = setTimeout(
      () => this.flush().finally(() => this.#timer !== undefined && this.#schedule()),
      delay,
    );
  }

  async #flush() {
    if (!(await this.#deliver())) return;
    this.#pending.push(await this.#collect());
    await this.#deliver();
  }

  /** Whether nothing is pending any more. */
  async #deliver() {
    while (this.#pending.length) {
      const [batch] = this.#pending;
      const points = countPoints(batch);
      if (points > this.#maxPoints) {
        this.#pending.splice(0, 1, ...split(batch));
        continue;
      }
      const { code, error } = await this.#export(batch);
      const refused = Number(REFUSED.exec(error?.message ?? "")?.[1]);
      if (code === ExportResultCode.SUCCESS) {
        this.#failures = 0;
        this.status.exportedPoints += points;
      } else {
        this.status.lastError = error?.message;
        if (refused === TOO_LARGE && points > MIN_POINTS) {
          this.#maxPoints = Math.max(Math.ceil(points / 2), MIN_POINTS);
          continue;
        }
        this.#failures += 1;
        if (!refused) return false;
        this.#drop(points, refused);
      }
      // Hiding the page may have taken it away meanwhile.
      if (this.#pending[0] === batch) this.#pending.shift();
    }
    return true;
  }

  #drop(points, status) {
    this.status.droppedPoints += points;
    if (this.#warned.has(status)) return;
    this.#warned.add(status);
    const hint = status === 404 ? " Is `collector` the base URL of an OTLP/HTTP receiver?" : "";
    console.warn(
      `monitor(): ${this.#url} refused ${points} data points with status ${status}; what it ` +
        `refuses is dropped, and counted by exportStatus().${hint}`,
    );
  }

  async #collect() {
    return (await this.collect()).resourceMetrics;
  }

  #export(batch) {
    if (!countPoints(batch)) return Promise.resolve({ code: ExportResultCode.SUCCESS });
    return new Promise((resolve) => this.#exporter.export(batch, resolve));
  }
}

function metricsOf(batch) {
  return batch.scopeMetrics.flatMap(({ scope, metrics }) =>
    metrics.flatMap((metric) => metric.dataPoints.map((point) => ({ scope, metric, point }))),
  );
}

function countPoints(batch) {
  return metricsOf(batch).length;
}

/** Two batches of half the data points each. */
function split(batch) {
  const all = metricsOf(batch);
  const middle = Math.ceil(all.length / 2);
  return [all.slice(0, middle), all.slice(middle)].map((half) => {
    const scopes = new Map();
    for (const { scope, metric, point } of half) {
      const metrics = scopes.get(scope) ?? new Map();
      scopes.set(scope, metrics);
      metrics.set(metric, [...(metrics.get(metric) ?? []), point]);
    }
    return {
      resource: batch.resource,
      scopeMetrics: Array.from(scopes, ([scope, metrics]) => ({
        scope,
        metrics: Array.from(metrics, ([metric, dataPoints]) => ({ ...metric, dataPoints })),
      })),
    };
  });
}
