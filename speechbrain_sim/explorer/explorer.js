/* The explorer: what the server answers, and what it is asked for. Its state
   lies in the address, so that a link restores it. */
const $ = (id) => document.getElementById(id);
const client = Math.random().toString(36).slice(2);
const KINDS = ["interpolate", "set", "swap", "noise", "features"];
const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20];
const [past, future, columns] = [[], [], []];
let offer = null; // models, clips and limits of the server
let seconds = 1; // of the recording
let released = 0; // when a pointer was released or a key pressed
let state = { clip: null, other: null, layer: null, dimension: 0, span: null, edits: [], codes: null, feature: null };

/* ------------------------------------------------------------- the server */

async function ask(url, options) {
  const answer = await fetch(url, options).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: is speechbrain-sim explore still running?");
  });
  const content = await answer.json().catch(() => ({}));
  if (answer.ok) return content;
  throw Object.assign(new Error(content.error ?? `The server answered ${answer.status}: try again soon.`), { status: answer.status });
}

/** Asks once, and keeps the answer. */
const answers = new Map();
function once(key, question) {
  if (!answers.has(key)) {
    answers.set(key, question());
    answers.get(key).catch(() => answers.delete(key));
    if (answers.size > 300) answers.delete(answers.keys().next().value);
  }
  return answers.get(key);
}
function get(path, parameters) {
  const url = `api/${path}${parameters ? `?${new URLSearchParams(parameters)}` : ""}`;
  return once(url, () => ask(url));
}
function post(body, signal) {
  return ask("api/decode", { method: "POST", body: JSON.stringify(body), signal });
}

/** Returns an address within the page, in which a player can seek. */
function soundOf(clip) {
  return once(clip.sound, async () => URL.createObjectURL(await (await fetch(clip.sound)).blob()));
}

function say(place, text, bad = false) {
  set(place, text);
  place.classList.toggle("bad", bad);
}
/** Does something; what goes wrong is stated, but not that it is outdated. */
async function attempt(place, work) {
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError" && error.status !== 409) say(place, error.message, true);
  }
}

/* --------------------------------------------------------------- the state */

function address() {
  const given = Object.entries(state).filter(([, value]) => value !== null && value?.length !== 0);
  return `#${new URLSearchParams(given.map(([key, value]) => [key, JSON.stringify(value)]))}`;
}

/** Takes what is valid of the address. */
function fromAddress() {
  const found = {};
  for (const [key, text] of new URLSearchParams(location.hash.slice(1))) {
    try {
      found[key] = JSON.parse(text);
    } catch {
      // a broken link leaves the default
    }
  }
  const clips = offer.clips.map((clip) => clip.id);
  const lost = "clip" in found && !clips.includes(found.clip);
  if (lost) say($("message"), "The recording of this link is not on the server: open its file again.", true);
  const pick = (value, all, other) => (all.includes(value) ? value : other);
  const whole = (value) => (Number.isInteger(value) && value >= 0 ? value : null);
  const edits = Array.isArray(found.edits) ? found.edits : [];
  const names = layerNames();
  const decodes = layersOf("layer").filter((layer) => layer.decodes).at(-1);
  return {
    clip: pick(found.clip, clips, clips[0] ?? null),
    other: pick(found.other, clips, clips[1] ?? clips[0] ?? null),
    layer: pick(found.layer, names, decodes?.name ?? names[0]),
    dimension: whole(found.dimension) ?? 0,
    span: Array.isArray(found.span) && found.span.length === 2 && found.span.every(Number.isFinite) ? found.span : null,
    edits: lost ? [] : edits.filter((edit) => KINDS.includes(edit?.kind)),
    codes: pick(found.codes, codesOf().map((codes) => codes.id), codesOf()[0]?.id ?? null),
    feature: whole(found.feature),
  };
}

/** Changes the state; what undo steps through are recording, layer and edits. */
function move(change) {
  const next = { ...state, ...change };
  if (state.clip && ["clip", "layer", "edits"].some((key) => next[key] !== state[key])) {
    past.push(state);
    future.length = 0;
  }
  say($("message"), "");
  return restore(next);
}
function restore(next) {
  state = next;
  const done = refresh();
  history.replaceState(null, "", address()); // last: a browser refuses too many
  return done;
}
function step(from, to) {
  if (!from.length) return;
  to.push(state);
  restore(from.pop());
}

