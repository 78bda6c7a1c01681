// Charts of the last five minutes, with the figure and the threshold of each.

import { make, setText, shape } from "./elements.js";
import { bytes, clock, counted, ms, number, size, words } from "./format.js";

const MINUTES = 5;
export const SPAN = MINUTES * 60;

/** The mean and the most of a line, in the window of the charts; of a sum the most alone. */
function spread(moments, name, show, sum) {
  const values = moments.map((moment) => moment[name]).filter((each) => each != null);
  if (!values.length) return "";
  if (sum) return Math.max(...values) ? `most ${show(Math.max(...values))}` : "";
  const mean = values.reduce((sum, each) => sum + each, 0) / values.length;
  return `mean ${show(mean)}, most ${show(Math.max(...values))}`;
}

/** How many there were in the window, of a line that is so many a minute. */
function total(moments, name) {
  let sum = null;
  moments.forEach((moment, index) => {
    if (!index || moment[name] == null) return;
    sum = (sum ?? 0) + (moment[name] * (moment.time - moments[index - 1].time)) / 60;
  });
  return sum === null ? null : Math.round(sum);
}

const perMinute = (value) => `${number(value)}/min`;

/** Counts by reason: those are of all the time, and are called so. */
function reasons(counts) {
  const texts = Object.entries(counts).map(([name, count]) => `${words(name)} ${number(count)}`);
  return texts.length ? `since the start: ${texts.join(", ")}` : "";
}

// `alert` is the threshold that a line is drawn for, `scale` from its unit to the line's.
export const CHARTS = [
  {
    title: "Open connections",
    lines: ["connections"],
    show: number,
    alert: "SSEConnectionsHigh",
    beside: ({ connections }) => `${number(connections.total)} opened since the start`,
  },
  {
    title: "Messages",
    lines: ["messages_per_second"],
    show: (value) => `${number(value)}/s`,
    suffix: "a second",
    value: number,
    beside: ({ messages }) =>
      messages.total
        ? messages.per_write == null
          ? ""
          : `${number(messages.per_write)} in the mean write`
        : "None yet: publish one as the README shows",
  },
  {
    title: "Throughput",
    lines: ["bytes_per_second"],
    show: (value) => `${bytes(value)}/s`,
    value: size,
    suffix: "a second",
    beside: ({ messages }) => (messages.mean_bytes ? `mean message ${bytes(messages.mean_bytes)}` : ""),
  },
  {
    title: "Wait in a send",
    lines: ["send_ms"],
    show: ms,
    value: (value) => ms(value).split(" "),
    alert: "SSEProcessingSlow",
    scale: 1,
    beside: ({ processing }) => (processing.slow_sends ? `${counted(processing.slow_sends, "slow send")} since the start` : ""),
  },
  {
    title: "Memory",
    lines: ["rss_bytes", "heap_bytes"],
    names: ["resident", "heap"],
    show: bytes,
    value: size,
    alert: "SSEMemoryHigh",
    scale: 2 ** 20,
    beside: ({ memory }) =>
      memory.heap.bytes == null ? "resident" : `resident; heap ${bytes(memory.heap.bytes)} (dashed)`,
  },
  {
    title: "Worst backlog",
    lines: ["worst_backlog_bytes"],
    show: bytes,
    value: size,
    alert: "SSEBacklogHigh",
    beside: ({ backlog, connections }) =>
      `${bytes(backlog.bytes)} of all clients, ${number(connections.stalled)} stalled`,
  },
  {
    title: "Dropped messages",
    lines: ["dropped_per_minute"],
    show: perMinute,
    sum: true,
    alert: "SSEDroppedMessages",
    scale: 60,
    beside: ({ messages }) => reasons(messages.dropped_by_reason),
  },
  {
    title: "Refused clients",
    lines: ["refused_per_minute"],
    show: perMinute,
    sum: true,
    alert: "SSERejectedConnections",
    scale: 60,
    beside: ({ failures }) => reasons(failures.refused_by_reason),
  },
  {
    title: "Failed connections",
    lines: ["failed_per_minute"],
    show: perMinute,
    sum: true,
    beside: ({ failures }) => {
      const errors = reasons(failures.errors_by_class);
      return errors && `errors ${errors}`;
    },
  },
];

