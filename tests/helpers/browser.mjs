// Drives headless Chromium on the web page: reads {modules, chromium, flags, tasks} as JSON from the file that its
// argument names, and prints a line of JSON for each task. A task has the name of one of `tasks` below, and its own values.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { modules, chromium: executablePath, flags, tasks: wanted } = JSON.parse(readFileSync(process.argv[2]));
const { chromium } = createRequire(modules)("playwright-core");
const PART = 4 * 16_000 * 60; // bytes of samples that the browser gets at once: a minute; an hour at once ends it
const TIMEOUT = 240_000; // milliseconds: of one step, on a busy machine

const tasks = {
  /** Only load the page. */
  async load() {},

  /** Feed samples (a file of float32) to the worker that the page uses, without the page. */
  async samples({ page, task }) {
    const bytes = readFileSync(task.samples);
    await page.route("**/test-samples?*", (route) => {
      const from = Number(new URL(route.request().url()).searchParams.get("from"));
      return route.fulfill({ body: bytes.subarray(from, from + PART) });
    });
    const { settings = null, size = 777 } = task;
    return page.evaluate(feedWorker, { here: task.url, settings, size, partBytes: PART });
  },

  /** Open an audio file, as a user does. */
  async file({ page, task }) {
    await openFile(page, task.files[0], task.aloud ?? false);
    return { hits: await shownHits(page) };
  },

  /** Listen to the microphone for some seconds. */
  async microphone({ page, task }) {
    await page.click("#listen");
    await page.waitForFunction(() => /Listening|try again/.test(document.getElementById("status").textContent));
    await page.waitForTimeout(1000 * task.seconds);
    const level = Number(await page.locator("#meter").getAttribute("aria-valuenow"));
    await screenshot(page, task);
    const hits = await shownHits(page);
    if (await page.locator("#listen[data-on]").count()) await page.click("#listen");
    return { hits, level, footer: await page.textContent("#footer") };
  },

  /** Record a clip to enrol until the page says what is wrong. */
  async record({ page }) {
    await page.click("#enrol");
    await page.keyboard.type("Ada");
    await page.click("#record");
    await page.locator("#problem").waitFor();
    return { listening: await page.textContent("#status") };
  },

  /** Press Stop while a file is read. */
  async reading({ page, task }) {
    await page.evaluate(() => {
      const { decodeAudioData } = OfflineAudioContext.prototype;
      OfflineAudioContext.prototype.decodeAudioData = async function (content) {
        await new Promise((resolve) => document.getElementById("listen").addEventListener("click", () => setTimeout(resolve)));
        globalThis.isRead = true;
        return decodeAudioData.call(this, content);
      };
    });
    await page.setInputFiles("#file", task.files[0]);
    await page.waitForTimeout(100);
    const before = await page.textContent("#status");
    await page.click("#listen");
    await page.waitForFunction(() => globalThis.isRead);
    await page.waitForTimeout(300);
    return { before, button: await page.textContent("#listen") };
  },

  /** Enrol a person from files with the keyboard, save the profile, open a file, forget the person and load the profile. */
  async enrol({ page, task }) {
    await page.focus("#enrol");
    await page.keyboard.press("Enter");
    await page.keyboard.type(task.person); // the field has the focus
    await page.setInputFiles("#clip-files", task.files.slice(1));
    await page.locator("#people li, #feedback.bad").first().waitFor();
    const feedback = await page.textContent("#feedback");
    if (!(await page.locator("#people li").count())) return { feedback };
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#people button >> text=Save")]);
    await download.saveAs(task.save);
    await openFile(page, task.files[0], false);
    const hits = await shownHits(page);
    await page.click("summary");
    await page.selectOption("#owner", task.person);
    await openFile(page, task.files[0], false);
    const ofOwner = await shownHits(page);
    await screenshot(page, task);
    await page.click("#people button >> text=Forget");
    const left = await page.locator("#people li").count();
    await page.setInputFiles("#profile", task.save);
    await page.locator("#people li").waitFor();
    return { feedback, hits, ofOwner, left, file: download.suggestedFilename(), people: await page.textContent("#people") };
  },

  /** Load files of the command line, open a recording, forget the word and the household, and open it again. */
  async saved({ page, task }) {
    await page.setInputFiles("#profile", task.saved);
    await page.waitForFunction(() => document.querySelectorAll("#loaded li").length === 2);
    const loaded = await page.locator("#loaded li .name").allTextContents();
    const words = await page.locator("#words b").allTextContents();
    await openFile(page, task.files[0], false);
    const hits = await shownHits(page);
    await screenshot(page, task);
    for (const _ of loaded) await page.locator("#loaded button").first().click();
    await openFile(page, task.files[0], false);
    return { loaded, words, hits, without: await shownHits(page), wordsLeft: await page.locator("#words b").count() };
  },

  /** Load files that cannot be used, one after the other; what the page says to each. */
  async profiles({ page, task }) {
    const said = [];
    for (const file of task.files) {
      await page.setInputFiles("#profile", file);
      await page.waitForFunction((name) => document.getElementById("problem").textContent.startsWith(name), file.split("/").at(-1));
      said.push(await page.textContent("#problem"));
    }
    return { said };
  },

  /** Move the thresholds with the keyboard; what is shown. */
  async thresholds({ page }) {
    const shown = () => page.locator("#threshold-value, #level-value").allTextContents();
    await page.click("summary");
    const before = await shown();
    await page.focus("#threshold");
    await page.keyboard.press("ArrowRight");
    await page.focus("#level");
    for (let i = 0; i < 21; i++) await page.keyboard.press("ArrowRight");
    const after = await shown();
    await page.click("#defaults");
    return { before, after, reset: await shown() };
  },
};

