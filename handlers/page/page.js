// The page of akin: a photo, or a row of the gallery, to its labels, timings and neighbours; and the map.

import { colourOf } from "./colours.js";
import { MapSection } from "./mapsection.js";
import { counted, element, fillPicture, percent, pictures } from "./results.js";
import { showBars, showNeighbours, showTiming, softmax, vote } from "./results.js";
import { addRow, describe, isTaken, modelName, predict, Refused, row, searchById } from "./server.js";

const K = 12;
const AGAIN_MS = 1000; // while the encoder loads
const NO_GALLERY = "There is no gallery to search in: start the server with --images or --index.";
const REMEMBERED = 20; // photos, for the Back button
const NAMES = 100; // that are tried for a photo, before one with the time

const at = (id) => document.getElementById(id);
const map = new MapSection(at("map"), visit);
const photos = []; // that were asked, for the Back button
let server = null; // {name, classNames, gallery}
let subject = null; // {photo} or {id, label}
let neighbours = [];
let running = null; // AbortController of the search under way
let replacing = null; // the id of the row that Add, pressed again, replaces

let ready = start();
ready.then(() => server && openAddress());

async function start() {
  for (;;) {
    try {
      const description = await describe();
      setUp(description);
      break;
    } catch (error) {
      if (error.status !== 503) return complain(error);
      say("The encoder is loading …");
      await new Promise((wake) => setTimeout(wake, AGAIN_MS));
    }
  }
  say(server.gallery ? "" : NO_GALLERY);
  refreshMap().catch(complain);
}

function setUp(description) {
  const name = modelName(description);
  const served = description.served?.find((one) => one.name === name && one.current) ?? {};
  server = {
    name,
    classNames: served.class_names ?? description.class_names,
    gallery: served.gallery ?? description.gallery_rows !== null,
  };
  pictures.kept = served.thumbnails ?? true;
  const provider = served.provider ?? description.provider;
  const about = [served.model ?? description.models[name], provider.replace("ExecutionProvider", "")];
  if (!server.gallery) about.push("no gallery");
  at("about").replaceChildren(...about.map((text) => element("span", { text })));
  for (const label of server.classNames) colourOf(label);
  at("classes").replaceChildren(...server.classNames.map((label) => element("option", { value: label })));
  at("map").hidden = !server.gallery;
  at("main").classList.toggle("alone", !server.gallery);
  const names = Object.keys(description.models);
  if (names.length > 1) {
    const links = names.map((one) => element("a", { href: `?model=${encodeURIComponent(one)}`, text: one }));
    links[names.indexOf(name)]?.setAttribute("aria-current", "page");
    at("links").prepend(...links);
  }
}

// Asking ----------------------------------------------------------------------------------------------------------

// A photo, kept for the Back button.
async function take(photo) {
  await ready;
  if (server === null) await (ready = start()); // it could not be asked before
  if (server === null) return;
  photos.push(photo);
  delete photos[photos.length - 1 - REMEMBERED];
  history.pushState({ photo: photos.length - 1 }, "", location.pathname + location.search);
  search({ photo });
}

// A row of the gallery. Its address can be shared.
function visit(id) {
  history.pushState(null, "", `#id=${encodeURIComponent(id)}`);
  openAddress();
}

function openAddress() {
  const photo = photos[history.state?.photo];
  if (photo) return search({ photo });
  if (!location.hash.startsWith("#id=")) return;
  let id;
  try {
    id = decodeURIComponent(location.hash.slice(4));
  } catch {
    return complain(new Error("The address names no id that can be read."));
  }
  search({ id });
}

async function search(asked) {
  running?.abort();
  const mine = (running = new AbortController());
  complain(null);
  say("Searching …");
  at("near").classList.add("busy");
  try {
    const done = await find(asked, mine.signal);
    if (mine !== running) return;
    const best = show(asked, done);
    const sight = best ? `${best.label}, ${percent(best.share)}. ` : "";
    if (server.gallery) say(`${sight}${counted(neighbours.length, "neighbour")} found.`, { seen: false });
    else say(NO_GALLERY);
  } catch (error) {
    if (mine !== running || error.name === "AbortError") return;
    say("");
    complain(error);
  }
  at("near").classList.remove("busy");
}

async function find(asked, signal) {
  if (asked.photo) {
    try {
      return await predict(server.name, asked.photo, server.gallery ? K : 0, signal);
    } catch (error) {
      if (error.status !== 409 || !server.gallery) throw error;
      server.gallery = false; // a version without one took over
      return predict(server.name, asked.photo, 0, signal);
    }
  }
  const [done, record] = await Promise.all([searchById(asked.id, K, signal), row(asked.id)]);
  asked.label = record.label ?? null;
  return done;
}

// Showing ---------------------------------------------------------------------------------------------------------

