((root, given) => {
  "use strict";
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const ours = { "data-lm-suppress-shortcuts": "true" }; // Jupyter's own keys let it be
  const { controls, patches } = given;
  const chosen = controls.map((control) => control.start);
  const drawing = make("img", { alt: "" });
  const said = make("span", { class: "fb-said", "aria-live": "polite" });
  const inputs = [];

  const slider = (control, i) => {
    const input = make("input", { type: "range", min: 0, max: control.values.length - 1, step: 1, ...ours });
    const value = make("output");
    input.addEventListener("input", () => update(i, Number(input.value)));
    inputs[i] = () => {
      input.value = chosen[i];
      value.textContent = control.values[chosen[i]];
      input.setAttribute("aria-valuetext", control.values[chosen[i]]);
    };
    return make("label", {}, control.label, input, value);
  };
  const list = (control, i) => {
    const options = control.values.map((text, k) => make("option", { value: k }, text));
    const select = make("select", ours, ...options);
    select.addEventListener("change", () => update(i, Number(select.value)));
    inputs[i] = () => { select.value = chosen[i]; };
    return make("label", {}, control.label, select);
  };
  // A picture whose patches are clicked, or reached by arrow keys, as a slider in two directions.
  const picker = (i) => {
    const { rows, cols, picture, shape } = patches;
    const mark = make("div", { class: "fb-mark" });
    const node = make("div", { class: "fb-patches", role: "slider", tabindex: 0, "aria-label": "patch",
      "aria-valuemin": 0, "aria-valuemax": rows * cols - 1, ...ours }, mark);
    node.style.backgroundImage = `url(${picture})`;
    node.style.aspectRatio = shape;
    node.addEventListener("click", (event) => {
      const box = node.getBoundingClientRect();
      const at = (part, n) => Math.min(Math.max(Math.floor(part * n), 0), n - 1);
      update(i, at((event.clientY - box.top) / box.height, rows) * cols
        + at((event.clientX - box.left) / box.width, cols));
    });
    node.addEventListener("keydown", (event) => {
      const [row, col] = [Math.floor(chosen[i] / cols), chosen[i] % cols];
      const step = { ArrowUp: row && -cols, ArrowDown: row < rows - 1 && cols,
        ArrowLeft: col && -1, ArrowRight: col < cols - 1 && 1,
        Home: -col, End: cols - 1 - col }[event.key];
      if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      update(i, chosen[i] + Number(step));
    });
    inputs[i] = () => {
      const [row, col] = [Math.floor(chosen[i] / cols), chosen[i] % cols];
      Object.assign(mark.style, { left: `${100 * col / cols}%`, top: `${100 * row / rows}%`,
        width: `${100 / cols}%`, height: `${100 / rows}%` });
      node.setAttribute("aria-valuenow", chosen[i]);
      node.setAttribute("aria-valuetext", `row ${row}, column ${col}`);
    };
    return node;
  };

  const update = (i, value) => {
    chosen[i] = value;
    for (const show of inputs) show();
    const page = controls.reduce((all, control, k) => all * control.values.length + chosen[k], 0);
    drawing.src = given.drawings[page];
    drawing.alt = given.said[page];
    said.textContent = given.said[page];
  };
  const parts = controls.map((control, i) => (patches && i === 0 ? picker(i)
    : control.slide ? slider(control, i) : list(control, i)));
  const first = patches ? parts.shift() : "";
  const live = make("div", { class: "fb-live", role: "group", "aria-label": "Figure to play with" },
    make("div", { class: "fb-controls" }, ...parts),
    make("div", { class: "fb-panels" }, first, drawing), said);
  update(0, chosen[0]);
  root.querySelector(".fb-live")?.remove();
  root.querySelector(".fb-still").hidden = true;
  root.append(live);
});
