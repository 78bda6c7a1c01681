// The dashboard: what /status/events tells, as figures, charts and lists.

const MINUTES = 5;
const SPAN = MINUTES * 60;
// Without an event for so long the figures are called old; the server says each second, and with
// very many connections every few.
const SILENCE_MS = 12_000;
const RETRY_MS = 5_000;
const REASONS = {
  completed: "Completed by the application",
  client_disconnect: "Left by the client",
  server_shutdown: "Cut by the server",
  timeout: "Timed out",
  error: "Failed",
  unknown: "Unknown",
};
const SEVERITY = { critical: "▲ Critical", warning: "◆ Warning", info: "● Info" };
const UNITS = {
  "{connection}": "connections",
  "{message}": "messages",
  "{message}/s": "messages/s",
  By: "bytes",
  1: "",
};

const $ = (id) => document.getElementById(id);

// --- words and numbers -----------------------------------------------------------------------

const formats = [0, 1, 2].map(
  (digits) => new Intl.NumberFormat("en", { maximumFractionDigits: digits }),
);
const number = (value) =>
  value == null ? "–" : formats[Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2].format(value);

/** A size in bytes, as its number and its unit. */
function size(bytes) {
  if (bytes == null) return ["–", ""];
  let power = 0;
  while (Math.abs(bytes) >= 1024 && power < 4) (bytes /= 1024), power++;
  return [number(bytes), ["B", "kB", "MB", "GB", "TB"][power]];
}

const bytes = (value) => size(value).join(" ").trim();
const ms = (value) =>
  value == null ? "–" : value < 1000 ? `${number(value)} ms` : `${number(value / 1000)} s`;

