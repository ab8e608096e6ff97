// The search page: one form, one grid, one address per search. Everything is same-origin and put in as text, never as markup.
import { $, api, pictureUrl, Problem, useKey } from "./api.js";
import { showHits } from "./results.js";

const DEFAULT_K = 24;
let chosen = null; // what is searched with instead of words: {file} or {id, name}
let labels = []; // classes that the search is restricted to
let indexes = []; // what /v1/indexes says
let latest = 0; // number of the newest search: late answers of older ones are dropped

const target = () => document.querySelector("input[name=target]:checked").value;
const served = () => indexes.find((index) => index.name === $("index").value) ?? indexes[0];

function choose(next) {
  chosen = next;
  $("chosen").hidden = !next;
  $("chosen-name").textContent = next ? (next.file ? "your picture" : `like ${next.name}`) : "";
  if (!next) $("image").value = "";
  else $("text").value = "";
  preview(next);
}

async function preview(next) {
  const image = $("preview");
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.removeAttribute("src");
  image.hidden = true;
  if (!next) return;
  const index = indexes.length > 1 ? `?index=${encodeURIComponent($("index").value)}` : "";
  const url = next.file
    ? URL.createObjectURL(next.file)
    : await pictureUrl(`/v1/thumbnails/${encodeURIComponent(next.id)}${index}`).catch(() => null);
  if (!url || next !== chosen) return;
  image.onload = () => { image.hidden = false; };
  image.src = url;
}

function setLabels(next) {
  labels = [...new Set(next.map((label) => label.trim()).filter(Boolean))];
  $("filters").replaceChildren(...labels.map((label) => {
    const item = document.createElement("li");
    const button = Object.assign(document.createElement("button"), { type: "button", className: "chip", textContent: `${label} ×` });
    button.setAttribute("aria-label", `Stop searching in class ${label} only`);
    button.addEventListener("click", () => { setLabels(labels.filter((other) => other !== label)); $("label").focus(); again(); });
    item.append(button);
    return item;
  }));
}

function request() {
  const body = { target: target() };
  const rows = served()?.counts[body.target];
  const bound = Math.min(served()?.max_k ?? Infinity, rows ?? Infinity);
  const wanted = Number($("k").value) || DEFAULT_K;
  if (rows) body.k = $("k").value ? wanted : Math.min(wanted, bound);
  else if ($("k").value) body.k = wanted;
  if (indexes.length > 1) body.index = $("index").value;
  if (labels.length) body.filter = { labels };
  if ($("lambda").value !== "") body.lambda = Number($("lambda").value);
  if (!$("rerank-row").hidden && $("rerank").checked) body.rerank = true;
  return body;
}

function question() {
  if (chosen?.file) return { name: "your picture" };
  if (chosen) return { query: { id: chosen.id }, name: `more like ${chosen.name}` };
  const text = $("text").value.trim();
  return text ? { query: { text }, name: `“${text}”` } : null;
}

function ask(query) {
  if (query) return api("/v1/search", { json: { ...request(), query } });
  const form = new FormData();
  form.append("image", chosen.file, "image");
  form.append("request", JSON.stringify(request()));
  return api("/v1/search", { form });
}

function say(error) {
  $("error").hidden = !error;
  $("error").textContent = error?.message ?? "";
  $("unlock").hidden = !(error instanceof Problem && error.status === 401);
  if (!$("unlock").hidden) { $("error").hidden = true; $("key").focus(); }
}

async function search({ remember = true, focus = false } = {}) {
  const asked = question();
  if (!asked) {
    say(new Error("Type some words or choose a picture first."));
    $("text").focus();
    return;
  }
  const number = ++latest;
  if (remember) history.pushState(null, "", address());
  say(null);
  $("status").textContent = "Searching…";
  $("results").setAttribute("aria-busy", "true");
  const began = performance.now();
  try {
    const answer = await ask(asked.query);
    if (number !== latest) return;
    showHits(answer, { target: target(), index: indexes.length > 1 ? $("index").value : null, onLike: like, onLabel: only });
    suggest(answer.results);
    const notes = [...answer.notes, ...answer.degraded].join("; ");
    const count = answer.results.length;
    $("status").textContent = `${count} ${count === 1 ? "result" : "results"} for ${asked.name} in ${Math.round(performance.now() - began)} ms${notes ? ` (${notes})` : ""}`;
    document.title = `${asked.name} · zscmr search`;
    if (focus) $("results").focus({ preventScroll: true });
    if (focus) scrollTo({ top: 0 });
  } catch (error) {
    if (number !== latest) return;
    $("status").textContent = "";
    say(error);
  } finally {
    if (number === latest) $("results").setAttribute("aria-busy", "false");
  }
}

