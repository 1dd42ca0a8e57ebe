// Runs the streaming graph on samples as they arrive: the same steps as ChunkStream in distilled_student/onnx/chunks.py
// and Stream in distilled_student/onnx/model.py.

import { bandLimit } from "./band.mjs";
import { Detector, TAIL_SECONDS, UndecidedHits } from "./detector.mjs";
import { Calibration, identify, ownerSaid, unitLength } from "./speakers.mjs";
import { WordTracker } from "./words.mjs";

const HOPS_OF_LIMIT = 10; // hops between two looks at the band of a stream; a decision looks again
const ARRAYS = { float32: Float32Array, int64: BigInt64Array };

/** The graph with its state. ort: onnxruntime-web; session: the graph; model: the content of model.json. */
export class Stream {
  constructor(ort, session, model) {
    Object.assign(this, { ort, session, model });
    this.reset();
  }

  reset() {
    this.state = {};
    for (const { name, type, shape } of this.model.state) {
      const size = shape.reduce((product, length) => product * length, 1);
      this.state[name] = new this.ort.Tensor(type, new ARRAYS[type](size), shape);
    }
    this.processed = 0; // samples
    this.beginning = new Float32Array(0); // the first samples, as many as are repeated
  }

  /** The outputs for whole chunks of samples, by name. */
  async feed(samples) {
    const [outputs, state] = await this.run(samples);
    this.state = state;
    this.processed += samples.length;
    for (const [name, length] of Object.entries(this.model.padded_to)) {
      if (this.processed < length) outputs[name] = await this.peek(new Float32Array(length - this.processed), name);
    }
    const repeated = Object.entries(this.model.repeated_to);
    if (this.beginning.length < Math.max(0, ...repeated.map(([, length]) => length))) {
      this.beginning = joined(this.beginning, samples);
    }
    for (const [name, length] of repeated) {
      if (this.processed < length) {
        const missing = Float32Array.from({ length: length - this.processed }, (_, i) => this.beginning[i % this.processed]);
        outputs[name] = await this.peek(missing, name);
      }
    }
    return outputs;
  }

  /** An output after further samples that do not become part of the stream. */
  async peek(samples, name) {
    const [outputs] = await this.run(samples);
    return outputs[name];
  }

  async run(samples) {
    const input = new this.ort.Tensor("float32", samples, [1, samples.length]);
    const results = await this.session.run({ samples: input, ...this.state }, this.model.outputs);
    const outputs = {}, state = {};
    for (const [name, tensor] of Object.entries(results)) {
      if (name.startsWith("next_")) state[name.replace("next_", "state_")] = tensor;
      else outputs[name] = tensor.data;
    }
    return [outputs, state];
  }
}

/** A stream with its decisions: keywords, words of one's own, and who said them. maps: WordMaps, or null without own words. */
export class Listener {
  constructor(ort, session, model, maps) {
    this.model = model;
    this.stream = new Stream(ort, session, model);
    this.windowAlone = new Stream(ort, session, model);
    this.ownWords = maps && new WordTracker(maps);
    this.calibration = model.calibration && new Calibration(model.calibration);
    this.detector = new Detector(model.labels, model.detector, model.hop / model.rate);
    this.people = []; // {name, vector, clips, seconds}
    this.owner = null; // the name of the only person whose keywords are reported
    this.falseAccepts = model.false_accepts;
    this.speechLevel = -50; // dB: below it nobody is looked for
    this.reset();
  }

  reset() {
    this.stream.reset();
    this.detector.reset();
    this.ownWords?.reset();
    this.undecided = new UndecidedHits();
    this.window = new Float32Array(0); // the samples of the latest one
    this.waiting = new Float32Array(0);
    [this.hops, this.limit] = [0, null]; // hops so far; bandLimit of a recent window
    this.isFinished = false;
  }

  /**
   * Process any number of samples at the model's rate; calls report once for each hop.
   *
   * If anybody is enrolled, a hit is reported with the first hop whose window accepts one of them, or after SPEAKER_SECONDS.
   * After finish, samples are ignored until reset.
   */
  async listen(samples, report) {
    if (this.isFinished) return;
    this.waiting = joined(this.waiting, samples);
    while (this.waiting.length >= this.model.hop) {
      const hop = this.waiting.slice(0, this.model.hop);
      this.waiting = this.waiting.slice(this.model.hop);
      report(await this.step(hop));
    }
  }

  async step(hop) {
    const begin = performance.now();
    const outputs = await this.stream.feed(hop);
    this.window = joined(this.window, hop).slice(-this.windowSamples);
    if (this.hops++ % HOPS_OF_LIMIT === 0) this.limit = bandLimit(this.window);
    const ownWords = this.ownWords?.step(outputs.concatenated_states) ?? {};
    const { hit, ...found } = this.detector.step(outputs.keyword_scores, hop, ownWords);
    this.undecided.step(hit);
    const decision = await this.decide(this.detector.speakerHops);
    const speaker = decision.speaker ?? (found.loudest >= this.speechLevel ? this.speakerOf(this.stream, outputs, this.limit) : null);
    return { ...found, hits: decision.hits, ownWords, speaker, milliseconds: performance.now() - begin };
  }

  /** No samples follow: report the hops of a tail of silence; the hits that then wait, decided by the latest window. */
  async finish(report) {
    await this.listen(new Float32Array(Math.round(TAIL_SECONDS * this.model.rate)), report);
    this.isFinished = true;
    return (await this.decide(0)).hits;
  }

  /**
   * The hits whose speaker the latest window decides: all if it accepts one, else those that waited so long.
   *
   * It is the embedding of the window alone, as of an utterance: that of the stream depends on what came before, too.
   */
  async decide(hopsToWait) {
    if (!this.undecided.hits.length) return { hits: [], speaker: null };
    let speaker = null;
    if (this.people.length) {
      this.windowAlone.reset();
      speaker = this.speakerOf(this.windowAlone, await this.windowAlone.feed(this.window), bandLimit(this.window));
    }
    const due = this.undecided.due(speaker !== null && speaker.name === null ? hopsToWait : 0);
    return { hits: due.map((hit) => this.withSpeaker(hit, speaker)).filter(Boolean), speaker };
  }

  get windowSamples() {
    return Math.max(1, Math.floor(Math.round(this.model.window * this.model.rate) / this.model.chunk)) * this.model.chunk;
  }

  /** Who speaks in the window that these outputs of a stream are from, and its bandLimit; null if nobody is enrolled. */
  speakerOf(stream, outputs, limit) {
    const candidates = this.people.filter(({ name }) => this.owner === null || name === this.owner);
    if (!candidates.length || !this.calibration || !outputs.speaker_embedding) return null;
    const seconds = Math.min(this.model.window, stream.processed / this.model.rate);
    const embedding = unitLength(outputs.speaker_embedding);
    return identify(this.calibration, embedding, seconds, candidates, this.falseAccepts, limit);
  }

  /** The hit with its speaker; null if only the owner's keywords are reported and it is not one. */
  withSpeaker(hit, speaker) {
    if (this.owner === null) return { ...hit, speaker: speaker?.name ?? null, ratio: speaker?.ratio ?? null };
    if (speaker === null || speaker.name === null) return null;
    return { ...hit, score: ownerSaid(hit.score, speaker.ratio), speaker: speaker.name, ratio: speaker.ratio };
  }
}

export function joined(a, b) {
  const both = new Float32Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}
