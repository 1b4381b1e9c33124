// Small parts: icons, dialogs, toasts, components that are drawn again only when what they show has changed.

import { Component, html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/htm-preact.js";
import { t } from "./words.js";

const STROKES = {
  close: "M5 5l10 10M15 5L5 15",
  cancel: "M6 6h8v8H6z",
  download: "M10 3v9m0 0l-4-4m4 4l4-4M4 16h12",
  reuse: "M4 8a6 6 0 0 1 10.5-3L16 6.5M16 3v3.5h-3.5M16 12a6 6 0 0 1-10.5 3L4 13.5M4 17v-3.5h3.5",
  seed: "M10 17v-6m0 0c0-3-2-5-6-5 0 4 2 5 6 5zm0-2c0-3 2-5 6-5 0 4-2 5-6 5z",
  compare: "M10 3v14M3.5 5.5h4v9h-4zM12.5 5.5h4v9h-4z",
  grid: "M4 4h5v5H4zM11 4h5v5h-5zM4 11h5v5H4zM11 11h5v5h-5z",
  sound: "M3.5 8v4h3l4 3.5v-11L6.5 8zM13 7.5c1.3 1.4 1.3 3.6 0 5M15 5.5c2.4 2.5 2.4 6.5 0 9",
  trash: "M4 6h12M8 6V4h4v2M6 6l.7 10h6.6L14 6",
  image: "M3.5 4.5h13v11h-13zM4 14l4-4.5 3 3 2-2 3 3.5M12.8 8.2h.01",
  extend: "M3.5 6h7v8h-7zM12 10h4.5m0 0L14 7.5m2.5 2.5L14 12.5",
  clip: "M3.5 5h13v10h-13zM8.5 8v4l3.5-2z",
  larger: "M3.5 12.5v4h4M3.5 16.5 9 11M12.5 3.5h4v4M16.5 3.5 11 9",
  change: "M4 14.5l1-3.5 7.5-7.5 2.5 2.5L7.5 13.5zM11 5l2.5 2.5M11 16h5",
  join: "M3 6h4.5v8H3zM12.5 6H17v8h-4.5zM9 10h2",
  eye: "M2.5 10S5 5 10 5s7.5 5 7.5 5-2.5 5-7.5 5-7.5-5-7.5-5zM10 12a2 2 0 1 0 0-4 2 2 0 0 0 0 4z",
  eyeOff: "M3 3l14 14M8 5.3C12.8 4 16 7 17.5 10c-.6 1.2-1.4 2.2-2.4 3M12 14.7C7.3 16 4 13 2.5 10 3 8.9 3.9 7.7 5 6.8",
  sun: "M10 13.5a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7zM10 2v1.5M10 16.5V18M2 10h1.5M16.5 10H18M4.3 4.3l1 1M14.7 14.7l1 1M15.7 4.3l-1 1M5.3 14.7l-1 1",
  moon: "M16 11.5A6.5 6.5 0 0 1 8.5 4a6.5 6.5 0 1 0 7.5 7.5z",
  auto: "M10 16.5a6.5 6.5 0 1 0 0-13zM10 3.5a6.5 6.5 0 0 0 0 13",
  keys: "M2.5 5.5h15v9h-15zM5.5 8.5h.01M8.5 8.5h.01M11.5 8.5h.01M14.5 8.5h.01M6.5 11.5h7",
  play: "M6.5 4.5v11l9-5.5z",
  pause: "M7 4.5v11M13 4.5v11",
  plus: "M10 4v12M4 10h12",
  left: "M12 4l-6 6 6 6",
  right: "M8 4l6 6-6 6",
  dice: "M4 4h12v12H4zM7.5 7.5h.01M12.5 7.5h.01M10 10h.01M7.5 12.5h.01M12.5 12.5h.01",
  out: "M8 4H4v12h4M8 10h8m0 0l-3-3m3 3l-3 3",
  more: "M5 8l5 5 5-5",
};

export const Icon = ({ name }) =>
  html`<svg class="icon" viewBox="0 0 20 20" aria-hidden="true" focusable="false"><path d=${STROKES[name]} /></svg>`;

export const Mark = () => html`<img class="mark" src="page/mark.svg" alt="" width="28" height="28" />`;

/** A button that shows an icon alone; its name is read aloud and shown as a tooltip. */
export const IconButton = ({ name, label, ...rest }) =>
  html`<button type="button" class="icon-button" aria-label=${label} title=${label} ...${rest}><${Icon} name=${name} /></button>`;

/** A component that is drawn again only when one of its properties is another. */
export function memo(render) {
  return class extends Component {
    shouldComponentUpdate(next) {
      const names = new Set([...Object.keys(next), ...Object.keys(this.props)]);
      return [...names].some((name) => next[name] !== this.props[name]);
    }
    render(props) {
      return html`<${render} ...${props} />`;
    }
  };
}

/** A modal dialog: the browser keeps the focus in it, and gives it back. */
export function Dialog({ label, onClose, kind = "", children }) {
  const own = useRef(null);
  useEffect(() => {
    const dialog = own.current;
    if (!dialog.open) dialog.showModal();
    return () => dialog.close();
  }, []);
  useLayoutEffect(() => {
    const press = (event) => event.key === "Escape" && (event.preventDefault(), onClose());
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  });
  return html`<dialog
    ref=${own}
    class="dialog ${kind}"
    aria-label=${label}
    onCancel=${(event) => (event.preventDefault(), onClose())}
    onMouseDown=${(event) => event.target === own.current && onClose()}
  >
    <div class="dialog-body">
      <${IconButton} name="close" label=${t("close")} class="icon-button dialog-close" onClick=${onClose} />
      ${children}
    </div>
  </dialog>`;
}

/** A choice of a few: radio buttons that look like one control. */
export function Segments({ name, label, value, options, onPick, hidden = true }) {
  return html`<fieldset class="segments">
    <legend class=${hidden ? "unseen" : "label"}>${label}</legend>
    <div class="segments-row">
      ${options.map(
        ([id, text]) => html`<label key=${id} class=${id === value ? "on" : ""}>
          <input type="radio" name=${name} value=${id} checked=${id === value} onChange=${() => onPick(id)} />
          <span>${text}</span>
        </label>`,
      )}
    </div>
  </fieldset>`;
}

// -- toasts -------------------------------------------------------------------------------------------------------------

let tell = () => {};
let number = 0;

/**
 * Say something that passes.
 * @param {string} text
 * @param {{kind?: "good"|"bad", act?: {label: string, run: () => void}}} [more]
 */
export const say = (text, more = {}) => tell({ id: ++number, text, ...more });
export const complain = (error) => say(error.message && error.status ? error.message : t("error.unreachable"), { kind: "bad" });

export function Toasts() {
  const [shown, show] = useState([]);
  useEffect(() => {
    tell = (one) => {
      show((before) => [...before.slice(-2), one]);
      setTimeout(() => show((before) => before.filter((other) => other.id !== one.id)), one.kind === "bad" ? 9000 : 5000);
    };
  }, []);
  return html`<div class="toasts" role="status" aria-live="polite">
    ${shown.map(
      (one) => html`<div key=${one.id} class="toast ${one.kind || ""}">
        <span>${one.text}</span>
        ${one.act && html`<button type="button" class="link" onClick=${one.act.run}>${one.act.label}</button>`}
      </div>`,
    )}
  </div>`;
}
