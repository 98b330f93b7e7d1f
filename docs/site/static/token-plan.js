/* The token plan of `hilotoken.HiLo`, in a browser: tests/test_token_map.py holds it to Python's.

   Names as there: N grid tokens in row-major order, K native tokens that run, M coarse ones. Where Python
   rounds to float32, so does this, by Math.fround. */

"use strict";

const TokenPlan = (() => {
  const f = Math.fround;
  const LUMA = [0.2126, 0.7152, 0.0722].map(f);

  /** Rec. 709 luma in [0, 1] of the RGBA bytes of a canvas. */
  function luma(rgba) {
    const found = new Float32Array(rgba.length / 4);
    for (let i = 0; i < found.length; i++) {
      const [r, g, b] = [0, 1, 2].map((c) => f(f(rgba[4 * i + c] / 255) * LUMA[c]));
      found[i] = f(f(r + g) + b);
    }
    return found;
  }

  /** Sums over cells of `side` x `side` pixels of what `value(x, y)` says of each. */
  function pooled(width, height, side, value) {
    const w = width / side;
    const sums = new Float64Array(w * (height / side));
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++)
        sums[Math.floor(y / side) * w + Math.floor(x / side)] += value(x, y);
    return sums;
  }

  /* Each is high-frequency energy a token: see hilotoken/scores.py for sources. */
  const SCORES = {
    laplacian(x, width, height, side) {
      const at = (i, j) => x[Math.min(height - 1, Math.max(0, j)) * width + Math.min(width - 1, Math.max(0, i))];
      return pooled(width, height, side, (i, j) => {
        const here = at(i, j);
        const response =
          at(i + 1, j) - here + (at(i - 1, j) - here) + (at(i, j + 1) - here) + (at(i, j - 1) - here);
        return response * response;
      });
    },
    sobel(x, width, height, side) {
      const at = (i, j) => x[Math.min(height - 1, Math.max(0, j)) * width + Math.min(width - 1, Math.max(0, i))];
      return pooled(width, height, side, (i, j) => {
        const across = (k) => at(i + 1, j + k) - at(i - 1, j + k);
        const down = (k) => at(i + k, j + 1) - at(i + k, j - 1);
        const gx = across(-1) + 2 * across(0) + across(1);
        const gy = down(-1) + 2 * down(0) + down(1);
        return gx * gx + gy * gy;
      });
    },
    frequency(x, width, height, side) {
      const sums = pooled(width, height, side, (i, j) => {
        const here = x[j * width + i];
        const row = i % side ? here - x[j * width + i - 1] : 0;
        const column = j % side ? here - x[(j - 1) * width + i] : 0;
        return row * row + column * column;
      });
      return sums.map(Math.sqrt);
    },
    variance(x, width, height, side) {
      const square = pooled(width, height, side, (i, j) => x[j * width + i] ** 2);
      const mean = pooled(width, height, side, (i, j) => x[j * width + i]);
      const count = side * side;
      return square.map((sum, n) => Math.max(0, sum / count - (mean[n] / count) ** 2));
    },
  };

  /** Whether any pixel of a token's cell is masked; `masked` holds a byte a pixel. */
  function touch(masked, width, height, side) {
    return pooled(width, height, side, (x, y) => (masked[y * width + x] ? 1 : 0)).map((n) => (n ? 1 : 0));
  }

  /** Touched tokens grown by `radius` in all directions, diagonals included. */
  function dilate(touched, [h, w], radius) {
    const grown = new Uint8Array(h * w);
    for (let n = 0; n < h * w; n++) {
      if (!touched[n]) continue;
      const [row, column] = [Math.floor(n / w), n % w];
      for (let r = Math.max(0, row - radius); r <= Math.min(h - 1, row + radius); r++)
        for (let c = Math.max(0, column - radius); c <= Math.min(w - 1, column + radius); c++) grown[r * w + c] = 1;
    }
    return grown;
  }

  function cellsOf([h, w], side) {
    const across = Math.ceil(w / side);
    return Int32Array.from({ length: h * w }, (_, n) => Math.floor(n / w / side) * across + Math.floor((n % w) / side));
  }

  /** As Python rounds: a half goes to the even neighbour. */
  function rounded(x) {
    const low = Math.floor(x);
    if (x - low !== 0.5) return Math.round(x);
    return low % 2 ? low + 1 : low;
  }

  function detailCount(score, edit, { detail, energy }) {
    const outside = edit.reduce((n, one) => n + !one, 0);
    if (energy == null) return Math.min(outside, rounded(detail * score.length));
    const falling = Array.from(score)
      .filter((_, n) => !edit[n])
      .sort((a, b) => b - a);
    let total = 0;
    for (const one of falling) total += one;
    if (!outside || total <= 0) return 0;
    let [sum, short] = [0, 0];
    for (const one of falling) {
      sum += one;
      if (sum < energy * total * (1 - 1e-12)) short++;
    }
    return Math.min(outside, short + (energy > 0 ? 1 : 0));
  }

  /** One token of each cell that has some open ones. Which one is a draw of its own: Python's draws others. */
  function sample(certain, grid, { context, cell }) {
    const drawn = new Uint8Array(certain.length);
    if (context !== "sampled") return drawn;
    const best = new Map();
    cellsOf(grid, cell).forEach((of, n) => {
      const draw = Math.imul(n + 1, 2654435761) >>> 0;
      if (!certain[n] && !(best.get(of)?.draw > draw)) best.set(of, { draw, n });
    });
    for (const { n } of best.values()) drawn[n] = 1;
    return drawn;
  }

  function coarseCells(runs, touched, grid, { coarse, cells }) {
    if (!coarse) return [];
    const cellOf = cellsOf(grid, coarse);
    const wanted = new Uint8Array(cellOf[cellOf.length - 1] + 1).fill(cells === "all" ? 1 : 0);
    if (cells !== "all") runs.forEach((one, n) => one || (wanted[cellOf[n]] = 1));
    if (cells === "clear") touched.forEach((one, n) => one && (wanted[cellOf[n]] = 0));
    return [...wanted.keys()].filter((m) => wanted[m]);
  }

  /** Plan from a score for every token and the tokens that the mask touches.

      options: dilate, detail or energy, context, cell, coarse, cells, bucket, as `HiLo` names them
      (`cells` is `coarse_cells`). Gives keep (indices of native tokens), edit (bytes), cells, counts. */
  function select(score, touched, grid, options) {
    const N = grid[0] * grid[1];
    const edit = dilate(touched, grid, options.dilate);
    const rank = [...Array(N).keys()].sort(
      (a, b) => (edit[b] ? -1 : score[b]) - (edit[a] ? -1 : score[a]) || a - b,
    );
    const certain = edit.slice();
    for (const n of rank.slice(0, detailCount(score, edit, options))) certain[n] = 1;
    let runs, cells, length;
    for (;;) {
      const sampled = sample(certain, grid, options);
      runs = certain.map((one, n) => one | sampled[n]);
      cells = coarseCells(runs, touched, grid, options);
      length = runs.reduce((n, one) => n + one, 0) + cells.length;
      const missing = (options.bucket - (length % options.bucket)) % options.bucket;
      const spare = rank.filter((n) => !certain[n]).slice(0, missing);
      if (!spare.length) break;
      for (const n of spare) certain[n] = 1;
    }
    if (length >= N) [runs, cells] = [runs.fill(1), []];
    const keep = [...runs.keys()].filter((n) => runs[n]);
    const edited = edit.reduce((n, one) => n + one, 0);
    const counts = { edit: edited, detail: keep.length - edited, coarse: cells.length };
    return { grid, edit, keep, cells, stride: options.coarse, counts, run: keep.length + cells.length };
  }

  /** Plan from the RGBA bytes of a photo and its mask, a byte a pixel; sides are multiples of `side`. */
  function plan(rgba, masked, width, height, options, side = 16) {
    const score = SCORES[options.score](luma(rgba), width, height, side);
    return select(score, touch(masked, width, height, side), [height / side, width / side], options);
  }

  // FLUX.1 Fill: 19 double and 38 single blocks, 24 heads of 128, 512 tokens of text.
  const FLUX = { double: 19, single: 38, width: 3072, text: 512, heads: 24, channels: 384 + 64, textChannels: 4096, pooled: 768 };

  /** FLOPs of one call: image tokens that run, keys kept from another call, whether text runs. */
  function call(run, kept = 0, text = true, weighted = false) {
    const { double, single, width: D, heads, channels, textChannels, pooled } = FLUX;
    const L = text ? FLUX.text : 0;
    const tokens = run + L;
    const attention = 4 * tokens * (tokens + kept) * (D + 8 * heads * (weighted ? 1 : 0));
    const block = 24 * tokens * D * D + attention;
    const modulated = double * 12 * D * D + single * 3 * D * D + 2 * D * D;
    const embedded = (256 * D + D * D) * 2 + pooled * D + D * D;
    return (double + single) * block + 2 * (modulated + (run * channels + L * textChannels) * D + embedded);
  }

  /** FLOPs of an edit by a plan: `refresh` steps of `steps` compute context, 0 for all; `text` rests between. */
  function flops(found, steps, refresh = 0, text = false, weighted = false) {
    const whole = call(found.run, 0, true, weighted);
    if (!refresh || refresh >= steps) return steps * whole;
    const kept = found.run - found.counts.edit + (text ? FLUX.text : 0);
    return refresh * whole + (steps - refresh) * call(found.counts.edit, kept, !text, weighted);
  }

  return { plan, select, flops, call, SCORES: Object.keys(SCORES) };
})();
