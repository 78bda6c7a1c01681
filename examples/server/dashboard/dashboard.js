// The dashboard: what /status/events sends, as one state of health, figures, charts and lists.

import { CHARTS, Chart, SPAN } from "./chart.js";
import { $, breakable, keep, make, rows, setText } from "./elements.js";
import { bytes, clock, inUnit, ms, number, seconds, visible, when, words } from "./format.js";

// Without an event for so long the figures are called old; the server sends one each second, and
// with very many connections every few.
const SILENCE_MS = 12_000;
const RETRY_MS = 5_000;
const MOST_ALERTS = 10;
const HEALTH = {
  healthy: "Healthy",
  degraded: "Degraded",
  refusing: "Refusing clients",
  not_judged: "Not judged",
  no_data: "No data",
};
const REASONS = {
  completed: "Completed by the application",
  client_disconnect: "Disconnected by the client",
  server_shutdown: "Cut by the server's shutdown",
  timeout: "Timed out",
  error: "Failed",
  unknown: "Unknown",
};
const SEVERITY = { critical: "▲ Critical", warning: "◆ Warning", info: "● Info" };

// --- charts ----------------------------------------------------------------------------------

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

function showHealth({ state, reason, since }, quiet = false) {
  const text = HEALTH[state] ?? state;
  const box = $("health");
  if (!quiet && box.dataset.health !== state) setText($("announcement"), visible(`${text}. ${reason}`));
  box.dataset.health = state;
  setText($("health-state"), text);
  setText($("health-reason"), visible(reason));
  setText($("health-since"), since ? `Since ${when(new Date(since))}` : "");
  document.title = `${text}: ${$("service").textContent}`;
}

function showStatus(status) {
  const { process } = status;
  const named = process.service && !process.service.startsWith("unknown_service");
  setText($("service"), named ? visible(process.service) : "Unnamed service");
  setText($("process"), `Process ${process.pid}, up ${seconds(process.uptime_seconds)}`);
  showHealth(status.health);
  for (const chart of charts) chart.show(status);
  showAlerts(status.alerts);
  showList(status.connections);
  showInsights(status.insights);
  showCloses(status.connections);
  showConnections(status.connections);
  showMessages(status);
  showMemory(status.memory);
  showOwn(status.server);
  keep($("notes"), status.notes, (note) => note, () => make("li"), setText);
  const fleet = $("fleet");
  fleet.hidden = !process.fleet_url;
  $("no-fleet").hidden = Boolean(process.fleet_url);
  if (process.fleet_url) fleet.href = process.fleet_url;
}

let firing = null;

function showAlerts(alerts) {
  const name = ({ source, alert, severity }) => [source, alert, severity].join(" ");
  keep(
    $("alerts"),
    alerts.slice(0, MOST_ALERTS),
    name,
    ({ severity, alert, runbook_url: runbook }) => {
      const badge = make("span", { className: "badge" }, SEVERITY[severity] ?? visible(severity ?? "Alert"));
      const parts = ["measured", "summary", "muted small"].map((kind) => make("p", { className: kind }));
      // Only an address that is one: an alert of Alertmanager's may have any text.
      if (/^https?:/.test(runbook ?? "")) {
        parts.push(make("p", { className: "small" }, make("a", { href: runbook, rel: "noreferrer" }, "Runbook")));
      }
      return make("li", { data: { severity: severity ?? "warning" } }, make("h3", {}, visible(alert), badge), ...parts);
    },
    (item, alert) => {
      const [measured, summary, more] = item.querySelectorAll("p");
      const value = alert.value == null ? "" : inUnit(alert.value, alert.unit);
      const over = alert.threshold == null ? "" : `(threshold ${inUnit(alert.threshold, alert.unit)})`;
      setText(measured, [value, over].filter(Boolean).join(" "));
      setText(summary, visible([alert.summary, alert.recommendation].filter(Boolean).join(" ")));
      setText(more, `Since ${when(new Date(alert.since))}, ${origin(alert)}${reminder(alert)}`);
    },
  );
  const more = alerts.length - MOST_ALERTS;
  $("more-alerts").hidden = more <= 0;
  setText($("more-alerts"), `and ${number(more)} more`);
  $("alerts-section").hidden = alerts.length === 0;
  const now = new Map(alerts.map((alert) => [name(alert), alert]));
  if (firing !== null) {
    const began = [...now].filter(([key]) => !firing.has(key)).map(([, { alert, severity }]) => `${severity ?? ""} alert ${alert}`);
    const ended = [...firing].filter(([key]) => !now.has(key)).map(([, { alert }]) => `${alert} is over`);
    if (began.length || ended.length) setText($("announcement"), visible([...began, ...ended].join(". ")));
  }
  firing = now;
}

