// The query explorer: a list of queries, and the chosen one's rankings side by side. Texts are put in as text alone.

const explorer = document.getElementById("explorer") && (() => {
  const at = (name) => document.getElementById("e-" + name);
  const kinds = [["first_stage", "first stage"], ["teacher", "teacher"], ["student", "student"]];
  let part, shown = [], chosen = 0, columns = [];

  const ofKind = (kind) => part.systems.map((s, n) => n).filter((n) => kind === part.systems[n].kind || (kind === "student" && part.systems[n].kind === "fused"));
  const gain = (query) => {
    // of the student shown, else the teacher, to the first stage shown
    const [base, teacher, student] = columns, system = student === undefined ? teacher : student;
    if (base === undefined || system === undefined || query.scores[base] === null || query.scores[system] === null) return null;
    return query.scores[system] - query.scores[base];
  };

  function chooseDataset(index) {
    part = data.explorers[index];
    at("dataset").value = String(index);
    at("find").value = "";
    // the best student and the best teacher over the first stage of whichever of them has one here
    const over = (kind, stage) => ofKind(kind).find((n) => part.systems[n].over === stage);
    const stages = ofKind("first_stage").map((n) => part.systems[n].name);
    const lead = [...ofKind("student"), ...ofKind("teacher")].find((n) => stages.includes(part.systems[n].over));
    const stage = lead === undefined ? stages[0] : part.systems[lead].over;
    columns = kinds.map(([kind]) => { const n = over(kind, stage); return n === undefined ? ofKind(kind)[0] : n; });
    at("notes").textContent = part.notes.length ? part.notes.join(". ") + "." : "";
    find();
  }

  function find() {
    const words = at("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const before = shown[chosen];
    shown = part.queries.filter((q) => words.every((w) => q.text.toLowerCase().includes(w) || q.id.toLowerCase().includes(w)));
    shown.sort((a, b) => gain(b) - gain(a)); // stable: without values the store's order stays
    chosen = 0;
    at("count").textContent = `${shown.length} of ${part.queries.length} queries`;
    at("list").replaceChildren(...shown.map((query, n) => {
      const difference = gain(query);
      const sign = difference === null ? "" : difference > 1e-9 ? " up" : difference < -1e-9 ? " down" : "";
      const item = make("li", { role: "option", id: "e-query-" + n, "aria-selected": "false" },
        make("span", { class: "text", dir: "auto" }, query.text),
        make("span", { class: "gain" + sign }, difference === null ? "" : signed(difference)));
      item.addEventListener("click", () => choose(n));
      return item;
    }));
    choose(Math.max(0, shown.indexOf(before)));
  }

  function choose(n) {
    const items = at("list").children;
    if (items[chosen]) items[chosen].setAttribute("aria-selected", "false");
    chosen = n;
    const query = shown[n];
    at("title").replaceChildren(...(query ? [query.text, make("span", { class: "id" }, query.id)] : ["No query fits"]));
    at("columns").replaceChildren();
    if (!query) return at("list").removeAttribute("aria-activedescendant");
    items[n].setAttribute("aria-selected", "true");
    const list = at("list"), top = items[n].offsetTop - list.offsetTop;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + items[n].offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + items[n].offsetHeight - list.clientHeight;
    list.setAttribute("aria-activedescendant", items[n].id);
    const boxes = [...kinds.map((kind, k) => column(query, kind, k)), judgments(query)];
    at("columns").replaceChildren(...boxes);
    at("columns").style.setProperty("--columns", boxes.map((box) => (box.querySelector("ol") ? "minmax(0, 1fr)" : "minmax(0, 0.7fr)")).join(" "));
  }

  function column(query, [kind, label], k) {
    const options = ofKind(kind), box = make("div", { class: "column", "data-kind": kind });
    if (!options.length) {
      const command = {
        first_stage: `msft retrieve --dataset ${part.dataset}`,
        teacher: `msft teachers generate --model MODEL --dataset ${part.dataset}`,
        student: data.students ? `msft eval --dataset ${part.dataset}` : "msft students train --regime cl",
      }[kind];
      box.append(make("label", {}, label), make("div", { class: "empty" }, make("p", {}, `No ${label} ranked ${part.dataset}.`), make("pre", {}, make("code", {}, command))));
      return box;
    }
    const select = make("select");
    fill(select, options.map((n) => [String(n), part.systems[n].name]), String(columns[k]));
    select.addEventListener("change", () => {
      columns[k] = Number(select.value);
      find();
      at("columns").children[k].querySelector("select").focus();
    });
    const system = columns[k], value = query.scores[system];
    box.append(make("label", {}, label, select), make("p", { class: "measured" }, value === null ? "" : `${part.measure} ${fixed(value)}`));
    const ranked = query.lists[system];
    if (!ranked) return box.append(make("p", { class: "quiet" }, "no ranking of this query")), box;
    const grades = new Map(query.judged);
    box.append(make("ol", {}, ...ranked.map(([number, before], r) => make("li", {}, passage(number, r + 1, grades, moved(before, r + 1, kind))))));
    return box;
  }

  function moved(before, rank, kind) {
    if (kind === "first_stage") return "";
    if (before === null) return "";
    return before === rank ? "=" : before > rank ? `▲ ${before - rank}` : `▼ ${rank - before}`;
  }

  function judgments(query) {
    const box = make("div", { class: "column", "data-kind": "judgments" }), relevant = query.judged.filter(([, grade]) => grade > 0);
    box.append(make("label", {}, "judgments"), make("p", { class: "measured" }, relevant.length ? `relevant: ${relevant.length}; at right the ranks in ${kinds.map(([, label]) => label).join(" · ")}` : ""));
    if (!relevant.length) return box.append(make("p", { class: "quiet" }, query.judged.length ? "none of them relevant" : "this query has no judgments")), box;
    const grades = new Map(query.judged);
    const places = (number) => columns.map((system) => {
      const ranked = system === undefined ? null : query.lists[system];
      const place = ranked ? ranked.findIndex(([other]) => other === number) : -1;
      return place < 0 ? "–" : place + 1;
    }).join(" · ");
    box.append(make("ol", {}, ...relevant.slice(0, 10).map(([number]) => make("li", {}, passage(number, null, grades, places(number))))));
    return box;
  }

  function passage(number, rank, grades, note) {
    const it = part.passages[number], grade = grades.get(number);
    const badge = make("span", { class: grade === undefined ? "grade" : "grade g" + Math.max(0, Math.min(3, grade)), title: grade === undefined ? "not judged" : "grade " + grade }, grade === undefined ? "–" : String(grade));
    const button = make("button", { type: "button", class: "passage", "aria-expanded": "false", "data-passage": number },
      make("span", { class: "line-one" }, rank === null ? null : make("span", { class: "rank" }, String(rank)), badge, make("span", { class: "id", title: it.id }, it.id), make("span", { class: "moved" }, note)));
    if (it.title) button.append(make("span", { class: "title", dir: "auto" }, it.title));
    if (it.text !== undefined) button.append(make("span", { class: "body", dir: "auto" }, it.text + (it.cut ? ` … (${it.cut.toLocaleString("en")} characters more)` : "")));
    button.addEventListener("click", () => button.setAttribute("aria-expanded", String(button.getAttribute("aria-expanded") !== "true")));
    const mark = (on) => { for (const same of at("columns").querySelectorAll(`[data-passage="${number}"]`)) same.classList.toggle("same", on); };
    button.addEventListener("pointerenter", () => mark(true));
    button.addEventListener("focus", () => mark(true));
    button.addEventListener("pointerleave", () => mark(false));
    button.addEventListener("blur", () => mark(false));
    return button;
  }

  at("list").addEventListener("keydown", (event) => {
    const last = shown.length - 1;
    const next = { ArrowDown: chosen + 1, ArrowUp: chosen - 1, Home: 0, End: last, PageDown: chosen + 10, PageUp: chosen - 10 }[event.key];
    if (next === undefined || last < 0) return;
    event.preventDefault();
    choose(Math.min(last, Math.max(0, next)));
  });
  at("find").addEventListener("input", find);
  at("dataset").addEventListener("change", () => chooseDataset(Number(at("dataset").value)));
  fill(at("dataset"), data.explorers.map((e, n) => [String(n), e.dataset]), "0");
  const find_part = (dataset) => data.explorers.findIndex((e) => e.dataset === dataset);
  return {
    start: () => chooseDataset(0),
    has: (dataset, id) => { const e = data.explorers[find_part(dataset)]; return Boolean(e && e.queries.some((q) => q.id === id)); },
    open(dataset, id) {
      const index = find_part(dataset);
      if (index < 0 || !this.has(dataset, id)) return;
      if (data.explorers[index] !== part || at("find").value) chooseDataset(index);
      choose(shown.findIndex((q) => q.id === id));
      document.getElementById("queries").scrollIntoView();
      at("list").focus({ preventScroll: true });
    },
  };
})();