const WIDTH = 300;
const HEIGHT = 100;

/** The next round number: of bytes, in the unit that they are shown in. */
function above(value, binary) {
  let scale = 1;
  while (binary && value / scale >= 1024) scale *= 1024;
  const power = scale * 10 ** Math.floor(Math.log10(value / scale));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value) * power;
}

export class Chart {
  #moments = [];
  #chosen = null;
  #limit = null;

  constructor(kind) {
    this.kind = kind;
    this.value = make("p", { className: "value" });
    this.beside = make("p", { className: "beside" });
    this.spread = make("p", { className: "beside" });
    this.svg = shape("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    });
    this.most = make("span", { className: "most", "aria-hidden": "true" });
    this.middle = make("span", { className: "middle", "aria-hidden": "true" });
    this.plot = make(
      "div",
      { className: "plot", tabIndex: 0, role: "img", "aria-roledescription": "line chart" },
      this.svg,
      this.most,
      this.middle,
    );
    this.read = make("span", { role: "status" });
    this.half = make("span", { "aria-hidden": "true" }, `${MINUTES / 2} min`);
    this.axis = make(
      "div",
      { className: "axis" },
      make("span", {}, `${MINUTES} min ago`),
      this.half,
      this.read,
      make("span", {}, "now"),
    );
    const title = make("h3", {}, kind.title);
    this.element = make("article", { className: "chart" }, title, this.value, this.beside, this.spread, this.plot, this.axis);
    this.plot.addEventListener("pointermove", ({ offsetX }) =>
      this.#choose(this.#nearest((offsetX / this.plot.clientWidth) * WIDTH)),
    );
    this.plot.addEventListener("pointerleave", () => this.#choose(null));
    this.plot.addEventListener("blur", () => this.#choose(null));
    this.plot.addEventListener("keydown", (event) => this.#step(event));
  }

  /** What the status has beside the chart's own figures: the threshold, and whether it is breached. */
  show(status) {
    const { alert, scale = 1, beside } = this.kind;
    setText(this.beside, beside(status));
    const threshold = alert && status.thresholds[alert];
    this.#limit = threshold ? threshold.limit * scale : null;
    const breached = alert && status.alerts.find((each) => each.source === "process" && each.alert === alert);
    this.element.dataset.breached = breached ? breached.severity : "";
  }

  draw(moments) {
    this.#moments = moments;
    const { lines, show, title } = this.kind;
    this.#figure();
    const values = moments.flatMap((moment) => lines.map((name) => moment[name])).filter((each) => each != null);
    const peak = Math.max(...values, 0);
    // A threshold that is far away is in the text alone: the line would press the chart flat.
    const near = this.#limit !== null && peak >= this.#limit / 4;
    const most = above(Math.max(peak, near ? this.#limit : 0) || 1, lines[0].includes("bytes"));
    this.#y = (value) => HEIGHT - (value / most) * HEIGHT;
    const end = moments.at(-1)?.time ?? 0;
    this.#x = (time) => WIDTH - ((end - time) / SPAN) * WIDTH;
    const parts = [
      shape("path", { class: "base", d: `M0 ${HEIGHT}H${WIDTH}` }),
      shape("path", { class: "top-line", d: `M0 0H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}` }),
    ];
    lines.forEach((name, index) => {
      for (const run of this.#runs(name)) {
        const line = `M${run.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`;
        if (!index) {
          const area = `${line}L${run.at(-1)[0].toFixed(1)} ${HEIGHT}L${run[0][0].toFixed(1)} ${HEIGHT}Z`;
          parts.push(shape("path", { class: "area", d: area }));
        }
        parts.push(shape("path", { class: index ? "line second" : "line", d: line }));
      }
    });
    if (near) parts.push(shape("path", { class: "limit", d: `M0 ${this.#y(this.#limit).toFixed(1)}H${WIDTH}` }));
    const last = moments.at(-1)?.[lines[0]];
    if (last != null) parts.push(shape("path", { class: "dot", d: `M${WIDTH} ${this.#y(last).toFixed(1)}h0` }));
    this.svg.replaceChildren(...parts);
    setText(this.most, values.length ? show(most) : "");
    setText(this.middle, values.length ? show(most / 2) : "");
    const summary = lines.map((name, index) => {
      const own = moments.map((moment) => moment[name]).filter((each) => each != null);
      const what = this.kind.names?.[index];
      return own.length
        ? `${what ? `${what} ` : ""}now ${show(own.at(-1))}, least ${show(Math.min(...own))}, most ${show(Math.max(...own))}`
        : `${what ? `${what} ` : ""}not recorded`;
    });
    const limit = this.#limit === null ? "" : `; threshold ${show(this.#limit)}`;
    this.plot.setAttribute("aria-label", `${title}, last ${MINUTES} minutes: ${summary.join("; ")}${limit}`);
    this.#choose(this.#chosen);
  }

  #x = () => 0;
  #y = () => 0;

  /** The large figure is the chart's last point, or its sum; what is small is of the same window. */
  #figure() {
    const { lines, show, value = (each) => [number(each)], suffix = "", sum } = this.kind;
    const name = lines[0];
    const found = sum ? total(this.#moments, name) : this.#moments.at(-1)?.[name];
    let parts = [found].map(sum ? number : value).flat();
    if (sum) parts = [...parts, `in ${MINUTES} min`];
    if (suffix && found != null) parts = [parts[0], [parts[1], suffix].filter(Boolean).join(" ")];
    const [figure, unit = ""] = parts;
    if (this.value.dataset.shown !== `${figure} ${unit}`) {
      this.value.dataset.shown = `${figure} ${unit}`;
      this.value.replaceChildren(figure, ...(unit ? [make("small", {}, ` ${unit}`)] : []));
    }
    // A figure and its unit stay in one line.
    const limit = this.#limit === null ? "" : `threshold ${show(this.#limit)}`.replaceAll(" ", "\u00a0");
    setText(this.spread, [spread(this.#moments, name, show, sum), limit].filter(Boolean).join("; "));
  }

  /** The stretches of a line without a gap in them. */
  #runs(name) {
    const found = [[]];
    for (const moment of this.#moments) {
      if (moment[name] == null) found.push([]);
      else found.at(-1).push([this.#x(moment.time), this.#y(moment[name])]);
    }
    return found.filter((run) => run.length);
  }

  #nearest(x) {
    const far = (moment) => Math.abs(this.#x(moment.time) - x);
    return this.#moments.reduce((best, each) => (best && far(best) <= far(each) ? best : each), null)?.time ?? null;
  }

  #step(event) {
    const times = this.#moments.map(({ time }) => time);
    const at = this.#chosen === null ? times.length - 1 : times.indexOf(this.#chosen);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: times.length - 1 }[event.key];
    if (to === undefined || !times.length) return;
    event.preventDefault();
    this.#choose(times[Math.max(0, Math.min(times.length - 1, to))]);
  }

  /** Reads out one moment. */
  #choose(time) {
    this.svg.querySelector(".cursor")?.remove();
    const moment = this.#moments.find((each) => each.time === time);
    this.#chosen = moment ? time : null;
    this.half.hidden = Boolean(moment);
    if (!moment) return setText(this.read, "");
    this.svg.append(shape("path", { class: "cursor", d: `M${this.#x(time).toFixed(1)} 0V${HEIGHT}` }));
    const texts = this.kind.lines.map((name) => (moment[name] == null ? "–" : this.kind.show(moment[name])));
    setText(this.read, `${clock(new Date(time * 1000))}: ${texts.join(" / ")}`);
  }
}
