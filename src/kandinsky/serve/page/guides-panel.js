// The cards in which one says what else a result follows, and the buttons that add them.

import { html, useLayoutEffect, useRef } from "./vendor/htm-preact.js";
import { addable, fitting, guide, inWindows, later, PLACES } from "./guides.js";
import { valueOf } from "./settings.js";
import { Slot } from "./slot.js";
import { Icon, IconButton, Segments } from "./ui.js";
import { number, t } from "./words.js";

/** A number with its unit; what it is for is read aloud and shown. */
function Small({ id, label, value, step = "any", least = 0, most, placeholder = "", onPick }) {
  return html`<div class="field"><label for=${id}>${label}</label>
    <input id=${id} type="number" inputmode="decimal" min=${least} max=${most} step=${step} value=${value} placeholder=${placeholder}
      onInput=${(event) => onPick(event.target.value === "" ? "" : Number(event.target.value))} /></div>`;
}

function Strength({ id, label, value, least, most, hint, onPick }) {
  return html`<div class="field slide"><label for=${id}>${label}</label><output for=${id}>${number(value)}</output>
    <input id=${id} type="range" min=${least} max=${most} step="0.05" value=${value} aria-describedby=${`${id}-hint`}
      onInput=${(event) => onPick(Number(event.target.value))} />
    <p class="hint" id=${`${id}-hint`}>${hint}</p></div>`;
}

function Frames({ one, put, id }) {
  const isClip = one.files.frames && (one.files.frames.type || one.files.frames.kind || "").startsWith("video");
  return html`<div class="pair ${isClip ? "three" : ""}">
      <div class="field"><label for=${`${id}-at`}>${t("guide.at")}</label>
        <div class="with-button">
          <input id=${`${id}-at`} type="number" inputmode="decimal" min="0" step="any" value=${one.at === "end" ? "" : one.at} disabled=${one.at === "end"}
            placeholder=${one.at === "end" ? t("guide.end") : ""} onInput=${(event) => put({ at: event.target.value === "" ? 0 : Number(event.target.value) })} />
        </div></div>
      ${isClip && html`<${Small} id=${`${id}-from`} label=${t("guide.from")} value=${one.from} placeholder="0" onPick=${(from) => put({ from })} />
        <${Small} id=${`${id}-to`} label=${t("guide.to")} value=${one.to} placeholder=${t("guide.end")} onPick=${(to) => put({ to })} />`}
    </div>
    <label class="check"><input type="checkbox" checked=${one.at === "end"} onChange=${(event) => put({ at: event.target.checked ? "end" : 0 })} />
      <span>${t("guide.ends")}</span></label>`;
}

const HOWS = ["whole", "part", "prompts", "larger"];

function Source({ one, put, id, mask, model }) {
  const hows = HOWS.filter((how) => how !== "larger" || model.upscales);
  return html`<${Segments} name=${`${id}-how`} label=${t("guide.how")} value=${one.how} options=${hows.map((how) => [how, t(`guide.how.${how}`)])}
      onPick=${(how) => put({ how })} />
    ${one.how === "whole" && html`<${Strength} id=${`${id}-strength`} label=${t("guide.strength")} value=${one.strength} least="0.05" most="1" hint=${t("guide.strength.hint")}
      onPick=${(strength) => put({ strength })} />`}
    ${one.how === "part" && html`${mask}
      <div class="pair"><${Small} id=${`${id}-from`} label=${t("guide.anew.from")} value=${one.from} placeholder="0" onPick=${(from) => put({ from })} />
        <${Small} id=${`${id}-to`} label=${t("guide.anew.to")} value=${one.to} placeholder=${t("guide.end")} onPick=${(to) => put({ to })} /></div>
      <p class="hint">${t("guide.part.hint")}</p>`}
    ${one.how === "prompts" && html`<div class="field"><label for=${`${id}-prompt`}>${t("guide.shows")}</label>
      <input id=${`${id}-prompt`} type="text" value=${one.prompt} onInput=${(event) => put({ prompt: event.target.value })} /></div>
      <p class="hint">${t("guide.prompts.hint")}</p>`}
    ${one.how === "larger" && html`<p class="hint">${t("guide.larger.hint")}</p>`}`;
}

function Followed({ one, put, id, model }) {
  const names = model.branches[one.kind];
  return html`<${Strength} id=${`${id}-strength`} label=${t("guide.follow")} value=${one.strength} least="0" most="2" hint=${t(`guide.${one.kind}.hint`)}
      onPick=${(strength) => put({ strength })} />
    ${names.length > 1 && html`<div class="field"><label for=${`${id}-branch`}>${t("guide.branch")}</label>
      <select id=${`${id}-branch`} value=${one.branch || names[0]} onChange=${(event) => put({ branch: event.target.value })}>
        ${names.map((name) => html`<option key=${name} value=${name} selected=${name === (one.branch || names[0])}>${name}</option>`)}</select></div>`}`;
}

const BODIES = { frames: Frames, control: Followed, reference: Followed };

