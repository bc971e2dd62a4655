// Trains away from the page, so that the page stays quick. In: {id, ask, ...}; out: {id, ...}.
"use strict";
importScripts("gpt2.js");
let tensors, problem;
onmessage = ({data}) => {
  const {id, ask} = data;
  if (ask === "load") { tensors = readSafetensors(data.buffer); postMessage({id}); }
  if (ask === "sentence") {
    problem = new Problem(tensors, data.heads, data.ids, data.correct, data.competitor);
    postMessage({id, first: Object.fromEntries(["adam", "sgd"].map(optimizer => [optimizer, problem.velocity(optimizer)]))});
  }
  if (ask === "train") {
    const steps = problem.train(data.optimizer, data.rate, data.steps, (t, measured) => postMessage({id, t, measured}));
    postMessage({id, steps});
  }
};
