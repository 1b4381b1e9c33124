// All studies, and a form that begins one.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { complain } from "./ui.js";
import { day, t } from "./words.js";

function NewStudy({ sets, questionnaires, onMade }) {
  const [name, setName] = useState("");
  const [picked, pick] = useState([]);
  const [questions, setQuestions] = useState(questionnaires[0]);
  const [overlap, setOverlap] = useState(5);
  const [problem, setProblem] = useState("");
  const toggle = (one) => pick(picked.includes(one) ? picked.filter((other) => other !== one) : [...picked, one]);
  async function create(event) {
    event.preventDefault();
    try {
      onMade(await api.createComparison({ name: name.trim(), sets: picked, questions, overlap: Number(overlap) }));
    } catch (error) {
      if (error.status) setProblem(error.message);
      else complain(error);
    }
  }
  return html`<form class="card study-new" onSubmit=${create}>
    <h2>${t("study.new")}</h2>
    <div class="field"><label for="study-name">${t("study.name")}</label>
      <input id="study-name" type="text" required maxlength="100" value=${name} onInput=${(event) => setName(event.target.value)} /></div>
    <fieldset class="study-sets"><legend class="label">${t("study.sets")}</legend>
      ${sets.map((one) => html`<label class="check" key=${one.name}><input type="checkbox" checked=${picked.includes(one.name)} onChange=${() => toggle(one.name)} /><span>${one.name}</span></label>`)}
    </fieldset>
    <div class="field"><label for="study-questions">${t("study.questions")}</label>
      <select id="study-questions" value=${questions} onChange=${(event) => setQuestions(event.target.value)}>
        ${questionnaires.map((one) => html`<option key=${one} value=${one}>${t(`study.questions.${one}`)}</option>`)}
      </select></div>
    <div class="field"><label for="study-overlap">${t("study.overlap")}</label>
      <input id="study-overlap" type="number" min="1" max="100" value=${overlap} onInput=${(event) => setOverlap(event.target.value)} /></div>
    <p class="problem" role="alert">${problem}</p>
    <button type="submit" class="primary" disabled=${picked.length < 2 || !name.trim()}>${t("study.create")}</button>
  </form>`;
}

export function StudyList({ onFail }) {
  const [studies, setStudies] = useState(null);
  const [known, setKnown] = useState(null);
  useEffect(() => {
    Promise.all([api.comparisons(), api.comparisonSets()]).then(([list, sets]) => (setStudies(list.data), setKnown(sets)), onFail);
  }, []);
  if (!studies) return null;
  return html`<h1>${t("study.title")}</h1>
    <p class="muted study-lead">${t("study.lead")}</p>
    ${studies.length ? html`<ul class="study-list">${studies.map((one) => html`<li class="card" key=${one.id}>
      <div><h2>${one.name}</h2>
        <p class="muted">${[t("study.prompts", { n: one.prompts }), t("study.votes", { n: one.votes }), t("study.people", { n: one.annotators }), day(one.created_at)].join(" · ")}</p></div>
      <div class="study-acts">
        <a class="primary" href=${`#${one.id}`}>${t("study.begin")}</a>
        ${one.mine && html`<a class="secondary" href=${`#${one.id}/report`}>${t("study.report")}</a>`}
      </div></li>`)}</ul>` : html`<p class="card muted">${t("study.none")}</p>`}
    ${known.data.length > 1 && html`<${NewStudy} sets=${known.data} questionnaires=${known.questionnaires} onMade=${(one) => (location.hash = one.id)} />`}`;
}
