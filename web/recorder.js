// Records the microphone, sample by sample: no codec comes between.

import { wavFile } from "./audio.js";

/**
 * Begins to record.
 *
 * @param {(seconds: number) => void} onSeconds Is told how many there are.
 * @returns {Promise<() => Promise<Blob>>} Ends it and gives a WAV file.
 */
export async function record(onSeconds) {
  const stream = await openMicrophone();
  const context = new AudioContext();
  const close = async () => {
    for (const track of stream.getTracks()) track.stop();
    await context.close();
  };
  let recorder;
  try {
    await context.resume();
    await context.audioWorklet.addModule("recorder_worklet.js");
    recorder = new AudioWorkletNode(context, "recorder", {
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
    });
  } catch (error) {
    await close();
    const { message } = /** @type {Error} */ (error);
    throw new Error(`microphone: cannot be used (${message}); take a file`);
  }
  /** @type {Float32Array[]} */
  const chunks = [];
  let samples = 0;
  recorder.port.onmessage = ({ data }) => {
    chunks.push(data);
    samples += data.length;
    onSeconds(samples / context.sampleRate);
  };
  context.createMediaStreamSource(stream).connect(recorder);

  return async () => {
    await close();
    return wavFile(chunks, context.sampleRate);
  };
}

async function openMicrophone() {
  if (!navigator.mediaDevices) {
    throw new Error(
      "microphone: browsers give it to pages of https and of this machine " +
        "only; open this page by https, or take a file",
    );
  }
  try {
    // What a call would want changes voices.
    return await navigator.mediaDevices.getUserMedia({
      audio: {
        echoCancellation: false,
        noiseSuppression: false,
        autoGainControl: false,
      },
    });
  } catch (error) {
    const { name, message } = /** @type {DOMException} */ (error);
    throw new Error(
      name === "NotAllowedError"
        ? "microphone: not allowed; allow it to this page in the browser, or " +
          "take a file"
        : `microphone: cannot be used (${message}); look whether there is one, ` +
          "or take a file",
    );
  }
}