/** In the browser: the answers of the worker to samples in parts of a size. */
async function feedWorker({ here, settings, size, partBytes }) {
  const worker = new Worker(new URL("worker.mjs", here), { type: "module" });
  const hops = [], hits = [];
  const feed = async () => {
    for (let from = 0, samples; samples?.length !== 0; from += partBytes) {
      samples = new Float32Array(await (await fetch(new URL(`test-samples?from=${from}`, here))).arrayBuffer());
      for (let i = 0; i < samples.length; i += size) {
        const part = samples.slice(i, i + size);
        worker.postMessage({ type: "samples", samples: part }, [part.buffer]);
      }
    }
    worker.postMessage({ type: "finish", id: 1 });
  };
  return new Promise((resolve, reject) => {
    worker.onerror = (event) => reject(new Error(event.message));
    worker.onmessage = ({ data }) => {
      if (data.type === "error") reject(new Error(data.message));
      if (data.type === "hop") hops.push(data);
      hits.push(...(data.hits ?? []));
      if (data.type === "finished") resolve({ hops, hits });
      if (data.type !== "ready") return;
      if (settings) worker.postMessage({ type: "settings", settings });
      worker.postMessage({ type: "reset" });
      feed().catch(reject);
    };
    worker.postMessage({ type: "load", here });
  });
}

async function openFile(page, file, aloud) {
  await page.evaluate(() => ["hits", "status"].forEach((id) => document.getElementById(id).replaceChildren()));
  await page.locator("#aloud").setChecked(aloud);
  await page.setInputFiles("#file", file);
  await page.waitForFunction(() => /is finished/.test(document.getElementById("status").textContent));
}

/** The list of hits, from the first to the last. */
function shownHits(page) {
  return page.locator("#hits li").evaluateAll((lines) =>
    lines.reverse().map((line) => {
      const [time, label, speaker, score] = [...line.children].map((part) => part.textContent);
      return { time, label, speaker, score };
    }),
  );
}

async function screenshot(page, task) {
  if (task.screenshot) await page.screenshot({ path: task.screenshot, fullPage: true });
}

async function run(browser, task) {
  const context = await browser.newContext({
    viewport: { width: task.width ?? 1000, height: 900 },
    colorScheme: task.dark ? "dark" : "light",
    permissions: ["microphone", "record"].includes(task.name) && !task.denied ? ["microphone"] : [],
  });
  context.setDefaultTimeout(TIMEOUT);
  const page = await context.newPage();
  const requests = [], errors = [];
  page.on("request", (request) => requests.push(`${request.method()} ${request.url()}`));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  for (const [pattern, file] of Object.entries(task.answers ?? {})) {
    await context.route(pattern, (route) =>
      file ? route.fulfill({ path: file, headers: { "Access-Control-Allow-Origin": "*" } }) : route.abort(),
    );
  }
  let result;
  try {
    if (task.name === "samples") await page.goto(new URL("model/model.json", task.url).href); // of the same origin
    else {
      await page.goto(task.url);
      await page.waitForFunction(() => /Ready|cannot start/.test(document.getElementById("status").textContent));
    }
    result = await tasks[task.name]({ page, task });
  } catch (error) {
    result = { failed: String(error) };
  }
  const text = async (id) => ((await page.locator(id).isVisible()) ? page.textContent(id) : null);
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  const shown = { status: await text("#status"), problem: await text("#problem"), width };
  await context.close();
  return { ...shown, ...result, requests, errors };
}

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", ...flags], timeout: TIMEOUT });
const lastsAsLongAsItsAudio = (task) => task.aloud || task.name === "microphone";
const results = new Map(); // tasks that wait for their audio wait together
await Promise.all(wanted.filter(lastsAsLongAsItsAudio).map(async (task) => results.set(task, await run(browser, task))));
for (const task of wanted) {
  if (!results.has(task)) results.set(task, await run(browser, task));
  console.log(JSON.stringify(results.get(task)));
}
await browser.close();
