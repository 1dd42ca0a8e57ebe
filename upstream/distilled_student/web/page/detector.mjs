// Decides from the scores of a stream which keyword was said, and when: the same rules as distilled_student/onnx/detector.py.

export const HOP_SECONDS = 0.08;
export const TAIL_SECONDS = 0.5; // of silence behind the end of a recording: smoothing delays a keyword by about this time
const ACCEPTED = 0.5; // the score from which on a word of one's own counts as said
const SPEAKER_SECONDS = 0.24; // after a hit, in which a window that accepts a speaker decides who said it
const GATE_SECONDS = 1.0; // the loudest hop of this time counts for the energy gate

/** The keyword {label, score}, whose label is null if none was said. Labels that begin with "_" are not keywords. */
export function decide(labels, scores, threshold) {
  let best = -1;
  labels.forEach((label, i) => {
    if (!label.startsWith("_") && (best < 0 || scores[i] > scores[best])) best = i;
  });
  const needed = threshold === null ? Math.max(...scores) : threshold;
  return { label: scores[best] >= needed ? labels[best] : null, score: scores[best] };
}

/** The word of one's own {name: score} with the largest score if it counts as said, else the keyword. */
export function decideWords(keyword, ownWords, threshold) {
  const [first, ...others] = Object.entries(ownWords);
  if (!first) return keyword;
  const [label, score] = others.reduce((a, b) => (b[1] > a[1] ? b : a), first);
  return score < threshold ? keyword : { label, score };
}

/** The root mean square of samples in dB relative to a full scale of 1; -120 dB at least. */
export function level(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  return 10 * Math.log10(sum / samples.length + 1e-12);
}

/** Reports a keyword once, however many hops it lasts. */
export class HoldOff {
  constructor(hops) {
    this.hops = hops;
    this.label = "";
    this.ofHit = this.latest = -Infinity; // numbers of hops
  }

  /** Whether a keyword that reaches the threshold at this hop is to be reported. */
  isHit(hop, label) {
    const isHeld = hop - this.ofHit < this.hops;
    if (label === this.label && (isHeld || hop === this.latest + 1)) {
      this.latest = hop;
      return false;
    }
    if (isHeld) return false;
    this.label = label;
    this.ofHit = this.latest = hop;
    return true;
  }
}

/** Keeps hits until their speaker is decided: at the hop of a hit the window may hold only a part of the word. */
export class UndecidedHits {
  constructor() {
    this.hop = 0; // the number of the latest one
    this.hits = []; // {ofHop, hit}
  }

  /** Add the hit of the next hop, or null. */
  step(hit) {
    this.hop += 1;
    if (hit !== null) this.hits.push({ ofHop: this.hop, hit });
  }

  /** Remove and return the hits that are so many hops old or older. */
  due(hops) {
    const due = this.hits.filter(({ ofHop }) => this.hop - ofHop >= hops);
    this.hits = this.hits.slice(due.length);
    return due.map(({ hit }) => hit);
  }
}

/**
 * Smoothing, threshold, energy gate and hold-off.
 *
 * settings: {threshold, smoothing, hold_off, level, word_threshold}; threshold and level may change while a stream is processed.
 */
export class Detector {
  constructor(labels, settings, hop = HOP_SECONDS) {
    Object.assign(this, { labels, settings: { ...settings }, hop });
    this.reset();
  }

  reset() {
    this.recent = [];
    this.levels = [];
    this.holdOff = new HoldOff(Math.ceil(this.settings.hold_off / this.hop - 1e-9));
    this.hops = 0;
  }

  /** The whole hops in SPEAKER_SECONDS. */
  get speakerHops() {
    return Math.floor(SPEAKER_SECONDS / this.hop + 1e-9);
  }

  /** The mean of these scores and those of the last hops. */
  smooth(scores) {
    keepLast(this.recent, Array.from(scores), hopsOf(this.settings.smoothing, this.hop));
    return this.labels.map((_, i) => this.recent.reduce((sum, row) => sum + row[i], 0) / this.recent.length);
  }

  /**
   * What one hop gives: {scores, level, isLoud, hit}; hit is {seconds, label, score} or null.
   *
   * ownWords: the score of each word of one's own by name; these scores are not smoothed.
   */
  step(rawScores, samples, ownWords = {}) {
    const scores = this.smooth(rawScores);
    const now = level(samples);
    keepLast(this.levels, now, hopsOf(GATE_SECONDS, this.hop));
    const isLoud = this.settings.level === null || Math.max(...this.levels) >= this.settings.level;
    const keyword = decide(this.labels, scores, this.settings.threshold);
    const { label, score } = decideWords(keyword, ownWords, this.settings.word_threshold ?? ACCEPTED);
    this.hops += 1;
    const isHit = label !== null && isLoud && this.holdOff.isHit(this.hops, label);
    const seconds = Math.round(this.hops * this.hop * 1e6) / 1e6;
    return { scores, level: now, loudest: Math.max(...this.levels), isLoud, hit: isHit ? { seconds, label, score } : null };
  }
}

/** The number of hops of a time, at least 1; halves are rounded to the even number, as Python does. */
function hopsOf(seconds, hop) {
  const number = seconds / hop;
  const isHalf = number % 1 === 0.5;
  return Math.max(1, isHalf ? 2 * Math.round(number / 2) : Math.round(number));
}

function keepLast(list, item, length) {
  list.push(item);
  if (list.length > length) list.shift();
}
