// The configuration: look, change what may be changed, reset.
import { h, ask, copyable, glyph, toast } from "./dom.js";
import { get, may, refresher, send, session } from "./net.js";
import { card, facts, trouble } from "./parts.js";

const EDITABLE = {
  heartbeat: [["interval", "Interval", "seconds between heartbeats, 1 to 3600", 1, 3600], ["max_missed", "Missed heartbeats", "until a device counts as offline, 1 to 100", 1, 100], ["timeout", "Timeout", "seconds until its tasks go to others; at least interval × missed", 1, 86400]],
  server: [["max_connections", "Connections", "devices online at once, 1 to 100000", 1, 100000]],
};
const TITLES = { heartbeat: "Heartbeat", server: "Server", scheduler: "Scheduler", retention: "Retention", database: "Database", logging: "Logging", api: "REST API" };

export function config(render) {
  let found = null, failure = null;
  const forms = {};
  const load = async () => {
    try {
      found = (await get("config")).data;
      failure = null;
      for (const name of Object.keys(EDITABLE)) forms[name] = build(name);
    } catch (error) {
      failure = error;
    }
    render();
  };
  const poke = refresher(load);

  function build(name) {
    const inputs = {};
    const note = h("p.error", { role: "alert", hidden: true });
    const rows = EDITABLE[name].map(([key, label, help, min, max]) => {
      const id = `c-${name}-${key}`;
      inputs[key] = h("input", { id, type: "number", min, max, step: "any", value: found[name][key], "aria-describedby": `${id}-help`, disabled: !may("admin") });
      return h("div.field", null, h("label", { for: id }, label), inputs[key], h("p.help", { id: `${id}-help` }, help));
    });
    const save = async (event) => {
      event.preventDefault();
      const values = {};
      for (const [key, input] of Object.entries(inputs)) {
        const value = Number(input.value);
        if (input.value !== "" && value !== found[name][key]) values[key] = value;
      }
      note.hidden = true;
      if (!Object.keys(values).length) { toast("Nothing has changed"); return; }
      try {
        const { data } = await send("PUT", `config/${name}`, values);
        Object.assign(found[name], data.current_config[name] || data.current_config);
        toast(`${TITLES[name]} saved: ${data.updated_fields.join(", ")}`);
        render();
      } catch (error) {
        note.textContent = error.message;
        note.hidden = false;
        inputs[String(error.details.field || "").split(".").pop()]?.focus();
      }
    };
    return h("form", { "data-keep": true, "data-key": `${name}-${Math.random()}`, onsubmit: save, novalidate: true }, rows, note, may("admin") && h("button.primary", { type: "submit" }, "Save"));
  }

  async function reset() {
    if (!(await ask("Reset the configuration?", "Server and heartbeat go back to their defaults, at once and for all devices.", "Reset"))) return;
    try {
      await send("POST", "config/reset", {});
      toast("The configuration is reset");
      await load();
    } catch (error) {
      toast(error.message, "bad");
    }
  }

  return {
    title: "Config",
    load,
    on(events) { if (events.some((event) => event.type === "config.changed") && !document.activeElement?.closest("form")) poke(); },
    stop: poke.stop,
    view() {
      if (failure) return [h("h1", null, "Configuration"), trouble(failure, load)];
      if (!found) return h("p.quiet", null, "Asking…");
      const rest = Object.entries(found).map(([name, values]) => [name, Object.entries(values).filter(([key]) => !EDITABLE[name]?.some(([known]) => known === key))]).filter(([, rows]) => rows.length);
      return [
        h("div.head", null, h("h1", null, "Configuration"), may("admin") && h("button.danger", { type: "button", onclick: reset }, "Reset to defaults…")),
        !may("admin") && h("p.banner", null, session.auth_required ? "This key may look, not change." : "Changes are open to the main node's machine only while authentication is off."),
        h("div.columns", null, Object.keys(EDITABLE).map((name) => card(TITLES[name], { class: "card", "data-key": name }, h("p.quiet", null, "Applied at once, without a restart."), forms[name])), access()),
        h("div.columns", null, rest.map(([name, rows]) => card(`${TITLES[name] || name}${EDITABLE[name] ? ", as started" : ""}`, { class: "card", "data-key": `rest-${name}` }, facts(rows.map(([key, value]) => [key.replaceAll("_", " "), words(value)]))))),
      ];
    },
  };
}

const SCOPES = { read: "look at the configuration, ping devices", submit: "submit, cancel and retry harmless tasks", "submit:dangerous": "the same with tasks of every type", admin: "drain and remove devices, change the configuration" };

function access() {
  const rights = Object.entries(SCOPES).map(([scope, text]) => h("li", { "data-on": may(scope) ? true : null }, glyph(may(scope) ? "success" : "offline"), h("span", null, h("b", null, scope), " ", text)));
  const how = session.auth_required
    ? h("p.quiet", null, session.signed_in ? "Signed in with a key; it lives in a cookie that no script can read. Sign out at the top." : "Not signed in: looking, and harmless tasks, need no key. Sign in at the top.")
    : [h("p.quiet", null, "Authentication is off: this machine may do everything, others may look and submit harmless tasks. To ask for a key, start with"), copyable("retire-cluster up --auth")];
  return card("What this browser may do", { class: "card", "data-key": "access" }, h("ul.rights", null, rights), how, h("p.row", null, h("a", { href: "#/join" }, "Add a device"), h("a", { href: "../api/v1/docs" }, "API documentation")));
}

const words = (value) => (value === true ? "yes" : value === false ? "no" : Array.isArray(value) ? value.join(", ") || "none" : value === "" || value === null ? "–" : String(value));
