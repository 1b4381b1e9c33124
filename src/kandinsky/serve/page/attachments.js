// The image, mask or clip that a request starts from: dropped, pasted, chosen, or a result of before.

import { html } from "./vendor/htm-preact.js";
import { Slot } from "./slot.js";
import { t } from "./words.js";

export function Attachments({ form, setForm, model, onFile }) {
  if (!model) return null;
  const slots = [];
  const takesClip = form.mode === "sound" || form.mode === "extend";
  if (takesClip) slots.push(["video", true]);
  else if (model.image !== "none") slots.push(["image", model.image === "required"]);
  else if (form.mode === "clip" && model.knows["first frame"]) slots.push(["image", false]);
  if (model.mask && !takesClip) slots.push(["mask", true]);
  if (!slots.length) return null;
  const title = (name) => t(name === "image" && form.mode === "image" ? "file.edited" : `file.${name}`);
  const put = (name, file) => {
    const files = { ...form.files };
    if (file) files[name] = file;
    else delete files[name];
    setForm({ files });
  };
  const own = (name) => name === "mask" || (name === "image" && model.image === "none");
  return html`<div class="slots">
    ${slots.map(
      ([name, required]) => html`<${Slot} key=${name} name=${name} title=${title(name)} takes=${name === "video" ? "video" : "image"}
        hint=${t(required ? "file.how" : "file.how.optional")} file=${form.files[name]}
        onFile=${(file) => (own(name) ? put(name, file) : onFile(file))} onClear=${() => put(name, null)} />`,
    )}
  </div>`;
}
