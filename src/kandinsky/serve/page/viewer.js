// One result with its settings: look, listen, use again, download.

import { html, useLayoutEffect, useRef, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { discard, siblings } from "./gallery.js";
import { adopt, state } from "./live.js";
import { isClip, isHeard, isSound, kindOf, Player, shapeOf } from "./media.js";
import { fitting } from "./guides.js";
import { modelsOf, USUALLY_LARGER } from "./settings.js";
import { complain, Dialog, Icon, IconButton, say } from "./ui.js";
import { bytes, clock, day, duration, has, t } from "./words.js";

const SHOWN = ["steps", "guidance", "shift", "negative_prompt", "cache", "lora", "attention", "format", "expand", "upscale", "upscale_strength"];

const canGuide = (kind) => modelsOf("clip").some((model) => fitting([{ kind }], model).length > 0);

/** The prompt, with the words that had no effect struck out. */
function Understood({ job }) {
  const unused = new Set((job.recipe?.unused_words || []).map((word) => word.toLowerCase()));
  const expanded = job.recipe?.expanded_prompt;
  const pieces = (job.prompt || "").split(/([\p{L}\p{N}'-]+)/u);
  return html`<div class="understood">
    <p class="viewer-prompt">${job.prompt ? pieces.map((one) => (unused.has(one.toLowerCase()) ? html`<s>${one}</s>` : one)) : html`<span class="muted">${t("no.prompt")}</span>`}</p>
    ${unused.size > 0 && html`<p class="unused">${t("unused.n", { n: unused.size })}</p>`}
    ${expanded && html`<details class="fold"><summary><span>${t("expanded")}</span><${Icon} name="more" /></summary><p>${expanded}</p></details>`}
  </div>`;
}

/** Settings of a job as rows of name and value. */
export function facts(job) {
  const recipe = job.recipe || {};
  const rows = [["model", job.model]];
  if (job.size) rows.push(["size", job.size.replace("x", " × ")]);
  if (job.seconds && job.object !== "image") rows.push(["seconds", `${duration(Number(job.seconds))}${job.fps && job.frames ? ` · ${t("frames.n", { n: job.frames })}` : ""}`]);
  if (job.seed != null) rows.push(["seed", String(job.seed)]);
  const later = recipe.prompt_at || job.request?.prompt_at || [];
  if (later.length) rows.push(["prompt_at", later.map((one) => `${typeof one.at === "number" ? duration(one.at) : one.at}: ${one.prompt}`).join(" · ")]);
  for (const name of SHOWN) {
    const value = job.request?.[name] ?? recipe[name];
    if (value === undefined || value === null || value === "" || typeof value === "object" && !Array.isArray(value)) continue;
    rows.push([name, Array.isArray(value) ? value.join(", ") : String(value)]);
  }
  return rows.map(([name, value]) => [has(`setting.${name}`) ? t(`setting.${name}`) : name, value]);
}

export function Viewer({ job, order, onClose, onOpen, onReuse, onUse, onCompare, onGrid }) {
  const media = useRef(null);
  const [asked, ask] = useState(false);
  const at = order.indexOf(job.id);
  const go = (step) => order[at + step] && onOpen(order[at + step]);
  const sounds = modelsOf("sound");
  const heard = isHeard(job);
  const enlarging = modelsOf("clip").filter((model) => model.upscales);
  const enlarges = enlarging.find((model) => model.id === job.model) || enlarging[0];
  const larger = () => derive("clip", { model: enlarges.id, upscale: USUALLY_LARGER });
  const addSound = () => derive("sound", { model: sounds[0].id });
  async function derive(call, values) {
    try {
      adopt(await api.create(call, { ...values, ...(job.prompt ? { prompt: job.prompt } : {}) }, { video: { id: job.id } }));
      say(t("said.queued", { n: 1 }), { kind: "good" });
      onClose();
    } catch (error) {
      complain(error);
    }
  }
  useLayoutEffect(() => {
    const press = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT|VIDEO|AUDIO)$/.test(event.target.tagName)) return;
      const act = { ArrowLeft: () => go(-1), ArrowRight: () => go(1), r: () => onReuse(job, "all"), v: () => onReuse(job, "seedless"), s: () => onReuse(job, "seed"), c: () => onCompare(job) }[event.key];
      if (act) (event.preventDefault(), act());
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  });
  return html`<${Dialog} label=${t("viewer", { prompt: job.prompt || job.model })} kind="viewer" onClose=${onClose}>
    <div class="stage" ref=${(own) => own?.style.setProperty("--shape", shapeOf(job))}>
      ${at > 0 && html`<${IconButton} name="left" label=${t("newer")} class="icon-button turn before" onClick=${() => go(-1)} />`}
      <${Player} key=${job.id} job=${job} own=${media} muted=${!heard} />
      ${at >= 0 && at < order.length - 1 && html`<${IconButton} name="right" label=${t("older")} class="icon-button turn after" onClick=${() => go(1)} />`}
    </div>
    <div class="side">
      <p class="eyebrow">${kindOf(job)} · ${day(job.created_at)}, ${clock(job.completed_at || job.created_at)}</p>
      <${Understood} job=${job} />
      <div class="reuse" role="group" aria-label=${t("reuse")}>
        <button type="button" class="secondary" onClick=${() => onReuse(job, "all")}><${Icon} name="reuse" />${t("reuse.all")}</button>
        <button type="button" class="secondary" onClick=${() => onReuse(job, "seedless")}><${Icon} name="dice" />${t("reuse.seedless")}</button>
        <button type="button" class="secondary" onClick=${() => onReuse(job, "seed")}><${Icon} name="seed" />${t("reuse.seed")}</button>
      </div>
      <dl class="facts">${facts(job).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
        ${job.inference_time_s != null && html`<div><dt>${t("fact.took")}</dt><dd>${duration(job.inference_time_s)}</dd></div>`}
        ${job.bytes && html`<div><dt>${t("fact.file")}</dt><dd>${bytes(job.bytes)}</dd></div>`}
      </dl>
      <div class="acts">
        <a class="primary small" href=${api.content(job.id, { download: true })} download><${Icon} name="download" />${t("download")}</a>
        ${!isSound(job) && html`<button type="button" class="quiet" onClick=${() => onCompare(job)}><${Icon} name="compare" />${t("compare")}</button>`}
        ${siblings(job) > 1 && html`<button type="button" class="quiet" onClick=${() => onGrid(job)}><${Icon} name="grid" />${t("grid")}</button>`}
        ${isClip(job) && !heard && sounds.length > 0 && html`<button type="button" class="quiet" onClick=${addSound}><${Icon} name="sound" />${t("sound.add")}</button>`}
        ${isClip(job) && enlarges && html`<button type="button" class="quiet" onClick=${larger}><${Icon} name="larger" />${t("larger.make")}</button>`}
        ${job.object === "image" && state.models.some((model) => model.image !== "none") &&
        html`<button type="button" class="quiet" onClick=${() => onUse(job, "image")}><${Icon} name="image" />${t("use.image")}</button>`}
        ${[["source", "change"], ["join", "join"]].map(([kind, icon]) => isClip(job) && canGuide(kind) &&
        html`<button type="button" key=${kind} class="quiet" onClick=${() => onUse(job, kind)}><${Icon} name=${icon} />${t(`use.${kind}`)}</button>`)}
        ${isClip(job) && modelsOf("extend").length > 0 && html`<button type="button" class="quiet" onClick=${() => onUse(job, "extend")}><${Icon} name="extend" />${t("mode.extend")}</button>`}
        ${asked
          ? html`<button type="button" class="quiet danger" onClick=${() => discard(job).then(onClose)}><${Icon} name="trash" />${t("remove.sure")}</button>`
          : html`<button type="button" class="quiet" onClick=${() => ask(true)}><${Icon} name="trash" />${t("remove")}</button>`}
      </div>
    </div>
  <//>`;
}
