// What several pages show: task rows, how to join, why a task waits, acting on tasks.
import { h, ago, ask, chip, clock, copyable, glyph, link, plural, shortId, span, toast } from "./dom.js";
import { stringify } from "./exact.js";
import { each, get, limit, may, send } from "./net.js";
import { addBeat, TERMINAL } from "./model.js";

export const card = (title, attrs, ...kids) =>
  h("section.card", attrs, title && h("h2", null, title), kids);

export const facts = (rows) =>
  h("dl.facts", null, rows.filter(Boolean).map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value ?? "–"))));

export const deviceLink = (id) => (id ? h("a", { href: link(`devices/${encodeURIComponent(id)}`) }, id) : "–");

export const pretty = (value) => h("pre", { tabindex: 0 }, typeof value === "string" ? value : stringify(value, 2));

export function trouble(error, again) {
  return h("div.empty", { role: "alert" },
    h("h2", null, error.status === 404 ? "It is not here" : error.status === 401 ? "A key is needed" : "That did not work"),
    h("p", null, error.message),
    again && h("button", { type: "button", onclick: again }, "Try again"));
}

const asked = new Set();
/** The heartbeats before the page was opened: one request a device, for a few devices, once. */
export async function pastBeats(devices, render) {
  for (const { device_id: id } of devices) {
    if (asked.has(id) || (limit.remaining ?? 60) < 30) continue;
    asked.add(id);
    const found = await get(`devices/${encodeURIComponent(id)}`).catch(() => null);
    for (const entry of found?.data.metrics_history || []) addBeat(id, Date.parse(entry.timestamp));
    render();
  }
}

export function patch(row, event) {
  const word = event.type.slice(5);
  if (word === "progress") return;
  if (word === "assigned") Object.assign(row, { assigned_device_id: event.device_id, assigned_at: event.at });
  if (word === "running") row.started_at = event.at;
  if ((word === "pending" || word === "queued") && row.started_at) row.retry_count += word === "pending" ? 1 : 0;
  if (TERMINAL.has(word)) {
    row.completed_at = event.at;
    if (row.execution_time_seconds === null && row.started_at) {
      row.execution_time_seconds = Math.max(0, (Date.parse(event.at) - Date.parse(row.started_at)) / 1000);
    }
  }
  row.status = word;
}

export function taskTable(tasks, label, picked, onPick) {
  const all = picked && tasks.length > 0 && tasks.every((task) => picked.has(task.task_id));
  return h("table.tasks", null, h("caption.sr", null, label),
    h("thead", null, h("tr", null,
      picked && h("th.pick", { scope: "col" }, h("input", { type: "checkbox", "aria-label": "Choose all on this page", checked: all,
        indeterminate: !all && tasks.some((task) => picked.has(task.task_id)),
        onchange: (event) => onPick(tasks.map((task) => task.task_id), event.target.checked) })),
      ["Status", "Task", "Priority", "Device", "Created", "Took"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", null, tasks.map((task) => h("tr", { "data-key": task.task_id },
      picked && h("td.pick", null, h("input", { type: "checkbox", "aria-label": `Choose ${task.task_type} ${shortId(task.task_id)}`, checked: picked.has(task.task_id),
        onchange: (event) => onPick([task.task_id], event.target.checked) })),
      h("td", { "data-label": "Status" }, chip(task.status)),
      h("td.name", { "data-label": "Task" }, h("a", { href: link(`tasks/${task.task_id}`), "data-nav": true, title: task.task_id }, h("b", null, task.task_type), " ", h("span.id", null, shortId(task.task_id))),
        task.label && h("span.note.what", { title: task.label }, task.label),
        task.retry_count > 0 && h("span.note", null, plural(task.retry_count, "retry").replace("retrys", "retries"))),
      h("td", { "data-label": "Priority" }, h("span.prio", { "data-priority": task.priority }, task.priority)),
      h("td", { "data-label": "Device" }, deviceLink(task.assigned_device_id)),
      h("td.num", { "data-label": "Created" }, ago(task.created_at)),
      h("td.num", { "data-label": "Took" }, task.execution_time_seconds === null ? "–" : span(task.execution_time_seconds))))));
}