/** Who reports an alert, and of how many instances. */
function origin({ source, job, instance, count, instances = [] }) {
  if (source === "process") return "this process";
  const others = count > instances.length ? [`and ${number(count - instances.length)} more`] : [];
  const names = count ? [`${number(count)} alerts`, ...instances, ...others] : [job, instance].filter(Boolean);
  return visible(["Alertmanager", ...names].join(", "));
}

function reminder({ cooldown_left_seconds: left }) {
  if (!left) return "";
  return left >= 60 ? `; next reminder in ${Math.ceil(left / 60)} min` : `; next reminder in ${Math.ceil(left)} s`;
}

function showList({ list, active }) {
  keep(
    $("list").tBodies[0],
    list,
    ({ id }) => id,
    ({ client_address: address, user_agent: agent, route, id }) => {
      const who = make("td", { title: id }, visible(address ?? "unknown address"));
      if (agent) who.append(make("span", { className: "agent" }, visible(agent)));
      return make("tr", {}, who, make("td", {}, ...breakable(visible(route ?? "–"))), make("td"), make("td"), make("td"));
    },
    (row, { age_seconds: age, messages, backlog_bytes: backlog }) => {
      setText(row.cells[2], seconds(age));
      setText(row.cells[3], number(messages));
      setText(row.cells[4], bytes(backlog));
    },
  );
  $("no-list").hidden = list.length > 0;
  $("list").hidden = !list.length;
  $("more-list").hidden = active <= list.length;
  setText($("more-list"), `and ${number(active - list.length)} more`);
}

function showInsights(insights) {
  keep(
    $("insights"),
    insights,
    ({ alert }) => alert,
    () => make("li", {}, make("strong"), make("span", { className: "muted" })),
    (item, { summary, value, unit: of, threshold, recommendation }) => {
      setText(item.firstChild, summary);
      setText(item.lastChild, `${inUnit(value, of)}, more than ${inUnit(threshold, of)}. ${recommendation}`);
    },
  );
  $("no-insights").hidden = insights.length > 0;
}

function showCloses({ ended, ended_by_reason: reasons }) {
  const found = Object.entries(reasons);
  keep(
    $("closes-bar"),
    found,
    ([reason]) => reason,
    ([reason]) => make("span", { data: { reason } }),
    (part, [, count]) => (part.style.flexGrow = count),
  );
  keep(
    $("closes").tBodies[0],
    found,
    ([reason]) => reason,
    ([reason]) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, make("span", { className: "key", data: { reason }, "aria-hidden": "true" }), REASONS[reason] ?? visible(words(reason))),
        make("td"),
        make("td", { className: "muted" }),
      ),
    (row, [, count]) => {
      setText(row.cells[1], number(count));
      setText(row.cells[2], `${number(Math.round((1000 * count) / ended) / 10)} %`);
    },
  );
  $("no-closes").hidden = found.length > 0;
}