const keyOf = (edit) => JSON.stringify([edit.kind, edit.span, edit.dimension, edit.model, edit.layer, Object.keys(edit.features ?? {})]);
const spanned = (edit) => (state.span ? { ...edit, span: state.span } : edit);
const editLike = (edit) => state.edits.find((other) => keyOf(other) === keyOf(spanned(edit)));
/** Puts an edit in the place of its like, or at the end; or takes it away. */
function put(edit, away = false, change = {}) {
  const edits = change.edits ?? [...state.edits];
  const at = edits.findIndex((other) => keyOf(other) === keyOf(spanned(edit)));
  edits.splice(at < 0 ? edits.length : at, at < 0 ? 0 : 1, ...(away ? [] : [spanned(edit)]));
  document.querySelector("[name=hear][value=changed]").checked = true;
  return move({ ...change, edits });
}

/** Layers of some kinds, of all models; `id` is unique. */
function layersOf(...kinds) {
  const all = offer.models.flatMap((m) => m.layers.map((layer) => ({ ...layer, model: m.name, title: m.title, id: `${m.name}/${layer.name}` })));
  return all.filter((layer) => kinds.includes(layer.kind));
}
const layerNames = () => [...new Set(layersOf("layer").map((layer) => layer.name))];
const codesOf = () => layersOf("sae", "vsc");
const codesNow = () => codesOf().find((codes) => codes.id === state.codes);
const layerOf = (model, name) => model.layers.find((layer) => layer.name === name);
const clipName = (id) => offer.clips.find((clip) => clip.id === id)?.name ?? "a recording that is gone";
const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(x)} σ`;
function describe(edit) {
  const what = {
    interpolate: () => `${Math.round(100 * edit.amount)} % of the way to ${clipName(edit.other)}`,
    set: () => `Dimension ${edit.dimension} at ${signed(edit.deviations)}${edit.of === "prior" ? " of the prior" : ""}`,
    swap: () => `${edit.count} dimensions of ${clipName(edit.other)}`,
    noise: () => `Noise from the prior, draw ${edit.seed}`,
    features: () => Object.entries(edit.features ?? {}).map(([f, x]) => `Feature ${f} at ${Number(x).toPrecision(3)}`).join(", "),
  }[edit.kind]();
  return Array.isArray(edit.span) ? `${what}, ${edit.span.join(" – ")} s` : what;
}

/* ------------------------------------------------------------ what is shown */

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
function press(text, action, properties = {}) {
  const button = make("button", { type: "button", dir: "auto", ...properties }, text);
  button.addEventListener("click", action);
  return button;
}
/** Replaces what a box holds; the button in the place of the last one is in focus. */
function refill(box, ...children) {
  const at = [...box.querySelectorAll("button")].indexOf(document.activeElement);
  box.replaceChildren(...children);
  if (at >= 0) (box.querySelectorAll("button")[at] ?? $("undo")).focus();
}
const laneOf = (box, name) => box.querySelector(`[data-lane="${name}"]`);
const picture = (content) => `data:image/png;base64,${content}`;
const playable = ({ type: kind, sound }) => `data:${kind};base64,${sound}`;

/** Lays something over the seconds that it covers. */
function place(element, start, stop) {
  element.style.left = `${(100 * start) / seconds}%`;
  element.style.width = `${(100 * (stop - start)) / seconds}%`;
}
function showWave(lane, outline, length, name) {
  lane.querySelector("path").setAttribute("d", path(outline));
  lane.querySelector("svg").setAttribute("aria-label", `Waveform: ${name}`);
  place(lane.querySelector("svg"), 0, length);
}
function showPicture(lane, content, start, stop, name) {
  const image = lane.querySelector("img");
  Object.assign(image, { src: picture(content), alt: name });
  place(image, start, stop);
}
/** Draws values over the frames of a layer, and what lies a deviation around. */
function showCurve(lane, values, std, layer, name) {
  const low = Math.min(...values.map((v, i) => v - (std?.[i] ?? 0)), std ? Infinity : 0);
  const high = Math.max(...values.map((v, i) => v + (std?.[i] ?? 0)), low + 1e-9);
  const point = (v, i) => `${((100 * (i + 0.5)) / values.length).toFixed(2)} ${(96 - (92 * (v - low)) / (high - low)).toFixed(2)}`;
  const svg = lane.querySelector("svg");
  svg.querySelector("polyline").setAttribute("points", values.map(point).join(" "));
  const upper = std?.map((s, i) => point(values[i] + s, i));
  const lower = std?.map((s, i) => point(values[i] - s, i)).reverse();
  svg.querySelector(".band").setAttribute("d", std ? `M${[...upper, ...lower].join("L")}Z` : "");
  svg.setAttribute("aria-label", `${name}, from ${low.toPrecision(3)} to ${high.toPrecision(3)}`);
  place(svg, ...extent(layer, values.length));
  lane.querySelector(".tag").replaceChildren(name, make("br"), `${+low.toPrecision(2)} … ${+high.toPrecision(2)}`.replaceAll("-", "−"));
}
const extent = (layer, frames) => layer.pooled ? [0, seconds] : [-0.5, frames - 0.5].map((k) => layer.center + k / layer.frame_rate);

function showTimes() {
  const gap = STEPS.find((x) => seconds / x <= 7) ?? 20;
  const ticks = Array.from({ length: Math.floor(0.97 * seconds / gap) + 1 }, (_, i) => i * gap);
  for (const field of document.querySelectorAll(".lane.ticks .field")) {
    field.replaceChildren(...ticks.map((t) => make("span", {}, `${+t.toFixed(1)}${t ? "" : " s"}`)));
    [...field.children].forEach((span, i) => (span.style.left = `${(100 * ticks[i]) / seconds}%`));
  }
}
function showMark(span) {
  for (const mark of document.querySelectorAll(".over .mark")) {
    mark.hidden = !span;
    if (span) place(mark, ...span);
  }
}

/** Shows the state in the controls. */
function showControls() {
  for (const select of [$("clip"), $("other")]) {
    select.replaceChildren(...offer.clips.map((clip) => make("option", { value: clip.id }, `${clip.name} (${clip.seconds.toFixed(2)} s)`)));
    select.value = state[select.id];
  }
  for (const input of $("layers").querySelectorAll("input")) input.checked = input.value === state.layer;
  const here = offer.models.map((m) => layerOf(m, state.layer)).filter(Boolean);
  const channels = Math.min(...here.map((layer) => layer.channels));
  state.dimension = Math.min(state.dimension, channels - 1);
  $("dimension").max = channels - 1;
  $("dimension").value = state.dimension;
  [$("from").value, $("to").value] = state.span ?? ["", ""];
  $("swap").max = channels;
  $("interpolate").value = editLike({ kind: "interpolate" })?.amount ?? 0;
  $("swap").value = editLike({ kind: "swap" })?.count ?? 0;
  const dimensionSet = editLike({ kind: "set", dimension: state.dimension });
  $("set").value = dimensionSet?.deviations ?? 0;
  if (dimensionSet?.of) $("of").value = dimensionSet.of;
  set(document.querySelector("label[for=set]"), `Dimension ${state.dimension}`);
  for (const id of ["interpolate", "swap", "set", "steer"]) showKnob(id);
  const prior = here.some((layer) => layer.posterior);
  $("noise").hidden = $("counted").hidden = !prior;
  if (!prior) $("of").value = "clip";
  $("undo").disabled = !past.length;
  $("redo").disabled = !future.length;
  $("reset").disabled = !state.edits.length;
  refill($("edits"), ...state.edits.map((edit, i) => {
    const show = press(describe(edit), () => move({ span: edit.span ?? null, dimension: edit.dimension ?? state.dimension }));
    const remove = press("✕", () => move({ edits: state.edits.filter((_, k) => k !== i) }), { ariaLabel: `Remove: ${describe(edit)}` });
    return make("li", {}, show, remove);
  }));
  showMark(state.span);
}
function showKnob(id) {
  const value = Number($(id).value);
  const unchanged = value === ($(id).start ?? 0) && !editLike($(id).edit(value));
  const [mean, deviation] = $("of").value === "prior" ? [0, 1] : $("set").moments ?? [0, 1];
  const text = {
    interpolate: () => `α = ${value.toFixed(2)}`,
    swap: () => `N = ${value} of ${$("swap").max}`,
    set: () => (unchanged ? "as it is" : `${signed(value)}, ${(mean + value * deviation).toPrecision(2).replace("-", "−")}`),
    steer: () => (unchanged ? "as it is" : value.toPrecision(3)),
  }[id]();
  set(document.querySelector(`output[for=${id}]`), text);
  $(id).setAttribute("aria-valuetext", text);
}

/** Shows what belongs to the state; what a newer state overtakes is dropped. */
let turns = 0;
async function refresh() {
  const turn = ++turns;
  const current = () => turn === turns;
  showControls();
  const { clip } = state;
  if (clip === null) return say($("message"), "There is no recording yet: open a file, or record one.");
  await attempt($("message"), async () => {
    const shown = await get(`clips/${clip}`);
    const sound = await soundOf(shown);
    if (!current()) return;
    seconds = shown.seconds;
    if ($("recorded").src !== sound) $("recorded").src = sound;
    showTimes();
    showMark(state.span);
    await Promise.all([...columns.map((column) => attempt(column.note, () => showLook(column, shown, current))),
      ...columns.map((column) => attempt(column.status, () => decode(column, shown))), attempt($("count"), () => showFeatures(shown, current))]);
  });
}

async function showLook({ model, look, note }, clip, current) {
  const layer = layerOf(model, state.layer);
  showWave(laneOf(look, "wave"), clip.outline, seconds, clip.name);
  showPicture(laneOf(look, "mel"), clip.mel, 0, seconds, `Mel spectrogram: ${clip.name}`);
  for (const name of ["means", "dimension"]) laneOf(look, name).hidden = !layer;
  const of = { model: model.name, clip: clip.id };
  if (!layer) say(note, `${model.title} has no layer ${state.layer}.`);
  else await showLatents(look, { ...of, layer: layer.name }, layer, current);
  const [read, halves] = [await get("probes", of), layer ? await readHalves(model, of, layer) : []];
  if (!current()) return;
  if (layer) say(note, halves.map((half) => half.text).filter(Boolean).join(" "));
  look.querySelector(".read").replaceChildren(...read.map(probeLane), ...halves.flatMap((half) => half.lanes));
}

async function showLatents(look, of, layer, current) {
  const [all, one] = await Promise.all([get("latent", of), get("latent", { ...of, dimension: state.dimension })]);
  if (!current()) return;
  const means = laneOf(look, "means");
  const kind = layer.posterior ? "means of the posterior" : "latents";
  showPicture(means, all.picture, ...extent(layer, all.frames), `${kind} of ${layer.name}, dimension by time`);
  set(means.querySelector(".tag"), `${kind}, ${all.rows.length} of ${layer.channels}`);
  const row = means.querySelector(".row-of") ?? means.querySelector(".field").appendChild(make("span", { className: "row-of" }));
  row.style.top = `${100 * (1 - (all.rows.indexOf(state.dimension) + 0.5) / all.rows.length)}%`;
  row.hidden = !all.rows.includes(state.dimension);
  look.rows = all.rows;
  showCurve(laneOf(look, "dimension"), one.mean, one.std, layer, `dimension ${state.dimension}${one.std ? " ± σ" : ""}`);
  if (look !== columns[0].look) return;
  $("set").moments = [one.center, one.deviation];
  showKnob("set");
  refill($("varying"), make("span", { className: "hint" }, "vary most:"), ...all.order.slice(0, 5).map((d) =>
    press(d, () => move({ dimension: d }), { ariaLabel: `Dimension ${d}`, ariaPressed: d === state.dimension })));
}

function probeLane({ label, layer, spans }) {
  const list = make("ol", { ariaLabel: `${label}, as ${layer} is read` }, ...spans.map((span) => {
    const times = `${span.start.toFixed(2)} – ${span.end.toFixed(2)} s`;
    const item = make("li", { title: `${span.class}, ${times}, ${Math.round(100 * span.probability)} %` }, make("span", { dir: "auto" }, span.class));
    place(item, span.start, span.end);
    return item;
  }));
  return make("div", { className: "lane probe" }, make("div", { className: "tag" }, label), make("div", { className: "field" }, list));
}

/** Returns what each half of a layer reads, and where it looks. */
async function readHalves(model, of, layer) {
  const halves = model.layers.filter((l) => l.kind === "vib" && l.origin === layer.name);
  return Promise.all(halves.map(async (half) => {
    const { label, transcript, prediction, probability, attention } = await get("halves", { ...of, layer: half.name });
    const lanes = Object.entries(attention ?? {}).filter(([, values]) => values?.length).map(([where, values]) => {
      const lane = columns[0].look.querySelector("[data-lane=dimension]").cloneNode(true);
      delete lane.dataset.lane;
      lane.hidden = false;
      showCurve(lane, values, null, half, `${label} attends to ${where === "own" ? "its own half" : "the text half"}`);
      return lane;
    });
    const text = (transcript && (transcript.join(" ") || "nothing")) ?? `${prediction} (${Math.round(100 * probability)} %)`;
    return { text: `${label ?? half.name}: ${text}.`, lanes };
  }));
}

/* ------------------------------------------------------------------- sounds */

/** Decodes the edits of the state; a newer call ends an older one. */
async function decode(column, clip) {
  const { model, compare, status, audio } = column;
  const { layer } = state;
  const edits = state.edits.filter((edit) => !edit.layer || edit.model === model.name);
  const asked = JSON.stringify([clip.id, layer, state.edits]);
  if (column.asked === asked) return;
  column.asked = asked;
  column.cancel?.abort();
  column.cancel = new AbortController();
  const began = performance.now() - released < 1000 ? released : performance.now();
  const since = released ? "release" : "request";
  const body = { client: `${client}-${model.name}`, model: model.name, clip: clip.id, layer, edits };
  const plain = { ...body, client: `${body.client}-decoded`, edits: [] };
  const decodes = layerOf(model, layer)?.decodes;
  audio.hidden = compare.querySelector(".lanes").hidden = !decodes;
  compare.ariaBusy = decodes ? "true" : "false";
  if (!decodes) return say(status, `${model.title} has no decoder of ${layer}: choose another layer, or train one with recipes/decode.py.`);
  try {
    // one that was overtaken meanwhile, and is wanted again, is asked for again
    const original = () => once(JSON.stringify(plain), () => post(plain)).catch((error) => {
      if (error.status === 409 && column.asked === asked) return original();
      throw error;
    });
    const changed = edits.length ? await post(body, column.cancel.signal) : await original();
    const before = await original();
    if (column.asked !== asked) return;
    column.sounds = { recorded: await soundOf(clip), decoded: playable(before), changed: playable(changed) };
    column.louder = before.gain / changed.gain;
    showChanged(compare, changed, before, edits.length > 0);
    hear(column);
    await ready(column.audio);
    if (column.asked === asked) say(status, report(changed, `${Math.round(performance.now() - began)} ms from ${since} to sound`, edits.length > 0));
    if ($("release").checked && edits.length && column === columns[0]) column.audio.play().catch(() => {});
  } catch (error) {
    if (column.asked === asked) column.asked = null;
    throw error;
  } finally {
    if (column.asked === asked || column.asked === null) compare.ariaBusy = "false";
  }
}
function report(changed, took, edited) {
  const { delta, milliseconds: server } = changed;
  if (!edited) return state.edits.length ? "The features are of the other model: nothing is changed here." : "Nothing is changed yet: move a slider.";
  const time = `${took}, ${Math.round(server.worked)} of them on the model`;
  if (delta?.value == null) return `${time}.`;
  return `δ(${delta.count}) = ${delta.value.toFixed(3)}: ${(100 * delta.value).toFixed(0)} % of the distance to the other is left, by ${delta.of}. ${time}.`;
}

function showChanged(compare, changed, before, edited) {
  const name = edited ? "changed" : "decoded";
  showWave(laneOf(compare, "wave"), changed.outline, changed.seconds, name);
  set(laneOf(compare, "wave").querySelector(".tag"), name);
  showPicture(laneOf(compare, "mel"), changed.mel, 0, changed.seconds, `Mel spectrogram: ${name}`);
  laneOf(compare, "difference").hidden = !edited || !changed.difference;
  if (edited && changed.difference) showPicture(laneOf(compare, "difference"), changed.difference, 0, changed.seconds, "Mel spectrogram, changed − decoded");
}

/** Gives a player the chosen sound, at the place where it was. What is decoded
    is as loud beside what is changed as the decoder made it. */
function hear(column) {
  const { audio, sounds, louder, lowered = 1 } = column;
  const { value } = document.querySelector("[name=hear]:checked");
  const src = sounds[value];
  column.lowered = value === "decoded" ? 1 / louder : 1;
  audio.volume = Math.min(1, (audio.volume * column.lowered) / lowered);
  if (audio.getAttribute("src") === src) return;
  const [at, playing] = [audio.currentTime, !audio.paused];
  audio.src = src;
  audio.addEventListener("loadedmetadata", () => (audio.currentTime = Math.min(at, audio.duration)), { once: true });
  if (playing) audio.play().catch(() => {});
}
function ready(audio) {
  if (audio.readyState >= 3) return Promise.resolve();
  return new Promise((resolve, reject) => {
    audio.addEventListener("canplay", resolve, { once: true });
    audio.addEventListener("error", () => reject(new Error("The browser cannot play this sound.")), { once: true });
  });
}
/** Plays from one second to another. */
function playFrom(audio, start, stop = Infinity) {
  audio.currentTime = start;
  audio.play().catch(() => {});
  const end = () => {
    if (audio.currentTime < stop && !audio.paused) return;
    audio.pause();
    audio.removeEventListener("timeupdate", end);
  };
  audio.addEventListener("timeupdate", end);
}

async function upload(content, name) {
  await attempt($("message"), async () => {
    say($("message"), `${name} is read …`);
    if (content.size > offer.limits.bytes) throw new Error(`${name} is larger than ${Math.round(offer.limits.bytes / 1e6)} MB.`);
    const clip = await ask(`api/clips?${new URLSearchParams({ name })}`, { method: "POST", body: content });
    if (!offer.clips.some((other) => other.id === clip.id)) offer.clips.push(clip);
    chooseClip(clip.id);
    say($("message"), `${clip.name}, ${clip.seconds.toFixed(2)} s.`);
  });
}
function chooseClip(clip) {
  const other = state.other === clip ? offer.clips.find((c) => c.id !== clip)?.id ?? clip : state.other;
  move({ clip, other, span: null, edits: state.edits.filter((edit) => !edit.span) });
}

/** A wav of 16 bits of pieces of samples. */
function wav(pieces, rate) {
  const count = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (at, word) => [...word].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"), text(8, "WAVEfmt "), text(36, "data");
  [[4, 36 + 2 * count], [16, 16], [24, rate], [28, 2 * rate], [40, 2 * count]].forEach(([at, x]) => view.setUint32(at, x, true));
  [[20, 1], [22, 1], [32, 2], [34, 16]].forEach(([at, x]) => view.setUint16(at, x, true));
  let at = 44;
  for (const piece of pieces) for (const x of piece) view.setInt16(at, 32767 * Math.max(-1, Math.min(1, x)), true), (at += 2);
  return new Blob([view], { type: "audio/wav" });
}
let stopRecording = null;
async function record() {
  if (stopRecording) return stopRecording();
  stopRecording = () => {}; // the browser asks: a second click opens no second microphone
  const refused = { NotAllowedError: "The browser did not allow the microphone: allow it beside the address, or open a file.", NotFoundError: "There is no microphone: open a file." };
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false } });
  } catch (error) {
    stopRecording = null;
    return say($("message"), refused[error.name] ?? "The microphone cannot be used on this page: open a file.", true);
  }
  const [context, pieces] = [new AudioContext(), []];
  // deprecated, but in all browsers: a worklet is a script of its own, which the page's policy forbids
  const tap = context.createScriptProcessor(4096, 1, 1);
  const source = context.createMediaStreamSource(stream);
  source.connect(tap).connect(context.destination);
  context.resume();
  stopRecording = () => {
    stopRecording = null;
    // nodes that nothing refers to may be collected while they record
    [source, tap].forEach((node) => node.disconnect());
    stream.getTracks().forEach((track) => track.stop());
    context.close();
    set($("record"), "Record");
    $("record").ariaPressed = "false";
    upload(wav(pieces, context.sampleRate), `recording ${new Date().toTimeString().slice(0, 8)}.wav`);
  };
  tap.onaudioprocess = ({ inputBuffer }) => {
    pieces.push(inputBuffer.getChannelData(0).slice());
    const length = (4096 * pieces.length) / context.sampleRate;
    set($("record"), `Stop (${length.toFixed(1)} s)`);
    if (length > offer.limits.seconds - 0.2) stopRecording?.();
  };
  set($("record"), "Stop");
  $("record").ariaPressed = "true";
}

/* ----------------------------------------------------------------- features */

let listed = null; // recording, codes and search of the list
async function showFeatures(clip, current, offset = 0) {
  const codes = codesNow();
  $("features").hidden = !codes;
  if (!codes) return;
  $("codes").value = codes.id;
  const of = { model: codes.model, layer: codes.name, clip: clip.id };
  const asked = { ...of, search: $("find").value.trim() };
  const page = await get("features", { ...asked, offset });
  if (!current() || (offset && offset !== $("list").children.length)) return;
  if (offset || listed !== JSON.stringify(asked)) {
    const rows = page.features.map((feature) => featureRow(feature, codes));
    if (offset) $("list").append(...rows);
    else $("list").replaceChildren(...rows);
    listed = JSON.stringify(asked);
    say($("count"), `${page.total} features are active${asked.search ? " and match" : ""}; the most active first.`);
    $("more").hidden = $("list").children.length >= page.total;
  }
  const first = $("list").querySelector("input")?.value;
  await showFeature(state.feature ?? (first === undefined ? null : Number(first)), of, codes, clip, current);
}
function featureRow({ feature, name, share, peak, at }, codes) {
  const input = make("input", { type: "radio", name: "feature", value: feature });
  input.addEventListener("change", () => move({ feature }));
  const facts = `${(100 * share).toFixed(0)} % of frames, ${codes.kind === "vsc" ? "gate" : "peak"} ${peak.toPrecision(3)} at ${at.toFixed(2)} s`;
  return make("label", {}, input, make("span", { dir: "auto" }, `${feature} ${name ?? ""}`), make("small", {}, facts));
}
async function showFeature(feature, of, codes, clip, current) {
  if (feature === null) return;
  const { activation, largest } = await get("feature", { ...of, feature });
  if (!current()) return;
  for (const input of $("list").querySelectorAll("input")) input.checked = Number(input.value) === feature;
  const peak = Math.max(largest, 1e-6);
  set($("feature-name"), `Feature ${feature} of ${codes.name}`);
  showWave(laneOf($("features"), "wave"), clip.outline, seconds, clip.name);
  showCurve(laneOf($("features"), "activation"), activation, null, codes, codes.kind === "vsc" ? "gate" : "activation");
  const [start] = extent(codes, 0);
  $("moments").replaceChildren(make("span", { className: "hint" }, "strongest moments:"), ...moments(activation).map(([from, to, most]) => {
    const ends = [from, to].map((k) => start + k / codes.frame_rate);
    return press(`${ends[0].toFixed(2)} s (${most.toPrecision(3)})`, () => playFrom($("recorded"), Math.max(0, ends[0] - 0.05), ends[1] + 0.05));
  }));
  $("steer").dataset.feature = feature;
  Object.assign($("steer"), { max: 2 * peak, step: peak / 50, value: editLike($("steer").edit(0))?.features[feature] ?? peak });
  $("steer").start = Number($("steer").value);
  showKnob("steer");
}
/** Returns the three strongest moments: first frame, end, largest activation. */
function moments(activation) {
  const [runs, floor] = [[], 0.05 * Math.max(...activation)];
  activation.forEach((x, i) => {
    if (x <= floor) return;
    if (runs.at(-1)?.[1] !== i) runs.push([i, i, 0]);
    const run = runs.at(-1);
    [run[1], run[2]] = [i + 1, Math.max(run[2], x)];
  });
  return runs.sort((a, b) => b[2] - a[2]).slice(0, 3);
}

/* ----------------------------------------------------------- hands and keys */

/** Makes a slider that puts an edit, which its neutral value takes away. */
function operate(id, edit, neutral, change = () => ({})) {
  $(id).edit = edit;
  $(id).addEventListener("input", () => showKnob(id));
  $(id).addEventListener("change", () => {
    const value = Number($(id).value);
    put(edit(value), value === neutral, change());
  });
}
/** Codes are changed at the layer that they code. */
const layerBelow = (codes) => (codes.origin === state.layer ? {} : { layer: codes.origin, edits: [] });
function watch() {
  for (const kind of ["pointerup", "keydown"]) {
    addEventListener(kind, (event) => (released = event.timeStamp), { capture: true, passive: true });
  }
  operate("interpolate", (amount) => ({ kind: "interpolate", other: state.other, amount }), 0);
  operate("swap", (count) => ({ kind: "swap", other: state.other, count }), 0);
  operate("set", (deviations) => ({ kind: "set", dimension: state.dimension, deviations, of: $("of").value }), null);
  operate("steer", (value) => ({ kind: "features", model: codesNow()?.model, layer: codesNow()?.name, features: { [$("steer").dataset.feature]: value } }),
    null, () => layerBelow(codesNow()));
  $("of").addEventListener("change", () => {
    const edit = editLike({ kind: "set", dimension: state.dimension });
    if (edit) put({ ...edit, of: $("of").value });
    else showKnob("set");
  });
  $("clip").addEventListener("change", () => chooseClip($("clip").value));
  $("other").addEventListener("change", () => {
    const other = $("other").value;
    const uses = state.edits.some((edit) => edit.other);
    move({ other, ...(uses ? { edits: state.edits.map((edit) => (edit.other ? { ...edit, other } : edit)) } : {}) });
  });
  $("dimension").addEventListener("change", () => {
    const [value, most] = [Number($("dimension").value), Number($("dimension").max)];
    move({ dimension: Math.max(0, Math.min(most, Math.round(value) || 0)) });
  });
  const typed = () => {
    const [a, b] = [Number($("from").value) || 0, Number($("to").value) || seconds];
    if (a < b) return move({ span: a === 0 && b === seconds ? null : [a, b] });
    say($("message"), `The span ends at ${b} s, before it begins.`, true);
  };
  for (const id of ["from", "to"]) $(id).addEventListener("change", typed);
  const clicks = {
    whole: () => move({ span: null }),
    noise: () => put({ kind: "noise", seed: (editLike({ kind: "noise" })?.seed ?? 0) + 1 }),
    undo: () => step(past, future),
    redo: () => step(future, past),
    reset: () => move({ edits: [] }),
    record,
  };
  for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);
  $("link").addEventListener("click", async () => {
    const done = navigator.clipboard?.writeText(location.href).then(() => "Copied", () => "It is the address");
    set($("link"), (await done) ?? "It is the address");
    setTimeout(() => set($("link"), "Copy a link"), 2000);
  });
  addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
    if (event.target.matches("[type=number], [type=search]")) return;
    event.preventDefault();
    step(...(event.shiftKey ? [future, past] : [past, future]));
  });
  addEventListener("hashchange", () => restore(fromAddress(), past.push(state)));
  $("hear").addEventListener("change", () => columns.forEach((column) => column.sounds && hear(column)));
  $("codes").addEventListener("change", () => {
    const codes = codesOf().find(({ id }) => id === $("codes").value);
    move({ codes: codes.id, feature: null, ...layerBelow(codes) });
  });
  $("find").addEventListener("input", refresh);
  $("more").addEventListener("click", () => attempt($("count"), async () =>
    showFeatures(await get(`clips/${state.clip}`), () => true, $("list").children.length)));
  $("file").addEventListener("change", () => {
    if ($("file").files[0]) upload($("file").files[0], $("file").files[0].name);
    $("file").value = "";
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("dropping");
  });
  addEventListener("dragleave", () => $("drop").classList.remove("dropping"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("dropping");
    const [file] = event.dataTransfer.files;
    if (file) upload(file, file.name);
  });
}

/** Marks a span by dragging; a click plays from there, or chooses a dimension. */
function watchLanes(lanes, audio) {
  const over = lanes.querySelector(".over");
  let start = null;
  const at = (event) => {
    const box = over.getBoundingClientRect();
    return seconds * Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
  };
  const ends = (event) => [start, at(event)].sort((a, b) => a - b).map((x) => Number(x.toFixed(3)));
  over.addEventListener("pointerdown", (event) => {
    start = at(event);
    over.setPointerCapture(event.pointerId);
  });
  over.addEventListener("pointermove", (event) => start !== null && showMark(ends(event)));
  over.addEventListener("pointercancel", () => showMark((start = null) ?? state.span));
  over.addEventListener("pointerup", (event) => {
    const span = ends(event);
    start = null;
    if (span[1] - span[0] > seconds / 200) return move({ span });
    showMark(state.span);
    const box = lanes.querySelector("[data-lane=means] .field")?.getBoundingClientRect();
    const height = box ? (box.bottom - event.clientY) / box.height : -1;
    const { rows } = lanes.parentElement;
    if (height >= 0 && height < 1) return move({ dimension: rows[Math.floor(height * rows.length)] });
    playFrom(audio, span[0]);
  });
  audio.addEventListener("play", () => follow(audio, lanes.querySelector(".head"), seconds));
}

function addColumn(model, index) {
  const [look, compare] = ["looking", "comparing"].map((id) => $(id).content.firstElementChild.cloneNode(true));
  const audio = compare.querySelector("audio");
  const [note, status] = [look, compare].map((part) => part.querySelector(".message"));
  const several = offer.models.length > 1;
  for (const part of [look, compare]) {
    part.dataset.of = index % 4;
    set(part.querySelector(".badge"), several ? model.title : "");
  }
  audio.ariaLabel = several ? `${model.title}: the chosen sound` : "The chosen sound";
  columns.push({ model, look, compare, audio, note, status });
  $("look").append(look);
  $("compare").append(compare);
  watchLanes(look.querySelector(".lanes"), $("recorded"));
  watchLanes(compare.querySelector(".lanes"), audio);
}

async function begin() {
  offer = await ask("api/model");
  document.body.classList.add("live");
  $("live").hidden = false;
  offer.models.forEach(addColumn);
  watchLanes($("features").querySelector(".lanes"), $("recorded"));
  $("layers").lastElementChild.replaceChildren(...layerNames().map((layer) => {
    const input = make("input", { type: "radio", name: "layer", value: layer });
    input.addEventListener("change", () => move({ layer, edits: [] }));
    return make("label", {}, input, make("span", {}, layer));
  }));
  $("codes").replaceChildren(...codesOf().map(({ id, name, title }) => make("option", { value: id }, offer.models.length > 1 ? `${title}: ${name}` : name)));
  // one sound at a time
  document.addEventListener("play", ({ target }) => {
    for (const audio of document.querySelectorAll("audio")) if (audio !== target) audio.pause();
  }, true);
  watch();
  await restore(fromAddress());
}
const begun = location.protocol.startsWith("http") ? begin() : Promise.reject(new Error("This file was saved from it."));
begun.catch((error) => {
  const offline = document.querySelector(".offline");
  offline.hidden = false;
  offline.append(" ", error.message);
});
