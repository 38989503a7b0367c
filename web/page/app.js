// One picture after the other, however it comes: made small, sent, answered, perhaps corrected.

import { Fault, classify, correct } from "./api.js";
import { Refusal, prepare } from "./picture.js";
import * as view from "./view.js";

const { at } = view;
const REMEMBERED = 12;

let loading = null; // The promise of site.json: title, api, image_size, classes, …
let shown = null; // The picture in hand, answered or not.
let underWay = new AbortController();

async function start() {
  try {
    await settings();
    if (!shown) view.idle();
  } catch (error) {
    if (!shown) fail(error);
  }
}

function settings() {
  loading ??= load().catch((error) => {
    loading = null;
    throw error;
  });
  return loading;
}

async function load() {
  const site = await (await part("site.json", { cache: "no-cache" })).json();
  view.site(site, takeSample);
  return site;
}

// A file that belongs to the page.
async function part(path, options) {
  const response = await fetch(path, options).catch(() => null);
  if (!response?.ok) throw new Fault("A part of this page could not be loaded.", 0);
  return response;
}

// `source` tells samples apart; `load(signal)` returns a promise of the file.
function take(source, load) {
  work({ source, load, times: {} });
}

function takeFile(file, why) {
  take(null, async () => {
    if (!file) throw new Refusal(why);
    return file;
  });
}

function takeSample(path) {
  // Its answer is shown or on the way: the second half of a double click, or a key held down.
  if (shown?.source === path && !shown.failed) return;
  take(path, async (signal) => (await part(path, { signal })).blob());
}

// Does what is left to do for a picture; a later picture takes its place at any moment.
async function work(entry) {
  underWay.abort();
  const { signal } = (underWay = new AbortController());
  shown = entry;
  entry.failed = false;
  view.working(entry);
  try {
    const site = await settings();
    if (!entry.picture) await makeSmall(entry, site.image_size, signal);
    signal.throwIfAborted();
    view.stage(entry);
    const start = performance.now();
    entry.answer = await classify(site.api, entry.picture, signal);
    entry.times.ask = lap("ask", start);
    view.remember(entry, REMEMBERED, showAgain);
    view.found(entry, site);
  } catch (error) {
    if (signal.aborted) return;
    entry.failed = true;
    fail(error);
  }
}

async function makeSmall(entry, imageSize, signal) {
  const start = performance.now();
  const picture = await prepare(await entry.load(signal), imageSize);
  Object.assign(entry, { picture, image: await dataUrl(picture) });
  entry.times.prepare = lap("prepare", start);
}

// Milliseconds since `start`; the browser's developer tools show them too.
function lap(name, start) {
  performance.measure(name, { start });
  return performance.now() - start;
}

function dataUrl(blob) {
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(blob);
  });
}

function fail(error) {
  if (error instanceof Refusal) view.problem("Not this one", error.message, null);
  else if (error instanceof Fault) {
    view.problem("That did not work", error.message, error.retryAfter, error.reference);
  } else {
    view.problem("That did not work", "Something went wrong in this page.", 0);
    throw error; // Developers see it in the console.
  }
}

async function showAgain(entry) {
  underWay.abort();
  shown = entry;
  view.found(entry, await settings());
}

async function sendCorrection(event) {
  event.preventDefault();
  const [entry, label] = [shown, at("label").value];
  if (entry.sending) return;
  entry.sending = true;
  try {
    const site = await settings();
    const { id } = await correct(site.api, {
      image: entry.image.split(",")[1],
      label,
      predicted: entry.answer.label,
      consent: at("consent").checked,
    });
    entry.corrected = { id, label };
    if (shown === entry) view.thank(entry, site);
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    if (shown === entry) view.complain(error);
  } finally {
    entry.sending = false;
  }
}

function retry() {
  at("answer").focus(); // The button is about to go.
  if (shown) work(shown);
  else start();
}

function choose(event) {
  takeFile(event.target.files[0]);
  event.target.value = ""; // The same file may be chosen again.
}

at("file").addEventListener("change", choose);
at("camera").addEventListener("change", choose);
at("frame").addEventListener("click", () => at("file").click());
at("retry").addEventListener("click", retry);
at("clear").addEventListener("click", view.forget);
at("correction").addEventListener("submit", sendCorrection);

addEventListener("paste", ({ clipboardData }) => {
  takeFile(clipboardData.files[0], "There is no picture in the clipboard: copy one first.");
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault(); // The browser would open the file in place of the page.
  document.body.classList.remove("dragging");
  takeFile(event.dataTransfer.files[0], "That is not a file: save the picture and drop its file.");
});

start();
