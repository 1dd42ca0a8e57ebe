// The thresholds that a user may move.

const NO_GATE = -71; // the left end of the slider
const at = (id) => document.getElementById(id);

export class Settings {
  constructor(model, onchange) {
    this.model = model;
    this.shares = Object.keys(model.calibration?.thresholds ?? {}).map(Number).sort((a, b) => a - b);
    at("share-setting").hidden = this.shares.length === 0;
    at("no-share").hidden = this.shares.length > 0 || !model.calibration;
    at("owner").parentElement.hidden = !model.calibration;
    this.reset();
    for (const id of ["threshold", "level", "share", "owner"]) {
      at(id).addEventListener("input", () => {
        this.isMoved ||= id === "threshold";
        this.show();
        onchange();
      });
    }
    at("defaults").addEventListener("click", () => {
      this.reset();
      onchange();
    });
  }

  /** The model's own values. */
  reset() {
    const { threshold, level } = this.model.detector;
    this.isMoved = false;
    at("threshold").value = threshold ?? 0.5;
    at("level").value = level ?? NO_GATE;
    at("share").value = this.placeOf(this.model.false_accepts);
    at("owner").value = "";
    this.show();
  }

  /** What the worker needs. */
  values(names) {
    this.updateOwners(names);
    const level = Number(at("level").value);
    return {
      threshold: this.isMoved ? Number(at("threshold").value) : this.model.detector.threshold,
      level: level === NO_GATE ? null : level,
      falseAccepts: this.shares.length ? this.shareAt(Number(at("share").value)) : this.model.false_accepts,
      owner: at("owner").value || null,
    };
  }

  updateOwners(names) {
    const chosen = at("owner").value;
    const options = names.map((name) => new Option(`${name} only`, name));
    at("owner").replaceChildren(new Option("everybody", ""), ...options);
    at("owner").value = names.includes(chosen) ? chosen : "";
  }

  /** The slider's places are the logarithms of the fitted shares. */
  shareAt(place) {
    const [low, high] = [this.shares[0], this.shares.at(-1)];
    return Number((low * (high / low) ** (place / 100)).toPrecision(2));
  }

  placeOf(share) {
    const [low, high] = [this.shares[0], this.shares.at(-1)];
    return this.shares.length > 1 ? Math.round((100 * Math.log(share / low)) / Math.log(high / low)) : 50;
  }

  show() {
    const level = Number(at("level").value);
    at("threshold-value").textContent = `${(100 * at("threshold").value).toFixed(1)} %`; // those of streams are near 1
    at("level-value").textContent = level === NO_GATE ? "nothing" : `${level} dB`;
    if (this.shares.length) at("share-value").textContent = `${Number((100 * this.shareAt(Number(at("share").value))).toPrecision(2))} %`;
    for (const id of ["threshold", "level", "share"]) at(id).setAttribute("aria-valuetext", at(`${id}-value`).textContent);
    const gate = at("meter").querySelector(".gate");
    gate.hidden = level === NO_GATE;
    gate.style.setProperty("--gate", `${(100 * Math.max(0, level + 60)) / 60}%`);
  }
}
