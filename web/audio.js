// Audio as the network takes it: mono, 16 kHz. As in the Python package, what
// holds no speech at all is an error, not an embedding.

export const SAMPLE_RATE = 16000;
const LOWEST_RATE = 4000;
const HIGHEST_RATE = 768000;
const LARGEST_SAMPLE = 2 ** 31;
// Of the channels' loudness; two microphones in a room leave half and more.
const LEAST_MIXED = 0.01;

/**
 * Makes a waveform of audio: one channel at 16 kHz.
 *
 * @param {import("./redimnet2.js").Audio} audio
 * @returns {Promise<Float32Array>} A copy.
 */
export async function toWaveform(audio) {
  if (audio instanceof Blob) {
    if (audio.size === 0) throw new Error("audio: empty; record it again");
    return mix(await decode(audio));
  }
  const { samples, sampleRate } =
    audio instanceof Float32Array
      ? { samples: audio, sampleRate: SAMPLE_RATE }
      : (audio ?? {});
  if (!(samples instanceof Float32Array)) {
    throw new Error(
      "audio: neither a Float32Array, nor {samples: Float32Array, sampleRate}, " +
        "nor a Blob",
    );
  }
  if (
    !Number.isInteger(sampleRate) ||
    sampleRate < LOWEST_RATE ||
    sampleRate > HIGHEST_RATE
  ) {
    throw new Error(
      `sampleRate: ${String(sampleRate)} is not a whole number from ` +
        `${LOWEST_RATE} to ${HIGHEST_RATE}`,
    );
  }
  checkSamples(samples);
  if (sampleRate === SAMPLE_RATE) return samples.slice();
  const [waveform] = await decode(wavFile([samples], sampleRate));
  return waveform;
}

/**
 * A WAV file of samples as they are: 32-bit floats, mono.
 *
 * @param {Float32Array[]} chunks Samples, one after the other.
 * @param {number} sampleRate In Hz.
 * @returns {Blob}
 */
export function wavFile(chunks, sampleRate) {
  const bytes = chunks.reduce((sum, chunk) => sum + chunk.byteLength, 0);
  const text = (/** @type {string} */ word) =>
    new DataView(new TextEncoder().encode(word).buffer).getUint32(0, true);
  const header = new Uint32Array([
    ...[text("RIFF"), 36 + bytes, text("WAVE"), text("fmt "), 16],
    ...[(1 << 16) | 3, sampleRate, 4 * sampleRate, (32 << 16) | 4],
    ...[text("data"), bytes],
  ]);
  return new Blob([header, .../** @type {BlobPart[]} */ (chunks)], {
    type: "audio/wav",
  });
}

/**
 * The channels of a file at 16 kHz. Whoever decodes in a context of a rate gets
 * that rate; a source node of another one would be resampled less well.
 *
 * @param {Blob} file
 * @returns {Promise<Float32Array[]>}
 */
async function decode(file) {
  if (typeof OfflineAudioContext === "undefined") {
    throw new Error(
      "audio: there is no Web Audio here to decode or resample it; give a " +
        `Float32Array at ${SAMPLE_RATE} Hz`,
    );
  }
  const context = new OfflineAudioContext(1, 1, SAMPLE_RATE);
  let buffer;
  try {
    buffer = await context.decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(
      "audio: cannot be decoded by this browser; convert it to WAV or MP3",
    );
  }
  return Array.from({ length: buffer.numberOfChannels }, (_, channel) =>
    buffer.getChannelData(channel),
  );
}

/**
 * The mean of channels.
 *
 * @param {Float32Array[]} channels
 * @returns {Float32Array}
 */
function mix(channels) {
  const count = channels.length;
  const mixed = new Float32Array(channels[0].length).map(
    (_, n) => channels.reduce((sum, channel) => sum + channel[n], 0) / count,
  );
  const loudness = channels.reduce((sum, x) => sum + variance(x), 0) / count;
  if (variance(mixed) < LEAST_MIXED ** 2 * loudness) {
    throw new Error(
      "audio: channels cancel each other; one is the other upside down, so " +
        "export one of them alone",
    );
  }
  checkSamples(mixed);
  return mixed;
}

/** @param {Float32Array} samples */
function variance(samples) {
  const mean = samples.reduce((sum, x) => sum + x, 0) / samples.length;
  const squares = samples.reduce((sum, x) => sum + (x - mean) ** 2, 0);
  return squares / samples.length;
}

/** @param {Float32Array} samples */
function checkSamples(samples) {
  if (samples.length === 0) throw new Error("audio: empty; record it again");
  if (!samples.every((x) => Math.abs(x) <= LARGEST_SAMPLE)) {
    throw new Error(
      "audio: not finite; it holds NaN, infinite or absurdly large samples, " +
        "so export or record it again",
    );
  }
  if (samples.every((x) => x === samples[0])) {
    throw new Error(
      "audio: silent; all samples are equal, so record it again or leave it out",
    );
  }
}
