// The image, mask or clip that a request starts from: dropped, pasted, chosen, or a result of before.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { Icon, IconButton } from "./ui.js";
import { t } from "./words.js";

const TYPES = { image: "image/png,image/jpeg,image/webp", mask: "image/png,image/jpeg,image/webp", video: "video/*" };

/** What a field holds, to look at: an object URL, or the thumbnail of a job. */
function useLook(file) {
  const [look, setLook] = useState(null);
  useEffect(() => {
    if (!(file instanceof Blob)) {
      setLook(file ? api.content(file.id, { variant: "thumbnail" }) : null);
      return undefined;
    }
    const url = URL.createObjectURL(file);
    setLook(url);
    return () => URL.revokeObjectURL(url);
  }, [file]);
  return look;
}

function Slot({ name, title, file, required, onFile, onClear }) {
  const look = useLook(file);
  const isClip = name === "video";
  if (file) {
    return html`<div class="slot full">
      ${isClip && file instanceof Blob
        ? html`<video src=${look} muted loop autoplay playsinline></video>`
        : html`<img src=${look} alt="" />`}
      <span class="slot-name"><b>${title}</b><span>${file.name || t("file.result")}</span></span>
      <${IconButton} name="close" label=${t("file.remove")} onClick=${onClear} />
    </div>`;
  }
  return html`<label class="slot">
    <input type="file" class="unseen" accept=${TYPES[name]} data-field=${name}
      onChange=${(event) => event.target.files[0] && onFile(event.target.files[0], name)} />
    <span class="slot-icon"><${Icon} name=${isClip ? "extend" : "image"} /></span>
    <span class="slot-name"><b>${title}</b><span>${t(required ? "file.how" : "file.how.optional")}</span></span>
  </label>`;
}

export function Attachments({ form, setForm, model, onFile }) {
  if (!model) return null;
  const slots = [];
  const takesClip = form.mode === "sound" || form.mode === "extend";
  if (takesClip) slots.push(["video", true]);
  else if (model.image !== "none") slots.push(["image", model.image === "required"]);
  if (model.mask && !takesClip) slots.push(["mask", true]);
  if (!slots.length) return null;
  const title = (name) => t(name === "image" && form.mode === "image" ? "file.edited" : `file.${name}`);
  const put = (name, file) => {
    const files = { ...form.files };
    if (file) files[name] = file;
    else delete files[name];
    setForm({ files });
  };
  return html`<div class="slots">
    ${slots.map(
      ([name, required]) => html`<${Slot} key=${name} name=${name} title=${title(name)} required=${required} file=${form.files[name]}
        onFile=${(file, field) => (field === "mask" ? put("mask", file) : onFile(file, field))} onClear=${() => put(name, null)} />`,
    )}
  </div>`;
}
