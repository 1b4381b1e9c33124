// Side-by-side comparisons: the list of studies, comparing, and the report; the address after # says which.

import { html, render, useEffect, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { Gate } from "./gate.js";
import { StudyList } from "./study-list.js";
import { Report } from "./study-report.js";
import { Comparing } from "./study-vote.js";
import { IconButton, Mark, Toasts } from "./ui.js";
import { keep, LANGUAGES, preferred, read, speak, spoken, t } from "./words.js";

const THEMES = { auto: "light", light: "dark", dark: "auto" };
const ICONS = { auto: "auto", light: "sun", dark: "moon" };

/** `#ID` compares, `#ID/report` shows the report, nothing lists. */
const place = () => location.hash.slice(1).split("/");

function Head({ theme, setTheme, onLanguage }) {
  return html`<header class="top">
    <a class="brand" href="/compare"><${Mark} /><span>Kandinsky</span></a>
    <p class="server"><span>${t("study.title")}</span></p>
    <div class="top-acts">
      <div class="languages" role="group" aria-label=${t("language")}>
        ${Object.entries(LANGUAGES).map(([id, name]) => html`<button type="button" key=${id} lang=${id} title=${name} aria-pressed=${id === spoken()}
          onClick=${() => onLanguage(id)}>${id.toUpperCase()}</button>`)}
      </div>
      <${IconButton} name=${ICONS[theme]} label=${t(`theme.${theme}`)} onClick=${() => setTheme(THEMES[theme])} />
    </div>
  </header>`;
}

function App() {
  const [[id, view], go] = useState(place());
  const [theme, setTheme] = useState(document.documentElement.dataset.theme || "auto");
  const [, setLanguage] = useState(spoken());
  const [locked, setLocked] = useState(false);
  const [study, setStudy] = useState(null);
  const [problem, setProblem] = useState("");

  useEffect(() => {
    const moved = () => (setStudy(null), setProblem(""), go(place()));
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    keep("kandinsky.theme", theme);
  }, [theme]);
  const failed = (error) => (error.status === 401 ? setLocked(true) : setProblem(error.status ? error.message : t("error.unreachable")));
  useEffect(() => {
    if (id && !locked) api.comparison(id).then(setStudy, failed);
  }, [id, view, locked]);

  const language = async (name) => (await speak(name), setLanguage(name));
  const head = html`<${Head} theme=${theme} setTheme=${setTheme} onLanguage=${language} />`;
  if (locked) return html`${head}<${Gate} onEnter=${async () => setLocked(false)} /><${Toasts} />`;
  const shown = !id ? html`<${StudyList} onFail=${failed} />`
    : study && (view === "report" ? html`<${Report} study=${study} onFail=${failed} />` : html`<${Comparing} key=${id} study=${study} onFail=${failed} />`);
  return html`${head}
    ${problem && html`<p class="banner" role="alert">${problem}</p>`}
    <main class="study">${shown}</main>
    <${Toasts} />`;
}

document.documentElement.dataset.theme = read("kandinsky.theme") || "auto";
await speak(preferred());
render(html`<${App} />`, document.querySelector("#app"));
