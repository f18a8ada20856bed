// Submitting a task: the form is made from the type's payload schema.
import { copyable, h, keep, link, plural, toast } from "./dom.js";
import { numberOf, parse as exact, stringify } from "./exact.js";
import { get, HARMLESS, may, send } from "./net.js";
import { PRIORITIES } from "./model.js";
import { card, loadTypes } from "./parts.js";

const EXAMPLES = {
  echo: { message: "Hello" }, python_eval: { expression: "sum(n * n for n in range(10))" }, http_request: { url: "https://example.org/" }, sleep: { duration: 5 }, command: { command: ["uname", "-a"] },
  python_call: { form: "source", function: "f", source: "def f(n):\n    return n * n\n", args: [7] },
};
const WISHES = [
  ["min_cpu_cores", "CPU cores, at least", { type: "integer", minimum: 1 }], ["min_memory_gb", "Memory in GB, at least", { type: "number" }], ["min_storage_gb", "Storage in GB, at least", { type: "number" }],
  ["required_python", "Python, as 3.11", {}], ["required_platform", "Platform", { enum: ["linux", "windows", "android", "darwin"] }], ["required_role", "Role", { enum: ["worker", "compute", "storage", "mobile"] }], ["required_tags", "Tags, all of them (comma between)", { list: true }],
  ["timeout_seconds", "Time limit in seconds (300)", { type: "integer", minimum: 1, maximum: 86400 }], ["max_retries", "Retries (3)", { type: "integer", minimum: 0, maximum: 10 }], ["gpu_required", "Needs a GPU", { type: "boolean" }], ["internet_required", "Needs the internet", { type: "boolean" }],
];

