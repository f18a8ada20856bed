// Elements, patching and words: everything the pages are written with.

const SVG = "http://www.w3.org/2000/svg";
const HANDLERS = ["onclick", "oninput", "onchange", "onsubmit", "onpointermove", "onpointerleave"];

function fill(el, attrs, kids) {
  for (const [name, value] of Object.entries(attrs || {})) {
    if (value === null || value === undefined || value === false || name === "value") continue;
    if (name.startsWith("on") || name === "checked" || name === "indeterminate") el[name] = value;
    else el.setAttribute(name, value === true ? "" : value);
  }
  for (const kid of kids.flat(Infinity)) {
    if (kid === null || kid === undefined || kid === false || kid === "") continue;
    el.append(kid instanceof Node ? kid : String(kid));
  }
  if (attrs && "value" in attrs && attrs.value !== undefined) el.value = attrs.value;
  return el;
}

/** `h("div.card.wide", {id: "x"}, kids…)` */
export function h(name, attrs, ...kids) {
  const [tag, ...classes] = name.split(".");
  const el = document.createElement(tag);
  if (classes.length) el.className = classes.join(" ");
  return fill(el, attrs, kids);
}

export function s(tag, attrs, ...kids) {
  return fill(document.createElementNS(SVG, tag), attrs, kids);
}

/** An element with state of its own (`data-keep`), as a page's view gives it again and again: while it
 * is shown, a stand-in takes its place, so that it is never moved and keeps focus. */
export const keep = (el) => (el?.isConnected ? el.cloneNode(false) : el);

const keyOf = (node) => (node.nodeType === 1 ? node.getAttribute("data-key") : null);

/** Makes `old` look like `next` and keeps focus, scroll and what a user is typing. */
export function morph(old, next) {
  if (old.nodeType === 3) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  if (old.nodeType !== 1 || old.hasAttribute("data-keep")) return;
  for (const { name } of [...old.attributes]) {
    if (!next.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) {
      old.removeAttribute(name);
    }
  }
  for (const { name, value } of next.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const name of HANDLERS) if (old[name] !== next[name]) old[name] = next[name];
  morphKids(old, next);
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(old.nodeName) && old !== document.activeElement) {
    if (old.value !== next.value) old.value = next.value;
  }
  if (old.nodeName === "INPUT") {
    old.checked = next.checked;
    old.indeterminate = next.indeterminate;
  }
}

function morphKids(old, next) {
  const keyed = new Map();
  for (const kid of old.childNodes) if (keyOf(kid)) keyed.set(keyOf(kid), kid);
  let at = old.firstChild;
  for (const kid of [...next.childNodes]) {
    const key = keyOf(kid);
    let found = key ? keyed.get(key) : null;
    if (!key) {
      while (at && keyOf(at)) at = at.nextSibling;
      if (at && at.nodeName === kid.nodeName) found = at;
    }
    if (!found || found.nodeName !== kid.nodeName) {
      old.insertBefore(kid, at);
      continue;
    }
    if (found === at) at = at.nextSibling;
    else old.insertBefore(found, at);
    keyed.delete(key);
    morph(found, kid);
  }
  for (const kid of keyed.values()) if (kid !== at) kid.remove();
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

// --- time and words ---

let skew = 0;
/** The server's clock, as far as its answers tell. */
export const now = () => Date.now() + skew;
export function setClock(iso) {
  const at = Date.parse(iso);
  if (at) skew = at - Date.now();
}

/** A duration; its number and unit stay on one line. */
export const span = (seconds) => spanText(seconds).replaceAll(" ", "\u00a0");

function spanText(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  const ms = seconds * 1000;
  if (ms < 1) return "< 1 ms";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.round((seconds % 86400) / 3600)} h`;
}

const two = (number) => String(number).padStart(2, "0");

/** A moment, the same way everywhere: 14:03:07, with the date on another day. */
export function clock(moment) {
  const at = new Date(moment), today = new Date(now());
  const time = [at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(":");
  if (at.toDateString() === today.toDateString()) return time;
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${time}`;
}

