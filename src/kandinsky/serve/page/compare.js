// Two results: side by side, or one over the other with a slider. Clips run in step.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { isClip, Player, shapeOf } from "./media.js";
import { Dialog, Icon, Segments } from "./ui.js";
import { t } from "./words.js";
import { facts } from "./viewer.js";

/** The second clip follows the first one's time; tells whether they run. */
function useStep(first, second, key) {
  const [runs, setRuns] = useState(false);
  useEffect(() => {
    const [a, b] = [first.current, second.current];
    setRuns(a instanceof HTMLVideoElement && !a.paused);
    if (!(a instanceof HTMLVideoElement) || !(b instanceof HTMLVideoElement)) return undefined;
    const follow = () => {
      if (b.duration && Math.abs(b.currentTime - (a.currentTime % b.duration)) > 0.12) b.currentTime = a.currentTime % b.duration;
    };
    const play = () => (setRuns(true), b.play().catch(() => {}));
    const pause = () => (setRuns(false), b.pause());
    a.addEventListener("timeupdate", follow);
    a.addEventListener("seeked", follow);
    a.addEventListener("play", play);
    a.addEventListener("pause", pause);
    return () => {
      a.removeEventListener("timeupdate", follow);
      a.removeEventListener("seeked", follow);
      a.removeEventListener("play", play);
      a.removeEventListener("pause", pause);
    };
  }, [key]);
  return runs;
}

export function Compare({ a, b, onClose }) {
  const [how, setHow] = useState("slider");
  const [split, setSplit] = useState(50);
  const [first, second, stage] = [useRef(null), useRef(null), useRef(null)];
  const runs = useStep(first, second, `${how} ${a.id} ${b.id}`);
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = stage.current.getBoundingClientRect();
    setSplit(Math.round(Math.max(0, Math.min(100, ((event.clientX - box.left) / box.width) * 100))));
  };
  const [mine, other] = [a, b].map((job) => new Map([[t("prompt"), job.prompt], ...facts(job)]));
  const differs = (name) => mine.get(name) !== other.get(name);
  // what differs comes first, since the rest is often below the edge of the screen
  const names = [...new Set([...mine.keys(), ...other.keys()])].sort((one, next) => differs(next) - differs(one));
  const toggle = () => (first.current?.paused ? first.current.play() : first.current?.pause());
  return html`<${Dialog} label=${t("compare")} kind="compare" onClose=${onClose}>
    <header class="dialog-head"><h2>${t("compare")}</h2>
      <${Segments} name="how" label=${t("compare.how.label")} value=${how} onPick=${setHow}
        options=${[["slider", t("compare.slider")], ["beside", t("compare.side")]]} /></header>
    <div class="versus ${how}" ref=${(own) => {
      stage.current = own;
      own?.style.setProperty("--split", `${split}%`);
      own?.style.setProperty("--shape", shapeOf(a));
    }} onPointerDown=${how === "slider" ? drag : null} onPointerMove=${how === "slider" ? drag : null}>
      <div class="versus-one"><${Player} job=${a} own=${first} controls=${false} muted /><span class="letter">A</span></div>
      <div class="versus-two"><${Player} job=${b} own=${second} controls=${false} muted /><span class="letter">B</span></div>
      ${how === "slider" && html`<i class="handle" aria-hidden="true"></i>`}
    </div>
    <div class="versus-controls">
      ${isClip(a) && html`<button type="button" class="secondary" onClick=${toggle}><${Icon} name=${runs ? "pause" : "play"} />${t(runs ? "pause" : "play")}</button>`}
      ${how === "slider" && html`<label class="grow"><span class="unseen">${t("compare.split")}</span>
        <input type="range" min="0" max="100" value=${split} onInput=${(event) => setSplit(Number(event.target.value))} /></label>`}
    </div>
    <table class="differences"><thead><tr><th scope="col">${t("setting")}</th><th scope="col">A</th><th scope="col">B</th></tr></thead>
      <tbody>
        ${names.map((name) => html`<tr key=${name} class=${differs(name) ? "differs" : ""}>
          <th scope="row">${name}</th><td>${mine.get(name) ?? "–"}</td><td>${other.get(name) ?? "–"}</td></tr>`)}
      </tbody></table>
  <//>`;
}
