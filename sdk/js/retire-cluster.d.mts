export interface Envelope<T = any> {
  status: 'success' | 'error';
  data?: T;
  message?: string;
  error_code?: string;
  error_details?: Record<string, unknown>;
  pagination?: Record<string, unknown>;
  timestamp: string;
  request_id: string;
}

export interface TaskOptions {
  priority?: 'low' | 'normal' | 'high' | 'urgent';
  requirements?: Record<string, unknown>;
  metadata?: Record<string, unknown>;
  idempotencyKey?: string;
}

export interface ClusterEvent {
  id: number;
  type: string;
  at: string;
  task_id?: string;
  device_id?: string;
  data: Record<string, unknown>;
}

export interface EventFilters {
  since?: number;
  type?: string;
  task_id?: string;
  device_id?: string;
  signal?: AbortSignal;
}

export declare class RetireClusterAPI {
  baseUrl: string;
  headers: Record<string, string>;
  retrySeconds: number;
  constructor(baseUrl: string, apiKey?: string, options?: { retrySeconds?: number });
  getClusterStatus(): Promise<Envelope>;
  submitTask(taskType: string, payload: object, options?: TaskOptions): Promise<Envelope>;
  submitTasks(tasks: object[], options?: { idempotencyKey?: string }): Promise<Envelope>;
  listDevices(filters?: Record<string, unknown>): Promise<Envelope>;
  getDevice(deviceId: string): Promise<Envelope>;
  listTasks(filters?: Record<string, unknown>): Promise<Envelope>;
  getTask(taskId: string): Promise<Envelope>;
  getTaskStatus(taskId: string): Promise<Envelope>;
  getTaskResult(taskId: string): Promise<Envelope>;
  cancelTask(taskId: string): Promise<Envelope>;
  retryTask(taskId: string): Promise<Envelope>;
  getEvents(options?: EventFilters & { wait?: number }): Promise<Envelope<{ events: ClusterEvent[]; next: number }>>;
  watch(options?: EventFilters): AsyncGenerator<ClusterEvent>;
  waitForTask(
    taskId: string,
    options?: { timeoutSeconds?: number; signal?: AbortSignal },
  ): Promise<Envelope>;
  request(method: string, path: string, options?: object): Promise<Envelope>;
}

export default RetireClusterAPI;
