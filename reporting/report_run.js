// The sliders of a run's page. Verdicts are computed as datasets/runs/verdicts.py does: scores are the float32 of the
// shards, compared as doubles; a score that is missing rejects nothing; NaN passes no filter; the person's reference
// is exempt from SSIM; an image counts at the first filter that it fails.
"use strict";
const FAILED = 1, NO_DETECTOR = 2, NO_SSIM = 4, NO_COSINE = 8, NO_MARGIN = 16, FROM_LATENT = 32, IS_REFERENCE = 64;
const BARS = 40, GALLERY = 12;
const data = JSON.parse(document.getElementById("data").textContent);
const VERDICTS = data.verdicts, LABELS = data.labels;

function bytes(text) {
  const binary = atob(text), out = new Uint8Array(binary.length);
  for (let i = 0; i < out.length; i++) out[i] = binary.charCodeAt(i);
  return out;
}
function floats(text) {
  const view = new DataView(bytes(text).buffer), out = new Float32Array(view.byteLength / 4);
  for (let i = 0; i < out.length; i++) out[i] = view.getFloat32(4 * i, true);
  return out;
}

const count = data.scores.count, flags = bytes(data.scores.flags), columns = {};
for (const name of ["detector", "ssim", "cosine", "margin"]) {
  const packed = data.scores.columns[name];
  columns[name] = packed ? floats(packed) : new Float32Array(count).fill(NaN);
}
const sizes = new DataView(bytes(data.scores.people).buffer), people = sizes.byteLength / 4;
// What the identity ceiling judges: in doubles, as NumPy subtracts them.
const real = new Float64Array(count), judged = {};
for (let i = 0; i < count; i++) real[i] = flags[i] & FROM_LATENT ? columns.cosine[i] : columns.cosine[i] - columns.margin[i];
const has = {
  detector: (i) => !(flags[i] & NO_DETECTOR),
  ssim: (i) => !(flags[i] & (NO_SSIM | IS_REFERENCE)),
  cosine: (i) => !(flags[i] & NO_COSINE),
  margin: (i) => !(flags[i] & NO_MARGIN),
  real: (i) => !(flags[i] & NO_COSINE) && (flags[i] & FROM_LATENT || !(flags[i] & NO_MARGIN)),
};
const plotted = {
  ...has,
  cosine: (i) => has.cosine(i) && (flags[i] & FROM_LATENT || !(flags[i] & IS_REFERENCE)),
  real: (i) => has.real(i) && !(flags[i] & FROM_LATENT),
};
const values = { ...columns, real };

function judge(t) {
  const floor = (x) => (x === null ? -Infinity : x), ceiling = (x) => (x === null ? Infinity : x);
  const detector = t.detector, low = floor(t.ssim_floor), high = ceiling(t.ssim_ceiling);
  const like = floor(t.identity_floor), lead = floor(t.identity_margin), copy = ceiling(t.identity_ceiling);
  const { ssim, cosine, margin } = columns, person = columns.detector, out = new Uint8Array(count);
  for (let i = 0; i < count; i++) {
    const f = flags[i], compared = !(f & (NO_SSIM | IS_REFERENCE));
    out[i] = f & FAILED ? 1
      : !(f & NO_DETECTOR) && !(person[i] >= detector) ? 2
      : compared && !(ssim[i] >= low) ? 3
      : compared && !(ssim[i] <= high) ? 4
      : !(f & NO_COSINE) && !(cosine[i] >= like) ? 5
      : !(f & NO_MARGIN) && !(margin[i] >= lead) ? 6
      : has.real(i) && !(real[i] <= copy) ? 7 : 0;
  }
  return out;
}

// ---- controls
const controls = [...document.querySelectorAll("[data-control]")].map((element) => ({
  key: element.dataset.control, option: element.dataset.option, original: element.dataset.value,
  range: element.querySelector("input[type=range]"), number: element.querySelector("input[type=number]"),
  on: element.querySelector("input[type=checkbox]"),
}));
const message = document.getElementById("message"), command = document.getElementById("command");

function thresholds() {
  const found = { ...data.thresholds }, wrong = [];
  for (const c of controls) {
    const off = c.on && !c.on.checked;
    c.number.disabled = c.range.disabled = off;
    const value = c.number.value.trim() === "" ? NaN : Number(c.number.value);
    const good = off || (value >= Number(c.number.min) && value <= Number(c.number.max));
    c.number.setAttribute("aria-invalid", String(!good));
    if (!good) wrong.push(`${c.option} is a number from ${c.number.min} to ${c.number.max}`);
    found[c.key] = off ? null : value;
  }
  const { ssim_floor: floor, ssim_ceiling: ceiling } = found;
  if (floor !== null && ceiling !== null && floor > ceiling) wrong.push("the SSIM ceiling is below the floor: nothing could be kept");
  return [found, wrong];
}

