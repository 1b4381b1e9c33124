// Live: video without end, which follows what is typed.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { examplesFor } from "./examples.js";
import { lock, useLive } from "./live.js";
import { Stream } from "./live-stream.js";
import { SEEDS } from "./settings.js";
import { Icon, IconButton, say } from "./ui.js";
import { duration, number, spoken, t } from "./words.js";

const LENGTHS = [5, 10, 30];
const MOST_PROMPTS = 50;
const IDLE = { phase: "idle", prompt: "", wanted: "", unused: [], dropped: 0 };

/** What is told about the stage: what is going on, or why nothing is. */
function told(seen) {
  if (seen.phase === "idle") return t("live.idle");
  if (seen.phase !== "ended") return t(`session.${seen.phase}`, { place: seen.place ?? "" });
  return seen.error || t(`ended.${seen.reason}`);
}

function Meter({ name, value }) {
  return html`<div><dt>${t(name)}</dt><dd>${value}</dd></div>`;
}

function Meters({ seen }) {
  return html`<dl class="meters">
    <${Meter} name="live.fps" value=${seen.fps == null ? "–" : number(seen.fps, 1)} />
    <${Meter} name="live.factor" value=${seen.factor == null ? "–" : `${number(seen.factor, 1)} ×`} />
    <${Meter} name="live.delay" value=${seen.delay == null ? "–" : duration(seen.delay)} />
    <${Meter} name="live.dropped" value=${number(seen.dropped)} />
  </dl>`;
}

const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "jump", ArrowDown: "grow" };
const SIGNS = { left: "←", right: "→", jump: "↑", grow: "↓" };

/** Have the arrow keys play, rather than move in the text. */
const play = () => document.querySelector(".live-pad")?.focus();

/** Keys of a world that can be played; each does what it says for as long as it is held. `ready`: nothing is being typed. */
function Pad({ actions, seen, ready, onAct }) {
  const held = useRef(null);
  useEffect(() => ready && play(), []);
  const act = (action) => {
    if (held.current === action) return;
    held.current = action;
    onAct(action);
  };
  useEffect(() => {
    const typing = (event) => /^(TEXTAREA|INPUT|SELECT)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey;
    const down = (event) => {
      const action = KEYS[event.key];
      if (!action || typing(event)) return;
      event.preventDefault();
      act(action);
    };
    const up = (event) => KEYS[event.key] && KEYS[event.key] === held.current && act(null);
    const away = () => act(null);
    document.addEventListener("keydown", down);
    document.addEventListener("keyup", up);
    addEventListener("blur", away);
    return () => {
      document.removeEventListener("keydown", down);
      document.removeEventListener("keyup", up);
      removeEventListener("blur", away);
    };
  }, []);
  const known = Object.values(KEYS).filter((action) => actions.includes(action));
  return html`<div class="live-pad" role="group" tabindex="-1" aria-label=${t("live.pad")}>
    ${known.map((action) => html`<button type="button" key=${action} class="secondary ${action} ${seen === action ? "on" : ""}" aria-label=${t(`act.${action}`)}
      onPointerDown=${() => act(action)} onPointerUp=${() => act(null)} onPointerLeave=${() => act(null)} onPointerCancel=${() => act(null)}
      onKeyDown=${(event) => (event.key === " " || event.key === "Enter") && act(action)} onKeyUp=${(event) => (event.key === " " || event.key === "Enter") && act(null)}>
      <span aria-hidden="true">${SIGNS[action]}</span> ${t(`act.${action}`)}</button>`)}
    <p class="muted">${t("live.pad.hint")}</p></div>`;
}

