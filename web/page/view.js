// What is on the screen. Texts are set as texts, never as HTML.

export const at = (id) => document.getElementById(id);
const rounded = new Intl.NumberFormat("en", { style: "percent" });

// Nothing is certain, and nothing is ruled out, because of rounding.
function percent(share) {
  if (share > 0.99 && share < 1) return "> 99%";
  return share > 0 && share < 0.01 ? "< 1%" : rounded.format(share);
}

const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(2)} s`;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function panel(id) {
  for (const each of ["idle", "working", "found", "problem"]) at(each).hidden = each !== id;
  at("answer").setAttribute("aria-busy", id === "working");
}

// Screen readers say it; the same words again are news too.
function announce(text) {
  at("status").textContent = "";
  requestAnimationFrame(() => (at("status").textContent = text));
}

export function site({ title, about, classes, samples }, take) {
  document.title = at("title").textContent = title;
  at("about").textContent = about ?? "";
  at("classes").replaceChildren(...classes.map((name) => element("li", { textContent: name })));
  const buttons = samples.map(({ file, alt }) => {
    const button = element("button", { type: "button" }, element("img", { src: file, alt }));
    button.addEventListener("click", () => take(file));
    button.dataset.source = file;
    return element("li", {}, button);
  });
  at("samples").querySelector("ul").replaceChildren(...buttons);
  at("samples").hidden = !buttons.length;
}

export const idle = () => panel("idle");

// `entry` is the picture in hand: {source, picture, image (its data URL), times, answer, …}.
export function working(entry) {
  stage(entry);
  panel("working");
  announce("Looking at the photo.");
}

export function stage(entry) {
  const { source, image } = entry;
  at("preview").hidden = !image;
  at("prompt").hidden = Boolean(image);
  if (image) at("preview").src = image;
  document.body.classList.toggle("holding", Boolean(image));
  for (const button of document.querySelectorAll("[data-source]")) {
    button.setAttribute("aria-pressed", button.dataset.source === source);
  }
  for (const button of list().querySelectorAll("button")) {
    button.setAttribute("aria-pressed", entries.get(button) === entry);
  }
  // On a phone the samples and the answers so far are below what they change.
  at("stage").scrollIntoView({ block: "nearest" });
}

export function found(entry, site) {
  stage(entry);
  const { label, confidence, scores } = entry.answer;
  const sorted = Object.entries(scores).sort(([, a], [, b]) => b - a);
  at("found").classList.toggle("unsure", label === null);
  if (label === null) {
    const [first, second] = sorted.map(([name, score]) => `${name} (${percent(score)})`);
    at("kicker").textContent = "No clear answer";
    at("winner").textContent = "not sure";
    at("sure").textContent = second ? `Perhaps ${first} or ${second}.` : `Perhaps ${first}.`;
    if (site.threshold) {
      at("sure").textContent += ` A category is named from ${percent(site.threshold)} on.`;
    }
  } else {
    at("kicker").textContent = "It looks like";
    at("winner").textContent = label;
    at("sure").textContent = `${percent(confidence)} sure`;
  }
  at("bars").replaceChildren(...sorted.map(bar));
  const { prepare, ask } = entry.times;
  at("took").textContent =
    `Answered in ${seconds(prepare + ask)}: ${seconds(prepare)} to make the photo small ` +
    `(${(entry.picture.size / 1000).toFixed(1)} kB), ${seconds(ask)} for the network and the model.`;
  correction(entry, site.classes);
  panel("found");
  const sure = at("sure").textContent;
  announce(label === null ? `Not sure. ${sure}` : `${label}, ${sure}.`);
}

function bar([name, score]) {
  const fill = element("span", { className: "fill" });
  fill.style.width = `${100 * score}%`;
  return element(
    "li",
    {},
    element("span", { className: "name", textContent: name }),
    element("span", { className: "score", textContent: percent(score) }),
    element("span", { className: "track" }, fill),
  );
}

function correction({ answer, corrected }, classes) {
  at("correction").reset();
  at("complaint").hidden = true;
  enableAfter(at("send"), 0, "Send the correction");
  at("wrong").hidden = Boolean(corrected);
  at("wrong").open = false;
  at("thanks").hidden = !corrected;
  if (corrected) {
    at("thanks").textContent = `Thank you. Stored as ${corrected.label}, number ${corrected.id}.`;
  }
  const others = classes.filter((name) => name !== answer.label);
  at("label").replaceChildren(
    element("option", { value: "", textContent: "Choose …" }),
    ...others.map((name) => element("option", { value: name, textContent: name })),
  );
}

export function thank(entry, site) {
  correction(entry, site.classes);
  at("thanks").focus(); // The button that had it is gone.
  announce(at("thanks").textContent);
}

export function complain(fault) {
  at("complaint").hidden = false;
  at("complaint").textContent = fault.message;
  enableAfter(at("send"), fault.retryAfter ?? 0, "Try again");
  announce(fault.message);
}

// `retryAfter` in seconds; null where trying again is no use.
export function problem(title, sentence, retryAfter, reference) {
  at("trouble").textContent = title;
  at("sentence").textContent = sentence;
  at("retry").hidden = retryAfter === null;
  enableAfter(at("retry"), retryAfter ?? 0, "Try again");
  at("reference").textContent = reference ? `Reference: ${reference}` : "";
  panel("problem");
  announce(sentence);
}

const timers = new Map();

function enableAfter(button, seconds, text) {
  clearTimeout(timers.get(button));
  button.disabled = seconds > 0;
  button.textContent = seconds > 0 ? `${text} in ${seconds} s` : text;
  if (seconds > 0) {
    timers.set(button, setTimeout(enableAfter, 1000, button, seconds - 1, text));
  }
}

// ---- the answers so far ----

const entries = new WeakMap(); // Of the buttons that show them again.
const list = () => at("history").querySelector("ul");

export function remember(entry, most, showAgain) {
  const { label, confidence } = entry.answer;
  const button = element(
    "button",
    { type: "button" },
    element("img", { src: entry.image, alt: "" }),
    element("span", { textContent: label ?? "not sure" }),
    element("span", { className: "soft", textContent: percent(confidence) }),
  );
  button.addEventListener("click", () => showAgain(entry));
  entries.set(button, entry);
  list().prepend(element("li", {}, button));
  while (list().children.length > most) list().lastChild.remove();
  at("history").hidden = false;
}

export function forget() {
  list().replaceChildren();
  at("history").hidden = true;
  at("answer").focus(); // The button that had it is gone.
  announce("The answers so far are cleared.");
}