// Shows all of an answer; the label that comes first, {label, share}.
function show(asked, done) {
  if (asked.photo && asked.photo !== subject?.photo) at("add").reset();
  subject = asked;
  neighbours = done.answer.neighbors ?? [];
  showSubject();
  const { logits } = done.answer;
  const byProbe = logits?.length > 0;
  const bars = byProbe ? softmax(logits, server.classNames) : vote(neighbours);
  showBars(at("labels"), byProbe ? "What the encoder sees" : "What its neighbours say", bars);
  showTiming(at("timing"), done);
  const list = at("near");
  list.hidden = !server.gallery;
  const note = list.querySelector("p");
  note.hidden = neighbours.length > 0;
  const first = "The gallery is empty. Add the photo, and it is the first.";
  note.textContent = asked.photo ? first : "There is no other row.";
  showNeighbours(list.querySelector("ol"), neighbours, (one) => visit(one.id));
  map.mark(marked(), neighbours);
  at("add").hidden = !(subject.photo && server.gallery);
  if (subject.photo) at("add").elements.id.value ||= subject.photo.name || `photo-${Date.now()}`;
  return bars[0];
}

// What the map needs to know of the subject.
function marked() {
  return subject.photo ? { image: at("picture").querySelector("img") } : { id: subject.id };
}

function showSubject() {
  const [picture, caption] = [at("picture"), at("caption")];
  at("subject").hidden = false;
  at("invitation").hidden = true;
  at("drop").classList.add("full");
  if (subject.photo) {
    const address = URL.createObjectURL(subject.photo);
    const image = element("img", { alt: "Your photo", src: address });
    image.onload = image.onerror = () => URL.revokeObjectURL(address);
    picture.classList.remove("tile");
    picture.dataset.of = "";
    picture.replaceChildren(image);
    caption.replaceChildren(element("b", { text: subject.photo.name || "pasted photo" }));
  } else {
    fillPicture(picture, subject);
    caption.replaceChildren(element("span", { text: subject.id }));
    if (subject.label !== null) {
      caption.prepend(element("span", { className: "dot" }), element("b", { text: subject.label }));
      caption.style.setProperty("--label", colourOf(subject.label));
    }
  }
}

// seen: false is for those who listen; others see for themselves.
function say(text, { seen = true } = {}) {
  at("status").classList.toggle("out-of-sight", !seen);
  at("status").textContent = text;
}

function complain(error) {
  at("problem").hidden = error === null;
  at("problem").textContent = error === null ? "" : error.message;
  if (error !== null && !(error instanceof Refused)) console.warn(error);
}

async function refreshMap() {
  if (!server.gallery) return;
  await map.refresh();
  if (subject) map.mark(marked(), neighbours);
  at("random").hidden = map.ids.length === 0;
}

// What the user does ----------------------------------------------------------------------------------------------

at("choose").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", () => {
  if (at("file").files.length) take(at("file").files[0]);
  at("file").value = ""; // the same one again is a change too
});
at("random").addEventListener("click", () => {
  visit(map.ids[Math.floor(Math.random() * map.ids.length)]);
});

// A drop anywhere counts: beside the frame the browser would leave the page for the photo.
let within = 0;
addEventListener("dragenter", () => at("drop").classList.toggle("over", ++within > 0));
addEventListener("dragleave", () => at("drop").classList.toggle("over", --within > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  within = 0;
  at("drop").classList.remove("over");
  if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  else complain(new Refused(0, "That was no file. Save the picture first, then drop its file here."));
});
addEventListener("paste", (event) => event.clipboardData.files.length && take(event.clipboardData.files[0]));
addEventListener("popstate", () => server && openAddress());

// The name to add a photo under: phones call every picture the same, so one that nobody has chosen gives way to a row
// that has it; one that was typed has to be confirmed. Null where it has not been yet.
async function nameFor(id, photo) {
  if (id === replacing || !(await isTaken(id))) {
    replacing = null;
    return id;
  }
  if (id !== photo.name) {
    replacing = id;
    complain(new Refused(0, `There is a row ${id} already. Press Add once more to replace it, or choose another name.`));
    return null;
  }
  const [, stem, end] = /^(.+?)(\.[^.]*)?$/s.exec(id);
  for (let number = 2; number <= NAMES; number += 1) {
    const other = `${stem}-${number}${end ?? ""}`;
    if (!(await isTaken(other))) return other;
  }
  return `${stem}-${Date.now()}${end ?? ""}`;
}

at("add").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [id, label] = ["id", "label"].map((name) => at("add").elements[name].value.trim());
  const button = at("add").querySelector("button");
  const { photo } = subject;
  button.disabled = true;
  complain(null);
  try {
    const name = await nameFor(id, photo);
    if (name === null) return;
    await addRow(name, label, photo);
    map.forget(name);
    if (subject.photo === photo) {
      await search({ photo });
      at("add").elements.id.value = name;
    }
    say(`Added as ${name}.`);
    refreshMap().catch(complain);
  } catch (error) {
    complain(error);
  } finally {
    button.disabled = false;
  }
});
