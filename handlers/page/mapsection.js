// The section of the map: what is drawn, its legend, and what is told of the point that is looked at.

import { colourOf } from "./colours.js";
import { PointMap } from "./map.js";
import { counted, element, fillPicture, spoken } from "./results.js";
import { map as askMap, Refused } from "./server.js";

const IN_LEGEND = 60; // labels at most, the commonest

export class MapSection {
  // choose(id) when a point is taken.
  constructor(section, choose) {
    this.at = (id) => section.querySelector(`#${id}`);
    this.map = new PointMap(this.at("canvas"), {
      choose: (point) => choose(point.id),
      look: this.tell.bind(this),
    });
    this.at("zoom-in").addEventListener("click", () => this.map.zoomBy(1.6));
    this.at("zoom-out").addEventListener("click", () => this.map.zoomBy(1 / 1.6));
    this.at("zoom-fit").addEventListener("click", () => this.map.camera.fit());
  }

  get ids() {
    return this.map.points.map((point) => point.id);
  }

  // A row that has another picture now.
  forget(id) {
    this.map.pictures.forget(id);
  }

  mark(asked, neighbours) {
    this.map.mark(asked, neighbours);
  }

  async refresh() {
    const wait = this.at("map-wait");
    try {
      const { points, rows, sampled } = await askMap();
      this.map.show(points);
      const shown = sampled ? `${points.length.toLocaleString("en")} of ` : "";
      this.at("map-note").textContent = shown + counted(rows, "row");
      wait.hidden = points.length > 0;
      wait.textContent = "The gallery is empty: drop a photo and add it.";
      this.showLegend(points);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      wait.hidden = false;
      wait.textContent = error.message;
    }
  }

  showLegend(points) {
    const counts = new Map();
    for (const { label } of points) if (label !== null) counts.set(label, (counts.get(label) ?? 0) + 1);
    const labels = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a)).slice(0, IN_LEGEND);
    const buttons = labels.map((label) => {
      const dot = element("span", { className: "dot" });
      const button = element("button", { type: "button", ariaPressed: "false" }, dot, element("span", { text: label }));
      button.style.setProperty("--label", colourOf(label));
      button.addEventListener("click", () => {
        const on = button.ariaPressed !== "true";
        for (const one of buttons) one.ariaPressed = "false";
        button.ariaPressed = String(on);
        this.map.highlight(on ? label : null);
      });
      return button;
    });
    this.map.highlight(null);
    this.at("legend").replaceChildren(...buttons);
  }

  tell(point, x, y, by) {
    const tip = this.at("tip");
    tip.hidden = point === null;
    if (point === null) return;
    const picture = tip.querySelector(".picture");
    if (picture.dataset.of !== point.id) fillPicture(picture, point);
    tip.querySelector("b").textContent = point.label ?? "";
    tip.querySelector("b + span").textContent = point.id;
    if (by === "keyboard") this.at("map-spoken").textContent = spoken(point);
    const { clientWidth: width, clientHeight: height } = this.at("canvas");
    const left = x + tip.offsetWidth + 18 < width ? x + 14 : Math.max(4, x - tip.offsetWidth - 14);
    const top = Math.min(Math.max(4, y - tip.offsetHeight / 2), height - tip.offsetHeight - 4);
    tip.style.transform = `translate(${left}px, ${top}px)`;
  }
}
