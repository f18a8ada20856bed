// Drives the dashboard in a headless Chromium: `node dashboard.mjs MODULES CHROMIUM URL SCENARIO [FOLDER]`.
// Prints one JSON object; a failed expectation is an exit with its text.
import { createRequire } from "node:module";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [modules, chromiumPath, base, scenario, folder = ""] = process.argv.slice(2);
const require = createRequire(join(modules, "package.json"));
const { chromium } = require("playwright-core");
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-gpu-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"];

const problems = [];
const requests = [];

function expect(condition, text) {
  if (!condition) throw new Error(text);
}

function watch(page) {
  page.on("console", (message) => {
    // A refused request is also written to the console by the browser; the scenarios look at those.
    if (["error", "warning"].includes(message.type()) && !/Failed to load resource/.test(message.text())) problems.push(`${message.type()}: ${message.text()}`);
  });
  page.on("pageerror", (error) => problems.push(`exception: ${error.message}`));
  page.on("request", (request) => requests.push(new URL(request.url())));
}

async function open(context, hash = "#/") {
  const page = await context.newPage();
  page.setDefaultTimeout(20000);
  watch(page);
  await page.goto(`${base}/ui/${hash}`);
  await page.locator("main h1").waitFor();
  return page;
}

const api = async (method, path, body) => {
  const answer = await fetch(`${base}/api/v1/${path}`, { method, headers: { "Content-Type": "application/json" }, body: body && JSON.stringify(body) });
  return (await answer.json()).data;
};
const post = (body) => api("POST", "tasks", body);
const live = (page, state = "live") => page.locator(`#live[data-state=${state}]`).waitFor();
const chip = (page, status) => page.locator(`main .head .chip[data-status=${status}]`).waitFor();

