// Scores words of one's own: the same numbers as WordMaps and WordTracker in distilled_student/onnx/words.py.

import { cosine, unitLength } from "./speakers.mjs";

const STEP = 2; // frames between the ends of two windows
const LENGTHS = [0.85, 1.0, 1.18]; // of the windows, times the length of the recordings
const CLOSEST = 10; // other words that a window is compared with
const SAME_WORD = 0.75; // cosine of a template to another word of the maps that is taken for the same word

/** The maps of a model. description: `words` in model.json; numbers: the Float32Array of its file. */
export class WordMaps {
  constructor(description, numbers) {
    Object.assign(this, description);
    let begin = 0;
    for (const { name, shape } of description.arrays) {
      const size = shape.reduce((product, length) => product * length, 1);
      this[name] = numbers.subarray(begin, (begin += size));
    }
    [this.width, this.size] = [this.front_bias.length, this.mapping_bias.length]; // of a row; of a vector
    this.blocks = this.depth_bias.length / this.width;
    this.taps = this.depth.length / this.depth_bias.length;
  }

  /** What `encode` has before the first frame: rows of zeros. */
  start() {
    return Array.from({ length: this.blocks * (this.taps - 1) }, () => new Float64Array(this.width));
  }

  /** The network on hidden states (frames * features), after `past` rows: {rows, past}, a row for each frame. */
  encode(hidden, past) {
    const features = this.front.length / this.width;
    const rows = [...past];
    for (let begin = 0; begin < hidden.length; begin += features) {
      rows.push(product(hidden.subarray(begin, begin + features), this.front, this.front_bias));
    }
    let x = rows;
    for (let block = 0; block < this.blocks; block++) x = this.block(block, x);
    return { rows: x, past: rows.slice(rows.length - past.length) };
  }

  /** Adds to each row from the one numbered `taps - 1` on what a block makes of it and the rows before it. */
  block(block, rows) {
    const { width, taps } = this;
    const part = (array, size) => array.subarray(block * size, (block + 1) * size);
    const [depth, depthBias] = [part(this.depth, taps * width), part(this.depth_bias, width)];
    const [mix, mixBias] = [part(this.mix, width * width), part(this.mix_bias, width)];
    return rows.slice(taps - 1).map((row, frame) => {
      const filtered = Float64Array.from(depthBias);
      for (let tap = 0; tap < taps; tap++) {
        for (let i = 0; i < width; i++) filtered[i] += rows[frame + tap][i] * depth[tap * width + i];
      }
      const mixed = product(filtered.map((value) => Math.max(value, 0)), mix, mixBias);
      return row.map((value, i) => value + mixed[i]);
    });
  }

  /**
   * What a row adds to the vector of a window in whose first, second, ... segment it is, joined. The map is linear: so it is
   * applied once to each row, and not to each window.
   */
  parts(row) {
    const part = this.width * this.size;
    const zeros = new Float64Array(this.size);
    const found = new Float64Array(this.segments * this.size);
    for (let segment = 0; segment < this.segments; segment++) {
      found.set(product(row, this.mapping.subarray(segment * part, (segment + 1) * part), zeros), segment * this.size);
    }
    return found;
  }

  /** The vector, of length 1, of the window between two times in frames; sums: of the parts before each frame. */
  vector(parts, sums, start, end) {
    const { segments, size } = this;
    const length = (end - start) / segments;
    const found = Float64Array.from(this.mapping_bias);
    for (let segment = 0; segment < segments; segment++) {
      for (const [bound, weight] of [[segment + 1, 1 / length], [segment, -1 / length]]) {
        const time = start + length * bound;
        const before = Math.min(Math.floor(time), parts.length - 1);
        const [sum, next, share] = [sums[before], parts[before], time - before];
        for (let i = 0, at = segment * size; i < size; i++, at++) found[i] += weight * (sum[at] + share * next[at]);
      }
    }
    return unitLength(found);
  }

