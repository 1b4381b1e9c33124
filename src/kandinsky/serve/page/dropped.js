// A file that was dropped, pasted or chosen: it may carry a recipe, and it may be the image or clip to start from.

import { html } from "./vendor/htm-preact.js";
import { jobOfRecipe } from "./settings.js";
import { Dialog, Icon } from "./ui.js";
import { t } from "./words.js";

export function Dropped({ file, recipe, canUse, onReuse, onUse, onClose }) {
  const job = jobOfRecipe(recipe);
  const isClip = file.type.startsWith("video/");
  return html`<${Dialog} label=${t("dropped")} kind="small" onClose=${onClose}>
    <h2>${t("dropped")}</h2>
    <p class="muted">${file.name}</p>
    <blockquote>${recipe.prompt || t("no.prompt")}</blockquote>
    <p class="muted">${[recipe.model, recipe.seed != null && t("seed.n", { seed: String(recipe.seed) })].filter(Boolean).join(" · ")}</p>
    <div class="choices">
      <button type="button" class="primary" onClick=${() => onReuse(job, "all")}><${Icon} name="reuse" />${t("reuse.all")}</button>
      <button type="button" class="secondary" onClick=${() => onReuse(job, "seedless")}><${Icon} name="dice" />${t("reuse.seedless")}</button>
      <button type="button" class="secondary" onClick=${() => onReuse(job, "seed")}><${Icon} name="seed" />${t("reuse.seed")}</button>
      ${canUse && html`<button type="button" class="secondary" onClick=${onUse}><${Icon} name=${isClip ? "extend" : "image"} />${t(isClip ? "use.clip" : "use.image")}</button>`}
    </div>
  <//>`;
}
