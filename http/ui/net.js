// The API and the event stream. Frugal on purpose: requests are counted, so lists are never polled.
// Events patch what is shown; a refetch is rare and spaced out.
import { now, setClock } from "./dom.js";
import { answer as read, stringify } from "./exact.js";

const ROOT = new URL("../", import.meta.url);
export const API = new URL("api/v1/", ROOT);
const RESERVE = 0.25;         // of a minute's requests: background work leaves it to people
const BACKGROUND_A_MINUTE = 12;

export const session = { version: "", auth_required: false, auth_reads: false, signed_in: false, scopes: [], notice: "" };
const holds = (held, scope) => held === "admin" || held === scope || (held === "submit:dangerous" && scope === "submit");
export const may = (scope) => session.scopes.some((held) => holds(held, scope));
export const HARMLESS = ["echo", "sleep", "system_info"];
export const mayOf = (type) => may(HARMLESS.includes(type) ? "submit" : "submit:dangerous");
export const limit = { remaining: null, perMinute: 60, resetMs: 0, blockedUntil: 0 };
export const bus = new EventTarget();
const tell = (name, detail) => bus.dispatchEvent(new CustomEvent(name, { detail }));
export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

export class ApiError extends Error {
  constructor(status, document, retryAfter) {
    super(document?.message || `The server answered ${status}`);
    this.status = status;
    this.code = document?.error_code || "";
    this.details = document?.error_details || {};
    this.retryAfter = retryAfter;
  }
}

