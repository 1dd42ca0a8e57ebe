// The page: connects the microphone, files and the worker with what is shown.

import { Microphone, Player, readFile } from "./audio.mjs";
import { Enrolment } from "./enrolment.mjs";
import { People } from "./people.mjs";
import { Saved } from "./saved.mjs";
import { Settings } from "./settings.mjs";
import { element, hitLine, percent, wordTile } from "./view.mjs";
import { WorkerPort } from "./worker_port.mjs";

const SHOWN_SECONDS = 1.2; // a word stays lit for this time
const SLOW_SECONDS = 2; // of audio that wait for the worker, from which on the page says that the device is too slow
const MAX_HITS = 50; // in the list
const at = (id) => document.getElementById(id);

const worker = new WorkerPort(new Worker(new URL("worker.mjs", import.meta.url), { type: "module" }));
let model, tiles, settings, people, saved, enrolment, microphone, player;
let session = 0; // a number for each start and stop: what belongs to an earlier one is over
let isIdle = true;
const times = []; // milliseconds of the worker for the last hops

start().catch(showProblem);

async function start() {
  if (typeof Worker !== "function") throw new Error("This browser has no workers. Use a newer one.");
  const ready = await worker.ask("load", { here: new URL(".", location.href).href });
  model = ready.model;
  showWords();
  people = new People(at("people"), applySettings, showProblem);
  saved = new Saved({ loaded: at("loaded"), words: at("words") }, model, people, applySettings, showProblem);
  settings = new Settings(model, applySettings);
  enrolment = new Enrolment(model, worker, people, { listen: openMicrophone, problem: showProblem });
  connect();
  applySettings();
  for (const id of ["listen", "open", "enrol", "load"]) at(id).disabled = false;
  at("enrol").disabled = !model.calibration;
  showStatus("Ready. Press Listen, or open a file.");
  showFooter(ready);
}

function connect() {
  at("listen").addEventListener("click", () => (isIdle ? openMicrophone() : stop()).catch(showProblem));
  at("open").addEventListener("click", () => at("file").click());
  at("file").addEventListener("change", () => {
    const [file] = at("file").files;
    at("file").value = ""; // the same file may be opened again
    if (file) playFile(file).catch(showProblem);
  });
  at("load").addEventListener("click", () => at("profile").click());
  at("profile").addEventListener("change", async () => {
    showProblem(null);
    for (const file of at("profile").files) await saved.load(file);
    at("profile").value = "";
  });
  worker.on("hop", showHop);
  worker.on("error", ({ message }) => showProblem(new Error(message)));
}

/** Open the microphone if it is not open; false if the user stopped before it was. */
async function openMicrophone() {
  if (microphone) return true;
  await stop();
  showProblem(null);
  const own = begin();
  try {
    const opened = await Microphone.open(worker, model.rate);
    if (session !== own) {
      await opened.close();
      return false;
    }
    microphone = opened;
    microphone.onended = () => stop().then(() => showProblem(new Error("The microphone was disconnected.")));
    showStatus(`Listening for: ${[...model.labels.filter(isKeyword), ...saved.words.keys()].join(", ")}.`);
    return true;
  } catch (error) {
    if (session === own) end("Press Listen to try again, or open a file.");
    throw error;
  }
}

async function playFile(file) {
  await stop();
  showProblem(null);
  const own = begin();
  showStatus(`Reading ${file.name}.`);
  const samples = await readFile(file, model.rate).catch((error) => {
    if (session === own) end("Press Listen, or open another file.");
    throw error;
  });
  if (session !== own) return;
  showStatus(`${file.name}, ${(samples.length / model.rate).toFixed(1)} s.`);
  const feed = (part) => worker.send("samples", { samples: part }, [part.buffer]);
  let fed = 0;
  if (at("aloud").checked) {
    player = new Player(samples, model.rate, feed);
    fed = await player.play();
  }
  for (; fed < samples.length && session === own; fed += model.rate) {
    feed(samples.slice(fed, fed + model.rate));
    await worker.ask("flush", {}); // one second after the other, so that Stop stops
  }
  if (session !== own) return;
  await finish();
  if (session === own) await stop(`${file.name} is finished: ${countText()}.`);
}

