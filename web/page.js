import { SAMPLE_RATE, toWaveform } from "./audio.js";
import { record } from "./recorder.js";
import { env, load } from "./redimnet2.js";

const MODEL = "model.onnx"; // beside the page
const KEPT = "redimnet2"; // in the browser's storage

/** @type {import("./redimnet2.js").SpeakerRecognition | undefined} */
let recognition;
/** @type {Float32Array | undefined} */
let waveform;
/** @type {(() => Promise<Blob>) | undefined} */
let stopRecording;
let busy = false;

// A worker computes, so that the page goes on answering.
env.wasm.proxy = true;

/**
 * @param {string} id
 * @returns {any} Of the kind that index.html says.
 */
const element = (id) => document.getElementById(id);

/** @param {string} text */
function say(text) {
  element("status").textContent = text;
}

/**
 * Does one thing at a time, and shows what went wrong.
 *
 * @param {() => unknown} work
 */
async function act(work) {
  if (busy) return;
  busy = true;
  element("error").textContent = "";
  document.querySelector("main")?.setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (error) {
    say("");
    element("error").textContent =
      error instanceof Error ? error.message : String(error);
  } finally {
    document.querySelector("main")?.setAttribute("aria-busy", "false");
    busy = false;
  }
}

function theModel() {
  if (!recognition) {
    throw new Error("no model; choose a file of redimnet2 export below");
  }
  return recognition;
}

function theRecording() {
  if (!waveform) throw new Error("no recording; record one or choose a file");
  return waveform;
}

/** @param {string | Uint8Array} source */
async function useModel(source) {
  say("Loading the model…");
  const next = await load(source);
  await recognition?.release();
  recognition = next;
  showModel();
  try {
    const kept = localStorage.getItem(KEPT);
    if (kept !== null) recognition.restore(JSON.parse(kept));
    element("keep").checked = kept !== null;
    say("Ready.");
  } catch {
    element("keep").checked = false;
    say("Ready. The voices kept in this browser cannot be used by this model; Keep replaces them.");
  }
  showNames();
}

function showModel() {
  const { metadata, embeddingSize, fixedSamples, threshold, thresholdOrigin } =
    theModel();
  show(element("model"), {
    Variant: metadata.variant,
    Embedding: `${embeddingSize} numbers`,
    ...(fixedSamples && { Takes: `${fixedSamples / SAMPLE_RATE} s only` }),
    Threshold: thresholdText(threshold, thresholdOrigin),
  });
  element("threshold").value = threshold ?? "";
}

/**
 * @param {number | null} threshold
 * @param {string | null} origin
 */
function thresholdText(threshold, origin) {
  if (threshold === null) return "none known; set one below";
  return `${threshold.toFixed(4)} (${origin})`;
}

/**
 * Fills a list of descriptions.
 *
 * @param {HTMLElement} list
 * @param {Record<string, string>} rows
 */
function show(list, rows) {
  list.replaceChildren(
    ...Object.entries(rows).flatMap(([term, description]) => [
      make("dt", term),
      make("dd", description),
    ]),
  );
}

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {string} text
 */
