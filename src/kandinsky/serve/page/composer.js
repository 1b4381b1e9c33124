// The form: what to make, of what, with which settings.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { examplesFor } from "./examples.js";
import { Attachments } from "./attachments.js";
import { Guides, Later } from "./guides-panel.js";
import { adopt, finished, useLive } from "./live.js";
import * as settings from "./settings.js";
import { Settings } from "./settings-panel.js";
import { complain, say, Segments } from "./ui.js";
import { duration, spoken, t } from "./words.js";

/** Words of the prompt that had no effect when it was last used with this model. */
function unusedWords(form) {
  const text = form.prompt.trim();
  if (!text) return [];
  const last = finished().find((job) => job.prompt === text && job.model === form.model && job.recipe);
  return last?.recipe.unused_words || [];
}

function Summary({ form }) {
  const model = settings.modelNamed(form.model);
  if (!model) return null;
  const parts = [];
  const seconds = settings.valueOf(form, "seconds");
  if (form.mode === "clip" || form.mode === "extend") parts.push(duration(Number(seconds)));
  const size = settings.valueOf(form, "size");
  if (size && form.mode !== "sound") parts.push(String(size).replace("x", " × "));
  parts.push(t("steps.n", { n: Number(settings.valueOf(form, "steps")) }));
  return html`<p class="summary">${parts.join(" · ")}</p>`;
}

export function Composer({ form, setForm, onFile }) {
  const live = useLive();
  const [problem, setProblem] = useState(null);
  const [sending, setSending] = useState(false);
  const prompt = useRef(null);
  const model = settings.modelNamed(form.model);
  const change = (values) => {
    setProblem(null);
    setForm({ ...form, ...values });
  };

  async function generate(event) {
    event?.preventDefault();
    if (sending || live.connection === "offline") return;
    const lack = settings.lacking(form);
    if (lack) {
      setProblem({ text: t(...lack), field: lack[0] });
      prompt.current?.focus();
      return;
    }
    setSending(true);
    setProblem(null);
    try {
      for (const one of settings.requests(form)) adopt(await api.create(one.call, one.values, one.files));
      say(t("said.queued", { n: settings.count(form) }), { kind: "good" });
    } catch (error) {
      if (error.status === undefined) complain(error);
      else setProblem({ text: error.message, field: error.param });
    } finally {
      setSending(false);
    }
  }

  useEffect(() => {
    const grow = prompt.current;
    if (grow) {
      grow.style.height = "auto";
      grow.style.height = `${Math.min(grow.scrollHeight + 2, 320)}px`;
    }
  }, [form.prompt]);

  const modes = settings.modes();
  const unused = unusedWords(form);
  const total = settings.count(form);
  const loading = live.models.length === 0;
  return html`<form class="composer" aria-label=${t("composer")} onSubmit=${generate}
    onKeyDown=${(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && generate(event)}>
    ${modes.length > 1 &&
    html`<${Segments} name="mode" label=${t("mode")} value=${form.mode}
      options=${modes.map((mode) => [mode, t(`mode.${mode}`)])} onPick=${(mode) => setForm(settings.withMode(form, mode))} />`}
    <div class="prompt-box">
      <label class="unseen" for="prompt">${t("prompt")}</label>
      <textarea id="prompt" ref=${prompt} rows="3" maxlength=${model?.prompt_length} value=${form.prompt} disabled=${loading}
        placeholder=${t(form.mode === "sound" ? "prompt.sound" : "prompt.hint")} aria-describedby="prompt-notes"
        aria-invalid=${problem?.field === "prompt" || problem?.field === "lack.prompt" ? "true" : null}
        onInput=${(event) => change({ prompt: event.target.value })}></textarea>
      <div id="prompt-notes">
        ${unused.length > 0 && html`<p class="unused">${t("unused")} ${unused.map((word) => html`<s key=${word}>${word}</s> `)}</p>`}
      </div>
      ${!form.prompt.trim() &&
      html`<div class="examples" role="group" aria-label=${t("examples")}>
        ${examplesFor(model, spoken()).map(
          (text) => html`<button type="button" key=${text} class="chip"
            onClick=${() => (change({ prompt: text }), prompt.current?.focus())}>${text}</button>`,
        )}
      </div>`}
    </div>
    <${Later} form=${form} setForm=${change} model=${model} />
    <${Attachments} form=${form} setForm=${change} model=${model} onFile=${onFile} />
    <${Guides} form=${form} setForm=${change} model=${model} />
    <${Settings} form=${form} setForm=${setForm} model=${model} />
    <div class="send">
      ${problem && html`<p class="problem" role="alert">${problem.text}</p>`}
      <button type="submit" class="primary" disabled=${sending || loading || live.connection === "offline"}
        aria-keyshortcuts="Control+Enter">
        <span>${total > 1 ? t("generate.n", { n: total }) : t("generate")}</span>
        <kbd aria-hidden="true">${/Mac|iP/.test(navigator.platform) ? "⌘" : "Ctrl"} ↵</kbd>
      </button>
      <${Summary} form=${form} />
    </div>
  </form>`;
}

