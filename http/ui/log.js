// The event log as it grows: what happened to which task and device.
import { h, chip, clock, count, glyph, link, shortId } from "./dom.js";
import { get } from "./net.js";
import { model, STATUSES } from "./model.js";
import { deviceLink, filterBar } from "./parts.js";

const PAGE = 1000, LOOK_BACK = 5000, SHOWN = 200;
// Kept for longer than all others, also over a restart of the main node.
const AUDIT = ["token", "admin_key", "api_key", "config", ...["authorised", "enrolled", "readmitted", "removed", "flooding", "impersonated", "refused"].map((word) => `device.${word}`)];
const TYPES = ["task", "device", ...STATUSES.map((word) => `task.${word}`), "device.online", "device.offline", ...AUDIT];
const isOf = (type, wanted) => type === wanted || type.startsWith(`${wanted}.`);
const audited = ({ type, task_id: task }) => task ? [] : !type ? AUDIT : AUDIT.some((one) => isOf(type, one)) ? [type] : AUDIT.filter((one) => isOf(one, type));
const STATES = { online: "online", offline: "offline", changed: "queued", removed: "cancelled", draining: "draining" };

export function log(render, params) {
  let rows = null, gap = false, held = null;
  const wants = (event) => (!params.type || isOf(event.type, params.type))
    && (!params.task_id || event.task_id === params.task_id) && (!params.device_id || event.device_id === params.device_id);
  const keep = (events) => {
    const known = new Set(rows.slice(0, 2 * SHOWN).map((row) => row.id));
    rows = [...events.filter((event) => event.id && wants(event) && !known.has(event.id)).reverse(), ...rows].sort((a, b) => b.id - a.id).slice(0, SHOWN);
  };
  const gather = async (since, end, query) => {
    while (since < end) {
      const { data } = await get(`events?${new URLSearchParams({ ...query, since, limit: PAGE })}`);
      keep(data.events);
      if (data.next <= since) break;
      since = data.next;
    }
  };
  const filter = (text) => {
    const next = {};
    for (const word of text.split(/[\s,]+/).filter(Boolean)) {
      if (/^[0-9a-f]{8}-[0-9a-f-]{27}$/i.test(word)) next.task_id = word.toLowerCase();
      else if (TYPES.includes(word.toLowerCase())) next.type = word.toLowerCase();
      else if (STATUSES.includes(word.toLowerCase())) next.type = `task.${word.toLowerCase()}`;
      else next.device_id = word;
    }
    location.hash = link("log", next);
  };
  return {
    title: "Log",
    async load() {
      // Events cost no rate limit; the newest lie at the end of what is kept.
      const end = (await get("events")).data.next;
      rows = [];
      await gather(Math.max(0, end - LOOK_BACK), end, params);
      render();
      if (rows.length >= SHOWN) return;
      for (const type of audited(params)) await gather(0, end, { ...params, type });
      render();
    },
    on(events) {
      if (!rows) return;
      if (events.some((event) => event.type === "gap")) gap = true;
      if (held) held.push(...events.filter(wants));
      else keep(events);
      render();
    },
    stop() {},
    view() {
      if (!rows) return h("p.quiet", null, "Reading…");
      const pause = () => { if (held) { const events = held; held = null; keep(events); } else held = []; render(); };
      const any = Object.keys(params).length > 0;
      return [
        h("div.head", null, h("h1", null, "Log"), h("span.quiet", null, held ? `held; ${count(held.length)} more since` : "newest first, as it happens"),
          h("button", { type: "button", "aria-pressed": String(Boolean(held)), onclick: pause }, held ? "Go on" : "Hold")),
        filterBar("log", params, "Type, device or a task id", "failed pi-kitchen", filter, [["type", TYPES]]),
        gap && h("p.banner", null, "Some events between are no longer kept."),
        rows.length ? h("table.log", null, h("caption.sr", null, "Events, newest first"),
          h("thead", null, h("tr", null, ["When", "What", "Task", "Device", "More"].map((name) => h("th", { scope: "col" }, name)))),
          h("tbody", null, rows.map(row)))
          : h("div.empty", null, h("p", null, any ? "Nothing of that kind has happened lately." : "Nothing has happened yet."), any && h("a", { href: link("log") }, "Show all")),
      ];
    },
  };
}

function row(event) {
  let [noun, word] = event.type.split(".");
  if (word === "changed" && event.data.accepting === false) word = "draining";
  const known = noun === "task" && STATUSES.includes(word);
  return h("tr", { "data-key": `e${event.id}` },
    h("td.num", { "data-label": "When" }, h("time", { datetime: event.at, title: event.at }, clock(event.at))),
    h("td.name", { "data-label": "What" }, known ? [h("span.quiet", null, "task "), chip(word)] : STATES[word] ? [h("span.quiet", null, "device "), h("span.chip", { "data-status": STATES[word] }, glyph(STATES[word]), word)] : event.type),
    h("td", { "data-label": "Task" }, event.task_id ? h("a", { href: link(`tasks/${event.task_id}`), "data-nav": true, title: event.task_id }, event.data.task_type || model.tasks.get(event.task_id)?.type || "task", " ", h("span.id", null, shortId(event.task_id))) : "–"),
    h("td", { "data-label": "Device" }, deviceLink(event.device_id)),
    h("td.more", { "data-label": "More" }, more(event.data)));
}

const HIDDEN = ["task_type", "from"];
const more = (data) => Object.entries(data).filter(([name, value]) => !HIDDEN.includes(name) && value !== null && value !== "").map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(" · ") || "–";
