// The page: one photo, one mask, a history of edits, and what the buttons do with them.

import { Mask, decode, encode } from "./mask.js";
import * as service from "./service.js";
import { Stage } from "./stage.js";
import * as store from "./store.js";

const MASK_SIDE = 2048, SHOWN_SIDE = 4096; // proxies of larger photos: painting never stalls
const HOLES = [[255, 255, 255, 255], [0, 0, 0, 0]]; // as the service reads masks: alpha 0 is edited
const WHITE = [[0, 0, 0, 255], [255, 255, 255, 255]]; // as `hilo edit --mask` reads them

const el = (id) => document.getElementById(id);
const all = (query) => [...document.querySelectorAll(query)];
const desk = { file: null, name: "", layers: [], selected: null, running: null, info: null };
const stage = new Stage(el("stage"), {
  painting: () => !desk.running,
  painted: () => maskChanged(),
  moved: (scale) => (el("zoom-fit").textContent = `${Math.round(scale * 100)} %`),
  slid: (at) => (el("slider").value = Math.round(at * 1000)),
  said: (text) => (el("said").textContent = text),
});

// --- a photo comes in

async function open(file, maskFile = null) {
  if (!file || !/^image\/(png|jpeg|webp)$/.test(file.type)) {
    return fail("This is no PNG, JPEG or WebP picture.");
  }
  if (desk.running) return note("An edit is running: cancel it first.");
  try {
    await show(file, file.name || "photo");
  } catch {
    return fail("This picture cannot be read: it may be damaged.");
  }
  if (maskFile) stage.mask.load(await createImageBitmap(maskFile));
  stage.refreshMask();
  maskChanged();
  keep();
}

async function show(file, name) {
  const { width, height } = await measure(file);
  const shown = fitted(width, height, SHOWN_SIDE), grid = fitted(width, height, MASK_SIDE);
  const bitmap = await createImageBitmap(file, {
    resizeWidth: shown[0], resizeHeight: shown[1], resizeQuality: "high",
  });
  Object.assign(desk, { file, name, layers: [], selected: null });
  stage.layers = desk.layers;
  stage.setPhoto({ bitmap, width, height }, new Mask(...grid));
  document.body.classList.remove("empty");
  el("name").textContent = `${name} · ${width} × ${height}`;
  setBrush(Math.max(width, height) / 60);
  fail("");
  render();
}

// The upright size, without decoding all of a large photo.
async function measure(file) {
  const url = URL.createObjectURL(file), image = new Image();
  try {
    image.src = url;
    await new Promise((resolve, reject) => Object.assign(image, { onload: resolve, onerror: reject }));
    return { width: image.naturalWidth, height: image.naturalHeight };
  } finally {
    URL.revokeObjectURL(url);
  }
}

function fitted(width, height, side) {
  const scale = Math.min(1, side / Math.max(width, height));
  return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
}

async function example() {
  const [photo, mask] = await Promise.all(
    ["hikers.jpg", "hikers_mask.png"].map(async (name) => (await fetch(`/static/${name}`)).blob()),
  );
  await open(new File([photo], "hikers.jpg", { type: "image/jpeg" }), mask);
  note("The hikers are painted over: press Remove.");
}

// --- an edit

function options() {
  const filling = mode() === "fill", model = desk.info?.model;
  return {
    preset: document.querySelector("[name=preset]:checked")?.value ?? "balanced",
    prompt: filling && model?.reads_prompt ? el("prompt").value : "",
    label: filling && !model?.reads_prompt ? el("label").value : "",
    seed: Math.min(2 ** 32 - 1, Math.max(0, Math.floor(+el("seed").value || 0))),
    count: +document.querySelector("#variations [aria-checked=true]").dataset.count,
    working_size: +el("working").value || null,
    feather: Math.min(200, Math.max(0, Math.floor(+el("feather").value || 0))),
  };
}

async function run() {
  if (desk.running || !desk.file) return;
  if (!stage.mask.bounds()) return fail("Paint over something first: the mask is empty.");
  const asked = options();
  const mask = stage.mask.toPNG(HOLES), runs = encode(stage.mask.bits); // not waited for yet
  const base = desk.layers.map(chosen);
  const pictures = await requested(mask, base, asked);
  if (!pictures?.length) return; // the mask stays
  const layer = { pictures, chosen: 0, asked, mode: mode(), mask: await mask, runs, base, dense: null };
  desk.layers.push(layer);
  stage.mask.remember();
  stage.mask.clear(); // undo brings it back, and so does the edit's own button
  stage.refreshMask();
  select(layer);
  maskChanged();
  el("result").scrollIntoView({ block: "nearest", behavior: "smooth" });
}

