"use strict";
const { systems, groups, type, blobs } = JSON.parse(document.getElementById("data").textContent);
const switches = [...document.querySelectorAll("[name=system]")];
const playOnMove = document.getElementById("play");

function currentSystem() {
  return switches.find((input) => input.checked)?.value ?? systems[0] ?? null;
}

/** The path of an outline: a byte for the top of each column, then the bottoms. */
function path(outline) {
  const points = [...atob(outline)].map((c) => c.charCodeAt(0));
  const half = points.length / 2;
  const above = points.slice(0, half).map((y, x) => `${x} ${y}`);
  const below = points.slice(half).map((y, x) => `${x} ${y}`);
  return `M${above.join("L")}L${below.reverse().join("L")}Z`;
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Shows what slider, layer and system say. */
function show(figure, variants) {
  const find = (selector) => figure.querySelector(selector);
  const system = currentSystem();
  const ours = variants.filter((v) => v.system === null || v.system === system);
  figure.hidden = ours.length === 0;
  const layer = find("[type=radio]:checked")?.value ?? variants[0].layer;
  const variant = ours.find((v) => v.layer === null || v.layer === layer);
  find(".stage").hidden = !variant;
  find(".missing").hidden = Boolean(variant);
  set(find(".missing"), `There are no sounds of ${layer} for ${system}.`);
  const audio = find("audio");
  if (!variant) {
    audio.pause();
    return;
  }

  const slider = find("[type=range]");
  slider.max = variant.stops.length - 1;
  const stop = variant.stops[slider.value];
  const name = [variant.system, variant.layer, stop.label].filter(Boolean).join(", ");
  const of = variant.system === null ? -1 : systems.indexOf(variant.system);
  const src = `data:${type};base64,${blobs[stop.sound]}`;
  if (audio.getAttribute("src") !== src) audio.src = src;
  figure.dataset.of = of % 4;
  set(find("h3 .badge"), variant.system ?? "");
  set(find(".about"), variant.caption);
  set(find("output"), stop.label);
  slider.setAttribute("aria-valuetext", stop.label);
  set(find(".ends span"), variant.stops[0].label);
  set(find(".ends span:last-child"), variant.stops.at(-1).label);
  find(".save").href = src;
  find(".save").download = stop.file.replace(/wav$/, type === "audio/mpeg" ? "mp3" : "wav");
  find("path").setAttribute("d", path(blobs[stop.outline]));
  find("svg").setAttribute("aria-label", `Waveform: ${name}`);
  find(".mel").src = `data:image/png;base64,${blobs[stop.mel]}`;
  find(".mel").alt = `Mel spectrogram: ${name}`;
  find(".strips").replaceChildren(...stop.strips.map(([kind, blob]) => {
    const strip = document.createElement("div");
    strip.textContent = kind;
    const picture = document.createElement("img");
    picture.src = `data:image/png;base64,${blobs[blob]}`;
    picture.alt = `${kind} over time: ${name}`;
    strip.append(picture);
    return strip;
  }));
  set(find(".time span"), `${stop.seconds} s`);
}

/** Moves the line in a picture of so many seconds while a sound plays. */
function follow(audio, head, seconds = null) {
  head.style.left = `${(100 * audio.currentTime) / (seconds ?? audio.duration)}%`;
  head.hidden = audio.paused;
  if (!audio.paused) requestAnimationFrame(() => follow(audio, head, seconds));
}

const figures = [...document.querySelectorAll(".explorer")];
let lastMoved = null;

function playLastMoved() {
  if (!playOnMove?.checked || !lastMoved?.querySelector(".stage").checkVisibility()) return;
  // a play() that the next move cuts short is no error
  lastMoved.querySelector("audio").play().catch(() => {});
}

function showSystem() {
  const system = currentSystem();
  for (const element of document.querySelectorAll("[data-system]")) {
    element.hidden = element.dataset.system !== system;
  }
  figures.forEach((figure, i) => show(figure, groups[i]));
  boxes.forEach(showEdges);
}

/** Shows that a table or a picture goes on beyond its edge. */
const boxes = [...document.querySelectorAll(".scroll")];
function showEdges(box) {
  const left = box.scrollWidth - box.clientWidth;
  const hint = box.parentElement.querySelector(".more");
  box.parentElement.classList.toggle("over", left > 1);
  box.tabIndex = left > 1 ? 0 : -1;
  hint.hidden = left <= 1;
  hint.classList.toggle("end", box.scrollLeft >= left - 1);
}
const resized = new ResizeObserver((all) => all.forEach((one) => showEdges(one.target)));
boxes.forEach((box) => {
  resized.observe(box);
  box.addEventListener("scroll", () => showEdges(box), { passive: true });
});

figures.forEach((figure, i) => {
  figure.addEventListener("input", () => {
    show(figure, groups[i]);
    lastMoved = figure;
    playLastMoved();
  });
});
switches.forEach((input, i) => {
  input.parentElement.dataset.of = i % 4;
  input.addEventListener("change", () => {
    showSystem();
    playLastMoved();
  });
});
