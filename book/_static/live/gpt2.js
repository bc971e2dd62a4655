// A small GPT-2 in plain JavaScript: forward pass, hand-written backward pass, SGD and Adam, for one sentence and its next word.
// The same numbers as the book's engine, which a test compares. Runs in a worker of the page "Train it here".
"use strict";

// ---- weights: a safetensors file, float16 or float32, as float32
function readSafetensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const tensors = {};
  delete header.__metadata__;
  for (const [name, {dtype, shape, data_offsets: [start, end]}] of Object.entries(header)) {
    const bytes = buffer.slice(8 + length + start, 8 + length + end);
    tensors[name.replace(/^transformer\./, "")] = {shape, data: dtype === "F16" ? fromHalf(new Uint16Array(bytes)) : new Float32Array(bytes)};
  }
  return tensors;
}

function fromHalf(halves) {
  return Float32Array.from(halves, h => {
    const sign = h & 0x8000 ? -1 : 1, exponent = (h >> 10) & 31, fraction = h & 1023;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * fraction / 1024);
  });
}

// ---- one sentence as a function of the weights
class Problem {
  // tensors: as from readSafetensors; ids: the prompt's tokens (L); correct, competitor: ids of the two words
  constructor(tensors, heads, ids, correct, competitor) {
    Object.assign(this, {heads, ids, c: correct, k: competitor});
    this.names = Object.keys(tensors);
    this.start = Object.fromEntries(this.names.map(name => [name, tensors[name].data]));
    this.weights = {}; this.gradients = {};
    for (const name of this.names) { this.weights[name] = Float32Array.from(this.start[name]); this.gradients[name] = new Float32Array(this.start[name].length); }
    [this.V, this.d] = tensors["wte.weight"].shape;
    this.layers = this.names.filter(name => name.endsWith("ln_1.weight")).length;
  }

  reset() { for (const name of this.names) this.weights[name].set(this.start[name]); this.moments = null; }

  // Logits (V) after the prompt; keeps what the backward pass needs.
  forward() {
    const {weights: w, ids, d, V, heads} = this, L = ids.length, size = d / heads;
    let x = new Float64Array(L * d);
    for (let t = 0; t < L; t++) for (let i = 0; i < d; i++) x[t * d + i] = w["wte.weight"][ids[t] * d + i] + w["wpe.weight"][t * d + i];
    const kept = this.kept = [];
    for (let layer = 0; layer < this.layers; layer++) {
      const at = `h.${layer}.`, k = {};
      k.ln1 = normalise(x, w[at + "ln_1.weight"], w[at + "ln_1.bias"], L, d);
      const qkv = k.qkv = linear(k.ln1.y, w[at + "attn.c_attn.weight"], w[at + "attn.c_attn.bias"], L, d, 3 * d);
      const mixed = k.mixed = new Float64Array(L * d), p = k.p = new Float64Array(heads * L * L);
      for (let h = 0; h < heads; h++) for (let t = 0; t < L; t++) {
        const row = p.subarray((h * L + t) * L, (h * L + t + 1) * L);
        let most = -Infinity, sum = 0;
        for (let s = 0; s <= t; s++) {  // causal: a token sees itself and those before it
          let score = 0;
          for (let i = 0; i < size; i++) score += qkv[t * 3 * d + h * size + i] * qkv[s * 3 * d + d + h * size + i];
          row[s] = score / Math.sqrt(size); most = Math.max(most, row[s]);
        }
        for (let s = 0; s <= t; s++) sum += row[s] = Math.exp(row[s] - most);
        for (let s = 0; s <= t; s++) {
          row[s] /= sum;
          for (let i = 0; i < size; i++) mixed[t * d + h * size + i] += row[s] * qkv[s * 3 * d + 2 * d + h * size + i];
        }
      }
      x = add(x, linear(mixed, w[at + "attn.c_proj.weight"], w[at + "attn.c_proj.bias"], L, d, d));
      k.ln2 = normalise(x, w[at + "ln_2.weight"], w[at + "ln_2.bias"], L, d);
      k.inner = linear(k.ln2.y, w[at + "mlp.c_fc.weight"], w[at + "mlp.c_fc.bias"], L, d, 4 * d);
      k.outer = k.inner.map(gelu);
      x = add(x, linear(k.outer, w[at + "mlp.c_proj.weight"], w[at + "mlp.c_proj.bias"], L, 4 * d, d));
      kept.push(k);
    }
    this.last = normalise(x.subarray((L - 1) * d), w["ln_f.weight"], w["ln_f.bias"], 1, d);  // only the last position is read
    const z = new Float64Array(V);
    for (let v = 0; v < V; v++) { let sum = 0; for (let i = 0; i < d; i++) sum += w["wte.weight"][v * d + i] * this.last.y[i]; z[v] = sum; }
    return z;
  }