function seconds(value) {
  if (value == null) return "–";
  if (value < 60) return `${number(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
  if (value < 86_400) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  return `${Math.floor(value / 86_400)} d ${Math.floor((value % 86_400) / 3600)} h`;
}

const clock = (date) => (Number.isNaN(+date) ? "–" : date.toLocaleTimeString("en-GB"));
/** The time of day, with the day where it is another. */
const when = (date) =>
  Number.isNaN(+date) || date.toDateString() === new Date().toDateString()
    ? clock(date)
    : date.toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const unit = (name) => UNITS[name] ?? (name ?? "").replace(/[{}]/g, "");
const words = (name) => name.replaceAll("_", " ");

// --- elements --------------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "data") Object.assign(made.dataset, value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function shape(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** A name that may go on in the next line after a dot or a slash, rather than anywhere. */
const breakable = (name) => name.split(/(?<=[./])/).flatMap((part) => [part, make("wbr")]);

/** Sets a text only where it differs, so that a selection and a reader's place stay. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Gives `parent` one child for each item; a child stays that of its item's key. */
function keep(parent, items, key, create, update) {
  const had = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const children = items.map((item) => {
    const name = String(key(item));
    const child = had.get(name) ?? create(item);
    child.dataset.key = name;
    had.delete(name);
    update(child, item);
    return child;
  });
  // Not by key: two items may have the same.
  const kept = new Set(children);
  for (const child of [...parent.children]) if (!kept.has(child)) child.remove();
  children.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
}

/** Rows of a name, a value, and a key where others may bear the name; without a value, a heading. */
function rows(id, pairs) {
  keep(
    $(id).tBodies[0],
    pairs,
    ([name, , key = name]) => key,
    ([name, value]) => {
      const head = make("th", { scope: value === undefined ? "rowgroup" : "row" }, ...breakable(name));
      if (value === undefined) {
        head.colSpan = 2;
        return make("tr", { className: "group" }, head);
      }
      return make("tr", {}, head, make("td"));
    },
    (row, [, value]) => value !== undefined && say(row.cells[1], value),
  );
}

// --- charts ----------------------------------------------------------------------------------

const CHARTS = [
  {
    title: "Open connections",
    lines: ["connections"],
    show: number,
    value: ({ connections }) => [number(connections.active), ""],
    beside: ({ connections }) =>
      `${number(Math.round(connections.rate_per_minute))} opened in the last minute, ${number(connections.total)} in all`,
  },
  {
    title: "Messages",
    lines: ["messages_per_second"],
    show: (value) => `${number(value)}/s`,
    value: ({ messages }) => [number(messages.per_second), "a second"],
    beside: ({ messages }) => `${number(messages.total)} in all, ${bytes(messages.mean_bytes)} the mean one`,
  },
  {
    title: "Throughput",
    lines: ["bytes_per_second"],
    show: (value) => `${bytes(value)}/s`,
    value: ({ messages }) => {
      const [value, unit] = size(messages.bytes_per_second);
      return [value, unit && `${unit} a second`];
    },
    beside: ({ messages }) => `${bytes(messages.total_bytes)} in all`,
  },
  {
    title: "Wait in a send",
    lines: ["send_ms"],
    show: ms,
    value: ({ processing }) => ms(processing.mean_ms).split(" "),
    beside: ({ processing }) =>
      processing.max_ms == null
        ? "no message yet"
        : `from ${ms(processing.min_ms)} to ${ms(processing.max_ms)} since the start`,
  },
  {
    title: "Memory",
    lines: ["heap_bytes", "rss_bytes"],
    names: ["heap", "resident"],
    show: bytes,
    value: ({ memory }) => size(memory.heap.bytes ?? memory.rss.bytes),
    beside: ({ memory }) =>
      memory.heap.bytes == null ? "resident" : `heap; ${bytes(memory.rss.bytes)} resident (dashed)`,
  },
  {
    title: "Backlog",
    lines: ["backlog_bytes"],
    show: bytes,
    value: ({ backlog }) => size(backlog.bytes),
    beside: ({ backlog, connections }) =>
      `${bytes(backlog.max_bytes)} the worst client, ${number(connections.stalled)} stalled`,
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

class Chart {
  #moments = [];
  #chosen = null;

  constructor(kind) {
    this.kind = kind;
    this.value = make("p", { className: "value" });
    this.beside = make("p", { className: "beside" });
    this.svg = shape("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    });
    this.most = make("span", { className: "most", "aria-hidden": "true" });
    this.plot = make(
      "div",
      { className: "plot", tabIndex: 0, role: "img", "aria-roledescription": "line chart" },
      this.svg,
      this.most,
    );
    this.read = make("span", { role: "status" });
    this.axis = make("div", { className: "axis" }, make("span", {}, `${MINUTES} min ago`), this.read, make("span", {}, "now"));
    this.element = make("article", { className: "chart" }, make("h3", {}, kind.title), this.value, this.beside, this.plot, this.axis);
    this.plot.addEventListener("pointermove", ({ offsetX }) =>
      this.#choose(this.#nearest((offsetX / this.plot.clientWidth) * WIDTH)),
    );
    this.plot.addEventListener("pointerleave", () => this.#choose(null));
    this.plot.addEventListener("blur", () => this.#choose(null));
    this.plot.addEventListener("keydown", (event) => this.#step(event));
  }

  /** The large figure. */
  show(status) {
    const [value, unit = ""] = this.kind.value(status);
    if (this.value.dataset.shown !== `${value} ${unit}`) {
      this.value.dataset.shown = `${value} ${unit}`;
      this.value.replaceChildren(value, ...(unit ? [make("small", {}, ` ${unit}`)] : []));
    }
    say(this.beside, this.kind.beside(status));
  }

  draw(moments) {
    this.#moments = moments;
    const { lines, show, title } = this.kind;
    const values = moments.flatMap((moment) => lines.map((name) => moment[name])).filter((each) => each != null);
    const most = above(Math.max(...values, 0) || 1, lines[0].includes("bytes"));
    this.#y = (value) => HEIGHT - (value / most) * HEIGHT;
    const end = moments.at(-1)?.time ?? 0;
    this.#x = (time) => WIDTH - ((end - time) / SPAN) * WIDTH;
    const parts = [
      shape("path", { class: "base", d: `M0 ${HEIGHT}H${WIDTH}` }),
      shape("path", { class: "top-line", d: `M0 0H${WIDTH}` }),
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
    const last = moments.at(-1)?.[lines[0]];
    if (last != null) parts.push(shape("path", { class: "dot", d: `M${WIDTH} ${this.#y(last).toFixed(1)}h0` }));
    this.svg.replaceChildren(...parts);
    say(this.most, values.length ? show(most) : "");
    const summary = lines.map((name, index) => {
      const own = moments.map((moment) => moment[name]).filter((each) => each != null);
      const what = this.kind.names?.[index];
      return own.length
        ? `${what ? `${what} ` : ""}now ${show(own.at(-1))}, least ${show(Math.min(...own))}, most ${show(Math.max(...own))}`
        : `${what ? `${what} ` : ""}not told`;
    });
    this.plot.setAttribute("aria-label", `${title}, last ${MINUTES} minutes: ${summary.join("; ")}`);
    this.#choose(this.#chosen);
  }

  #x = () => 0;
  #y = () => 0;

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
    if (!moment) return say(this.read, "");
    this.svg.append(shape("path", { class: "cursor", d: `M${this.#x(time).toFixed(1)} 0V${HEIGHT}` }));
    const told = this.kind.lines.map((name) => (moment[name] == null ? "–" : this.kind.show(moment[name])));
    say(this.read, `${clock(new Date(time * 1000))}: ${told.join(" / ")}`);
  }
}

