// Routes, keys, theme, sign-in and the connection's state.
import { ageAll, clock, dialog, h, morph, say, toast } from "./dom.js";
import { bus, limit, Live, metrics, session, sleep, ui, whoAmI } from "./net.js";
import { apply, history, setMetrics, trim } from "./model.js";
import { trouble } from "./parts.js";

const $ = (id) => document.getElementById(id);
// A page's module is fetched when it is first opened: pattern, file, function, entry of the menu.
const ROUTES = [
  [/^$/, "overview", "overview", "overview"], [/^devices$/, "devices", "devices", "devices"], [/^devices\/(.+)$/, "devices", "device", "devices"],
  [/^tasks$/, "tasks", "tasks", "tasks"], [/^tasks\/([^/]+)$/, "tasks", "task", "tasks"], [/^submit$/, "submit", "submit", "submit"], [/^config$/, "settings", "config", "config"],
  [/^log$/, "log", "log", "log"], [/^join$/, "join", "join", "devices"],
];
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

let page = null, wanted = 0, drawing = 0;

function draw() {
  drawing = 0;
  if (!page || document.hidden) return;
  const main = $("main"), next = main.cloneNode(false);
  next.append(...[page.view()].flat(Infinity).filter(Boolean));
  morph(main, next);
}

const render = () => { if (!drawing) drawing = setTimeout(draw, 16); };

