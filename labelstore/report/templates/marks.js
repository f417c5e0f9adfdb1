"use strict";
// Plot marks: what they say, on hover and on focus; one tab stop per plot, arrow keys between its marks.

const tip = document.getElementById("tip");

function make(name, attributes, ...children) {
  const svg = ["svg", "rect", "line", "text", "path", "g", "circle"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function showTip(says, box) {
  tip.textContent = says;
  tip.hidden = false;
  const width = tip.offsetWidth, height = tip.offsetHeight;
  const left = Math.min(Math.max(8, box.left + box.width / 2 - width / 2), innerWidth - width - 8);
  const above = box.top - height - 8;
  tip.style.left = left + "px";
  tip.style.top = (above > 8 ? above : box.bottom + 8) + "px";
}

function hideTip() {
  tip.hidden = true;
}

for (const plot of document.querySelectorAll("svg.marks")) {
  const marks = [...plot.querySelectorAll(".mark")];
  marks.forEach((mark, n) => {
    mark.setAttribute("tabindex", n === 0 ? "0" : "-1");
    const show = () => showTip(mark.getAttribute("aria-label"), mark.getBoundingClientRect());
    mark.addEventListener("pointerenter", show);
    mark.addEventListener("focus", show);
    mark.addEventListener("pointerleave", hideTip);
    mark.addEventListener("blur", hideTip);
  });
  plot.addEventListener("keydown", (event) => {
    const at = marks.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") return hideTip();
    if (at < 0 || !(step || event.key === "Home" || event.key === "End")) return;
    event.preventDefault();
    const next = event.key === "Home" ? 0 : event.key === "End" ? marks.length - 1 : at + step;
    if (!marks[next]) return;
    marks[at].setAttribute("tabindex", "-1");
    marks[next].setAttribute("tabindex", "0");
    marks[next].focus();
  });
}
