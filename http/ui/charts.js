// Pictures in SVG. Each takes numbers and gives an element; colours and shapes come from the style.
import { h, s, clock, now, span, count } from "./dom.js";

const W = 480, H = 150, LEFT = 38, BOTTOM = 18, TOP = 6;

const round = (value) => Math.round(value * 10) / 10;

function frame(label, from, to, ticks, y, kids) {
  const grid = ticks.map(({ value, text }) => [
    s("line", { class: "grid", x1: LEFT, x2: W, y1: round(y(value)), y2: round(y(value)) }),
    s("text", { class: "axis", x: LEFT - 5, y: round(y(value)) + 3.5, "text-anchor": "end" }, text),
  ]);
  const step = (to - from) / 5;
  const times = [1, 2, 3, 4].map((i) => s("text", { class: "axis", x: round(LEFT + ((W - LEFT) * i) / 5), y: H - 4, "text-anchor": "middle" }, clock(from + i * step)));
  return s("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label }, grid, kids, times);
}

function niceTop(most) {
  if (most <= 4) return 4;
  const power = 10 ** Math.floor(Math.log10(most));
  for (const times of [1, 2, 4, 5, 8, 10]) if (times * power >= most) return times * power;
  return 10 * power;
}

const short = (value) => (value >= 1e6 ? `${value / 1e6}M` : value >= 1e3 ? `${value / 1e3}k` : String(value));
const linear = (top) => (value) => TOP + (H - TOP - BOTTOM) * (1 - value / top);
const halves = (top) => [0, top / 2, top].map((value) => ({ value, text: short(value) }));

/** Bands on each other over time. `rows`: [{at, name: value}], a step from one to the next. */
export function bands(rows, names, from, to, label) {
  const x = (at) => round(LEFT + (W - LEFT) * Math.min(1, Math.max(0, (at - from) / (to - from))));
  const last = rows.length ? [...rows, { ...rows[rows.length - 1], at: to }] : [];
  const thin = thinned(last, names, (to - from) / (W - LEFT));
  const top = niceTop(Math.max(0, ...thin.map((row) => names.reduce((sum, name) => sum + (row[name] || 0), 0))));
  const y = linear(top);
  const base = thin.map(() => 0);
  const areas = names.map((name) => {
    let up = "", down = "";
    thin.forEach((row, i) => {
      const low = base[i], high = low + (row[name] || 0);
      const end = i + 1 < thin.length ? x(thin[i + 1].at) : x(row.at);
      up += `${i ? "L" : "M"}${x(row.at)} ${round(y(high))}H${end}`;
      down = `L${end} ${round(y(low))}H${x(row.at)}${down}`;
      base[i] = high;
    });
    return thin.some((row) => row[name]) && s("path", { class: "band", "data-name": name, d: `${up}${down}Z` });
  });
  return frame(label, from, to, halves(top), y, areas);
}

/** One row a pixel: the highest of those that fall on it. */
function thinned(rows, names, width) {
  const found = [];
  let pixel = null, most = -1;
  for (const row of rows) {
    const sum = names.reduce((all, name) => all + (row[name] || 0), 0);
    const place = Math.floor(row.at / width);
    if (place !== pixel) { found.push(row); most = sum; pixel = place; }
    else if (sum > most || row === rows[rows.length - 1]) { found[found.length - 1] = { ...row, at: found[found.length - 1].at }; most = sum; }
  }
  return found;
}

/** Stacked bars: `bins` [{at, name: n}] of `width` ms each. */
export function bars(bins, names, width, from, to, label, unit) {
  const top = niceTop(Math.max(0, ...bins.map((bin) => names.reduce((sum, name) => sum + (bin[name] || 0), 0))));
  const y = linear(top);
  const scale = (W - LEFT) / (to - from);
  const marks = bins.map((bin) => {
    let low = 0;
    const x0 = Math.max(LEFT, LEFT + (bin.at - from) * scale), x1 = Math.min(W, LEFT + (bin.at + width - from) * scale - 1);
    if (x1 <= x0) return null;
    return names.map((name) => {
      const n = bin[name] || 0;
      if (!n) return null;
      const mark = s("rect", { class: "bar", "data-name": name, x: round(x0), width: round(x1 - x0), y: round(y(low + n)), height: Math.max(1, round(y(low) - y(low + n))) },
        s("title", null, `${clock(bin.at)}: ${count(n)} ${name}${unit}`));
      low += n;
      return mark;
    });
  });
  return frame(label, from, to, halves(top), y, marks);
}

/** Lines of durations on a logarithmic scale: `points` [{at, p50, p95}], null where there is none. */
export function durations(points, from, to, label) {
  const values = points.flatMap((point) => [point.p50, point.p95]).filter((value) => value !== null);
  const floor = 0.001;
  const low = Math.floor(Math.log10(Math.max(floor, Math.min(0.01, ...values))));
  const high = Math.max(low + 2, Math.ceil(Math.log10(Math.max(floor, ...values))));
  const x = (at) => round(LEFT + ((W - LEFT) * (at - from)) / (to - from));
  const y = (value) => TOP + (H - TOP - BOTTOM) * (1 - (Math.log10(Math.max(floor, value)) - low) / (high - low));
  const step = Math.max(1, Math.ceil((high - low) / 3));
  const ticks = [];
  for (let i = low; i <= high; i += step) ticks.push({ value: 10 ** i, text: i < 0 ? `${10 ** (i + 3)} ms` : `${10 ** i} s` });
  const lines = ["p95", "p50"].map((name) => {
    let d = "", before = false;
    const dots = [];
    for (const point of points) {
      if (point[name] === null) { before = false; continue; }
      d += `${before ? "L" : "M"}${x(point.at)} ${round(y(point[name]))}`;
      dots.push(name === "p95"
        ? s("rect", { class: "dot", "data-name": name, x: x(point.at) - 2.2, y: round(y(point[name]) - 2.2), width: 4.4, height: 4.4 }, s("title", null, `${name} ${span(point[name])}`))
        : s("circle", { class: "dot", "data-name": name, cx: x(point.at), cy: round(y(point[name])), r: 2.3 }, s("title", null, `${name} ${span(point[name])}`)));
      before = true;
    }
    return [s("path", { class: "line", "data-name": name, d }), dots];
  });
  return frame(label, from, to, ticks, y, lines);
}

/** Heartbeats as strokes, offline stretches as a hatched bar. */
export function strip(pulse, id, from, to, online, options = {}) {
  const width = options.width || 220, height = options.height || 20;
  const x = (at) => round((width * (at - from)) / (to - from));
  const beats = (pulse?.beats || []).filter((at) => at >= from && at <= to);
  const flips = (pulse?.flips || []).filter((flip) => flip.at <= to).sort((a, b) => a.at - b.at);
  const gaps = [];
  let since = flips.length ? (flips[0].online ? from : null) : (online ? null : from);
  if (flips.length && flips[0].online && beats.some((at) => at < flips[0].at)) since = null;
  for (const flip of flips) {
    if (!flip.online) since ??= flip.at;
    else if (since !== null) { gaps.push([since, flip.at, flip === flips[0]]); since = null; }
  }
  if (!online) gaps.push([since ?? (beats[beats.length - 1] || from), to]);
  const low = height - 3;
  const d = beats.map((at) => `M${x(at)} ${low}v-${height - 6}`).join("");
  const text = online ? `${id}: ${beats.length} heartbeats in the last ${span((to - from) / 1000)}` : `${id} is offline`;
  return s("svg", { class: "strip", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": text, "data-off": online ? null : true, preserveAspectRatio: "none" },
    s("title", null, text),
    s("line", { class: "ground", x1: 0, x2: width, y1: low, y2: low }),
    gaps.filter(([, end, unknown]) => end > from && !unknown).map(([start, end]) => {
      const x0 = Math.max(0, x(start)), x1 = x(end);
      let hatch = "";
      for (let at = x0; at < x1; at += 5) hatch += `M${round(at)} ${low}l${round(Math.min(4, x1 - at))} -${height - 8}`;
      return s("path", { class: "gap", d: hatch });
    }),
    s("path", { class: "beats", d }));
}

/** A small line of the last values, with the newest in words. */
export function spark(values, options = {}) {
  const known = values.filter((value) => value !== null && value !== undefined);
  const width = 180, height = 40;
  if (!known.length) return null;
  const low = options.low ?? Math.min(...known), high = Math.max(low + (options.least || 1), options.high ?? Math.max(...known));
  const y = (value) => round(3 + (height - 6) * (1 - (value - low) / (high - low)));
  const x = (i) => round(values.length < 2 ? width : (i * width) / (values.length - 1));
  let d = "", before = false, first = 0, last = 0;
  values.forEach((value, i) => {
    if (value === null || value === undefined) { before = false; return; }
    if (!d) first = x(i);
    d += `${before ? "L" : "M"}${x(i)} ${y(value)}`;
    before = true;
    last = x(i);
  });
  const newest = known[known.length - 1];
  return s("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": `${options.label}: between ${round(Math.min(...known))} and ${round(Math.max(...known))}, now ${round(newest)}` },
    s("path", { class: "under", d: `${d}V${height}H${first}Z` }),
    s("path", { class: "line", d }),
    s("path", { class: "end", d: `M${last} ${y(newest)}h.01` }));
}

const LANE = 9, LANES = 5;

/** Attempts on a time axis, a row a device: start to end, stacked where they overlap. */
export function timeline(devices, attempts, pulses, from, to, names, open) {
  const width = 900, label = 0;
  const x = (at) => label + ((width - label) * (at - from)) / (to - from);
  const rows = devices.map((device) => {
    const lanes = [];
    const paths = {};
    const boxes = [];
    let lost = 0;
    for (const each of attempts) {
      if (each.device !== device.device_id || (each.end ?? to) < from) continue;
      if (!each.ran) continue;  // it only waits there, behind others
      const x0 = Math.max(0, x(each.ran)), x1 = Math.max(x0 + 1.5, x(each.end ?? to));
      let lane = lanes.findIndex((end) => end <= x0 + 0.1);
      if (lane < 0) lane = lanes.length < LANES ? lanes.length : -1;
      if (lane < 0) { lost += 1; continue; }
      lanes[lane] = x1 + 0.5;
      boxes.push({ x0, x1, lane, each });
    }
    const height = Math.max(1, lanes.length) * LANE + 4;
    for (const { x0, x1, lane, each } of boxes) {
      const bad = each.outcome === "failed" || each.outcome === "timeout";
      const inset = bad ? 0 : 1.5, y = 2 + lane * LANE + inset;
      paths[each.outcome] = `${paths[each.outcome] || ""}M${round(x0)} ${y}H${round(x1)}v${LANE - 1 - 2 * inset}H${round(x0)}Z`;
    }
    const pick = (event) => {
      const box = event.currentTarget.getBoundingClientRect();
      const px = ((event.clientX - box.left) / box.width) * width, py = ((event.clientY - box.top) / box.height) * height;
      return boxes.find(({ x0, x1, lane }) => px >= x0 - 3 && px <= x1 + 3 && py >= 2 + lane * LANE && py <= 2 + (lane + 1) * LANE);
    };
    const svg = s("svg", {
      class: "lanes", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", height: height * 1.15, role: "img",
      "aria-label": `${device.device_id}: ${boxes.length} attempts${lost ? ` shown of ${boxes.length + lost}` : ""}`,
      onclick: (event) => { const found = pick(event); if (found) open(found.each.task); },
      onpointermove: (event) => {
        const found = pick(event);
        event.currentTarget.style.cursor = found ? "pointer" : "";
        const tip = event.currentTarget.parentNode.querySelector(".tip");
        tip.textContent = found ? `${names(found.each.task)} · ${found.each.outcome} · ${span(((found.each.end ?? now()) - found.each.ran) / 1000)}` : "";
      },
      onpointerleave: (event) => { event.currentTarget.parentNode.querySelector(".tip").textContent = ""; },
    }, Object.entries(paths).map(([outcome, d]) => s("path", { class: "attempt", "data-status": outcome, d })));
    const online = device.status === "online";
    return h("li", { "data-key": device.device_id },
      h("a.who", { href: `#/devices/${encodeURIComponent(device.device_id)}`, "data-off": online ? null : true },
        h("span.led", { "data-on": online ? true : null, "aria-hidden": "true" }), h("span", null, device.device_id), !online && h("em", null, "offline")),
      h("div.track", null, strip(pulses.get(device.device_id), device.device_id, from, to, online, { width, height: 16 }), svg, h("span.tip", null)));
  });
  const times = [0, 1, 2, 3, 4, 5].map((i) => h("span", null, clock(from + ((to - from) * i) / 5)));
  return h("div.timeline", null, h("ol", null, rows), h("div.times", { "aria-hidden": "true" }, h("span.who"), h("div", null, times)));
}