function agoText(iso) {
  const seconds = Math.max(0, (now() - Date.parse(iso)) / 1000);
  if (seconds < 1.5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

export function ago(iso) {
  if (!iso) return "–";
  return h("time", { datetime: iso, "data-ago": iso, title: clock(iso) }, agoText(iso));
}

/** Lets every "3 s ago" on the page age. */
export function ageAll() {
  for (const el of document.querySelectorAll("[data-ago]")) {
    const text = agoText(el.dataset.ago);
    if (el.textContent !== text) el.textContent = text;
  }
}

export const count = (value) => (value ?? 0).toLocaleString("en-US");
export const plural = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;
export const gb = (value) => (value === null || value === undefined ? "–" : `${value >= 100 ? Math.round(value) : Math.round(value * 10) / 10} GB`);
export const percent = (share) => `${(100 * share).toFixed(share > 0.995 || share === 0 ? 0 : 1)} %`;

const GLYPHS = {
  success: "M3 8.5 6.5 12 13 4.5",
  failed: "M4 4l8 8M12 4l-8 8",
  timeout: "M8 1.8a6.2 6.2 0 1 0 .01 0M8 4.6V8l2.4 1.8",
  cancelled: "M8 1.8a6.2 6.2 0 1 0 .01 0M3.7 12.3l8.6-8.6",
  running: "M5 3l8 5-8 5z",
  assigned: "M2.5 8H13M9 4l4 4-4 4",
  queued: "M3 8h.01M8 8h.01M13 8h.01",
  pending: "M4.5 2.5h7l-7 11h7z",
  online: "M3 8.5 6.5 12 13 4.5",
  offline: "M4 8h8",
  draining: "M8 3v8M4.5 8 8 11.5 11.5 8",
};

export const glyph = (name) =>
  s("svg", { class: "glyph", viewBox: "0 0 16 16", width: 12, height: 12, "aria-hidden": "true" },
    s("path", { d: GLYPHS[name] || GLYPHS.queued }));

/** A status as a word with its own sign and colour. */
export const chip = (status) => h("span.chip", { "data-status": status }, glyph(status), status);

export const shortId = (id) => `…${id.slice(-6)}`;

export function link(path, query) {
  const left = Object.entries(query || {}).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const text = new URLSearchParams(left).toString();
  return `#/${path}${text ? `?${text}` : ""}`;
}

let voiceTimer;
/** Says something to those who listen instead of look; the newest wins, at most one in 1.5 s. */
export function say(text) {
  clearTimeout(voiceTimer);
  voiceTimer = setTimeout(() => { document.getElementById("voice").textContent = text; }, 1500);
}

export function toast(text, kind = "ok", href = "") {
  const box = h("div.toast", { "data-kind": kind },
    glyph(kind === "ok" ? "success" : "failed"), h("span", null, text), href && h("a", { href }, "show"),
    h("button.ghost.icon", { type: "button", "aria-label": "Dismiss", onclick: () => box.remove() }, "×"));
  document.getElementById("toasts").append(box);
  setTimeout(() => box.remove(), kind === "ok" ? 6000 : 12000);
  return box;
}

export function ask(title, body, verb, danger = true) {
  return dialog(title, (close) => [
    h("div", null, body),
    h("div.row.end", null,
      h("button", { type: "button", onclick: () => close(false) }, "Keep as it is"),
      h(`button.primary${danger ? ".danger" : ""}`, { type: "button", onclick: () => close(true), autofocus: true }, verb)),
  ]);
}

export function dialog(title, body) {
  const el = document.getElementById("dialog");
  return new Promise((resolve) => {
    let value = false;
    const close = (found) => { value = found; el.close(); };
    el.replaceChildren(h("h2", { id: "dialog-title" }, title), ...[body(close)].flat());
    el.onclose = () => resolve(value);
    el.onclick = (event) => { if (event.target === el) close(false); };
    el.showModal();
  });
}

/** A text to copy, also without the clipboard API, which plain http has not. */
export function copyable(text) {
  const code = h("code", null, text);
  const button = h("button", { type: "button", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  } }, "Copy");
  return h("div.copy", null, code, button);
}