function make(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function showNames() {
  const { speakers } = theModel().toJSON();
  element("nobody").hidden = speakers.length > 0;
  element("names").replaceChildren(
    ...speakers.map(({ name, embeddings }) => {
      const count = embeddings.length;
      const item = document.createElement("li");
      item.append(
        make("span", `${name}, ${count} recording${count > 1 ? "s" : ""}`),
        button("Verify", name, () => verify(name)),
        button("Remove", name, () => {
          theModel().remove(name);
          namesChanged();
          say(`${name} is removed.`);
          element("voices_title").focus(); // the button is gone
        }),
      );
      return item;
    }),
  );
}

/**
 * @param {string} text
 * @param {string} name
 * @param {() => unknown} work
 */
function button(text, name, work) {
  const made = make("button", text);
  made.type = "button";
  made.setAttribute("aria-label", `${text} ${name}`);
  made.addEventListener("click", () => act(work));
  return made;
}

function namesChanged() {
  showNames();
  if (element("keep").checked) {
    localStorage.setItem(KEPT, JSON.stringify(recognition));
  }
}

/**
 * @param {Blob} blob
 * @param {string} origin
 */
async function takeRecording(blob, origin) {
  waveform = undefined;
  const playback = element("playback");
  playback.hidden = true;
  element("recording").textContent = "None.";
  waveform = await toWaveform(blob);
  const seconds = (waveform.length / SAMPLE_RATE).toFixed(1);
  element("recording").textContent = `${origin}, ${seconds} s.`;
  URL.revokeObjectURL(playback.src);
  playback.src = URL.createObjectURL(blob);
  playback.hidden = false;
  say(`There is a recording of ${seconds} s.`);
}

/**
 * Works on the recording, and says how long that took.
 *
 * @template T
 * @param {(audio: Float32Array) => Promise<T>} work
 * @returns {Promise<[T, Record<string, string>]>}
 */
async function timed(work) {
  theModel();
  const audio = theRecording();
  say("Computing…");
  const start = performance.now();
  const result = await work(audio);
  const time = `${Math.round(performance.now() - start)} ms`;
  say("Ready.");
  const seconds = `${(audio.length / SAMPLE_RATE).toFixed(1)} s`;
  return [result, { Audio: seconds, Time: time }];
}

/**
 * @param {string} decision
 * @param {Record<string, string>} rows
 */
function showResult(decision, rows) {
  const heading = make("p", decision);
  heading.className = "decision";
  const list = document.createElement("dl");
  show(list, rows);
  element("result").replaceChildren(heading, list);
}

/** @param {string} name */
async function verify(name) {
  const [{ score, threshold, thresholdOrigin, sameSpeaker }, costs] =
    await timed((audio) => theModel().verify(name, audio));
  const same = sameSpeaker ? `This is ${name}` : `This is not ${name}`;
  showResult(sameSpeaker === null ? "No decision without a threshold" : same, {
    Score: `${score.toFixed(4)} (cosine to ${name})`,
    Threshold: thresholdText(threshold, thresholdOrigin),
    ...costs,
  });
}

async function identify() {
  const [{ speaker, candidates, threshold, thresholdOrigin }, costs] =
    await timed((audio) => theModel().identify(audio));
  const closest = candidates
    .slice(0, 3)
    .map((each) => `${each.speaker} ${each.score.toFixed(4)}`);
  const decided = threshold === null ? "Closest to" : "This is";
  showResult(speaker === null ? "Nobody enrolled" : `${decided} ${speaker}`, {
    Scores: `${closest.join(", ")} (cosines)`,
    Threshold: thresholdText(threshold, thresholdOrigin),
    ...costs,
  });
}

async function enrol() {
  const name = element("name").value.trim();
  await timed((audio) => theModel().enrol(name, audio));
  namesChanged();
  element("name").value = "";
  say(`${name} is enrolled.`);
}

async function toggleRecording() {
  if (!stopRecording) {
    stopRecording = await record((seconds) => {
      element("recording").textContent = `Recording, ${seconds.toFixed(1)} s`;
    });
    element("record").textContent = "Stop recording";
    say("Recording: speak now.");
    return;
  }
  const stop = stopRecording;
  stopRecording = undefined;
  element("record").textContent = "Record";
  await takeRecording(await stop(), "From the microphone");
}

/**
 * @param {string} id
 * @param {string} event
 * @param {(target: any) => unknown} work
 */
function on(id, event, work) {
  element(id).addEventListener(event, (/** @type {Event} */ happened) => {
    if (event === "submit") happened.preventDefault();
    act(() => work(element(id)));
  });
}

on("record", "click", toggleRecording);
on("audio_file", "change", ({ files: [file] }) =>
  file ? takeRecording(file, file.name) : undefined,
);
on("enrolment", "submit", enrol);
on("identify", "click", identify);
on("keep", "change", ({ checked }) => {
  if (checked) localStorage.setItem(KEPT, JSON.stringify(theModel()));
  else localStorage.removeItem(KEPT);
});
on("threshold_form", "submit", () => {
  theModel().threshold = element("threshold").valueAsNumber;
  showModel();
  say("The threshold is set.");
});
on("model_file", "change", async ({ files: [file] }) =>
  file ? useModel(new Uint8Array(await file.arrayBuffer())) : undefined,
);
on("check", "click", async () => {
  say("Computing…");
  const difference = (await theModel().check()).toExponential(1);
  say(`The model computes here what it should, within ${difference}.`);
});

await act(() => useModel(MODEL));
// After the model, which then comes from the browser's cache.
try {
  await navigator.serviceWorker.register("service_worker.js");
  await navigator.serviceWorker.ready;
  element("offline").textContent = "It works without a network from now on.";
} catch (error) {
  element("offline").textContent =
    `It needs a network: this browser keeps no pages (${error}).`;
}
