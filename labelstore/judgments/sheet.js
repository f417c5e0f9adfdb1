// Judge one passage after another; the browser keeps the grades, and the page saves them as TREC qrels.

const data = JSON.parse(document.getElementById("data").textContent);
const items = data.items;
const at = (id) => document.getElementById(id);
const names = items.map((item) => item.query_id + " " + item.doc_id);
const buttons = [...document.querySelectorAll("[data-grade]")];
let grades = new Map(); // place -> grade
let order = []; // [place, grade before or null], the newest last
let place = 0;

function kept() {
  try {
    const held = JSON.parse(localStorage.getItem(data.key) || "null");
    if (held === null) return;
    const places = new Map(names.map((name, k) => [name, k]));
    const known = ([name]) => places.has(name);
    grades = new Map(held.grades.filter(known).map(([name, grade]) => [places.get(name), grade]));
    order = held.order.filter(known).map(([name, before]) => [places.get(name), before]);
  } catch {
    at("lost").hidden = false;
  }
}

function keep() {
  const named = ([k, value]) => [names[k], value];
  try {
    localStorage.setItem(data.key, JSON.stringify({ grades: [...grades].map(named), order: order.map(named) }));
  } catch {
    at("lost").hidden = false;
  }
}

function show(said) {
  const item = items[place], grade = grades.get(place);
  at("query").textContent = item.query;
  at("title").textContent = item.title;
  at("text").textContent = item.text;
  at("text").scrollTop = 0;
  at("bar").value = grades.size;
  at("count").textContent = grades.size + " of " + items.length;
  for (const button of buttons) button.setAttribute("aria-pressed", String(Number(button.dataset.grade) === grade));
  const done = grades.size === items.length ? "All passages are judged: save the qrels." : "";
  at("said").textContent = [said, done].filter(Boolean).join(" ");
}

// The next passage without a grade, from this one on and then from the start; without one, the next passage.
function onward() {
  for (let step = 1; step <= items.length; step++) {
    const next = (place + step) % items.length;
    if (!grades.has(next)) return next;
  }
  return Math.min(place + 1, items.length - 1);
}

function judge(grade) {
  order.push([place, grades.has(place) ? grades.get(place) : null]);
  grades.set(place, grade);
  keep();
  place = onward();
  show("");
}

function undo() {
  const last = order.pop();
  if (last === undefined) return show("Nothing to undo.");
  place = last[0];
  if (last[1] === null) grades.delete(place);
  else grades.set(place, last[1]);
  keep();
  show("Undone.");
}

function move(step) {
  place = Math.min(Math.max(place + step, 0), items.length - 1);
  show("");
}

function qrels() {
  return [...grades].sort(([a], [b]) => a - b).map(([k, grade]) => items[k].query_id + " 0 " + items[k].doc_id + " " + grade + "\n").join("");
}

function save() {
  if (!grades.size) return show("Nothing is judged yet.");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([qrels()], { type: "text/plain" }));
  link.download = data.dataset.replace(/[^\w.-]+/g, "-") + ".qrels.txt";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  show("Saved " + grades.size + " judgments as " + link.download + ".");
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key;
  if (/^[0-3]$/.test(key)) judge(Number(key));
  else if (key === "u" || key === "U" || key === "Backspace") undo();
  else if (key === "s" || key === "S") save();
  else if (key === "ArrowLeft") move(-1);
  else if (key === "ArrowRight") move(1);
  else return;
  event.preventDefault();
});
for (const button of buttons) button.addEventListener("click", () => judge(Number(button.dataset.grade)));
at("back").addEventListener("click", () => move(-1));
at("next").addEventListener("click", () => move(1));
at("undo").addEventListener("click", undo);
at("save").addEventListener("click", save);

kept();
place = grades.size < items.length && grades.has(0) ? onward() : 0;
show("");
