// What the server is doing, and what waits: phases as they are, time left as it was measured.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { adopt, queue, showPreviews, state, useLive } from "./live.js";
import { complain, Icon, IconButton } from "./ui.js";
import { duration, keep, t } from "./words.js";

const PHASES = ["loading", "encode", "sample", "decode", "write"];
const SAME = { condition: "encode" };

/** Seconds, so that a time that was told goes down between two steps. */
function useTicks(isOn) {
  const [, tick] = useState(0);
  useEffect(() => {
    if (!isOn) return undefined;
    const timer = setInterval(() => tick((n) => n + 1), 1000);
    return () => clearInterval(timer);
  }, [isOn]);
}

function timeLeft(job) {
  if (job.phase !== "sample" || job.left_s == null) return "";
  const left = job.left_s - (Date.now() - job.told) / 1000;
  return left < 1 ? t("left.moment") : t("left", { time: duration(left) });
}

function told(job) {
  if (job.cancelling) return t("phase.cancelling");
  if (job.phase === "sample" && job.steps) return t("phase.step", { step: job.step, steps: job.steps });
  if (job.phase === "decode" && job.of) return t("phase.frames", { frames: job.decoded, of: job.of });
  return t(`phase.${SAME[job.phase] || job.phase || "starting"}`);
}

/** 0 to 1; null while nothing can be measured. */
function share(job) {
  if (job.phase === "sample" && job.steps) return job.step / job.steps;
  if (job.phase === "decode" && job.of) return job.decoded / job.of;
  return null;
}

export function cancel(job) {
  api.cancel(job.id).then((one) => adopt([one]), complain);
}

function Running({ job, previews }) {
  useTicks(job.phase === "sample");
  const [broken, setBroken] = useState(null);
  const done = share(job);
  const now = PHASES.indexOf(SAME[job.phase] || job.phase);
  const url = job.preview || (job.step ? api.preview(job.id, job.step) : null);
  const [width, height] = (job.size || "1x1").split("x").map(Number);
  const percent = done === null ? null : Math.round(done * 100);
  return html`<li class="running" data-job=${job.id}>
    ${previews &&
    html`<div class="preview ${url && broken !== url ? "" : "blank"}" ref=${(own) => own?.style.setProperty("--shape", width / height || 1)}>
      ${url && broken !== url && html`<img src=${url} alt=${t("preview.of", { prompt: job.prompt || job.model })} onError=${() => setBroken(url)} />`}
    </div>`}
    <div class="running-text">
      <p class="running-prompt">${job.prompt || html`<span class="muted">${t("no.prompt")}</span>`}</p>
      <p class="running-phase"><span>${told(job)}</span><span class="time-left">${timeLeft(job)}</span></p>
      <div class="bar ${done === null ? "unsure" : ""}" role="progressbar" aria-label=${told(job)} aria-valuemin="0" aria-valuemax="100"
        aria-valuenow=${percent}><i ref=${(own) => own?.style.setProperty("--done", done ?? 0)}></i></div>
      <ol class="phases" aria-hidden="true">
        ${PHASES.map((name, i) => html`<li key=${name} class=${i < now ? "past" : i === now ? "now" : ""}>${t(`stage.${name}`)}</li>`)}
      </ol>
    </div>
    <${IconButton} name="close" label=${t("cancel.one", { prompt: job.prompt || job.model })} disabled=${job.cancelling} onClick=${() => cancel(job)} />
  </li>`;
}

/** By how much the server's estimates, made of usual times, are too short for what runs now. */
function delay(running, waiting) {
  const left = running.map((job) => (job.left_s == null ? 0 : job.left_s - (Date.now() - job.told) / 1000));
  return Math.max(0, Math.min(...left) - (waiting[0]?.queue?.wait_s ?? Infinity));
}

function Waiting({ job, place, later }) {
  const wait = job.queue?.wait_s && job.queue.wait_s + later;
  return html`<li class="waiting" data-job=${job.id}>
    <span class="place">${place}</span>
    <span class="waiting-prompt">${job.prompt || t("no.prompt")}</span>
    <span class="muted waiting-time">${wait ? t("starts", { time: duration(wait) }) : job.model}</span>
    <${IconButton} name="close" label=${t("cancel.one", { prompt: job.prompt || job.model })} onClick=${() => cancel(job)} />
  </li>`;
}

const MOST_SHOWN = 6;

export function Queue() {
  useLive();
  const [all, showAll] = useState(false);
  const jobs = queue();
  const running = jobs.filter((job) => job.status === "in_progress");
  const waiting = jobs.filter((job) => job.status !== "in_progress");
  const many = (which) => api.cancelMany(which).then((page) => adopt(page.data), complain);
  const later = running.length ? delay(running, waiting) : 0;
  const shown = all ? waiting : waiting.slice(0, MOST_SHOWN);
  const toggle = () => (showPreviews(!state.previews), keep("kandinsky.previews", state.previews ? "on" : "off"));
  if (!jobs.length) return null;
  return html`<section class="queue" aria-label=${t("queue")}>
    <header class="section-head">
      <h2>${t("queue")} <span class="count">${jobs.length}</span></h2>
      <div class="actions">
        <button type="button" class="quiet" aria-pressed=${state.previews} onClick=${toggle}>
          <${Icon} name=${state.previews ? "eye" : "eyeOff"} /><span>${t("previews")}</span></button>
        ${waiting.length > 0 && html`<button type="button" class="quiet" onClick=${() => many("queued")}>${t("cancel.waiting")}</button>`}
        ${jobs.length > 1 && html`<button type="button" class="quiet danger" onClick=${() => many("all")}>${t("cancel.all")}</button>`}
      </div>
    </header>
    <ul class="running-list">${running.map((job) => html`<${Running} key=${job.id} job=${job} previews=${state.previews} />`)}</ul>
    ${waiting.length > 0 &&
    html`<ol class="waiting-list">${shown.map((job, i) => html`<${Waiting} key=${job.id} job=${job} later=${later} place=${job.queue?.place || i + 1} />`)}</ol>`}
    ${waiting.length > shown.length &&
    html`<button type="button" class="link" onClick=${() => showAll(true)}>${t("queue.more", { n: waiting.length - shown.length })}</button>`}
  </section>`;
}
