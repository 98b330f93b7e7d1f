// A mask as bits on a grid: every tool that changes it, to the pixel, and its history.
// A pixel belongs to a stroke if its centre lies within the brush's radius of the line.

export class Mask {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.bits = new Uint8Array(width * height);
    this.past = [];
    this.future = [];
  }

  // --- history: run lengths, since masks are few and simple shapes

  remember() {
    this.past.push(encode(this.bits));
    if (this.past.length > 100) this.past.shift();
    this.future = [];
  }

  undo() {
    return this.#step(this.past, this.future);
  }

  redo() {
    return this.#step(this.future, this.past);
  }

  #step(from, to) {
    if (!from.length) return false;
    to.push(encode(this.bits));
    decode(from.pop(), this.bits);
    return true;
  }

  // --- tools; each returns the box [left, top, right, bottom] that it may have changed

  stroke(x0, y0, x1, y1, radius, value) {
    const box = this.#clip(
      Math.min(x0, x1) - radius, Math.min(y0, y1) - radius,
      Math.max(x0, x1) + radius, Math.max(y0, y1) + radius,
    );
    const dx = x1 - x0, dy = y1 - y0, length = dx * dx + dy * dy, limit = radius * radius;
    for (let y = box[1]; y < box[3]; y++) {
      for (let x = box[0]; x < box[2]; x++) {
        const px = x + 0.5 - x0, py = y + 0.5 - y0;
        const t = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
        const ex = px - t * dx, ey = py - t * dy;
        if (ex * ex + ey * ey <= limit) this.bits[y * this.width + x] = value;
      }
    }
    return box;
  }

  rectangle(x0, y0, x1, y1, value) {
    const box = [
      Math.round(Math.min(x0, x1)), Math.round(Math.min(y0, y1)),
      Math.round(Math.max(x0, x1)), Math.round(Math.max(y0, y1)),
    ];
    const [left, top, right, bottom] = this.#inside(box);
    for (let y = top; y < bottom; y++) this.bits.fill(value, y * this.width + left, y * this.width + right);
    return [left, top, right, bottom];
  }

  // Even-odd, by where the polygon's edges cross the middle of each row.
  polygon(points, value) {
    const ys = points.map((p) => p[1]);
    const [, top, , bottom] = this.#clip(0, Math.min(...ys), 0, Math.max(...ys));
    for (let y = top; y < bottom; y++) {
      const middle = y + 0.5, crossings = [];
      points.forEach(([x0, y0], i) => {
        const [x1, y1] = points[(i + 1) % points.length];
        if (y0 <= middle !== y1 <= middle) crossings.push(x0 + ((middle - y0) / (y1 - y0)) * (x1 - x0));
      });
      crossings.sort((a, b) => a - b);
      for (let i = 0; i + 1 < crossings.length; i += 2) {
        const from = Math.max(0, Math.ceil(crossings[i] - 0.5));
        const to = Math.min(this.width, Math.ceil(crossings[i + 1] - 0.5));
        if (from < to) this.bits.fill(value, y * this.width + from, y * this.width + to);
      }
    }
    return [0, top, this.width, bottom];
  }

  invert() {
    for (let i = 0; i < this.bits.length; i++) this.bits[i] ^= 1;
  }

  clear() {
    this.bits.fill(0);
  }

  // By pixels in all eight directions; a negative number shrinks.
  grow(pixels) {
    const value = pixels > 0 ? 1 : 0;
    for (let n = 0; n < Math.abs(pixels); n++) {
      spread(this.bits, this.width, this.height, 1, this.width, value);
      spread(this.bits, this.height, this.width, this.width, 1, value);
    }
  }

  // --- measures and pictures

  bounds() {
    let left = this.width, top = this.height, right = 0, bottom = 0;
    for (let y = 0; y < this.height; y++) {
      const row = this.bits.subarray(y * this.width, (y + 1) * this.width);
      const first = row.indexOf(1);
      if (first < 0) continue;
      left = Math.min(left, first);
      right = Math.max(right, row.lastIndexOf(1) + 1);
      top = Math.min(top, y);
      bottom = y + 1;
    }
    return right ? [left, top, right, bottom] : null;
  }

  share() {
    let count = 0;
    for (const bit of this.bits) count += bit;
    return count / this.bits.length;
  }

  // Colours for [bit 0, bit 1] as RGBA; scaled to another size without smoothing.
  async toPNG(colours, width = this.width, height = this.height) {
    const small = this.picture(colours);
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, width, height);
    return canvas.convertToBlob({ type: "image/png" });
  }

  picture(colours) {
    const canvas = new OffscreenCanvas(this.width, this.height);
    const context = canvas.getContext("2d");
    context.putImageData(this.image([0, 0, this.width, this.height], colours), 0, 0);
    return canvas;
  }

  image([left, top, right, bottom], colours) {
    const image = new ImageData(Math.max(1, right - left), Math.max(1, bottom - top));
    const words = new Uint32Array(image.data.buffer);
    const packed = colours.map(([r, g, b, a]) => ((a << 24) | (b << 16) | (g << 8) | r) >>> 0);
    let at = 0;
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) words[at++] = packed[this.bits[y * this.width + x]];
    }
    return image;
  }

  // White is edited; in a picture with holes, as the images API has it, the holes are.
  load(source) {
    const canvas = new OffscreenCanvas(this.width, this.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingEnabled = false;
    context.drawImage(source, 0, 0, this.width, this.height);
    const { data } = context.getImageData(0, 0, this.width, this.height);
    let holes = false;
    for (let i = 3; i < data.length && !holes; i += 4) holes = data[i] === 0;
    for (let i = 0, j = 0; i < this.bits.length; i++, j += 4) {
      const luma = 0.299 * data[j] + 0.587 * data[j + 1] + 0.114 * data[j + 2];
      this.bits[i] = (holes ? data[j + 3] === 0 : luma >= 128) ? 1 : 0;
    }
  }

  #clip(left, top, right, bottom) {
    return this.#inside([Math.floor(left), Math.floor(top), Math.ceil(right), Math.ceil(bottom)]);
  }

  #inside([left, top, right, bottom]) {
    return [
      Math.max(0, left), Math.max(0, top),
      Math.min(this.width, right), Math.min(this.height, bottom),
    ];
  }
}

function spread(bits, length, lines, step, stride, value) {
  for (let line = 0; line < lines; line++) {
    let before = -1;
    for (let i = 0, at = line * stride; i < length; i++, at += step) {
      const here = bits[at];
      const next = i + 1 < length ? bits[at + step] : -1;
      if (before === value || next === value) bits[at] = value;
      before = here;
    }
  }
}

export function encode(bits) {
  const runs = [];
  let value = 0, start = 0;
  for (let i = 0; i < bits.length; i++) {
    if (bits[i] !== value) {
      runs.push(i - start);
      start = i;
      value ^= 1;
    }
  }
  runs.push(bits.length - start);
  return Uint32Array.from(runs);
}

export function decode(runs, bits) {
  let at = 0, value = 0;
  for (const run of runs) {
    bits.fill(value, at, at + run);
    at += run;
    value ^= 1;
  }
}
