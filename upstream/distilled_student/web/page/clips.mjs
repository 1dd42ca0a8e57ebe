// Says what is wrong with a clip to enrol: the same limits as distilled_student/device/clip_checks.py.

import { bandLimit } from "./band.mjs";
import { cosine, meanVector } from "./speakers.mjs";

const FRAME_SECONDS = 0.025, HOP_SECONDS = 0.01;
const MIN_SPEECH_SECONDS = 0.15;
const SPEECH_RANGE = 20; // dB below the loudest frames: quieter frames are pauses
const SILENT_LEVEL = -55; // dB of full scale of the loudest frames
const MAX_CLIPPED = 0.02;
const MIN_SNR = 6; // dB
const UNLIKE_RATIO = -1.5; // smallest log-likelihood ratio of a clip and the other clips of its person
const COPY_COSINE = 0.999;

/** What is wrong with samples, in words: {problems}; empty for a good clip. A silent clip has no other fault. */
export function checkClip(samples, rate) {
  const sound = measureSound(samples, rate);
  if (sound.level < SILENT_LEVEL) return { sound, problems: ["Nothing was said, or the microphone is muted."] };
  const problems = [];
  if (sound.speechSeconds < MIN_SPEECH_SECONDS) problems.push("Too short: say the whole word.");
  if (sound.clipped > MAX_CLIPPED) problems.push("Too loud: the recording is cut off. Move away a little.");
  if (sound.snr < MIN_SNR) problems.push("Too noisy: find a quieter place, or move closer.");
  if (sound.bandLimit !== null) {
    const limit = (sound.bandLimit / 1000).toFixed(1);
    problems.push(`Nothing above ${limit} kHz, as through some headsets, or too quiet: move closer, or use another microphone.`);
  }
  return { sound, problems };
}

export function measureSound(samples, rate) {
  const hop = Math.round(HOP_SECONDS * rate);
  const levels = frameLevels(samples, Math.round(FRAME_SECONDS * rate), hop);
  const loudest = quantileOf(levels, 0.95);
  const speech = levels.filter((level) => level > loudest - SPEECH_RANGE && level > SILENT_LEVEL).length;
  return { level: loudest, speechSeconds: (speech * hop) / rate, snr: signalToNoise(levels), clipped: clippedShare(samples), bandLimit: bandLimit(samples) };
}

function frameLevels(samples, frame, hop) {
  const levels = [];
  for (let begin = 0; begin === 0 || begin + frame <= samples.length; begin += hop) {
    let sum = 0;
    for (let i = begin; i < Math.min(begin + frame, samples.length); i++) sum += samples[i] ** 2;
    levels.push(10 * Math.log10(sum / frame + 1e-12));
  }
  return levels;
}

/** The noise is the level that a tenth of the frames stay below; frames of digital silence are left out. */
function signalToNoise(levels) {
  const sounding = levels.filter((level) => level > -90);
  if (!sounding.length) return 0;
  const difference = quantileOf(sounding, 0.95) - quantileOf(sounding, 0.1);
  return 10 * Math.log10(Math.max(10 ** (difference / 10) - 1, 1e-3)) - 3;
}

/** The share of loud samples in flat tops: three neighbours or more within 1 % of the largest value. */
function clippedShare(samples) {
  const largest = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
  if (largest === 0) return 0;
  let inTops = 0, loud = 0, run = 0;
  for (let i = 0; i <= samples.length; i++) {
    const value = i < samples.length ? Math.abs(samples[i]) : 0;
    if (value > 0.1 * largest) loud += 1;
    if (value >= 0.99 * largest) run += 1;
    else {
      if (run >= 3) inTops += run;
      run = 0;
    }
  }
  return inTops / loud;
}

function quantileOf(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  const place = (sorted.length - 1) * share;
  const low = Math.floor(place);
  return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

/** The part of samples, of a length, that has the most energy. */
export function loudestPart(samples, length) {
  if (samples.length <= length) return samples;
  let energy = 0;
  for (let i = 0; i < length; i++) energy += samples[i] ** 2;
  let most = energy, begin = 0;
  for (let i = length; i < samples.length; i++) {
    energy += samples[i] ** 2 - samples[i - length] ** 2;
    if (energy > most) [most, begin] = [energy, i - length + 1];
  }
  return samples.slice(begin, begin + length);
}

/** What is wrong with a clip {vector, seconds} compared with the clips that were accepted before, in words, or null. */
export function compareClip(clip, before, calibration) {
  if (!before.length) return null;
  if (before.some((other) => cosine(other.vector, clip.vector) > COPY_COSINE)) return "This is a copy of an earlier clip.";
  if (!calibration) return null;
  const mean = meanVector(before.map(({ vector }) => vector));
  const similarity = cosine(clip.vector, mean);
  const condition = calibration.condition(clip.vector, mean, before.length, before.length * clip.seconds, clip.seconds);
  const isUnlike = calibration.ratio(similarity, condition) < UNLIKE_RATIO;
  return isUnlike ? "Unlike the clips before: was it somebody else, or another microphone?" : null;
}
