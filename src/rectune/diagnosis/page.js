// Rows of a diagnosis: another colouring, and the figures of the token that is pointed at. Text is set as text only.
(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const source = byId("data");
  if (!source) return;
  const { labels, rows } = JSON.parse(source.textContent);
  const STEPS = 13, EDGES = [0, 1e-4, 1e-3, 1e-2, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
  const NATS = 0.25; // width of a step of entropy

  const tokens = []; // every target: its element and where its figures are
  document.querySelectorAll(".row").forEach((row, r) =>
    row.querySelectorAll(".t").forEach((element, i) => tokens.push({ element, figures: rows[r], i, row })));
  const placeOf = new Map(tokens.map((token, place) => [token.element, place]));

  const number = (x) => {
    if (x === null || x === undefined) return "not known";
    if (x !== 0 && Math.abs(x) < 1e-3) return x.toExponential(1);
    return String(Number(x.toPrecision(3)));
  };
  const text = (parent, value, className) => {
    const child = document.createElement(className ? "span" : "b");
    if (className) child.className = className;
    child.textContent = value;
    parent.append(child);
  };

  // Colour ---------------------------------------------------------------------------------------------------------
  // A choice: the value of a token, the step (0 to 12) of a value, the marks under the legend, and what it means.
  function choice(name) {
    if (name === "p") {
      return {
        ramp: "p", value: (t) => t.figures.p[t.i], step: (p) => EDGES.findLastIndex((edge) => edge <= p),
        marks: null, meaning: "Probability of each target before training: what stands out is what the model does not expect.",
      };
    }
    if (name === "e") {
      return {
        ramp: "e", value: (t) => t.figures.entropy[t.i], step: (nats) => nats / NATS,
        marks: [...EDGES.map((_, k) => k * NATS), "nats"], meaning: "Entropy of the model's next-token distribution: what stands out is where it hesitates.",
      };
    }
    const value = (t) => t.figures.weights[name][t.i];
    const most = tokens.reduce((top, t) => Math.max(top, Math.abs(value(t) ?? 0)), 0);
    const top = most > 1 || most < 0.5 ? most || 1 : 1; // objectives that stay within 1 share a scale
    return {
      ramp: "w", value, step: (w) => (Math.abs(w) / top) * STEPS,
      marks: [...EDGES.map((_, k) => ({ 0: "0", 6: number(top / 2) })[k] ?? ""), number(top)],
      meaning: `Weight that ${labels[name]} gives each target: what stands out is learnt, what fades is left alone.`,
    };
  }

  const edges = [...byId("legend").querySelectorAll("b")].map((mark) => mark.textContent);
  let colouring = "p";
  function colour(name) {
    colouring = name;
    const { ramp, value, step, marks, meaning } = choice(name);
    const at = (x) => Math.min(STEPS - 1, Math.max(0, Math.floor(step(x))));
    for (const token of tokens) {
      const x = value(token);
      token.element.className = x === null || x === undefined ? "t none" : `t ${ramp}${at(x)}`;
    }
    byId("meaning").textContent = meaning;
    byId("legend").querySelectorAll("i").forEach((swatch, k) => (swatch.className = `${ramp}${k}`));
    byId("legend").dataset.ramp = ramp;
    byId("legend").querySelectorAll("b").forEach((mark, k) => (mark.textContent = (marks ?? edges)[k]));
    if (shown) describe(shown);
  }

  // The token pointed at ---------------------------------------------------------------------------------------------
  let shown = null, held = null;
  function describe(token) {
    shown = token;
    const { figures, i } = token, said = byId("said"), weights = byId("weights");
    said.textContent = "";
    text(said, token.element.textContent, "text");
    said.append(" p ");
    text(said, number(figures.p[i]));
    if (figures.same[i]) said.append(", the model's first choice");
    else if (figures.top[i] !== null) {
      said.append(", the model's first choice is ");
      text(said, figures.top[i], "text");
    }
    said.append(`; entropy ${number(figures.entropy[i])}; ${figures.kind[i] ?? "class not known"}`);
    if (labels[colouring]) said.append(`; weight of ${labels[colouring]} ${number(figures.weights[colouring][i])}`);
    weights.textContent = "";
    labels.forEach((label, k) => {
      const item = document.createElement("li");
      item.textContent = `${label} ${number(figures.weights[k][i])}`;
      if (String(k) === colouring) item.dataset.on = "";
      weights.append(item);
    });
    byId("detail").hidden = false;
  }

  // One token of each row can be reached with Tab (the one last visited), the others with the arrows.
  // Only that one is a button, too: a screen reader that reads the page should hear text, not hundreds of buttons.
  function reach({ element }, can) {
    element.tabIndex = can ? 0 : -1;
    can ? element.setAttribute("role", "button") : element.removeAttribute("role");
  }
  function hold(token) {
    for (const other of tokens) if (other.row === token.row && other.element.tabIndex === 0) reach(other, false);
    reach(token, true);
    held = token;
    describe(token);
  }
  const visit = (place) => {
    const token = tokens[Math.min(tokens.length - 1, Math.max(0, place))];
    hold(token);
    token.element.focus();
  };

  // The nearest token on the next line, down (1) or up (-1).
  function line(here, way) {
    const { left, top, height } = tokens[here].element.getClientRects()[0];
    let best = here, least = Infinity, at = null;
    for (let place = here + way; tokens[place]; place += way) {
      const box = tokens[place].element.getClientRects()[0];
      if (Math.abs(box.top - top) < height / 2) continue;
      at ??= box.top;
      if (Math.abs(box.top - at) >= height / 2) break;
      if (Math.abs(box.left - left) < least) [best, least] = [place, Math.abs(box.left - left)];
    }
    return best;
  }

  const all = byId("all");
  const found = (event) => tokens[placeOf.get(event.target.closest?.(".t"))];
  all.addEventListener("focusin", (event) => found(event) && hold(found(event)));
  all.addEventListener("click", (event) => found(event) && visit(placeOf.get(found(event).element)));
  all.addEventListener("mouseover", (event) => found(event) && describe(found(event)));
  all.addEventListener("mouseleave", () => held && describe(held));
  all.addEventListener("keydown", (event) => {
    const token = found(event);
    if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
    const here = placeOf.get(token.element), inRow = tokens.filter((other) => other.row === token.row).length;
    const to = {
      ArrowRight: () => here + 1, ArrowLeft: () => here - 1, ArrowDown: () => line(here, 1), ArrowUp: () => line(here, -1),
      Home: () => here - token.i, End: () => here - token.i + inRow - 1,
    }[event.key]?.();
    if (to === undefined) return;
    event.preventDefault();
    visit(to);
  });

  for (const token of tokens) reach(token, token.i === 0);
  byId("switch").addEventListener("change", (event) => colour(event.target.value));
  byId("switch").hidden = byId("help").hidden = false;
  byId("switch").querySelector("input").checked = true; // browsers keep the last choice over a reload
  colour("p");
})();
