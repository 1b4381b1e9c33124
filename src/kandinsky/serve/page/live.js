// What the server knows, kept up to date: models, jobs, and what happens to them. The queue is the server's; this is a
// view of it, which begins with a list and goes on with one stream of events for all jobs.

import { useEffect, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";

export const state = {
  connection: "starting", // starting, ready, warming, offline, locked
  models: [],
  jobs: new Map(),
  listed: false,
  more: null,
  previews: true,
};
const watchers = new Set();
let stream = null;
let lastEvent = "0";
let retry = 0;
let onNews = () => {};

function changed() {
  watchers.forEach((tell) => tell({}));
}

/** The state; the component that asks is drawn again when it changes. */
export function useLive() {
  const [, tell] = useState({});
  useEffect(() => {
    watchers.add(tell);
    return () => watchers.delete(tell);
  }, []);
  return state;
}

/** Told about each job that ends, and each that is accepted. */
export const news = (listener) => (onNews = listener);

export const isOver = (job) => job.status === "completed" || job.status === "failed" || job.status === "cancelled";

/** Jobs that run, then those that wait, in the order in which they will begin. */
export function queue() {
  const open = [...state.jobs.values()].filter((job) => !isOver(job) && job.object !== "load");
  const place = (job) => (job.status === "in_progress" ? 0 : job.queue?.place || 1e6);
  return open.sort((a, b) => place(a) - place(b) || a.created_at - b.created_at);
}

export function finished() {
  return [...state.jobs.values()].filter((job) => isOver(job) && job.object !== "load");
}

function put(job) {
  const known = state.jobs.get(job.id);
  state.jobs.set(job.id, known && !isOver(job) ? { ...known, ...job } : job);
}

const PROGRESS = { queued: 0, in_progress: 1 };
const progress = (job) => PROGRESS[job.status] ?? 2;

/** Take over a job as an answer shows it, unless the stream, which may be ahead of the answer, has told more. */
function learn(job) {
  const known = state.jobs.get(job.id);
  if (!known || progress(known) <= progress(job)) put(job);
}

/** Begin: models, the newest jobs, and the stream. */
export async function start() {
  try {
    const [models, page] = await Promise.all([api.models(), api.jobs()]);
    state.models = models.data;
    const kept = new Set(page.data.map((job) => job.id));
    const oldest = page.data.at(-1)?.created_at ?? 0;
    for (const [id, job] of state.jobs) if (!kept.has(id) && job.created_at >= oldest) state.jobs.delete(id);
    page.data.forEach(put);
    state.more = page.has_more ? page.last_id : null;
    lastEvent = page.lastEvent;
    state.listed = true;
    retry = 0;
    listen();
    await look();
  } catch (error) {
    if (error.status === 401) state.connection = "locked";
    else again();
  }
  changed();
}

export async function older() {
  const page = await api.jobs({ after: state.more });
  page.data.forEach(put);
  state.more = page.has_more ? page.last_id : null;
  changed();
}

async function look() {
  const told = await api.ready();
  state.connection = told.status === "ready" ? "ready" : "warming";
  changed();
  if (state.connection === "warming") setTimeout(() => look().catch(() => {}), 2000);
}

function again() {
  state.connection = "offline";
  stream?.close();
  stream = null;
  retry = Math.min(retry + 1, 5);
  setTimeout(start, 1000 * retry);
  changed();
}

function listen() {
  stream?.close();
  stream = api.events(lastEvent);
  stream.onerror = () => {
    if (state.connection !== "offline") again();
  };
  const kinds = ["queued", "started", "loading", "phase", "step", "preview", "decoding", "completed", "failed", "cancelled", "deleted"];
  for (const kind of kinds) stream.addEventListener(kind, (event) => happened(kind, JSON.parse(event.data)));
}

/** What an event changes of a job. */
function changes(kind, data) {
  switch (kind) {
    case "queued":
      if (data.place === undefined) return { status: "queued", phase: "" };
      return { status: "queued", queue: { place: data.place, wait_s: data.wait_s, run_s: data.run_s } };
    case "started":
      return { status: "in_progress", queue: null, phase: "", since: Date.now() };
    case "loading":
      return { phase: "loading" };
    case "phase":
      return { phase: data.phase };
    case "step":
      return { phase: "sample", step: data.step, steps: data.steps, left_s: data.eta_s, told: Date.now() };
    case "preview":
      return { preview: data.url };
    case "decoding":
      return { phase: "decode", decoded: data.frames, of: data.of, left_s: null };
    default:
      return {};
  }
}

async function happened(kind, data) {
  if (kind === "deleted") {
    state.jobs.delete(data.job);
  } else if (data.object) {
    put(data.object);
    const model = state.models.find((one) => one.id === data.object.model);
    if (model && kind === "completed") model.loaded = true;
    onNews(kind, data.object);
  } else if (state.jobs.has(data.job)) {
    put({ ...state.jobs.get(data.job), ...changes(kind, data) });
  } else {
    const job = await api.job(data.job).catch(() => null); // made elsewhere: another page, or a program
    if (job) learn(job);
  }
  changed();
}

addEventListener("offline", () => state.listed && again());

/** Take over jobs as an answer of the API shows them. */
export function adopt(jobs) {
  jobs.forEach(learn);
  changed();
}

export function forget(id) {
  state.jobs.delete(id);
  changed();
}

export function lock() {
  stream?.close();
  state.connection = "locked";
  state.jobs.clear();
  state.listed = false;
  changed();
}

export function showPreviews(shown) {
  state.previews = shown;
  changed();
}
