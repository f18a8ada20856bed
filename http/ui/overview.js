// The first page: how the cluster is, in one look.
import { h, count, keep, glyph, gb, link, now, percent, plural, span } from "./dom.js";
import { get, refresher } from "./net.js";
import { backlogSeries, learn, model, past, PRIORITIES, setBeat, setCounts, TERMINAL } from "./model.js";
import { bands, bars, durations, timeline } from "./charts.js";
import { card, joinBody, noTasks, pastBeats, patch, taskTable } from "./parts.js";

const MOST_DEVICES = 12, RECENT = 8;
let minutes = 5;

export function overview(render) {
  let cluster = null, statistics = null, devices = [], tasks = [], join = null, deviceTotal = 0;

  const loadTasks = async () => {
    const answer = await get("tasks?page_size=100");
    answer.data.forEach(learn);
    past(answer.data);
    tasks = answer.data;
    render();
  };
  const loadDevices = async () => {
    const answer = await get(`devices?page_size=${MOST_DEVICES}`);
    devices = answer.data;
    deviceTotal = answer.pagination.total_items;
    devices.forEach((device) => setBeat(device.device_id, device.last_heartbeat));
    render();
    pastBeats(devices.slice(0, 6), render);
  };
  const loadCluster = async () => {
    cluster = (await get("cluster/status")).data;
    if (!cluster.cluster_stats.total_devices && !join) join = await joinBody();
    render();
  };
  const loadStatistics = async () => {
    statistics = (await get("tasks/statistics")).data;
    setCounts(statistics.queue_stats.by_status, statistics.timestamp);
    render();
  };
  const pokes = { tasks: refresher(loadTasks, 4000), devices: refresher(loadDevices), cluster: refresher(loadCluster), statistics: refresher(loadStatistics, 20000, 2000) };

  return {
    title: "Overview",
    pulse: true,
    async load() {
      await Promise.all([loadCluster(), loadStatistics(), loadDevices(), loadTasks()]);
    },
    on(events) {
      for (const event of events) {
        if (event.type === "gap") Object.values(pokes).forEach((poke) => poke());
        if (event.type.startsWith("device.")) {
          const row = devices.find((device) => device.device_id === event.device_id);
          if (row && /online|offline/.test(event.type)) row.status = event.type.slice(7);
          pokes.devices();
          pokes.cluster();
        } else if (event.type.startsWith("task.")) {
          const row = tasks.find((task) => task.task_id === event.task_id);
          if (row) patch(row, event);
          else pokes.tasks();
          if (TERMINAL.has(event.type.slice(5))) pokes.statistics();
        }
      }
      render();
    },
    tick: render,
    stop: () => Object.values(pokes).forEach((poke) => poke.stop()),
    view() {
      if (!cluster) return h("p.quiet", null, "Looking around…");
      if (!cluster.cluster_stats.total_devices) return newcomer(join);
      const to = now(), from = to - minutes * 60000;
      return [
        h("div.head", null, h("h1", null, "Overview"), h("div.seg", { role: "group", "aria-label": "Time shown" },
          [5, 15].map((each) => h("button", { type: "button", "aria-pressed": String(minutes === each), onclick: () => { minutes = each; render(); } }, `${each} min`)))),
        tiles(cluster, statistics, from),
        h("div.charts", null, backlogCard(from, to), throughputCard(from, to), durationCard(from, to)),
        card("What the devices do", { class: "card wide" },
          legend([["running", "running"], ["success", "success"], ["failed", "failed or timed out"], ["cancelled", "cancelled"], ["beat", "heartbeat"]]),
          timeline(devices, model.attempts, model.pulses, from, to, (id) => model.tasks.get(id)?.type || "task", (id) => { location.hash = link(`tasks/${id}`); }),
          h("p.row.quiet", null, deviceTotal > devices.length && h("a", { href: link("devices") }, `all ${count(deviceTotal)} devices`), h("a.button.ghost", { href: link("join") }, "+ Add a device"))),
        card("Newest tasks", { class: "card wide" },
          tasks.length ? [taskTable(tasks.slice(0, RECENT), "Newest tasks"), h("p", null, h("a", { href: link("tasks") }, "All tasks"))] : noTasks()),
      ];
    },
  };
}

function newcomer(join) {
  return [h("h1", null, "Overview"), h("section.card.wide.hello", null, h("h2", null, "No devices yet"), h("p.lead", null, "Everything is ready for the first one. An old laptop, a phone with Termux, a Raspberry Pi: whatever runs Python."), keep(join))];
}

