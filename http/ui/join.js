// How to add a device; says when one has come.
import { h, glyph, keep, link } from "./dom.js";
import { card, deviceLink, joinBody } from "./parts.js";

export function join(render) {
  let body = null;
  const come = new Map();
  return {
    title: "Add a device",
    async load() {
      body = await joinBody();
      render();
    },
    on(events) {
      for (const event of events) if (event.type === "device.online") come.set(event.device_id, event.at);
      render();
    },
    stop() {},
    view() {
      if (!body) return h("p.quiet", null, "Asking…");
      return [
        h("div.head", null, h("h1", null, h("a.up", { href: link("devices") }, "Devices"), " Add one")),
        h("div.columns", null,
          card("On the device", null, keep(body)),
          card("Here", null, h("p", { role: "status" }, come.size ? "It is here:" : "Waiting for a device to come. This page says so at once."),
            come.size > 0 && h("ul.rights", null, [...come.keys()].map((id) => h("li", { "data-on": true }, glyph("online"), h("b", null, deviceLink(id))))),
            come.size > 0 && h("p", null, h("a.button.primary", { href: link("submit") }, "Give it something to do")),
            h("h3", null, "Good to know"),
            h("ul.plain", null,
              h("li", null, "A worker opens no port: it dials out to the main node."),
              h("li", null, "It finds out its platform, cores, memory and GPU by itself; ", h("code", null, "--tag"), " and ", h("code", null, "--role"), " add to that."),
              h("li", null, "Programs are refused until the device's owner allows them: ", h("code", null, "--allow command"), "."),
              h("li", null, "Functions too: ", h("code", null, "--allow python_call"), " runs any Python function of whoever may submit, as the user that runs the worker, behind the walls."),
              h("li", null, h("code", null, "--test"), " shows what it would offer and whether the main node answers.")))),
      ];
    },
  };
}
