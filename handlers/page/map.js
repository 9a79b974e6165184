// The map: points on a canvas, to wander in by mouse, finger or keyboard.

import { colourOf } from "./colours.js";
import { Camera } from "./camera.js";
import { MapPictures } from "./mappictures.js";

const REACH = 18; // pixels from a point at which it is meant
const STILL = 5; // pixels that a click may move
const STEP = 60; // pixels that Shift and an arrow move the map
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class PointMap {
  // choose(point) when one is taken, point(point or null, x, y, by) when one is looked at.
  constructor(canvas, { choose, look }) {
    this.canvas = canvas;
    this.camera = new Camera(() => this.later());
    this.pictures = new MapPictures(canvas, () => this.later());
    this.points = [];
    this.only = null; // the one label that is shown bright
    this.here = null; // {x, y} of what was asked; a point where it is a row
    this.photo = null; // an <img> of what was asked, where it is none
    this.near = []; // points of its neighbours
    this.at = null; // the point that is looked at
    this.fingers = new Map();
    Object.assign(this, { choose, look });
    this.listen();
    new ResizeObserver(() => this.resize()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.later());
  }

  show(points) {
    this.points = points;
    this.byId = new Map(points.map((point) => [point.id, point]));
    this.labelled = points.some((point) => point.label !== null);
    this.camera.cover(points);
    this.lookAt(null);
    this.later();
  }

  // What was asked for, a row's {id} or a photo's {image}, among its neighbours. A photo lies where they pull it.
  mark({ id = null, image = null }, neighbours) {
    const placed = neighbours.filter((one) => this.byId?.has(one.id));
    this.near = placed.map((one) => this.byId.get(one.id));
    this.here = (id !== null && this.byId?.get(id)) || middle(placed, this.near);
    this.photo = image;
    image?.decode().then(() => this.later(), () => {});
    this.later();
  }

  highlight(label) {
    this.only = label;
    this.later();
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const ratio = devicePixelRatio || 1;
    Object.assign(this.canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    this.camera.resize(width, height);
    this.draw();
  }

  later() {
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = null;
    const { camera, canvas } = this;
    const pen = canvas.getContext("2d");
    const ratio = devicePixelRatio || 1;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, camera.width, camera.height);
    canvas.classList.toggle("closer", camera.zoom > 1.01);
    const { color: ink, accentColor } = getComputedStyle(canvas);
    this.plain = this.labelled ? colourOf(null) : accentColor; // where no row has a label, grey would only be dull
    const room = Math.sqrt((camera.width * camera.height) / this.points.length); // pixels, to the next point
    const size = Math.min(9, Math.max(2.2, Math.min(4, 0.14 * room)) * camera.zoom ** 0.45);
    for (const bright of [false, true]) {
      pen.globalAlpha = bright ? 0.9 : 0.14;
      for (const point of this.points) {
        if (this.isBright(point) === bright) this.dot(pen, point, size, this.colour(point));
      }
    }
    pen.globalAlpha = 1;
    this.drawMarks(pen, size, ink);
  }

  colour({ label }) {
    return label === null ? this.plain : colourOf(label);
  }

  isBright(point) {
    return this.only === null || point.label === this.only;
  }

  drawMarks(pen, size, ink) {
    pen.strokeStyle = ink;
    if (this.here) this.drawRays(pen);
    for (const point of this.near) this.ring(pen, point, size + 2.5, 1.6);
    const others = this.points.filter((point) => this.isBright(point));
    this.pictures.draw(pen, this.camera, { ...this, others, ink, colour: (point) => this.colour(point) });
    if (this.here && !this.pictures.has(this.here)) {
      this.ring(pen, this.here, size + 7, 2.6);
      this.dot(pen, this.here, 3.5, ink);
    }
    if (this.at) {
      this.dot(pen, this.at, size + 2.5, this.colour(this.at));
      this.ring(pen, this.at, size + 4.5, 2.2);
    }
  }

  drawRays(pen) {
    const [x, y] = this.camera.toScreen(this.here);
    pen.globalAlpha = 0.4;
    pen.lineWidth = 1;
    pen.beginPath();
    for (const point of this.near) {
      pen.moveTo(x, y);
      pen.lineTo(...this.camera.toScreen(point));
    }
    pen.stroke();
    pen.globalAlpha = 1;
  }

  dot(pen, place, radius, colour) {
    pen.fillStyle = colour;
    pen.beginPath();
    pen.arc(...this.camera.toScreen(place), radius, 0, 7);
    pen.fill();
  }

  ring(pen, place, radius, width) {
    pen.lineWidth = width;
    pen.beginPath();
    pen.arc(...this.camera.toScreen(place), radius, 0, 7);
    pen.stroke();
  }

  nearest(x, y) {
    const covering = this.pictures.at(x, y);
    if (covering) return covering.id === undefined ? null : covering;
    let [best, least] = [null, REACH ** 2];
    for (const point of this.points) {
      if (!this.isBright(point)) continue;
      const [px, py] = this.camera.toScreen(point);
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  }

  lookAt(point, by = "mouse") {
    if (point === this.at && by === "mouse") return;
    this.at = point;
    this.canvas.classList.toggle("on-point", point !== null);
    this.look(point, ...(point ? this.camera.toScreen(point) : [0, 0]), by);
    this.later();
  }

  // Around what is looked at or was asked for, where it is in view, or else around the middle.
  zoomBy(factor) {
    const around = this.at ?? this.here;
    if (around && this.camera.sees(around)) this.camera.zoomBy(factor, ...this.camera.toScreen(around));
    else this.camera.zoomBy(factor);
  }

  // The next point in the direction of an arrow: near, and rather ahead than aside.
  walk([dx, dy]) {
    const from = this.at ?? this.here ?? this.camera.middle();
    let [best, least] = [null, Infinity];
    for (const point of this.points) {
      if (point === this.at || !this.isBright(point)) continue;
      // On the map y grows upwards, on the screen downwards.
      const [x, y] = [point.x - from.x, from.y - point.y];
      const ahead = x * dx + y * dy;
      const aside = Math.abs(x * dy) + Math.abs(y * dx);
      if (ahead <= 0 || aside > 2 * ahead) continue;
      const cost = ahead + 2 * aside;
      if (cost < least) [best, least] = [point, cost];
    }
    if (best === null) return;
    this.camera.bringIntoView(best);
    this.lookAt(best, "keyboard");
  }

  listen() {
    const on = (name, does, options) => this.canvas.addEventListener(name, does.bind(this), options);
    on("pointerdown", this.pressed);
    on("pointermove", this.moved);
    on("pointerup", this.released);
    on("pointercancel", (event) => this.fingers.delete(event.pointerId));
    on("pointerleave", (event) => event.pointerType === "mouse" && this.lookAt(null));
    on("wheel", this.wheeled, { passive: false });
    on("keydown", this.keyed);
    on("blur", () => this.lookAt(null));
  }

  pressed(event) {
    if (event.button !== 0) return; // the left one, a finger, a pen
    this.canvas.setPointerCapture(event.pointerId);
    this.fingers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    this.travelled = this.fingers.size > 1 ? Infinity : 0;
  }

  moved(event) {
    const now = { x: event.offsetX, y: event.offsetY };
    const before = this.fingers.get(event.pointerId);
    if (!before) return this.lookAt(this.nearest(now.x, now.y));
    const other = [...this.fingers].find(([id]) => id !== event.pointerId)?.[1];
    this.travelled += Math.hypot(now.x - before.x, now.y - before.y);
    if (other) this.camera.pinch(before, now, other);
    else if (this.travelled > STILL) this.camera.move(now.x - before.x, now.y - before.y);
    this.fingers.set(event.pointerId, now);
    this.canvas.classList.toggle("dragging", this.travelled > STILL);
    if (this.travelled > STILL) this.lookAt(null);
  }

  released(event) {
    const alone = this.fingers.size === 1;
    this.fingers.delete(event.pointerId);
    this.canvas.classList.remove("dragging");
    const point = alone && this.travelled <= STILL && this.nearest(event.offsetX, event.offsetY);
    if (point) this.choose(point);
  }

  wheeled(event) {
    // The page scrolls by unless the map was asked: it has the focus, or Ctrl is held (a pinch on a touchpad is that).
    if (!(event.ctrlKey || event.metaKey || document.activeElement === this.canvas)) return;
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 20 : 1);
    this.camera.zoomBy(Math.exp(-pixels * (event.ctrlKey ? 0.01 : 0.002)), event.offsetX, event.offsetY);
  }

  keyed(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const arrow = ARROWS[event.key];
    if (arrow && event.shiftKey) this.camera.move(-STEP * arrow[0], -STEP * arrow[1]);
    else if (arrow) this.walk(arrow);
    else if (event.key === "+" || event.key === "=") this.zoomBy(1.4);
    else if (event.key === "-") this.zoomBy(1 / 1.4);
    else if (event.key === "0") this.camera.fit();
    else if (event.key === "Enter" && this.at) this.choose(this.at);
    else if (event.key === "Escape") this.lookAt(null);
    else return;
    event.preventDefault();
  }
}

// The mean of some places, each as heavy as its neighbour's similarity says.
function middle(neighbours, places) {
  if (!places.length) return null;
  const best = Math.max(...neighbours.map((one) => one.score));
  const weights = neighbours.map((one) => Math.exp((one.score - best) / 0.07));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const mean = (axis) => places.reduce((sum, place, i) => sum + weights[i] * place[axis], 0) / total;
  return { x: mean("x"), y: mean("y") };
}
