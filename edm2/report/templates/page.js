"use strict";
const { charts, explorer } = JSON.parse(document.getElementById("data").textContent);
const KINDS = ["time", "ema", "guidance"];
const COLORS = ["#3b82c4", "#e08a2e", "#1aa37a", "#c865a6", "#58b9e6", "#b5544a", "#b9a61c", "#8a8f98"];

// ------------------------------------------------------------------------------------------------------------- plots

const views = new Map(); // element -> view of Vega

async function draw(element, spec) {
  const css = getComputedStyle(document.documentElement);
  const [ink, line] = ["--quiet", "--line"].map((name) => css.getPropertyValue(name).trim());
  const config = {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: null },
    range: { category: COLORS },
    axis: { labelColor: ink, titleColor: ink, domainColor: line, tickColor: line, gridColor: line, titleFontWeight: "normal" },
    legend: { labelColor: ink, symbolBaseStrokeColor: ink, symbolBaseFillColor: ink, symbolType: "stroke", symbolOpacity: 1, orient: "top",
      columns: 2, labelLimit: 150 },
  };
  const { view } = await vegaEmbed(element, spec, { actions: false, renderer: "svg", config });
  views.set(element, view);
  return view;
}

function zoom(view, factor) {
  const [x, y] = [view.scale("x"), view.scale("y")];
  const [low, high] = x.range();
  const [middle, half] = [(low + high) / 2, ((high - low) / 2) * factor];
  view.signal("zoom_x", factor ? [x.invert(middle - half), x.invert(middle + half)] : null);
  if (!factor) view.signal("zoom_y", null);
  else view.signal("zoom_y", y.domain());
  view.runAsync();
}

const plots = [...document.querySelectorAll("[data-chart]")];
const nearby = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    nearby.unobserve(target);
    draw(target, charts[target.dataset.chart]);
  }
}, { rootMargin: "600px" });
for (const plot of plots) {
  nearby.observe(plot);
  for (const button of plot.parentElement.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => views.has(plot) && zoom(views.get(plot), Number(button.dataset.zoom)));
  }
}

// ----------------------------------------------------------------------------------------------------------- sliders

let sliders, outputs, curve;
const decoded = new Map(); // setting -> image whose pixels are ready, so that grids change without a flicker

function imageOf(setting) {
  if (!decoded.has(setting)) {
    const image = new Image();
    image.src = setting.src;
    image.alt = setting.alt;
    decoded.set(setting, image.decode().then(() => image));
  }
  return decoded.get(setting);
}

async function show() {
  const position = KINDS.map((kind) => Number(sliders[kind].value));
  const names = { time: explorer.times, ema: explorer.lengths, guidance: explorer.guidances };
  KINDS.forEach((kind, i) => {
    outputs[kind].value = names[kind][position[i]];
    sliders[kind].setAttribute("aria-valuetext", names[kind][position[i]]);
  });
  const found = explorer.runs.map((run) => run.settings[position.join(",")]);
  const images = await Promise.all(found.map((setting) => setting && imageOf(setting)));
  if (KINDS.some((kind, i) => Number(sliders[kind].value) !== position[i])) return; // moved on meanwhile
  found.forEach((setting, i) => {
    const figure = document.querySelector(`[data-run="${i}"]`);
    figure.querySelector(".stage").replaceChildren(setting ? images[i] : "The run has not stored what this needs.");
    figure.querySelector("figcaption").textContent = setting ? setting.caption : explorer.runs[i].name;
    figure.querySelector("code").textContent = setting ? setting.commands : "";
  });
  if (curve) {
    KINDS.forEach((kind, i) => curve.signal(kind, position[i]));
    curve.runAsync();
  }
}

async function drawCurve() {
  const element = document.getElementById("curve");
  if (!element) return;
  curve = await draw(element, explorer.curve);
  curve.addEventListener("click", (event, item) => {
    if (item?.datum?.position === undefined) return;
    sliders.ema.value = item.datum.position;
    show();
  });
}

async function explore() {
  sliders = Object.fromEntries(KINDS.map((kind) => [kind, document.getElementById(`slider-${kind}`)]));
  outputs = Object.fromEntries(KINDS.map((kind) => [kind, document.getElementById(`shown-${kind}`)]));
  KINDS.forEach((kind, i) => {
    sliders[kind].value = explorer.start[i];
    sliders[kind].addEventListener("input", show);
  });
  await show();
  await drawCurve();
  await show();
  for (const run of explorer.runs) for (const setting of Object.values(run.settings)) await imageOf(setting);
}

const ready = explorer ? explore() : Promise.resolve();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", async () => {
  await Promise.all(plots.filter((plot) => views.has(plot)).map((plot) => draw(plot, charts[plot.dataset.chart])));
  if (explorer) await drawCurve().then(show);
});