  // Fills the gradients of the cross-entropy of the correct word; p: probabilities (V) of the last forward pass.
  backward(p) {
    const {weights: w, gradients: g, ids, d, V, heads, c} = this, L = ids.length, size = d / heads;
    for (const name of this.names) g[name].fill(0);
    const dh = new Float64Array(d);
    for (let v = 0; v < V; v++) {  // the tied readout: (p - y) hᵀ, and Eᵀ (p - y)
      const error = p[v] - (v === c ? 1 : 0);
      for (let i = 0; i < d; i++) { g["wte.weight"][v * d + i] += error * this.last.y[i]; dh[i] += error * w["wte.weight"][v * d + i]; }
    }
    let dx = new Float64Array(L * d);
    dx.set(denormalise(dh, this.last, w["ln_f.weight"], g["ln_f.weight"], g["ln_f.bias"], 1, d), (L - 1) * d);
    for (let layer = this.layers - 1; layer >= 0; layer--) {
      const at = `h.${layer}.`, k = this.kept[layer];
      const dOuter = delinear(dx, k.outer, w[at + "mlp.c_proj.weight"], g[at + "mlp.c_proj.weight"], g[at + "mlp.c_proj.bias"], L, 4 * d, d);
      for (let i = 0; i < dOuter.length; i++) dOuter[i] *= slope(k.inner[i]);
      const dLn2 = delinear(dOuter, k.ln2.y, w[at + "mlp.c_fc.weight"], g[at + "mlp.c_fc.weight"], g[at + "mlp.c_fc.bias"], L, d, 4 * d);
      dx = add(dx, denormalise(dLn2, k.ln2, w[at + "ln_2.weight"], g[at + "ln_2.weight"], g[at + "ln_2.bias"], L, d));
      const dMixed = delinear(dx, k.mixed, w[at + "attn.c_proj.weight"], g[at + "attn.c_proj.weight"], g[at + "attn.c_proj.bias"], L, d, d);
      const dQkv = new Float64Array(L * 3 * d), dp = new Float64Array(L);
      for (let h = 0; h < heads; h++) for (let t = 0; t < L; t++) {
        const row = k.p.subarray((h * L + t) * L, (h * L + t + 1) * L), q = t * 3 * d + h * size;
        let mean = 0;
        for (let s = 0; s <= t; s++) {
          const value = s * 3 * d + 2 * d + h * size;
          dp[s] = 0;
          for (let i = 0; i < size; i++) { const dm = dMixed[t * d + h * size + i]; dp[s] += dm * k.qkv[value + i]; dQkv[value + i] += dm * row[s]; }
          mean += dp[s] * row[s];
        }
        for (let s = 0; s <= t; s++) {
          const key = s * 3 * d + d + h * size, ds = row[s] * (dp[s] - mean) / Math.sqrt(size);
          for (let i = 0; i < size; i++) { dQkv[q + i] += ds * k.qkv[key + i]; dQkv[key + i] += ds * k.qkv[q + i]; }
        }
      }
      const dLn1 = delinear(dQkv, k.ln1.y, w[at + "attn.c_attn.weight"], g[at + "attn.c_attn.weight"], g[at + "attn.c_attn.bias"], L, d, 3 * d);
      dx = add(dx, denormalise(dLn1, k.ln1, w[at + "ln_1.weight"], g[at + "ln_1.weight"], g[at + "ln_1.bias"], L, d));
    }
    for (let t = 0; t < L; t++) for (let i = 0; i < d; i++) { g["wte.weight"][ids[t] * d + i] += dx[t * d + i]; g["wpe.weight"][t * d + i] += dx[t * d + i]; }
  }

  // One update; t counts from 1. As torch.optim.SGD, and torch.optim.Adam with its defaults.
  update(optimizer, rate, t) {
    const adam = optimizer === "adam", [beta1, beta2, epsilon] = [0.9, 0.999, 1e-8];
    if (adam && !this.moments) this.moments = Object.fromEntries(this.names.map(n => [n, [new Float32Array(this.weights[n].length), new Float32Array(this.weights[n].length)]]));
    const correct1 = 1 - beta1 ** t, correct2 = Math.sqrt(1 - beta2 ** t);
    for (const name of this.names) {
      const w = this.weights[name], g = this.gradients[name];
      if (!adam) { for (let i = 0; i < w.length; i++) w[i] -= rate * g[i]; continue; }
      const [m, s] = this.moments[name];
      for (let i = 0; i < w.length; i++) {
        m[i] += (1 - beta1) * (g[i] - m[i]); s[i] = beta2 * s[i] + (1 - beta2) * g[i] * g[i];
        w[i] -= rate / correct1 * m[i] / (Math.sqrt(s[i]) / correct2 + epsilon);
      }
    }
  }

