// Values under the pointer, and how strongly heat maps cover their pictures. The page reads well without it.
"use strict";

const tip = document.getElementById("tip");

function show(text, pageX, pageY) {
  tip.textContent = text;
  tip.hidden = false;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = Math.max(8, Math.min(pageX + 14, room)) + "px";
  tip.style.top = pageY + 16 + "px";
}

function nearest(sorted, value) {
  let best = 0;
  sorted.forEach((each, index) => {
    if (Math.abs(each - value) < Math.abs(sorted[best] - value)) best = index;
  });
  return best;
}

for (const chart of document.querySelectorAll("svg[data-lines]")) {
  const { lines } = JSON.parse(chart.dataset.lines);
  const cursor = chart.querySelector(".cursor");
  const dots = chart.querySelectorAll(".under");
  const clear = () => {
    tip.hidden = true;
    cursor.style.visibility = "hidden";
    dots.forEach((dot) => dot.setAttribute("visibility", "hidden"));
  };
  chart.addEventListener("pointermove", (event) => {
    const frame = chart.getBoundingClientRect();
    const x = ((event.clientX - frame.left) / frame.width) * chart.viewBox.baseVal.width;
    const found = lines.map((line) => nearest(line.xs, x));
    const at = lines[0].xs[found[0]];
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.style.visibility = "visible";
    lines.forEach((line, i) => {
      if (!dots[i]) return;
      dots[i].setAttribute("cx", line.xs[found[i]]);
      dots[i].setAttribute("cy", line.ys[found[i]]);
      dots[i].setAttribute("visibility", "visible");
    });
    show(lines.map((line, i) => line.label + ": " + line.texts[found[i]]).join("\n"), event.pageX, event.pageY);
  });
  chart.addEventListener("pointerleave", clear);
}

for (const spot of document.querySelectorAll("[data-tip]")) {
  const place = () => {
    const frame = spot.getBoundingClientRect();
    show(spot.dataset.tip, frame.left + window.scrollX, frame.bottom + window.scrollY - 8);
  };
  const clear = () => { tip.hidden = true; };
  spot.addEventListener("pointerenter", place);
  spot.addEventListener("focus", place);
  spot.addEventListener("pointerleave", clear);
  spot.addEventListener("blur", clear);
}

const heat = document.getElementById("heat");
if (heat) {
  heat.addEventListener("input", () => document.documentElement.style.setProperty("--heat", heat.value / 100));
}
