/**
 * As `JSON.parse`, with a bigint for every whole number beyond 2^53, which number would round.
 * All answers are read so, and all bodies written by `stringifyJSON`.
 */
export declare function parseJSON(text: string, native?: boolean): any;

/** As `JSON.stringify`, with all digits of a bigint and of whole numbers beyond 2^53. */
export declare function stringifyJSON(value: unknown, indent?: number | string): string;

/** What every answer is wrapped in; `T` is the type of `data`. */
export interface Envelope<T = any> {
  status: 'success' | 'error';
  data?: T;
  message?: string;
  error_code?: string;
  error_details?: Record<string, unknown>;
  pagination?: Pagination;
  timestamp: string;
  request_id: string;
}

export interface Pagination {
  page: number;
  page_size: number;
  total_items: number;
  total_pages: number;
  has_next: boolean;
  has_previous: boolean;
  next_cursor: string | null;
}

export type TaskStatus =
  | 'pending' | 'queued' | 'assigned' | 'running'
  | 'success' | 'failed' | 'timeout' | 'cancelled';

export type Priority = 'low' | 'normal' | 'high' | 'urgent';

export interface Requirements {
  min_cpu_cores?: number;
  min_memory_gb?: number;
  min_storage_gb?: number;
  required_platform?: 'windows' | 'linux' | 'macos' | 'android' | 'other';
  /** Major and minor version of the device's Python, as '3.11'. */
  required_python?: string;
  required_role?: string;
  required_tags?: string[];
  gpu_required?: boolean;
  internet_required?: boolean;
  timeout_seconds?: number;
  max_retries?: number;
}

export interface TaskOptions {
  priority?: Priority;
  requirements?: Requirements;
  metadata?: Record<string, unknown>;
  /** Seconds to wait before the task is queued. */
  delay_seconds?: number;
}

export interface Submission extends TaskOptions {
  task_type: string;
  payload: object;
}

export interface Task {
  task_id: string;
  task_type: string;
  status: TaskStatus;
  priority: Priority;
  created_at: string;
  assigned_device_id: string | null;
  assigned_at: string | null;
  started_at: string | null;
  completed_at: string | null;
  execution_time_seconds: number | null;
  retry_count: number;
  /** When a task that waits for its time is queued. */
  due_at?: string;
  /** In lists: `metadata.name`, or the first words of its payload. */
  label?: string;
}

export interface TaskState {
  task_id: string;
  status: TaskStatus;
  priority: Priority;
  attempt: number;
  progress: { percent: number | null; message: string } | null;
  is_terminal: boolean;
  can_retry: boolean;
  queued_reason: Record<string, unknown> | null;
  due_at?: string;
}

export interface TaskResult<R = any> {
  task_id: string;
  status: TaskStatus;
  result_data: R | null;
  execution_time_seconds: number | null;
  worker_device_id: string | null;
  started_at: string | null;
  completed_at: string;
  error_message: string | null;
  error_traceback: string | null;
  logs: string;
  /** What is not whole: null, or an entry for each part of which something is missing. */
  truncated: Partial<Record<TruncatedPart, Truncation>> | null;
  cause: string | null;
}

export type TruncatedPart =
  | 'stdout' | 'stderr' | 'content' | 'result_data' | 'logs' | 'error_traceback';

export interface Truncation {
  /** Bytes that came; null when nobody counted to the end. */
  total_bytes: number | null;
  kept_bytes: number;
  /** Which piece of it is missing. */
  missing: 'beginning' | 'middle' | 'end' | 'all';
}

export interface TaskResults<R = any> {
  results: TaskResult<R>[];
  /** Ids of tasks that have not ended. */
  unfinished: string[];
  /** Ids of tasks whose results did not fit into one answer: ask for these again. */
  omitted: string[];
}

export interface Device {
  device_id: string;
  role: string;
  platform: string;
  status: 'online' | 'offline';
  ip_address: string;
  last_heartbeat: string | null;
  uptime: string;
  capabilities: Record<string, unknown>;
  tags: string[];
  accepting: boolean;
}

export interface ClusterEvent {
  id: number;
  type: string;
  at: string;
  task_id?: string;
  device_id?: string;
  data: Record<string, unknown>;
}

export interface Events {
  events: ClusterEvent[];
  /** Pass it as `since` of the next request. */
  next: number;
  /** Some events between are no longer kept. */
  gap: boolean;
}

export interface EventFilters {
  since?: number;
  type?: string;
  task_id?: string;
  device_id?: string;
  signal?: AbortSignal;
}

export interface WaitOptions {
  /** Seconds to wait for the end, up to 60; from 1 on the request costs no rate limit. */
  wait?: number | string;
  signal?: AbortSignal;
}

export interface TasksCancelled {
  cancelled: string[];
  /** Have ended, or are not known. */
  not_cancelled: string[];
  cancelled_at: string;
}

export interface RequestOptions {
  query?: Record<string, unknown>;
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
  /** Doing it twice does no harm: it is tried again after 503 too. */
  repeatable?: boolean;
}

export declare class RetireClusterAPI {
  baseUrl: string;
  headers: Record<string, string>;
  /** Longest time spent on waiting out 429, 503 and a restart, in seconds. */
  retrySeconds: number;
  constructor(baseUrl: string, apiKey?: string, options?: { retrySeconds?: number });
  getClusterStatus(): Promise<Envelope>;
  submitTask(
    taskType: string,
    payload: object,
    options?: TaskOptions & { idempotencyKey?: string },
  ): Promise<Envelope<{ task_id: string; task: Task; submitted_at: string }>>;
  submitTasks(
    tasks: Submission[],
    options?: { idempotencyKey?: string },
  ): Promise<Envelope<{ task_ids: string[]; submitted_at: string }>>;
  listDevices(filters?: Record<string, unknown>): Promise<Envelope<Device[]>>;
  getDevice(deviceId: string): Promise<Envelope<Device & Record<string, unknown>>>;
  listTasks(filters?: Record<string, unknown>): Promise<Envelope<Task[]>>;
  getTask(taskId: string): Promise<Envelope<Task & Record<string, unknown>>>;
  getTaskStatus(taskId: string): Promise<Envelope<TaskState>>;
  getTaskResult<R = any>(taskId: string, options?: WaitOptions): Promise<Envelope<TaskResult<R>>>;
  getTaskResults<R = any>(
    taskIds: Iterable<string>,
    options?: WaitOptions,
  ): Promise<Envelope<TaskResults<R>>>;
  cancelTask(taskId: string): Promise<Envelope>;
  cancelTasks(taskIds: Iterable<string>): Promise<Envelope<TasksCancelled>>;
  retryTask(taskId: string): Promise<Envelope>;
  getEvents(options?: EventFilters & { wait?: number }): Promise<Envelope<Events>>;
  watch(options?: EventFilters): AsyncGenerator<ClusterEvent, void, void>;
  waitForTask<R = any>(
    taskId: string,
    options?: { timeoutSeconds?: number; signal?: AbortSignal },
  ): Promise<Envelope<TaskResult<R>>>;
  request<T = any>(method: string, path: string, options?: RequestOptions): Promise<Envelope<T>>;
}

export default RetireClusterAPI;