  // What the book records at every step: loss and gap in nats, probabilities, the order parameters Φ and M.
  measure(z, p) {
    const {V, d, c, k} = this, E = this.weights["wte.weight"];
    const dot = (a, b) => { let sum = 0; for (let i = 0; i < d; i++) sum += E[a * d + i] * E[b * d + i]; return sum; };
    const cc = dot(c, c), kk = dot(k, k), ck = dot(c, k), axis = cc + kk - 2 * ck;
    let phi = 0, m = 0;
    for (let v = 0; v < V; v++) {
      const vc = dot(v, c), vk = dot(v, k), vv = dot(v, v);
      phi += p[v] * (vc * vc / (vv * cc) - vk * vk / (vv * kk));
      m += p[v] * (2 * (vc - vk) - (cc - kk)) / axis;
    }
    return {loss: -Math.log(p[c]), gap: z[c] - z[k], pCorrect: p[c], pCompetitor: p[k], phi, m};
  }

  // dΔ/dη along the optimiser's first update, by a central difference (nats per unit learning rate).
  velocity(optimizer) {
    this.reset();
    const gap = z => z[this.c] - z[this.k], start = gap(this.forward());
    this.backward(softmax(this.forward()));
    const u = Object.fromEntries(this.names.map(n => [n, this.gradients[n].map(g => optimizer === "sgd" ? -g : -g / (Math.abs(g) + 1e-8))]));
    let size = 0;
    for (const n of this.names) for (const x of u[n]) size = Math.max(size, Math.abs(x));
    const h = 1e-4 / size, sides = [-h, h].map(step => {
      for (const n of this.names) for (let i = 0; i < u[n].length; i++) this.weights[n][i] = this.start[n][i] + step * u[n][i];
      return gap(this.forward());
    });
    this.reset();
    return {velocity: (sides[1] - sides[0]) / (2 * h), gap: start};
  }

  // Trains from the start; calls step(t, measured) before update t + 1, and after the last. Returns all that was measured.
  train(optimizer, rate, steps, step = () => {}) {
    this.reset();
    const told = [];
    for (let t = 0; t <= steps; t++) {
      const z = this.forward(), p = softmax(z);
      told.push(this.measure(z, p)); step(t, told[t]);
      if (t < steps) { this.backward(p); this.update(optimizer, rate, t + 1); }
    }
    return told;
  }
}

// ---- layers: x (L, n) -> y (L, m); weights (n, m), as transformers' Conv1D stores them
function linear(x, W, b, L, n, m) {
  const y = new Float64Array(L * m);
  for (let t = 0; t < L; t++) {
    for (let j = 0; j < m; j++) y[t * m + j] = b[j];
    for (let i = 0; i < n; i++) { const a = x[t * n + i]; for (let j = 0; j < m; j++) y[t * m + j] += a * W[i * m + j]; }
  }
  return y;
}

function delinear(dy, x, W, dW, db, L, n, m) {
  const dx = new Float64Array(L * n);
  for (let t = 0; t < L; t++) {
    for (let j = 0; j < m; j++) db[j] += dy[t * m + j];
    for (let i = 0; i < n; i++) {
      const a = x[t * n + i]; let sum = 0;
      for (let j = 0; j < m; j++) { const e = dy[t * m + j]; dW[i * m + j] += a * e; sum += e * W[i * m + j]; }
      dx[t * n + i] = sum;
    }
  }
  return dx;
}

function normalise(x, gain, bias, L, d) {
  const y = new Float64Array(L * d), unit = new Float64Array(L * d), scale = new Float64Array(L);
  for (let t = 0; t < L; t++) {
    let mean = 0, variance = 0;
    for (let i = 0; i < d; i++) mean += x[t * d + i] / d;
    for (let i = 0; i < d; i++) variance += (x[t * d + i] - mean) ** 2 / d;
    scale[t] = 1 / Math.sqrt(variance + 1e-5);
    for (let i = 0; i < d; i++) { unit[t * d + i] = (x[t * d + i] - mean) * scale[t]; y[t * d + i] = unit[t * d + i] * gain[i] + bias[i]; }
  }
  return {y, unit, scale};
}

function denormalise(dy, {unit, scale}, gain, dGain, dBias, L, d) {
  const dx = new Float64Array(L * d);
  for (let t = 0; t < L; t++) {
    let mean = 0, along = 0;
    for (let i = 0; i < d; i++) {
      const e = dy[t * d + i], u = unit[t * d + i];
      dGain[i] += e * u; dBias[i] += e; mean += e * gain[i] / d; along += e * gain[i] * u / d;
    }
    for (let i = 0; i < d; i++) dx[t * d + i] = (dy[t * d + i] * gain[i] - mean - unit[t * d + i] * along) * scale[t];
  }
  return dx;
}

const ROOT = Math.sqrt(2 / Math.PI);
function gelu(x) { return 0.5 * x * (1 + Math.tanh(ROOT * (x + 0.044715 * x ** 3))); }
function slope(x) {
  const tanh = Math.tanh(ROOT * (x + 0.044715 * x ** 3));
  return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * ROOT * (1 + 0.134145 * x * x);
}
function add(a, b) { return a.map((value, i) => value + b[i]); }
function softmax(z) {
  const most = z.reduce((a, b) => Math.max(a, b)), e = z.map(value => Math.exp(value - most)), sum = e.reduce((a, b) => a + b);
  return e.map(value => value / sum);
}
