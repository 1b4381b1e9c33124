// Results that differ in seed, steps and guidance alone, as a table. It is found in the list of jobs, not remembered.

import { html, useState } from "./vendor/htm-preact.js";
import { state, useLive } from "./live.js";
import { Peek, shapeOf } from "./media.js";
import { gridAround, onAxis } from "./settings.js";
import { Dialog, Segments } from "./ui.js";
import { number, t } from "./words.js";

const told = (axis, value) => `${t(`axis.${axis}`)} ${axis === "seed" ? value : number(value)}`;

export function GridView({ job, onClose, onOpen }) {
  useLive();
  const { axes, jobs } = gridAround(job, [...state.jobs.values()]);
  const names = Object.keys(axes);
  const [across, setAcross] = useState(names.includes("guidance") ? "guidance" : names[0] || "seed");
  const down = names.find((name) => name !== across);
  const fixed = names.filter((name) => name !== across && name !== down);
  const columns = axes[across] || [onAxis(job, across)];
  const rows = down ? axes[down] : [null];
  const newest = [...jobs].sort((a, b) => b.created_at - a.created_at);
  const at = (row, column) =>
    newest.find((one) => onAxis(one, across) === column && (row === null || onAxis(one, down) === row) && fixed.every((name) => onAxis(one, name) === onAxis(job, name)));
  return html`<${Dialog} label=${t("grid")} kind="grid-view" onClose=${onClose}>
    <header class="dialog-head"><div><h2>${t("grid")}</h2><p class="muted">${job.prompt}</p></div>
      ${names.length > 1 && html`<${Segments} name="across" label=${t("grid.across")} value=${across} onPick=${setAcross} hidden=${false}
        options=${names.map((name) => [name, t(`axis.${name}`)])} />`}</header>
    <div class="grid-scroll" tabindex="0" role="region" aria-label=${t("grid")}>
      <table class="grid-table">
        <thead><tr>${down && html`<td></td>`}${columns.map((column) => html`<th scope="col" key=${column}>${told(across, column)}</th>`)}</tr></thead>
        <tbody>${rows.map((row) => html`<tr key=${row}>${down && html`<th scope="row">${told(down, row)}</th>`}
          ${columns.map((column) => {
            const one = at(row, column);
            const where = [told(across, column), down && told(down, row)].filter(Boolean).join(", ");
            return html`<td key=${column}>${!one
              ? html`<span class="cell none" aria-label=${where}>–</span>`
              : one.status === "completed"
                ? html`<button type="button" class="cell" aria-label=${where} ref=${(own) => own?.style.setProperty("--shape", shapeOf(one))}
                    onClick=${() => onOpen(one)}><${Peek} job=${one} always /></button>`
                : html`<span class="cell none">${one.status === "in_progress" ? `${one.progress || 0} %` : t(`status.${one.status}`)}</span>`}</td>`;
          })}</tr>`)}</tbody>
      </table>
    </div>
    ${fixed.length > 0 && html`<p class="muted">${fixed.map((name) => told(name, onAxis(job, name))).join(" · ")}</p>`}
  <//>`;
}