function Card({ one, model, isNew, onChange, onRemove }) {
  const own = useRef(null);
  const id = `guide-${one.id}`;
  useLayoutEffect(() => { // before a key is pressed
    if (isNew) own.current?.querySelector("input[type=file]")?.focus();
  }, []);
  const put = (values) => onChange({ ...one, ...values });
  const keep = (name, file) => {
    const files = { ...one.files };
    if (file) files[name] = file;
    else delete files[name];
    put({ files });
  };
  const slot = (name, takes) => html`<${Slot} key=${name} name=${`${one.kind}-${name}`} title=${t(`guide.file.${name}`)} takes=${takes} hint=${t("file.how")}
    file=${one.files[name]} onFile=${(file) => keep(name, file)} onClear=${() => (one.kind === "last" ? onRemove() : keep(name, null))} />`;
  const Body = BODIES[one.kind];
  const name = t(`guide.${one.kind}`);
  const remove = html`<${IconButton} name="close" label=${t("guide.remove", { name })} onClick=${onRemove} />`;
  if (one.kind === "last") {
    return html`<section class="guide bare" ref=${own} aria-label=${name} data-guide="last">
      ${slot("last", "image")}${!one.files.last && remove}</section>`;
  }
  return html`<section class="guide" ref=${own} aria-labelledby=${id} data-guide=${one.kind}>
    <header class="guide-head"><h2 id=${id}>${name}</h2>${remove}</header>
    <div class=${one.kind === "join" ? "join" : "slots"}>${PLACES[one.kind].map(([name, takes]) => slot(name, takes))}</div>
    ${one.kind === "join" && html`<p class="hint">${t("guide.join.hint")}</p>`}
    ${one.kind === "source" && html`<${Source} one=${one} put=${put} id=${id} mask=${slot("mask", "either")} model=${model} />`}
    ${Body && html`<${Body} one=${one} put=${put} id=${id} model=${model} />`}
  </section>`;
}

/** Prompts that hold from a time on. */
export function Later({ form, setForm, model }) {
  const own = useRef(null);
  const count = useRef(form.later.length);
  useLayoutEffect(() => { // before a key is pressed
    if (form.later.length > count.current) own.current?.querySelector("li:last-child input[type=text]")?.focus();
    count.current = form.later.length;
  });
  if (form.mode !== "clip" || !form.later.length || !inWindows(model)) return null;
  const rows = form.later;
  const setRows = (next) => setForm({ later: next });
  const put = (row, values) => setRows(rows.map((one) => (one === row ? { ...one, ...values } : one)));
  return html`<ol class="later" ref=${own} aria-label=${t("later")}>
    ${rows.map((row) => html`<li key=${row.id}>
      <label class="unseen" for=${`later-at-${row.id}`}>${t("later.at")}</label>
      <span class="second"><input id=${`later-at-${row.id}`} type="number" inputmode="decimal" min="0" step="any" value=${row.at}
        onInput=${(event) => put(row, { at: event.target.value === "" ? 0 : Number(event.target.value) })} /><span aria-hidden="true">${t("unit.s")}</span></span>
      <label class="unseen" for=${`later-${row.id}`}>${t("later.prompt")}</label>
      <input id=${`later-${row.id}`} type="text" maxlength=${model.prompt_length} value=${row.prompt} placeholder=${t("later.prompt")}
        onInput=${(event) => put(row, { prompt: event.target.value })} />
      <${IconButton} name="close" label=${t("guide.remove", { name: row.prompt || t("later.prompt") })} onClick=${() => setRows(rows.filter((one) => one !== row))} />
    </li>`)}
  </ol>`;
}

/** The cards of a form, and what can be added to it. */
export function Guides({ form, setForm, model }) {
  const added = useRef(null);
  if (!model || form.mode !== "clip") return null;
  const guides = fitting(form.guides, model);
  const seconds = Number(valueOf(form, "seconds"));
  const rows = inWindows(model) ? form.later : [];
  const add = (kind) => {
    if (kind === "later") {
      const last = rows.at(-1)?.at ?? 0;
      setForm({ later: [...rows, later(Math.round((last + Math.max(seconds - last, 1) / 2) * 10) / 10)] });
      return;
    }
    const one = guide(kind, model, seconds);
    added.current = one.id;
    setForm({ guides: [...guides, one] });
  };
  const kinds = [...(inWindows(model) ? ["later"] : []), ...addable(guides, model)];
  if (!kinds.length && !guides.length) return null;
  return html`
    ${guides.map((one) => html`<${Card} key=${one.id} one=${one} model=${model} isNew=${one.id === added.current}
      onChange=${(next) => setForm({ guides: guides.map((other) => (other === one ? next : other)) })}
      onRemove=${() => setForm({ guides: guides.filter((other) => other !== one) })} />`)}
    <div class="adds" role="group" aria-label=${t("guide.add")}>
      ${kinds.map((kind) => html`<button type="button" key=${kind} class="chip add" data-add=${kind} onClick=${() => add(kind)}>
        <${Icon} name="plus" />${t(`guide.${kind}`)}</button>`)}
    </div>`;
}
