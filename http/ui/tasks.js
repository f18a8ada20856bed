// All tasks, and one.
import { h, ago, chip, clock, glyph, link, now, percent, plural, s, say, shortId, span } from "./dom.js";
import { get, may, mayOf, refresher } from "./net.js";
import { learn, model, PRIORITIES, STATUSES, TERMINAL } from "./model.js";
import { act, actOnMany, card, deviceLink, facts, filterBar, guarded, loadTypes, noTasks, pager, patch, pretty, taskTable, trouble, whyBox } from "./parts.js";

export function tasks(render, params) {
  let rows = null, pages = {}, types = null;
  const picked = new Set();
  const load = async () => {
    const answer = await get(`tasks?${new URLSearchParams({ page_size: 25, ...params })}`);
    rows = answer.data;
    rows.forEach(learn);
    pages = answer.pagination;
    for (const id of picked) if (!rows.some((row) => row.task_id === id)) picked.delete(id);
    render();
  };
  const poke = refresher(load);
  const first = !params.page || params.page === "1";
  const filtered = ["status", "task_type", "priority", "device_id"].some((name) => params[name]);
  const filter = async (text) => {
    const next = {};
    types = await loadTypes().catch(() => types);
    for (const word of text.split(/[\s,]+/).filter(Boolean)) {
      if (/^[0-9a-f]{8}-[0-9a-f-]{27}$/i.test(word)) { location.hash = link(`tasks/${word}`); return; }
      const low = word.toLowerCase();
      if (STATUSES.includes(low)) next.status = low;
      else if (PRIORITIES.includes(low)) next.priority = low;
      else if (types?.supported_types.includes(low)) next.task_type = low;
      else next.device_id = word;
    }
    location.hash = link("tasks", next);
  };
  const pick = (ids, on) => { for (const id of ids) picked[on ? "add" : "delete"](id); render(); };
  const many = async (ids, verb) => { if (await actOnMany(ids, verb)) { picked.clear(); poke(); render(); } };
  return {
    title: "Tasks",
    async load() {
      loadTypes().then((found) => { types = found; render(); }).catch(() => {});
      await load();
    },
    on(events) {
      for (const event of events) {
        if (event.type === "gap") poke();
        if (!event.type.startsWith("task.") || event.type === "task.progress") continue;
        const row = rows?.find((each) => each.task_id === event.task_id);
        if (row) patch(row, event);
        if (first && (filtered || !row)) poke();
      }
      render();
    },
    stop: poke.stop,
    view() {
      if (!rows) return h("p.quiet", null, "Looking around…");
      const chosen = rows.filter((row) => picked.has(row.task_id));
      const again = chosen.filter((row) => ["failed", "timeout", "cancelled"].includes(row.status)).map((row) => row.task_id);
      const ending = chosen.filter((row) => !TERMINAL.has(row.status)).map((row) => row.task_id);
      return [
        h("div.head", null, h("h1", null, "Tasks"), h("span.quiet", null, plural(pages.total_items ?? 0, "task")), h("a.button.primary", { href: link("submit") }, "Submit a task")),
        filterBar("tasks", params, "Status, type, priority, device, or a task id", "failed python_eval", filter,
          [["status", STATUSES], ["task_type", types?.supported_types || (params.task_type ? [params.task_type] : [])], ["priority", PRIORITIES]]),
        chosen.length > 0 && h("div.bulk", { role: "group", "aria-label": "Chosen tasks" }, h("span", null, `${plural(chosen.length, "task")} chosen`),
          may("submit") && h("button", { type: "button", disabled: !again.length, onclick: () => many(again, "retry") }, `Retry ${again.length}`),
          may("submit") && h("button.danger", { type: "button", disabled: !ending.length, onclick: () => many(ending, "cancel") }, `Cancel ${ending.length}`),
          h("button.ghost", { type: "button", onclick: () => { picked.clear(); render(); } }, "None")),
        rows.length ? taskTable(rows, "Tasks, newest first", may("submit") ? picked : null, pick)
          : filtered ? h("div.empty", null, h("p", null, "No task matches."), h("a", { href: link("tasks") }, "Show all")) : noTasks(),
        pager("tasks", params, pages),
      ];
    },
  };
}

