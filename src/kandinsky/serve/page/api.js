// The public HTTP API, and nothing else: every path here is in /openapi.json, which a test checks.

/** An answer that is an error, in the server's envelope. */
export class ApiProblem extends Error {
  constructor(status, told, retryAfter) {
    super(told.message);
    this.status = status;
    this.code = told.code || "";
    this.param = told.param || "";
    this.retryAfter = retryAfter;
  }
}

/** The server could not be reached at all. */
export class Unreachable extends Error {}

async function ask(method, path, { json, form, text, headers = {} } = {}) {
  const body = form || text || (json === undefined ? undefined : JSON.stringify(json));
  const given = json === undefined ? headers : { "content-type": "application/json", ...headers };
  let answer;
  try {
    answer = await fetch(path, { method, body, headers: given, credentials: "same-origin" });
  } catch (error) {
    throw new Unreachable(String(error));
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  const problem = told.error || { message: `${answer.status} ${answer.statusText}` };
  throw new ApiProblem(answer.status, problem, Number(answer.headers.get("retry-after")) || 0);
}

const read = async (...of) => (await ask(...of)).json();
const named = (id) => encodeURIComponent(id);

export const models = () => read("GET", "/v1/models");
export const job = (id) => read("GET", `/v1/jobs/${named(id)}`);
export const cancel = (id) => read("POST", `/v1/jobs/${named(id)}/cancel`, { json: {} });
export const cancelMany = (which) => read("POST", `/v1/jobs/cancel?which=${which}`, { json: {} });
export const remove = (id) => read("DELETE", `/v1/jobs/${named(id)}`);
export const logIn = (key) => ask("POST", "/v1/session", { json: { key } });
export const logOut = () => ask("DELETE", "/v1/session");

export const comparisonSets = () => read("GET", "/v1/comparisons/sets");
export const comparisons = () => read("GET", "/v1/comparisons");
export const comparison = (id) => read("GET", `/v1/comparisons/${named(id)}`);
export const createComparison = (json) => read("POST", "/v1/comparisons", { json });
export const nextPair = (id, annotator) => read("POST", `/v1/comparisons/${named(id)}/next`, { json: { annotator } });
export const answerPair = (id, json) => read("POST", `/v1/comparisons/${named(id)}/answers`, { json });
export const comparisonReport = (id) => read("GET", `/v1/comparisons/${named(id)}/report`);
/** Where the votes of a study are, a JSON object a line. */
export const votesOf = (id) => `/v1/comparisons/${named(id)}/votes`;
export const importVotes = (id, text) => read("POST", votesOf(id), { text, headers: { "content-type": "application/x-ndjson" } });

/** One page of jobs, the newest first, and the event from which the stream goes on. */
export async function jobs({ after, limit = 60 } = {}) {
  const answer = await ask("GET", `/v1/jobs?limit=${limit}${after ? `&after=${named(after)}` : ""}`);
  return { ...(await answer.json()), lastEvent: answer.headers.get("x-last-event-id") || "0" };
}

/** Whether a worker takes jobs; the answer has the same shape when it is 503. */
export async function ready() {
  try {
    return await (await fetch("/ready")).json();
  } catch {
    throw new Unreachable("ready");
  }
}

/** A live session; what is said on it is in the guide to the API. */
export const live = () => new WebSocket(Object.assign(new URL("/v1/live", location.href), { protocol: location.protocol.replace("http", "ws") }));

export const events = (after) => new EventSource(`/v1/events?after=${after}`);

/** The address of a result, or of another view of it. */
export function content(id, { variant, download } = {}) {
  const query = [variant && `variant=${variant}`, download && "download=true"].filter(Boolean).join("&");
  return `/v1/jobs/${named(id)}/content${query ? `?${query}` : ""}`;
}

export const preview = (id, step) => `/v1/jobs/${named(id)}/preview?step=${step}`;

/** The image or clip that a job was given, as a file. */
export async function input(id) {
  const blob = await (await ask("GET", content(id, { variant: "input" }))).blob();
  return new File([blob], blob.type.startsWith("image/") ? "image.png" : "clip.mp4", { type: blob.type });
}

/** The recipe in a file that this program wrote; null if there is none. */
export async function recipe(file) {
  const form = new FormData();
  form.append("file", file);
  try {
    return (await read("POST", "/v1/recipe", { form })).recipe;
  } catch (error) {
    if (error instanceof ApiProblem && error.status === 400) return null;
    throw error;
  }
}

const CREATE = {
  clip: "/v1/videos",
  extend: "/v1/videos/extensions",
  image: "/v1/images/generations",
  edit: "/v1/images/edits",
  sound: "/v1/audio",
};

/**
 * Queue work.
 * @param {"clip"|"extend"|"image"|"edit"|"sound"} what
 * @param {object} values Fields of the API.
 * @param {object} files File, or `{id}` of a job, by field.
 * @returns {Promise<object[]>} The new jobs.
 */
export async function create(what, values, files = {}) {
  const headers = { "idempotency-key": crypto.randomUUID?.() || `${Date.now()}-${Math.random()}` };
  if (what === "image" || what === "edit") headers.prefer = "respond-async";
  const uploads = new Map(); // by the name of their field
  const reference = (value, name) => {
    if (value instanceof Blob) return uploads.set(name, value), name;
    return value?.id ? { id: value.id } : value;
  };
  const fields = { ...values };
  if (fields.conditions) {
    fields.conditions = fields.conditions.map((one, i) =>
      Object.fromEntries(Object.entries(one).map(([key, value]) => [key, reference(value, `condition-${i + 1}-${key}`)])));
  }
  for (const [name, file] of Object.entries(files)) {
    const sent = reference(file, name);
    if (!uploads.has(name)) fields[name] = sent;
  }
  let body = { json: fields };
  if (uploads.size) {
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) {
      const isPlain = Array.isArray(value) && value.every((one) => typeof one !== "object");
      if (isPlain) value.forEach((one) => form.append(`${name}[]`, one));
      else if (Array.isArray(value)) form.append(name, JSON.stringify(value));
      else if (typeof value === "object") form.append(`${name}[id]`, value.id);
      else form.append(name, String(value));
    }
    for (const [name, file] of uploads) form.append(name, file, file.name || name);
    body = { form };
  }
  const made = await read("POST", CREATE[what], { ...body, headers });
  return made.object === "list" ? made.data : [made];
}