const again = () => { if (question()) search(); };
const only = (label) => { setLabels([...labels, label]); search({ focus: true }); };
const like = (hit, name) => {
  choose({ id: hit.id, name });
  search({ focus: true });
};

function suggest(hits) {
  const known = new Set([...$("labels").options].map((option) => option.value));
  hits.flatMap((hit) => hit.labels).forEach((label) => {
    if (known.has(label)) return;
    known.add(label);
    $("labels").append(Object.assign(document.createElement("option"), { value: label }));
  });
}

// A search's address: whatever is in the form, but for a picture, which only this browser has.
function address() {
  const parts = new URLSearchParams();
  if (chosen?.id) { parts.set("like", chosen.id); parts.set("name", chosen.name); }
  else if ($("text").value.trim()) parts.set("q", $("text").value.trim());
  if (target() !== "image") parts.set("in", target());
  labels.forEach((label) => parts.append("class", label));
  for (const name of ["k", "lambda"]) if ($(name).value !== "") parts.set(name, $(name).value);
  if ($("rerank").checked) parts.set("rerank", "1");
  if (indexes.length > 1) parts.set("index", $("index").value);
  const text = parts.toString();
  return text ? `/?${text}` : "/";
}

function restore() {
  const parts = new URLSearchParams(location.search);
  choose(parts.has("like") ? { id: parts.get("like"), name: parts.get("name") ?? "it" } : null);
  if (!chosen) $("text").value = parts.get("q") ?? "";
  const wanted = parts.get("in") === "text" ? "text" : "image";
  document.querySelector(`input[name=target][value=${wanted}]`).checked = true;
  setLabels(parts.getAll("class"));
  for (const name of ["k", "lambda"]) $(name).value = parts.get(name) ?? "";
  $("rerank").checked = parts.has("rerank");
  if (parts.has("index") && indexes.some((index) => index.name === parts.get("index"))) $("index").value = parts.get("index");
  describe();
  if (question()) search({ remember: false });
}

function describe() {
  $("rerank-row").hidden = !served()?.rerank;
  if (!served()) return;
  const { counts } = served();
  const amount = (side, one, many) => (counts[side] ? [`${counts[side].toLocaleString("en")} ${counts[side] === 1 ? one : many}`] : []);
  $("about").textContent = [...amount("image", "picture", "pictures"), ...amount("text", "caption", "captions")].join(" and ");
}

async function begin() {
  try {
    indexes = (await api("/v1/indexes")).indexes;
    $("index").replaceChildren(...indexes.map(({ name }) => Object.assign(document.createElement("option"), { value: name, textContent: name })));
    $("index-row").hidden = indexes.length < 2;
    say(null);
  } catch (error) {
    say(error);
    return;
  }
  restore();
}

function take(file) {
  if (!file) return;
  choose({ file });
  search();
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
  begin().then(() => { if ($("unlock").hidden) $("text").focus(); });
});
$("image").addEventListener("change", () => take($("image").files[0]));
$("clear").addEventListener("click", () => { choose(null); $("text").focus(); });
$("text").addEventListener("input", () => { if (chosen && $("text").value) { const { value } = $("text"); choose(null); $("text").value = value; } });
$("label").addEventListener("change", () => { if ($("label").value.trim()) { setLabels([...labels, $("label").value]); $("label").value = ""; again(); } });
$("label").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); $("label").dispatchEvent(new Event("change")); } });
document.querySelectorAll("input[name=target]").forEach((radio) => radio.addEventListener("change", again));
for (const name of ["k", "lambda", "rerank"]) $(name).addEventListener("change", again);
$("index").addEventListener("change", () => { describe(); again(); });
document.addEventListener("keydown", (event) => {
  const types = event.target.matches("input, select, textarea");
  if (event.key === "/" && !types) { event.preventDefault(); $("text").focus(); $("text").select(); }
  if (event.key === "Escape" && $("options").open) { $("options").open = false; $("options").querySelector("summary").focus(); }
});
document.addEventListener("click", (event) => { if (!$("options").contains(event.target)) $("options").open = false; });
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
addEventListener("popstate", restore);
$("text").focus();
begin();
