(async (root, given) => {
  "use strict";
  // A token is a number: 0 is the class token, where there is one, then the patches row by row.
  const { rows, cols, layers, heads } = given;
  const first = given.classToken ? 1 : 0;
  const tokens = rows * cols + first;
  const still = root.querySelector(".vx-still");
  if (!window.DecompressionStream) {
    return; // a browser from before 2023: the still picture stays
  }
  const packed = Uint8Array.from(atob(given.attention.split(",")[1]), (c) => c.charCodeAt(0));
  const unzipped = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(unzipped).arrayBuffer());

  const state = {
    image: 0, layer: layers - 1, head: heads, // head `heads` is the mean, layer `layers` the rollout
    query: first ? 0 : Math.floor(rows / 2) * cols + Math.floor(cols / 2),
    hovered: null, key: null, behind: 0.2, under: 0, // under 0 is the image, 1 the picture of its tokens
  };
  const looking = () => state.hovered ?? state.query;

  // Numbers

  const stored = (block, step, query) => {
    const start = ((block * given.titles.length + state.image) * tokens + query) * tokens;
    return Array.from(bytes.subarray(start, start + tokens), (byte) => byte * step);
  };
  const weights = (layer, head, query) => {
    if (layer === layers) return stored(layers * heads, given.rolloutStep, query);
    if (head < heads) return stored(layer * heads + head, given.steps[layer][head], query);
    const all = given.steps[layer].map((step, h) => stored(layer * heads + h, step, query));
    return all[0].map((_, key) => all.reduce((sum, row) => sum + row[key], 0) / heads);
  };
  const precision = (layer, head) => {
    if (layer === layers) return given.rolloutStep / 2;
    const steps = given.steps[layer];
    return (head < heads ? steps[head] : steps.reduce((a, b) => a + b) / heads) / 2;
  };
  const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)}%`;
  const place = (token) => {
    const patch = token - first;
    return patch < 0 ? "class token" : `row ${Math.floor(patch / cols)}, column ${patch % cols}`;
  };
  // At least three even shares: where all get nearly the same, it shall look like the same.
  const largest = (row) => Math.max(...row.slice(first), 3 / tokens);

  // Colours

  const shades = given.shades.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const shade = (value, top) => {
    const at = Math.min(value / top, 1) * (shades.length - 1);
    const low = Math.min(Math.floor(at), shades.length - 2);
    return shades[low].map((c, i) => Math.round(c + (shades[low + 1][i] - c) * (at - low)));
  };

  // Parts

  // On what takes keys: Jupyter's own shortcuts let it be. They ask the element itself alone.
  const ours = { "data-lm-suppress-shortcuts": "true" };
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const chooser = (label, names, value, change) => {
    const select = make("select", ours, ...names.map((name, i) => make("option", { value: i }, name)));
    select.value = value;
    select.addEventListener("change", () => change(Number(select.value)));
    return [make("label", {}, label, select), select];
  };
  const count = (n, name) => Array.from({ length: n }, (_, i) => `${name}${i + 1}`);
  const [imageLabel] = chooser("Image", given.titles, 0, (i) => update({ image: i }));
  const [layerLabel, layerSelect] = chooser("Layer", [...given.numbers, "all: rollout"],
    state.layer, (i) => update({ layer: i }));
  const [headLabel, headSelect] = chooser("Head", [...count(heads, ""), "mean of the heads"],
    state.head, (i) => update({ head: i }));
  const [underLabel] = chooser("Behind", ["the image", given.behindName], 0, (i) => update({ under: i }));
  const slider = make("input", { type: "range", min: 0, max: 80, step: 10, value: 100 * state.behind, ...ours });
  slider.addEventListener("input", () => update({ behind: slider.value / 100 }));

  // A grid of tokens: one tab stop; arrow keys and Home and End move in it.
  const grid = (label, pick, point, leave) => {
    const cells = [];
    let column = 0;
    const cell = (token, classes) => {
      const node = make("div", { role: "gridcell", class: `vx-cell ${classes}`, tabindex: -1, ...ours });
      node.addEventListener("click", () => pick(token));
      node.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && point(token));
      cells[token] = node;
      return node;
    };
    const move = (token, key) => {
      const patch = token - first;
      const row = Math.floor(patch / cols);
      if (patch >= 0) column = patch % cols;
      if (patch < 0) return { ArrowDown: first + column, ArrowRight: first }[key] ?? token;
      if (key === "ArrowUp") return row ? token - cols : first ? 0 : token;
      if (key === "ArrowDown") return row < rows - 1 ? token + cols : token;
      if (key === "ArrowLeft") return column ? token - 1 : token;
      if (key === "ArrowRight") return column < cols - 1 ? token + 1 : token;
      return key === "Home" ? token - column : token - column + cols - 1;
    };
    const node = make("div", { role: "grid", class: "vx-grid", "aria-label": label });
    if (first) node.append(make("div", { role: "row" }, cell(0, "vx-token")));
    const patches = make("div", { class: "vx-patches", role: "rowgroup" });
    patches.style.gridTemplateColumns = `repeat(${cols}, 1fr)`;
    patches.style.aspectRatio = `${cols} / ${rows}`;
    for (let r = 0; r < rows; r++) {
      const row = make("div", { role: "row", class: "vx-row" });
      for (let c = 0; c < cols; c++) row.append(cell(first + r * cols + c, ""));
      patches.append(row);
    }
    node.append(patches);
    node.addEventListener("keydown", (event) => {
      const now = cells.indexOf(event.target);
      if (event.altKey || event.ctrlKey || event.metaKey || now < 0) return;
      if (!/^(Arrow(Up|Down|Left|Right)|Home|End)$/.test(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      const next = move(now, event.key);
      pick(next);
      cells[next].focus();
    });
    node.addEventListener("pointerleave", leave);
    return { node, cells, patches };
  };
  const asks = grid("The token that looks", (token) => update({ query: token, hovered: null }),
    (token) => update({ hovered: token }), () => update({ hovered: null }));
  const looks = grid("Where it looks", (token) => update({ key: token }),
    (token) => update({ key: token }), () => update({ key: null }));
  looks.node.addEventListener("focusin", (event) => update({ key: looks.cells.indexOf(event.target) }));
  looks.node.addEventListener("focusout", () => update({ key: null }));

  // Every layer and head at once; for the keyboard the two selects do the same.
  const maps = [];
  const thumb = (layer, head, span = 1) => {
    const canvas = make("canvas", { width: cols, height: rows });
    const side = Math.min(36, 180 / (heads + 1)) / Math.max(rows, cols);
    Object.assign(canvas.style, { width: `${cols * side}px`, height: `${rows * side}px` });
    canvas.addEventListener("click", () => update({ layer, head: layer === layers ? state.head : head }));
    maps.push({ canvas, layer, head });
    return make("td", { colspan: span }, canvas);
  };
  const table = make("table", { class: "vx-maps", "aria-hidden": "true" });
  table.append(make("tr", {}, make("th", {}, "head"),
    ...[...count(heads, ""), "mean"].map((name) => make("th", { scope: "col" }, name))));
  for (let layer = 0; layer < layers; layer++) {
    table.append(make("tr", {}, make("th", { scope: "row" }, `layer ${given.numbers[layer]}`),
      ...Array.from({ length: heads + 1 }, (_, head) => thumb(layer, head))));
  }
  table.append(make("tr", {}, make("th", { scope: "row" }, "rollout"), thumb(layers, heads)));

  const answer = make("p", { class: "vx-answer" });
  const heading = make("div");
  const bar = make("div", { class: "vx-bar" });
  bar.style.background = `linear-gradient(to right, ${given.shades.join(", ")})`;
  const top = make("span");
  const even = make("span");
  const said = make("p", { class: "vx-said", "aria-live": "polite" });
  const pointed = make("p", { class: "vx-pointed", "aria-live": "polite" });
  const foot = make("p", { class: "vx-foot" });
  const titled = (title, ...parts) => make("div", { class: "vx-panel" },
    make("div", { class: "vx-head" }, title), ...parts);
  const look = titled(heading, looks.node, bar,
    make("div", { class: "vx-scale" }, make("span", {}, "0%"), top),
    make("div", { class: "vx-even" }, even), pointed);
  look.classList.add("vx-look");
  const every = titled("Every layer and head; a click chooses", table);
  every.classList.add("vx-every");
  const live = make("div", { class: "vx-live", role: "group", "aria-label": "Attention explorer" },
    make("div", { class: "vx-controls" }, imageLabel, layerLabel, headLabel,
      ...(given.behind.length ? [underLabel] : []), make("label", {}, "Image behind", slider)),
    make("div", { class: "vx-panels" },
      titled("Who looks? Point at a patch; a click keeps it.", asks.node, answer), look,
      every),
    said, foot);

  // All that is shown follows from the state.
  const update = (changes) => {
    Object.assign(state, changes);
    const { image, layer, head, key } = state;
    const query = looking();
    const rollout = layer === layers;
    const row = weights(layer, head, query);
    const highest = largest(row);
    const who = query < first ? "the class token" : `the patch in ${place(query)}`;
    const where = rollout ? "rollout over all layers"
      : `layer ${given.numbers[layer]}, ${head < heads ? `head ${head + 1}` : "mean of the heads"}`;

    layerSelect.value = layer;
    headSelect.value = head;
    headSelect.disabled = rollout;
    for (const { patches } of [asks, looks]) {
      patches.style.backgroundImage = `url(${(state.under ? given.behind : given.pictures)[image]})`;
    }
    for (let token = 0; token < tokens; token++) {
      const ask = asks.cells[token];
      const seen = looks.cells[token];
      for (const cell of [ask, seen]) cell.classList.toggle("vx-query", token === query);
      seen.classList.toggle("vx-key", token === key);
      ask.tabIndex = token === state.query ? 0 : -1;
      seen.tabIndex = token === (key ?? first) ? 0 : -1;
      ask.setAttribute("aria-selected", token === state.query);
      ask.setAttribute("aria-label", place(token));
      seen.setAttribute("aria-label", `${place(token)}: ${percent(row[token])}`);
      if (token >= first) {
        seen.style.backgroundColor = `rgba(${shade(row[token], highest)}, ${1 - state.behind})`;
      }
    }
    if (first) {
      asks.cells[0].textContent = "class token";
      looks.cells[0].textContent = `class token ${percent(row[0])}`;
      looks.cells[0].style.backgroundSize = `${100 * Math.min(row[0], 1)}% 4px`;
    }
    for (const map of maps) {
      const small = weights(map.layer, map.head, query);
      const ink = map.canvas.getContext("2d");
      const area = ink.createImageData(cols, rows);
      const most = largest(small);
      for (let i = 0; i < rows * cols; i++) area.data.set([...shade(small[first + i], most), 255], 4 * i);
      ink.putImageData(area, 0, 0);
      map.canvas.classList.toggle("vx-chosen", map.layer === layer && (rollout || map.head === head));
    }

    answer.textContent = given.predictions[image] ? `The model says: ${given.predictions[image]}.` : "";
    heading.textContent = `${rollout ? "What it is made of" : "Where it looks"}: ${where}`;
    top.textContent = percent(highest);
    const left = 1 / tokens / highest;
    even.textContent = `▲ ${percent(1 / tokens)} each if equal`;
    even.style.left = `calc(${100 * left}% - .4em)`;
    const most = row.map((_, token) => token).filter((token) => token >= first)
      .sort((a, b) => row[b] - row[a]).slice(0, 3);
    said.textContent = `${who[0].toUpperCase()}${who.slice(1)} (${where}) `
      + `${rollout ? "is made most of" : "looks most at"} `
      + most.map((token) => `${place(token)} (${percent(row[token])})`).join("; ")
      + (first ? `; the class token gets ${percent(row[0])}.` : ".");
    pointed.textContent = key === null ? "" : `${place(key)}: ${percent(row[key])}`;
    foot.textContent = "Arrow keys move in both grids. Colours run from 0 to the number at the end "
      + "of the bar, in each small map by itself. Numbers are stored in 8 bits: they are right to "
      + `±${percent(precision(layer, head), 2)} of all attention.`;
  };
  update({});
  root.querySelector(".vx-live")?.remove();
  still.hidden = true;
  root.append(live);
});
