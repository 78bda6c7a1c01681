// Words and numbers as the dashboard shows them.

// Nothing is shown as "-0".
const formats = [0, 1, 2].map(
  (digits) => new Intl.NumberFormat("en", { maximumFractionDigits: digits, signDisplay: "negative" }),
);
export const number = (value) =>
  value == null ? "–" : formats[Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2].format(value);

/** A size in bytes, as its number and its unit. */
export function size(bytes) {
  if (bytes == null) return ["–", ""];
  let power = 0;
  while (Math.abs(bytes) >= 1024 && power < 4) (bytes /= 1024), power++;
  return [number(bytes), ["B", "kB", "MB", "GB", "TB"][power]];
}

export const bytes = (value) => size(value).join(" ").trim();
export const ms = (value) =>
  value == null ? "–" : value < 1000 ? `${number(value)} ms` : `${number(value / 1000)} s`;

export function seconds(value) {
  if (value == null) return "–";
  if (value < 60) return `${number(value < 10 ? value : Math.round(value))} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
  if (value < 86_400) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  return `${Math.floor(value / 86_400)} d ${Math.floor((value % 86_400) / 3600)} h`;
}

export const counted = (value, one) => `${number(value)} ${one}${value === 1 ? "" : "s"}`;
const UNITS = {
  "{connection}": (value) => counted(value, "connection"),
  "{connection}/s": (value) => `${counted(value, "connection")} a second`,
  "{message}": (value) => counted(value, "message"),
  "{message}/s": (value) => `${counted(value, "message")} a second`,
  "{error}/s": (value) => `${counted(value, "error")} a second`,
  By: bytes,
  "By/s": (value) => `${bytes(value)} a second`,
  MB: (value) => bytes(value * 2 ** 20),
  "MB/s": (value) => `${bytes(value * 2 ** 20)} a second`,
  s: seconds,
  ms,
  1: number,
};

/** A figure in its unit; what is no number as it is. */
export function inUnit(value, unit) {
  if (value == null || value === "") return "–";
  if (isNaN(value)) return visible(String(value));
  const show = UNITS[unit];
  // A unit in braces names what is counted, as the metric's name does.
  return show ? show(Number(value)) : [number(Number(value)), (unit ?? "").replace(/\{.*\}/, "")].join(" ").trim();
}

export const clock = (date) => (Number.isNaN(+date) ? "–" : date.toLocaleTimeString("en-GB"));
/** The time of day, with the day where it is another. */
export const when = (date) =>
  Number.isNaN(+date) || date.toDateString() === new Date().toDateString()
    ? clock(date)
    : date.toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
export const words = (name) => name.replaceAll("_", " ");

/** A name of a client's or a publisher's, with what cannot be seen or turns text round written out. */
export const visible = (text) =>
  text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (it) => `\\u{${it.codePointAt(0).toString(16)}}`);
