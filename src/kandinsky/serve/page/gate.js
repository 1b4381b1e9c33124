// The server wants a key: it is exchanged for a cookie that scripts cannot read.

import { html, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { start } from "./live.js";
import { Mark } from "./ui.js";
import { keep, t } from "./words.js";

/** @param {{onEnter?: () => Promise<void>}} props Called when the key was right. */
export function Gate({ onEnter = start }) {
  const [key, setKey] = useState("");
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  async function enter(event) {
    event.preventDefault();
    setBusy(true);
    try {
      await api.logIn(key.trim());
      keep("kandinsky.key", "1");
      await onEnter();
    } catch (error) {
      setProblem(error.status === 401 ? t("gate.wrong") : error.status ? error.message : t("error.unreachable"));
      setBusy(false);
    }
  }
  return html`<main class="gate">
    <form onSubmit=${enter}>
      <${Mark} />
      <h1>${t("gate")}</h1>
      <p class="muted">${t("gate.hint")}</p>
      <label class="unseen" for="key">${t("gate.key")}</label>
      <input id="key" type="password" autocomplete="current-password" required autofocus placeholder=${t("gate.key")} value=${key}
        aria-invalid=${problem ? "true" : null} aria-describedby="gate-problem" onInput=${(event) => setKey(event.target.value)} />
      <p id="gate-problem" class="problem" role="alert">${problem}</p>
      <button type="submit" class="primary" disabled=${busy || !key}>${t("gate.enter")}</button>
    </form>
  </main>`;
}