async function request(method, url, body, signal) {
  const headers = { Accept: "application/json", "X-Requested-With": "retire-cluster-dashboard" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(url, {
      method, headers, signal, credentials: "same-origin",
      body: body === undefined ? undefined : stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The API cannot be reached. Is it still running?", error_code: "UNREACHABLE" });
  }
  const left = answer.headers.get("X-RateLimit-Remaining");
  if (left !== null) {
    limit.remaining = Number(left);
    limit.perMinute = Number(answer.headers.get("X-RateLimit-Limit"));
    limit.resetMs = Number(answer.headers.get("X-RateLimit-Reset")) * 1000;
    tell("limit");
  }
  const document = await answer.text().then(read).catch(() => null);
  if (document?.timestamp) setClock(document.timestamp);
  if (answer.ok) return document;
  const retryAfter = Number(answer.headers.get("Retry-After")) || 0;
  if (answer.status === 429) {
    limit.blockedUntil = Date.now() + 1000 * (retryAfter || 5);
    tell("limit");
  }
  const error = new ApiError(answer.status, document, retryAfter);
  if (answer.status === 401) tell("refused", error);
  throw error;
}

/** GET; waits out a 429 instead of failing, since looking can wait. */
export async function get(path) {
  for (;;) {
    if (Date.now() < limit.blockedUntil) await sleep(limit.blockedUntil - Date.now() + 200);
    try {
      return await request("GET", new URL(path, API));
    } catch (error) {
      if (error.status !== 429) throw error;
    }
  }
}

export const send = (method, path, body) => request(method, new URL(path, API), body);
export const ui = (method, path, body) => request(method, new URL(path, import.meta.url), body);

export async function whoAmI() {
  const { data } = await ui("GET", "session");
  Object.assign(session, data);
  return session;
}

/** One action on many things: paced, waits when told to, returns how many went well. */
export async function each(items, act, progress) {
  let good = 0;
  for (const [index, item] of items.entries()) {
    progress(index, items.length);
    for (;;) {
      try {
        await act(item);
        good += 1;
      } catch (error) {
        if (error.status === 429) {
          await sleep(1000 * (error.retryAfter || 5) + 200);
          continue;
        }
        if (error.status === 0 || error.status === 401) throw error;
      }
      break;
    }
  }
  return good;
}

// --- refetching ---

const recent = [];

function budgetDelay() {
  const at = Date.now();
  while (recent.length && recent[0] < at - 60000) recent.shift();
  let wait = Math.max(0, limit.blockedUntil - at);
  if (recent.length >= BACKGROUND_A_MINUTE) wait = Math.max(wait, recent[0] + 60000 - at);
  if (limit.remaining !== null && limit.remaining < RESERVE * limit.perMinute) {
    wait = Math.max(wait, Math.min(30000, limit.resetMs - now()));
  }
  return wait;
}

/** `poke()` it as often as you like: `run` happens at most every `gap` ms, and slower when many do. */
export function refresher(run, gap = 3000, first = 250) {
  let timer = 0, last = 0, busy = false, dirty = false, stopped = false;
  const fire = async () => {
    timer = 0;
    if (document.hidden || stopped) return;
    dirty = false;
    busy = true;
    last = Date.now();
    recent.push(last);
    try {
      await run();
    } catch { /* shown by the connection's state; the next event tries again */ } finally {
      busy = false;
      if (dirty) poke();
    }
  };
  const poke = () => {
    dirty = true;
    if (timer || busy || stopped) return;
    timer = setTimeout(fire, Math.max(first, last + gap - Date.now(), budgetDelay()));
  };
  const seen = () => { if (!document.hidden && dirty) poke(); };
  document.addEventListener("visibilitychange", seen);
  poke.stop = () => {
    stopped = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", seen);
  };
  return poke;
}

// --- events ---

const HISTORY_MS = 15 * 60000;
const HISTORY_PAGES = 5;

/** Follows the event log: WebSocket first, the long poll with the same cursor where that fails. */
export class Live {
  constructor(onEvents, onHistory) {
    this.onEvents = onEvents;
    this.onHistory = onHistory;
    this.state = "connecting";
    this.buffer = [];
    this.fails = 0;
    this.running = 0;
  }

  set(state) {
    if (state === this.state) return;
    this.state = state;
    tell("live", state);
  }

  stop() {
    this.running += 1;
    this.socket?.close();
    this.abort?.abort();
  }

  async start() {
    const run = ++this.running;
    for (let wait = 1000; run === this.running; wait = Math.min(15000, wait * 2)) {
      try {
        const { data } = await request("GET", new URL("events", API));
        if (this.cursor === undefined) await this.history(data.next);
        this.cursor = this.cursor ?? data.next;
        this.connect(run);
        return;
      } catch (error) {
        this.set(error.status === 401 ? "signed out" : "offline");
        if (error.status === 401) return;
        await sleep(wait);
      }
    }
  }

  /** The last minutes, newest pages first, so that the pictures have a past at once. */
  async history(next) {
    let found = [], end = next;
    for (let page = 0; page < HISTORY_PAGES; page += 1) {
      const since = Math.max(0, end - 1000);
      const { data } = await request("GET", new URL(`events?since=${since}&limit=1000`, API));
      const events = data.events.filter((event) => event.id <= end);
      found = events.concat(found);
      if (!events.length || data.gap || Date.parse(events[0].at) < now() - HISTORY_MS) break;
      end = since;
    }
    this.onHistory(found);
  }

  connect(run) {
    const url = new URL(`ws?since=${this.cursor}`, ROOT);
    url.protocol = url.protocol.replace("http", "ws");
    let opened = false, socket;
    try {
      socket = new WebSocket(url);
    } catch {
      this.poll(run);
      return;
    }
    this.socket = socket;
    socket.onopen = () => { opened = true; this.fails = 0; this.set("live"); };
    socket.onmessage = (message) => this.take([JSON.parse(message.data)]);
    socket.onclose = async () => {
      if (run !== this.running) return;
      this.fails += 1;
      if (opened || this.fails < 2) {
        if (!opened) this.set("connecting");
        else this.set("offline");
        await sleep(Math.min(15000, 500 * 2 ** this.fails));
        if (run === this.running) this.connect(run);
      } else {
        this.poll(run);
      }
    };
  }

  async poll(run) {
    let wait = 1000;
    const until = Date.now() + 120000;  // then a WebSocket is given another chance
    while (run === this.running && Date.now() < until) {
      const began = Date.now();
      this.abort = new AbortController();
      try {
        const { data } = await request("GET", new URL(`events?since=${this.cursor}&wait=25`, API), undefined, this.abort.signal);
        const back = this.state === "offline";
        this.set("polling");
        if (data.gap) this.take([{ type: "gap", next: data.next }]);
        this.take(data.events);
        this.cursor = data.next;
        if (back) break;  // the API was away; its WebSocket may work again too
        // A server that cannot park us answers at once: ask again, but slowly.
        wait = data.events.length || Date.now() - began > 2000 ? 0 : Math.min(15000, Math.max(1000, wait * 2));
      } catch (error) {
        if (error.name === "AbortError") return;
        if (error.status === 401) { this.set("signed out"); return; }
        this.set("offline");
        wait = Math.min(15000, Math.max(1000, wait * 2));
      }
      if (wait) await sleep(wait);
    }
    if (run === this.running) { this.fails = 0; this.connect(run); }
  }

  /** Bursts are handed on together. */
  take(events) {
    if (!events.length) return;
    this.buffer.push(...events);
    for (const event of events) this.cursor = event.id ?? event.next ?? this.cursor;
    if (this.flushing) return;
    this.flushing = setTimeout(() => {
      this.flushing = 0;
      const batch = this.buffer;
      this.buffer = [];
      this.onEvents(batch);
    }, 120);
  }
}

/** `/metrics` as `{name: [{labels, value}]}`. It costs no rate limit, and it has what no event has. */
export async function metrics() {
  const answer = await fetch(new URL("metrics", ROOT), { credentials: "same-origin" });
  if (!answer.ok) throw new ApiError(answer.status, null, 0);
  const found = {};
  for (const line of (await answer.text()).split("\n")) {
    const match = /^retire_cluster_(backlog_tasks|heartbeat_age_seconds|slots)\{(\w+)="((?:[^"\\]|\\.)*)"\} (\S+)/.exec(line);
    if (match) (found[match[1]] ??= {})[match[3]] = Number(match[4]);
  }
  return found;
}
