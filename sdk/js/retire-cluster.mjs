/**
 * The REST interface from JavaScript: browsers, Node >= 18, Deno, Bun.
 *
 * Every method resolves to the answer's envelope, an error's too. Answers 429 and 503 are waited out
 * as their Retry-After asks, and so is a facade that answered before and is silent now (it
 * restarts); whoever is kept waiting is told so once by console.warn. Submissions carry an
 * Idempotency-Key, so that trying again never submits twice. Waiting costs no rate limit.
 *
 * Whole numbers beyond 2^53 are BigInt in payloads and answers, so that no digit is lost.
 */

const POLL_SECONDS = 25;
/** Between tries of a facade that is away. */
const AWAY_SECONDS = 2;
const sleep = (seconds, signal) =>
  new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const timer = setTimeout(done, seconds * 1000);
    signal?.addEventListener('abort', done, { once: true });
    function done() {
      clearTimeout(timer);
      signal?.removeEventListener('abort', done);
      signal?.aborted ? reject(signal.reason) : resolve();
    }
  });

export class RetireClusterAPI {
  /**
   * @param {string} baseUrl as 'http://localhost:8081/api/v1'
   * @param {string} [apiKey] sent as X-API-Key
   * @param {{retrySeconds?: number}} [options] longest time spent on waiting out 429 and 503
   */
  constructor(baseUrl, apiKey, { retrySeconds = 90 } = {}) {
    this.baseUrl = baseUrl.replace(/\/+$/, '');
    this.headers = { 'Content-Type': 'application/json' };
    if (apiKey) {
      this.headers['X-API-Key'] = apiKey;
    }
    this.retrySeconds = retrySeconds;
    this.met = false;
    this.toldUntil = 0;
  }

  async getClusterStatus() {
    return this.request('GET', '/cluster/status');
  }

  async submitTask(taskType, payload, options = {}) {
    const { idempotencyKey = uniqueKey(), ...rest } = options;
    return this.request('POST', '/tasks', {
      body: { task_type: taskType, payload, ...rest },
      headers: { 'Idempotency-Key': idempotencyKey },
      repeatable: true,
    });
  }

  async submitTasks(tasks, { idempotencyKey = uniqueKey() } = {}) {
    return this.request('POST', '/tasks/batch', {
      body: { tasks },
      headers: { 'Idempotency-Key': idempotencyKey },
      repeatable: true,
    });
  }

  async listDevices(filters = {}) {
    return this.request('GET', '/devices', { query: filters });
  }

  async getDevice(deviceId) {
    return this.request('GET', `/devices/${encodeURIComponent(deviceId)}`);
  }

  async listTasks(filters = {}) {
    return this.request('GET', '/tasks', { query: filters });
  }

  async getTask(taskId) {
    return this.request('GET', `/tasks/${encodeURIComponent(taskId)}`);
  }

  async getTaskStatus(taskId) {
    return this.request('GET', `/tasks/${encodeURIComponent(taskId)}/status`);
  }

  /** A finished task's result; `wait` (seconds, up to 60) waits for the end. */
  async getTaskResult(taskId, { wait, signal } = {}) {
    const path = `/tasks/${encodeURIComponent(taskId)}/result`;
    return this.request('GET', path, { query: { wait }, signal });
  }

  /**
   * Results of up to 1000 tasks; what has not ended or did not fit is listed by id. `wait` (seconds,
   * up to 60) waits until all have ended.
   */
  async getTaskResults(taskIds, { wait, signal } = {}) {
    const body = { task_ids: [...taskIds] };
    const query = { wait };
    return this.request('POST', '/tasks/results', { body, query, signal, repeatable: true });
  }

  /** Cancel up to 1000 tasks; what has ended is listed under `not_cancelled`. */
  async cancelTasks(taskIds) {
    const body = { task_ids: [...taskIds] };
    return this.request('POST', '/tasks/cancel', { body, repeatable: true });
  }

  async cancelTask(taskId) {
    return this.request('POST', `/tasks/${encodeURIComponent(taskId)}/cancel`, { body: {} });
  }

  async retryTask(taskId) {
    return this.request('POST', `/tasks/${encodeURIComponent(taskId)}/retry`, { body: {} });
  }

  async getEvents({ since, wait = 0, signal, ...filters } = {}) {
    return this.request('GET', '/events', { query: { since, wait, ...filters }, signal });
  }

  /**
   * Events as they happen: `for await (const event of api.watch({ type: 'task.success' }))`.
   * Ends when `signal` is aborted.
   */
  async *watch({ signal, since, ...filters } = {}) {
    let cursor = since;
    while (!signal?.aborted) {
      const wait = cursor === undefined ? 0 : POLL_SECONDS;
      const asked = Date.now();
      let answer;
      try {
        answer = await this.getEvents({ ...filters, since: cursor, wait, signal });
      } catch (error) {
        if (signal?.aborted) return;
        throw error;
      }
      if (answer.status !== 'success') {
        throw new Error(`${answer.error_code}: ${answer.message}`);
      }
      cursor = answer.data.next;
      yield* answer.data.events;
      if (wait && !answer.data.events.length && Date.now() - asked < 1000) {
        await sleep(1, signal).catch(() => {});
      }
    }
  }