// ---- what is shown
const grouped = new Intl.NumberFormat("en-US"); // toLocaleString would make one for each number: 300 of them are slow
const thousands = (n) => grouped.format(n);
function percent(part, whole) {
  if (!whole) return "";
  const share = part / whole;
  if (share > 0 && share < 0.0005) return "<0.1%";
  if (share >= 0.9995 && share < 1) return ">99.9%";
  return `${(100 * share).toFixed(1)}%`;
}
function put(selector, text) {
  for (const element of document.querySelectorAll(selector)) element.textContent = text;
}

function showCounts(verdict, t) {
  const counts = new Array(VERDICTS.length).fill(0);
  for (let i = 0; i < count; i++) counts[verdict[i]]++;
  let withPicture = 0, start = 0;
  for (let p = 0; p < people; p++) {
    const end = start + sizes.getUint32(4 * p, true);
    let some = false;
    for (let i = start; i < end && !some; i++) some = verdict[i] === 0;
    withPicture += some;
    start = end;
  }
  let reached = count;
  VERDICTS.forEach((key, place) => {
    const n = counts[place];
    put(`[data-count="${key}"]`, thousands(n));
    put(`[data-share="${key}"]`, percent(n, count));
    if (!place) return;
    put(`[data-reached="${key}"]`, percent(n, reached));
    reached -= n;
    const row = document.querySelector(`[data-step="${key}"]`);
    const optional = key.startsWith("identity_") && !n && t[key] === null;
    for (const line of document.querySelectorAll(`[data-step="${key}"], [data-filter="${key}"]`)) line.hidden = optional;
    if (row) {
      row.querySelector(".left").style.width = `${count ? (100 * reached) / count : 0}%`;
      row.querySelector(".gone").style.width = `${count ? (100 * n) / count : 0}%`;
      row.querySelector(".number").textContent = thousands(reached);
    }
  });
  put('[data-count="discarded"]', thousands(count - counts[0]));
  put('[data-share="discarded"]', percent(count - counts[0], count));
  put("[data-people]", thousands(withPicture));
  document.getElementById("elsewhere").hidden = t.detector === data.reference_threshold;
}

function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const plots = [...document.querySelectorAll("svg[data-score]")].map((element) => {
  const { score } = element.dataset, low = Number(element.dataset.low), high = Number(element.dataset.high);
  const bar = new Int8Array(count).fill(-1);
  const total = new Int32Array(BARS);
  for (let i = 0; i < count; i++) {
    if (!plotted[score](i) || !Number.isFinite(values[score][i])) continue;
    bar[i] = Math.max(0, Math.min(BARS - 1, Math.floor(((values[score][i] - low) / (high - low)) * BARS)));
    total[bar[i]]++;
  }
  return { element, score, low, high, bar, total, tallest: Math.max(1, ...total) };
});

function showPlots(verdict, t) {
  for (const { element, score, low, high, bar, total, tallest } of plots) {
    const width = Number(element.dataset.width), height = Number(element.dataset.height), kept = new Int32Array(BARS);
    for (let i = 0; i < count; i++) if (bar[i] >= 0 && !verdict[i]) kept[bar[i]]++;
    const bars = [];
    for (let b = 0; b < BARS; b++) {
      if (!total[b]) continue;
      const x = (b * width) / BARS, wide = width / BARS - 1, good = (kept[b] / tallest) * height;
      const bad = ((total[b] - kept[b]) / tallest) * height, group = svg("g", {});
      const ends = [b, b + 1].map((edge) => (low + ((high - low) * edge) / BARS).toFixed(3)).join(" to ");
      group.append(svg("title", {}, `${ends}: ${thousands(kept[b])} kept, ${thousands(total[b] - kept[b])} discarded`));
      group.append(svg("rect", { class: "kept", x, y: height - good, width: wide, height: good }));
      group.append(svg("rect", { class: "lost", x, y: height - good - bad, width: wide, height: bad }));
      bars.push(group);
    }
    element.querySelector(".bars").replaceChildren(...bars);
    const marks = [];
    for (const c of controls) {
      if (c.range.closest("[data-card]").dataset.card !== score || t[c.key] === null) continue;
      const share = Math.max(0, Math.min(1, (t[c.key] - low) / (high - low))), x = share * width;
      marks.push(svg("line", { class: "mark", x1: x, y1: -6, x2: x, y2: height }));
      const anchor = share > 0.75 ? "end" : share > 0.15 ? "middle" : "start";
      marks.push(svg("text", { class: "mark-name", x, y: -11, "text-anchor": anchor }, `${c.key.split("_").pop().replace("detector", "threshold")} ${t[c.key]}`));
    }
    element.querySelector(".marks").replaceChildren(...marks);
  }
}