/** Notes what axe-core takes for serious on this page. */
async function serious(page, where) {
  await page.evaluate(readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
  const { violations } = await page.evaluate(() => window.axe.run());
  for (const { id: rule, impact, nodes } of violations) {
    if (["serious", "critical"].includes(impact)) problems.push(`axe ${where}: ${rule}: ${nodes.slice(0, 3).map((node) => `${node.target} ${node.failureSummary?.split("\n")[1]?.trim() || ""}`).join(" | ")}`);
  }
}

const scenarios = {
  async submit(context) {
    const page = await open(context, "#/submit?type=sleep");
    await live(page);
    await page.getByLabel("duration").fill("1.5");
    await page.getByRole("button", { name: "Submit", exact: true }).click();
    await chip(page, "running");
    await chip(page, "success");
    await page.getByText('"slept_for": 1.5').waitFor();
  },

  async refused(context) {
    const page = await open(context, "#/submit?type=sleep");
    await page.getByLabel("duration").fill("-4");
    await page.getByRole("button", { name: "Submit", exact: true }).click();
    const error = page.locator("#f-payload-duration-error");
    await error.waitFor();
    expect(await page.getByLabel("duration").getAttribute("aria-invalid") === "true", "the field is not marked");
    await page.goto(`${base}/ui/#/submit?type=http_request`);
    await page.getByLabel("url").fill("");
    await page.getByRole("button", { name: "Submit", exact: true }).click();
    await page.getByText("is needed").waitFor();
  },

  /** A device that describes an own type otherwise than most: its page says so, the others' do not. */
  async disputed(context) {
    const page = await open(context, "#/devices/second");
    await page.getByText("Most devices describe these types otherwise; what is submitted is judged by their word: shape", { exact: true }).waitFor();
    await page.goto(`${base}/ui/#/devices/first`);
    await page.locator("main h1", { hasText: "first" }).waitFor();
    await page.getByText("shape", { exact: true }).first().waitFor();
    expect(await page.getByText("Most devices describe").count() === 0, "the first device's page says it, too");
  },

  /** A command whose output is too long: the page says of which part how much is missing, and where. */
  async cut(context) {
    const command = ["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; echo END"];
    const submitted = await (await fetch(`${base}/api/v1/tasks`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ task_type: "command", payload: { command } }) })).json();
    const page = await open(context, `#/tasks/${submitted.data.task_id}`);
    await chip(page, "success");
    await page.locator(".banner", { hasText: "stdout: 737860 of 1000004 bytes are missing (middle)" }).waitFor();
    expect(await page.locator(".banner", { hasText: "missing" }).count() === 1, "stderr was whole");
  },

  /** What a command wrote is text, a running task tells how far it is, rows tell tasks apart. */
  async shown(context) {
    const command = ["sh", "-c", "printf 'one\\ntwo\\n'; echo oops >&2; exit 3"];
    const { task_id: id } = await post({ task_type: "command", payload: { command }, requirements: { max_retries: 0 } });
    const page = await open(context, `#/tasks/${id}`);
    await chip(page, "failed");
    const under = (name) => page.locator(`h3:text-is("${name}") + pre`).textContent();
    expect(await under("Output") === "one\ntwo\n", `output: ${await under("Output")}`);
    expect(await under("Errors") === "oops\n", `errors: ${await under("Errors")}`);
    await page.getByText("Exit code 3", { exact: true }).waitFor();
    const slow = await post({ task_type: "stepwise", payload: { first: "frames" }, metadata: { name: "Night render 7" } });
    for (;;) {
      if ((await api("GET", `tasks/${slow.task_id}/status`)).progress) break;
      await new Promise((done) => setTimeout(done, 50));
    }
    await page.goto(`${base}/ui/#/tasks`);
    await page.locator("td", { hasText: "Night render 7" }).waitFor();
    await page.locator("td", { hasText: "sh -c printf" }).waitFor();
    await page.goto(`${base}/ui/#/tasks/${slow.task_id}`);
    await page.locator(".progress", { hasText: "25 % first part" }).waitFor();
    await page.locator(".lead", { hasText: "Night render 7" }).waitFor();
    await page.locator(".progress", { hasText: "second part" }).waitFor();
    await page.locator(".progress", { hasText: "75 % third part" }).waitFor();
    await api("POST", `tasks/${slow.task_id}/cancel`, {});
    await chip(page, "cancelled");
    const later = await post({ task_type: "echo", payload: {}, delay_seconds: 600 });
    await page.goto(`${base}/ui/#/tasks/${later.task_id}`);
    await page.locator(".why", { hasText: /queued at \d\d:\d\d/ }).waitFor();
  },

  /** The main node was started again and knows no event: what ended before is in the pictures. */
  async past(context) {
    const page = await open(context);
    const finished = page.locator(".tile", { hasText: "Finished" }).locator("strong");
    await page.waitForFunction((tile) => Number(tile.textContent) >= 5, await finished.elementHandle());
    await page.locator("svg .attempt[data-status=success]").first().waitFor({ state: "attached" });
  },

  /** Numbers that JavaScript would round or write otherwise: shown, edited and sent digit by digit. */
  async digits(context) {
    const payload = '{"row_id":1970670598291982291,"least":-9223372036854775808,"most":18446744073709551615,"one":1.0,"text":"1970670598291982291"}';
    const submitted = await (await fetch(`${base}/api/v1/tasks`, { method: "POST", headers: { "Content-Type": "application/json" }, body: `{"task_type":"echo","payload":${payload}}` })).json();
    const page = await open(context, `#/tasks/${submitted.data.task_id}`);
    await chip(page, "success");
    const shown = async (name) => (await page.locator("section.card", { has: page.getByRole("heading", { name, exact: true }) }).locator("pre").first().textContent()).replace(/\s/g, "");
    expect(await shown("Asked for") === payload, `payload: ${await shown("Asked for")}`);
    expect((await shown("Result")).includes(`{"echo":${payload}}`), `result: ${await shown("Result")}`);
    await page.getByRole("link", { name: "Submit one like it" }).click();
    const box = page.getByLabel("Payload (JSON object)");
    await box.waitFor();
    expect((await box.inputValue()).replace(/\s/g, "") === payload, `form: ${await box.inputValue()}`);
    await box.fill(payload.replace("{", '{"edited":9007199254740993,'));
    await page.getByRole("button", { name: "Show as curl" }).click();
    await page.locator("code", { hasText: '"edited":9007199254740993' }).waitFor();
    const [request] = await Promise.all([
      page.waitForRequest((each) => each.method() === "POST" && each.url().endsWith("/tasks")),
      page.getByRole("button", { name: "Submit", exact: true }).click(),
    ]);
    expect(request.postData().includes(`"payload":${payload.replace("{", '{"edited":9007199254740993,')}`), `posted: ${request.postData()}`);
  },

  async cancel(context) {
    const { task_id: id } = await post({ task_type: "sleep", payload: { duration: 300 } });
    const page = await open(context, `#/tasks/${id}`);
    await chip(page, "running");
    await page.getByRole("button", { name: "Cancel" }).click();
    await chip(page, "cancelled");
    await page.getByRole("button", { name: "Retry" }).click();
    await chip(page, "running");
    await page.getByRole("button", { name: "Cancel" }).click();
    await chip(page, "cancelled");
  },

  async explain(context) {
    const { task_id: id } = await post({ task_type: "echo", payload: {}, requirements: { required_tags: ["no-such-tag"] } });
    const page = await open(context, `#/tasks/${id}`);
    const why = page.locator(".why");
    await why.getByText("No device can run it as things are.").waitFor();
    await why.locator(".reasons").getByText("missing tag no-such-tag").waitFor();
    expect((await why.textContent()).includes("2 devices"), "it does not say how many");
    await why.locator("summary").click();
    await why.locator("tbody tr").nth(1).getByText("missing tag no-such-tag").waitFor();
    await page.getByRole("button", { name: "Cancel" }).click();
    await chip(page, "cancelled");
    expect(await why.count() === 0, "an ended task still explains");
  },

  async drain(context) {
    const [first, second] = await api("GET", "devices");
    const page = await open(context, `#/devices/${first.device_id}`);
    await page.getByRole("button", { name: "Drain" }).click();
    await chip(page, "draining");
    await page.getByText("has nothing left to do").waitFor();
    const { task_ids: ids } = await api("POST", "tasks/batch", { tasks: Array(6).fill({ task_type: "echo", payload: {} }) });
    await page.goto(`${base}/ui/#/tasks/${ids[5]}`);
    await chip(page, "success");
    for (const id of ids) {
      const { assigned_device_id: device } = await api("GET", `tasks/${id}`);
      expect(device === second.device_id, `${id} went to ${device}, which is drained`);
    }
    await page.goto(`${base}/ui/#/devices`);
    await page.locator("table.devices .chip[data-status=draining]").waitFor();
    await page.getByRole("link", { name: first.device_id }).click();
    await page.getByRole("button", { name: "Resume" }).click();
    await chip(page, "online");
    await page.getByRole("button", { name: "Drain" }).waitFor();
  },

  async log(context) {
    const { task_id: id } = await post({ task_type: "echo", payload: {} });
    const page = await open(context, "#/log");
    await live(page);
    await page.locator("table.log tbody tr").first().waitFor();
    const { task_id: failing } = await post({ task_type: "sleep", payload: { duration: 60 }, requirements: { max_retries: 0, timeout_seconds: 1 } });
    await page.locator("table.log tr", { hasText: failing.slice(-6) }).filter({ hasText: "timeout" }).waitFor();
    await page.getByRole("button", { name: "Hold" }).click();
    const rows = await page.locator("table.log tbody tr").count();
    await post({ task_type: "echo", payload: {} });
    await page.getByText(/held; [1-9]\d* more since/).waitFor();
    expect(await page.locator("table.log tbody tr").count() === rows, "it moves while held");
    await page.getByLabel("Type, device or a task id").fill(id);
    await page.keyboard.press("Enter");
    await page.waitForURL(new RegExp(`task_id=${id}`));
    await page.waitForFunction(() => document.querySelectorAll("table.log tbody tr").length === 4);
    const found = await page.locator("table.log tbody tr").allTextContents();
    expect(found.every((text) => text.includes(id.slice(-6))), JSON.stringify(found));
    await page.locator("table.log [data-nav]").first().click();
    await page.waitForURL(new RegExp(`tasks/${id}$`));
  },

  async audit(context) {
    for (const [hash, others] of [["#/log", true], ["#/log?type=token", false], ["#/log?type=token.created", false]]) {
      const page = await open(context, hash);
      await page.locator("table.log tr", { hasText: "token.created" }).waitFor();
      const found = await page.locator("table.log tbody tr").allTextContents();
      expect(others === found.some((text) => text.includes("device")), `${hash}: ${JSON.stringify(found)}`);
      expect(found.filter((text) => text.includes("token.created")).length === 1, `${hash}: ${JSON.stringify(found)}`);
    }
  },

  async many(context) {
    for (let i = 0; i < 3; i += 1) await post({ task_type: "python_eval", payload: { expression: "1/0" }, requirements: { max_retries: 0 } });
    const page = await open(context, "#/tasks?status=failed&task_type=python_eval");
    await page.locator("tbody tr").nth(2).waitFor();
    await page.getByLabel("Choose all on this page").check();
    await page.getByRole("button", { name: "Retry 3" }).click();
    await page.getByRole("heading", { name: "Retry 3 tasks?" }).waitFor();
    await page.getByRole("button", { name: "Retry 3 tasks" }).click();
    await page.getByText("Retry: all 3 done").waitFor();
  },

  async lists(context) {
    await api("POST", "tasks/batch", { tasks: Array(60).fill({ task_type: "echo", payload: {} }) });
    const page = await open(context, "#/tasks?task_type=echo");
    await page.getByText("page 1 of").waitFor();
    await page.getByRole("link", { name: "older" }).click();
    await page.getByText("page 2 of").waitFor();
    await page.getByLabel("Status, type, priority, device").fill("success echo normal");
    await page.keyboard.press("Enter");
    await page.waitForURL(/status=success/);
    expect(/task_type=echo/.test(page.url()) && /priority=normal/.test(page.url()), page.url());
    const lists = requests.filter((url) => /\/tasks$/.test(url.pathname));
    expect(lists.every((url) => url.searchParams.get("page_size") === "25"), "paging is not the server's");
  },

  async phone(context) {
    const { task_id: id } = await post({ task_type: "system_info", payload: {} });
    const page = await open(context);
    await page.locator(".timeline li").first().waitFor();
    const [device] = await api("GET", "devices");
    for (const hash of ["#/", "#/devices", `#/devices/${device.device_id}`, "#/tasks", `#/tasks/${id}`, "#/submit?type=command", "#/config", "#/log", "#/join"]) {
      await page.goto(`${base}/ui/${hash}`);
      await page.locator("main h1").waitFor();
      await page.waitForTimeout(600);
      const { wide, cards } = await page.evaluate(() => ({ wide: document.documentElement.scrollWidth - innerWidth, cards: [...document.querySelectorAll("main table tr")].every((row) => getComputedStyle(row).display !== "table-row") }));
      expect(wide <= 0, `${hash} is ${wide} px too wide`);
      expect(cards, `${hash} shows tables, not cards`);
    }
  },

  async themes(context) {
    const page = await open(context);
    const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number)[0]);
    await page.emulateMedia({ colorScheme: "dark" });
    expect(await ground() < 60, "the system's dark is not followed");
    await page.emulateMedia({ colorScheme: "light" });
    expect(await ground() > 200, "the system's light is not followed");
    await page.locator("#theme").click();
    expect(await ground() < 60, "the button does not switch");
    await page.reload();
    await page.locator("main h1").waitFor();
    expect(await ground() < 60, "the choice is forgotten");
  },

  async keyboard(context) {
    const page = await open(context);
    await live(page);
    const press = async (...keys) => { for (const key of keys) await page.keyboard.press(key); };
    await press("?");
    await page.getByRole("heading", { name: "Keyboard" }).waitFor();
    await press("Escape");
    await press("g", "s");
    await page.getByRole("heading", { name: "Submit a task" }).waitFor();
    await page.locator("form.submit").waitFor();
    await press("j", "j", "Enter");
    await page.waitForURL(/type=sleep/);
    await page.getByLabel("duration").waitFor();
    for (let i = 0; i < 40 && !(await page.evaluate(() => document.activeElement.id === "f-payload-duration")); i += 1) await press("Tab");
    await page.keyboard.press("Control+a");
    await page.keyboard.type("0.4");
    await press("Enter");
    await chip(page, "success");
    await press("g", "t");
    await page.locator("[data-filter]").waitFor();
    await page.locator("table.tasks tbody tr").first().waitFor();
    await press("j", "x");
    await page.getByText("1 task chosen").waitFor();
    await press("/");
    expect(await page.evaluate(() => document.activeElement.name) === "q", "/ does not focus the filter");
    await page.keyboard.type("sleep");
    await press("Enter");
    await page.getByRole("link", { name: "Clear" }).waitFor();
    await press("Escape", "j", "Enter");
    await page.waitForURL(/tasks\/[0-9a-f-]{36}$/);
    await press("g", "d");
    await page.locator("table.devices tbody tr").first().waitFor();
    await press("j", "Enter");
    await page.getByRole("button", { name: "Ping" }).waitFor();
    const outline = await page.evaluate(() => { document.querySelector("main a").focus(); return getComputedStyle(document.activeElement).outlineStyle; });
    expect(outline !== "none", "focus cannot be seen");
  },

  async axe(context) {
    const { task_id: id } = await post({ task_type: "echo", payload: {}, requirements: { required_tags: ["none-has-it"] } });
    const page = await open(context);
    const [device] = await api("GET", "devices");
    for (const scheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
      for (const hash of ["#/", "#/devices", `#/devices/${device.device_id}`, "#/tasks", `#/tasks/${id}`, "#/submit?type=http_request", "#/config", "#/log", "#/join"]) {
        await page.goto(`${base}/ui/${hash}`);
        await page.locator("main h1").waitFor();
        await page.waitForTimeout(700);
        await serious(page, `${scheme} ${hash}`);
      }
    }
    await api("POST", `tasks/${id}/cancel`, {});
  },

  async docs(context) {
    const page = await context.newPage();
    watch(page);
    for (const [scheme, width] of [["light", 1280], ["dark", 360]]) {
      await page.emulateMedia({ colorScheme: scheme });
      await page.setViewportSize({ width, height: 800 });
      await page.goto(`${base}/api/v1/docs`);
      await page.getByRole("link", { name: "GET /tasks/{task_id}/result" }).click();
      await page.locator("section:target").getByText("The result of a finished task.").waitFor();
      expect(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `too wide at ${width}`);
      await serious(page, `${scheme} docs`);
    }
    expect(requests.every((url) => url.host === new URL(base).host), `asks elsewhere: ${requests}`);
  },

  async weight(context) {
    const found = {};
    for (const hash of ["#/", "#/devices", "#/tasks", "#/submit", "#/config", "#/log", "#/join"]) {
      const page = await open(context, hash);
      const weight = await page.evaluate(() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
        .filter((entry) => new URL(entry.name).pathname.startsWith("/ui/")).reduce((sum, entry) => sum + entry.decodedBodySize, 0));
      found[hash] = weight;
      expect(weight > 20000 && weight <= 100 * 1024, `${hash} weighs ${weight} bytes`);
      await page.close();
    }
    const foreign = requests.filter((url) => url.host !== new URL(base).host);
    expect(!foreign.length, `asks elsewhere: ${foreign}`);
    return found;
  },

  async poll(context) {
    await context.addInitScript(() => { window.WebSocket = class { constructor() { throw new Error("none here"); } }; });
    const page = await open(context);
    // The poll's first answer is what makes it live, and it waits for something to happen.
    await post({ task_type: "echo", payload: {} });
    await live(page, "polling");
    const { task_id: id } = await post({ task_type: "sleep", payload: { duration: 1 } });
    await page.goto(`${base}/ui/#/tasks/${id}`);
    await chip(page, "success");
  },

  async frugal(context) {
    const page = await open(context);
    await live(page);
    await page.waitForTimeout(1500);
    const before = requests.length;
    for (let i = 0; i < 8; i += 1) {
      await api("POST", "tasks/batch", { tasks: Array(40).fill({ task_type: "echo", payload: { i } }) });
      await page.waitForTimeout(1000);
    }
    await page.waitForFunction(() => Number(document.querySelector(".tiles .tile:nth-child(4) strong").textContent) >= 320);
    const limited = requests.slice(before).filter((url) => url.pathname.startsWith("/api/") && !url.pathname.endsWith("/events"));
    expect(limited.length <= 6, `${limited.length} requests: ${limited.map((url) => url.pathname)}`);
    return { limited: limited.length };
  },

  async signin(context) {
    const page = await open(context, "#/config");
    await page.getByRole("heading", { name: "Sign in" }).waitFor();
    const enter = async (key) => {
      await page.getByLabel("API key").fill(key);
      await page.getByRole("dialog").getByRole("button", { name: "Sign in" }).click();
    };
    await enter("not-the-key");
    await page.getByText("This API key is not valid").waitFor();
    await enter("the-key-of-this-test");
    await page.getByRole("button", { name: "Reset to defaults…" }).waitFor();
    const [cookie] = await context.cookies();
    expect(cookie.httpOnly && cookie.sameSite === "Strict", JSON.stringify(cookie));
    expect(!(await page.evaluate(() => document.cookie)), "a script can read the cookie");
    await page.getByLabel("Interval").fill("4");
    await page.locator("form", { hasText: "Interval" }).getByRole("button", { name: "Save" }).click();
    await page.getByText("Heartbeat saved").waitFor();
    await page.reload();
    await page.getByRole("button", { name: "Reset to defaults…" }).click();
    await page.getByRole("button", { name: "Reset", exact: true }).click();
    await page.getByText("The configuration is reset").waitFor();
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.locator("#sign", { hasText: "Sign in" }).waitFor();
    expect(!(await context.cookies()).length, "the cookie is still there");
  },

  async newcomer(context) {
    const page = await open(context);
    await page.getByRole("heading", { name: "No devices yet" }).waitFor();
    const make = page.getByRole("button", { name: "Make the join line" });
    await make.focus();
    await page.waitForTimeout(1500);
    expect(await make.evaluate((el) => el === document.activeElement), "what is redrawn each second takes the focus away");
    await page.goto(`${base}/ui/#/join`);
    await page.getByText("Waiting for a device to come.").waitFor();
    await page.keyboard.press("Tab");
    await make.click();
    const line = await page.locator(".join code", { hasText: "--join" }).textContent();
    expect(/^retire-cluster-worker --join rc\d+\.\S{60,}$/.test(line), line);
    await page.goto(`${base}/ui/#/tasks`);
    await page.getByRole("button", { name: "Send an echo" }).click();
    await page.locator(".why").getByText("No device has joined the cluster yet.").waitFor();
    return { line };
  },

  async device(context) {
    const page = await open(context, "#/devices");
    await page.locator("table.devices tbody tr").first().waitFor();
    const name = (await page.locator("table.devices tbody b").first().textContent()).trim();
    await page.getByRole("link", { name }).click();
    await page.locator(".facts dt", { hasText: /^No command program rc-nowhere until \d\d:/ }).waitFor();
    await page.getByRole("button", { name: "Ping" }).click();
    await page.getByText(`${name} answered in`).waitFor();
    await page.locator(".meter .spark").first().waitFor();
    await page.getByRole("button", { name: "Remove…" }).click();
    await page.getByRole("button", { name: "Keep as it is" }).click();
    await page.getByRole("button", { name: "Remove…" }).click();
    await page.getByRole("button", { name: "Remove it" }).click();
    await page.getByText(`${name} is removed`).waitFor();
    await page.waitForURL(/#\/devices$/);
    await page.locator("table.devices tbody tr", { hasText: name }).waitFor({ state: "detached" });
  },

  /** The JavaScript module (its path is FOLDER) in a page of its own. */
  async module(context) {
    const source = readFileSync(folder, "utf8");
    await context.route("**/module-test/**", (route) => route.fulfill(route.request().url().endsWith(".mjs")
      ? { contentType: "text/javascript", body: source }
      : { contentType: "text/html", body: "<!doctype html><title>A page with the module</title>" }));
    const keys = [];
    await context.route("**/api/v1/tasks", (route) => {
      const request = route.request();
      if (request.method() !== "POST") return route.continue();
      keys.push(request.headers()["idempotency-key"]);
      if (keys.length > 1) return route.continue();
      return route.fulfill({ status: 429, headers: { "Retry-After": "1" }, contentType: "application/json", body: JSON.stringify({ status: "error", error_code: "RATE_LIMIT_EXCEEDED" }) });
    });
    const page = await context.newPage();
    watch(page);
    await page.goto(`${base}/module-test/index.html`);
    const found = await page.evaluate(async () => {
      const { RetireClusterAPI, parseJSON } = await import("/module-test/retire-cluster.mjs");
      const api = new RetireClusterAPI(`${location.origin}/api/v1`);
      const began = performance.now();
      const task = await api.submitTask("echo", { n: 1 }, { priority: "high" });
      const seconds = (performance.now() - began) / 1000;
      const result = await api.waitForTask(task.data.task_id, { timeoutSeconds: 20 });
      const sent = await api.submitTasks([{ task_type: "echo", payload: { n: 2 } }, { task_type: "echo", payload: { n: 3 } }]);
      for (const id of sent.data.task_ids) await api.waitForTask(id, { timeoutSeconds: 20 });
      const many = await api.getTaskResults(sent.data.task_ids);
      const kinds = [];
      for await (const event of api.watch({ since: 0, task_id: task.data.task_id })) {
        kinds.push(event.type);
        if (event.type === "task.success") break;
      }
      const wrong = await api.getTaskResult("550e8400-e29b-41d4-a716-446655440000");
      const big = (await api.submitTask("echo", { row_id: 1970670598291982291n })).data.task_id;
      const back = (await api.waitForTask(big, { timeoutSeconds: 20 })).data.result_data.echo.row_id;
      const ways = [true, false].map((native) => String(parseJSON("[9007199254740993]", native)[0]));
      return { seconds, digits: [typeof back, String(back), ...ways].join(), result: result.data.result_data, many: many.data.results.map((one) => one.result_data), kinds, wrong: wrong.error_code };
    });
    expect(found.digits === "bigint,1970670598291982291,9007199254740993,9007199254740993", found.digits);
    expect(keys.length === 3 && keys[0] && keys[0] === keys[1], `one key for both tries: ${keys}`);
    expect(found.seconds >= 1, `Retry-After was not waited for: ${found.seconds}`);
    const told = problems.splice(0);
    expect(told.length === 1 && told[0].includes("rate limit is used up: waiting 1 s, until"), `told once: ${told}`);
    expect(JSON.stringify(found.result) === '{"echo":{"n":1}}', JSON.stringify(found.result));
    expect(JSON.stringify(found.many) === '[{"echo":{"n":2}},{"echo":{"n":3}}]', JSON.stringify(found.many));
    expect(found.kinds.join() === "task.queued,task.assigned,task.running,task.success", found.kinds.join());
    expect(found.wrong === "TASK_NOT_FOUND", found.wrong);
  },

  /** For the README; `SECONDS` lets the pictures fill first. */
  async pictures(context) {
    const page = await open(context);
    await page.waitForTimeout(1000 * Number(process.env.SECONDS || 3));
    await page.setViewportSize({ width: 1320, height: 1080 });
    for (const scheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme: scheme });
      await page.waitForTimeout(1300);
      await page.screenshot({ path: join(folder, `dashboard-${scheme}.png`) });
    }
    await page.emulateMedia({ colorScheme: "light" });
    await page.setViewportSize({ width: 390, height: 844 });
    await page.waitForTimeout(1300);
    await page.screenshot({ path: join(folder, "dashboard-phone.png") });
  },
};

const profile = mkdtempSync(join(tmpdir(), "dashboard-"));
const viewport = scenario === "phone" ? { width: 360, height: 740 } : { width: 1280, height: 900 };
const context = await chromium.launchPersistentContext(profile, { executablePath: chromiumPath, headless: true, args: FLAGS, viewport, colorScheme: "light" });
let code = 0;
try {
  const found = await scenarios[scenario](context);
  if (problems.length) throw new Error(problems.join("\n"));
  console.log(JSON.stringify(found || {}));
} catch (error) {
  console.error(`${scenario}: ${error.message}\n${problems.join("\n")}\nat ${context.pages().map((page) => page.url())}\n${error.stack.split("\n").find((line) => line.includes("dashboard.mjs")) || ""}`);
  code = 1;
}
await context.close().catch(() => {});
rmSync(profile, { recursive: true, force: true });
process.exit(code);