export function task(render, params, id) {
  let found = null, status = null, failure = null, progress = null;
  const load = async () => {
    try {
      found = (await get(`tasks/${id}`)).data;
      learn(found);
      failure = null;
      if (["queued", "pending"].includes(found.status)) await loadStatus();
      // What it told before the page was opened; later steps come as events.
      if (found.status === "running") progress = (await get(`tasks/${id}/status`)).data.progress || progress;
    } catch (error) {
      failure = error;
    }
    render();
  };
  const loadStatus = async () => {
    status = (await get(`tasks/${id}/explanation`)).data;
    if (found && status.status !== found.status) found.status = status.status;
    render();
  };
  // Short steps of one task come together; the first look comes soon.
  const poke = refresher(load, 1500, 150), pokeStatus = refresher(loadStatus, 4000, 400);
  return {
    title: `Task ${shortId(id)}`,
    load,
    on(events) {
      for (const event of events) {
        if (event.type === "gap") poke();
        if (event.task_id === id) {
          if (event.type === "task.progress") { progress = event.data; continue; }
          if (event.type !== "task.running") progress = null;
          if (found) patch(found, event);
          status = null;
          poke();
          const word = event.type.slice(5);
          if (word === "running" || TERMINAL.has(word)) say(`Task ${found?.task_type || ""} ${word}`);
        } else if (found && ["queued", "pending"].includes(found.status) && (event.type.startsWith("device.") || event.type.startsWith("task."))) {
          pokeStatus();
        }
      }
      render();
    },
    tick() { if (found && !TERMINAL.has(found.status)) render(); },
    stop() { poke.stop(); pokeStatus.stop(); },
    view() {
      if (failure) return [h("h1", null, "Task"), trouble(failure, load)];
      if (!found) return h("p.quiet", null, "Asking…");
      const done = TERMINAL.has(found.status);
      const waited = (Date.parse(found.started_at || found.assigned_at || found.completed_at) || now()) - Date.parse(found.created_at);
      const result = found.result;
      return [
        h("div.head", null, h("h1", null, h("a.up", { href: link("tasks") }, "Tasks"), " ", found.task_type), chip(found.status),
          !done && mayOf(found.task_type) && h("button.danger", { type: "button", onclick: cancel }, "Cancel"),
          ["failed", "timeout", "cancelled"].includes(found.status) && mayOf(found.task_type) && h("button", { type: "button", onclick: () => guarded(() => act(id, "retry"), "It is queued again") }, "Retry"),
          h("a.button", { href: link("submit", { like: id }) }, "Submit one like it")),
        typeof found.metadata?.name === "string" && h("p.lead", null, found.metadata.name),
        h("p.id.full", null, id, " ", h("a", { href: link("log", { task_id: id }) }, "its log")),
        found.status === "running" && progress && progressBar(progress),
        status && whyBox(status),
        steps(found),
        h("div.columns", null,
          card("Facts", null, facts([
            ["Priority", h("span.prio", { "data-priority": found.priority }, found.priority)], ["Device", deviceLink(found.assigned_device_id)], ["Created", ago(found.created_at)], ["Waited", span(waited / 1000)],
            ["Started", ago(found.started_at)], ["Took", found.execution_time_seconds === null && found.started_at && !done ? span((now() - Date.parse(found.started_at)) / 1000) : span(found.execution_time_seconds)],
            ["Ended", ago(found.completed_at)], ["Retries", String(found.retry_count)],
          ])),
          card("Asked for", null, h("h3", null, "Payload"), pretty(found.payload), requirementsOf(found), Object.keys(found.metadata || {}).length > 0 && [h("h3", null, "Metadata"), pretty(found.metadata)])),
        result && card("Result", { class: "card wide", "data-status": found.status },
          result.error_message && h("p.banner", { "data-kind": "bad" }, glyph("failed"), " ", result.error_message),
          missingParts(result.truncated).map((line) => h("p.banner", null, line)),
          result.result_data !== null && outcome(result.result_data), result.error_traceback && [h("h3", null, "Traceback"), pretty(result.error_traceback)], result.logs && [h("h3", null, "Output"), pretty(result.logs)]),
        attemptsCard(found),
      ];
    },
  };

  async function cancel() {
    await guarded(() => act(id, "cancel"), "It is cancelled");
    poke();
  }
}

