// Where on the screen a place of the map lies. Places run from -1 to 1, y upwards.

const MARGIN = 34; // pixels around all of it: room for half a picture
const CLOSEST = 60;
const STRETCH = 1.8; // one axis against the other: only nearness means something, and the frame shall be full

export class Camera {
  constructor(changed) {
    this.changed = changed;
    Object.assign(this, { width: 1, height: 1, zoom: 1, x: 0, y: 0 }); // x, y: the place in the middle
    this.reach = { x: 1, y: 1 }; // of the places, either way
  }

  // Pixels a unit. All of the map fits at zoom 1.
  get scale() {
    const across = Math.max(1, this.width / 2 - MARGIN) / this.reach.x;
    const up = Math.max(1, this.height / 2 - MARGIN) / this.reach.y;
    return { x: this.zoom * Math.min(across, STRETCH * up), y: this.zoom * Math.min(up, STRETCH * across) };
  }

  cover(places) {
    const most = (axis) => places.reduce((far, place) => Math.max(far, Math.abs(place[axis])), 0.05);
    this.reach = { x: most("x"), y: most("y") };
  }

  resize(width, height) {
    Object.assign(this, { width, height });
  }

  toScreen({ x, y }) {
    const scale = this.scale;
    return [this.width / 2 + (x - this.x) * scale.x, this.height / 2 - (y - this.y) * scale.y];
  }

  middle() {
    return { x: this.x, y: this.y };
  }

  move(dx, dy) {
    this.x -= dx / this.scale.x;
    this.y += dy / this.scale.y;
    this.keep();
  }

  // By a factor, around a point of the screen that stays where it is.
  zoomBy(factor, x = this.width / 2, y = this.height / 2) {
    const before = this.scale;
    this.zoom = Math.min(CLOSEST, Math.max(1, this.zoom * factor));
    const after = this.scale;
    this.x += (x - this.width / 2) * (1 / before.x - 1 / after.x);
    this.y -= (y - this.height / 2) * (1 / before.y - 1 / after.y);
    this.keep();
  }

  // One finger goes from `before` to `now` while another one rests.
  pinch(before, now, other) {
    const apart = Math.hypot(before.x - other.x, before.y - other.y) || 1;
    this.move((now.x - before.x) / 2, (now.y - before.y) / 2);
    const factor = Math.hypot(now.x - other.x, now.y - other.y) / apart;
    this.zoomBy(factor, (now.x + other.x) / 2, (now.y + other.y) / 2);
  }

  // Whether a place is in view, by so many pixels.
  sees(place, by = 0) {
    const [x, y] = this.toScreen(place);
    return x >= by && x <= this.width - by && y >= by && y <= this.height - by;
  }

  bringIntoView(place) {
    if (!this.sees(place, MARGIN)) Object.assign(this, { x: place.x, y: place.y });
    this.keep();
  }

  fit() {
    Object.assign(this, { zoom: 1, x: 0, y: 0 });
    this.changed();
  }

  // The middle stays over the map; at zoom 1 all of it is in view.
  keep() {
    const room = Math.min(1, this.zoom - 1);
    for (const axis of ["x", "y"]) {
      const most = room * this.reach[axis];
      this[axis] = Math.min(most, Math.max(-most, this[axis]));
    }
    this.changed();
  }
}
