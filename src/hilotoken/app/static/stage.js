// The canvas: photo, edits, mask and tokens under one zoom, and the pen that paints on it.
// World coordinates are pixels of the original photo; the mask and the shown photo are proxies.

export const EDIT = [230, 97, 20], DETAIL = [24, 119, 201], COARSE = [245, 222, 66];
const MASK = [236, 22, 138]; // a colour that few photos have
const PAINT = [[0, 0, 0, 0], [...MASK, 255]];
const ZOOM = [0.02, 32];

export class Stage {
  constructor(canvas, hooks) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.beneath = new OffscreenCanvas(1, 1);
    this.hooks = hooks; // painting(), painted(), moved(), said(text)
    this.photo = null;
    this.mask = null;
    this.tool = "brush";
    this.radius = 24;
    this.erasing = false; // the pen's other end, or Alt
    this.scale = 1;
    this.x = this.y = 0;
    this.pointers = new Map();
    this.cursor = null;
    this.shape = null; // points of a rectangle or lasso under way
    this.layers = [];
    this.preview = null; // { bitmap, box } while an edit runs
    this.compare = null; // { left, right, at } where two pictures are compared
    this.plans = null; // tokens to draw, of each region
    this.showMask = true;
    this.hand = false;
    this.#listen();
    new ResizeObserver(() => this.#resize()).observe(canvas);
  }

  // --- what is shown

  setPhoto(photo, mask) {
    this.photo = photo; // { bitmap, width, height }
    this.mask = mask;
    this.overlay = new OffscreenCanvas(mask.width, mask.height);
    this.compare = this.plans = this.preview = null;
    this.refreshMask();
    this.compose();
    this.fit();
  }

  refreshMask([left, top, right, bottom] = [0, 0, this.mask.width, this.mask.height]) {
    if (right <= left || bottom <= top) return;
    const image = this.mask.image([left, top, right, bottom], PAINT);
    this.overlay.getContext("2d").putImageData(image, left, top);
    this.draw(false);
  }

