// Everything that was made, the newest first.

import { html, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { finished, forget, older, queue, state, useLive } from "./live.js";
import { isHeard, Peek, shapeOf } from "./media.js";
import { family } from "./settings.js";
import { complain, Icon, IconButton, memo, Segments } from "./ui.js";
import { day, duration, spoken, t } from "./words.js";

const KINDS = { all: () => true, clip: (job) => job.object === "video", image: (job) => job.object === "image", sound: (job) => job.object === "audio" };

function about(job) {
  const parts = [job.model];
  if (job.object !== "image" && job.seconds) parts.push(duration(Number(job.seconds)));
  if (job.seed != null) parts.push(t("seed.n", { seed: String(job.seed) }));
  return parts.join(" · ");
}

export function discard(job) {
  return api.remove(job.id).then(() => forget(job.id), (error) => (error.status === 404 ? forget(job.id) : complain(error)));
}

const Card = memo(function card({ job, picking, picked, onOpen, onReuse }) {
  if (job.status !== "completed") {
    return html`<li class="card bad">
      <div class="card-media"><p class="card-state">${t(`status.${job.status}`)}</p>
        ${job.error && html`<p class="card-error">${job.error.message}</p>`}
        <div class="card-acts"><button type="button" class="quiet" onClick=${() => onReuse(job, "all")}><${Icon} name="reuse" />${t("reuse.all")}</button>
          <${IconButton} name="trash" label=${t("remove.one", { prompt: job.prompt || job.model })} onClick=${() => discard(job)} /></div></div>
      <p class="card-prompt">${job.prompt || t("no.prompt")}</p><p class="card-about">${about(job)}</p>
    </li>`;
  }
  return html`<li class="card ${picked ? "picked" : ""}">
    <button type="button" class="card-open" data-card=${job.id}
      aria-pressed=${picking ? Boolean(picked) : null} onClick=${() => onOpen(job)}>
      ${picking && html`<span class="unseen">${t("compare.pick")}</span>`}
      <span class="card-media" ref=${(own) => own?.style.setProperty("--shape", shapeOf(job))}>
        <${Peek} job=${job} />
        ${isHeard(job) && html`<span class="badge"><${Icon} name="sound" /></span>`}
        ${picked && html`<span class="badge letter">${picked}</span>`}
      </span>
      <span class="card-prompt">${job.prompt || t("no.prompt")}</span>
      <span class="card-about">${about(job)}</span>
    </button>
  </li>`;
});

/** Arrow keys go from card to card, as they lie on the screen. */
function walk(event) {
  const cards = [...event.currentTarget.querySelectorAll("[data-card]")];
  const here = cards.indexOf(document.activeElement);
  if (here < 0) return;
  const top = (card) => Math.round(card.getBoundingClientRect().top);
  const row = cards.filter((card) => top(card) === top(cards[here])).length || 1;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row }[event.key];
  if (!step || !cards[here + step]) return;
  event.preventDefault();
  cards[here + step].focus();
}

function Empty({ onExample }) {
  return html`<div class="empty">
    <svg viewBox="0 0 240 150" aria-hidden="true">
      <circle cx="86" cy="72" r="52" class="s1" /><circle cx="86" cy="72" r="30" class="s2" /><path d="M118 132 160 46l42 86z" class="s3" />
      <path d="M22 128 190 18l5 7L27 135z" class="s4" /><path d="M176 30h44M184 40h36M192 50h28" class="s5" /><circle cx="40" cy="34" r="9" class="s6" />
      <path d="M206 92a18 18 0 1 1-18-18" class="s5" />
    </svg>
    <h2>${t("empty")}</h2>
    <p>${t("empty.hint")}</p>
    <button type="button" class="secondary" onClick=${onExample}>${t("empty.try")}</button>
  </div>`;
}

export function Gallery({ picks, setPicks, onOpen, onReuse, onExample, onCompare }) {
  useLive();
  const [kind, setKind] = useState("all");
  const [loading, setLoading] = useState(false);
  const made = finished().filter((job) => job.status !== "cancelled").sort((a, b) => (b.completed_at || b.created_at) - (a.completed_at || a.created_at) || (a.id < b.id ? 1 : -1));
  const shown = made.filter(KINDS[kind]);
  const picking = picks !== null;
  const open = (job) => {
    if (!picking) return onOpen(job);
    if (picks.includes(job.id)) return setPicks(picks.filter((id) => id !== job.id));
    const next = [...picks, job.id].slice(-2);
    setPicks(next);
    if (next.length === 2) onCompare(next);
    return undefined;
  };
  const days = [];
  for (const job of shown) {
    const name = day(job.created_at);
    if (days.at(-1)?.name === name) days.at(-1).jobs.push(job);
    else days.push({ name, jobs: [job] });
  }
  const more = () => (setLoading(true), older().catch(complain).finally(() => setLoading(false)));
  if (!state.listed) return html`<div class="cards bones" aria-hidden="true">${Array.from({ length: 8 }, (_, i) => html`<div class="bone tall" key=${i}></div>`)}</div>`;
  if (!made.length) return queue().length ? null : html`<${Empty} onExample=${onExample} />`;
  return html`<section class="gallery" aria-label=${t("gallery")} onKeyDown=${walk}>
    <header class="section-head">
      <h2>${t("gallery")}</h2>
      <div class="actions">
        <${Segments} name="kind" label=${t("gallery.kind")} value=${kind} onPick=${setKind}
          options=${Object.keys(KINDS).filter((one) => one === "all" || made.some(KINDS[one])).map((one) => [one, t(`gallery.${one}`)])} />
        <button type="button" class="quiet" aria-pressed=${picking} onClick=${() => setPicks(picking ? null : [])}>
          <${Icon} name="compare" /><span>${t("compare")}</span></button>
      </div>
    </header>
    ${picking && html`<p class="tip" role="status">${t("compare.how", { n: 2 - picks.length })}</p>`}
    ${days.map(
      ({ name, jobs }) => html`<div key=${name}><h3 class="day">${name}</h3>
        <ul class="cards">${jobs.map(
          (job) => html`<${Card} key=${job.id} job=${job} picking=${picking} onReuse=${onReuse} tongue=${spoken()}
            picked=${picking && picks.includes(job.id) ? "AB"[picks.indexOf(job.id)] : ""} onOpen=${open} />`,
        )}</ul></div>`,
    )}
    ${state.more && html`<button type="button" class="secondary wide" disabled=${loading} onClick=${more}>${t("gallery.older")}</button>`}
  </section>`;
}

export const siblings = (job) => finished().filter((one) => family(one) === family(job)).length;
