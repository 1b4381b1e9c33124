// The line at the top: the state of the server, language, colours, keys.

import { html } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { lock, queue, useLive } from "./live.js";
import { IconButton, Mark } from "./ui.js";
import { keep, LANGUAGES, spoken, t } from "./words.js";

const THEMES = { auto: "light", light: "dark", dark: "auto" };
const ICONS = { auto: "auto", light: "sun", dark: "moon" };

const PAGES = { create: "/", live: "/live" };

export function Header({ theme, setTheme, onLanguage, onKeys, hasKey, page, onPage }) {
  const live = useLive();
  const waiting = queue().length;
  const told = live.connection === "ready" && waiting ? t("server.busy", { n: waiting }) : t(`server.${live.connection}`);
  const leave = () => api.logOut().then(() => (keep("kandinsky.key", ""), lock()));
  const state = live.connection === "ready" && waiting ? "busy" : live.connection;
  return html`<header class="top">
    <a class="brand" href="/" aria-label="Kandinsky"><${Mark} /><span>Kandinsky</span></a>
    ${live.models.some((model) => model.live) && html`<nav class="pages" aria-label=${t("nav")}>
      ${Object.entries(PAGES).map(([id, path]) => html`<a key=${id} href=${path} aria-current=${id === page ? "page" : null}
        onClick=${(event) => event.ctrlKey || event.metaKey || event.shiftKey || (event.preventDefault(), onPage(id, path))}>${t(`nav.${id}`)}</a>`)}
    </nav>`}
    <p class="server ${state}" role="status"><i aria-hidden="true"></i><span>${told}</span></p>
    <div class="top-acts">
      <div class="languages" role="group" aria-label=${t("language")}>
        ${Object.entries(LANGUAGES).map(([id, name]) => html`<button type="button" key=${id} lang=${id} title=${name} aria-pressed=${id === spoken()}
          onClick=${() => onLanguage(id)}>${id.toUpperCase()}</button>`)}
      </div>
      <${IconButton} name=${ICONS[theme]} label=${t(`theme.${theme}`)} onClick=${() => setTheme(THEMES[theme])} />
      <${IconButton} name="keys" label=${t("keys")} onClick=${onKeys} class="icon-button only-wide" />
      ${hasKey && html`<${IconButton} name="out" label=${t("gate.leave")} onClick=${leave} />`}
    </div>
  </header>`;
}