function Save({ busy, ready, onSave }) {
  const [seconds, setSeconds] = useState(10);
  return html`<form class="live-save" onSubmit=${(event) => (event.preventDefault(), onSave(seconds))}>
    <label for="live-seconds">${t("live.save")}</label>
    <select id="live-seconds" value=${seconds} onChange=${(event) => setSeconds(Number(event.target.value))}>
      ${LENGTHS.map((n) => html`<option key=${n} value=${n} selected=${n === seconds}>${duration(n)}</option>`)}
    </select>
    <button type="submit" class="secondary" disabled=${busy || !ready}><${Icon} name="download" />${t(busy ? "live.saving" : "live.save.do")}</button>
  </form>`;
}

/** The prompts that were shown, the newest first; each can be shown again. */
function Prompts({ shown, onPick }) {
  if (!shown.length) return null;
  return html`<section aria-labelledby="live-prompts">
    <div class="section-head"><h2 id="live-prompts">${t("live.history")}</h2></div>
    <ol class="live-prompts" reversed>
      ${shown.map((one) => html`<li key=${one.key}><span class="place">${t("time.s", { n: Math.round(one.at * 10) / 10 })}</span>
        <button type="button" class="link" title=${t("live.again", { prompt: one.prompt })} onClick=${() => onPick(one.prompt)}>${one.prompt}</button></li>`)}
    </ol>
  </section>`;
}

function Clips({ clips }) {
  if (!clips.length) return null;
  return html`<section aria-labelledby="live-clips">
    <div class="section-head"><h2 id="live-clips">${t("live.clips")}</h2></div>
    <ul class="live-clips">
      ${clips.map((one) => html`<li key=${one.video}>
        <video src=${api.content(one.video)} controls loop muted preload="metadata" aria-label=${t("live.clip", { seconds: duration(one.seconds) })}></video>
        <a class="link" href=${api.content(one.video, { download: true })} download>${t("live.clip", { seconds: duration(one.seconds) })}</a></li>`)}
    </ul>
  </section>`;
}