function countText() {
  const count = at("hits").querySelectorAll("li:not(.earlier)").length;
  return count === 1 ? "1 word" : `${count} words`;
}

/** Returns the number of the session. */
function begin() {
  isIdle = false;
  session += 1;
  worker.send("reset");
  for (const line of at("hits").children) line.classList.add("earlier");
  at("listen").textContent = "Stop";
  at("listen").dataset.on = "true";
  return session;
}

async function stop(text = "Stopped. Press Listen, or open a file.") {
  if (isIdle) return;
  const open = [microphone, player].filter(Boolean);
  microphone = player = null;
  const finished = finish();
  end(text);
  for (const one of open) await one.close();
  await finished;
}

/** Show the hits that still wait for the decision who said them. */
async function finish() {
  const { hits } = await worker.ask("finish", {});
  hits.forEach(showHit);
}

function end(text) {
  isIdle = true;
  session += 1;
  enrolment.interrupt();
  at("listen").textContent = "Listen";
  delete at("listen").dataset.on;
  at("meter").style.setProperty("--level", 0);
  at("who").textContent = "–";
  for (const label of Object.keys(tiles)) tiles[label].show(0);
  people.show(null);
  saved.show({});
  showStatus(text);
}

function applySettings() {
  if (!settings) return;
  const values = settings.values(people.names());
  worker.send("settings", { settings: { ...values, ...saved.values(), people: people.persons() } });
  for (const tile of Object.values(tiles)) tile.setThreshold(values.threshold);
}

function showWords() {
  tiles = {};
  for (const label of model.labels.filter(isKeyword)) {
    tiles[label] = wordTile(label);
    at("words").append(tiles[label].element);
  }
}

function isKeyword(label) {
  return !label.startsWith("_");
}

function showHop(hop) {
  times.push(hop.milliseconds);
  if (times.length > 100) times.shift();
  hop.hits.forEach(showHit); // also of what was said just before Stop
  if (isIdle) return;
  showLevel(hop.level);
  model.labels.forEach((label, i) => tiles[label]?.show(hop.scores[i]));
  saved.show(hop.ownWords);
  if (people.names().length) at("who").textContent = hop.speaker ? (hop.speaker.name ?? "somebody else") : "–";
  people.show(hop.speaker);
  if (microphone && hop.behind > SLOW_SECONDS && at("problem").hidden) {
    showProblem(new Error(`This device is too slow: it is more than ${SLOW_SECONDS} s behind. Try the model tiny.`));
  }
  if (times.length % 25 === 0) showFooterTime();
}

function showLevel(level) {
  const shown = Math.round(Math.max(-60, Math.min(0, level)));
  at("meter").style.setProperty("--level", (shown + 60) / 60);
  at("meter").setAttribute("aria-valuenow", shown);
}

function showHit(hit) {
  (saved.tile(hit.label) ?? tiles[hit.label])?.light(SHOWN_SECONDS);
  at("hits").prepend(hitLine(hit));
  while (at("hits").children.length > MAX_HITS) at("hits").lastElementChild.remove();
  at("no-hits").hidden = true;
  at("announce").textContent = `${hit.label}, ${percent(hit.score)}${hit.speaker ? `, ${hit.speaker}` : ""}`;
}

function showStatus(text) {
  at("status").textContent = text;
}

/** Say what is wrong; null: nothing is. */
function showProblem(error) {
  at("problem").hidden = error === null;
  at("problem").textContent = error === null ? "" : error.message;
  if (!model && error) showStatus("The page cannot start.");
}

function showFooter({ runtime, milliseconds }) {
  const place = runtime.base.startsWith("https:") ? "from a public CDN" : "from this site";
  at("footer").replaceChildren(
    element("span", "", `Model ${model.name}, ${(model.bytes / 1e6).toFixed(1)} MB, ready in ${Math.round(milliseconds)} ms. `),
    element("span", "", `onnxruntime-web ${runtime.version} ${place}. `),
    element("span", "time", ""),
  );
}

function showFooterTime() {
  const median = [...times].sort((a, b) => a - b)[Math.floor(times.length / 2)];
  const share = median / (1000 * (model.hop / model.rate));
  at("footer").querySelector(".time").textContent =
    `${median.toFixed(1)} ms of work for ${(1000 * model.hop) / model.rate} ms of audio (${percent(share)} of one core).`;
}
