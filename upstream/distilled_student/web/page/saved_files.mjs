// Reads the JSON files in the command line's folder of profiles: people, words of one's own, the calibration of a household.

import { checkedName, parseProfile } from "./profiles.mjs";
import { unitLength } from "./speakers.mjs";

const FORMAT = 1;
const MAX_OFFSET = 2;
const MAX_FRAMES = 100_000; // of a recording of a word

/** What a file holds: {person}, {word} or {household}. Throws an Error in words if it is damaged, or of another model. */
export function parseSaved(text, model) {
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    content = null;
  }
  if (content === null || typeof content !== "object" || Array.isArray(content)) {
    throw new Error("This file is not a saved person, word or calibration of a household.");
  }
  if (content.format !== FORMAT) {
    throw new Error("This file is not a saved person, word or calibration of a household, or of a later version.");
  }
  if ("offset" in content) return { household: parseHousehold(content, model) };
  if ("maps" in content) return { word: parseWord(content, model) };
  return { person: parseProfile(content, model) };
}

/** A file of `distilled-student calibrate` (distilled_student/device/household.py): {offset, people, clips}. */
function parseHousehold({ fingerprint, model: name, offset, people, clips }, model) {
  const isWhole =
    typeof fingerprint === "string" && Number.isFinite(offset) && Math.abs(offset) <= MAX_OFFSET &&
    [people, clips].every((number) => Number.isInteger(number) && number > 0);
  if (!isWhole) throw new Error("This calibration is damaged. Calibrate the household again.");
  if (fingerprint !== model.fingerprint) {
    throw new Error(`The household was calibrated with another model, ${name}. Calibrate it again with this one.`);
  }
  if (!model.calibration) throw new Error("This model does not compare people: it has nothing to calibrate.");
  return { offset, people, clips };
}

/** A file of `distilled-student words add` (distilled_student/device/own_words.py): {name, vector, clips, frames, level}. */
function parseWord({ name, fingerprint, maps, frames, vectors, level, model: other }, model) {
  const isVector = (row) => Array.isArray(row) && row.every(Number.isFinite) && Math.abs(Math.hypot(...row) - 1) < 1e-3;
  const isWhole =
    [name, fingerprint, maps].every((text) => typeof text === "string") && Array.isArray(vectors) && vectors.length > 0 &&
    vectors.every((row) => isVector(row) && row.length === vectors[0].length) && Array.isArray(frames) &&
    frames.length === vectors.length && frames.every((length) => Number.isFinite(length) && length > 0 && length < MAX_FRAMES);
  if (!isWhole) throw new Error("This word is damaged. Add the word again.");
  if (fingerprint !== model.fingerprint || (model.words && maps !== model.words.digest)) {
    throw new Error(`${name} was added with another model, ${other}. Add the word again with this one.`);
  }
  if (!model.words) throw new Error("This page was written without the file words.npz of the model, which own words need.");
  if (vectors[0].length !== model.words.size || !Number.isFinite(level)) throw new Error("This word is damaged. Add the word again.");
  if (model.labels.includes(name) || name.startsWith("_")) {
    throw new Error(`${name} is a class of the model. Add the word with another name.`);
  }
  const mean = vectors[0].map((_, i) => vectors.reduce((sum, row) => sum + row[i], 0) / vectors.length);
  return {
    name: checkedName(name),
    vector: unitLength(mean),
    clips: vectors.length,
    frames: frames.reduce((sum, length) => sum + length, 0) / frames.length,
    level,
  };
}