// --- lists ---

export function filterBar(page, params, label, example, onText, choices) {
  const text = Object.entries(params).filter(([name]) => name !== "page").map(([, value]) => value).join(" ");
  return h("form.filter", { role: "search", onsubmit: (event) => { event.preventDefault(); onText(new FormData(event.target).get("q")); } },
    h("label.grow", null, h("span", null, label), h("input", { name: "q", type: "search", value: text, placeholder: example, autocomplete: "off", "data-filter": true })),
    choices.map(([name, words]) => h("label", { "data-key": name }, h("span", null, name.replace("task_", "").replace("_id", "")),
      h("select", { value: params[name] || "", onchange: (event) => { location.hash = link(page, { ...params, page: "", [name]: event.target.value }); } },
        h("option", { value: "" }, "any"), words.map((word) => h("option", { value: word }, word))))),
    text && h("a.clear", { href: link(page) }, "Clear"));
}

export function pager(page, params, pages) {
  if (!pages.total_pages || pages.total_pages < 2) return null;
  const to = (number, text, on) => (on ? h("a", { href: link(page, { ...params, page: number }), rel: number > pages.page ? "next" : "prev" }, text) : h("span.quiet", null, text));
  return h("nav.pager", { "aria-label": "Pages" }, to(pages.page - 1, "← newer", pages.has_previous), h("span", null, `page ${pages.page} of ${pages.total_pages}`), to(pages.page + 1, "older →", pages.has_next));
}

let typesKnown = null;
export async function loadTypes(fresh) {
  if (!typesKnown || fresh) typesKnown = (await get("tasks/types")).data;
  return typesKnown;
}

export function noTasks() {
  return h("div.empty", null, h("p", null, "No tasks yet."), h("button.primary", { type: "button", onclick: submitEcho }, "Send an echo"), h("p.quiet", null, "It goes to a device and comes back. ", h("a", { href: link("submit") }, "Or choose another task.")));
}

// --- acting ---

export async function guarded(act, good) {
  try {
    const answer = await act();
    if (good) toast(typeof good === "function" ? good(answer) : good);
    return answer;
  } catch (error) {
    toast(error.message, "bad");
    return null;
  }
}

export const act = (id, verb) => send("POST", `tasks/${id}/${verb}`, {});

/** Cancels or retries many: asks once. */
export async function actOnMany(ids, verb) {
  const what = plural(ids.length, "task");
  const word = verb === "retry" ? "Retry" : "Cancel";
  const text = verb === "retry" ? `${what} will run again. Old outcomes are kept in their histories.` : `${what} will be cancelled. Running ones are stopped at once.`;
  if (ids.length > 1 && !(await ask(`${word} ${what}?`, text, `${word} ${what}`, verb === "cancel"))) return false;
  const box = toast(`${word}: 0 of ${ids.length}`);
  try {
    const good = await each(ids, (id) => act(id, verb), (done, all) => { box.children[1].textContent = `${word}: ${done} of ${all}`; });
    toast(good === ids.length ? `${word}: all ${good} done` : `${word}: ${good} of ${ids.length} done, the others could not be`, good ? "ok" : "bad");
  } catch (error) {
    toast(error.message, "bad");
  }
  box.remove();
  return true;
}

export async function submitEcho() {
  const answer = await guarded(() => send("POST", "tasks", { task_type: "echo", payload: { message: "Hello from the dashboard" } }));
  if (answer) location.hash = link(`tasks/${answer.data.task_id}`);
}

// --- joining ---

const install = () => h("p", null, "On the device, with Python 3.10 or newer:");

