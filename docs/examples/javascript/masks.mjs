// Reads the masks of atlasd, after docs/protocol.md (version 1.x) and nothing else.
//
//   node masks.mjs [ENDPOINT] [STREAM] [--all] [--json] [--timeout SECONDS]
//
// Ends with 0 at the end of the stream, 2 if called wrongly, 3 before another version of the
// protocol, 4 after silence, 5 if the masks' encoding is not known.

import { createHash } from "node:crypto";
import { parseArgs } from "node:util";

import { decode } from "@msgpack/msgpack";
import { decompress } from "fzstd";
import { Subscriber } from "zeromq";

const MAX_PIXELS = 2 ** 24;
const MAX_MESSAGE_BYTES = MAX_PIXELS + 2 ** 16;
const KINDS = ["h", "s", "e", "m"]; // masks last, so that no event of theirs is missed

class Failure extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
  }
}

// One byte, 0 or 1, for each pixel of a mask, rows first.
export function pixels({ enc, shape, data, threshold = 0.5 }) {
  const [height, width] = shape.map(Number);
  const count = height * width;
  if (!(height > 0 && width > 0 && count <= MAX_PIXELS)) throw new RangeError(`shape ${shape}`);
  switch (enc) {
    case "bits":
      return unpackBits(data, count);
    case "bits+zstd":
      return unpackBits(unzstd(data, Math.ceil(count / 8)), count);
    case "rle":
      return unpackRuns(data, height, width);
    case "prob8":
      checkLength(data, count);
      return Uint8Array.from(data, (value) => (value / 255 > threshold ? 1 : 0));
    default:
      throw new Failure(5, `masks come as ${enc}; this reads bits, bits+zstd, rle and prob8`);
  }
}

function checkLength(data, expected) {
  if (data.length !== expected) throw new RangeError(`${data.length} bytes, not ${expected}`);
}

function unpackBits(bits, count) {
  checkLength(bits, Math.ceil(count / 8));
  const out = new Uint8Array(count);
  for (let i = 0; i < count; i++) out[i] = (bits[i >> 3] >> (7 - (i & 7))) & 1;
  return out;
}

// A frame that claims another size than the mask has is no mask; see RFC 8878, section 3.1.1.1.
function unzstd(data, expected) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  if (view.getUint32(0, true) !== 0xfd2fb528) throw new RangeError("no Zstandard frame");
  const descriptor = data[4];
  const single = (descriptor >> 5) & 1;
  const at = 5 + (single ? 0 : 1) + [0, 1, 2, 4][descriptor & 3];
  const claimed = [
    () => (single ? view.getUint8(at) : undefined),
    () => view.getUint16(at, true) + 256,
    () => view.getUint32(at, true),
    () => Number(view.getBigUint64(at, true)),
  ][descriptor >> 6]();
  if (claimed !== expected) throw new RangeError(`a frame of ${claimed} bytes, not ${expected}`);
  return decompress(data, new Uint8Array(expected));
}

// COCO's compressed run lengths: down the columns from the left.
function unpackRuns(data, height, width) {
  const out = new Uint8Array(height * width);
  const counts = [];
  let place = 0;
  for (let i = 0; i < data.length; ) {
    let value = 0;
    let shift = 0;
    let group;
    do {
      group = data[i++] - 48;
      if (!(group >= 0 && group < 64) || shift > 30) throw new RangeError("not run lengths");
      value += (group & 31) * 2 ** shift;
      shift += 5;
    } while (group & 32);
    if (group & 16) value -= 2 ** shift;
    if (counts.length > 2) value += counts[counts.length - 2];
    counts.push(value);
    if (value < 0 || place + value > out.length) throw new RangeError("runs leave the mask");
    if (counts.length % 2 === 0) {
      for (let j = place; j < place + value; j++) out[(j % height) * width + Math.floor(j / height)] = 1;
    }
    place += value;
  }
  if (place !== out.length) throw new RangeError(`runs of ${place} pixels, not ${out.length}`);
  return out;
}

// Kind, stream and map of a message; undefined if it is none.
function read(frames) {
  const [frame] = frames;
  const cut = frame.indexOf(0);
  const topic = /^([mfseh])\/([A-Za-z0-9][A-Za-z0-9._-]{0,63})$/.exec(frame.subarray(0, cut).toString("latin1"));
  if (frames.length > 1 || frame.length > MAX_MESSAGE_BYTES || !topic) return undefined;
  let map;
  try {
    map = decode(frame.subarray(cut + 1), { useBigInt64: true });
  } catch {
    return undefined;
  }
  if (typeof map?.v !== "string") return undefined;
  if (!map.v.startsWith("1.")) {
    throw new Failure(3, `the daemon speaks version ${map.v}; this reads 1.x: use a newer reader`);
  }
  if (map.stream !== topic[2] || (topic[1] === "m" && !isMask(map))) return undefined;
  return { kind: topic[1], stream: topic[2], map };
}