async function go(moved) {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const params = Object.fromEntries(new URLSearchParams(query || ""));
  const row = ROUTES.find(([pattern]) => pattern.test(path));
  const turn = ++wanted;
  page?.stop();
  page = null;
  for (const a of document.querySelectorAll("#nav a")) {
    if (row && a.dataset.page === row[3]) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
  if (!row) {
    $("main").replaceChildren(trouble({ status: 404, message: "There is no such page." }), h("a", { href: "#/" }, "Overview"));
    return;
  }
  let module;
  try {
    module = await import(`./${row[1]}.js`);
  } catch {
    $("main").replaceChildren(trouble({ message: "This page could not be loaded. Is the API still running?" }, () => location.reload()));
    return;
  }
  if (turn !== wanted) return;
  const mine = module[row[2]](render, params, decodeURIComponent(row[0].exec(path)[1] || ""));
  page = mine;
  document.title = `${mine.title} · Retire-Cluster`;
  if (moved) {
    const typing = document.activeElement?.hasAttribute?.("data-filter") && path === go.before;
    if (!typing) { scrollTo(0, 0); $("main").focus({ preventScroll: true }); }
    say(mine.title);
  }
  go.before = path;
  const fresh = $("main").cloneNode(false);
  if (!moved || !$("main").children.length) morph($("main"), fresh);
  if (mine.pulse) beat();
  try {
    await mine.load();
    if (turn === wanted) draw();
  } catch (error) {
    if (turn === wanted) $("main").replaceChildren(h("h1", null, mine.title), trouble(error, () => go(false)));
  }
}

// --- what changes by itself ---

const live = new Live(
  (events) => {
    events.forEach((event) => { if (event.type !== "gap") apply(event); });
    trim();
    page?.on(events);
  },
  (events) => { history(events); render(); },
);

/** `/metrics` has heartbeats and the backlog by priority, which no event tells; it is free. */
async function beat() {
  if (document.hidden || beat.busy) return;
  beat.busy = true;
  try {
    setMetrics(await metrics());
    render();
  } catch { /* the stream's state says what is wrong */ }
  beat.busy = false;
}

const LIVE = { live: "live", polling: "live, by polling", connecting: "connecting", offline: "not connected", "signed out": "signed out" };
bus.addEventListener("live", ({ detail }) => {
  $("live").dataset.state = detail;
  $("live").lastElementChild.textContent = LIVE[detail];
  if (detail === "offline") say("The connection is lost; what is shown may be old");
});

let hintTimer;
bus.addEventListener("limit", () => {
  $("budget").textContent = limit.remaining === null ? "" : `${limit.remaining} requests left this minute`;
  const left = limit.blockedUntil - Date.now();
  if (left > 0) {
    $("hint").hidden = false;
    $("hint").textContent = `Rate limited until ${clock(limit.blockedUntil)}. What happens meanwhile still shows.`;
    clearTimeout(hintTimer);
    hintTimer = setTimeout(() => { $("hint").hidden = true; }, left + 500);
  }
});

// --- signing in ---

bus.addEventListener("refused", ({ detail }) => {
  if (session.auth_required) signIn(detail.message);
});

let asking = false;
async function signIn(why) {
  if (asking) return;
  asking = true;
  session.signed_in = false;
  const note = h("p.error", { role: "alert", hidden: true });
  const input = h("input", { id: "key", name: "key", type: "password", autocomplete: "current-password", required: true, spellcheck: "false" });
  const good = await dialog("Sign in", (close) => h("form", {
    onsubmit: async (event) => {
      event.preventDefault();
      try {
        Object.assign(session, (await ui("POST", "login", { key: input.value })).data);
        close(true);
      } catch (error) {
        note.textContent = error.message;
        note.hidden = false;
        input.select();
      }
    },
  }, h("p", null, why || "With an API key you can do more here."), h("div.field", null, h("label", { for: "key" }, "API key"), input, h("p.help", null, "It is not kept: this browser gets a session of seven days, which ends when you sign out or the key is revoked."), note),
  h("div.row.end", null, h("button", { type: "button", onclick: () => close(false) }, "Not now"), h("button.primary", { type: "submit" }, "Sign in"))));
  asking = false;
  if (good) {
    toast("Signed in");
    signs();
    live.stop();
    live.start();
    go(false);
  }
}

function signs() {
  $("notice").hidden = !session.notice;
  $("notice").textContent = session.notice;
  $("sign").hidden = !session.auth_required;
  $("sign").textContent = session.signed_in ? "Sign out" : "Sign in";
  $("about").textContent = `Retire-Cluster ${session.version}${session.auth_required ? "" : " · authentication is off"}`;
}

$("sign").onclick = async () => {
  if (!session.signed_in) { signIn(""); return; }
  Object.assign(session, (await ui("POST", "logout", {})).data);
  signs();
  if (session.auth_reads) { live.stop(); live.start(); }
  location.hash = "#/";
  go(false);
};

// --- theme ---

$("theme").onclick = () => {
  const root = document.documentElement;
  const next = (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark" ? "light" : "dark";
  root.dataset.theme = next;
  try { localStorage.setItem("retire-theme", next); } catch { /* for this page only, then */ }
  say(`${next} colours`);
};

// --- keys ---

const KEYS = [["/", "filter"], ["j  k", "next, previous row"], ["Enter", "open it"], ["x", "choose the row"], ["g o", "overview"], ["g d", "devices"], ["g t", "tasks"], ["g s", "submit"], ["g l", "log"], ["g c", "config"], ["g j", "add a device"], ["t", "dark or light"], ["?", "this help"], ["Esc", "close, leave a field"]];
const PLACES = { o: "#/", d: "#/devices", t: "#/tasks", s: "#/submit", l: "#/log", c: "#/config", j: "#/join" };

$("help").onclick = () => dialog("Keyboard", (close) => [
  h("dl.keys", null, KEYS.map(([keys, text]) => h("div", null, h("dt", null, keys.split(/\s+/).map((key) => h("kbd", null, key))), h("dd", null, text)))),
  h("p.quiet", null, "Everything here is in the ", h("a", { href: "../api/v1/docs" }, "REST API"), " too."),
  h("div.row.end", null, h("button.primary", { type: "button", onclick: () => close(true) }, "Done")),
]);

let pending = "";
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("dialog").open) return;
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.nodeName) && event.target.type !== "checkbox";
  if (typing) {
    if (event.key === "Escape") { event.target.blur(); $("main").focus(); }
    return;
  }
  if (pending === "g" && PLACES[event.key]) {
    pending = "";
    location.hash = PLACES[event.key];
    return;
  }
  pending = event.key === "g" ? "g" : "";
  const rows = [...document.querySelectorAll("main [data-nav]")];
  const at = rows.findIndex((row) => row === document.activeElement || row.closest("tr")?.contains(document.activeElement));
  if (event.key === "/") {
    event.preventDefault();
    const box = document.querySelector("main [data-filter]");
    if (box) { box.focus(); box.select(); }
    else { location.hash = "#/tasks"; focusLater("main [data-filter]"); }
  } else if (event.key === "?") $("help").click();
  else if (event.key === "t") $("theme").click();
  else if (event.key === "j" || event.key === "k") {
    const next = rows[Math.min(rows.length - 1, Math.max(0, at + (event.key === "j" ? 1 : -1)))];
    next?.focus();
    next?.scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
  } else if (event.key === "x" && at >= 0) rows[at].closest("tr")?.querySelector("input[type=checkbox]")?.click();
});

async function focusLater(selector) {
  for (let i = 0; i < 40; i += 1) {
    await sleep(50);
    const found = document.querySelector(selector);
    if (found) { found.focus(); return; }
  }
}

$("skip").onclick = (event) => { event.preventDefault(); $("main").focus(); };
addEventListener("hashchange", () => go(true));
document.addEventListener("visibilitychange", () => { if (!document.hidden) { render(); if (page?.pulse) beat(); } });

let second = 0;
setInterval(() => {
  if (document.hidden) return;
  ageAll();
  second += 1;
  // The pictures move along; slowly for those who want little motion.
  if (page?.tick && second % (calm.matches ? 5 : 1) === 0) page.tick();
  if (page?.pulse && second % 5 === 0) beat();
}, 1000);

async function begin() {
  for (let wait = 1000; ; wait = Math.min(15000, wait * 2)) {
    try {
      await whoAmI();
      break;
    } catch (error) {
      if (error.status === 401) break;
      $("main").replaceChildren(trouble(error, null));
      await sleep(wait);
    }
  }
  signs();
  live.start();
  await go(false);
}

begin();