const strip = [...document.querySelectorAll(".strips [data-row]")];
const pictures = data.pictures.map(([row, person, variant, jpeg]) => ({ row, person, variant, source: `data:image/jpeg;base64,${jpeg}` }));
for (const figure of strip) {
  const image = figure.querySelector("img");
  if (image) pictures.push({ row: Number(figure.dataset.row), person: figure.dataset.person, variant: figure.dataset.variant, source: image.src });
}
pictures.sort((a, b) => a.row - b.row);

function describe(picture, verdict) {
  const what = verdict ? `discarded, ${LABELS[VERDICTS[verdict]]}` : "kept";
  return `Person ${picture.person}, variant ${picture.variant}: ${what}`;
}

function showStrips(verdict) {
  for (const figure of strip) {
    const place = verdict[Number(figure.dataset.row)];
    figure.className = `v-${VERDICTS[place]}`;
    const image = figure.querySelector("img");
    if (image) image.alt = image.title = describe(figure.dataset, place);
  }
}

function drawn(found, score, verdict) {
  return found.map((picture) => {
    const figure = document.createElement("figure"), image = document.createElement("img"), caption = document.createElement("figcaption");
    figure.className = `v-${VERDICTS[verdict[picture.row]]}`;
    image.src = picture.source;
    image.alt = image.title = describe(picture, verdict[picture.row]);
    caption.textContent = values[score][picture.row].toFixed(3);
    figure.append(image, caption);
    return figure;
  });
}

function showGalleries(verdict, t) {
  for (const element of document.querySelectorAll("[data-gallery]")) {
    const key = element.dataset.gallery, { score } = element.dataset, line = t[key], place = VERDICTS.indexOf(key);
    element.hidden = line === null;
    if (line === null) continue;
    const judge = key === "identity_ceiling" ? "real" : score;
    const near = pictures.filter((p) => isChosen(Number(p.person)) && has[judge](p.row) && Number.isFinite(values[judge][p.row])).sort((a, b) => Math.abs(values[judge][a.row] - line) - Math.abs(values[judge][b.row] - line));
    for (const [name, wanted, none] of [["rejected", place, "None of the sampled pictures fails here."], ["kept", 0, "None of the sampled pictures is kept."]]) {
      const found = near.filter((p) => verdict[p.row] === wanted).slice(0, GALLERY);
      const target = element.querySelector(`[data-side="${name}"]`);
      if (found.length) target.replaceChildren(...drawn(found, judge, verdict));
      else target.textContent = none;
    }
  }
}

// ---- people: who is shown, and two of them side by side
const numbers = new Uint32Array(people), starts = new Uint32Array(people + 1), placeOf = new Map();
{
  const named = data.scores.numbers ? new DataView(bytes(data.scores.numbers).buffer) : null;
  for (let p = 0; p < people; p++) {
    numbers[p] = named ? named.getUint32(4 * p, true) : p;
    starts[p + 1] = starts[p] + sizes.getUint32(4 * p, true);
    placeOf.set(numbers[p], p);
  }
}
const sources = new Map(pictures.map((picture) => [picture.row, picture.source]));
const who = document.getElementById("who"), whoSaid = document.getElementById("who-said");
const MOST_COMPARED = 200;
let chosen = null; // ranges of numbers; null: everybody

function ranges(text) {
  if (!text.trim()) return null;
  return text.split(/[\s,;]+/).filter(Boolean).map((part) => {
    const match = /^(\d+)(?:-(\d+))?$/.exec(part);
    return match ? [Number(match[1]), Number(match[2] ?? match[1])] : NaN;
  });
}
const isChosen = (person) => chosen === null || chosen.some(([low, high]) => low <= person && person <= high);

function choosePeople() {
  const asked = ranges(who.value), wrong = asked !== null && asked.some((range) => !Array.isArray(range));
  who.setAttribute("aria-invalid", String(wrong));
  if (wrong) { whoSaid.textContent = "numbers and ranges, such as 12, 40-60"; return; }
  chosen = asked;
  let shown = 0, known = 0;
  for (const element of document.querySelectorAll("[data-strip]")) {
    element.hidden = !isChosen(Number(element.dataset.strip));
    shown += !element.hidden;
  }
  for (let p = 0; p < people && chosen !== null; p++) known += isChosen(numbers[p]);
  whoSaid.textContent = chosen === null ? ""
    : `${thousands(known)} of ${thousands(people)} people; ${thousands(shown)} of them have their pictures here. The galleries above follow, too.`;
  later();
}