const charts = CHARTS.map((kind) => new Chart(kind));
$("charts").append(...charts.map(({ element }) => element));

let moments = [];

function drawCharts() {
  const end = moments.at(-1)?.time ?? 0;
  moments = moments.filter(({ time }) => time >= end - SPAN);
  for (const chart of charts) chart.draw(moments);
  if ($("table").open) drawTable();
}

function drawTable() {
  const columns = CHARTS.flatMap(({ title, lines, names, show }) =>
    lines.map((name, index) => ({ name, show, title: names ? `${title}, ${names[index]}` : title })),
  );
  const table = $("table").querySelector("table");
  const heads = ["Time", ...columns.map(({ title }) => title)];
  table.tHead.replaceChildren(make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text))));
  table.tBodies[0].replaceChildren(
    ...moments.toReversed().map((moment) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, clock(new Date(moment.time * 1000))),
        ...columns.map(({ name, show }) => make("td", {}, moment[name] == null ? "–" : show(moment[name]))),
      ),
    ),
  );
}

$("table").addEventListener("toggle", () => $("table").open && drawTable());

// --- the status ------------------------------------------------------------------------------

function showStatus(status) {
  const { process } = status;
  say($("service"), process.service ?? "Event streams");
  document.title = `${status.alerts.length ? `(${status.alerts.length}) ` : ""}${process.service ?? "Event streams"}`;
  say($("process"), `Process ${process.pid}, up ${seconds(process.uptime_seconds)}`);
  for (const chart of charts) chart.show(status);
  showAlerts(status.alerts);
  showInsights(status.insights);
  showEndings(status.connections);
  showConnections(status.connections);
  showMessages(status);
  showMemory(status.memory);
  showOwn(status.server);
  keep($("notes"), status.notes, (note) => note, () => make("li"), say);
  say($("window"), status.window_seconds < 59 ? seconds(status.window_seconds) : "minute");
}

let firing = null;

function showAlerts(alerts) {
  const name = ({ source, alert, job, instance }) => [source, alert, job, instance].join(" ");
  keep(
    $("alerts"),
    alerts,
    name,
    ({ severity, alert, runbook_url: runbook }) => {
      const badge = make("span", { className: "badge" }, SEVERITY[severity] ?? severity ?? "Alert");
      const parts = ["measured", "summary", "muted small"].map((kind) => make("p", { className: kind }));
      // Only an address that is one: what Alertmanager says may be anything.
      if (/^https?:/.test(runbook ?? "")) {
        parts.push(make("p", { className: "small" }, make("a", { href: runbook, rel: "noreferrer" }, "Runbook")));
      }
      return make("li", { data: { severity: severity ?? "warning" } }, make("h3", {}, alert, badge), ...parts);
    },
    (item, alert) => {
      const [measured, summary, more] = item.querySelectorAll("p");
      const value = alert.value == null ? "" : isNaN(alert.value) ? alert.value : number(Number(alert.value));
      const over = [unit(alert.unit), alert.threshold == null ? "" : `(threshold ${number(Number(alert.threshold))})`];
      say(measured, [value, ...over].filter(Boolean).join(" "));
      say(summary, [alert.summary, alert.recommendation].filter(Boolean).join(" "));
      const who = alert.source === "process" ? "this process" : ["Alertmanager", alert.job, alert.instance].filter(Boolean).join(", ");
      const left = Math.ceil((alert.cooldown_left_seconds ?? 0) / 60);
      const again = left ? `, told again in ${left} min` : "";
      say(more, `Since ${when(new Date(alert.since))}, told by ${who}${again}`);
    },
  );
  $("no-alerts").hidden = alerts.length > 0;
  const now = new Map(alerts.map((alert) => [name(alert), alert]));
  if (firing !== null) {
    const began = [...now].filter(([key]) => !firing.has(key)).map(([, { alert, severity }]) => `${severity ?? ""} alert ${alert}`);
    const ended = [...firing].filter(([key]) => !now.has(key)).map(([, { alert }]) => `${alert} is over`);
    if (began.length || ended.length) say($("told"), [...began, ...ended].join(". "));
  }
  firing = now;
}

