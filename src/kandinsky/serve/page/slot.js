// A place for one file: dropped on it, pasted while it has the focus, or chosen.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import * as api from "./api.js";
import { Icon, IconButton } from "./ui.js";
import { t } from "./words.js";

const STILLS = "image/png,image/jpeg,image/webp";
const TYPES = { image: STILLS, video: "video/*", either: `${STILLS},video/*` };

export const isClipFile = (file) => (file instanceof Blob ? file.type.startsWith("video/") : file.kind === "video");
/** Whether a place for one kind takes a file. */
export const takesFile = (kind, file) => kind === "either" || (kind === "video") === isClipFile(file);

/** What a file looks like: an object URL, or the thumbnail of a job. */
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

/**
 * @param {object} props
 * @param {string} props.name Of the field.
 * @param {"image"|"video"|"either"} props.takes
 * @param {File|{id: string, kind: string, name: string}|null} props.file
 */
export function Slot({ name, title, hint, takes, file, onFile, onClear }) {
  const look = useLook(file);
  const [over, setOver] = useState(false);
  const [wrong, setWrong] = useState(false);
  const give = (one) => {
    if (!one) return;
    setWrong(!takesFile(takes, one));
    if (takesFile(takes, one)) onFile(one);
  };
  const drop = (event) => {
    const one = event.dataTransfer?.files[0];
    setOver(false);
    if (one) (event.preventDefault(), give(one)); // which tells the page that it is taken
  };
  const paste = (event) => {
    const one = [...(event.clipboardData?.files || [])][0];
    if (one) (event.preventDefault(), give(one));
  };
  const hover = (event) => [...(event.dataTransfer?.types || [])].includes("Files") && setOver(true);
  if (file) {
    return html`<div class="slot full" onDrop=${drop} onDragOver=${hover} onDragLeave=${() => setOver(false)}>
      ${isClipFile(file) && file instanceof Blob
        ? html`<video src=${look} muted loop autoplay playsinline aria-hidden="true"></video>`
        : html`<img src=${look} alt="" />`}
      <span class="slot-name"><b>${title}</b><span>${file.name || t("file.result")}</span></span>
      <${IconButton} name="close" label=${t("file.remove.one", { name: title })} onClick=${onClear} />
    </div>`;
  }
  return html`<label class="slot ${over ? "over" : ""}" onDrop=${drop} onDragOver=${hover} onDragLeave=${() => setOver(false)} onPaste=${paste}>
    <input type="file" class="unseen" accept=${TYPES[takes]} data-field=${name}
      onChange=${(event) => (give(event.target.files[0]), (event.target.value = ""))} />
    <span class="slot-icon"><${Icon} name=${takes === "video" ? "clip" : "image"} /></span>
    <span class="slot-name"><b>${title}</b><span class=${wrong ? "problem" : ""} role=${wrong ? "alert" : null}>${wrong ? t(`file.wrong.${takes}`) : hint}</span></span>
  </label>`;
}
