// What the dashboard knows. The event log feeds it; answers of the API correct it. No requests here.
import { now } from "./dom.js";

export const STATUSES = ["pending", "queued", "assigned", "running", "success", "failed", "timeout", "cancelled"];
export const TERMINAL = new Set(["success", "failed", "timeout", "cancelled"]);
export const PRIORITIES = ["urgent", "high", "normal", "low"];
const KEEP_MS = 16 * 60000;
const MOST_TASKS = 8000;
const waits = (status) => status === "queued" || status === "pending";

export const model = {
  /** Task id → {type, priority, status, started}. */
  tasks: new Map(),
  /** {task, device, attempt, start, ran, end, outcome}, oldest first; end is null while it runs. */
  attempts: [],
  /** {at, status, seconds}, oldest first. */
  done: [],
  /** Device id → {beats: [ms], flips: [{at, online}]}. */
  pulses: new Map(),
  /** Exact samples {at, urgent, high, normal, low}, and the changes before the first of them. */
  backlog: [],
  changes: [],
  /** Counts by status, patched by events after `countsAt`. */
  counts: null,
  countsAt: 0,
  slots: { used: 0, total: 0 },
  /** When the history that we have begins. */
  since: now(),
};

const open = new Map();

function pulse(id) {
  let found = model.pulses.get(id);
  if (!found) model.pulses.set(id, (found = { beats: [], flips: [] }));
  return found;
}

/** A task of a list or a detail: its type and priority, which events do not carry. */
export function learn(task) {
  const known = model.tasks.get(task.task_id) || {};
  model.tasks.set(task.task_id, { ...known, type: task.task_type ?? known.type, priority: task.priority ?? known.priority, status: known.status ?? task.status });
}

export function setCounts(byStatus, iso) {
  model.counts = { ...byStatus };
  model.countsAt = Date.parse(iso) || now();
}

export function setBeat(id, iso) {
  const at = Date.parse(iso);
  if (at) addBeat(id, at);
}

export function addBeat(id, at) {
  const { beats } = pulse(id);
  // Ages are measured at different moments; the same beat comes back a little off.
  if (beats.some((each) => Math.abs(each - at) < 700)) return;
  beats.push(at);
  beats.sort((a, b) => a - b);
  if (beats.length > 400) beats.shift();
}

export function setMetrics(found) {
  const at = now();
  for (const [id, age] of Object.entries(found.heartbeat_age_seconds || {})) addBeat(id, at - age * 1000);
  const sample = { at };
  for (const name of PRIORITIES) sample[name] = found.backlog_tasks?.[name] || 0;
  model.backlog.push(sample);
  if (found.slots) model.slots = found.slots;
}

export function apply(event) {
  const [noun, word] = event.type.split(".");
  const at = Date.parse(event.at);
  if (noun === "device") {
    if (word === "online" || word === "offline") pulse(event.device_id).flips.push({ at, online: word === "online" });
    if (word === "removed") model.pulses.delete(event.device_id);
    return;
  }
  if (noun !== "task" || word === "progress") return;
  const id = event.task_id;
  const from = event.data?.from ?? null;
  const task = model.tasks.get(id) || {};
  const next = { ...task, status: word };
  if (event.data?.priority) next.priority = event.data.priority;
  if (event.data?.task_type) next.type = event.data.task_type;
  if (model.counts && at > model.countsAt && from !== word) {
    if (from && model.counts[from] > 0) model.counts[from] -= 1;
    if (word in model.counts) model.counts[word] += 1;
  }
  const delta = Number(waits(word)) - Number(waits(from));
  if (delta) model.changes.push({ at, id, delta });
  if (word === "assigned" || word === "running") {
    let attempt = open.get(id);
    if (!attempt || attempt.number !== event.data?.attempt) {
      attempt = { task: id, device: event.device_id, number: event.data?.attempt, start: at, ran: null, end: null, outcome: word };
      open.set(id, attempt);
      model.attempts.push(attempt);
    }
    attempt.outcome = word;
    if (word === "running") attempt.ran = at;
  } else {
    const attempt = open.get(id);
    if (attempt) {
      attempt.end = at;
      attempt.outcome = TERMINAL.has(word) ? word : "failed";
      open.delete(id);
    }
    if (TERMINAL.has(word)) {
      const seconds = attempt?.ran ? (at - attempt.ran) / 1000 : null;
      model.done.push({ at, status: word, seconds });
    }
  }
  model.tasks.delete(id);
  model.tasks.set(id, next);
}

export function history(events) {
  for (const event of events) apply(event);
  const first = events.length ? Date.parse(events[0].at) : now();
  model.since = Math.min(first, now());
  begun = true;
  past(early);
  early = [];
}

let begun = false, early = [];
const seeded = new Set();

/** Ended tasks of a list: what happened before the first event, as after a restart of the main node. */
export function past(rows) {
  if (!begun) { early = rows; return; }
  let grown = false;
  for (const row of rows) {
    const end = Date.parse(row.completed_at), ran = Date.parse(row.started_at);
    if (!(end < model.since) || end < now() - KEEP_MS || seeded.has(row.task_id)) continue;
    seeded.add(row.task_id);
    grown = true;
    model.done.push({ at: end, status: row.status, seconds: row.execution_time_seconds });
    if (row.assigned_device_id && ran) model.attempts.push({ task: row.task_id, device: row.assigned_device_id, number: 0, start: Date.parse(row.assigned_at) || ran, ran, end, outcome: row.status });
  }
  if (!grown) return;
  model.done.sort((a, b) => a.at - b.at);
  model.attempts.sort((a, b) => a.start - b.start);
}

export function trim() {
  const old = now() - KEEP_MS;
  const drop = (list, time) => {
    let gone = 0;
    while (gone < list.length && time(list[gone]) < old) gone += 1;
    if (gone) list.splice(0, gone);
  };
  drop(model.done, (each) => each.at);
  drop(model.changes, (each) => each.at);
  drop(model.backlog, (each) => each.at);
  model.attempts = model.attempts.filter((each) => each.end === null || each.end > old);
  for (const id of model.tasks.keys()) {
    if (model.tasks.size <= MOST_TASKS) break;
    model.tasks.delete(id);
  }
}

/** Undoes a change. The sum stays right even where a task's priority is not known. */
function take(level, name, delta) {
  let left = delta;
  for (const each of [name, "other", "low", "normal", "high", "urgent"]) {
    const part = Math.min(left, level[each] || 0);
    level[each] = (level[each] || 0) - part;
    left -= part;
    if (left <= 0) return;
  }
}

/** The backlog by priority: exact samples, and before them walked back change by change. */
export function backlogSeries(from) {
  const samples = model.backlog;
  if (!samples.length) return [];
  const first = samples[0];
  const level = { ...first, other: 0 };
  const past = [];
  for (let i = model.changes.length - 1; i >= 0; i -= 1) {
    const { at, id, delta } = model.changes[i];
    if (at > first.at) continue;
    if (at < from) break;
    past.push({ ...level, at });
    take(level, model.tasks.get(id)?.priority || "other", delta);
    past.push({ ...level, at: at - 1 });
  }
  const begin = Math.max(from, model.since);
  if (begin < first.at) past.push({ ...level, at: begin });
  return past.reverse().concat(samples.filter((each) => each.at >= from));
}
