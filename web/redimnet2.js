// Who speaks, in a browser or in Node: embeddings by a file of `redimnet2
// export`, run by onnxruntime-web. Audio and embeddings stay where this runs.

import * as ort from "#onnxruntime";
import { SAMPLE_RATE, toWaveform } from "./audio.js";
import { readMetadata } from "./metadata.js";

export { env } from "#onnxruntime";

/** @typedef {import("./redimnet2.js").Audio} Audio */
/** @typedef {import("./redimnet2.js").Enrolments} Enrolments */
// Where its methods are described.
/** @typedef {import("./redimnet2.js").SpeakerRecognition} Described */

const EXPORT_AGAIN = "export it again by redimnet2 export";
// Of longer audio pieces are embedded, which bounds memory.
const LONGEST_PIECE = 60 * SAMPLE_RATE;
const FORMULA =
  "value n, from 0, is (s / 2147483647 - 0.5) * ((n % 4000 + 1) / 4000) in " +
  "float64, as float32; before each s = 16807 * s % 2147483647, at first s = 1";
// Of the embedding of the test input, relative to the largest value.
const TOLERANCE = 1e-4;

/**
 * Loads a file of `redimnet2 export`.
 *
 * @param {string | URL | ArrayBuffer | Uint8Array} model Address or content.
 * @param {{threshold?: number}} [options] The cosine above which two voices are
 *   one, in place of that of the file.
 * @returns {Promise<Described>}
 */
export async function load(model, { threshold } = {}) {
  const bytes = await contentOf(model);
  const metadata = metadataOf(bytes);
  let session;
  try {
    session = await ort.InferenceSession.create(bytes, {
      executionProviders: ["wasm"],
    });
  } catch (error) {
    throw new Error(
      `model: onnxruntime-web cannot open it (${oneLine(error)}); look whether ` +
        `its .wasm file is served, or ${EXPORT_AGAIN}`,
    );
  }
  try {
    const recognition = new SpeakerRecognition(session, metadata);
    if (threshold !== undefined) recognition.threshold = threshold;
    return recognition;
  } catch (error) {
    await session.release();
    throw error;
  }
}

/** @param {Uint8Array} bytes */
function metadataOf(bytes) {
  let metadata;
  try {
    metadata = readMetadata(bytes);
  } catch {
    throw new Error(`model: not an ONNX file, or damaged; ${EXPORT_AGAIN}`);
  }
  if (metadata.model !== "ReDimNet2") {
    throw new Error(`model: not a file of redimnet2 export; ${EXPORT_AGAIN}`);
  }
  return metadata;
}

/** @param {string | URL | ArrayBuffer | Uint8Array} model */
async function contentOf(model) {
  if (model instanceof Uint8Array || model instanceof ArrayBuffer) {
    // A copy: onnxruntime-web may hand the memory over to a worker.
    return new Uint8Array(model.slice(0));
  }
  if (typeof model !== "string" && !(model instanceof URL)) {
    throw new Error("model: neither an address, an ArrayBuffer nor a Uint8Array");
  }
  let answer;
  try {
    answer = await fetch(model);
  } catch (error) {
    throw new Error(`model: ${model} cannot be loaded (${oneLine(error)})`);
  }
  if (!answer.ok) {
    throw new Error(`model: ${model} cannot be loaded (HTTP ${answer.status})`);
  }
  return new Uint8Array(await answer.arrayBuffer());
}

/** Compares voices; made by `load`. */
class SpeakerRecognition {
  #session;
  /** @type {Map<string, Float32Array[]>} */
  #enrolled = new Map();
  #threshold;
  #thresholdOrigin;

  /**
   * @param {ort.InferenceSession} session
   * @param {Record<string, string>} metadata
   */
  constructor(session, metadata) {
    if (session.inputNames[0] === "sherpa_features") {
      throw new Error("model: takes sherpa-onnx's features; export --for=onnx");
    }
    if (!session.inputNames[0].startsWith("waveform")) {
      throw new Error("model: takes features; export without --features");
    }
    this.#session = session;
    this.metadata = Object.freeze(metadata);
    this.embeddingSpace = metadata.embedding_space;
    if (this.embeddingSpace === undefined) {
      throw new Error(
        `model: does not say its embedding space; ${EXPORT_AGAIN}`,
      );
    }
    this.embeddingSize = this.#number("embedding_size");
    this.minimumSamples = this.#number("minimum_samples");
    this.fixedSamples =
      "fixed_samples" in metadata ? this.#number("fixed_samples") : null;
    this.#threshold =
      "threshold" in metadata ? this.#number("threshold") : null;
    this.#thresholdOrigin = metadata.threshold_origin ?? null;
  }

