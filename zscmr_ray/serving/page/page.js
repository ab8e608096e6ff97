// The search page: one form, one grid. Everything is same-origin and put in as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
let picture = null; // the File that is searched with, if any
let latest = 0; // number of the newest search: late answers of older ones are dropped
let shownUrls = [];

function keyHeader() {
  const key = $("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function setPicture(file) {
  picture = file;
  if ($("preview").src) URL.revokeObjectURL($("preview").src);
  $("preview").hidden = $("clear").hidden = !file;
  if (file) $("preview").src = URL.createObjectURL(file);
  else { $("preview").removeAttribute("src"); $("image").value = ""; }
}

function options() {
  const body = { target: $("target").value };
  if ($("k").value) body.k = Number($("k").value);
  const labels = $("labels").value.split(",").map((label) => label.trim()).filter(Boolean);
  if (labels.length) body.filter = { labels };
  if ($("lambda").value !== "") body.lambda = Number($("lambda").value);
  return body;
}

async function ask(query) {
  const init = { method: "POST", headers: keyHeader() };
  if (query.image) {
    init.body = new FormData();
    init.body.append("image", query.image, "image");
    init.body.append("request", JSON.stringify(options()));
  } else {
    init.headers["Content-Type"] = "application/json";
    init.body = JSON.stringify({ ...options(), query });
  }
  const answer = await fetch("/v1/search", init);
  const body = await answer.json().catch(() => ({ title: `HTTP ${answer.status}` }));
  if (answer.ok) return body;
  const parts = ["got", "expected", "remedy"].filter((name) => body[name]).map((name) => `${name}: ${body[name]}`);
  throw new Error([body.title, ...parts].join("\n"));
}

async function showThumbnail(image, none, url) {
  // Fetched by hand: an <img> cannot carry the API key.
  const answer = await fetch(url, { headers: keyHeader() });
  if (!answer.ok) return;
  const blobUrl = URL.createObjectURL(await answer.blob());
  shownUrls.push(blobUrl);
  image.src = blobUrl;
  image.hidden = false;
  none.hidden = true;
}

function card(hit) {
  const node = $("hit").content.cloneNode(true);
  const find = (name) => node.querySelector(name);
  const caption = hit.caption || hit.labels.join(", ") || hit.id;
  const image = find("img");
  image.hidden = true;
  image.alt = caption;
  find(".caption").textContent = caption;
  find(".classes").textContent = hit.labels.length ? `class: ${hit.labels.join(", ")}` : "no class";
  find(".score").textContent = `${hit.rank}. score ${hit.score.toFixed(3)}`;
  find(".id").textContent = hit.id;
  find(".like").setAttribute("aria-label", `More like ${caption}`);
  find(".like").addEventListener("click", () => search({ id: hit.id }, `more like ${caption}`));
  if (hit.thumbnail_url) showThumbnail(image, find(".none"), hit.thumbnail_url).catch(() => {});
  return node;
}

async function search(query, name) {
  const number = ++latest;
  $("error").textContent = "";
  $("status").textContent = "Searching...";
  try {
    const answer = await ask(query);
    if (number !== latest) return;
    shownUrls.forEach((url) => URL.revokeObjectURL(url));
    shownUrls = [];
    $("results").replaceChildren(...answer.results.map(card));
    const notes = [...answer.notes, ...answer.degraded].join("; ");
    $("status").textContent =
      `${answer.results.length} results for ${name} in ${Math.round(answer.timings_ms.total)} ms${notes ? ` (${notes})` : ""}`;
    $("results").focus({ preventScroll: true });
  } catch (error) {
    if (number !== latest) return;
    $("status").textContent = "";
    $("error").textContent = error.message;
  }
}

function submit() {
  const text = $("text").value.trim();
  if (picture) search({ image: picture }, "the picture");
  else if (text) search({ text }, `“${text}”`);
  else $("error").textContent = "Type some words or choose a picture first.";
}

function take(file) {
  if (!file) return;
  setPicture(file);
  submit();
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("image").addEventListener("change", () => take($("image").files[0]));
$("clear").addEventListener("click", () => { setPicture(null); $("text").focus(); });
$("text").addEventListener("input", () => { if (picture && $("text").value) setPicture(null); });
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
$("text").focus();
