// The page: what is shown when, what keys and dropped files do.

import { html, render, useEffect, useLayoutEffect, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { Compare } from "./compare.js";
import { Composer } from "./composer.js";
import { Dropped } from "./dropped.js";
import { examplesFor } from "./examples.js";
import { Gallery } from "./gallery.js";
import { Gate } from "./gate.js";
import { GridView } from "./grid-view.js";
import { Header } from "./header.js";
import { LiveView } from "./live-view.js";
import { finished, news, queue, showPreviews, start, state, useLive } from "./live.js";
import { cancel, Queue } from "./queue.js";
import * as settings from "./settings.js";
import { complain, Dialog, say, Toasts } from "./ui.js";
import { Viewer } from "./viewer.js";
import { keep, preferred, read, speak, spoken, t } from "./words.js";

const SHORTCUTS = [["Ctrl ↵", "generate"], ["/", "keys.prompt"], ["Shift X", "keys.cancel"], ["← ↑ → ↓", "keys.walk"], ["R", "reuse.all"], ["V", "reuse.seedless"], ["S", "reuse.seed"], ["C", "compare"], ["?", "keys"]];

function Shortcuts({ onClose }) {
  return html`<${Dialog} label=${t("keys")} kind="small" onClose=${onClose}><h2>${t("keys")}</h2>
    <dl class="shortcuts">${SHORTCUTS.map(([key, name]) => html`<div key=${key}><dt><kbd>${key}</kbd></dt><dd>${t(name)}</dd></div>`)}</dl><//>`;
}

const pageNow = () => (location.pathname === "/live" ? "live" : "create");
const jobNamed = (id) => state.jobs.get(id);

function App() {
  const live = useLive();
  const [form, setForm] = useState(null);
  const [theme, setTheme] = useState(document.documentElement.dataset.theme || "auto");
  const [, setLanguage] = useState(spoken());
  const [shown, show] = useState(null); // {viewer | grid | compare | dropped | keys}
  const [picks, setPicks] = useState(null);
  const [over, setOver] = useState(false);
  const [page, setPage] = useState(pageNow());

  useEffect(() => {
    if (live.models.length && !form) setForm(settings.blank());
  });
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    keep("kandinsky.theme", theme);
  }, [theme]);
  useEffect(() => {
    const back = () => setPage(pageNow());
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);
  const goTo = (name, path) => {
    if (path !== location.pathname) history.pushState(null, "", path);
    setPage(name);
  };
  useEffect(() => news((kind, job) => {
    if (job.object === "load" || kind === "cancelled" || pageNow() === "live") return;
    const name = job.prompt || job.model;
    if (kind === "completed") say(t("said.done", { prompt: name }), { kind: "good", act: { label: t("show"), run: () => show({ viewer: job.id }) } });
    if (kind === "failed") say(`${t("said.failed", { prompt: name })} ${job.error?.message || ""}`, { kind: "bad" });
  }), []);

  async function take(file) {
    if (!form) return;
    try {
      const recipe = await api.recipe(file);
      if (recipe) show({ dropped: { file, recipe } });
      else use(file);
    } catch (error) {
      complain(error);
    }
  }
  function use(file) {
    const next = settings.withFile(form, file);
    if (next) setForm(next);
    else say(t("file.nobody"), { kind: "bad" });
    show(null);
  }
  async function reuse(job, what) {
    let files = {};
    const isFed = ["image", "video"].some((name) => job.request?.[name]);
    if (what !== "seed" && isFed && job.id) {
      const file = await api.input(job.id).catch(() => null);
      if (file) files = file.type.startsWith("video/") ? { video: file } : { image: file };
    }
    setForm(settings.reuse(form, job, what, files));
    show(null);
    if (what !== "seed" && settings.isLost(job, files)) say(t("file.lost"), { kind: "bad" });
    else say(t(`said.${what}`), { kind: "good" });
    document.querySelector("#prompt")?.focus({ preventScroll: innerWidth > 900 });
  }
  function useJob(job, how) {
    const file = { id: job.id, kind: job.object, name: job.prompt };
    if (how === "source" || how === "join") return use2(settings.withGuide(form, how, { [how === "join" ? "first" : how]: file }));
    const base = how === "extend" ? settings.withMode(form, "extend") : form;
    use2(settings.withFile(how === "extend" ? { ...base, prompt: job.prompt || "" } : base, { ...file, kind: how === "extend" ? "video" : "image" }));
  }
  function use2(next) {
    if (next) setForm(next);
    else say(t("file.nobody"), { kind: "bad" });
    show(null);
  }
  const example = () => {
    const [text] = examplesFor(settings.modelNamed(form.model), spoken());
    setForm({ ...form, prompt: text });
    document.querySelector("#prompt")?.focus();
  };

  // before anything else can be pressed: what is shown decides what a key does
  useLayoutEffect(() => {
    const press = (event) => {
      const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
      if (page === "live" || typing || shown || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "/") (event.preventDefault(), document.querySelector("#prompt")?.focus());
      else if (event.key === "?") show({ keys: true });
      else if (event.key === "X" && event.shiftKey && queue()[0]) cancel(queue()[0]);
      else if (event.key === "Escape") setPicks(null);
    };
    const paste = (event) => {
      const file = [...(event.clipboardData?.files || [])][0];
      if (page !== "live" && file && !event.defaultPrevented) (event.preventDefault(), take(file));
    };
    const drag = (event) => {
      if (page === "live" || ![...(event.dataTransfer?.types || [])].includes("Files")) return;
      const isTaken = event.defaultPrevented; // by the place it was dropped on
      event.preventDefault();
      if (event.type === "dragover") setOver(true);
      else if (event.type === "drop") (setOver(false), !isTaken && event.dataTransfer.files[0] && take(event.dataTransfer.files[0]));
      else if (!event.relatedTarget) setOver(false);
    };
    const all = [["keydown", press], ["paste", paste], ["dragover", drag], ["dragleave", drag], ["drop", drag]];
    all.forEach(([kind, run]) => addEventListener(kind, run));
    return () => all.forEach(([kind, run]) => removeEventListener(kind, run));
  });

  const language = async (name) => {
    await speak(name);
    setLanguage(name);
  };
  const head = html`<${Header} theme=${theme} setTheme=${setTheme} page=${page} onPage=${goTo} onLanguage=${language} onKeys=${() => show({ keys: true })} hasKey=${live.connection !== "locked" && read("kandinsky.key") === "1"} />`;
  if (live.connection === "locked") return html`${head}<${Gate} /><${Toasts} />`;
  if (page === "live") return html`<a class="skip" href="#live-prompt">${t("skip")}</a>${head}<${LiveView} /><${Toasts} />`;
  const order = finished().filter((job) => job.status === "completed").sort((a, b) => b.completed_at - a.completed_at).map((job) => job.id);
  const close = () => show(null);
  const open = (id) => show({ viewer: id });
  const viewed = shown?.viewer && jobNamed(shown.viewer);
  return html`
    <a class="skip" href="#prompt">${t("skip")}</a>
    ${head}
    ${live.connection === "offline" && html`<p class="banner" role="alert">${t("offline")}</p>`}
    <main class="layout ${live.connection === "offline" ? "away" : ""}">
      <h1 class="unseen">Kandinsky</h1>
      <div class="form-column"><${Composer} form=${form || settings.blank()} setForm=${setForm} onFile=${take} /></div>
      <div class="made-column">
        <${Queue} />
        <${Gallery} picks=${picks} setPicks=${setPicks} onOpen=${(job) => open(job.id)} onReuse=${reuse} onExample=${example}
          onCompare=${(ids) => (setPicks(null), show({ compare: ids }))} />
      </div>
    </main>
    ${viewed && html`<${Viewer} key="viewer" job=${viewed} order=${order} onClose=${close} onOpen=${open} onReuse=${reuse} onUse=${useJob}
      onCompare=${(job) => (close(), setPicks([job.id]))} onGrid=${(job) => show({ grid: job.id })} />`}
    ${shown?.compare && jobNamed(shown.compare[0]) && jobNamed(shown.compare[1]) &&
    html`<${Compare} a=${jobNamed(shown.compare[0])} b=${jobNamed(shown.compare[1])} onClose=${close} />`}
    ${shown?.grid && jobNamed(shown.grid) && html`<${GridView} job=${jobNamed(shown.grid)} onClose=${close} onOpen=${(job) => open(job.id)} />`}
    ${shown?.dropped && html`<${Dropped} ...${shown.dropped} canUse=${Boolean(settings.withFile(form, shown.dropped.file))} onReuse=${reuse} onUse=${() => use(shown.dropped.file)} onClose=${close} />`}
    ${shown?.keys && html`<${Shortcuts} onClose=${close} />`}
    ${over && html`<div class="drop" aria-hidden="true"><p>${t("drop")}</p></div>`}
    <${Toasts} />`;
}

document.documentElement.dataset.theme = read("kandinsky.theme") || "auto";
showPreviews(read("kandinsky.previews") !== "off");
await speak(preferred());
render(html`<${App} />`, document.querySelector("#app"));
start();