  /** The cosine of a vector to the template, minus the mean one to its closest `others`. */
  difference(vector, word, others) {
    const closest = new Float64Array(CLOSEST).fill(-Infinity); // ascending
    for (let begin = 0; begin < others.length; begin += this.size) {
      let value = 0;
      for (let i = 0; i < this.size; i++) value += vector[i] * others[begin + i];
      let at = -1;
      while (at + 1 < CLOSEST && closest[at + 1] < value) at++;
      if (at < 0) continue;
      closest.copyWithin(0, 1, at + 1);
      closest[at] = value;
    }
    return cosine(vector, word.vector) - closest.reduce((sum, value) => sum + value, 0) / CLOSEST;
  }

  /** The vectors of the other words that a word is compared with, joined: without those that are the same word. */
  othersOf(word) {
    const all = Array.from({ length: this.others.length / this.size }, (_, i) =>
      this.others.subarray(i * this.size, (i + 1) * this.size),
    );
    const others = all.filter((other) => cosine(other, word.vector) < SAME_WORD);
    return others.length < CLOSEST ? this.others : Float32Array.from(others.flatMap((other) => [...other]));
  }

  /** The difference of cosines that an hour of running speech reaches as often as false alarms are allowed. */
  threshold(word) {
    return word.level + interpolated(Math.log(this.false_alarms), this.alarms.map(Math.log), this.margins);
  }
}

/** The scores of words in a stream, after each hop. */
export class WordTracker {
  constructor(maps) {
    this.maps = maps;
    this.watch([]);
    this.reset();
  }

  reset() {
    this.recent = [];
    this.past = this.maps.start();
  }

  /** words: {name, vector, clips, frames, level} of each. */
  watch(words) {
    this.words = words.map((word) => ({ ...word, others: this.maps.othersOf(word), threshold: this.maps.threshold(word) }));
    this.longest = Math.ceil(Math.max(0, ...words.map(({ frames }) => frames)) * LENGTHS.at(-1)) + 1;
  }

  /** The score of each word, by name, in the windows that end with the new frames; 0.5 or more is above the threshold. */
  step(hidden) {
    if (!this.words.length) return {};
    const { rows, past } = this.maps.encode(hidden, this.past);
    const recent = [...this.recent, ...rows.map((row) => this.maps.parts(row))];
    this.past = past;
    this.recent = recent.slice(-this.longest);
    const sums = [new Float64Array(recent[0].length)];
    for (const row of recent) sums.push(sums.at(-1).map((sum, i) => sum + row[i]));
    const ends = [];
    for (let end = recent.length; end > recent.length - rows.length; end -= STEP) ends.push(end);
    const scores = this.words.map((word) => {
      const logOdds = this.maps.slope * (this.best(word, recent, sums, ends) - word.threshold);
      return [word.name, 1 / (1 + Math.exp(-Math.min(Math.max(logOdds, -500), 500)))];
    });
    return Object.fromEntries(scores);
  }

  /** The largest difference of cosines of all windows that end at one of `ends`. */
  best(word, recent, sums, ends) {
    let best = -Infinity;
    for (const end of ends) {
      for (const length of LENGTHS) {
        const start = end - word.frames * length;
        if (start < 0) continue;
        const vector = this.maps.vector(recent, sums, start, end);
        best = Math.max(best, this.maps.difference(vector, word, word.others));
      }
    }
    return best;
  }
}

/** A vector times a matrix (rows, columns) that is stored row by row, plus a bias (columns). */
function product(vector, matrix, bias) {
  const columns = bias.length;
  const found = Float64Array.from(bias);
  for (let row = 0; row < vector.length; row++) {
    for (let column = 0; column < columns; column++) found[column] += vector[row] * matrix[row * columns + column];
  }
  return found;
}

/** The value at x of the line through ascending points; outside of them, that of the nearest. */
function interpolated(x, points, values) {
  const next = points.findIndex((point) => point >= x);
  if (next < 0) return values.at(-1);
  if (next === 0) return values[0];
  const share = (x - points[next - 1]) / (points[next] - points[next - 1]);
  return values[next - 1] + share * (values[next] - values[next - 1]);
}