  /** Wait for a task's end; resolves to its result's envelope. Rejects when the time is over. */
  async waitForTask(taskId, { timeoutSeconds = Infinity, signal } = {}) {
    const deadline = Date.now() + timeoutSeconds * 1000;
    for (;;) {
      const asked = Date.now();
      const left = Math.max(0, (deadline - asked) / 1000);
      const wait = Math.min(POLL_SECONDS, left).toFixed(3);
      const answer = await this.getTaskResult(taskId, { wait, signal });
      if (answer.error_code !== 'NO_TASK_RESULT') return answer;
      if (Date.now() >= deadline) {
        throw new Error(`task ${taskId} has not ended within ${timeoutSeconds} s`);
      }
      if (Date.now() - asked < 1000) await sleep(Math.min(1, left), signal);
    }
  }

  /** One exchange; the envelope. `repeatable`: doing it twice does no harm. */
  async request(method, path, { query, body, headers, signal, repeatable = method === 'GET' } = {}) {
    const url = new URL(`${this.baseUrl}${path}`, globalThis.location?.href);
    for (const [name, value] of Object.entries(query ?? {})) {
      for (const item of [value].flat()) {
        if (item !== undefined && item !== null) url.searchParams.append(name, item);
      }
    }
    const giveUp = Date.now() + this.retrySeconds * 1000;
    for (;;) {
      let response;
      try {
        response = await fetch(url, {
          method,
          headers: { ...this.headers, ...headers },
          body: body === undefined ? undefined : stringifyJSON(body),
          signal,
        });
      } catch (error) {
        // A wrong address is told at once; one that answered before restarts.
        const again = this.met && repeatable && !signal?.aborted;
        if (!again || Date.now() + AWAY_SECONDS * 1000 > giveUp) throw error;
        this.tell(`the cluster at ${this.baseUrl} does not answer; trying again`, AWAY_SECONDS);
        await sleep(AWAY_SECONDS, signal);
        continue;
      }
      this.met = true;
      const asked = response.headers.get('Retry-After');
      const wait = asked === null || Number.isNaN(Number(asked)) ? 1 : Number(asked);
      const late = Date.now() + wait * 1000 > giveUp;
      const again = response.status === 429 || (response.status === 503 && repeatable);
      if (!again || late) {
        const answer = parseJSON(await response.text());
        // Refused before anything happened: a moment later its end is written down.
        if (late || answer.error_code !== 'TASK_JUST_ENDED') return answer;
      } else await response.body?.cancel();
      if (response.status === 429) this.tell("the cluster's rate limit is used up", wait);
      await sleep(wait, signal);
    }
  }

  /** Say once that something is waited for: a wait that follows within a minute is part of it. */
  tell(what, seconds) {
    const until = Date.now() + seconds * 1000;
    if (until <= this.toldUntil + 60_000) return;
    this.toldUntil = until;
    const time = new Date(until).toTimeString().slice(0, 8);
    console.warn(`${what}: waiting ${Math.ceil(seconds)} s, until ${time}`);
  }
}

// --- numbers ---

// In no text of anybody else: it stands for a number between here and JSON's own functions.
const MARK = `${uniqueKey()}:`;
const MARKED = new RegExp(`"${MARK}(-?\\d+)"`, 'g');
const TOKEN = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?/g;
const isRounded = (source) => /^-?\d{16,}$/.test(source) && !Number.isSafeInteger(Number(source));

let hasSources = false;
JSON.parse('1', (key, value, context) => {
  hasSources = context?.source === '1';
  return value;
});

/**
 * As `JSON.parse`, with a BigInt for every whole number beyond 2^53, which Number would round.
 *
 * @param {string} text
 * @param {boolean} [native] let JSON.parse tell how numbers were written; default: where it can
 */
export function parseJSON(text, native = hasSources) {
  if (!/\d{16}/.test(text)) return JSON.parse(text);
  if (native) {
    return JSON.parse(text, (key, value, { source }) =>
      typeof value === 'number' && isRounded(source) ? BigInt(source) : value,
    );
  }
  JSON.parse(text); // says what is wrong with a text that is no JSON
  const marked = text.replace(TOKEN, (token) =>
    token[0] !== '"' && isRounded(token) ? `"${MARK}${token}"` : token,
  );
  return JSON.parse(marked, (key, value) =>
    typeof value === 'string' && value.startsWith(MARK) ? BigInt(value.slice(MARK.length)) : value,
  );
}

/** As `JSON.stringify`, with all digits of a BigInt and of whole numbers beyond 2^53. */
export function stringifyJSON(value, indent) {
  let marked = false;
  const text = JSON.stringify(
    value,
    function (key, each) {
      const own = this[key]; // before a BigInt.prototype.toJSON of somebody made it a text
      const whole = typeof own === 'bigint' || (Number.isInteger(own) && Math.abs(own) < 1e21);
      if (!whole || Number.isSafeInteger(own)) return each;
      marked = true;
      return MARK + BigInt(own);
    },
    indent,
  );
  return marked ? text.replace(MARKED, '$1') : text;
}

function uniqueKey() {
  // randomUUID exists in secure contexts only; a phone opens http://192.168...
  if (globalThis.crypto?.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

export default RetireClusterAPI;
