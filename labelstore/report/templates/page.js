// Tabs, sorting, the colours' toggle, and what print opens.

for (const list of document.querySelectorAll("[role=tablist]")) {
  const tabs = [...list.querySelectorAll("[role=tab]")];
  const select = (tab) => {
    for (const other of tabs) {
      const own = other === tab;
      other.setAttribute("aria-selected", String(own));
      other.setAttribute("tabindex", own ? "0" : "-1");
      document.getElementById(other.getAttribute("aria-controls")).hidden = !own;
    }
  };
  list.addEventListener("click", (event) => event.target.closest("[role=tab]") && select(event.target.closest("[role=tab]")));
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    select(next);
    next.focus();
    event.preventDefault();
  });
}

// A column's button sorts all rows into one body: descending, ascending, then back to the groups.
for (const table of document.querySelectorAll("table.leaderboard")) {
  const groups = [...table.tBodies].map((body) => [body, [...body.rows]]);
  const flat = make("tbody", { role: "rowgroup" });
  for (const head of table.querySelectorAll("th[data-sort]")) {
    const button = make("button", { type: "button", title: "Sort" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => sort(table, head, groups, flat));
  }
}

function sort(table, head, groups, flat) {
  const key = head.dataset.sort, before = head.getAttribute("aria-sort");
  const order = [null, "descending", "ascending"], upward = key === "number" || key === "name" || key === "p";
  const turns = upward ? [null, "ascending", "descending"] : order;
  const next = turns[(turns.indexOf(before) + 1) % 3];
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  for (const [body, rows] of groups) { body.append(...rows); table.append(body); }
  flat.remove();
  table.classList.toggle("flat", next !== null);
  if (next === null) return;
  head.setAttribute("aria-sort", next);
  const value = (row) => key === "name" ? row.dataset.name.toLowerCase() : row.dataset[key] === "" ? null : Number(row.dataset[key]);
  const rows = groups.flatMap(([, own]) => own).filter((row) => !row.classList.contains("group"));
  rows.sort((a, b) => {
    const x = value(a), y = value(b);
    if (x === null || y === null) return (x === null) - (y === null);
    return (x < y ? -1 : x > y ? 1 : 0) * (next === "ascending" ? 1 : -1);
  });
  flat.replaceChildren(...rows);
  for (const [body] of groups) body.remove();
  table.append(flat);
}

const theme = document.getElementById("theme");
const themes = ["system", "light", "dark"];
function colour(name) {
  if (name === "system") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", name);
  theme.querySelector(".what").textContent = name[0].toUpperCase() + name.slice(1);
  theme.setAttribute("aria-label", "Colours: " + (name === "system" ? "as the system has them" : name));
  theme.dataset.name = name;
}
function remembered(name) {
  // storage may be forbidden for a file: the choice then lasts as long as the page
  try {
    if (name) localStorage.setItem("msft-report-theme", name);
    return localStorage.getItem("msft-report-theme");
  } catch (error) {
    return null;
  }
}
theme.addEventListener("click", () => {
  const name = themes[(themes.indexOf(theme.dataset.name) + 1) % themes.length];
  colour(name);
  remembered(name);
});
const stored = remembered();
colour(themes.includes(stored) ? stored : "system");

// A table that is wider than the page says so below it, and fades at the side where more columns are.
for (const box of document.querySelectorAll(".scroll")) {
  box.after(make("p", { class: "more", "aria-hidden": "true" }, "scroll sideways for more columns →"));
  const measure = () => box.classList.toggle("cut", box.scrollWidth > box.clientWidth + 1);
  new ResizeObserver(measure).observe(box);
  box.addEventListener("scroll", () => {
    const end = box.scrollLeft + box.clientWidth >= box.scrollWidth - 1;
    box.nextElementSibling.textContent = end ? "← scroll back for the first columns" : "scroll sideways for more columns →";
  });
  measure();
}

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const item of opened) if (!item.classList.contains("numbers")) item.open = true;
});
addEventListener("afterprint", () => { for (const item of opened) item.open = false; });

if (explorer) explorer.start();
if (differences) differences.start();
