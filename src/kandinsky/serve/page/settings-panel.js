// Model, size, length, and the settings that most people leave alone.

import { html } from "./vendor/htm-preact.js";
import { inWindows } from "./guides.js";
import * as settings from "./settings.js";
import { Icon, IconButton } from "./ui.js";
import { duration, number, t } from "./words.js";

function Field({ name, label, hint, children }) {
  return html`<div class="field">
    <label for=${name}>${label}</label>
    ${children}
    ${hint && html`<p class="hint" id=${`${name}-hint`}>${hint}</p>`}
  </div>`;
}

/** A slider with its number beside it; where more than it shows is possible, the number can be typed. */
function Slide({ name, label, value, least, most, longest, step, shown, onPick }) {
  const exact = `${name}-exact`;
  return html`<div class="field slide">
    <label for=${name}>${label}</label>
    ${longest > most
      ? html`<span class="second"><input id=${exact} type="number" inputmode="decimal" min=${least} max=${longest} step="any" value=${value}
          aria-label=${t("setting.seconds.exact")} aria-describedby=${`${name}-hint`}
          onChange=${(event) => Number(event.target.value) > 0 && onPick(Number(event.target.value))} /><span aria-hidden="true">${t("unit.s")}</span></span>`
      : html`<output for=${name}>${shown}</output>`}
    <input id=${name} type="range" min=${least} max=${most} step=${step} value=${Math.min(value, most)} aria-valuetext=${shown}
      onInput=${(event) => onPick(Number(event.target.value))} />
    ${longest > most && html`<p class="hint" id=${`${name}-hint`}>${value > most ? t("setting.windows", { time: duration(most) }) : t("setting.longer")}</p>`}
  </div>`;
}

function NumberField({ name, label, value, usual, least, most, step = "any", onPick }) {
  return html`<${Field} name=${name} label=${label}>
    <input id=${name} type="number" inputmode="decimal" min=${least} max=${most} step=${step} value=${value ?? ""}
      placeholder=${usual == null ? "" : number(usual)}
      onInput=${(event) => onPick(event.target.value === "" ? "" : Number(event.target.value))} />
  <//>`;
}

function Choice({ name, label, value, options, onPick }) {
  return html`<${Field} name=${name} label=${label}>
    <select id=${name} value=${value} onChange=${(event) => onPick(event.target.value)}>
      ${options.map(([id, text]) => html`<option key=${id} value=${id} selected=${id === value}>${text}</option>`)}
    </select>
  <//>`;
}

const words = (told) => String(told || "").split(";")[0].split(",").map((one) => one.trim()).filter((one) => /^[\w-]+$/.test(one));

function Grid({ form, setForm }) {
  const put = (values) => setForm({ ...form, grid: { ...form.grid, ...values } });
  const axis = (name, hint) => html`<${Field} name=${`grid-${name}`} label=${t(`setting.${name}`)}>
    <input id=${`grid-${name}`} type="text" inputmode="decimal" placeholder=${hint} value=${form.grid[name]}
      onInput=${(event) => put({ [name]: event.target.value })} /><//>`;
  return html`<div class="fold">
    <label class="check"><input type="checkbox" checked=${form.grid.on} onChange=${(event) => put({ on: event.target.checked })} />
      <span><b>${t("grid.make")}</b><span class="hint">${t("grid.hint")}</span></span></label>
    ${form.grid.on &&
    html`<div class="pair three">
      <${Field} name="grid-seed" label=${t("grid.seeds")}>
        <input id="grid-seed" type="number" min="1" max="12" value=${form.grid.seed}
          onInput=${(event) => put({ seed: Math.max(1, Math.min(12, Number(event.target.value) || 1)) })} /><//>
      ${axis("steps", "8, 16")} ${axis("guidance", "1, 2, 4")}
    </div>`}
  </div>`;
}

