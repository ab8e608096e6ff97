// Requests of the page: JSON or a problem with got, expected and remedy; the API key lives in this page's memory only.
export const $ = (id) => document.getElementById(id);

let key = "";
export const useKey = (next) => { key = next; };
export const hasKey = () => Boolean(key);
const keyHeader = () => (key ? { Authorization: `Bearer ${key}` } : {});

export class Problem extends Error {
  constructor(status, body) {
    const parts = ["got", "expected", "remedy"].filter((name) => body[name]).map((name) => `${name}: ${body[name]}`);
    super([body.title ?? `HTTP ${status}`, ...parts].join("\n"));
    this.status = status;
  }
}

export async function api(path, { json, form } = {}) {
  const init = { method: json || form ? "POST" : "GET", headers: keyHeader(), body: form };
  if (json) {
    init.headers["Content-Type"] = "application/json";
    init.body = JSON.stringify(json);
  }
  let answer;
  try {
    answer = await fetch(path, init);
  } catch {
    throw new Error("The service does not answer.");
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Problem(answer.status, body);
  return body;
}

// The address of a picture of this service. With a key it is fetched by hand: an <img> cannot carry one.
export async function pictureUrl(path) {
  if (!hasKey()) return path;
  const answer = await fetch(path, { headers: keyHeader() });
  if (!answer.ok) throw new Problem(answer.status, {});
  return URL.createObjectURL(await answer.blob());
}
