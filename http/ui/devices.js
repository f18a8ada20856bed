// All devices, and one.
import { h, ago, ask, clock, count, keep, gb, glyph, link, now, plural, span, toast } from "./dom.js";
import { get, may, refresher, send } from "./net.js";
import { addBeat, learn, model, setBeat } from "./model.js";
import { spark, strip } from "./charts.js";
import { card, facts, filterBar, guarded, joinBody, pager, pastBeats, patch, taskTable, trouble } from "./parts.js";

const WINDOW_MS = 5 * 60000;
const WORDS = { status: ["online", "offline"], role: ["worker", "compute", "storage", "mobile"], platform: ["linux", "windows", "android", "darwin"] };

export const deviceChip = (device) => {
  const state = device.status === "online" && device.accepting === false ? "draining" : device.status;
  return h("span.chip", { "data-status": state }, glyph(state), state);
};

const lastBeat = (device) => {
  const beats = model.pulses.get(device.device_id)?.beats;
  const at = Math.max(beats?.[beats.length - 1] || 0, Date.parse(device.last_heartbeat) || 0);
  return at ? ago(new Date(at).toISOString()) : "–";
};

export function devices(render, params) {
  let rows = null, pages = {}, join = null;
  const load = async () => {
    const query = new URLSearchParams({ page_size: 25, ...params });
    const answer = await get(`devices?${query}`);
    rows = answer.data;
    pages = answer.pagination;
    rows.forEach((device) => setBeat(device.device_id, device.last_heartbeat));
    pastBeats(rows.slice(0, 6), render);
    if (!rows.length && !Object.keys(params).length && !join) join = await joinBody();
    render();
  };
  const poke = refresher(load);
  const filter = (text) => {
    const next = {};
    const tags = [];
    for (const word of text.toLowerCase().split(/[\s,]+/).filter(Boolean)) {
      const name = Object.keys(WORDS).find((each) => WORDS[each].includes(word));
      if (rows?.some((row) => row.device_id.toLowerCase() === word)) { location.hash = link(`devices/${encodeURIComponent(word)}`); return; }
      if (name) next[name] = word;
      else tags.push(word);
    }
    location.hash = link("devices", { ...next, tags: tags.join(",") });
  };
  return {
    title: "Devices",
    pulse: true,
    load,
    on(events) {
      for (const event of events) {
        if (!event.type.startsWith("device.") && event.type !== "gap") continue;
        const row = rows?.find((each) => each.device_id === event.device_id);
        if (row && /online|offline/.test(event.type)) row.status = event.type.slice(7);
        poke();
      }
      render();
    },
    tick: render,
    stop: poke.stop,
    view() {
      if (!rows) return h("p.quiet", null, "Looking around…");
      const to = now(), from = to - WINDOW_MS;
      const empty = Object.keys(params).length
        ? h("div.empty", null, h("p", null, "No device matches."), h("a", { href: link("devices") }, "Show all"))
        : h("section.card.hello", null, h("h2", null, "No devices yet"), h("p.lead", null, "Add the first one:"), keep(join));
      return [
        h("div.head", null, h("h1", null, "Devices"), h("span.quiet", null, plural(pages.total_items ?? 0, "device")), h("a.button", { href: link("join") }, "+ Add a device")),
        filterBar("devices", params, "Status, role, platform or tag", "online mobile gpu-capable", filter,
          Object.entries(WORDS).map(([name, words]) => [name, words])),
        rows.length ? h("table.devices", null, h("caption.sr", null, "Devices"),
          h("thead", null, h("tr", null, ["Device", "State", "Heartbeats, 5 min", "Last", "Platform", "Capacity", "Tags"].map((name) => h("th", { scope: "col" }, name)))),
          h("tbody", null, rows.map((device) => h("tr", { "data-key": device.device_id },
            h("td.name", { "data-label": "Device" }, h("a", { href: link(`devices/${encodeURIComponent(device.device_id)}`), "data-nav": true }, h("b", null, device.device_id)), h("span.note", null, device.ip_address)),
            h("td", { "data-label": "State" }, deviceChip(device)),
            h("td.beat", { "data-label": "Heartbeats" }, strip(model.pulses.get(device.device_id), device.device_id, from, to, device.status === "online")),
            h("td.num", { "data-label": "Last" }, lastBeat(device)),
            h("td", { "data-label": "Platform" }, device.platform, h("span.note", null, device.role)),
            h("td", { "data-label": "Capacity" }, h("span.nowrap", null, capacity(device.capabilities))),
            h("td", { "data-label": "Tags" }, tagList(device.tags)))))) : empty,
        pager("devices", params, pages),
      ];
    },
  };
}