function showConnections(connections) {
  rows("connections", [
    ["Mean duration of the closed", seconds(connections.mean_duration_seconds)],
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
    ([address]) => make("tr", {}, make("th", { scope: "row" }, visible(address)), make("td", {}, make("span", { className: "share", "aria-hidden": "true" }), make("span"))),
    (row, [, count]) => {
      const [bar, text] = row.cells[1].children;
      bar.style.width = `${Math.round((90 * Math.min(count, most)) / most)}px`;
      setText(text, number(count));
    },
  );
  $("no-clients").hidden = clients.length > 0;
}

/** How many times larger messages were before they were compressed. */
function ratio(server) {
  const [before, after] = ["original", "compressed"].map((name) => server[`server.compression.${name}`]?.value);
  return after ? [["Compression", `${number(before / after)} to 1`]] : [];
}

function showMessages({ messages, processing, connections, server, window_seconds: over }) {
  const dropped = Object.entries(messages.dropped_by_reason);
  const span = over < 59 ? seconds(Math.round(over)) : "minute";
  rows("delivery", [
    [`Mean size, last ${span}`, bytes(messages.mean_bytes)],
    ...ratio(server),
    [`Mean wait in a send, last ${span}`, ms(processing.mean_ms)],
    ["Mean wait in a send", ms(processing.mean_ms_since_start)],
    ["Longest wait in a send", ms(processing.max_ms)],
    ["Slow sends", number(processing.slow_sends)],
    ["Heartbeats, and other comments", number(messages.comments)],
    ["Dropped", number(messages.dropped)],
    ...dropped.map(([reason, count]) => [`Dropped: ${visible(words(reason))}`, number(count)]),
  ]);
  const routes = Object.entries(connections.active_by_route);
  const types = Object.entries(messages.total_by_type);
  rows("routes", [
    ["Open connections"],
    ...routes.map(([route, count]) => [visible(route) || "no route", number(count), `route ${route}`]),
    ["Messages since the start"],
    ...types.map(([type, count]) => [visible(type), number(count), `type ${type}`]),
  ]);
}

function showMemory({ rss, heap, leak, explained_bytes: explained }) {
  const rate = leak.rate_mb_per_second == null ? "" : bytes(leak.rate_mb_per_second * 2 ** 20);
  const texts = {
    leak: `Growing by ${rate} a second over ${leak.minutes} min, and nothing explains it. ${leak.recommendation}`,
    "no leak": `No leak over ${leak.minutes} min. History, backlog and connections explain ${bytes(explained)}.`,
    "insufficient data": `Whether it leaks is judged after ${leak.minutes_needed + 1} min; ${leak.minutes} of ${leak.minutes_needed} are over.`,
  };
  $("leak").dataset.leaking = leak.leaking;
  setText($("leak"), texts[leak.state]);
  const percent = (value) => (value == null ? "–" : `${value > 0 ? "+" : ""}${number(value)} %`);
  const figures = [
    ["Now", "bytes", bytes],
    ["Held by the allocators", "total_bytes", bytes],
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
      setText(row.cells[1], show(heap[key]));
      setText(row.cells[2], show(rss[key]));
    },
  );
  setText($("memory-why"), [heap.why, rss.why].filter(Boolean).join(". "));
}

function showOwn(metrics) {
  const own = Object.entries(metrics).flatMap(([name, { value, mean, count, unit: of, by = {} }]) => {
    const text = mean === undefined ? inUnit(value, of) : `${inUnit(mean, of)} mean of ${number(count)}`;
    const parts = Object.entries(by).filter(([, each]) => each).map(([part, each]) => [`${name}: ${visible(part)}`, inUnit(each, of)]);
    return [[name, text], ...(parts.length > 1 ? parts : [])];
  });
  $("own-card").hidden = !own.length;
  rows("own", own);
}

function showHistory(alerts) {
  const body = $("history").tBodies[0];
  body.replaceChildren(
    ...alerts.toReversed().map(({ time, status, alert, severity, value, threshold, source, unit, count }) =>
      make(
        "tr",
        { data: { severity: severity ?? "warning" } },
        make("td", {}, make("time", { dateTime: time }, when(new Date(time)))),
        make("td", {}, status),
        make("td", {}, visible(alert), count ? ` (${number(count)})` : "", " ", make("span", { className: "badge" }, SEVERITY[severity] ?? visible(severity ?? ""))),
        make("td", {}, inUnit(value, unit)),
        make("td", {}, inUnit(threshold, unit)),
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

/** Why the server does not serve its events: its health, where it answers at all. */
async function explain() {
  const answer = await fetch("/status").catch(() => null);
  const body = await answer?.json().catch(() => null);
  // Where there are too many dashboards, the figures come with each try.
  if (answer?.ok && body) showStatus(body);
  else if (body?.health) showHealth(body.health);
}

function showState() {
  if (lost === null && heard && Date.now() - heard > SILENCE_MS) lost = new Date(heard);
  const since = lost && `since ${clock(lost)}`;
  const [state, text] = lost
    ? ["lost", `Page: reconnecting ${since}`]
    : !heard
      ? ["connecting", "Page: connecting"]
      : paused
        ? ["paused", "Page: paused"]
        : ["live", "Page: live"];
  if (lost && heard) showHealth({ state: "no_data", reason: "The server does not answer.", since: lost }, true);
  $("state").dataset.state = state;
  setText($("state"), text);
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

// On a phone the lists are closed until they are asked for.
const wide = matchMedia("(min-width: 700px)").matches;
for (const each of document.querySelectorAll("[data-fold]")) each.open = wide;
for (const each of document.querySelectorAll(".origin")) each.textContent = location.origin;

setInterval(showState, 1000);
drawCharts();
connect();
