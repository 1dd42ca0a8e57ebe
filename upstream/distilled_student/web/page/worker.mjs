// The worker: loads the model, and processes samples from the microphone, a file or a clip to enrol.

import { checkClip, loudestPart } from "./clips.mjs";
import { loadRuntime } from "./runtime.mjs";
import { Calibration, shifted, unitLength } from "./speakers.mjs";
import { joined, Listener, Stream } from "./stream.mjs";
import { WordMaps } from "./words.mjs";

let ort, session, model, listener;
let recording = null; // {wanted, samples} while a clip is recorded
let queue = Promise.resolve(); // one message is processed after the other

const handlers = {
  async load({ id, here }) {
    const [runtime, description] = await Promise.all(["runtime.json", "model/model.json"].map((file) => readJson(file, here)));
    model = description;
    ort = await loadRuntime(runtime, here);
    const [graph, numbers] = await Promise.all([model.file, model.words?.file].map((file) => file && readBytes(`model/${file}`, here)));
    const begin = performance.now();
    session = await createSession(new Uint8Array(graph));
    listener = new Listener(ort, session, model, numbers ? new WordMaps(model.words, new Float32Array(numbers)) : null);
    await listener.step(new Float32Array(model.hop)); // the first run is slow
    listener.reset();
    postMessage({ type: "ready", id, model, runtime, milliseconds: performance.now() - begin });
  },

  /** sent: the milliseconds of the clock at which the microphone gave the samples. */
  async samples({ samples, sent }) {
    await listener.listen(samples, (hop) => reportHop(hop, sent));
  },

  /** offset: of the thresholds of speakers, in a household; words: words of one's own. */
  settings({ settings }) {
    const { threshold, level, offset = 0, words = [], ...others } = settings;
    Object.assign(listener.detector.settings, { threshold, level });
    listener.calibration = model.calibration && new Calibration(shifted(model.calibration, offset));
    listener.ownWords?.watch(words);
    Object.assign(listener, others); // people, owner, falseAccepts
  },

  reset() {
    listener.reset();
    postMessage({ type: "reset" });
  },

  /** The embedding of a clip and what is wrong with it. */
  async clip({ id, samples }) {
    const part = loudestPart(samples, Math.floor((model.window * model.rate) / model.chunk) * model.chunk);
    const stream = new Stream(ort, session, model);
    const whole = part.slice(0, Math.floor(part.length / model.chunk) * model.chunk);
    const { speaker_embedding: embedding } = whole.length ? await stream.feed(whole) : {};
    postMessage({
      type: "clip",
      id,
      vector: embedding ? unitLength(embedding) : null,
      ...checkClip(samples, model.rate),
      seconds: whole.length / model.rate,
    });
  },

  record({ seconds }) {
    recording = { wanted: Math.round(seconds * model.rate), samples: new Float32Array(0) };
  },

  cancel() {
    recording = null;
  },

  /** No samples follow: processes a tail of silence, and answers with the hits that still wait for the decision who said them. */
  async finish({ id }) {
    postMessage({ type: "finished", id, hits: await listener.finish(reportHop) });
  },

  /** Answers when everything before it is processed. */
  flush({ id }) {
    postMessage({ type: "flushed", id });
  },
};

function reportHop(hop, sent = Date.now()) {
  postMessage({ type: "hop", ...hop, behind: (Date.now() - sent) / 1000 });
}

async function createSession(graph) {
  try {
    return await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  } catch (error) {
    throw new Error(`The model cannot be started in this browser (${error.message}). Try a newer one.`);
  }
}

async function readFile(file, here) {
  const response = await fetch(new URL(file, here)).catch(() => ({ ok: false, status: "nothing" }));
  if (!response.ok) throw new Error(`${file} cannot be loaded: the server answered ${response.status}. Is the site complete?`);
  return response;
}

async function readJson(file, here) {
  return (await readFile(file, here)).json();
}

async function readBytes(file, here) {
  return (await readFile(file, here)).arrayBuffer();
}

function receive(message) {
  if (message.type === "samples") record(message.samples);
  queue = queue
    .then(() => handlers[message.type](message))
    .catch((error) => postMessage({ type: "error", of: message.type, id: message.id, message: error.message }));
}

/** Collect samples for a clip; it is sent to the page, which returns it to be enrolled. */
function record(samples) {
  if (recording === null) return;
  recording.samples = joined(recording.samples, samples);
  if (recording.samples.length < recording.wanted) return;
  postMessage({ type: "recorded", samples: recording.samples.slice(0, recording.wanted) });
  recording = null;
}

onmessage = ({ data }) => {
  if (data.type === "port") data.port.onmessage = ({ data: packet }) => receive({ type: "samples", ...packet });
  else receive(data);
};
