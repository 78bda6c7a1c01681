// Reads and checks what `monitor` takes: a mistake is a TypeError that names the option and what it
// takes, at the call, not figures that never arrive.

const OPTIONS = [
  "collector",
  "service",
  "headers",
  "resourceAttributes",
  "meterProvider",
  "tracerProvider",
  "eventTypes",
  "stallSeconds",
];
// What belongs to the export to a collector, and so not beside a provider of the page's own.
const OF_THE_EXPORT = ["collector", "service", "headers", "resourceAttributes"];

/** The options with `collector` as the URL of the receiver (no slash at its end) or null. */
export function readOptions(options) {
  if (typeof options !== "object" || options === null) {
    fail("it takes an object, such as { collector: 'https://collector.example', service: 'shop' }");
  }
  for (const name of Object.keys(options)) {
    if (!OPTIONS.includes(name)) fail(`there is no option '${name}', only ${OPTIONS.join(", ")}`);
  }
  const { eventTypes, meterProvider, stallSeconds, tracerProvider } = options;
  provides(meterProvider, "meterProvider", "getMeter");
  provides(tracerProvider, "tracerProvider", "getTracer");
  if (eventTypes !== undefined && !isArrayOfTexts(eventTypes)) {
    fail(`eventTypes is ${shown(eventTypes)}; it takes an array of event types`);
  }
  if (stallSeconds !== undefined && !(Number.isFinite(stallSeconds) && stallSeconds > 0)) {
    fail(`stallSeconds is ${shown(stallSeconds)}; it takes a number of seconds above 0`);
  }
  if (meterProvider !== undefined) {
    const extra = OF_THE_EXPORT.find((name) => options[name] !== undefined);
    if (extra) fail(`meterProvider exports on its own: set ${extra} there, or leave one of them out`);
    return { ...options, collector: null };
  }
  return { ...options, ...readExport(options) };
}

function readExport({ collector, service, headers, resourceAttributes = {} }) {
  if (collector === undefined) {
    fail(
      "collector is missing; it takes the base URL of an OTLP/HTTP receiver, or null where " +
        "nothing is to be exported",
    );
  }
  if (collector !== null && (typeof service !== "string" || !service.trim())) {
    fail(`service is ${shown(service)}; it takes the page's service.name`);
  }
  try {
    new Headers(headers);
  } catch {
    fail(`headers is ${shown(headers)}; it takes an object of header names and values`);
  }
  if (typeof resourceAttributes !== "object" || !resourceAttributes) {
    fail(`resourceAttributes is ${shown(resourceAttributes)}; it takes an object`);
  }
  return { collector: collector === null ? null : receiver(collector), resourceAttributes };
}

function receiver(collector) {
  const takes = "it takes the base URL of an OTLP/HTTP receiver, such as https://collector.example";
  let url;
  try {
    url = new URL(collector, document.baseURI);
  } catch {
    fail(`collector is ${shown(collector)}, which is no URL; ${takes}`);
  }
  if (typeof collector === "string" && !collector.trim()) fail(`collector is empty; ${takes}`);
  if (!["http:", "https:"].includes(url.protocol)) {
    fail(`collector is ${shown(collector)}, of scheme '${url.protocol}'; ${takes}`);
  }
  if (url.search || url.hash) fail(`collector is ${shown(collector)}, with a query; ${takes}`);
  if (/\/v1\/(metrics|traces)\/*$/.test(url.pathname)) {
    fail(`collector is ${shown(collector)}; leave out /v1/..., which each signal adds itself`);
  }
  return url.href.replace(/\/+$/, "");
}

function provides(provider, name, method) {
  if (provider !== undefined && typeof provider?.[method] !== "function") {
    fail(`${name} is ${shown(provider)}; it takes an OpenTelemetry provider, with ${method}()`);
  }
}

function isArrayOfTexts(value) {
  return Array.isArray(value) && value.every((each) => typeof each === "string");
}

function shown(value) {
  return typeof value === "string" ? `'${value}'` : String(value);
}

function fail(what) {
  throw new TypeError(`monitor(): ${what}`);
}