/** How far it says it is; a task may tell a message alone. */
function progressBar({ percent: part, message }) {
  const known = part !== null && part !== undefined;
  return h("div.progress", null, h("progress", { max: 100, value: known ? part : undefined, "aria-label": "Progress" }), h("span", null, `${known ? `${Math.round(part)} %` : ""} ${message || ""}`));
}

/** What a command wrote as it wrote it; everything else as JSON. */
function outcome(data) {
  const { stdout, stderr, return_code: code, ...rest } = data ?? {};
  if (code === undefined || typeof stdout !== "string" || typeof stderr !== "string") return pretty(data);
  return [h("p", null, `Exit code ${code}`), stdout && [h("h3", null, "Output"), pretty(stdout)], stderr && [h("h3", null, "Errors"), pretty(stderr)],
    !stdout && !stderr && h("p.quiet", null, "It wrote nothing."), h("details", null, h("summary", null, "The rest"), pretty(rest))];
}

/** A line for each part of a result that is not whole. */
function missingParts(truncated) {
  return Object.entries(truncated || {}).map(([part, { total_bytes: total, kept_bytes: kept, missing }]) => total === null ? `${part}: cut after ${kept} bytes`
    : `${part}: ${total - kept} of ${total} bytes are missing (${missing})`);
}

function requirementsOf(found) {
  const rows = Object.entries(found.requirements || {}).filter(([, value]) => value !== null && value !== undefined && value !== false && !(Array.isArray(value) && !value.length));
  if (!rows.length) return null;
  return [h("h3", null, "Requirements"), facts(rows.map(([name, value]) => [name.replaceAll("_", " "), Array.isArray(value) ? value.join(", ") : String(value)]))];
}

/** Created → assigned → running → ended, as far as it came. */
function steps(found) {
  const ended = TERMINAL.has(found.status);
  const rows = [["created", found.created_at, "queued"], ["assigned", found.assigned_at, "assigned"], ["started", found.started_at, "running"], [ended ? found.status : "ended", found.completed_at, ended ? found.status : "queued"]];
  return h("ol.steps", { "aria-label": "How far it is" }, rows.map(([name, at, sign], i) => {
    const before = rows.slice(0, i).map((row) => row[1]).filter(Boolean).pop();
    return h("li", { "data-on": at ? true : null, "data-status": at ? sign : null }, h("span.dot", null, glyph(sign)), h("b", null, name), h("span.note", null, at ? (before && i ? `+ ${span(Math.max(0, Date.parse(at) - Date.parse(before)) / 1000)}` : clock(at)) : "–"));
  }));
}

function attemptsCard(found) {
  const rows = found.attempts || [];
  if (!rows.length) return null;
  const begin = Math.min(...rows.map((row) => Date.parse(row.assigned_at) || now()));
  const end = Math.max(begin + 1, ...rows.map((row) => Date.parse(row.ended_at) || now()));
  const x = (iso) => (100 * ((Date.parse(iso) || now()) - begin)) / (end - begin);
  return card(plural(rows.length, "attempt"), { class: "card wide" }, h("table", null, h("caption.sr", null, "Attempts"),
    h("thead", null, h("tr", null, ["#", "Outcome", "Device", "When", "Took", "Why"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", null, rows.map((row) => h("tr", { "data-key": `a${row.attempt}` },
      h("td", { "data-label": "#" }, String(row.attempt)), h("td", { "data-label": "Outcome" }, chip(row.status)), h("td", { "data-label": "Device" }, deviceLink(row.device_id)),
      h("td.beat", { "data-label": "When" }, s("svg", { class: "lanes", viewBox: "0 0 100 10", preserveAspectRatio: "none", height: 12, role: "img", "aria-label": `from ${percent(x(row.assigned_at) / 100)} to ${percent(x(row.ended_at) / 100)} of the time` },
        s("path", { class: "attempt", "data-status": row.status, d: `M${x(row.assigned_at)} 2H${Math.max(x(row.assigned_at) + 1, x(row.ended_at))}v6H${x(row.assigned_at)}Z` }))),
      h("td.num", { "data-label": "Took" }, span(row.execution_time_seconds)), h("td", { "data-label": "Why" }, row.error_message || row.cause || "–"))))));
}
