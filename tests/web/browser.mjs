// Drives headless Chromium on the page, for test_browser.py: reads a task as JSON from its argument, prints JSON.
//
// task: {url, do, chromium, flags, files, samples, settings, screenshot, width, dark, seconds}; see `tasks` below.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const task = JSON.parse(process.argv[2]);
const { chromium } = createRequire(task.modules)("playwright-core");

const browser = await chromium.launch({ executablePath: task.chromium, args: ["--no-sandbox", ...(task.flags ?? [])] });
const context = await browser.newContext({
  viewport: { width: task.width ?? 1000, height: task.height ?? 900 },
  colorScheme: task.dark ? "dark" : "light",
  ...(task.permissions ? { permissions: task.permissions } : {}),
});
const page = await context.newPage();
page.setDefaultTimeout(180_000);
const requests = [], errors = [];
page.on("request", (request) => requests.push(`${request.method()} ${request.url()}`));
page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
page.on("pageerror", (error) => errors.push(String(error)));

const text = (selector) => page.locator(selector).textContent();
const problem = async () => ((await page.locator("#problem").isVisible()) ? text("#problem") : null);
const hits = () =>
  page.locator("#hits li").evaluateAll((lines) =>
    lines.reverse().map((line) => {
      const [time, label, speaker, score] = [...line.children].map((part) => part.textContent);
      return { time, label, speaker, score };
    }),
  );

async function open() {
  await page.goto(task.url);
  await page.waitForFunction(() => /Ready|cannot start/.test(document.getElementById("status").textContent));
}

async function openFile(file, aloud) {
  await page.locator("#aloud").setChecked(aloud);
  await page.setInputFiles("#file", file);
  await page.waitForFunction(() => /is finished/.test(document.getElementById("status").textContent));
}

const tasks = {
  /** Only load. */
  async load() {
    await open();
  },

  /** Feed samples (float32) to the worker that the page uses; {hops, embedding, clips}. */
  async samples() {
    await page.route("**/test-samples", (route) => route.fulfill({ body: readFileSync(task.samples) }));
    await page.goto(new URL("model/model.json", task.url).href); // the same origin, without the page
    return page.evaluate(async ({ settings, here, size }) => {
      const worker = new Worker(new URL("worker.mjs", here), { type: "module" });
      const samples = new Float32Array(await (await fetch(new URL("test-samples", here))).arrayBuffer());
      const hops = [];
      return new Promise((resolve, reject) => {
        worker.onerror = (event) => reject(new Error(event.message));
        worker.onmessage = ({ data }) => {
          if (data.type === "error") reject(new Error(data.message));
          if (data.type === "hop") hops.push(data);
          if (data.type === "flushed") resolve({ hops });
          if (data.type !== "ready") return;
          if (settings) worker.postMessage({ type: "settings", settings });
          worker.postMessage({ type: "reset" });
          for (let i = 0; i < samples.length; i += size) {
            const part = samples.slice(i, i + size);
            worker.postMessage({ type: "samples", samples: part }, [part.buffer]);
          }
          worker.postMessage({ type: "flush", id: 1 });
        };
        worker.postMessage({ type: "load", here });
      });
    }, { settings: task.settings ?? null, here: task.url, size: task.size ?? 777 });
  },

  /** Open an audio file as a user does. */
  async file() {
    await open();
    await openFile(task.files[0], task.aloud ?? false);
    return { hits: await hits(), status: await text("#status") };
  },

  /** Listen to the microphone for some seconds. */
  async microphone() {
    await open();
    await page.click("#listen");
    await page.waitForTimeout(1000 * task.seconds);
    const level = await page.locator("#meter").getAttribute("aria-valuenow");
    if (task.screenshot) await page.screenshot({ path: task.screenshot, fullPage: true });
    const found = await hits();
    await page.click("#listen");
    return { hits: found, level, status: await text("#status"), footer: await text("#footer") };
  },

  /** Enrol a person from files, save the profile, and open a file; then load the profile again. */
  async enrol() {
    await open();
    await page.click("#enrol");
    await page.fill("#name", task.name);
    await page.setInputFiles("#clip-files", task.files.slice(1));
    const feedback = [];
    await page.waitForFunction(() => document.querySelectorAll("#people li").length > 0 || document.querySelector("#feedback.bad"));
    feedback.push(await text("#feedback"));
    const enrolled = await page.locator("#people li").count();
    if (!enrolled) return { feedback, enrolled };
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#people button:has-text('Save')")]);
    await download.saveAs(task.save);
    await openFile(task.files[0], false);
    const found = await hits();
    await page.click("#people button:has-text('Forget')");
    const forgotten = await page.locator("#people li").count();
    await page.setInputFiles("#profile", task.save);
    await page.waitForFunction(() => document.querySelectorAll("#people li").length > 0);
    if (task.screenshot) await page.screenshot({ path: task.screenshot, fullPage: true });
    return { feedback, enrolled, hits: found, forgotten, file: download.suggestedFilename(), people: await text("#people") };
  },

  /** Load a file that is not a good profile. */
  async profile() {
    await open();
    await page.setInputFiles("#profile", task.files[0]);
    await page.waitForFunction(() => !document.getElementById("problem").hidden);
  },
};

let result;
try {
  if (task.script) await context.addInitScript(task.script);
  for (const pattern of task.block ?? []) await page.route(pattern, (route) => route.abort());
  result = await tasks[task.do]();
  if (!["samples"].includes(task.do)) Object.assign(result ?? (result = {}), { problem: await problem(), state: await text("#status") });
} catch (error) {
  result = { failed: String(error), problem: await problem().catch(() => null) };
}
console.log(JSON.stringify({ ...result, requests, errors }));
await browser.close();
