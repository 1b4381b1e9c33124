// What the votes say, on a page that can be printed.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { complain, say } from "./ui.js";
import { number, spoken, t } from "./words.js";

const percent = (share) => `${number(share * 100, 0)} %`;
const signed = (share) => `${share > 0 ? "+" : ""}${number(share * 100, 0)}`;

/** Wins, ties and losses as one bar of 100 units; the numbers stand beside it. */
function Bar({ row }) {
  const parts = [["win", row.win], ["tie", row.tie], ["loss", row.loss]];
  let at = 0;
  return html`<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label=${parts.map(([name, share]) => `${t(`study.${name}`)} ${percent(share)}`).join(", ")}>
    ${parts.map(([name, share]) => {
      const x = at;
      at += share * 100;
      return html`<rect key=${name} class=${name} x=${x} y="0" width=${share * 100} height="10" />`;
    })}
    <line class="middle" x1="50" y1="0" x2="50" y2="10" />
  </svg>`;
}

function Rows({ rows, name }) {
  return rows.map((row) => html`<tr key=${row.name} data-row=${row.name}>
    <th scope="row">${name(row.name)}</th>
    <td class="bar-cell"><${Bar} row=${row} /></td>
    <td>${percent(row.win)}</td><td>${percent(row.tie)}</td><td>${percent(row.loss)}</td>
    <td class="if-room">${signed(row.net)}${row.low !== null && html` <span class="muted">[${signed(row.low)}, ${signed(row.high)}]</span>`}</td>
    <td class=${row.p_value < 0.05 ? "sure" : "muted"}>${row.p_value < 0.001 ? "< 0.001" : number(row.p_value, 3)}</td>
    <td class="muted">${row.votes}</td>
  </tr>`);
}

function Versus({ found, texts }) {
  const question = (name) => texts[name]?.[spoken()] || name;
  return html`<section class="card versus-report">
    <h2>${found.model} <span class="muted">${t("study.against")}</span> ${found.rival}</h2>
    <p class="legend"><span class="key win"></span>${t("study.win.of", { model: found.model })} <span class="key tie"></span>${t("study.tie")} <span class="key loss"></span>${t("study.win.of", { model: found.rival })}</p>
    <div class="scrolls"><table class="report-table"><thead><tr>
      <th scope="col">${t("study.question")}</th><th scope="col"><span class="unseen">${t("study.bar")}</span></th>
      <th scope="col">${t("study.win")}</th><th scope="col">${t("study.tie")}</th><th scope="col">${t("study.loss")}</th>
      <th scope="col" class="if-room">${t("study.net")}</th><th scope="col">p</th><th scope="col">${t("study.count")}</th></tr></thead>
      <tbody>${Rows({ rows: found.groups, name: (one) => t(`study.group.${one}`) })}</tbody>
      <tbody>${Rows({ rows: found.criteria, name: question })}</tbody></table></div>
  </section>`;
}

/** Ratings with their intervals, on one scale. */
function Ranking({ rows }) {
  const low = Math.min(...rows.map((one) => one.low ?? one.rating)) - 20;
  const high = Math.max(...rows.map((one) => one.high ?? one.rating)) + 20;
  const at = (value) => ((value - low) / (high - low)) * 100;
  return html`<section class="card"><h2>${t("study.ranking")}</h2>
    <div class="scrolls"><table class="report-table"><thead><tr><th scope="col">${t("study.model")}</th><th scope="col"><span class="unseen">${t("study.bar")}</span></th>
      <th scope="col">Bradley–Terry</th><th scope="col" class="if-room">95 %</th><th scope="col">Elo</th><th scope="col">${t("study.count")}</th></tr></thead>
    <tbody>${rows.map((one) => html`<tr key=${one.model}><th scope="row">${one.model}</th>
      <td class="bar-cell"><svg class="whisker" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><line x1=${at(one.low ?? one.rating)} x2=${at(one.high ?? one.rating)} y1="5" y2="5" />
        <rect x=${at(one.rating) - 0.8} y="1" width="1.6" height="8" /></svg></td>
      <td>${number(one.rating, 0)}</td><td class="muted if-room">[${number(one.low, 0)}, ${number(one.high, 0)}]</td><td>${number(one.elo, 0)}</td><td class="muted">${one.games}</td></tr>`)}</tbody></table></div>
  </section>`;
}