function showInsights(insights) {
  keep(
    $("insights"),
    insights,
    ({ alert }) => alert,
    () => make("li", {}, make("strong"), make("span", { className: "muted" })),
    (item, { summary, value, unit: of, threshold, recommendation }) => {
      say(item.firstChild, summary);
      say(item.lastChild, `${number(value)} ${unit(of)}, more than ${number(threshold)}. ${recommendation}`);
    },
  );
  $("no-insights").hidden = insights.length > 0;
}

function showEndings({ ended, ended_by_reason: reasons }) {
  const found = Object.entries(reasons);
  keep(
    $("endings-bar"),
    found,
    ([reason]) => reason,
    ([reason]) => make("span", { data: { reason } }),
    (part, [, count]) => (part.style.flexGrow = count),
  );
  keep(
    $("endings").tBodies[0],
    found,
    ([reason]) => reason,
    ([reason]) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, make("span", { className: "key", data: { reason }, "aria-hidden": "true" }), REASONS[reason] ?? words(reason)),
        make("td"),
        make("td", { className: "muted" }),
      ),
    (row, [, count]) => {
      say(row.cells[1], number(count));
      say(row.cells[2], `${number(Math.round((1000 * count) / ended) / 10)} %`);
    },
  );
  $("no-endings").hidden = found.length > 0;
}

function showConnections(connections) {
  rows("connections", [
    ["Mean duration of the ended", seconds(connections.mean_duration_seconds)],
    ["Mean age of the open", seconds(connections.mean_age_seconds)],
    ["Oldest", seconds(connections.max_age_seconds)],
    ["Longest without a message", seconds(connections.max_idle_seconds)],
    ["Messages to an open one, mean", number(connections.mean_messages)],
    ["Messages to an open one, most", number(connections.max_messages)],
    ["Resumed", number(connections.resumed)],
    ["Stalled", number(connections.stalled)],
  ]);
  const clients = Object.entries(connections.by_client_address);
  const most = Math.max(...clients.map(([, count]) => count), 1);
  if (connections.other_client_addresses) {
    clients.push([`${number(connections.other_client_addresses)} others`, connections.other_client_connections]);
  }
  keep(
    $("clients").tBodies[0],
    clients,
    ([address]) => address,
    ([address]) => make("tr", {}, make("th", { scope: "row" }, address), make("td", {}, make("span", { className: "share", "aria-hidden": "true" }), make("span"))),
    (row, [, count]) => {
      const [bar, text] = row.cells[1].children;
      bar.style.width = `${Math.round((90 * Math.min(count, most)) / most)}px`;
      say(text, number(count));
    },
  );
  $("no-clients").hidden = clients.length > 0;
}

function showMessages({ messages, processing, connections }) {
  const dropped = Object.entries(messages.dropped_by_reason);
  rows("delivery", [
    ["Mean size", bytes(messages.mean_bytes)],
    ["Mean wait in a send, last minute", ms(processing.mean_ms)],
    ["Mean wait in a send, since the start", ms(processing.mean_ms_since_start)],
    ["Longest wait in a send", ms(processing.max_ms)],
    ["Slow sends", number(processing.slow_sends)],
    ["Keep-alives and other comments", number(messages.comments)],
    ["Dropped", number(messages.dropped)],
    ...dropped.map(([reason, count]) => [`Dropped: ${words(reason)}`, number(count)]),
  ]);
  const routes = Object.entries(connections.active_by_route);
  const types = Object.entries(messages.total_by_type);
  rows("routes", [
    ["Open connections"],
    ...routes.map(([route, count]) => [route || "no route", number(count), `route ${route}`]),
    ["Messages since the start"],
    ...types.map(([type, count]) => [type, number(count), `type ${type}`]),
  ]);
}

