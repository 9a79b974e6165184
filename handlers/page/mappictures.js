// Pictures on the map: which points have room for theirs, and the thumbnails themselves.

import { pictures } from "./results.js";
import { thumbnail } from "./server.js";

const HALF = 21; // of a picture's side, pixels
const ASKED = 26; // of what was asked for
const GAP = 5;
const CROWD = 150; // with more points in view, only those that were found have pictures
const REMEMBERED = 400; // thumbnails, of 128 pixels a side
const TRIES = 6; // without a single thumbnail, before no more are asked for

export class MapPictures {
  constructor(canvas, changed) {
    Object.assign(this, { canvas, changed });
    this.images = new Map(); // by id; null where there is none
    this.loading = 0;
    this.seen = 0; // thumbnails that came
    this.failed = 0;
    this.placed = []; // [{point, x, y, half}] of the last drawing
  }

  // here, near, others: points, in the order in which they get room. here may be no row but a place, with a photo.
  draw(pen, camera, { here, near, others, photo, ink, colour }) {
    this.placed = [];
    const add = (point, half, frame, image) =>
      this.place(pen, ...camera.toScreen(point), { point, half, frame, image });
    if (here && photo?.complete) add(here, ASKED, ink, photo);
    if (!pictures.kept) return;
    if (here && !photo) add(here, ASKED, ink);
    const inView = (point) => camera.sees(point, -HALF);
    for (const point of near.filter(inView)) add(point, HALF, ink);
    const more = others.filter(inView);
    if (more.length <= CROWD) for (const point of more) add(point, HALF, colour(point));
  }

  // The picture of a row that has changed is asked for anew.
  forget(id) {
    this.images.delete(id);
  }

  // The point whose picture covers a place of the screen.
  at(x, y) {
    return this.placed.find((one) => Math.max(Math.abs(one.x - x), Math.abs(one.y - y)) <= one.half)?.point;
  }

  has(point) {
    return this.placed.some((one) => one.point === point);
  }

  place(pen, x, y, { point, half, frame, image }) {
    const covered = this.placed.some(
      (one) => Math.max(Math.abs(one.x - x), Math.abs(one.y - y)) < half + one.half + GAP,
    );
    const shown = covered ? null : (image ?? this.of(point.id));
    if (!shown?.naturalWidth) return;
    this.placed.push({ point, x, y, half });
    pen.save();
    pen.beginPath();
    pen.roundRect(x - half, y - half, 2 * half, 2 * half, 7);
    pen.lineWidth = 5; // the inner half of it lies under the picture
    pen.strokeStyle = frame;
    pen.stroke();
    pen.clip();
    const [width, height] = [shown.naturalWidth, shown.naturalHeight];
    const side = Math.min(width, height);
    pen.drawImage(shown, (width - side) / 2, (height - side) / 2, side, side, x - half, y - half, 2 * half, 2 * half);
    pen.restore();
  }

  of(id) {
    const known = this.images.get(id);
    if (known !== undefined) return known?.complete ? known : null;
    if (this.seen === 0 && this.failed >= TRIES) return null;
    if (this.images.size >= REMEMBERED) this.images.delete(this.images.keys().next().value);
    this.load(id);
    return null;
  }

  async load(id) {
    const image = new Image();
    this.images.set(id, image);
    this.count(1);
    let address;
    try {
      image.src = address = await thumbnail(id);
      await image.decode();
      this.seen += 1;
    } catch {
      this.images.set(id, null);
      this.failed += 1;
    } finally {
      if (address?.startsWith("blob:")) URL.revokeObjectURL(address);
      this.count(-1);
      this.changed();
    }
  }

  count(more) {
    this.loading += more;
    this.canvas.ariaBusy = String(this.loading > 0);
  }
}
