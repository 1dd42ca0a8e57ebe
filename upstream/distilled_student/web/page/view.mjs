// Pieces of the page.

export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

export function percent(share) {
  return `${Math.round(100 * share)} %`;
}

/** A small button; label: what screen readers say. */
export function button(text, label, action) {
  const made = element("button", "small", text);
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
}

/** The tile of a word: its probability, and the threshold that it has to reach. */
export function wordTile(label) {
  const tile = element("li", "word");
  const number = element("span", "", "0 %");
  tile.append(element("div", "fill"), element("div", "line"), element("b", "", label), number);
  tile.dataset.label = label;
  let timer;
  return {
    element: tile,
    show(score) {
      tile.style.setProperty("--score", score.toFixed(3));
      number.textContent = percent(score);
    },
    setThreshold(threshold) {
      tile.style.setProperty("--threshold", threshold ?? 1);
    },
    light(seconds) {
      clearTimeout(timer);
      tile.classList.add("hit");
      timer = setTimeout(() => tile.classList.remove("hit"), 1000 * seconds);
    },
  };
}

/** A line of the list of hits. */
export function hitLine({ seconds, label, score, speaker }) {
  const line = element("li");
  const minutes = Math.floor(seconds / 60);
  const time = element("time", "", `${minutes}:${(seconds - 60 * minutes).toFixed(2).padStart(5, "0")}`);
  line.append(time, element("b", "", label), element("span", "", speaker ?? ""), element("span", "score", percent(score)));
  return line;
}
