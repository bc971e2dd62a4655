// The page "Train it here": a sentence, a learning rate, and a model that is fine-tuned while you look.
"use strict";
(() => {
  const here = document.currentScript.src.replace(/[^/]*$/, ""), by = id => document.getElementById("live-" + id);
  const STEPS = 20, NS = "http://www.w3.org/2000/svg";
  let facts, worker, question = 0, first, runs = [], waiting = new Map();

  const ask = (message, moved = [], heard = () => {}) => new Promise(done => {
    const id = ++question;
    waiting.set(id, answer => { if ("t" in answer) return heard(answer); waiting.delete(id); done(answer); });
    worker.postMessage({id, ...message}, moved);
  });
  const say = text => { by("said").textContent = text; };
  const chosen = () => document.querySelector("input[name=live-optimizer]:checked").value;

  by("load").onclick = async () => {
    by("load").disabled = true; say("Loading …");
    try {
      const [listed, weights] = await Promise.all([fetch(here + "model.json"), fetch(here + "model.safetensors")]);
      if (!listed.ok || !weights.ok) throw new Error("not found");
      facts = await listed.json();
      worker = new Worker(here + "worker.js");
      worker.onmessage = ({data}) => waiting.get(data.id)?.(data);
      const buffer = await weights.arrayBuffer();
      await ask({ask: "load", buffer}, [buffer]);
    } catch {
      by("load").disabled = false;
      return say("The model could not be loaded. A page that is opened as a file may not fetch it: run 'make serve', and open the page from there.");
    }
    by("load").hidden = true; by("controls").hidden = false;
    for (const [i, context] of facts.contexts.entries()) by("sentence").add(new Option(`${context.prompt} … ${context.correct}, not ${context.competitor}`, i));
    by("sentence").add(new Option("my own words", "own"));
    await pose();
  };

  // ---- the sentence, and what is known of it before training
  function ids(text) {  // words of the zoo's language; a word has a space before it but for the first
    return (text.match(/[\w’'-]+|[.,;:!?]/g) || []).map((word, i) => {
      const id = facts.words[i && /\w/.test(word) ? " " + word : word];
      if (id === undefined) throw new Error(`The model does not know the word “${word}”.`);
      return id;
    });
  }
  async function pose() {
    runs = []; first = null; draw();
    const own = by("sentence").value === "own"; by("own").hidden = !own;
    const context = own ? {prompt: by("prompt").value.trim(), correct: by("correct").value.trim(), competitor: by("competitor").value.trim()} : facts.contexts[by("sentence").value];
    if (own && !(context.prompt && context.correct && context.competitor)) return say("Write a prompt and two words of the model's vocabulary.");
    try {
      const [correct, competitor] = [context.correct, context.competitor].map(word => ids("x " + word)[1] ?? null);
      if (correct === competitor) throw new Error("Give two different words.");
      ({first} = await ask({ask: "sentence", heads: facts.heads, ids: ids(context.prompt), correct, competitor}));
    } catch (error) { return say(error.message); }
    by("words").textContent = `“${context.correct}” is to be learnt; “${context.competitor}” is its rival.`;
    await predict();
  }
  // before any training: η = N |Δ| / (T v), with the constant N that the book measured
  const critical = () => facts.numbers[chosen()] * -first[chosen()].gap / (STEPS * first[chosen()].velocity);
  const rate = () => critical() * 2 ** by("rate").value;
  async function predict() {
    if (!first) return;
    const {gap, velocity} = first[chosen()];
    if (gap >= 0) return say("The model prefers the right word already: there is nothing to overtake.");
    if (velocity <= 0) return say("The first step moves the gap the wrong way, so no rate can be predicted.");
    by("predicted").textContent = critical().toPrecision(3); by("predicted").title = critical();
    showRate();
    await race([2 ** by("rate").value]);
  }
  function showRate() { by("rate-said").textContent = `${rate().toPrecision(3)} (${(2 ** by("rate").value).toPrecision(3)} times the predicted critical rate)`; }

  // ---- runs, one or several beside each other
  async function race(multiples) {
    runs = multiples.map((multiple, i) => ({multiple, dashed: i > 0 && multiples.length === 2, steps: []}));
    by("go").disabled = by("pair").disabled = by("sweep").disabled = true;
    const mine = runs;
    for (const run of mine) {
      const {steps} = await ask({ask: "train", optimizer: chosen(), rate: critical() * run.multiple, steps: STEPS}, [], ({measured}) => { run.steps.push(measured); if (runs === mine) draw(); });
      if (runs !== mine) return;
      run.steps = steps; draw();
    }
    by("go").disabled = by("pair").disabled = by("sweep").disabled = false;
    const told = mine.map(run => `at ${run.multiple.toPrecision(3)} times it the loss falls from ${run.steps[0].loss.toFixed(2)} to ${run.steps[STEPS].loss.toFixed(2)} nats and the gap ends at ${run.steps[STEPS].gap.toFixed(3)}: ${run.steps.some(s => s.gap > 0) ? "the right word overtakes" : "it never overtakes"}`);
    say(`Predicted critical rate ${critical().toPrecision(3)}; ${told.length > 3 ? `${mine.filter(run => run.steps.some(s => s.gap > 0)).length} of ${mine.length} runs overtake` : told.join("; ")}.`);
  }

  // ---- pictures: series over the step, and Φ over Δ
  const PICTURES = [
    {title: "Loss (nat)", series: [["loss", "--live-loss", "cross-entropy"]]},
    {title: "Logit gap (nat)", series: [["gap", "--live-correct", "gap"]], zero: true},
    {title: "Probability", series: [["pCorrect", "--live-correct", "right word"], ["pCompetitor", "--live-competitor", "rival"]]},
    {title: "Order parameter", series: [["phi", "--live-phi", "Φ"], ["m", "--live-m", "M"]], zero: true},
    {title: "Φ against the gap: one curve", curve: true, series: [["phi", "--live-phi", "Φ"]], zero: true},
  ];
  function draw() {
    by("pictures").replaceChildren(...PICTURES.map(picture));
  }
  function picture({title, series, zero, curve}) {
    const [W, H, left, bottom] = [340, 190, 44, 30], svg = element("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title});
    const points = runs.flatMap(run => run.steps.map((s, t) => [curve ? s.gap : t, ...series.map(([name]) => s[name])]));
    const range = (values, floor) => { const low = Math.min(...values, ...floor), high = Math.max(...values, ...floor); return [low, high === low ? low + 1 : high]; };
    const [x0, x1] = curve ? range(points.map(p => p[0]), [0]) : [0, STEPS], [y0, y1] = range(points.flatMap(p => p.slice(1)), zero ? [0] : []);
    const X = x => left + (x - x0) / (x1 - x0) * (W - left - 8), Y = y => H - bottom - (y - y0) / (y1 - y0) * (H - bottom - 24);
    svg.append(text(title, 4, 14, "start", "title"), text(curve ? "gap (nat)" : "step", W - 8, H - 4, "end"));
    if (points.length) for (const y of [y0, y1]) svg.append(text(y.toPrecision(2), left - 4, Y(y) + 4, "end"));
    for (const x of [x0, x1]) if (points.length || !curve) svg.append(text(curve ? x.toFixed(1) : x, X(x), H - bottom + 14, x === x0 ? "start" : "end"));
    svg.append(element("path", {d: `M${left},24V${H - bottom}H${W - 8}`, class: "axis"}));
    if (zero && y0 < 0 && y1 > 0) svg.append(element("path", {d: `M${left},${Y(0)}H${W - 8}`, class: "zero"}));
    series.forEach(([name, colour, label], n) => {
      for (const run of runs) {
        const d = run.steps.map((s, t) => `${t ? "L" : "M"}${X(curve ? s.gap : t).toFixed(1)},${Y(s[name]).toFixed(1)}`).join("");
        svg.append(element("path", {d, style: `stroke: var(${colour})`, class: "line" + (run.dashed ? " dashed" : "")}));
        if (curve) for (const s of run.steps) svg.append(element("circle", {cx: X(s.gap), cy: Y(s[name]), r: 2.2, style: `fill: var(${colour})`}));
      }
      if (series.length > 1) { const mark = text(label, W - 8 - n * 74, 14, "end"); mark.setAttribute("style", `fill: var(${colour})`); svg.append(mark); }
    });
    return svg;
  }
  function element(name, attributes) { const made = document.createElementNS(NS, name); for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value); return made; }
  function text(said, x, y, anchor, kind = "") { const made = element("text", {x, y, "text-anchor": anchor, class: kind}); made.textContent = said; return made; }

  by("sentence").onchange = by("own-go").onclick = pose;
  for (const button of document.querySelectorAll("input[name=live-optimizer]")) button.onchange = predict;
  by("rate").oninput = () => { if (first) showRate(); };
  by("rate").onchange = by("go").onclick = () => { if (first) race([2 ** by("rate").value]); };
  by("pair").onclick = () => { if (first) race([0.98, 1.02].map(x => x * 2 ** by("rate").value)); };
  by("sweep").onclick = () => { if (first) race([0.25, 0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 4, 10, 30]); };
})();
