// Enrols a person: three clips, from the microphone or from files, with feedback on each.

import { readFile } from "./audio.mjs";
import { compareClip } from "./clips.mjs";
import { checkedName, makeProfile } from "./profiles.mjs";
import { Calibration } from "./speakers.mjs";
import { element } from "./view.mjs";

const CLIPS = 3;
const SECONDS = 2; // of a recording; the loudest part of it is enrolled
const at = (id) => document.getElementById(id);

export class Enrolment {
  /** listen: opens the microphone; problem: shows an Error. */
  constructor(model, worker, people, { listen, problem }) {
    Object.assign(this, { model, worker, people, listen, problem });
    this.calibration = model.calibration && new Calibration(model.calibration);
    at("enrol").addEventListener("click", () => (at("enrolment").hidden ? this.open() : this.close()));
    at("cancel").addEventListener("click", () => this.close());
    at("enrolment").addEventListener("submit", (event) => {
      event.preventDefault();
      this.record().catch((error) => this.fail(error));
    });
    at("use-files").addEventListener("click", () => at("clip-files").click());
    at("clip-files").addEventListener("change", () => this.addFiles([...at("clip-files").files]));
    worker.on("recorded", ({ samples }) => this.addClip(samples).catch((error) => this.fail(error)));
  }

  open() {
    this.clips = [];
    at("clips").replaceChildren(...Array.from({ length: CLIPS }, () => element("li")));
    at("enrolment").hidden = false;
    at("enrol").setAttribute("aria-expanded", "true");
    this.say("Type a name, press Record and say one of the words.");
    this.setBusy(false);
    at("name").focus();
  }

  close() {
    this.worker.send("cancel");
    this.isRecording = false;
    at("enrolment").hidden = true;
    at("name").value = "";
    at("enrol").setAttribute("aria-expanded", "false");
    at("enrol").focus();
  }

  async record() {
    checkedName(at("name").value);
    this.setBusy(true);
    if (!(await this.listen()) || at("enrolment").hidden) return this.setBusy(false);
    this.isRecording = true;
    this.mark("recording");
    at("clips").style.setProperty("--seconds", `${SECONDS}s`);
    this.say("Say the word now.");
    this.worker.send("record", { seconds: SECONDS });
  }

  async addFiles(files) {
    at("clip-files").value = "";
    try {
      checkedName(at("name").value);
      for (const file of files) {
        if (this.clips.length < CLIPS && !at("enrolment").hidden) await this.addClip(await readFile(file, this.model.rate), file.name);
      }
    } catch (error) {
      this.fail(error);
    }
  }

  /** Check a clip, and enrol the person with the last one. */
  async addClip(samples, source = "") {
    this.isRecording = false;
    this.setBusy(true);
    this.say("Checking the clip.");
    const clip = await this.worker.ask("clip", { samples });
    if (at("enrolment").hidden) return; // cancelled
    const unlike = clip.problems.length ? null : compareClip(clip, this.clips, this.calibration);
    const problems = [...clip.problems, ...(unlike ? [unlike] : [])];
    if (problems.length) {
      this.setBusy(false);
      this.mark("bad");
      this.say([source && `${source}:`, ...problems, source ? "" : "Record it again."].filter(Boolean).join(" "), "bad");
      return;
    }
    this.mark("good");
    this.clips.push(clip);
    if (this.clips.length === CLIPS) return this.finish();
    this.setBusy(false); // with the number of the next clip
    this.say(`Good. ${CLIPS - this.clips.length === 1 ? "One more" : "Two more"}: another word is best.`, "good");
  }

  finish() {
    const name = checkedName(at("name").value);
    this.people.add(makeProfile(name, this.clips, this.model));
    this.close();
    at("announce").textContent = `${name} is enrolled.`;
  }

  /** The microphone was closed. */
  interrupt() {
    if (!this.isRecording) return;
    this.worker.send("cancel");
    this.fail(new Error("The recording was stopped. Record the clip again."));
  }

  mark(className) {
    at("clips").children[this.clips.length].className = className;
  }

  setBusy(isBusy) {
    at("record").disabled = at("use-files").disabled = isBusy;
    at("record").textContent = isBusy ? "Recording" : `Record clip ${this.clips.length + 1} of ${CLIPS}`;
    if (!isBusy && document.activeElement === document.body) at("record").focus(); // it was lost with disabled
  }

  say(text, className = "") {
    at("feedback").textContent = text;
    at("feedback").className = className;
  }

  fail(error) {
    this.isRecording = false;
    this.setBusy(false);
    if (at("clips").children[this.clips.length]) this.mark("");
    this.say(error.message, "bad");
  }
}