export function LiveView() {
  const live = useLive();
  const able = live.models.filter((model) => model.live);
  const [form, setForm] = useState({ model: "", prompt: "", seed: "" });
  const [seen, see] = useState(IDLE);
  const [shown, setShown] = useState([]);
  const [clips, setClips] = useState([]);
  const [problem, setProblem] = useState("");
  const canvas = useRef(null);
  const stream = useRef(null);
  const model = able.find((one) => one.id === form.model) || able[0];
  const running = seen.phase !== "idle" && seen.phase !== "ended";

  useEffect(() => () => stream.current?.end("stopped"), []);

  function hear(news) {
    see((before) => ({ ...before, ...news, complaint: "" }));
    if (news.phase === "live") setShown((before) => [{ prompt: news.prompt, at: news.at, key: `${news.at} ${before.length}` }, ...before].slice(0, MOST_PROMPTS));
    if (news.complaint) say(news.complaint, { kind: "bad" });
    if (news.saved) {
      setClips((before) => [news.saved, ...before]);
      say(t("said.saved", { seconds: duration(news.saved.seconds) }), { kind: "good" });
    }
  }
  function send(event, text = form.prompt.trim()) {
    event?.preventDefault();
    if (!text) {
      setProblem(t("lack.prompt"));
      document.querySelector("#live-prompt")?.focus();
      return;
    }
    if (form.seed !== "" && !(/^\d+$/.test(form.seed) && Number(form.seed) < SEEDS)) {
      setProblem(t("lack.seed"));
      return;
    }
    setProblem("");
    if (running) {
      stream.current.prompt(text);
      play();
      return;
    }
    setShown([]);
    stream.current = new Stream(canvas.current, hear, lock);
    const values = { model: model.id, prompt: text };
    if (form.seed !== "") values.seed = Number(form.seed);
    stream.current.start(values);
  }
  const pick = (text) => {
    setForm((before) => ({ ...before, prompt: text }));
    if (running) send(null, text);
    else document.querySelector("#live-prompt")?.focus();
  };

  if (!able.length) return html`<main class="layout"><p class="empty">${t(live.listed ? "live.none" : "server.starting")}</p></main>`;
  const turning = running && seen.phase === "live" && seen.wanted && seen.wanted !== seen.prompt;
  return html`<main class="layout live">
    <h1 class="unseen">${t("nav.live")}</h1>
    <div class="form-column">
      <form class="composer" aria-label=${t("live.form")} onSubmit=${send}>
        <div class="prompt-box">
          <label class="unseen" for="live-prompt">${t("prompt")}</label>
          <textarea id="live-prompt" rows="3" maxlength=${model.prompt_length} value=${form.prompt} placeholder=${t("live.hint")} aria-describedby="live-notes"
            aria-invalid=${problem ? "true" : null}
            onInput=${(event) => (setProblem(""), setForm({ ...form, prompt: event.target.value }))}
            onKeyDown=${(event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && send(event)}></textarea>
          <div id="live-notes">
            ${seen.unused?.length > 0 && html`<p class="unused">${t("unused.now")} ${seen.unused.map((word) => html`<s key=${word}>${word}</s> `)}</p>`}
          </div>
          <div class="examples" role="group" aria-label=${t("examples")}>
            ${examplesFor(model, spoken()).map((text) => html`<button type="button" key=${text} class="chip" onClick=${() => pick(text)}>${text}</button>`)}
          </div>
        </div>
        <div class="settings"><div class="pair">
          <div class="field"><label for="live-model">${t("setting.model")}</label>
            <select id="live-model" value=${model.id} disabled=${running} onChange=${(event) => setForm({ ...form, model: event.target.value })}>
              ${able.map((one) => html`<option key=${one.id} value=${one.id} selected=${one === model}>${one.id}</option>`)}</select></div>
          <div class="field"><label for="live-seed">${t("setting.seed")}</label>
            <input id="live-seed" type="text" inputmode="numeric" value=${running ? String(seen.seed ?? form.seed) : form.seed} disabled=${running} placeholder=${t("setting.seed.random")}
              onInput=${(event) => setForm({ ...form, seed: event.target.value.trim() })} /></div>
        </div></div>
        <div class="send">
          ${problem && html`<p class="problem" role="alert">${problem}</p>`}
          <button type="submit" class="primary" disabled=${live.connection === "offline"}><span>${t(running ? "live.send" : "live.start")}</span><kbd aria-hidden="true">↵</kbd></button>
          ${running && html`<button type="button" class="secondary" onClick=${() => stream.current.stop()}><${Icon} name="cancel" />${t("live.stop")}</button>`}
        </div>
      </form>
    </div>
    <div class="made-column">
      <section class="live-shown" aria-label=${t("nav.live")}>
        <div class="live-stage ${seen.phase}">
          <canvas ref=${canvas} width="96" height="96" role="img" aria-label=${seen.prompt ? t("live.stage", { prompt: seen.prompt }) : t("live.stage.blank")}></canvas>
          <div class="live-veil ${seen.phase === "live" ? "off" : ""}" role="status" aria-live="polite">
            ${seen.phase !== "live" && html`<p class="live-told">${told(seen)}</p>`}
            ${seen.phase === "idle" && html`<p>${t("live.idle.hint")}</p>`}</div>
        </div>
        <p class="live-caption" role="status" aria-live="polite">
          ${seen.prompt && html`<b>${seen.prompt}</b>`} ${turning && html`<span class="muted">→ ${seen.wanted}</span>`}</p>
        ${running && seen.actions?.length > 0 && html`<${Pad} actions=${seen.actions} seen=${seen.action} ready=${form.prompt.trim() === seen.wanted} onAct=${(action) => stream.current.act(action)} />`}
        <${Meters} seen=${seen} />
        <${Save} busy=${Boolean(seen.saving)} ready=${seen.phase === "live"} onSave=${(seconds) => stream.current.save(seconds)} />
      </section>
      <div class="live-past">
        <${Clips} clips=${clips} />
        <${Prompts} shown=${shown} onPick=${pick} />
      </div>
    </div>
  </main>`;
}
