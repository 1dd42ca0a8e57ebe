// Compares speaker embeddings: the same decisions as distilled_student/onnx/speakers.py and calibration.py.

/** A vector divided by its length. */
export function unitLength(vector) {
  const length = Math.max(Math.hypot(...vector), 1e-12);
  return Float32Array.from(vector, (value) => value / length);
}

export function cosine(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** The mean of vectors of length 1, of length 1. */
export function meanVector(vectors) {
  return unitLength(Array.from(vectors[0], (_, i) => vectors.reduce((sum, vector) => sum + vector[i], 0) / vectors.length));
}

/**
 * What the cosine of an utterance and an enrolled speaker means.
 *
 * content: {ratio, thresholds, seen, mean_voice} of the model; older ones have no mean_voice. A condition is
 * {clips, enrolled_seconds, seconds, typicality, enrolled_typicality}.
 */
export class Calibration {
  constructor(content) {
    this.content = content;
    this.shares = Object.keys(content.thresholds).map(Number).sort((a, b) => a - b);
    this.thresholds = new Map(Object.entries(content.thresholds).map(([share, weights]) => [Number(share), weights]));
  }

  /** The condition of a comparison of two embeddings of length 1. */
  condition(embedding, enrolled, clips, enrolledSeconds, seconds) {
    const typical = (vector) => (this.content.mean_voice ? cosine(vector, this.content.mean_voice) : 0);
    return {
      clips,
      enrolled_seconds: enrolledSeconds,
      seconds,
      typicality: typical(embedding),
      enrolled_typicality: typical(enrolled),
    };
  }

  /** The natural log-likelihood ratio of "the same speaker" to "another speaker". */
  ratio(cosine, condition) {
    return sumOfTerms(this.content.ratio, this.nearest(condition), cosine);
  }

  /** The cosine that a share of other speakers' utterances reaches; between fitted shares it is interpolated. */
  threshold(falseAccepts, condition) {
    const share = Math.min(Math.max(falseAccepts, this.shares[0]), this.shares.at(-1));
    const upper = this.shares.find((one) => one >= share);
    const lower = this.shares.findLast((one) => one <= share);
    const inside = this.nearest(condition);
    const [atLower, atUpper] = [lower, upper].map((one) => sumOfTerms(this.thresholds.get(one), inside, 0));
    if (lower === upper) return atLower;
    const part = (quantile(share) - quantile(lower)) / (quantile(upper) - quantile(lower));
    return atLower + part * (atUpper - atLower);
  }

  /** The nearest condition that the calibration was fitted on. */
  nearest(condition) {
    const inside = { ...condition };
    for (const [name, [low, high]] of Object.entries(this.content.seen)) {
      inside[name] = Number.isFinite(condition[name]) ? Math.min(Math.max(condition[name], low), high) : low;
    }
    return inside;
  }
}

/** The content of a calibration for which a cosine means what `cosine - offset` meant before: that of a household. */
export function shifted(content, offset) {
  const moved = Object.entries(content.thresholds).map(([share, weights]) => [share, { ...weights, bias: (weights.bias ?? 0) + offset }]);
  const ratio = { ...content.ratio };
  for (const [term, weight] of Object.entries(content.ratio)) {
    const factors = term.split("*");
    const place = factors.indexOf("cosine");
    if (place < 0) continue;
    const rest = factors.filter((_, i) => i !== place).join("*") || "bias";
    ratio[rest] = (ratio[rest] ?? 0) - offset * weight;
  }
  return { ...content, ratio, thresholds: Object.fromEntries(moved) };
}

function sumOfTerms(weights, condition, cosine) {
  const log = (value) => Math.log(Math.max(value, 1e-3));
  const values = {
    bias: 1,
    cosine,
    log_clips: Math.log(Math.max(condition.clips, 1)),
    log_enrolled_seconds: log(condition.enrolled_seconds),
    log_seconds: log(condition.seconds),
    same_word: 0.5, // whether the words are the same is not known
    typicality: condition.typicality,
    enrolled_typicality: condition.enrolled_typicality,
  };
  let sum = 0;
  for (const [term, weight] of Object.entries(weights)) {
    sum += term.split("*").reduce((product, name) => product * values[name], weight);
  }
  return sum;
}

/** The quantile of the standard normal distribution, by Newton's method on its distribution function. */
export function quantile(share) {
  if (share > 0.5) return -quantile(1 - share);
  let x = -Math.sqrt(-2 * Math.log(share)) / 1.2; // not far from the solution
  for (let i = 0; i < 60; i++) {
    const step = (normalShare(x) - share) / (Math.exp(-0.5 * x * x) / Math.sqrt(2 * Math.PI));
    x -= Math.max(-0.5, Math.min(0.5, step));
    if (Math.abs(step) < 1e-12) break;
  }
  return x;
}

/** The share of a standard normal distribution below x, for x <= 0: a series near 0, a continued fraction far away. */
function normalShare(x) {
  const density = Math.exp(-0.5 * x * x) / Math.sqrt(2 * Math.PI);
  if (x > -3) {
    let term = x, sum = x;
    for (let n = 3; Math.abs(term) > 1e-17; n += 2) sum += term *= (x * x) / n;
    return 0.5 + density * sum;
  }
  let fraction = 0;
  for (let n = 60; n > 0; n--) fraction = n / (-x + fraction);
  return density / (-x + fraction);
}

/**
 * Whether an embedding of length 1 is from an enrolled person {vector, clips, seconds}: {accepted, ratio, cosine}.
 *
 * limit: bandLimit of the recording; one that has a limit is not accepted.
 */
export function verify(calibration, embedding, seconds, person, falseAccepts, limit = null) {
  const similarity = cosine(embedding, person.vector);
  const condition = calibration.condition(embedding, person.vector, person.clips, person.seconds, seconds);
  const ratio = calibration.ratio(similarity, condition);
  const isStated = calibration.shares.length > 0; // else the calibration has no thresholds
  const isAlike = isStated ? similarity >= calibration.threshold(falseAccepts, condition) : ratio >= 0;
  const accepted = limit === null && isAlike;
  return { accepted, ratio, cosine: similarity };
}

/** The enrolled person with the largest ratio, if accepted: {name or null, ratio, cosine, ratios of all people}. */
export function identify(calibration, embedding, seconds, people, falseAccepts, limit = null) {
  const wanted = falseAccepts / people.length; // so that all people together get the stated share
  const share = Math.max(wanted, calibration.shares[0] ?? 0);
  const results = people.map((person) => ({
    name: person.name,
    ...verify(calibration, embedding, seconds, person, share, limit),
  }));
  const best = results.reduce((a, b) => (b.ratio > a.ratio ? b : a));
  return {
    name: best.accepted ? best.name : null,
    ratio: best.ratio,
    cosine: best.cosine,
    ratios: Object.fromEntries(results.map((result) => [result.name, result.ratio])),
  };
}

/** The probability that the owner said the keyword: that of the keyword times that of the owner. */
export function ownerSaid(score, ratio) {
  return ratio > -700 ? score / (1 + Math.exp(-ratio)) : 0;
}