export async function joinBody() {
  if (!may("admin")) {
    return h("div.join", null, install(), h("p", null, "the line that this command on the main node's machine prints:"), copyable("retire-cluster token create"),
      h("p.quiet", null, "With an administrator's key it is made here."));
  }
  const place = h("div", null, h("p.quiet", null, "The line holds the main node's key and a token that is good for one device within an hour. It is shown once."));
  const make = async () => {
    try {
      const { data } = await send("POST", "join-tokens", { note: "made by the dashboard" });
      place.replaceChildren(...[data.one_line && copyable(data.one_line), data.one_line && h("p", null, "or, where retire-cluster is installed:"), copyable(data.command), h("p.quiet", null, `For one device, until ${clock(data.expires_at)}. It shows up here within a second of starting.`),
        data.local_only && h("p.banner", null, "Only on this machine (add --data-dir FOLDER): the worker bus listens here alone, see server.worker_host.")].filter(Boolean));
    } catch (error) {
      if (error.status !== 403) { toast(error.message, "bad"); return; }
      const server = (await get("config").catch(() => null))?.data.server;
      place.replaceChildren(h("p", null, "The worker bus is not encrypted: whoever reaches it may join."), copyable(`retire-cluster-worker --join ${location.hostname}:${server?.worker_port ?? 8082}`));
    }
    button.textContent = "Make another";
  };
  const button = h("button.primary", { type: "button", onclick: make }, "Make the join line");
  return h("div.join", { "data-keep": true }, install(), h("p.row", null, button), place);
}

// --- why a task waits ---

const CURES = [
  [/^does not run (command|python_call)/, (m) => `its owner allows it: --allow ${m[1]} where its worker is started`],
  [/^Python is not/, () => "send the function as text or by name, or start a worker with that Python"],
  [/^missing tag (.+)/, (m) => `start a worker with --tag ${m[1]}`],
  [/^offline$/, () => "it runs as soon as that device is back"],
  [/^draining$/, () => "the device takes no new work until it is resumed"],
  [/^(fewer|less) than/, () => "a bigger device has to join, or ask for less"],
];

/** Why a task waits: in a sentence, by reason, by device. */
export function whyBox({ status, due_at: due, queued_reason: reason, devices }) {
  if (!["pending", "queued"].includes(status)) return null;
  const text = status === "pending" ? `It is waiting for its time${due ? `: it is queued at ${clock(due)}` : ""}.` : reason && whyText(reason);
  return text && h("section.card.why", null, h("h2", null, "Why it waits"), h("p.lead", null, text), reason && reasons(reason), devices?.length > 0 && byDevice(devices));
}

const MOST_ROWS = 50;
function byDevice(devices) {
  const rows = [...devices].sort((a, b) => b.eligible - a.eligible).slice(0, MOST_ROWS);
  return h("details", null, h("summary", null, "Device by device"), h("table", null, h("caption.sr", null, "Why not, device by device"),
    h("thead", null, h("tr", null, ["Device", "May it?", "Why"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", null, rows.map((row) => h("tr", { "data-key": row.device_id }, h("td.name", { "data-label": "Device" }, deviceLink(row.device_id)),
      h("td", { "data-label": "May it?" }, h("span.chip", { "data-status": row.eligible ? "success" : "cancelled" }, glyph(row.eligible ? "success" : "failed"), row.eligible ? "yes" : "no")),
      h("td", { "data-label": "Why" }, row.reasons.join("; ") || "it has room"))))),
  devices.length > MOST_ROWS && h("p.quiet", null, `and ${plural(devices.length - MOST_ROWS, "more device")}`));
}

export function whyText({ eligible_devices: fit, busy_devices: busy, rejected }) {
  if (!fit && !Object.keys(rejected).length) return "No device has joined the cluster yet.";
  if (!fit) return "No device can run it as things are.";
  if (busy >= fit) return `${plural(fit, "device")} could run it, ${fit === 1 ? "and it is busy" : "and all are busy"}. It starts as soon as one has room.`;
  return `${plural(fit - busy, "device")} can take it now; it is next in line.`;
}

function reasons({ rejected }) {
  const rows = Object.entries(rejected).sort((a, b) => b[1] - a[1]);
  if (!rows.length) return null;
  return h("ul.reasons", null, rows.map(([why, n]) => {
    const cure = CURES.map(([pattern, text]) => { const m = pattern.exec(why); return m && text(m); }).find(Boolean);
    return h("li", null, h("b", null, plural(n, "device")), h("span", null, why, cure && h("small", null, cure)));
  }));
}
