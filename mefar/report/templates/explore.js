// One token of a set is replaced; the sheets hold a row per position and a column per code.
const all = (what) => [...document.querySelectorAll(what)];
const state = { base: "no action", position: 0, code: 0 };

function show() {
  const codes = [...data.bases[state.base]];
  codes[state.position] = state.code;
  for (const button of all("#tokens button")) {
    button.querySelector("b").textContent = codes[button.dataset.position];
    button.setAttribute("aria-pressed", button.dataset.position == state.position);
  }
  for (const button of all("#palette button")) button.setAttribute("aria-pressed", button.dataset.code == state.code);
  for (const view of all(".view")) {
    view.hidden = view.dataset.base != state.base;
    view.style.backgroundPosition = `${-160 * state.code}px ${-160 * state.position}px`;
  }
  for (const place of all("#where, .position")) place.textContent = `position ${state.position}`;
  for (const place of all(".code")) place.textContent = state.code;
  units(data.effect[state.position][state.code], data.deviation[state.position][state.code]);
  arrows(data.motion[state.position][state.code]);
}

function units(effect, deviation) {
  const rows = data.units.map((unit, i) => ({ unit, much: effect[i], sure: deviation[i] }))
    .filter((row) => Math.abs(row.much) > 2 * row.sure)
    .sort((a, b) => Math.abs(b.much) - Math.abs(a.much)).slice(0, 6);
  const table = document.querySelector("#units");
  table.replaceChildren();
  if (!rows.length) table.insertRow().insertCell().textContent = "none for sure";
  for (const { unit, much, sure } of rows) {
    const row = table.insertRow();
    row.insertCell().textContent = `AU${unit}`;
    row.insertCell().textContent = `${much > 0 ? "+" : "−"}${Math.abs(much).toFixed(2)} ± ${sure.toFixed(2)}`;
    const bar = document.createElement("span");
    bar.className = much > 0 ? "bar" : "bar less";
    bar.style.width = `${Math.min(100, 300 * Math.abs(much))}px`;
    row.insertCell().append(bar);
  }
}

function arrows(field) {
  const svg = document.querySelector("#motion"), side = field.length;
  const longest = Math.max(1e-6, ...field.flat().map(([x, y]) => Math.hypot(x, y)));
  const gain = Math.min(20, 0.9 / (longest * side));
  document.querySelector("#enlarged").textContent = gain.toFixed(0);
  svg.replaceChildren();
  field.forEach((row, i) => row.forEach(([x, y], j) => {
    // Pixels are fetched from where the field points to: the skin moves the other way.
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const from = [j + 0.5, i + 0.5], to = [from[0] - x * side * gain, from[1] - y * side * gain];
    const at = { x1: from[0], y1: from[1], x2: to[0], y2: to[1], stroke: "var(--bar)", "stroke-width": 0.07 };
    for (const [name, value] of Object.entries(at)) line.setAttribute(name, value);
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    for (const [name, value] of Object.entries({ cx: from[0], cy: from[1], r: 0.07, fill: "var(--faint)" })) dot.setAttribute(name, value);
    svg.append(dot, line);
  }));
}

function start(position, code) {
  Object.assign(state, { position, code });
  for (const button of all("#tokens button")) button.onclick = () => {
    const place = Number(button.dataset.position), codes = data.bases[state.base];
    const now = place == state.position ? state.code : codes[place];
    Object.assign(state, { position: place, code: (now + 1) % data.effect[0].length });
    show();
  };
  for (const button of all("#palette button")) button.onclick = () => { state.code = Number(button.dataset.code); show(); };
  for (const radio of all("input[name=base]")) radio.onchange = () => { state.base = radio.value; show(); };
  show();
}