function tiles({ cluster_stats: stats, server_info: server }, statistics, from) {
  const counts = model.counts || {};
  const waiting = (counts.queued || 0) + (counts.pending || 0);
  const recent = model.done.filter((each) => each.at >= from);
  const bad = recent.filter((each) => each.status === "failed" || each.status === "timeout").length;
  const tile = (name, value, note, href, state) =>
    h("a.tile", { href, "data-state": state }, h("span.name", null, name), h("strong", null, value), h("span.note", null, note));
  const all = stats.total_resources;
  return h("div.tiles", null,
    tile("Devices online", [count(stats.online_devices), h("small", null, ` / ${count(stats.total_devices)}`)],
      stats.offline_devices ? [glyph("offline"), ` ${stats.offline_devices} offline`] : [glyph("online"), " all here"], link("devices"), stats.offline_devices ? "warn" : "good"),
    tile("Running", count((counts.running || 0) + (counts.assigned || 0)), `of ${plural(model.slots.total, "slot")}`, link("tasks", { status: "running" })),
    tile("Waiting", count(waiting), waiting ? "in the queue" : "nothing waits", link("tasks", { status: "queued" })),
    tile("Finished", count(recent.length), [`in ${minutes} min`, bad > 0 && [" · ", glyph("failed"), ` ${bad} bad`]], link("tasks"), bad ? "bad" : null),
    tile("Success rate", statistics && statistics.queue_stats.total_tasks ? percent(statistics.performance_metrics.success_rate) : "–", statistics ? `of ${count(statistics.queue_stats.total_tasks)} tasks · p95 ${span(statistics.performance_metrics.p95_execution_time)}` : "", link("tasks", { status: "failed" })),
    tile("Together", [count(all.cpu_cores), h("small", null, " cores")], `${gb(all.memory_gb)} · up ${server.uptime}`, link("devices")));
}

export const legend = (rows) => h("ul.legend", null, rows.filter(Boolean).map(([name, text]) => h("li", { "data-name": name }, h("i", { "aria-hidden": "true" }), text)));

function backlogCard(from, to) {
  const rows = backlogSeries(from);
  const last = rows[rows.length - 1] || {};
  const names = [...PRIORITIES, "other"];
  const total = PRIORITIES.reduce((sum, name) => sum + (last[name] || 0), 0);
  return card("Backlog by priority", null, bands(rows, names, from, to, `Backlog by priority: ${total} waiting now`),
    legend([...PRIORITIES.map((name) => [name, `${name} ${count(last[name])}`]), rows.some((row) => row.other) && ["other", "priority not known"]]));
}

function throughputCard(from, to) {
  const width = minutes * 3000;
  const bins = new Map();
  for (const each of model.done) {
    if (each.at < from) continue;
    const at = Math.floor(each.at / width) * width;
    if (!bins.has(at)) bins.set(at, { at });
    const name = each.status === "timeout" ? "failed" : each.status;
    bins.get(at)[name] = (bins.get(at)[name] || 0) + 1;
  }
  const done = model.done.filter((each) => each.at >= from).length;
  return card("Throughput", null, bars([...bins.values()], ["success", "failed", "cancelled"], width, from, to, `Throughput: ${done} tasks finished in ${minutes} minutes`, ""),
    legend([["success", "success"], ["failed", "failed"], ["cancelled", "cancelled"], ["none", `${(done / minutes).toFixed(done / minutes < 10 ? 1 : 0)} a minute`]]));
}

function durationCard(from, to) {
  const width = minutes * 6000;
  const bins = new Map();
  const all = [];
  for (const each of model.done) {
    if (each.at < from || each.seconds === null || each.status === "cancelled") continue;
    const at = Math.floor(each.at / width) * width;
    if (!bins.has(at)) bins.set(at, []);
    bins.get(at).push(each.seconds);
    all.push(each.seconds);
  }
  const share = (values, part) => values.sort((a, b) => a - b)[Math.max(0, Math.ceil(part * values.length) - 1)];
  const points = [];
  for (let at = Math.floor(from / width) * width; at < to; at += width) {
    const values = bins.get(at);
    if (at + width / 2 < from || at + width / 2 > to) continue;
    points.push({ at: at + width / 2, p50: values ? share(values, 0.5) : null, p95: values ? share(values, 0.95) : null });
  }
  const p50 = all.length ? share(all, 0.5) : null, p95 = all.length ? share(all, 0.95) : null;
  return card("Time a task takes", null, durations(points, from, to, `Durations: p50 ${span(p50)}, p95 ${span(p95)}`),
    legend([["p50", `p50 ${span(p50)}`], ["p95", `p95 ${span(p95)}`]]));
}