  /** @param {string} key */
  #number(key) {
    const value = Number.parseFloat(this.metadata[key]);
    if (!Number.isFinite(value)) {
      throw new Error(`model: ${key} of its metadata is damaged; ${EXPORT_AGAIN}`);
    }
    return value;
  }

  get threshold() {
    return this.#threshold;
  }

  set threshold(value) {
    if (typeof value !== "number" || !(value >= -1 && value <= 1)) {
      throw new Error(`threshold: ${value} is not a number from -1 to 1`);
    }
    this.#threshold = value;
    this.#thresholdOrigin = "given";
  }

  get thresholdOrigin() {
    return this.#thresholdOrigin;
  }

  /** @param {Audio} audio */
  async embed(audio) {
    const waveform = await toWaveform(audio);
    if (waveform.length < this.minimumSamples) {
      throw new Error(
        `audio: shorter than ${(1000 * this.minimumSamples) / SAMPLE_RATE} ms; ` +
          "record it again or leave it out",
      );
    }
    if (this.fixedSamples !== null && waveform.length !== this.fixedSamples) {
      throw new Error(
        `audio: has ${waveform.length} samples, but the model takes ` +
          `${this.fixedSamples}; cut or repeat it, or export without --for=fixed`,
      );
    }
    if (this.fixedSamples !== null || waveform.length <= LONGEST_PIECE) {
      return this.#embedWhole(waveform);
    }
    return this.#embedLong(waveform);
  }

  /** @param {Float32Array} waveform */
  async #embedWhole(waveform) {
    const [signal, lengths] = this.#session.inputNames;
    /** @type {Record<string, ort.Tensor>} */
    const feeds = {
      [signal]: new ort.Tensor("float32", waveform, [1, waveform.length]),
    };
    if (lengths !== undefined) {
      const length = BigInt64Array.of(BigInt(waveform.length));
      feeds[lengths] = new ort.Tensor("int64", length, [1]);
    }
    let outputs;
    try {
      outputs = await this.#session.run(feeds);
    } catch (error) {
      throw new Error(`model: cannot be run (${oneLine(error)})`);
    }
    const output = outputs[this.#session.outputNames[0]];
    const embedding = Float32Array.from(
      /** @type {Float32Array} */ (output.data),
    );
    output.dispose();
    if (!embedding.every(Number.isFinite)) {
      throw new Error(`model: its embedding is not finite; ${EXPORT_AGAIN}`);
    }
    return embedding;
  }

  /**
   * As the Python package embeds long files: the mean of directions, weighted
   * by samples, with the mean length.
   *
   * @param {Float32Array} waveform
   */
  async #embedLong(waveform) {
    const count = Math.ceil(waveform.length / (LONGEST_PIECE - 1));
    const directions = new Array(this.embeddingSize).fill(0);
    let length = 0;
    let samples = 0;
    for (let piece = 0; piece < count; piece++) {
      const [start, end] = [piece, piece + 1].map((edge) =>
        Math.floor((waveform.length * edge) / count),
      );
      const part = waveform.slice(start, end);
      if (part.every((x) => x === part[0])) continue; // silent
      // A worker of onnxruntime-web takes the part: it has no length then.
      const weight = end - start;
      const embedding = await this.#embedWhole(part);
      const norm = Math.hypot(...embedding);
      embedding.forEach((x, i) => {
        directions[i] += (weight * x) / norm;
      });
      length += weight * norm;
      samples += weight;
    }
    return Float32Array.from(directions, (x) => (x / samples) * (length / samples));
  }

  /**
   * @param {string} name
   * @param {...Audio} audio
   */
  async enrol(name, ...audio) {
    if (typeof name !== "string" || name.trim() === "") {
      throw new Error("name: empty; give the speaker a name");
    }
    if (audio.length === 0) {
      throw new Error(`${name}: no audio; give at least one recording`);
    }
    const embeddings = [];
    for (const each of audio) embeddings.push(await this.embed(each));
    this.#enrolled.set(name, [
      ...(this.#enrolled.get(name) ?? []),
      ...embeddings,
    ]);
  }

  /** @param {string} name */
  remove(name) {
    this.#embeddingsOf(name);
    this.#enrolled.delete(name);
  }

  get names() {
    return [...this.#enrolled.keys()];
  }

  /**
   * @param {string} name
   * @param {Audio} audio
   */
  async verify(name, audio) {
    this.#embeddingsOf(name);
    const embedding = await this.embed(audio);
    const score = this.#score(name, embedding);
    return {
      score,
      ...this.#operatingPoint(),
      sameSpeaker: this.#threshold === null ? null : score > this.#threshold,
    };
  }

  /** @param {Audio} audio */
  async identify(audio) {
    if (this.#enrolled.size === 0) {
      throw new Error("nobody is enrolled; enrol a speaker first");
    }
    const embedding = await this.embed(audio);
    const candidates = this.names
      .map((speaker) => ({ speaker, score: this.#score(speaker, embedding) }))
      .sort((a, b) => b.score - a.score);
    const [{ speaker, score }] = candidates;
    const isKnown = this.#threshold === null || score > this.#threshold;
    return {
      speaker: isKnown ? speaker : null,
      candidates,
      ...this.#operatingPoint(),
    };
  }

  #operatingPoint() {
    return { threshold: this.#threshold, thresholdOrigin: this.#thresholdOrigin };
  }

  /** @param {string} name */
  #embeddingsOf(name) {
    const embeddings = this.#enrolled.get(name);
    if (embeddings === undefined) {
      throw new Error(`${name}: not enrolled; enrol that speaker first`);
    }
    return embeddings;
  }

  /**
   * The cosine of an embedding to the mean of a speaker's.
   *
   * @param {string} name
   * @param {Float32Array} embedding
   */
  #score(name, embedding) {
    const embeddings = this.#embeddingsOf(name);
    const mean = Array.from(
      embedding,
      (_, i) => embeddings.reduce((sum, x) => sum + x[i], 0) / embeddings.length,
    );
    const product = mean.reduce((sum, x, i) => sum + x * embedding[i], 0);
    return product / (Math.hypot(...mean) * Math.hypot(...embedding));
  }

  /** @returns {Enrolments} */
  toJSON() {
    return {
      embeddingSpace: this.embeddingSpace,
      speakers: Array.from(this.#enrolled, ([name, embeddings]) => ({
        name,
        embeddings: embeddings.map((embedding) => Array.from(embedding)),
      })),
    };
  }

  /** @param {Enrolments} saved */
  restore(saved) {
    if (saved?.embeddingSpace !== this.embeddingSpace) {
      throw new Error(
        `enrolments: of the embedding space ${saved?.embeddingSpace}, but the ` +
          `model gives embeddings of ${this.embeddingSpace}; enrol the speakers ` +
          "again",
      );
    }
    const isEmbedding = (/** @type {unknown} */ x) =>
      Array.isArray(x) &&
      x.length === this.embeddingSize &&
      x.every(Number.isFinite);
    const isSpeaker = (/** @type {any} */ x) =>
      typeof x?.name === "string" &&
      x.embeddings?.length > 0 &&
      x.embeddings.every(isEmbedding);
    if (!Array.isArray(saved.speakers) || !saved.speakers.every(isSpeaker)) {
      throw new Error("enrolments: damaged; enrol the speakers again");
    }
    this.#enrolled = new Map(
      saved.speakers.map(({ name, embeddings }) => [
        name,
        embeddings.map((embedding) => Float32Array.from(embedding)),
      ]),
    );
  }

  async check() {
    const { test_input, test_shape, test_embedding } = this.metadata;
    if (test_input !== FORMULA) {
      throw new Error(
        `model: has no test input, or one of another version; ${EXPORT_AGAIN}`,
      );
    }
    const expected = /** @type {number[]} */ (JSON.parse(test_embedding));
    const waveform = new Float32Array(JSON.parse(test_shape)[1]);
    for (let n = 0, s = 1; n < waveform.length; n++) {
      s = (16807 * s) % 2147483647;
      waveform[n] = (s / 2147483647 - 0.5) * (((n % 4000) + 1) / 4000);
    }
    const found = await this.#embedWhole(waveform);
    const difference =
      Math.max(...expected.map((x, i) => Math.abs(x - found[i]))) /
      Math.max(...expected.map(Math.abs));
    if (!(difference <= TOLERANCE)) {
      throw new Error(
        "model: its embedding of the test input differs by " +
          `${difference.toExponential(1)} of the largest value from the one ` +
          `that it was exported with; ${EXPORT_AGAIN}`,
      );
    }
    return difference;
  }

  release() {
    return this.#session.release();
  }
}

/** @param {unknown} error */
function oneLine(error) {
  return String(error instanceof Error ? error.message : error)
    .split(/\s+/)
    .join(" ");
}