export function Settings({ form, setForm, model }) {
  if (!model) return html`<div class="settings"><div class="bone"></div><div class="bone"></div></div>`;
  const value = (name) => settings.valueOf(form, name);
  const put = (name, chosen) => {
    const values = { ...form.values, [name]: chosen };
    if (chosen === "" || chosen === null || chosen === model.defaults[name]) delete values[name];
    setForm({ ...form, values });
  };
  const models = settings.modelsOf(form.mode);
  const [, most] = model.seconds;
  const isClip = form.mode === "clip" || form.mode === "extend";
  const { shortest } = model; // 0 makes a still
  const step = most <= 3 ? 0.25 : most <= 12 ? 0.5 : 1;
  const [lora, scale = 1] = (form.values.lora?.[0] || "").split(":"); // as the API names it: NAME:SCALE
  const caches = words(model.accepts.cache);
  const formats = form.mode === "image" && model.makes === "video" ? ["png", "jpeg", "webp"] : model.formats;
  return html`<div class="settings">
    <div class="pair">
      <${Choice} name="model" label=${t("setting.model")} value=${form.model}
        options=${models.map((one) => [one.id, one.id])} onPick=${(id) => setForm(settings.withModel(form, id))} />
      ${form.mode !== "sound" && html`<${Choice} name="size" label=${t("setting.size")} value=${value("size")}
        options=${model.sizes.map((one) => [one, one.replace("x", " × ")])} onPick=${(size) => put("size", size)} />`}
    </div>
    <p class="about">${model.title}${model.loaded ? "" : html` <span class="tag">${t("model.cold")}</span>`}</p>
    ${isClip && most > shortest &&
    html`<${Slide} name="seconds" label=${t("setting.seconds")} value=${value("seconds")} most=${most} step=${step}
      longest=${form.mode === "clip" && inWindows(model) ? model.longest : most}
      least=${Math.ceil(shortest / step) * step} shown=${duration(Number(value("seconds")))} onPick=${(one) => put("seconds", one)} />`}
    ${form.mode === "clip" && inWindows(model) &&
    html`<label class="check"><input id="loop" type="checkbox" checked=${!!form.values.loop} onChange=${(event) => put("loop", event.target.checked || "")} />
      <span><b>${t("setting.loop")}</b><span class="hint">${t("setting.loop.hint")}</span></span></label>`}
    ${isClip && model.sounds_with &&
    html`<label class="check"><input type="checkbox" checked=${!!form.values.sound} onChange=${(event) => put("sound", event.target.checked || "")} />
      <span><b>${t("setting.sound")}</b><span class="hint">${t("setting.sound.hint", { model: model.sounds_with })}</span></span></label>`}
    ${model.expands &&
    html`<label class="check"><input type="checkbox" checked=${!!form.values.expand} onChange=${(event) => put("expand", event.target.checked || "")} />
      <span><b>${t("setting.expand")}</b><span class="hint">${t("setting.expand.hint")}</span></span></label>`}
    <details class="fold">
      <summary><span>${t("settings.more")}</span><${Icon} name="more" /></summary>
      <div class="pair">
        <${NumberField} name="steps" label=${t("setting.steps")} value=${form.values.steps} usual=${model.defaults.steps}
          least=${model.steps[0]} most=${model.steps[1]} step="1" onPick=${(one) => put("steps", one)} />
        <${NumberField} name="guidance" label=${t("setting.guidance")} value=${form.values.guidance}
          usual=${model.defaults.guidance} least="0" onPick=${(one) => put("guidance", one)} />
      </div>
      <${Field} name="seed" label=${t("setting.seed")}>
        <div class="with-button">
          <input id="seed" type="text" inputmode="numeric" placeholder=${t("setting.seed.random")} value=${form.seed}
            onInput=${(event) => setForm({ ...form, seed: event.target.value.trim() })} />
          ${form.seed === ""
            ? html`<${IconButton} name="dice" label=${t("setting.seed.draw")}
                onClick=${() => setForm({ ...form, seed: String(Math.floor(Math.random() * settings.SEEDS)) })} />`
            : html`<${IconButton} name="close" label=${t("setting.seed.clear")} onClick=${() => setForm({ ...form, seed: "" })} />`}
        </div><//>
      <${Field} name="negative" label=${t("setting.negative")}>
        <textarea id="negative" rows="2" maxlength=${model.prompt_length} value=${form.values.negative_prompt ?? ""}
          placeholder=${model.defaults.negative_prompt || t("setting.negative.hint")}
          onInput=${(event) => put("negative_prompt", event.target.value)}></textarea><//>
      <div class="pair">
        ${model.accepts.shift && html`<${NumberField} name="shift" label=${t("setting.shift")} value=${form.values.shift}
          usual=${model.defaults.shift} least="0" onPick=${(one) => put("shift", one)} />`}
        <${Choice} name="format" label=${t("setting.format")} value=${form.values.format || formats[0]}
          options=${formats.map((one) => [one, one.toUpperCase()])} onPick=${(one) => put("format", one === formats[0] ? "" : one)} />
        ${caches.length > 1 && html`<${Choice} name="cache" label=${t("setting.cache")} value=${form.values.cache || ""}
          options=${[["", t("setting.cache.none")], ...caches.map((one) => [one, one])]} onPick=${(one) => put("cache", one)} />`}
        ${model.loras.length > 0 && html`<${Choice} name="lora" label=${t("setting.lora")} value=${lora}
          options=${[["", t("setting.lora.none")], ...model.loras.map((one) => [one, one])]}
          onPick=${(one) => put("lora", one ? [one] : "")} />`}
        ${lora && html`<${NumberField} name="lora-scale" label=${t("setting.lora.scale")} value=${Number(scale)} usual=${1} step="0.1"
          onPick=${(one) => put("lora", [one === "" ? lora : `${lora}:${one}`])} />`}
        ${form.mode !== "sound" && model.upscales && html`<${Field} name="upscale" label=${t("setting.upscale")}>
          <input id="upscale" type="text" list="upscales" autocomplete="off" maxlength="20" value=${form.values.upscale ?? ""}
            placeholder=${settings.upscaling(form, model) ? String(settings.USUALLY_LARGER) : t("setting.upscale.none")}
            onInput=${(event) => put("upscale", event.target.value)} />
          <datalist id="upscales">${["2", "3", "4", "1920x1080", "1080x1920"].map((one) => html`<option key=${one} value=${one} />`)}</datalist><//>`}
        ${settings.upscaling(form, model) && html`<${NumberField} name="upscale_strength" label=${t("setting.upscale_strength")} value=${form.values.upscale_strength}
          usual=${0.4} least="0.05" most="1" step="0.05" onPick=${(one) => put("upscale_strength", one)} />`}
        ${form.mode === "clip" && inWindows(model) && html`<${NumberField} name="overlap" label=${t("setting.overlap")} value=${form.values.overlap}
          usual=${model.overlap} least="0" onPick=${(one) => put("overlap", one)} />`}
        ${form.mode === "clip" && form.later.length > 0 && html`<${NumberField} name="fade" label=${t("setting.fade")} value=${form.values.fade}
          usual=${0} least="0" onPick=${(one) => put("fade", one)} />`}
      </div>
    </details>
    <${Grid} form=${form} setForm=${setForm} />
  </div>`;
}
