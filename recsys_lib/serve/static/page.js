"use strict";
// Everything that comes from the service is put in as text, never as markup.
const at = (id) => document.getElementById(id);
const chosen = [];
let turn = 0;

async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  if (at("key").value) headers["X-API-Key"] = at("key").value;
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  const reply = await fetch(path, options);
  const found = await reply.json();
  if (!reply.ok) throw new Error(found.message);
  return found;
}

const name = (entry) => {
  const { title, year } = entry.about;
  return title ? title + (year ? ` (${year})` : "") : String(entry.item);
};

function show(list, entries, press) {
  list.replaceChildren(...entries.map((entry) => {
    const line = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name(entry);
    button.onclick = () => press(entry);
    line.append(button);
    return line;
  }));
}

function choose(entry) {
  if (!chosen.some((one) => one.item === entry.item)) chosen.push(entry);
  refresh();
}

function drop(entry) {
  chosen.splice(chosen.findIndex((one) => one.item === entry.item), 1);
  refresh();
}

function rules() {
  const given = { k: 10, diversity: Number(at("diversity").value) };
  if (at("at-most").value) given.at_most = Number(at("at-most").value);
  return given;
}

async function refresh() {
  const mine = ++turn; // only the newest answers are shown
  const words = at("words").value.trim();
  const user = at("user").value.trim();
  try {
    const whom = user ? { user: /^-?\d{1,15}$/.test(user) && numbers ? Number(user) : user }
      : { history: chosen.map((one) => one.item) };
    const [titles, list, described] = await Promise.all([
      words ? ask(`items?k=10&query=${encodeURIComponent(words.slice(0, 100))}`) : { items: [] },
      ask("recommend", { ...whom, ...rules() }),
      words && text ? ask("recommend", { text: words, ...rules() }) : { items: [] },
    ]);
    if (mine !== turn) return;
    numbers = list.items.length ? typeof list.items[0].item === "number" : numbers;
    show(at("found"), titles.items, choose);
    show(at("chosen"), chosen, drop);
    show(at("listed"), list.items, choose);
    show(at("by-text"), described.items, choose);
    const spent = Object.entries(list.milliseconds).map(([stage, ms]) => `${stage} ${ms.toFixed(1)} ms`);
    at("about").textContent = `${list.basis}; ${spent.join(", ")}`;
    at("problem").textContent = "";
  } catch (error) {
    if (mine === turn) at("problem").textContent = error.message;
  }
}

let numbers = true; // whether ids are numbers; seen from the first list
let text = false;
let pause;
for (const id of ["words", "user", "at-most", "diversity", "key"]) {
  at(id).addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(refresh, 150); });
}
at("search").addEventListener("submit", (event) => { event.preventDefault(); refresh(); });
ask("health").then((found) => {
  text = found.reads_text;
  at("described").hidden = at("or-describe").hidden = !text;
}).finally(refresh);
