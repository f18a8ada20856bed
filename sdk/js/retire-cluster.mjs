/**
 * The REST interface from JavaScript: browsers, Node >= 18, Deno, Bun.
 *
 * Every method resolves to the answer's envelope, an error's too. Answers 429 and 503 are waited out
 * as their Retry-After asks; submissions carry an Idempotency-Key, so that trying again never
 * submits twice.
 *
 * Whole numbers beyond 2^53 are BigInt in payloads and answers, so that no digit is lost.
 */

const ENDED = new Set(['success', 'failed', 'timeout', 'cancelled']);
const POLL_SECONDS = 25;
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

  async getTaskResult(taskId) {
    return this.request('GET', `/tasks/${encodeURIComponent(taskId)}/result`);
  }

  /** Results of up to 1000 tasks; what has not ended or did not fit is listed by id. */
  async getTaskResults(taskIds) {
    const body = { task_ids: [...taskIds] };
    return this.request('POST', '/tasks/results', { body, repeatable: true });
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
    let cursor;
    let look = true;
    for (;;) {
      if (cursor === undefined) {
        const now = await this.getEvents({ signal });
        if (now.status !== 'success') return now;
        cursor = now.data.next;
      }
      if (look) {
        const status = await this.getTaskStatus(taskId);
        if (status.status !== 'success') return status;
        if (ENDED.has(status.data.status)) return this.getTaskResult(taskId);
      }
      const left = (deadline - Date.now()) / 1000;
      if (left <= 0) {
        throw new Error(`task ${taskId} has not ended within ${timeoutSeconds} s`);
      }
      const asked = Date.now();
      const wait = Math.min(POLL_SECONDS, left);
      const answer = await this.getEvents({ since: cursor, wait, task_id: taskId, signal });
      if (answer.status !== 'success') return answer;
      cursor = answer.data.next;
      look = answer.data.events.length > 0 || Boolean(answer.data.gap);
      if (!look && Date.now() - asked < 1000) await sleep(Math.min(1, left), signal);
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
      const response = await fetch(url, {
        method,
        headers: { ...this.headers, ...headers },
        body: body === undefined ? undefined : stringifyJSON(body),
        signal,
      });
      const wait = Number(response.headers.get('Retry-After') ?? 1) || 1;
      const again = response.status === 429 || (response.status === 503 && repeatable);
      if (!again || Date.now() + wait * 1000 > giveUp) {
        return parseJSON(await response.text());
      }
      await response.body?.cancel();
      await sleep(wait, signal);
    }
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