function mean(first, end, score) {
  let sum = 0, n = 0;
  for (let i = first; i < end; i++) if (plotted[score](i) && Number.isFinite(values[score][i])) { sum += values[score][i]; n++; }
  return n ? (sum / n).toFixed(3) : null;
}
const sides = [...document.querySelectorAll("[data-person-side]")].map((element) => ({
  number: element.querySelector("input"), said: element.querySelector("[data-said]"), gallery: element.querySelector(".gallery"),
}));

function showPair(verdict) {
  for (const side of sides) {
    const p = side.number.value.trim() === "" ? undefined : placeOf.get(Number(side.number.value));
    side.number.setAttribute("aria-invalid", String(p === undefined));
    if (p === undefined) {
      side.said.textContent = people ? `the run's people are ${numbers[0]} to ${numbers[people - 1]}` : "the run has no people";
      side.gallery.replaceChildren();
      continue;
    }
    const first = starts[p], end = starts[p + 1], lost = new Map();
    let kept = 0;
    for (let i = first; i < end; i++) {
      if (verdict[i]) lost.set(verdict[i], (lost.get(verdict[i]) ?? 0) + 1); else kept++;
    }
    const words = [`${kept} of ${end - first} kept`, ...[...lost].map(([key, n]) => `${n} ${LABELS[VERDICTS[key]]}`)];
    for (const [score, name] of [["detector", "pedestrian"], ["ssim", "SSIM"], ["cosine", "identity"]]) {
      const value = mean(first, end, score);
      if (value !== null) words.push(`mean ${name} ${value}`);
    }
    side.said.textContent = words.join(" · ");
    const figures = [];
    for (let i = first; i < Math.min(end, first + MOST_COMPARED); i++) {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption"), source = sources.get(i);
      const shown = document.createElement(source ? "img" : "span"), text = describe({ person: numbers[p], variant: i - first }, verdict[i]);
      figure.className = `v-${VERDICTS[verdict[i]]}`;
      if (source) { shown.src = source; shown.alt = shown.title = text; } else { shown.className = "nothing"; shown.title = text; shown.textContent = "no picture"; }
      const scores = ["detector", "ssim", "cosine"].filter((s) => plotted[s](i) && Number.isFinite(values[s][i])).map((s) => values[s][i].toFixed(2));
      caption.textContent = [...scores, ...(flags[i] & IS_REFERENCE ? ["ref"] : [])].join(" ");
      figure.append(shown, caption);
      figures.push(figure);
    }
    side.gallery.replaceChildren(...figures);
  }
}

function showCommand(t) {
  const words = ["python -m jobs.refilter --out", data.out, "--name chosen"];
  for (const c of controls) words.push(c.option, t[c.key] === null ? "None" : c.number.value);
  command.textContent = words.join(" ");
}

function update() {
  const [t, wrong] = thresholds();
  message.textContent = wrong.join("; ");
  document.body.classList.toggle("stale", wrong.length > 0);
  if (wrong.length) return;
  const verdict = judge(t);
  showCounts(verdict, t);
  showPlots(verdict, t);
  showStrips(verdict);
  showGalleries(verdict, t);
  showPair(verdict);
  showCommand(t);
}

let waiting = false;
function later() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; update(); });
}
for (const c of controls) {
  c.range.addEventListener("input", () => { c.number.value = c.range.value; later(); });
  c.number.addEventListener("input", () => { if (c.number.value !== "") c.range.value = c.number.value; later(); });
  if (c.on) c.on.addEventListener("change", later);
}
document.getElementById("reset").addEventListener("click", () => {
  for (const c of controls) {
    if (c.on) c.on.checked = c.original !== "";
    if (c.original !== "") c.number.value = c.range.value = c.original;
  }
  later();
});
who.addEventListener("input", choosePeople);
{
  // The first two people whose pictures are here.
  const here = [...document.querySelectorAll("[data-strip]")].map((element) => element.dataset.strip);
  sides.forEach((side, index) => {
    side.number.value = here[index] ?? here[0] ?? (people ? numbers[Math.min(index, people - 1)] : "");
    side.number.addEventListener("input", later);
  });
}
for (const element of document.querySelectorAll(".needs-script")) element.hidden = false;
update();
document.documentElement.dataset.ready = "yes";