  // The photo with some edits, for showing; `dense` shows a layer's dense picture instead.
  composed(layers, dense = null) {
    const { bitmap, width, height } = this.photo;
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0);
    context.scale(bitmap.width / width, bitmap.height / height);
    for (const layer of layers) {
      const picture = layer === dense ? layer.dense : layer.pictures[layer.chosen];
      const [left, top, w, h] = picture.box;
      context.drawImage(picture.bitmap, left, top, w, h);
    }
    return canvas;
  }

  compose() {
    this.now = this.composed(this.layers);
    this.draw();
  }

  // Scaling a large photo is what takes long: while one paints, the picture beneath stays.
  draw(beneath = true) {
    this.stale ||= beneath;
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      if (this.photo) this.#paint();
    });
  }

  #paint() {
    const { context, photo } = this;
    if (this.stale) this.#paintBeneath();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (this.beneath.width) context.drawImage(this.beneath, 0, 0);
    this.#place(context);
    if (this.compare) return this.#drawCompare();
    if (this.showMask) {
      context.imageSmoothingEnabled = false;
      context.globalAlpha = this.preview ? 0.12 : 0.55;
      context.drawImage(this.overlay, 0, 0, photo.width, photo.height);
      context.globalAlpha = 1;
    }
    if (this.shape) this.#drawShape();
    if (this.cursor && !this.#panning()) this.#drawCursor();
  }

  #place(context) {
    const ratio = devicePixelRatio;
    context.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.x, ratio * this.y);
  }

  #paintBeneath() {
    const { photo, beneath } = this;
    Object.assign(beneath, { width: this.canvas.width, height: this.canvas.height });
    const context = beneath.getContext("2d");
    this.#place(context);
    context.imageSmoothingEnabled = this.scale * (photo.width / photo.bitmap.width) < 3;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.compare?.right ?? this.now, 0, 0, photo.width, photo.height);
    if (this.preview) {
      const [left, top, w, h] = this.preview.box;
      context.drawImage(this.preview.bitmap, left, top, w, h);
    }
    for (const plan of this.plans ?? []) this.#drawPlan(context, plan);
    this.stale = false;
  }

  #drawCompare() {
    const { context, photo, compare } = this;
    const at = compare.at * photo.width;
    context.save();
    context.beginPath();
    context.rect(0, 0, at, photo.height);
    context.clip();
    context.drawImage(compare.left, 0, 0, photo.width, photo.height);
    context.restore();
    const one = 1 / this.scale;
    context.lineWidth = 2 * one;
    context.strokeStyle = "#fff";
    context.shadowColor = "rgb(0 0 0 / 60%)";
    context.shadowBlur = 6;
    context.beginPath();
    context.moveTo(at, 0);
    context.lineTo(at, photo.height);
    context.stroke();
    const middle = photo.height / 2;
    context.fillStyle = "#fff";
    context.beginPath();
    context.arc(at, middle, 15 * one, 0, 7);
    context.fill();
    context.shadowBlur = 0;
    context.fillStyle = "#333";
    for (const side of [-1, 1]) {
      context.beginPath();
      context.moveTo(at + side * 9 * one, middle);
      context.lineTo(at + side * 4 * one, middle - 5 * one);
      context.lineTo(at + side * 4 * one, middle + 5 * one);
      context.fill();
    }
  }

  // Tokens that run: orange where the edit is, blue for detail, yellow dots for the coarse copy.
  #drawPlan(context, plan) {
    const [left, top, right, bottom] = plan.region, [rows, columns] = plan.grid;
    const w = (right - left) / columns, h = (bottom - top) / rows;
    const run = new Map([...plan.edit.map((i) => [i, EDIT]), ...plan.detail.map((i) => [i, DETAIL])]);
    for (let i = 0; i < rows * columns; i++) {
      const colour = run.get(i);
      context.fillStyle = colour ? `rgb(${colour.join(" ")} / 50%)` : "rgb(10 12 16 / 62%)";
      context.fillRect(left + (i % columns) * w, top + Math.floor(i / columns) * h, w * 0.96, h * 0.96);
    }
    const across = Math.ceil(columns / (plan.stride || 1));
    context.fillStyle = `rgb(${COARSE.join(" ")})`;
    for (const cell of plan.coarse) {
      const x = ((cell % across) + 0.5) * plan.stride, y = (Math.floor(cell / across) + 0.5) * plan.stride;
      context.beginPath();
      context.arc(left + Math.min(x, columns - 0.5) * w, top + Math.min(y, rows - 0.5) * h, w * 0.4, 0, 7);
      context.fill();
    }
  }

  #drawShape() {
    const { context, shape } = this;
    context.beginPath();
    if (this.tool === "rectangle") {
      const [[x0, y0], [x1, y1]] = [shape[0], shape.at(-1)];
      context.rect(x0, y0, x1 - x0, y1 - y0);
    } else {
      shape.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.closePath();
    }
    context.fillStyle = `rgb(${MASK.join(" ")} / 30%)`;
    context.fill("evenodd");
    this.#outline();
  }

  #drawCursor() {
    const { context, cursor } = this, round = ["brush", "eraser"].includes(this.tool);
    context.beginPath();
    if (round) context.arc(cursor.x, cursor.y, this.radius, 0, 7);
    const arm = 6 / this.scale;
    if (!round || cursor.keys) {
      context.moveTo(cursor.x - arm, cursor.y);
      context.lineTo(cursor.x + arm, cursor.y);
      context.moveTo(cursor.x, cursor.y - arm);
      context.lineTo(cursor.x, cursor.y + arm);
    }
    this.#outline();
  }

  // Seen on light and dark alike.
  #outline() {
    for (const [colour, width] of [["rgb(0 0 0 / 65%)", 3], ["#fff", 1.4]]) {
      this.context.strokeStyle = colour;
      this.context.lineWidth = width / this.scale;
      this.context.stroke();
    }
  }

  // --- zoom and pan

  fit() {
    const { clientWidth: w, clientHeight: h } = this.canvas, margin = Math.min(28, w * 0.04);
    this.scale = Math.min((w - 2 * margin) / this.photo.width, (h - 2 * margin) / this.photo.height, 8);
    this.x = (w - this.photo.width * this.scale) / 2;
    this.y = (h - this.photo.height * this.scale) / 2;
    this.#moved();
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const scale = Math.min(ZOOM[1], Math.max(ZOOM[0], this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.#moved();
  }

  #moved() {
    this.hooks.moved?.(this.scale);
    this.draw();
  }

  #resize() {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    if (!w || !h) return;
    this.canvas.width = Math.round(w * devicePixelRatio);
    this.canvas.height = Math.round(h * devicePixelRatio);
    if (this.photo) this.fit();
  }

  world(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      (event.clientX - box.left - this.x) / this.scale,
      (event.clientY - box.top - this.y) / this.scale,
    ];
  }

  // --- pointers: mouse, pen and fingers

  #panning() {
    return this.hand || this.tool === "hand";
  }

  #listen() {
    const on = (name, act, options) => this.canvas.addEventListener(name, act, options);
    on("pointerdown", (event) => this.#down(event));
    on("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) on(name, (event) => this.#up(event));
    on("pointerleave", () => {
      if (!this.cursor?.keys) this.cursor = null;
      this.draw(false);
    });
    on("contextmenu", (event) => event.preventDefault());
    on("wheel", (event) => this.#wheel(event), { passive: false });
  }

  #wheel(event) {
    event.preventDefault();
    if (!this.photo) return;
    const box = this.canvas.getBoundingClientRect();
    const unit = event.deltaMode === 1 ? 16 : 1;
    this.zoom(Math.exp(-event.deltaY * unit * 0.0016), event.clientX - box.left, event.clientY - box.top);
  }

  #down(event) {
    if (!this.photo) return;
    this.canvas.setPointerCapture?.(event.pointerId);
    this.pointers.set(event.pointerId, event);
    if (this.pointers.size === 2) return this.#abandon(); // two fingers move the photo
    if (this.pointers.size > 2) return;
    const at = this.world(event);
    if (this.compare) this.action = "compare";
    else if (this.#panning() || event.button === 1) this.action = "pan";
    else this.action = "paint";
    if (this.action === "compare") this.#slide(at);
    if (this.action === "paint" && this.hooks.painting()) this.#begin(at, event);
  }

  #begin(at, event) {
    this.value = this.tool === "eraser" || event.altKey || event.button === 5 || event.buttons === 32 ? 0 : 1;
    this.mask.remember();
    this.painting = true;
    if (this.tool === "rectangle" || this.tool === "lasso") this.shape = [at];
    else this.#line(at, at);
    this.last = at;
  }

  #move(event) {
    if (!this.photo) return;
    const before = this.pointers.get(event.pointerId);
    const at = this.world(event);
    this.cursor = event.pointerType === "touch" ? null : { x: at[0], y: at[1] };
    if (before && this.pointers.size === 2) this.#pinch(before, event);
    else if (before && this.action === "pan") {
      this.x += event.clientX - before.clientX;
      this.y += event.clientY - before.clientY;
      this.#moved();
    } else if (before && this.action === "compare") this.#slide(at);
    else if (before && this.painting) this.#follow(event);
    if (before) this.pointers.set(event.pointerId, event);
    this.draw(false);
  }

  #follow(event) {
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const one of passed.length ? passed : [event]) {
      const at = this.world(one);
      if (this.shape) this.shape.push(at);
      else this.#line(this.last, at);
      this.last = at;
    }
  }

  #up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (this.painting && event.type === "pointercancel") return this.#abandon();
    if (this.painting) this.#finish();
    if (!this.pointers.size) this.action = null;
  }

  #finish() {
    if (this.shape) {
      const points = this.shape.map((at) => this.#onMask(at));
      const last = points.at(-1);
      if (this.tool === "rectangle") this.mask.rectangle(...points[0], ...last, this.value);
      else if (points.length > 2) this.mask.polygon(points, this.value);
      this.refreshMask();
    }
    this.shape = null;
    this.painting = false;
    this.hooks.painted();
  }

  // A second finger means that the first did not paint.
  #abandon() {
    if (!this.painting) return;
    this.painting = false;
    this.shape = null;
    this.mask.undo();
    this.mask.future = [];
    this.refreshMask();
  }

  #pinch(before, event) {
    const other = [...this.pointers.values()].find((one) => one.pointerId !== event.pointerId);
    const box = this.canvas.getBoundingClientRect();
    const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
    const middle = (one) => [
      (one.clientX + other.clientX) / 2 - box.left, (one.clientY + other.clientY) / 2 - box.top,
    ];
    const [x0, y0] = middle(before), [x1, y1] = middle(event);
    this.x += x1 - x0;
    this.y += y1 - y0;
    this.zoom(apart(event) / apart(before), x1, y1);
  }

  #onMask([x, y]) {
    return [(x * this.mask.width) / this.photo.width, (y * this.mask.height) / this.photo.height];
  }

  #line(from, to) {
    const scale = this.mask.width / this.photo.width;
    const box = this.mask.stroke(
      ...this.#onMask(from), ...this.#onMask(to), Math.max(0.5, this.radius * scale), this.value,
    );
    this.refreshMask(box);
  }

  #slide([x]) {
    this.compare.at = Math.min(1, Math.max(0, x / this.photo.width));
    this.hooks.slid?.(this.compare.at);
    this.draw(false);
  }

  // --- keys: a cursor that arrows move and that paints while the pen is down

  keyMove(dx, dy) {
    const middle = { x: this.photo.width / 2, y: this.photo.height / 2 };
    const from = this.cursor ?? middle, step = Math.max(1, this.radius / 2);
    const x = Math.min(this.photo.width, Math.max(0, from.x + dx * step));
    const y = Math.min(this.photo.height, Math.max(0, from.y + dy * step));
    this.cursor = { x, y, keys: true };
    if (this.penDown) this.#line([from.x, from.y], [x, y]);
    this.draw();
    this.hooks.said(`${Math.round(x)}, ${Math.round(y)}${this.penDown ? ", painting" : ""}`);
  }

  keyPen() {
    this.penDown = !this.penDown;
    if (!this.penDown) return this.hooks.painted();
    if (!this.hooks.painting()) return (this.penDown = false);
    this.cursor ??= { x: this.photo.width / 2, y: this.photo.height / 2 };
    this.cursor.keys = true;
    this.value = this.tool === "eraser" ? 0 : 1;
    this.mask.remember();
    this.#line([this.cursor.x, this.cursor.y], [this.cursor.x, this.cursor.y]);
    this.hooks.said("pen down: arrows paint, Enter lifts it");
  }
}
