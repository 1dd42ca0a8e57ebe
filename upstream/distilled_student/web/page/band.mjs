// Whether the spectrum of a recording ends early: the same limits as distilled_student/onnx/band.py.

const FRAME = 400, HOP = 160, SIDE = 20; // samples; a Fourier transform of 400 points is two of 20
const MAX_DROP = 37; // dB
const MAX_DROP_TO_ROUNDING = 12; // where nothing but the rounding errors of 16 bits is left
const BINS = 184; // of 40 Hz, that are compared
const WINDOW = Float64Array.from({ length: FRAME }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / (FRAME - 1)));
const ROUNDING = 10 * Math.log10(WINDOW.reduce((sum, value) => sum + value ** 2, 0) / 12 / 32768 ** 2) + 3;
const COSINES = Float64Array.from({ length: FRAME }, (_, i) => Math.cos((2 * Math.PI * i) / FRAME));
const SINES = Float64Array.from({ length: FRAME }, (_, i) => Math.sin((2 * Math.PI * i) / FRAME));

/** The frequency in Hz where the spectrum of samples at 16 kHz ends as cut off, between 3.2 and 7 kHz, or null. */
export function bandLimit(samples) {
  const power = meanPower(samples);
  const level = power.map((value) => 10 * Math.log10(value));
  let limit = null, steepest = -Infinity;
  for (let place = 80; place < 176; place += 5) {
    const above = 10 * Math.log10(meanOf(power, place + 8, BINS));
    const drop = meanOf(level, place - 15, place - 3) - above;
    const isEnd = drop > (above < ROUNDING ? MAX_DROP_TO_ROUNDING : MAX_DROP);
    if (isEnd && drop > steepest) [limit, steepest] = [40 * place, drop];
  }
  return limit;
}

function meanOf(values, begin, end) {
  let sum = 0;
  for (let i = begin; i < end; i++) sum += values[i];
  return sum / (end - begin);
}

/** The mean power of each bin of 40 Hz; a short clip is padded to one frame. */
function meanPower(samples) {
  const power = new Float64Array(BINS);
  const real = new Float64Array(FRAME), imaginary = new Float64Array(FRAME);
  let frames = 0;
  for (let begin = 0; begin === 0 || begin + FRAME <= samples.length; begin += HOP, frames++) {
    // first over the samples SIDE apart, for each offset; then over the offsets
    for (let offset = 0; offset < SIDE; offset++) {
      for (let k = 0; k < SIDE; k++) {
        let re = 0, im = 0;
        for (let n = 0; n < SIDE; n++) {
          const at = SIDE * n + offset, angle = (SIDE * n * k) % FRAME;
          const sample = (samples[begin + at] ?? 0) * WINDOW[at];
          re += sample * COSINES[angle];
          im -= sample * SINES[angle];
        }
        real[k * SIDE + offset] = re;
        imaginary[k * SIDE + offset] = im;
      }
    }
    for (let bin = 0; bin < BINS; bin++) {
      const row = (bin % SIDE) * SIDE;
      let re = 0, im = 0;
      for (let offset = 0; offset < SIDE; offset++) {
        const angle = (offset * bin) % FRAME;
        re += real[row + offset] * COSINES[angle] + imaginary[row + offset] * SINES[angle];
        im += imaginary[row + offset] * COSINES[angle] - real[row + offset] * SINES[angle];
      }
      power[bin] += re * re + im * im;
    }
  }
  return power.map((sum) => sum / frames + 1e-14);
}
