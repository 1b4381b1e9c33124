// A result, to look at or to hear.

import { html, useRef, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { t } from "./words.js";

export const isClip = (job) => (job.media_type || "").startsWith("video/");
export const isSound = (job) => (job.media_type || "").startsWith("audio/");
export const isHeard = (job) => job.variants.includes("audio") || job.object === "audio";
export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
export const shapeOf = (job) => (job.width && job.height ? job.width / job.height : 1);

/** The whole result, with the browser's own controls. */
export function Player({ job, own, controls = true, muted = false, onTime }) {
  const src = api.content(job.id);
  const label = job.prompt || job.model;
  if (isSound(job)) return html`<audio ref=${own} src=${src} controls aria-label=${label}></audio>`;
  if (!isClip(job)) return html`<img ref=${own} src=${src} alt=${label} />`;
  return html`<video ref=${own} src=${src} controls=${controls} muted=${muted} loop autoplay=${!calm()} playsinline aria-label=${label}
    onTimeUpdate=${onTime}></video>`;
}

/** A small view: a still that moves under the pointer, or while it has the focus. */
export function Peek({ job, always = false }) {
  const [moves, setMoves] = useState(always && !calm());
  const own = useRef(null);
  const wants = (on) => !calm() && !always && isClip(job) && setMoves(on);
  const hasStill = job.variants.includes("thumbnail");
  const still = hasStill ? api.content(job.id, { variant: "thumbnail" }) : null;
  return html`<span class="peek" ref=${own} onPointerEnter=${(event) => event.pointerType === "mouse" && wants(true)} onPointerLeave=${() => wants(false)}>
    ${still ? html`<img src=${still} alt="" loading="lazy" />` : html`<span class="wave" aria-hidden="true"><i></i><i></i><i></i><i></i><i></i></span>`}
    ${moves && isClip(job) && html`<video src=${api.content(job.id)} muted loop autoplay playsinline aria-hidden="true" tabindex="-1"></video>`}
  </span>`;
}

export const kindOf = (job) => t(`kind.${job.object === "audio" ? "sound" : job.object === "image" ? "image" : "clip"}`);
