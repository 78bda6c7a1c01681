// The reference server's compressed messages: the data is a JSON object of exactly this shape,
//
//   {"encoding": "gzip", "data": "<gzip, in base64>", "size": <bytes of the text in UTF-8>}
//
// and stands for the text that was compressed.

const KEYS = "data,encoding,size";
const MAX_SIZE = 16 * 2 ** 20;

/** The text that the data stands for. Data that is no sound envelope is returned as it is. */
export async function unwrap(data) {
  if (data[0] !== "{" || !data.includes('"gzip"')) return data;
  try {
    const envelope = JSON.parse(data);
    const { encoding, size } = envelope;
    if (Object.keys(envelope).sort().join() !== KEYS || encoding !== "gzip") return data;
    if (!Number.isInteger(size) || size < 0 || size > MAX_SIZE) return data;
    const packed = Uint8Array.from(atob(envelope.data), (char) => char.charCodeAt(0));
    return await inflate(packed, size);
  } catch {
    return data;
  }
}

async function inflate(packed, size) {
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const parts = [];
  let remaining = size;
  for await (const chunk of chunks(new Blob([packed]).stream())) {
    // What unpacks to more than its size is not unpacked to its end.
    remaining -= chunk.length;
    if (remaining < 0) throw new RangeError("larger than its size");
    parts.push(text.decode(chunk, { stream: true }));
  }
  if (remaining !== 0) throw new RangeError("smaller than its size");
  return parts.join("") + text.decode();
}

async function* chunks(stream) {
  const reader = stream.pipeThrough(new DecompressionStream("gzip")).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