function isMask({ seq, mask, model }) {
  return seq !== undefined && model && Array.isArray(mask?.shape) && mask.data instanceof Uint8Array;
}

// A reader of one stream, or of all: every mask in order, or the latest when the caller is ready.
export class Masks {
  #socket;
  #waiting = [];
  #seqs = new Map();
  #ended = new Map();
  #over = undefined;
  #arrived = () => {};

  constructor(endpoint, stream, { all = false, timeoutS = 10 } = {}) {
    this.all = all;
    this.malformed = 0;
    this.lost = 0;
    this.#socket = new Subscriber({
      receiveHighWaterMark: 1000, // large: a short queue keeps the oldest
      receiveTimeout: timeoutS * 1000,
      maxMessageSize: 4 * MAX_MESSAGE_BYTES,
      reconnectInterval: 100,
      reconnectMaxInterval: 5000,
      linger: 0,
    });
    this.timeoutS = timeoutS;
    this.endpoint = endpoint;
    this.#socket.connect(endpoint);
    for (const kind of KINDS) this.#socket.subscribe(stream === undefined ? `${kind}/` : `${kind}/${stream}\0`);
  }

  async *[Symbol.asyncIterator]() {
    this.#drain();
    try {
      while (true) {
        while (this.#waiting.length) yield this.#waiting.shift();
        if (this.#over) break;
        await new Promise((resolve) => (this.#arrived = resolve));
      }
    } finally {
      this.#socket.close();
    }
    if (this.#over instanceof Error) throw this.#over;
  }

  // Take whatever comes, as fast as it comes; what the caller has not asked for yet waits here.
  async #drain() {
    try {
      while (!this.#over) {
        this.#note(await this.#socket.receive());
        setImmediate(this.#arrived); // after all that is there already, so that the latest is the latest
      }
    } catch (error) {
      const silence = `nothing came from ${this.endpoint} within ${this.timeoutS} s; is the daemon running?`;
      this.#over = error.code === "EAGAIN" ? new Failure(4, silence) : error;
    }
    this.#arrived();
  }

  #note(frames) {
    const message = read(frames);
    if (!message) {
      this.malformed++;
      return;
    }
    const { kind, stream, map } = message;
    if (!this.#ended.has(stream)) this.#ended.set(stream, false);
    if (kind === "m") this.#keep(stream, map);
    if (kind === "s" && map.state === "ended") {
      if (map.mask && isMask(map.mask) && !(Number(map.mask.seq) <= this.#seqs.get(stream))) this.#keep(stream, map.mask);
      this.#ended.set(stream, true);
    }
    if (kind === "e" && (map.kind === "eos" || map.kind === "goodbye")) this.#ended.set(stream, true);
    if ([...this.#ended.values()].every(Boolean)) this.#over = true;
  }

  #keep(stream, mask) {
    const seq = Number(mask.seq);
    const before = this.#seqs.get(stream);
    if (seq > before + 1) this.lost += seq - before - 1;
    this.#seqs.set(stream, seq);
    if (!this.all) this.#waiting = this.#waiting.filter((other) => other.stream !== stream);
    this.#waiting.push(mask);
  }
}

function asJson(mask, inside) {
  return JSON.stringify({
    stream: mask.stream,
    epoch: Number(mask.epoch),
    seq: Number(mask.seq),
    pts_ns: String(mask.pts_ns), // as text: JSON's numbers are exact up to 2^53 only
    capture_ns: String(mask.capture_ns),
    publish_ns: String(mask.publish_ns),
    shape: mask.mask.shape.map(Number),
    area: inside.reduce((sum, value) => sum + value, 0),
    sha256: createHash("sha256").update(inside).digest("hex"),
    classes: mask.classes ?? [],
    model: `${mask.model.preset} ${mask.model.version}`,
  });
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      all: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
      timeout: { type: "string", default: "10" },
    },
  });
  const [endpoint = "tcp://127.0.0.1:5557", stream] = positionals;
  const timeoutS = Number(values.timeout);
  if (!(timeoutS > 0)) throw new Failure(2, `--timeout ${values.timeout}: give seconds above 0`);
  const masks = new Masks(endpoint, stream, { all: values.all, timeoutS });
  for await (const mask of masks) {
    let inside;
    try {
      inside = pixels(mask.mask);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      masks.malformed++;
      continue;
    }
    const area = () => inside.reduce((sum, value) => sum + value, 0);
    console.log(values.json ? asJson(mask, inside) : `${mask.stream} ${mask.seq}: ${area()} of ${inside.length} pixels`);
  }
  console.error(`the stream has ended; ${masks.lost} masks lost, ${masks.malformed} messages malformed`);
}

if (process.argv[1] && import.meta.url === new URL(`file://${process.argv[1]}`).href) {
  main().catch((error) => {
    console.error(`error: ${error.message}`);
    process.exitCode = error.code?.startsWith?.("ERR_PARSE_ARGS") ? 2 : typeof error.code === "number" ? error.code : 1;
  });
}
