"use strict";
// Everything is in the page already; this only shows the word that was chosen.
for (const section of document.querySelectorAll(".diagnosis")) {
  const data = JSON.parse(section.querySelector(".data").textContent);
  const chips = [...section.querySelectorAll(".chip")];
  const panels = [...section.querySelectorAll(".panel")];
  const figure = section.querySelector(".figure");
  const tiles = [...section.querySelectorAll(".tile")];
  const signed = (v) => {
    const shown = Math.abs(v).toPrecision(2);
    return (v < 0 ? "−" : "+") + (Math.abs(v) < 1e-4 ? "0" : Number(shown));
  };

  const draw = (word) => {
    const map = data.maps[word];
    tiles.forEach((tile, i) => {
      const value = map.values[i];
      tile.setAttribute("fill", value < 0 ? data.opposes : data.supports);
      tile.setAttribute("fill-opacity", (Math.abs(value) / map.limit) * data.opacity);
      tile.firstElementChild.textContent = `${data.boxes[i]}: ${signed(value)} nats`;
    });
    const peak = section.querySelector(".peak");
    for (const [name, value] of Object.entries(map.peak)) peak.setAttribute(name, value);
    section.querySelector(".overlay").setAttribute("aria-label", map.label);
    section.querySelector(".low").textContent = map.low;
    section.querySelector(".high").textContent = map.high;
    section.querySelector(".readout").textContent = map.readout;
  };

  const choose = (word) => {
    chips.forEach((chip, i) => chip.setAttribute("aria-pressed", String(i === word)));
    panels.forEach((panel, i) => { panel.hidden = i !== word; });
    if (tiles.length) draw(word);
  };
  chips.forEach((chip, i) => chip.addEventListener("click", () => choose(i)));

  for (const button of section.querySelectorAll("[data-set]")) {
    const [name, value] = button.dataset.set.split(":");
    button.addEventListener("click", () => {
      (name === "show" ? figure : section).dataset[name] = value;
      for (const other of section.querySelectorAll(`[data-set^="${name}:"]`))
        other.setAttribute("aria-pressed", String(other.dataset.set === button.dataset.set));
    });
  }
  for (const tile of tiles)
    tile.addEventListener("pointerenter", () => {
      section.querySelector(".readout").textContent = "Patch " + tile.firstElementChild.textContent;
    });
}
for (const control of document.querySelectorAll(".needs-script")) control.hidden = false;