async function runDense() {
  const layer = desk.selected;
  if (!layer || desk.running) return;
  const asked = { ...layer.asked, preset: "dense", count: 1, previews: 0 };
  asked.seed = (layer.asked.seed + layer.chosen) % 2 ** 32;
  const pictures = await requested(layer.mask, layer.base, asked);
  if (!pictures?.length) return;
  layer.dense = { ...pictures[0], of: layer.chosen };
  select(layer);
  compare("dense");
  keep();
}

// The pictures of an edit, or nothing where it failed or was cancelled; shows how it goes. From
// its first line on nothing else is begun, so that a double click is one edit.
async function requested(mask, base, asked) {
  const started = performance.now(), control = new AbortController(), pictures = [];
  desk.running = control;
  endCompare();
  fail("");
  progress(0, 1, "Starting");
  render();
  try {
    const events = service.edit({
      photo: desk.file, mask: await mask, patches: base, options: asked, signal: control.signal,
    });
    for await (const event of events) await hear(event, pictures, started);
    if (!pictures.length) throw new Error("The service ended the edit without a picture.");
    remember(asked, (performance.now() - started) / 1000 / asked.count);
    return pictures;
  } catch (error) {
    if (error.name === "AbortError") note("Cancelled. The mask is as you painted it.");
    else fail(error.message);
  } finally {
    desk.running = null;
    stage.preview = null;
    stage.draw();
    render();
  }
}

async function hear(event, pictures, started) {
  const seconds = (performance.now() - started) / 1000;
  if (event.type === "waiting") {
    const text = event.ahead ? `Waiting: ${event.ahead} before this one` : null;
    if (text || !desk.told) progress(0, 1, text ?? `Reading the photo, ${seconds.toFixed(0)} s`);
  } else if (event.type === "progress") {
    const left = (seconds / event.done) * (event.of - event.done);
    const step = `Step ${event.done} of ${event.of}, about ${left.toFixed(0)} s left`;
    progress(event.done, event.of, event.done < event.of ? step : "Putting it back");
  } else if (event.type === "preview") {
    stage.preview = { bitmap: await createImageBitmap(event.png), box: event.box };
    stage.draw();
  } else if (event.type === "picture") {
    const { type: _, ...picture } = event;
    pictures.push({ ...picture, bitmap: await createImageBitmap(event.png) });
  }
}

function progress(done, of, text) {
  desk.told = done > 0;
  el("bar").max = of;
  el("bar").value = done;
  el("doing").textContent = text;
}

const chosen = (layer) => layer.pictures[layer.chosen];

function select(layer) {
  desk.selected = layer ?? null;
  stage.plans = layer && el("tokens").ariaPressed === "true" ? chosen(layer).plans : null;
  endCompare();
  stage.compose();
  render();
  keep();
}

// --- comparing

function compare(left = "before") {
  const layer = desk.selected;
  if (!layer) return;
  if (left === "dense" && !layer.dense) left = "before";
  el("left").value = left;
  el("right").value = "now";
  const [x, , w] = chosen(layer).box;
  stage.compare = { at: (x + w / 2) / stage.photo.width };
  el("slider").value = 1000 * stage.compare.at;
  comparePictures();
  render();
}

function comparePictures() {
  const picture = (which) => {
    const until = desk.layers.slice(0, desk.layers.indexOf(desk.selected));
    if (which === "before") return stage.composed(until);
    const layers = [...until, desk.selected];
    return stage.composed(layers, which === "dense" ? desk.selected : null);
  };
  stage.compare.left = picture(el("left").value);
  stage.compare.right = picture(el("right").value);
  stage.draw();
}

function endCompare() {
  stage.compare = null;
  stage.draw();
  el("comparebar").hidden = true;
  el("compare").ariaPressed = "false";
}

function peek(on) {
  if (!stage.photo || stage.compare) return;
  stage.peeking = on;
  stage.showMask = !on;
  stage.now = stage.composed(on ? [] : desk.layers);
  stage.draw();
}

// --- what the page shows of all this

function mode() {
  return document.querySelector("[data-mode][aria-checked=true]").dataset.mode;
}

