// The types of dist/sse-monitor.js; what each does is described in README.md.

import type { MeterProvider, TracerProvider } from "@opentelemetry/api";

interface CommonOptions {
  /** Makes the spans; else they go to the collector, or to the page's registered provider. */
  tracerProvider?: TracerProvider;
  /** Event types that are recorded by name, beside `message`; else the first 16 seen. */
  eventTypes?: readonly string[];
  /** Seconds without a message after which a stream counts as stalled: 60. */
  stallSeconds?: number;
}

/** The module exports on its own. */
export interface CollectorOptions extends CommonOptions {
  /** The base URL of an OTLP/HTTP receiver. */
  collector: string | URL;
  /** The page's service.name. */
  service: string;
  /** Headers of each request to the collector. */
  headers?: Record<string, string>;
  /** Attributes of the page's resource, beside service.name. */
  resourceAttributes?: Record<string, string | number | boolean>;
  meterProvider?: undefined;
}

/** Nothing is exported; `totals()` has the figures. */
export interface LocalOptions extends CommonOptions {
  collector: null;
  service?: string;
  meterProvider?: undefined;
}

/** The page's own provider exports. */
export interface ProviderOptions extends CommonOptions {
  meterProvider: MeterProvider;
  collector?: undefined;
}

export interface StreamMessage {
  type: string;
  data: string;
  lastEventId: string;
}

export interface Point {
  attributes: Record<string, unknown>;
  /** A number, or of a histogram `{ sum, count, min, max, buckets }`. */
  value: unknown;
}

export interface ExportStatus {
  exportedPoints: number;
  /** Data points that the collector refused permanently. */
  droppedPoints: number;
  /** The last failure, where there was one. */
  lastError?: string;
}

export interface Monitor {
  EventSource: typeof EventSource;
  events(input: RequestInfo | URL, init?: RequestInit): AsyncGenerator<StreamMessage, void, void>;
  totals(): Promise<Record<string, { unit: string; points: Point[] }>>;
  flush(): Promise<void>;
  exportStatus(): ExportStatus;
  shutdown(): Promise<void>;
}

/** Raises a TypeError that names the option that is wrong. */
export function monitor(options: CollectorOptions | LocalOptions | ProviderOptions): Monitor;

/** What `events` raises where the answer is no event stream. */
export class NotAStream extends Error {
  readonly response: Response;
  private constructor();
}

export type StreamItem =
  | (StreamMessage & { size: number; comment?: undefined })
  | { comment: string; size: number };

/** Reads an event stream without I/O. */
export class EventStreamParser {
  constructor(lastEventId?: string);
  lastEventId: string;
  /** Milliseconds to wait before a reconnection, where the stream has set it. */
  retry?: number;
  feed(chunk: Uint8Array): StreamItem[];
}

/** The text of a compressed message; data that is none is returned as it is. */
export function unwrap(data: string): Promise<string>;
