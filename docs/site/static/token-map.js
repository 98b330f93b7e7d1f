/* The page of the token map: a photo, a brush, the options of HiLo, and at once what they cost. */

"use strict";

(() => {
  const SIDE = 16;
  const LONGEST = 1024;
  const COLOURS = { edit: [213, 94, 0], detail: [0, 114, 178], coarse: "rgb(240 228 66)" };

  const root = document.getElementById("token-map");
  const canvas = root.querySelector("canvas");
  const paint = canvas.getContext("2d");
  const field = (name) => root.querySelector(`[name=${name}]`);
  const state = { photo: null, rgba: null, masked: null, plan: null };

  for (const name of TokenPlan.SCORES) field("score").append(new Option(name));
  for (const name of Object.keys(TokenMapExample.presets)) {
    const button = Object.assign(document.createElement("button"), { type: "button", value: name, textContent: name });
    root.querySelector(".tm-presets").append(button);
  }

  function options() {
    const number = (name) => Number(field(name).value);
    const energy = field("byEnergy").checked;
    return {
      dilate: number("dilate"),
      detail: energy ? null : number("detail"),
      energy: energy ? number("energy") : null,
      score: field("score").value,
      context: field("context").value,
      cell: number("cell"),
      coarse: number("coarse"),
      cells: field("cells").value,
      bucket: number("bucket"),
    };
  }

  /** Take a picture as the photo, of at most LONGEST pixels a side, in whole tokens. */
  function open(picture) {
    const scale = Math.min(1, LONGEST / Math.max(picture.width, picture.height));
    const whole = (n) => Math.max(SIDE, Math.round((n * scale) / SIDE) * SIDE);
    [canvas.width, canvas.height] = [whole(picture.width), whole(picture.height)];
    const still = document.createElement("canvas");
    [still.width, still.height] = [canvas.width, canvas.height];
    const context = still.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    state.photo = still;
    state.rgba = context.getImageData(0, 0, canvas.width, canvas.height).data;
    state.masked = new Uint8Array(canvas.width * canvas.height);
  }

  function picture(source) {
    return new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => resolve(image);
      image.onerror = () => reject(new Error("not a picture that this browser reads"));
      image.src = source;
    });
  }

  async function example() {
    open(await picture(TokenMapExample.photo));
    const mask = document.createElement("canvas");
    [mask.width, mask.height] = [canvas.width, canvas.height];
    const context = mask.getContext("2d");
    context.drawImage(await picture(TokenMapExample.mask), 0, 0, mask.width, mask.height);
    const bytes = context.getImageData(0, 0, mask.width, mask.height).data;
    state.masked = state.masked.map((_, i) => (bytes[4 * i] >= 128 ? 1 : 0));
    show();
  }

  function stroke(x, y) {
    const radius = Number(field("brush").value) / 2;
    const value = field("erase").checked ? 0 : 1;
    for (let j = Math.max(0, Math.ceil(y - radius)); j < Math.min(canvas.height, y + radius); j++)
      for (let i = Math.max(0, Math.ceil(x - radius)); i < Math.min(canvas.width, x + radius); i++)
        if ((i - x) ** 2 + (j - y) ** 2 <= radius ** 2) state.masked[j * canvas.width + i] = value;
  }

  function draw() {
    const { plan, photo, masked } = state;
    const [, w] = plan.grid;
    paint.drawImage(photo, 0, 0);
    const shown = paint.getImageData(0, 0, canvas.width, canvas.height);
    const runs = new Uint8Array(plan.grid[0] * w);
    for (const n of plan.keep) runs[n] = 1;
    for (let i = 0; i < masked.length; i++) {
      const n = Math.floor(i / canvas.width / SIDE) * w + Math.floor((i % canvas.width) / SIDE);
      const tint = plan.edit[n] ? COLOURS.edit : COLOURS.detail;
      const grey = (shown.data[4 * i] + shown.data[4 * i + 1] + shown.data[4 * i + 2]) / 3;
      const share = runs[n] ? (masked[i] ? 0.75 : 0.45) : 0;
      for (let c = 0; c < 3; c++)
        shown.data[4 * i + c] = runs[n] ? grey * (1 - share) + tint[c] * share : grey * 0.45;
    }
    paint.putImageData(shown, 0, 0);
    paint.fillStyle = COLOURS.coarse;
    const across = Math.ceil(w / (plan.stride || 1));
    for (const m of plan.cells) {
      const middle = (at, limit) => ((at * plan.stride + Math.min((at + 1) * plan.stride, limit)) * SIDE) / 2;
      paint.beginPath();
      paint.arc(middle(m % across, w), middle(Math.floor(m / across), plan.grid[0]), 5, 0, 7);
      paint.fill();
    }
  }

  function report(chosen) {
    const { plan } = state;
    const [steps, refresh] = ["steps", "refresh"].map((name) => Number(field(name).value));
    const full = plan.grid[0] * plan.grid[1];
    const text = field("text").checked;
    const dense = steps * TokenPlan.call(full);
    const cost = TokenPlan.flops(plan, steps, refresh, text, chosen.context === "sampled");
    const tera = (n) => (n / 1e12).toLocaleString("en", { maximumFractionDigits: 0 });
    const { edit, detail, coarse } = plan.counts;
    const nothing = edit ? "" : "<p>Paint over what is to change: without a mask there is nothing to edit.</p>";
    root.querySelector(".tm-result").innerHTML =
      `${nothing}<b>${plan.run} of ${full}</b> tokens run (${Math.round((100 * plan.run) / full)} %): ` +
      `${edit} edit, ${detail} detail, ${coarse} coarse` +
      (refresh && refresh < steps ? `, at ${refresh} of ${steps} steps; ${edit} between.` : ", at every step.") +
      `<br><b>${(dense / cost).toFixed(2)} times fewer FLOPs</b>: ${tera(cost)} of ${tera(dense)} TFLOPs, ` +
      `counted for FLUX.1 Fill, ${steps} steps, 512 tokens of text.`;
    root.querySelector(".tm-code").textContent = code(chosen, refresh, text);
  }

  /** The same choice in Python. */
  function code(chosen, refresh, text) {
    const sampled = chosen.context === "sampled";
    const said = [
      [chosen.dilate !== 2, `dilate=${chosen.dilate}`],
      [chosen.energy == null && chosen.detail !== 0.1, `detail=${chosen.detail}`],
      [chosen.energy != null, `energy=${chosen.energy}`],
      [chosen.score !== "laplacian", `score="${chosen.score}"`],
      [sampled, 'context="sampled"'],
      [sampled && chosen.cell !== 2, `cell=${chosen.cell}`],
      [chosen.coarse !== (sampled ? 0 : 4), `coarse=${chosen.coarse}`],
      [chosen.coarse && chosen.cells !== "open", `coarse_cells="${chosen.cells}"`],
      [refresh, text ? `refresh=Refresh(${refresh}, text=True)` : `refresh=${refresh}`],
      [chosen.bucket !== 64, `bucket=${chosen.bucket}`],
    ];
    const given = said.filter(([differs]) => differs).map(([, words]) => words);
    return `fast = hilotoken.compress(pipe, HiLo(${given.join(", ")}))`;
  }

  function show() {
    if (!state.photo) return;
    const chosen = options();
    field("energy").disabled = chosen.energy == null;
    field("detail").disabled = chosen.energy != null;
    field("cell").disabled = chosen.context !== "sampled";
    field("cells").disabled = !chosen.coarse;
    field("text").disabled = !Number(field("refresh").value);
    for (const range of root.querySelectorAll(".tm-options input[type=range]"))
      range.parentElement.querySelector("output").textContent = range.value;
    state.plan = TokenPlan.plan(state.rgba, state.masked, canvas.width, canvas.height, chosen, SIDE);
    draw();
    report(chosen);
  }

  let asked = false;
  function soon() {
    if (!asked) requestAnimationFrame(() => ((asked = false), show()));
    asked = true;
  }

  root.querySelector(".tm-options").addEventListener("input", soon);
  root.querySelector(".tm-presets").addEventListener("click", (event) => {
    for (const [name, value] of Object.entries(TokenMapExample.presets[event.target.value] ?? {})) {
      const one = field(name);
      if (one.type === "checkbox") one.checked = value;
      else one.value = value;
    }
    soon();
  });
  field("clear").addEventListener("click", () => (state.masked.fill(0), soon()));
  field("example").addEventListener("click", example);
  field("file").addEventListener("change", async ({ target }) => {
    if (!target.files.length) return;
    const address = URL.createObjectURL(target.files[0]);
    try {
      open(await picture(address));
      show();
    } catch (error) {
      root.querySelector(".tm-result").textContent = error.message;
    } finally {
      URL.revokeObjectURL(address);
    }
  });

  function at(event) {
    const box = canvas.getBoundingClientRect();
    const scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }
  let last = null;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = at(event);
    stroke(...last);
    soon();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const [here, step] = [at(event), Number(field("brush").value) / 4];
    const length = Math.hypot(here[0] - last[0], here[1] - last[1]);
    for (let d = step; d < length + step; d += step) {
      const share = Math.min(1, d / length);
      stroke(...here.map((end, i) => last[i] + (end - last[i]) * share));
    }
    last = here;
    soon();
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => (last = null));

  globalThis.tokenMap = { state, options, example, show };
  example().then(() => (root.dataset.ready = ""));
})();