function render() {
  const running = !!desk.running, layer = desk.selected, masked = !!stage.mask?.bounds();
  el("go").textContent = mode() === "fill" ? "Fill" : "Remove";
  el("go").disabled = running || !masked;
  el("go").hidden = running;
  el("running").hidden = !running;
  el("save").disabled = !desk.file || running;
  el("undo").disabled = running || !stage.mask?.past.length;
  el("redo").disabled = running || !stage.mask?.future.length;
  for (const id of ["grow", "clear", "mask-save"]) el(id).disabled = running || !masked;
  for (const id of ["invert", "mask-load"]) el(id).disabled = running || !desk.file;
  el("fill").hidden = mode() !== "fill";
  el("result").hidden = !layer;
  el("past").hidden = !desk.layers.length;
  el("comparebar").hidden = !stage.compare;
  el("compare").ariaPressed = String(!!stage.compare);
  el("legend").hidden = !stage.plans;
  document.body.classList.toggle("running", running);
  if (layer) renderResult(layer);
  renderHistory();
}

function renderResult(layer) {
  el("thumbs").hidden = layer.pictures.length < 2;
  el("thumbs").replaceChildren(
    ...layer.pictures.map((picture, i) => {
      const button = made("button", { type: "button", role: "radio", title: `Seed ${picture.seed}` });
      button.ariaChecked = String(i === layer.chosen);
      button.ariaLabel = `Variation ${i + 1}, seed ${picture.seed}`;
      button.append(thumbnail(layer, picture));
      button.onclick = () => {
        layer.chosen = i;
        select(layer);
      };
      return button;
    }),
  );
  el("figures").textContent = inWords(layer);
  const dense = layer.asked.preset === "dense";
  el("dense").hidden = dense || !!layer.dense;
  el("dense").disabled = !!desk.running;
  for (const option of all("#left [value=dense], #right [value=dense]")) option.disabled = !layer.dense;
}

// What was saved, as one would say it.
function inWords(layer) {
  const { tokens_run: run, tokens_full: full, total_seconds: seconds } = chosen(layer);
  if (run >= full) return `All ${full} tokens ran, in ${spoken(seconds)}.`;
  const spared = Math.round(100 * (1 - run / full));
  const first = `${run} of ${full} tokens ran at each step, ${spared} % fewer than dense, in ${spoken(seconds)}.`;
  if (!layer.dense) return first;
  const slow = layer.dense.total_seconds, saved = slow - seconds;
  const ratio = (slow / seconds).toFixed(1);
  if (saved <= 0) return `${first} Dense took ${spoken(slow)}: nothing was saved this time.`;
  return `${first} Dense took ${spoken(slow)}: ${spoken(saved)} saved, ${ratio} times as fast.`;
}

