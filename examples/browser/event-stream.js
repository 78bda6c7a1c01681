// Reads an event stream without I/O: bytes in, messages out, by the WHATWG HTML standard, "Parsing
// an event stream" and "Interpreting an event stream".

const LF = 10;
const CR = 13;
const COLON = 58;
const SPACE = 32;
const BOM = [0xef, 0xbb, 0xbf];

// Line by line, malformed bytes become what they become in the stream as a whole: no CR or LF is
// ever a part of a longer character.
const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

export class EventStreamParser {
  /** Of the last block, even of one without data: what a reconnection resumes at. */
  lastEventId;
  /** How long to wait before a reconnection, in ms, where the stream has set it. */
  retry;

  #atStart = true;
  #afterCR = false;
  #open = []; // the pieces of a line that has not ended yet
  #data = [];
  #type = "";
  #id;
  #size = 0; // of the block in bytes, from its first field on; 0 where none has come

  constructor(lastEventId = "") {
    this.lastEventId = this.#id = lastEventId;
  }

  /**
   * What the chunk completes, in order: `{type, data, lastEventId, size}` is a message, with its
   * bytes on the wire; `{comment, size}` is a comment line.
   */
  feed(chunk) {
    const items = [];
    let at = 0;
    if (this.#afterCR && chunk.length) {
      this.#afterCR = false;
      if (chunk[0] === LF) {
        at = 1;
        if (this.#size) this.#size += 1;
      }
    }
    let cr = chunk.indexOf(CR, at);
    let lf = chunk.indexOf(LF, at);
    while (cr !== -1 || lf !== -1) {
      const end = cr === -1 || (lf !== -1 && lf < cr) ? lf : cr;
      let next = end + 1;
      if (end === cr) {
        if (next === chunk.length) this.#afterCR = true;
        else if (chunk[next] === LF) next += 1;
      }
      const line = this.#joined(chunk.subarray(at, end));
      at = next;
      const item = this.#line(line, line.length + next - end);
      if (item) items.push(item);
      if (cr !== -1 && cr < at) cr = chunk.indexOf(CR, at);
      if (lf !== -1 && lf < at) lf = chunk.indexOf(LF, at);
    }
    // A copy: the rest of the chunk need not stay.
    if (at < chunk.length) this.#open.push(chunk.slice(at));
    return items;
  }

  #joined(end) {
    let line = end;
    if (this.#open.length) {
      const parts = [...this.#open, end];
      line = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
      let at = 0;
      for (const part of parts) {
        line.set(part, at);
        at += part.length;
      }
      this.#open = [];
    }
    if (this.#atStart) {
      this.#atStart = false;
      if (BOM.every((byte, at) => line[at] === byte)) line = line.subarray(BOM.length);
    }
    return line;
  }

  #line(line, size) {
    if (line.length === 0) return this.#dispatch(size);
    const colon = line.indexOf(COLON);
    if (colon === 0) {
      if (this.#size) this.#size += size;
      return { comment: utf8.decode(line.subarray(1)), size };
    }
    this.#size += size;
    const field = utf8.decode(colon === -1 ? line : line.subarray(0, colon));
    const start = colon === -1 ? line.length : colon + (line[colon + 1] === SPACE ? 2 : 1);
    const value = utf8.decode(line.subarray(start));
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#type = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    else if (field === "retry" && /^\d+$/.test(value)) this.retry = Number(value);
    return undefined;
  }

  #dispatch(size) {
    this.lastEventId = this.#id;
    const message = this.#data.length && {
      type: this.#type || "message",
      data: this.#data.join("\n"),
      lastEventId: this.lastEventId,
      size: this.#size + size,
    };
    this.#data = [];
    this.#type = "";
    this.#size = 0;
    return message || undefined;
  }
}