/** Answers to pairs of a clip and a spoiled copy of it: whoever fails many was not looking. */
function Attention({ rows }) {
  return html`<section class="card"><h2>${t("study.attention")}</h2>
    <div class="scrolls"><table class="report-table"><thead><tr><th scope="col">${t("study.person")}</th><th scope="col">${t("study.failed")}</th><th scope="col">${t("study.checks")}</th></tr></thead>
      <tbody>${rows.map(([name, one]) => html`<tr key=${name} data-person=${name}><th scope="row">${name}</th>
        <td class=${one.right < one.all ? "sure" : "muted"}>${one.all - one.right}</td><td class="muted">${one.all}</td></tr>`)}</tbody></table></div>
    <p class="hint">${t("study.attention.about")}</p></section>`;
}

export function Report({ study, onFail }) {
  const [found, setFound] = useState(null);
  const load = () => api.comparisonReport(study.id).then(setFound, onFail);
  useEffect(() => void load(), [study.id]);
  async function take(event) {
    const [file] = event.target.files;
    event.target.value = "";
    if (!file) return;
    try {
      const { votes } = await api.importVotes(study.id, await file.text());
      say(t("study.imported", { n: votes }), { kind: "good" });
      await load();
    } catch (error) {
      complain(error);
    }
  }
  if (!found) return null;
  const people = Object.entries(found.annotators);
  const agreed = Object.entries(found.agreement);
  const checked = Object.entries(found.attention);
  return html`<header class="report-head"><div><h1>${study.name}</h1>
      <p class="muted">${[t("study.prompts", { n: found.prompts }), t("study.people", { n: people.length }), t("study.votes", { n: found.votes })].join(" · ")}</p></div>
    <div class="study-acts no-print">
      <button type="button" class="secondary" onClick=${() => print()}>${t("study.print")}</button>
      <a class="secondary" href=${api.votesOf(study.id)} download>${t("study.export")}</a>
      <label class="secondary file">${t("study.import")}<input type="file" class="unseen" accept=".jsonl,application/x-ndjson" onChange=${take} /></label>
    </div></header>
    ${found.votes === 0 && html`<p class="card muted">${t("study.empty")}</p>`}
    ${found.comparisons.map((one) => html`<${Versus} key=${`${one.model} ${one.rival}`} found=${one} texts=${found.texts} />`)}
    ${found.problem && html`<p class="card muted">${found.problem}</p>`}
    ${found.ranking.length > 0 && html`<${Ranking} rows=${found.ranking} />`}
    ${agreed.length > 0 && html`<section class="card"><h2>${t("study.agreement")}</h2>
      <div class="scrolls"><table class="report-table"><thead><tr><th scope="col">${t("study.question")}</th><th scope="col">${t("study.share")}</th><th scope="col">${t("study.alpha")}</th></tr></thead>
        <tbody>${agreed.map(([name, one]) => html`<tr key=${name}><th scope="row">${found.texts[name]?.[spoken()] || name}</th>
          <td>${one.share === null ? "–" : percent(one.share)}</td><td>${one.alpha === null ? "–" : number(one.alpha)}</td></tr>`)}</tbody></table></div>
      <p class="hint">${t("study.people.each", { list: people.map(([name, votes]) => `${name} ${votes}`).join(", ") })}</p></section>`}
    ${checked.length > 0 && html`<${Attention} rows=${checked} />`}
    <p class="hint">${t("study.method")}</p>`;
}
