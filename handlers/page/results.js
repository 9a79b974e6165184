// What an answer looks like: bars of labels, the time by stage, pictures of rows. Text goes in as text, never as HTML.

import { colourOf } from "./colours.js";
import { thumbnail } from "./server.js";

export const pictures = { kept: true }; // whether the server keeps thumbnails

const SHOWN = 5; // bars, before all are asked for
const TAIL = 8; // characters of a long name
const TEMPERATURE = 0.07; // of the neighbours' vote, as in the server's
const STAGES = { queue: "queue", decode: "decode", embed: "embed", search: "search", rest: "network, browser" };

export function element(tag, { text, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

// [{label, share}], best first.
export function softmax(logits, names) {
  const most = Math.max(...logits);
  const weights = logits.map((logit) => Math.exp(logit - most));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return ranked(weights.map((weight, i) => ({ label: names[i] ?? `class ${i}`, share: weight / total })));
}

export function vote(neighbours) {
  const voters = neighbours.filter((one) => one.label !== null);
  const best = Math.max(...voters.map((one) => one.score));
  const weights = new Map();
  for (const { label, score } of voters) {
    weights.set(label, (weights.get(label) ?? 0) + Math.exp((score - best) / TEMPERATURE));
  }
  const total = [...weights.values()].reduce((sum, weight) => sum + weight, 0);
  return ranked([...weights].map(([label, weight]) => ({ label, share: weight / total })));
}

function ranked(bars) {
  return bars.sort((a, b) => b.share - a.share);
}

export function showBars(card, title, bars) {
  const [list, more] = [card.querySelector("ol"), card.querySelector("button")];
  card.hidden = bars.length === 0;
  card.querySelector("h2").textContent = title;
  const show = (count) => {
    list.replaceChildren(...bars.slice(0, count).map(bar));
    more.hidden = bars.length <= count;
  };
  show(SHOWN);
  more.textContent = `All ${bars.length} labels`;
  more.onclick = () => {
    show(bars.length);
    list.tabIndex = -1;
    list.focus();
  };
}

function bar({ label, share }) {
  const fill = element("div", { className: "fill" });
  fill.style.width = `${100 * share}%`;
  const row = element(
    "li",
    {},
    element("span", { className: "name", text: label, title: label }),
    element("div", { className: "track", ariaHidden: "true" }, fill),
    element("span", { className: "value", text: percent(share) }),
  );
  row.style.setProperty("--label", colourOf(label));
  return row;
}

export function percent(share) {
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
}

// "1 row", "2,000 rows".
export function counted(number, what) {
  return `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
}

export function showTiming(card, { stages, total }) {
  const inside = Object.values(stages).reduce((sum, ms) => sum + ms, 0);
  const parts = Object.entries({ ...stages, rest: Math.max(0, total - inside) }).filter(([name]) => name in STAGES);
  card.hidden = false;
  card.querySelector("h2 .value").textContent = `${milliseconds(total)} in all`;
  const stack = card.querySelector(".stack");
  stack.replaceChildren(...parts.map(([name, ms]) => coloured(element("i"), name, (one) => (one.style.flexGrow = ms))));
  stack.ariaLabel = parts.map(([name, ms]) => `${STAGES[name]} ${milliseconds(ms)}`).join(", ");
  card.querySelector("dl").replaceChildren(
    ...parts.map(([name, ms]) =>
      coloured(
        element("div", {}, element("dt", { text: STAGES[name] }), element("dd", { text: milliseconds(ms) })),
        name,
      ),
    ),
  );
}

function coloured(made, stage, also = () => {}) {
  made.style.setProperty("--stage", `var(--${stage})`);
  also(made);
  return made;
}

function milliseconds(ms) {
  return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

export function showNeighbours(list, neighbours, choose) {
  list.replaceChildren(
    ...neighbours.map((one) => {
      const picture = element("div", { className: "picture" });
      const [dot, last] = [element("span", { className: "dot" }), one.id.split("/").pop() || one.id];
      const score = element("span", { className: "value", text: one.score.toFixed(3) });
      const lines =
        one.label === null
          ? [line("", words(last)), line("quiet", words("score"), score)]
          : [line("", dot, words(one.label)), line("quiet", words(tail(last)), score)];
      const button = element("button", { type: "button", title: one.id }, picture, ...lines);
      button.ariaLabel = `Search by ${spoken(one)}, similarity ${one.score.toFixed(3)}`;
      button.style.setProperty("--label", colourOf(one.label));
      button.addEventListener("click", () => choose(one));
      fillPicture(picture, one);
      return element("li", {}, button);
    }),
  );
}

function line(kind, ...children) {
  return element("span", { className: `line ${kind}` }, ...children);
}

function words(text) {
  return element("span", { className: "text", text });
}

// The end tells names of one folder apart.
function tail(name) {
  const characters = [...name];
  return characters.length > TAIL + 2 ? `…${characters.slice(-TAIL).join("")}` : name;
}

// A row in words.
export function spoken({ id, label }) {
  return label === null ? id : `${label}, ${id}`;
}

// The thumbnail of a row where one is kept, a tile in the colour of its label where not.
export function fillPicture(frame, row) {
  frame.replaceChildren();
  frame.classList.remove("tile");
  frame.dataset.of = row.id;
  if (!pictures.kept) return tile(frame, row);
  const image = element("img", { alt: "", decoding: "async" });
  image.addEventListener("error", () => frame.dataset.of === row.id && tile(frame, row));
  const release = () => image.src.startsWith("blob:") && URL.revokeObjectURL(image.src);
  for (const end of ["load", "error"]) image.addEventListener(end, release);
  frame.append(image);
  thumbnail(row.id).then(
    (address) => (image.src = address),
    () => frame.dataset.of === row.id && tile(frame, row),
  );
}

function tile(frame, row) {
  frame.replaceChildren(element("span", { text: row.label ?? "?" }));
  frame.classList.add("tile");
  frame.style.setProperty("--label", colourOf(row.label));
}