/** A field and how to read it: `read()` gives the value, undefined when left empty, or throws. */
function field(name, label, schema, required, value, path) {
  const id = `f-${path.replaceAll(".", "-")}`;
  const note = h("p.error", { id: `${id}-error`, hidden: true });
  const described = schema.description ? `${id}-help ${id}-error` : `${id}-error`;
  const common = { id, name: path, "aria-describedby": described, required: required || null };
  let input, read;
  const map = schema.type === "object" && schema.additionalProperties && !schema.properties;
  const initial = value ?? schema.default;
  if (schema.type === "boolean") {
    input = h("input", { ...common, required: null, type: "checkbox", checked: Boolean(initial) });
    read = () => (input.checked ? true : schema.default === undefined ? undefined : false);
    return { path, read, note, input, el: h("div.field.check", null, input, h("label", { for: id }, label), note) };
  }
  if (schema.enum) {
    input = h("select", { ...common, value: initial ?? "" }, !required && schema.default === undefined && h("option", { value: "" }, "any"), schema.enum.map((word) => h("option", { value: word }, word)));
    input.value = initial ?? (required ? schema.enum[0] : "");
    read = () => input.value || undefined;
  } else if (schema.type === "number" || schema.type === "integer") {
    input = h("input", { ...common, type: "number", inputmode: "decimal", step: schema.type === "integer" ? 1 : "any", min: schema.minimum, max: schema.maximum, value: initial ?? "" });
    read = () => {
      if (input.validity.badInput) throw new Error("must be a number");
      return input.value === "" ? undefined : numberOf(input.value);
    };
  } else if (map) {
    input = h("textarea", { ...common, rows: 3, placeholder: "Name: value, one a line", spellcheck: "false", value: Object.entries(initial || {}).map((pair) => pair.join(": ")).join("\n") });
    read = () => {
      const found = {};
      for (const line of input.value.split("\n").filter((each) => each.trim())) {
        const at = line.indexOf(":");
        if (at < 1) throw new Error(`“${line}” has no colon; write Name: value`);
        found[line.slice(0, at).trim()] = line.slice(at + 1).trim();
      }
      return Object.keys(found).length ? found : undefined;
    };
  } else if (schema.type === "object" || schema.type === "array") {
    input = h("textarea.code", { ...common, rows: 4, spellcheck: "false", placeholder: schema.type === "object" ? "{ }" : "[ ]", value: initial === undefined ? "" : stringify(initial, 2) });
    read = () => (input.value.trim() ? parse(input.value) : undefined);
  } else if (schema.list) {
    input = h("input", { ...common, type: "text", value: (initial || []).join(", ") });
    read = () => { const words = input.value.split(",").map((word) => word.trim()).filter(Boolean); return words.length ? words : undefined; };
  } else {
    const mixed = schema.anyOf?.some((each) => each.type !== "string");
    const text = initial === undefined ? "" : typeof initial === "string" ? initial : stringify(initial);
    const long = mixed || ["stdin", "source", "call"].includes(name) || (schema.maxLength || 0) > 9000 || text.includes("\n");
    input = h(long ? "textarea.code" : "input", { ...common, rows: long ? 3 : null, type: long ? null : name === "url" ? "url" : "text", maxlength: schema.maxLength, spellcheck: "false", value: text });
    read = () => {
      const found = input.value;
      if (!found.trim()) return undefined;
      return mixed && /^\s*[[{]/.test(found) ? parse(found) : found;
    };
    if (mixed) schema = { ...schema, description: `${schema.description || ""} (a text, or JSON beginning with [ or {)` };
  }
  const help = schema.description && h("p.help", { id: `${id}-help` }, schema.description);
  return { path, read, note, input, el: h("div.field", null, h("label", { for: id }, label, required && h("em", null, " needed")), input, help, note) };
}

function parse(text) {
  try {
    return exact(text);
  } catch (error) {
    throw new Error(`is not JSON: ${error.message}`);
  }
}

function show(each, message) {
  each.note.textContent = message || "";
  each.note.hidden = !message;
  each.input.setAttribute("aria-invalid", String(Boolean(message)));
}

export function submit(render, params) {
  let types = null, form = null, model = null;
  const build = (type, like) => {
    const info = types.by_type[type] || {};
    const schema = info.payload_schema || { type: "object" };
    const value = like?.payload ?? EXAMPLES[type] ?? {};
    const free = !schema.properties;
    const fields = free ? [field("payload", "Payload (JSON object)", { type: "object" }, true, value, "payload")]
      : Object.entries(schema.properties).map(([name, each]) => field(name, name.replaceAll("_", " "), each, schema.required?.includes(name), value[name], `payload.${name}`));
    const asked = like?.requirements || {};
    const wishes = WISHES.map(([name, label, each]) => field(name, label, each, false, asked[name], `requirements.${name}`));
    const copies = field("copies", "Copies", { type: "integer", minimum: 1, maximum: 1000, default: 1 }, false, undefined, "copies");
    const priority = like?.priority || "normal";
    const failure = h("p.banner", { role: "alert", hidden: true, "data-kind": "bad" });
    const curl = h("div");
    const needsKey = !HARMLESS.includes(type) && !may("submit:dangerous");
    model = { type, free, fields, wishes, copies, failure };
    const button = h("button.primary", { type: "submit" }, "Submit");
    form = h("form.submit", { "data-keep": true, novalidate: true, onsubmit: (event) => { event.preventDefault(); go(button); } },
      card("Payload", null, info.description && h("p.quiet", null, info.description, info.devices === 0 ? ". No online device runs it now; it would wait." : `. ${plural(info.devices ?? 0, "device")} can run it.`),
        needsKey && h("p.banner", null, "This type needs an API key (or, without authentication, a browser on the main node's machine)."),
        fields.length ? fields.map((each) => each.el) : h("p.quiet", null, "It takes nothing: just submit it.")),
      h("section.card", null, h("h2", null, "How"),
        h("fieldset.seg", null, h("legend", null, "Priority"), [...PRIORITIES].reverse().map((word) => h("label", null, h("input", { type: "radio", name: "priority", value: word, checked: word === priority }), h("span", null, word)))),
        copies.el,
        h("details", { open: wishes.some((each) => each.input.value && each.input.type !== "checkbox") || null }, h("summary", null, "What the device must have"), h("div.grid", null, wishes.map((each) => each.el)))),
      failure,
      h("div.row", null, button, h("button.ghost", { type: "button", onclick: () => { const body = read(); if (body) curl.replaceChildren(h("p.quiet", null, "The same by curl:"), copyable(asCurl(body))); } }, "Show as curl")),
      curl);
  };

  const read = () => {
    let bad = null;
    const take = (list, into, strip) => {
      for (const each of list) {
        try {
          const value = each.read();
          show(each, "");
          if (value === undefined && each.input.required) throw new Error("is needed");
          if (value !== undefined) into[strip(each.path)] = value;
        } catch (error) {
          show(each, error.message);
          bad ||= each;
        }
      }
    };
    const last = (path) => path.split(".").pop();
    const body = { task_type: model.type, payload: {}, priority: new FormData(form).get("priority") };
    const requirements = {}, more = {};
    take(model.fields, body.payload, last);
    if (model.free) body.payload = body.payload.payload;
    take(model.wishes, requirements, last);
    take([model.copies], more, last);
    if (Object.keys(requirements).length) body.requirements = requirements;
    if (bad) { bad.input.focus(); return null; }
    model.count = Number(more.copies || 1);
    return body;
  };

  async function go(button) {
    const body = read();
    if (!body) return;
    button.disabled = true;
    model.failure.hidden = true;
    try {
      if (model.count > 1) {
        const answer = await send("POST", "tasks/batch", { tasks: Array(model.count).fill(body) });
        toast(`${plural(answer.data.task_ids.length, "task")} submitted`);
        location.hash = link("tasks", { task_type: model.type });
      } else {
        const answer = await send("POST", "tasks", body);
        toast("Submitted");
        location.hash = link(`tasks/${answer.data.task_id}`);
      }
    } catch (error) {
      const path = String(error.details.field || "").replace(/^tasks\.\d+\./, "");
      const all = [...model.fields, ...model.wishes];
      const each = all.find((one) => one.path === path) || all.find((one) => path.startsWith(`${one.path}.`));
      if (each) { show(each, error.message); each.input.focus(); }
      else { model.failure.textContent = error.message; model.failure.hidden = false; }
    }
    button.disabled = false;
  }

  return {
    title: "Submit",
    async load() {
      types = await loadTypes(true);
      const like = params.like ? (await get(`tasks/${params.like}`).catch(() => null))?.data : null;
      build(like?.task_type || params.type || "echo", like);
      render();
    },
    on() {},
    stop() {},
    view() {
      if (!form) return h("p.quiet", null, "Asking which types there are…");
      const known = [...new Set([...types.supported_types, model.type])];
      return [
        h("div.head", null, h("h1", null, "Submit a task")),
        h("nav.types", { "aria-label": "Task type" }, known.map((type) => h("a", { href: link("submit", { type }), "data-nav": true, "aria-current": type === model.type ? "true" : null },
          h("b", null, type), h("span.note", null, types.by_type[type]?.devices ? plural(types.by_type[type].devices, "device") : "no device now")))),
        h("div", { "data-key": `form-${model.type}-${params.like || ""}` }, keep(form)),
      ];
    },
  };
}

function asCurl(body) {
  const url = new URL("../api/v1/tasks", import.meta.url);
  return `curl -X POST ${url} -H "Content-Type: application/json" -d '${stringify(body).replaceAll("'", "'\\''")}'`;
}