function showMemory({ rss, heap, leak }) {
  const verdict = {
    leak: `Growing by ${number(leak.rate_mb_per_second)} MB/s: ${leak.recommendation}`,
    "more connections": `Growing by ${number(leak.rate_mb_per_second)} MB/s with the connections`,
    "no leak": `No leak: ${number(leak.rate_mb_per_second)} MB/s over the last half minute`,
    "insufficient data": "Leak: not enough data yet",
  };
  $("leak").dataset.leaking = leak.leaking;
  say($("leak"), verdict[leak.verdict]);
  const percent = (value) => (value == null ? "–" : `${value > 0 ? "+" : ""}${number(value)} %`);
  const figures = [
    ["Now", "bytes", bytes],
    ["Average", "average_bytes", bytes],
    ["Least", "min_bytes", bytes],
    ["Most", "max_bytes", bytes],
    ["Since the start", "growth_percent", percent],
    ["Spikes", "spike_count", number],
  ];
  keep(
    $("memory").tBodies[0],
    figures,
    ([name]) => name,
    ([name]) => make("tr", {}, make("th", { scope: "row" }, name), make("td"), make("td")),
    (row, [, key, show]) => {
      say(row.cells[1], show(heap[key]));
      say(row.cells[2], show(rss[key]));
    },
  );
  say($("memory-why"), [heap.why, rss.why].filter(Boolean).join(". "));
}

function showOwn(metrics) {
  const told = Object.entries(metrics).flatMap(([name, { value, mean, count, unit: of, by = {} }]) => {
    const what = unit(of);
    const said = mean === undefined ? number(value) : `${number(mean)} mean of ${number(count)}`;
    const parts = Object.entries(by).map(([part, each]) => [`${name}: ${part}`, number(each)]);
    return [[`${name}${what ? ` (${what})` : ""}`, said], ...(parts.length > 1 ? parts : [])];
  });
  $("own-card").hidden = !told.length;
  rows("own", told);
}

function showHistory(alerts) {
  const body = $("history").tBodies[0];
  body.replaceChildren(
    ...alerts.toReversed().map(({ time, status, alert, severity, value, threshold, source }) =>
      make(
        "tr",
        { data: { severity: severity ?? "warning" } },
        make("td", {}, make("time", { dateTime: time }, when(new Date(time)))),
        make("td", {}, status),
        make("td", {}, alert, " ", make("span", { className: "badge" }, SEVERITY[severity] ?? severity ?? "")),
        make("td", {}, value == null || isNaN(value) ? String(value ?? "–") : number(Number(value))),
        make("td", {}, threshold == null || isNaN(threshold) ? String(threshold ?? "–") : number(Number(threshold))),
        make("td", {}, source === "process" ? "this process" : "Alertmanager"),
      ),
    ),
  );
  $("no-history").hidden = alerts.length > 0;
  $("history").hidden = !alerts.length;
}

// --- the connection --------------------------------------------------------------------------

let source;
let heard = 0;
let lost = null;
let paused = false;
let newest = null;
let history = [];

function connect() {
  source = new EventSource("/status/events");
  source.addEventListener("history", ({ data }) => {
    moments = JSON.parse(data);
    if (!paused) drawCharts();
  });
  source.addEventListener("moment", ({ data }) => {
    moments.push(JSON.parse(data));
    if (!paused) drawCharts();
  });
  source.addEventListener("alerts", ({ data }) => {
    history = JSON.parse(data);
    if (!paused) showHistory(history);
  });
  source.addEventListener("status", ({ data }) => {
    heard = Date.now();
    lost = null;
    newest = JSON.parse(data);
    $("problem").hidden = true;
    if (!paused) showStatus(newest);
    showState();
  });
  source.onerror = () => {
    lost ??= new Date();
    // Refused, and not merely cut: the browser does not try again by itself.
    if (source.readyState === EventSource.CLOSED) {
      setTimeout(connect, RETRY_MS);
      explain();
    }
    showState();
  };
}

/** Says why the server does not serve its events. */
async function explain() {
  const answer = await fetch("/status").catch(() => null);
  const said = answer && !answer.ok ? await answer.json().catch(() => null) : null;
  $("problem").hidden = !said?.error;
  say($("problem"), said?.error ?? "");
}

function showState() {
  if (lost === null && heard && Date.now() - heard > SILENCE_MS) lost = new Date(heard);
  const since = lost && `since ${clock(lost)}`;
  const [state, text] = lost
    ? ["lost", `Reconnecting ${since}`]
    : !heard
      ? ["connecting", "Connecting"]
      : paused
        ? ["paused", "Paused"]
        : ["live", "Live"];
  $("state").dataset.state = state;
  say($("state"), text);
  document.body.toggleAttribute("data-old", lost !== null);
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", paused);
  if (!paused && newest) {
    showStatus(newest);
    showHistory(history);
    drawCharts();
  }
  showState();
});

setInterval(showState, 1000);
drawCharts();
connect();
