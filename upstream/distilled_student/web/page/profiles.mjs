// Enrolled people in the JSON of `distilled-student enrol` (distilled_student/device/profiles.py), to save and load.

import { meanVector } from "./speakers.mjs";

const FORMAT = 1;
const MAX_NAME = 100; // characters

/** A name in Unicode's composed form. Throws an Error in words. */
export function checkedName(text) {
  const name = text.normalize("NFC").trim();
  if (!name) throw new Error("Type a name first.");
  if (/[\p{C}\p{Zl}\p{Zp}]/u.test(name)) throw new Error("This name has characters that cannot be shown. Type another one.");
  if ([...name].length > MAX_NAME) throw new Error(`This name is too long: at most ${MAX_NAME} characters.`);
  return name;
}

/** A profile from clips {vector, seconds}. */
export function makeProfile(name, clips, model) {
  const seconds = clips.reduce((sum, clip) => sum + clip.seconds, 0);
  return {
    name,
    model: model.name,
    fingerprint: model.fingerprint,
    count: clips.length,
    seconds: Math.max(Math.round(seconds * 1000) / 1000, 0.001), // a profile of 0 s is damaged
    vectors: clips.map(({ vector }) => Array.from(vector, (value) => Number(value.toPrecision(9)))),
    format: FORMAT,
  };
}

/** What decisions need of a profile. */
export function toPerson(profile) {
  return { name: profile.name, vector: meanVector(profile.vectors), clips: profile.count, seconds: profile.seconds };
}

/** A profile from the content of its file. Throws an Error in words if it is damaged, or of another model. */
export function parseProfile(profile, model) {
  const { name, fingerprint, count, seconds, vectors } = profile;
  const isVector = (row) => Array.isArray(row) && row.every(Number.isFinite) && Math.abs(Math.hypot(...row) - 1) < 1e-3;
  const isWhole =
    typeof name === "string" && typeof fingerprint === "string" && seconds > 0 && Array.isArray(vectors) &&
    vectors.length > 0 && vectors.length === count && vectors.every(isVector);
  if (!isWhole) throw new Error("This profile is damaged. Enrol the person again.");
  if (fingerprint !== model.fingerprint) {
    throw new Error(`${name} was enrolled with another model, ${profile.model}. Enrol them again with this one.`);
  }
  if (vectors.some((row) => row.length !== model.embedding)) throw new Error("This profile is damaged. Enrol the person again.");
  return { ...profile, name: checkedName(name) };
}

/** The name of a person's file, as the command line names it. */
export async function fileName(name) {
  const readable = [...name.replace(/[^\p{L}\p{N}_]+/gu, "_")].slice(0, 40).join("");
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(name));
  const hex = Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return `speaker-${readable}-${hex.slice(0, 10)}.json`;
}
