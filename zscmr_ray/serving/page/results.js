// The grid: a card for each hit, and the heat map of what counted in its vector, drawn when it is looked at.
import { $, api, pictureUrl } from "./api.js";

// As in the report: clear for no weight, then orange to bright yellow; what counts nothing is dimmed.
const COLOURS = [[120, 20, 10], [214, 69, 20], [250, 150, 30], [255, 235, 110]];
let blobUrls = [];
let cards = []; // {hit, node, index, heat}: heat is the promise of its map, once asked for

export function showHits(answer, { target, index, onLike, onLabel }) {
  blobUrls.forEach((url) => URL.revokeObjectURL(url));
  blobUrls = [];
  const best = Math.max(...answer.results.map((hit) => hit.score), 1e-9);
  cards = answer.results.map((hit) => card(hit, { best, index, onLike, onLabel }));
  $("results").classList.toggle("texts", target === "text");
  $("results").replaceChildren(...cards.map(({ node }) => node));
  $("looks").hidden = true;
  if (!cards.length) return;
  // The first card says whether this index keeps region weights.
  const [first] = cards;
  heat(first).then((drawn) => { if (first === cards[0]) { $("looks").hidden = !drawn; lookAtAll(); } });
}

function card(hit, { best, index, onLike, onLabel }) {
  const node = $("hit").content.firstElementChild.cloneNode(true);
  const find = (name) => node.querySelector(name);
  const name = hit.caption || hit.labels.join(", ") || hit.id;
  find("img").alt = name;
  find("img").hidden = true;
  find(".rank").textContent = hit.rank;
  find(".caption").textContent = name;
  find(".caption").title = hit.id;
  find(".classes").replaceChildren(...hit.labels.map((label) => chip(label, onLabel)));
  find(".classes").hidden = !hit.labels.length;
  find(".number").textContent = hit.score.toFixed(3);
  find(".score").title = "score: larger is closer";
  find(".fill").style.width = `${Math.max(0, Math.min(1, hit.score / best)) * 100}%`;
  find(".like").setAttribute("aria-label", `More like ${name}`);
  find(".like").addEventListener("click", () => onLike(hit, name));
  const made = { hit, node, index, heat: null };
  if (hit.thumbnail_url) showPicture(made).catch(() => {});
  for (const event of ["pointerenter", "focusin"]) node.addEventListener(event, () => heat(made));
  return made;
}

function chip(label, onLabel) {
  const item = document.createElement("li");
  const button = Object.assign(document.createElement("button"), { type: "button", className: "chip", textContent: label });
  button.setAttribute("aria-label", `Only class ${label}`);
  button.addEventListener("click", () => onLabel(label));
  item.append(button);
  return item;
}

async function showPicture({ hit, node }) {
  const image = node.querySelector("img");
  const url = await pictureUrl(hit.thumbnail_url);
  if (url.startsWith("blob:")) blobUrls.push(url);
  image.addEventListener("load", () => {
    const frame = node.querySelector(".frame");
    frame.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`;
    frame.classList.toggle("tall", image.naturalHeight > image.naturalWidth);
    image.hidden = false;
    node.querySelector(".none").hidden = true;
  });
  image.src = url;
}

function heat(made) {
  made.heat ??= draw(made).catch(() => false);
  return made.heat;
}

async function draw({ hit, node, index }) {
  const { regions } = await api(`/v1/items/${encodeURIComponent(hit.id)}${index ? `?index=${encodeURIComponent(index)}` : ""}`);
  if (!regions) return false;
  const { weights, box: [left, top, right, bottom] } = regions;
  const canvas = node.querySelector("canvas");
  const largest = Math.max(...weights.flat(), 1e-12);
  canvas.width = canvas.height = weights.length;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(weights.length, weights.length);
  weights.flat().forEach((weight, at) => pixels.data.set(colour(weight / largest), 4 * at));
  context.putImageData(pixels, 0, 0);
  Object.assign(canvas.style, { left: share(left), top: share(top), width: share(right - left), height: share(bottom - top) });
  canvas.hidden = false;
  node.querySelector("figcaption").textContent = `The model looks most at the ${place(weights)}.`;
  return true;
}

const share = (fraction) => `${100 * fraction}%`;

function colour(strength) {
  if (strength <= 0.02) return [0, 0, 0, 115];
  const at = strength * (COLOURS.length - 1);
  const low = Math.min(Math.floor(at), COLOURS.length - 2);
  const mixed = COLOURS[low].map((value, channel) => value + (at - low) * (COLOURS[low + 1][channel] - value));
  return [...mixed, 255 * 0.62 * Math.sqrt(strength)];
}

// In words, where the weights' centre of mass is.
function place(weights) {
  let [sum, x, y] = [0, 0, 0];
  weights.forEach((line, row) => line.forEach((weight, column) => { sum += weight; x += weight * (column + 0.5); y += weight * (row + 0.5); }));
  const third = (value) => Math.min(2, Math.floor((3 * value) / (sum || 1) / weights.length));
  const [across, down] = [["left", "middle", "right"][third(x)], ["upper", "middle", "lower"][third(y)]];
  if (across === "middle" && down === "middle") return "middle";
  return across === "middle" ? `${down} middle` : `${down} ${across}`;
}

function lookAtAll() {
  const looking = $("looks").getAttribute("aria-pressed") === "true" && !$("looks").hidden;
  $("results").classList.toggle("looking", looking);
  if (looking) cards.forEach(heat);
}

$("looks").addEventListener("click", () => {
  const pressed = $("looks").getAttribute("aria-pressed") !== "true";
  $("looks").setAttribute("aria-pressed", String(pressed));
  $("looks").textContent = pressed ? "Hide what the model looks at" : "Show what the model looks at";
  lookAtAll();
});