function spoken(seconds) {
  return seconds < 10 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`;
}

function renderHistory() {
  el("history").replaceChildren(
    ...desk.layers.map((layer, i) => {
      const item = made("li", { className: layer === desk.selected ? "on" : "" });
      const show = made("button", { type: "button", className: "pick" });
      show.ariaLabel = `Edit ${i + 1}: show its result`;
      const what = layer.mode === "fill" ? layer.asked.prompt || layer.asked.label || "Filled" : "Removed";
      const words = made("span", {});
      words.append(
        made("b", { textContent: what }),
        made("small", { textContent: `${layer.asked.preset} · seed ${chosen(layer).seed}` }),
      );
      show.append(thumbnail(layer, chosen(layer)), words);
      show.onclick = () => select(layer);
      const again = made("button", { type: "button", className: "icon", title: "Bring back its mask" });
      again.ariaLabel = `Bring back the mask of edit ${i + 1}`;
      again.append(icon("brush"));
      again.onclick = () => bringBack(layer);
      const gone = made("button", { type: "button", className: "icon", title: "Remove this edit" });
      gone.ariaLabel = `Remove edit ${i + 1}`;
      gone.append(icon("clear"));
      gone.disabled = again.disabled = !!desk.running;
      gone.onclick = () => drop(layer);
      item.append(show, again, gone);
      return item;
    }),
  );
}

function bringBack(layer) {
  stage.mask.remember();
  decode(layer.runs, stage.mask.bits);
  stage.refreshMask();
  maskChanged();
}

function drop(layer) {
  desk.layers.splice(desk.layers.indexOf(layer), 1);
  select(desk.layers.at(-1));
  note("Edit removed.");
}

function thumbnail(layer, picture) {
  const canvas = made("canvas", { width: 96, height: 96 });
  const [left, top, w, h] = picture.box, { bitmap, width, height } = stage.photo;
  const side = Math.max(w, h) * 1.25, x = left + w / 2 - side / 2, y = top + h / 2 - side / 2;
  const context = canvas.getContext("2d"), sx = bitmap.width / width, sy = bitmap.height / height;
  context.drawImage(bitmap, x * sx, y * sy, side * sx, side * sy, 0, 0, 96, 96);
  const scale = 96 / side;
  context.drawImage(picture.bitmap, (left - x) * scale, (top - y) * scale, w * scale, h * scale);
  return canvas;
}

function made(tag, values) {
  return Object.assign(document.createElement(tag), values);
}

function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg"), use = document.createElementNS(space, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

function fail(text) {
  el("error").textContent = text;
  el("error").hidden = !text;
}

let noteTimer;
function note(text) {
  el("note").textContent = text;
  el("note").hidden = false;
  clearTimeout(noteTimer);
  noteTimer = setTimeout(() => (el("note").hidden = true), 3500);
}

// --- the mask

function maskChanged() {
  if (stage.mask.bounds()) endCompare();
  render();
  keep();
}

function changeMask(act) {
  if (!desk.file || desk.running) return;
  stage.mask.remember();
  act(stage.mask);
  stage.refreshMask();
  maskChanged();
}

function step(direction) {
  if (!desk.file || desk.running || !stage.mask[direction]()) return;
  stage.refreshMask();
  maskChanged();
}

const growBy = (shrink) => changeMask((mask) => mask.grow((shrink ? -1 : 1) * Math.max(1, Math.round(mask.width / 300))));

async function saveMask() {
  const { width, height } = stage.photo;
  download(await stage.mask.toPNG(WHITE, width, height), `${stem()}_mask.png`);
}

async function loadMask(file) {
  try {
    const picture = await createImageBitmap(file);
    const same = Math.abs(picture.width / picture.height - stage.photo.width / stage.photo.height) < 0.02;
    if (!same) return fail("The mask has another shape than the photo.");
    changeMask((mask) => mask.load(picture));
  } catch {
    fail("The mask cannot be read.");
  }
}

// --- saving

const stem = () => desk.name.replace(/\.[^.]*$/, "") || "photo";

async function savePhoto() {
  if (!desk.file || desk.running) return;
  el("save").disabled = true;
  note("Putting the edits into the original ...");
  try {
    download(await service.save(desk.file, desk.layers.map(chosen)), `${stem()}_edited.png`);
    note("Saved at full size; all that was not painted over is as it was.");
  } catch (error) {
    fail(error.message);
  }
  render();
}

function download(blob, name) {
  const link = made("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// --- kept over a reload

let keepTimer;
function keep() {
  clearTimeout(keepTimer);
  keepTimer = setTimeout(keepNow, 400);
}

async function keepNow() {
  if (!desk.file) return;
  const bare = ({ bitmap: _, ...picture }) => picture;
  const layers = desk.layers.map((layer) => ({
    ...layer, pictures: layer.pictures.map(bare), base: layer.base.map(bare), dense: layer.dense && bare(layer.dense),
  }));
  const mask = encode(stage.mask.bits);
  const value = { file: desk.file, name: desk.name, mask, layers };
  await store.put("desk", value).catch(() => {}); // private windows keep nothing
  document.body.dataset.kept = String(Date.now());
}

async function restore() {
  const found = await store.get("desk").catch(() => null);
  if (!found) return;
  await show(found.file, found.name);
  decode(found.mask, stage.mask.bits);
  const whole = async (picture) => ({ ...picture, bitmap: await createImageBitmap(picture.png) });
  for (const layer of found.layers) {
    layer.pictures = await Promise.all(layer.pictures.map(whole));
    layer.dense = layer.dense && (await whole(layer.dense));
    desk.layers.push(layer);
  }
  stage.refreshMask();
  select(desk.layers.at(-1));
}

// --- the model and what it can do

async function meet() {
  for (;;) {
    try {
      desk.info = await service.info();
      if (desk.info.model) break;
      if (desk.info.problem) fail(desk.info.problem);
    } catch (error) {
      fail(error.message);
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  fail("");
  const { model } = desk.info;
  el("prompt-row").hidden = !model.reads_prompt;
  el("label-row").hidden = model.reads_prompt || !model.labels.length;
  el("label").replaceChildren(
    ...["", ...model.labels].map((name) => made("option", { value: name, textContent: name || "whatever fits" })),
  );
  el("fill-note").textContent = model.reads_prompt
    ? ""
    : model.labels.length
      ? "This small model reads no words, but knows a few kinds of things."
      : "This small model reads no words: it fills with what fits. Start with --model for one that does.";
  document.body.dataset.ready = "";
}

async function renderPresets() {
  const { presets } = desk.info ?? (await service.info());
  const took = JSON.parse(localStorage.getItem("took") ?? "{}");
  const picked = document.querySelector("[name=preset]:checked")?.value ?? "balanced";
  const rows = Object.entries(presets).map(([name, preset]) => {
    const label = made("label", { className: "preset" });
    const radio = made("input", { type: "radio", name: "preset", value: name, checked: name === picked });
    const words = made("span", {});
    const last = took[name] ? ` · ${spoken(took[name])} last time` : "";
    words.append(
      made("b", { textContent: name }),
      made("small", { textContent: `${preset.steps} steps, ${preset.cost}${last}` }),
    );
    label.append(radio, words);
    return label;
  });
  el("presets").replaceChildren(el("presets").querySelector("legend"), ...rows);
}

function remember(asked, seconds) {
  const took = JSON.parse(localStorage.getItem("took") ?? "{}");
  took[asked.preset] = seconds;
  localStorage.setItem("took", JSON.stringify(took));
  renderPresets();
}

// --- buttons, keys, drops

function setTool(tool) {
  stage.tool = tool;
  check(all("[data-tool]"), (button) => button.dataset.tool === tool);
  el("stage").dataset.tool = tool;
  stage.draw();
}

function check(buttons, is) {
  for (const button of buttons) {
    button.ariaChecked = String(is(button));
    button.tabIndex = is(button) ? 0 : -1; // arrows move within the group
  }
}

// The slider is logarithmic: from 1 pixel to an eighth of the photo's longer side.
const largest = () => Math.max(8, Math.max(stage.photo?.width ?? 800, stage.photo?.height ?? 800) / 8);

function setBrush(radius) {
  stage.radius = Math.min(largest(), Math.max(0.5, radius));
  el("brush-size").value = (100 * Math.log(stage.radius / 0.5)) / Math.log(largest() / 0.5);
  el("brush-out").textContent = Math.round(2 * stage.radius);
  stage.draw();
}

function toggleTokens() {
  if (!desk.selected) return;
  const on = el("tokens").ariaPressed !== "true";
  el("tokens").ariaPressed = String(on);
  stage.plans = on ? chosen(desk.selected).plans : null;
  stage.draw();
  render();
}

const toggleCompare = () => (stage.compare ? (endCompare(), render()) : compare(desk.selected?.dense ? "dense" : "before"));

function click(id, act) {
  el(id).addEventListener("click", act);
}

for (const id of ["open", "open-big"]) click(id, () => el("file").click());
click("example", example);
click("save", savePhoto);
click("help", () => el("keys").showModal());
click("theme", () => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
});
click("undo", () => step("undo"));
click("redo", () => step("redo"));
click("grow", (event) => growBy(event.shiftKey));
click("invert", () => changeMask((mask) => mask.invert()));
click("clear", () => changeMask((mask) => mask.clear()));
click("mask-load", () => el("mask-file").click());
click("mask-save", saveMask);
click("go", run);
click("cancel", () => desk.running?.abort());
click("dense", runDense);
click("compare", toggleCompare);
click("compare-end", toggleCompare);
click("tokens", toggleTokens);
click("zoom-in", () => desk.file && stage.zoom(1.25));
click("zoom-out", () => desk.file && stage.zoom(0.8));
click("zoom-fit", () => desk.file && stage.fit());
click("dice", () => (el("seed").value = Math.floor(Math.random() * 2 ** 32)));
el("file").addEventListener("change", (event) => {
  open(event.target.files[0]);
  event.target.value = "";
});
el("mask-file").addEventListener("change", (event) => {
  loadMask(event.target.files[0]);
  event.target.value = "";
});
el("brush-size").addEventListener("input", (event) =>
  setBrush(0.5 * (largest() / 0.5) ** (event.target.value / 100)),
);
el("slider").addEventListener("input", (event) => {
  stage.compare.at = event.target.value / 1000;
  stage.draw();
});
for (const id of ["left", "right"]) el(id).addEventListener("change", comparePictures);
for (const button of all("[data-tool]")) button.addEventListener("click", () => setTool(button.dataset.tool));
for (const group of ["[data-mode]", "#variations button"]) {
  for (const button of all(group)) {
    button.addEventListener("click", () => {
      check(all(group), (other) => other === button);
      render();
    });
  }
}
for (const group of all("[role=radiogroup]")) {
  group.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    const buttons = [...group.querySelectorAll("[role=radio]")];
    const at = buttons.indexOf(document.activeElement);
    if (!by || at < 0) return;
    event.preventDefault();
    event.stopPropagation();
    const label = buttons[(at + by + buttons.length) % buttons.length].ariaLabel;
    buttons[(at + by + buttons.length) % buttons.length].click();
    const again = [...group.querySelectorAll("[role=radio]")]; // which a click may have made anew
    again[(at + by + again.length) % again.length].focus();
    el("said").textContent = label ?? "";
  });
}

const TOOLS = { b: "brush", e: "eraser", r: "rectangle", l: "lasso", h: "hand" };
const KEYS = {
  "[": () => setBrush(stage.radius / 1.2),
  "]": () => setBrush(stage.radius * 1.2),
  "+": () => stage.zoom(1.25),
  "=": () => stage.zoom(1.25),
  "-": () => stage.zoom(0.8),
  0: () => stage.fit(),
  i: () => changeMask((mask) => mask.invert()),
  g: () => growBy(false),
  G: () => growBy(true),
  Delete: () => changeMask((mask) => mask.clear()),
  Backspace: () => changeMask((mask) => mask.clear()),
  c: toggleCompare,
  t: toggleTokens,
};
const CONTROL = {
  z: () => step("undo"), Z: () => step("redo"), y: () => step("redo"),
  s: savePhoto, o: () => el("file").click(), Enter: run,
};
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function onCanvas(event) {
  if (ARROWS[event.key] && !stage.compare) stage.keyMove(...ARROWS[event.key]);
  else if (ARROWS[event.key]) {
    stage.compare.at = Math.min(1, Math.max(0, stage.compare.at + 0.02 * ARROWS[event.key][0]));
    el("slider").value = stage.compare.at * 1000;
    stage.draw();
  } else if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) stage.keyPen();
  else if (event.key === "Tab" && !event.shiftKey) {
    if (!event.repeat) peek(true);
  } else return false;
  return true;
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input:not([type=range], [type=radio]), textarea, select, dialog");
  if (event.key === "Escape" && desk.running) desk.running.abort();
  if (event.key === "Escape" && stage.compare) toggleCompare();
  if (event.key === "?" && !typing) el("keys").showModal();
  const control = (event.ctrlKey || event.metaKey) && CONTROL[event.key];
  if (control && !(typing && "zZy".includes(event.key))) {
    event.preventDefault();
    control();
    return;
  }
  if (typing || !desk.file || event.ctrlKey || event.metaKey) return;
  if (event.target === el("stage") && onCanvas(event)) event.preventDefault();
  else if (event.key === " " && event.target.tagName !== "BUTTON") {
    event.preventDefault();
    stage.hand = true;
    el("stage").dataset.tool = "hand";
  } else if (TOOLS[event.key]) setTool(TOOLS[event.key]);
  else if (KEYS[event.key]) KEYS[event.key]();
});
document.addEventListener("keyup", (event) => {
  if (event.key === " ") {
    stage.hand = false;
    el("stage").dataset.tool = stage.tool;
  }
  if (event.key === "Tab" && stage.peeking) peek(false);
});
addEventListener("blur", () => {
  stage.hand = false;
  if (stage.peeking) peek(false);
});
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) open(file);
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
for (const name of ["dragleave", "drop"]) {
  addEventListener(name, () => document.body.classList.remove("dragging"));
}
addEventListener("drop", (event) => {
  event.preventDefault();
  open(event.dataTransfer.files[0]);
});
addEventListener("pagehide", keepNow);

const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
setTool("brush");
for (const group of ["[data-mode]", "#variations button"]) {
  check(all(group), (button) => button.ariaChecked === "true");
}
render();
globalThis.hilo = { stage, desk }; // to look at from the console, and for tests
restore().catch(() => store.clear().catch(() => {}));
meet();
renderPresets().catch(() => {});
