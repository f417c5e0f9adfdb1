// Per-query differences of one system to another, as sorted bars.

const data = JSON.parse(document.getElementById("data").textContent);
const fixed = (value, places = 3) => value.toFixed(places);
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);

function fill(select, items, chosen) {
  select.replaceChildren(...items.map(([value, label]) => make("option", { value: value, selected: value === chosen }, label)));
}

const differences = document.getElementById("difference-tool") && (() => {
  const at = (name) => document.getElementById("d-" + name);
  const plot = at("plot");
  let board, bars = [], current = -1;

  function systems(measure) {
    return board.systems.map((system, n) => [String(n), `${system.number} · ${system.name}`]).filter(([n]) => board.scores[measure][n]);
  }

  function chooseDataset() {
    board = data.boards[at("dataset").value];
    fill(at("measure"), board.measures.map((m) => [m, m]), board.measures[0]);
    chooseMeasure();
  }

  function chooseMeasure() {
    const items = systems(at("measure").value);
    const first = board.systems.findIndex((s) => s.base !== null && ["student", "fused", "teacher"].includes(s.kind));
    const student = board.systems.findIndex((s) => s.base !== null && s.kind === "student");
    fill(at("system"), items, String(student >= 0 ? student : Math.max(0, first)));
    chooseSystem();
  }

  function chooseSystem() {
    const system = Number(at("system").value);
    const base = board.systems.findIndex((s) => s.number === board.systems[system].base);
    const other = system === 0 ? 1 : 0;
    fill(at("baseline"), systems(at("measure").value), String(base >= 0 ? base : other));
    draw();
  }

  function draw() {
    const scores = board.scores[at("measure").value];
    const a = scores[at("system").value], b = scores[at("baseline").value];
    bars = b ? a.map((value, n) => ({ n, a: value, b: b[n], d: value - b[n] })) : [];
    bars.sort((x, y) => y.d - x.d || x.n - y.n);
    current = -1;
    const reach = Math.max(0.05, ...bars.map((bar) => Math.abs(bar.d)));
    const y = (value) => 50 - (value / reach) * 48;
    const parts = [];
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1].find((s) => reach / s <= 4.5) || 1;
    for (let k = -Math.floor(reach / step + 1e-9); k * step <= reach + 1e-9; k++) {
      parts.push(make("line", { class: "grid", x1: "0", x2: "100%", y1: y(k * step) + "%", y2: y(k * step) + "%" }));
      const label = k === 0 ? "0" : (k < 0 ? "−" : "+") + Math.abs(k * step).toFixed(step < 0.1 ? 2 : 1);
      parts.push(make("text", { class: "tick", x: "0", y: y(k * step) + "%", dx: "-8", dy: "4", "text-anchor": "end" }, label));
    }
    const width = 100 / Math.max(1, bars.length), gap = bars.length > 120 ? 0 : 0.16; // no room between narrow bars
    bars.forEach((bar, k) => {
      const top = Math.min(y(0), y(bar.d)), height = Math.max(Math.abs(y(bar.d) - y(0)), 0.15);
      bar.node = make("rect", {
        class: "bar " + (bar.d < 0 ? "down" : "up"), x: (k + gap / 2) * width + "%", width: width * (1 - gap) + "%", y: top + "%", height: height + "%",
        "data-query": board.queries[bar.n][0], "data-d": bar.d.toFixed(4),
      });
      parts.push(bar.node);
    });
    parts.push(make("line", { class: "zero", x1: "0", x2: "100%", y1: y(0) + "%", y2: y(0) + "%" }));
    summarise(parts, y);
    plot.replaceChildren(...parts);
  }

  function summarise(parts, y) {
    const system = board.systems[at("system").value].name, baseline = board.systems[at("baseline").value].name;
    const n = bars.length, mean = bars.reduce((sum, bar) => sum + bar.d, 0) / Math.max(1, n);
    const spread = Math.sqrt(bars.reduce((sum, bar) => sum + (bar.d - mean) ** 2, 0) / Math.max(1, n - 1));
    const half = (board.t * spread) / Math.sqrt(Math.max(1, n));
    const wins = bars.filter((bar) => bar.d > 1e-9).length, losses = bars.filter((bar) => bar.d < -1e-9).length;
    parts.push(make("line", { class: "mean", x1: "0", x2: "100%", y1: y(mean) + "%", y2: y(mean) + "%" }));
    at("summary").textContent =
      `${system} against ${baseline}: mean ${signed(mean)} [${signed(mean - half)}, ${signed(mean + half)}] ${at("measure").value}; ` +
      `better on ${wins}, equal on ${n - wins - losses}, worse on ${losses} of ${n} queries.`;
    at("query").textContent = "";
    plot.setAttribute("aria-label", `${system} against ${baseline}, a bar per query`);
  }

  function point(k) {
    if (!bars[k]) return;
    if (bars[current]) bars[current].node.classList.remove("current");
    current = k;
    const bar = bars[k], [id, text] = board.queries[bar.n];
    bar.node.classList.add("current");
    const opens = explorer && explorer.has(board.dataset, id) ? " Enter or a click opens it below." : "";
    at("query").textContent = `${text} (${id}): ${signed(bar.d)}, ${fixed(bar.a)} against ${fixed(bar.b)}.${opens}`;
  }

  function open() {
    if (bars[current] && explorer) explorer.open(board.dataset, board.queries[bars[current].n][0]);
  }

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    point(Math.min(bars.length - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * bars.length))));
  });
  plot.addEventListener("click", open);
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (step) point(Math.min(bars.length - 1, Math.max(0, current + step)));
    else if (event.key === "Home") point(0);
    else if (event.key === "End") point(bars.length - 1);
    else if (event.key === "Enter") open();
    else return;
    event.preventDefault();
  });
  at("dataset").addEventListener("change", chooseDataset);
  at("measure").addEventListener("change", chooseMeasure);
  at("system").addEventListener("change", chooseSystem);
  at("baseline").addEventListener("change", draw);
  fill(at("dataset"), data.boards.map((b, n) => [String(n), b.dataset]), "0");
  return { start: chooseDataset };
})();
