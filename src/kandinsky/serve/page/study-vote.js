// Comparing: two clips, some questions, and no word about whose they are. Everything can be done with the keys.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { calm } from "./media.js";
import { complain } from "./ui.js";
import { keep, read, spoken, t } from "./words.js";

const KEPT = "kandinsky.annotator";

function Enter({ study, onName }) {
  const [name, setName] = useState(read(KEPT) || "");
  const enter = (event) => (event.preventDefault(), keep(KEPT, name.trim()), onName(name.trim()));
  return html`<form class="card study-enter" onSubmit=${enter}>
    <h1>${study.name}</h1>
    <p class="muted">${t("study.blind")}</p>
    <div class="field"><label for="annotator">${t("study.you")}</label>
      <input id="annotator" type="text" required maxlength="60" autocomplete="nickname" autofocus value=${name} onInput=${(event) => setName(event.target.value)} /></div>
    <button type="submit" class="primary" disabled=${!name.trim()}>${t("study.begin")}</button>
  </form>`;
}

/** Both clips begin again, at the same time. */
function again(...clips) {
  for (const clip of clips) if (clip) (clip.currentTime = 0), clip.play().catch(() => {});
}

function Question({ question, answer, current, number, onPick, onFocus }) {
  const id = `question-${number}`;
  return html`<div role="group" aria-labelledby=${id} class="question ${current ? "current" : ""}" onFocusIn=${onFocus} data-question=${question.name}>
    <p id=${id}>${question.text[spoken()] || question.text.en}</p>
    <div class="choices">
      ${question.choices.map((choice, i) => html`<button type="button" key=${choice} class="choice" aria-pressed=${answer === choice} onClick=${() => onPick(choice)}>
        <kbd aria-hidden="true">${i + 1}</kbd><span>${t(`study.choice.${choice}`)}</span></button>`)}
      ${question.skippable && html`<button type="button" class="choice" aria-pressed=${answer === null} onClick=${() => onPick(null)}>
        <kbd aria-hidden="true">0</kbd><span>${t("study.skip")}</span></button>`}
    </div>
  </div>`;
}

function PairView({ pair, given, canBack, onBack, onAnswer }) {
  const [answers, setAnswers] = useState(given || {});
  const [current, setCurrent] = useState(0);
  const [busy, setBusy] = useState(false);
  const [left, right, begun] = [useRef(null), useRef(null), useRef(performance.now())];
  const questions = pair.questions;
  const open = questions.filter((one) => answers[one.name] === undefined).length;

  function pick(i, choice) {
    const next = { ...answers, [questions[i].name]: choice };
    setAnswers(next);
    const following = questions.findIndex((one, k) => k > i && next[one.name] === undefined);
    const first = questions.findIndex((one) => next[one.name] === undefined);
    setCurrent(following >= 0 ? following : first >= 0 ? first : i);
  }
  async function send() {
    if (open || busy) return;
    setBusy(true);
    await onAnswer(answers, Math.round((performance.now() - begun.current) / 100) / 10);
    setBusy(false);
  }
  useLayoutEffect(() => {
    const press = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const here = questions[current];
      const digit = /^[0-9]$/.test(event.key) ? Number(event.key) : null;
      const ends = { ArrowLeft: here.choices[0], ArrowRight: here.choices.at(-1) };
      if (event.key === "Enter" && !open) (event.preventDefault(), send());
      else if (digit && here.choices[digit - 1]) pick(current, here.choices[digit - 1]);
      else if (digit === 0 && here.skippable) pick(current, null);
      else if (ends[event.key]) (event.preventDefault(), pick(current, ends[event.key]));
      else if (event.key === "ArrowDown") (event.preventDefault(), setCurrent(Math.min(questions.length - 1, current + 1)));
      else if (event.key === "ArrowUp") (event.preventDefault(), setCurrent(Math.max(0, current - 1)));
      else if (event.key === "Backspace" && canBack) (event.preventDefault(), onBack());
      else if (event.key.toLowerCase() === "r") again(left.current, right.current);
      else if (event.key === " " && event.target.tagName !== "BUTTON") {
        event.preventDefault();
        const stop = !left.current?.paused;
        for (const clip of [left.current, right.current]) if (clip) stop ? clip.pause() : clip.play().catch(() => {});
      }
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  });
  useEffect(() => document.querySelector(".question.current")?.scrollIntoView({ block: "nearest" }), [current]);
  const clip = (own, src, label) => html`<figure><video ref=${own} src=${src} muted loop playsinline autoplay=${!calm()} aria-label=${label}></video><figcaption>${label}</figcaption></figure>`;
  return html`
    <progress class="study-progress" max=${pair.of} value=${pair.number - 1} aria-label=${t("study.progress")}></progress>
    <p class="muted study-count">${t("study.pair", { n: pair.number, of: pair.of })}</p>
    ${pair.prompt !== null && html`<blockquote class="study-prompt"><span class="label">${t("prompt")}</span> ${pair.prompt || t("study.prompt.unknown")}</blockquote>`}
    <div class="study-pair">${clip(left, pair.left, t("study.left"))}${clip(right, pair.right, t("study.right"))}</div>
    <div class="questions">
      ${questions.map((question, i) => html`<${Question} key=${question.name} question=${question} answer=${answers[question.name]} current=${i === current}
        number=${i + 1} onPick=${(choice) => pick(i, choice)} onFocus=${() => setCurrent(i)} />`)}
    </div>
    <div class="study-send">
      <button type="button" class="quiet" disabled=${!canBack} onClick=${onBack}>${t("study.back")}</button>
      <button type="button" class="quiet" onClick=${() => again(left.current, right.current)}>${t("study.again")}</button>
      <button type="button" class="primary" disabled=${open || busy} onClick=${send}>${open ? t("study.open", { n: open }) : t("study.next")}</button>
    </div>
    <p class="hint study-keys">${t("study.keys")}</p>`;
}

export function Comparing({ study, onFail }) {
  const [name, setName] = useState(null);
  const [shown, setShown] = useState(null); // {pair, given}
  const [told, setTold] = useState(null);
  const [past, setPast] = useState([]);

  const take = (answer) => (setTold(answer), setShown(answer.pair && { pair: answer.pair }));
  async function enter(who) {
    try {
      take(await api.nextPair(study.id, who));
      setName(who);
    } catch (error) {
      if (error.status === 401) onFail(error);
      else complain(error);
    }
  }
  async function send(answers, seconds) {
    const { pair } = shown;
    try {
      const next = await api.answerPair(study.id, { annotator: name, pair: pair.pair, phase: pair.phase, answers, seconds });
      setPast([...past.filter((one) => one.pair.number !== pair.number), { pair, given: answers }]);
      take(next);
    } catch (error) {
      if (error.status === 401) onFail(error);
      else complain(error);
    }
  }
  const back = () => {
    setShown(past.at(-1));
    setPast(past.slice(0, -1));
  };
  if (name === null) return html`<${Enter} study=${study} onName=${enter} />`;
  if (shown) return html`<${PairView} key=${`${shown.pair.number} ${shown.given ? "again" : ""}`} pair=${shown.pair} given=${shown.given} canBack=${past.length > 0} onBack=${back} onAnswer=${send} />`;
  return html`<div class="card study-done"><h1>${t("study.thanks")}</h1>
    <p class="muted">${t("study.all", { n: told.of })}</p>
    <div class="study-acts">${past.length > 0 && html`<button type="button" class="secondary" onClick=${back}>${t("study.back")}</button>`}
      ${study.mine && html`<a class="primary" href=${`#${study.id}/report`}>${t("study.report")}</a>`}</div></div>`;
}
