// Changes the sample rate of a stream of samples, by a windowed sinc.

const ZEROS = 24; // zeros of the sinc on each side
const PASSBAND = 0.95; // half of the amplitude is left at this part of the smaller of the two Nyquist frequencies

export class Resampler {
  /** from, to: sample rates in Hz. */
  constructor(from, to) {
    const divisor = greatestDivisor(from, to);
    this.up = to / divisor; // an output sample is at a multiple of down / up input samples
    this.down = from / divisor;
    this.isCopy = from === to;
    const cutoff = PASSBAND * Math.min(1, to / from);
    this.half = Math.ceil(ZEROS / cutoff);
    this.phases = this.isCopy ? [] : Array.from({ length: this.up }, (_, phase) => kernel(phase / this.up, this.half, cutoff));
    this.waiting = new Float32Array(this.half - 1); // silence before the first sample
    this.offset = this.half - 1; // of the next output's input sample in waiting
    this.phase = 0;
  }

  /** The output samples that these input samples complete; the last ones wait for half a kernel of input. */
  process(samples) {
    if (this.isCopy) return samples.slice();
    const input = new Float32Array(this.waiting.length + samples.length);
    input.set(this.waiting);
    input.set(samples, this.waiting.length);
    const output = [];
    while (this.offset + this.half < input.length) {
      const weights = this.phases[this.phase];
      const begin = this.offset - this.half + 1;
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * input[begin + i];
      output.push(sum);
      this.phase += this.down;
      this.offset += Math.floor(this.phase / this.up);
      this.phase %= this.up;
    }
    const used = Math.min(this.offset - this.half + 1, input.length);
    this.waiting = input.slice(used);
    this.offset -= used;
    return Float32Array.from(output);
  }
}

/** Weights of the input samples from half - 1 before to half after an output sample, which is delay after one of them. */
function kernel(delay, half, cutoff) {
  const weights = Float64Array.from({ length: 2 * half }, (_, i) => {
    const distance = i - half + 1 - delay;
    const x = Math.PI * cutoff * distance;
    const window = Math.cos((Math.PI * distance) / (2 * half)) ** 2; // Hann's
    return cutoff * (Math.abs(x) < 1e-9 ? 1 : Math.sin(x) / x) * window;
  });
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}

function greatestDivisor(a, b) {
  return b ? greatestDivisor(b, a % b) : a;
}