const capacity = (facts_) => [plural(facts_.cpu_count ?? 0, "core"), " · ", gb(facts_.memory_total_gb), facts_.has_gpu ? " · GPU" : ""];
const tagList = (tags) => h("span.tags", null, tags.map((tag) => h("a.tag", { href: link("devices", { tags: tag }) }, tag)));

const METERS = [
  ["cpu_percent", "CPU", "%", { low: 0, high: 100 }], ["memory_percent", "Memory", "%", { low: 0, high: 100 }],
  ["temperature_c", "Temperature", "°C", { least: 10 }], ["battery_percent", "Battery", "%", { low: 0, high: 100 }],
  ["load_average", "Load", "", { low: 0 }], ["disk_percent", "Disk", "%", { low: 0, high: 100 }],
];

export function device(render, params, id) {
  let found = null, tasks = [], failure = null;
  const path = `devices/${encodeURIComponent(id)}`;
  const load = async () => {
    try {
      found = (await get(path)).data;
      failure = null;
      for (const entry of found.metrics_history) addBeat(id, Date.parse(entry.timestamp));
    } catch (error) {
      failure = error;
    }
    render();
  };
  const loadTasks = async () => {
    const answer = await get(`tasks?device_id=${encodeURIComponent(id)}&page_size=10`);
    answer.data.forEach(learn);
    tasks = answer.data;
    render();
  };
  // A beat is no event. That one came is known from /metrics; the curves follow, four times a minute.
  const poke = refresher(load, 15000, 1000), pokeSoon = refresher(load), pokeTasks = refresher(loadTasks, 5000);
  let beats = 0;
  return {
    title: id,
    pulse: true,
    load: () => Promise.all([load(), loadTasks().catch(() => {})]),
    on(events) {
      for (const event of events) {
        if (event.device_id !== id && event.type !== "gap") continue;
        if (event.type.startsWith("device.")) pokeSoon();
        const row = tasks.find((task) => task.task_id === event.task_id);
        if (row) patch(row, event);
        else if (event.task_id) pokeTasks();
      }
      render();
    },
    tick() {
      const seen = model.pulses.get(id)?.beats.length || 0;
      if (seen !== beats) { beats = seen; poke(); }
      render();
    },
    stop() { poke.stop(); pokeSoon.stop(); pokeTasks.stop(); },
    view() {
      if (failure) return [h("h1", null, id), trouble(failure, load)];
      if (!found) return h("p.quiet", null, "Asking…");
      const online = found.status === "online";
      const to = now(), from = to - WINDOW_MS;
      const caps = found.capabilities;
      const values = found.metrics_history;
      return [
        h("div.head", null, h("h1", null, h("a.up", { href: link("devices") }, "Devices"), " ", id), deviceChip(found),
          may("read") && h("button", { type: "button", onclick: ping }, "Ping"),
          may("admin") && online && (found.accepting ? h("button", { type: "button", onclick: drain, title: "It finishes what it has and gets nothing new" }, "Drain") : h("button.primary", { type: "button", onclick: resume }, "Resume")),
          may("admin") && h("button.danger", { type: "button", onclick: remove }, "Remove…")),
        !online && h("p.banner", null, glyph("offline"), " Offline. What follows is what it last said, ", ago(found.last_heartbeat), "."),
        online && !found.accepting && h("p.banner", null, glyph("draining"), ` It gets no new work${found.running_tasks.length ? ` and finishes what it has: ${plural(found.running_tasks.length, "task")}` : " and has nothing left to do"}. Resume it when it may work again.`),
        card("Heartbeats", { class: "card wide" }, strip(model.pulses.get(id), id, from, to, online, { width: 900, height: 34 }),
          h("p.row.quiet", null, h("span", null, "last ", lastBeat(found)), h("span", null, `${count(found.total_heartbeats)} in all`), h("span", null, "5 minutes shown"), h("a", { href: link("log", { device_id: id }) }, "its log"))),
        h("div.meters", null, METERS.map(([name, label, unit, options]) => {
          const value = found.metrics[name];
          const series = values.map((entry) => entry[name]);
          const known = value !== null && value !== undefined;
          return h("section.card.meter", { "data-key": name, "data-none": known ? null : true },
            h("h2", null, label), h("strong", null, known ? [String(value), unit && h("small", null, ` ${unit}`)] : "–"),
            name === "battery_percent" && known && h("span.note", null, found.metrics.power_plugged ? "plugged in" : "on battery"),
            spark(series, { label, ...options }) || h("p.quiet", null, "not measured here"));
        })),
        h("div.columns", null,
          card("Facts", null, facts([
            ["Role", found.role], ["Platform", [found.platform, caps.architecture && ` · ${caps.architecture}`]], ["System", caps.os_release], ["Processor", [plural(caps.cpu_count ?? 0, "core"), caps.cpu_model && ` · ${caps.cpu_model}`]],
            ["Memory", gb(caps.memory_total_gb)], ["Storage", gb(caps.storage_total_gb)], ["GPU", caps.has_gpu === undefined ? null : caps.has_gpu ? "yes" : "no"], ["Internet", caps.has_internet === undefined ? null : caps.has_internet ? "yes" : "no"],
            ["Address", found.ip_address], ["Host name", found.hostname], ["Python", caps.python_version], ["Version", found.version],
            ["Walls around tasks", found.walls.length ? found.walls.join("; ") : null], ["Up for", found.uptime], ["Known since", ago(found.registered_at)],
          ])),
          card("Work", null, facts([
            ["Running", `${found.running_tasks.length} of ${plural(found.slots, "slot")}`], ["Takes work", found.accepting ? "yes" : "no"],
            ["Succeeded", count(found.tasks_succeeded)], ["Failed", count(found.tasks_failed)], found.last_error && ["Last error", found.last_error],
            ...found.passed_over.map((entry) => [`No ${entry.task_type} ${entry.needs || ""} until ${clock(entry.until)}`, entry.message]),
          ]), found.task_types_left_out.map((line) => h("p.banner", null, line)),
            found.task_types_disputed.length > 0 && h("p.banner", null, "Most devices describe these types otherwise; what is submitted is judged by their word: ", found.task_types_disputed.join(", ")), h("h3", null, "Runs"), h("p.tags", null, found.task_types.map((type) => h("a.tag", { href: link("submit", { type }) }, type))),
            found.own_task_types.length ? facts(found.own_task_types.map((own) => [own.name, `${own.distribution} ${own.version || ""}`])) : null,
            h("h3", null, "Tags"), found.tags.length ? tagList(found.tags) : h("p.quiet", null, "none"))),
        card("Its newest tasks", { class: "card wide" }, tasks.length ? [taskTable(tasks, `Newest tasks of ${id}`), h("p", null, h("a", { href: link("tasks", { device_id: id }) }, "All its tasks"))] : h("p.quiet", null, "None yet.")),
      ];
    },
  };

  async function ping() {
    const answer = await guarded(() => send("POST", `${path}/ping`, {}));
    if (!answer) return;
    const { ping_successful: good, response_time_ms: ms } = answer.data;
    toast(good ? `${id} answered in ${span(ms / 1000)}` : `${id} did not answer`, good ? "ok" : "bad");
  }

  async function steer(verb, text) {
    const answer = await guarded(() => send("POST", `${path}/${verb}`, {}), text);
    if (!answer) return;
    found.accepting = answer.data.accepting;
    render();
    pokeSoon();
  }

  function drain() { steer("drain", `${id} finishes what it has and gets nothing new`); }

  function resume() { steer("resume", `${id} takes work again`); }

  async function remove() {
    const running = found.running_tasks.length;
    const text = `Its worker will be told to stop and may not come back by itself.${running ? ` ${plural(running, "running task")} will go to other devices.` : ""}`;
    if (!(await ask(`Remove ${id}?`, text, "Remove it"))) return;
    if (await guarded(() => send("DELETE", path), `${id} is removed`)) location.hash = link("devices");
  }
}
