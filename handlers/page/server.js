// What the page asks the server. Addresses are relative: the page works below any prefix, and with ?model=NAME asks
// the model of that name.

export class Refused extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

const model = new URLSearchParams(location.search).get("model"); // null: the server's default
const ofModel = model === null ? "" : `models/${encodeURIComponent(model)}/`; // before the paths of an index
let token = null;
const dialog = document.getElementById("token");

// An answer of the server, or Refused with its reason; asks for a token where the server wants one.
export async function ask(path, options = {}) {
  for (;;) {
    const sent = token;
    const headers = { ...options.headers, ...(sent && { authorization: `Bearer ${sent}` }) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, "The server does not answer. Is it still running, and are you still connected?");
    }
    if (answer.ok) return answer;
    const reason = await reasonOf(answer);
    if (answer.status === 401 && token !== sent) continue; // it was given meanwhile
    if (answer.status !== 401 || !(await askToken(reason))) throw new Refused(answer.status, reason);
  }
}

export async function askJson(path, options) {
  return (await ask(path, options)).json();
}

export function describe() {
  return askJson("models", { headers: { accept: "application/json" } });
}

export function modelName(description) {
  const there = Object.keys(description.models);
  const name = model ?? description.default ?? there[0];
  if (!there.includes(name)) throw new Refused(404, `There is no model ${name} here; there is ${there.join(", ")}.`);
  return name;
}

const FIELDS = "model,logits,label,confidence,neighbors,timing_ms";

export function predict(name, photo, k, signal) {
  const wanted = k ? `k=${k}&fields=${FIELDS}` : `fields=${FIELDS}`;
  const path = `predictions/${encodeURIComponent(name)}?${wanted}`;
  return timed(path, { method: "POST", body: photo, headers: { "content-type": typeOf(photo) }, signal });
}

export function searchById(id, k, signal) {
  const headers = { "content-type": "application/json" };
  return timed(`${ofModel}index/search`, { method: "POST", body: JSON.stringify({ id, k }), headers, signal });
}

export function addRow(id, label, photo) {
  const query = label ? `?label=${encodeURIComponent(label)}` : "";
  const headers = { "content-type": typeOf(photo) };
  return askJson(`${ofModel}index/${encodeURIComponent(id)}${query}`, { method: "PUT", body: photo, headers });
}

export function row(id) {
  return askJson(`${ofModel}index/${encodeURIComponent(id)}`);
}

export async function isTaken(id) {
  try {
    await row(id);
    return true;
  } catch (error) {
    if (error.status === 404) return false;
    throw error;
  }
}

export function map() {
  return askJson(`${ofModel}index/map`);
}

// The address of a small picture of a row, for an <img>; where reads want the token, of a copy of it.
export async function thumbnail(id) {
  const path = `${ofModel}thumbnails/${encodeURIComponent(id)}`;
  return token ? URL.createObjectURL(await (await ask(path)).blob()) : path;
}

// The JSON of an answer and what it took: {answer, total, stages: {queue, decode, embed, search}}, milliseconds.
async function timed(path, options) {
  const started = performance.now();
  const response = await ask(path, options);
  const answer = await response.json();
  const total = performance.now() - started;
  const queue = /(?:^|[ ,])queue;dur=([\d.]+)/.exec(response.headers.get("server-timing") ?? "");
  return { answer, total, stages: { ...(queue && { queue: Number(queue[1]) }), ...answer.timing_ms } };
}

// What the browser calls anything but an image goes as bytes: the server looks for itself, and says what it found.
function typeOf(photo) {
  return photo.type.startsWith("image/") ? photo.type : "application/octet-stream";
}

async function reasonOf(answer) {
  try {
    return (await answer.json()).error ?? `The server answers ${answer.status}.`;
  } catch {
    return `The server answers ${answer.status}.`;
  }
}

let asking = null;

// Whether the user has given a token; questions at the same time share one dialog.
function askToken(reason) {
  asking ??= new Promise((resolve) => {
    const input = dialog.querySelector("input");
    document.getElementById("token-reason").textContent = reason;
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "send" && input.value.trim();
        if (given) token = given;
        input.value = "";
        asking = null;
        resolve(Boolean(given));
      },
      { once: true },
    );
    dialog.showModal();
    input.focus();
  });
  return asking;
}
