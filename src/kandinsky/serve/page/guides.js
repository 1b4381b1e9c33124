// What else a result follows besides its prompt, as values: known frames, a clip that is changed, two clips that are
// joined, a control, a reference, and prompts by time. No drawing.

import { takesFile } from "./slot.js";

const ONCE = ["last", "source", "join", "control", "reference"]; // frames may be known in several places
const KNOWN_GROUPS = 2; // of frames after the first, that a join knows of each clip

/** Which kinds a model takes. */
export const KINDS = {
  last: (model) => "frames" in model.knows,
  frames: (model) => "frames" in model.knows,
  join: (model) => "frames" in model.knows,
  source: (model) => "source" in model.knows,
  control: (model) => "control" in model.branches,
  reference: (model) => "reference" in model.branches,
};

/** The places for files of each kind: name, and what it takes. */
export const PLACES = {
  last: [["last", "image"]],
  frames: [["frames", "either"]],
  join: [["first", "video"], ["second", "video"]],
  source: [["source", "video"]],
  control: [["control", "either"]],
  reference: [["reference", "image"]],
};
const MASK = ["mask", "either"];
const placesOf = (guide) => [...PLACES[guide.kind], ...(guide.kind === "source" && guide.how === "part" ? [MASK] : [])];

const isOfClips = (model) => Boolean(model) && model.makes === "video";
/** Whether a model makes clips in windows, and so takes prompts by time, loops, and any length. */
export const inWindows = (model) => isOfClips(model) && model.overlap > 0;

/** Kinds that may be added to a form now. */
export function addable(guides, model) {
  if (!isOfClips(model)) return [];
  const has = (kind) => guides.some((one) => one.kind === kind);
  return Object.keys(KINDS).filter((kind) => KINDS[kind](model) && !(ONCE.includes(kind) && has(kind)));
}

let number = 0;
export const later = (at, prompt = "") => ({ id: ++number, at, prompt });

/** A new one of a kind, with its usual values. */
export function guide(kind, model, seconds, more = {}) {
  const usual = {
    frames: { at: Math.round(seconds * 5) / 10, from: "", to: "" },
    source: { how: "whole", strength: 0.85, from: "", to: "", prompt: "" },
    control: { strength: 1, branch: "" },
    reference: { strength: 1, branch: "" },
  }[kind];
  return { id: ++number, kind, files: {}, ...usual, ...more };
}

/** Those that a model takes. */
export const fitting = (guides, model) => guides.filter((one) => isOfClips(model) && KINDS[one.kind](model));

/** The guides with a file in the first empty place that takes it; null if there is none. */
export function filled(guides, file) {
  for (const one of guides) {
    const place = placesOf(one).find(([name, takes]) => !one.files[name] && takesFile(takes, file));
    if (place) return guides.map((other) => (other === one ? { ...one, files: { ...one.files, [place[0]]: file } } : other));
  }
  return null;
}

/** What is missing: a key of the dictionary, and the kind that it is about; or null. */
export function lack(guides) {
  for (const { kind, files, how, from, to, prompt } of guides) {
    if (PLACES[kind].some(([name]) => !files[name])) return ["lack.guide", kind];
    if (kind === "source" && how === "part" && !files.mask && from === "" && to === "") return ["lack.part", kind];
    if (kind === "source" && how === "prompts" && !prompt.trim()) return ["lack.shows", kind];
  }
  return null;
}

/** Whether the first frame follows something else than the form's image. */
export const beginsKnown = (guides) => guides.some((one) => ["source", "join"].includes(one.kind) || (one.kind === "frames" && Number(one.at) === 0));

const part = (from, to) => (from === "" && to === "" ? undefined : `${from === "" ? "" : `${from}s`}:${to === "" ? "" : `${to}s`}`);
const without = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined && value !== ""));

/**
 * What a request says of guides.
 * @returns {{values: object, files: object}} Fields, and files by field; those of `conditions` stand in it.
 */
export function requested(guides, model) {
  const values = {};
  const files = {};
  const conditions = [];
  const branch = [];
  for (const one of guides) {
    const { kind, files: own } = one;
    if (kind === "last") files.last_image = own.last;
    if (kind === "frames") conditions.push(without({ frames: own.frames, at: one.at === "end" ? "end" : `${one.at}s`, cut: part(one.from, one.to) }));
    if (kind === "join") {
      const frames = KNOWN_GROUPS * model.frames_together;
      const seconds = (count) => `${(count / model.fps).toFixed(6)}s`;
      conditions.push({ frames: own.first, at: 0, cut: `-${seconds(frames + 1)}:` }, { frames: own.second, at: "end", cut: `0:${seconds(frames)}` });
    }
    if (kind === "source") {
      files.video = own.source;
      if (one.how === "whole") values.strength = one.strength;
      if (one.how === "prompts") values.source_prompt = one.prompt.trim();
      if (one.how === "part") {
        if (own.mask) files.mask = own.mask;
        Object.assign(values, without({ span: part(one.from, one.to) }));
      }
    }
    if (kind === "control" || kind === "reference") {
      files[kind] = own[kind];
      if (one.strength !== 1) values[`${kind}_strength`] = one.strength;
      const chosen = one.branch || model.branches[kind][0];
      if (chosen) branch.push(chosen);
    }
  }
  if (conditions.length) values.conditions = conditions;
  if (branch.length) values.branch = branch;
  return { values, files };
}

const secondsOf = (text, fps) => (typeof text === "number" ? text : /[sс]$/.test(text) ? parseFloat(text) : Number(text) / fps);

/**
 * What a job was asked for, to be asked again. Files that were uploaded are gone; results of this server are not.
 * @returns {{guides: object[], later: object[], lost: boolean}}
 */
export function ofRequest(asked, model, source) {
  const guides = [];
  const rows = (asked.prompt_at || []).map((one) => later(secondsOf(one.at, model?.fps || 1), one.prompt));
  let lost = Boolean(asked.last_image || asked.control || asked.reference || asked.mask);
  for (const one of asked.conditions || []) {
    const isHere = /^job_[0-9a-f]{32}$/.test(one.frames || "");
    if (!isHere) lost = true;
    else {
      const at = one.at === "end" ? "end" : secondsOf(one.at ?? 0, model?.fps || 1);
      const [from, to] = String(one.cut || ":").split(":").map((end) => (end === "" ? "" : secondsOf(end, model?.fps || 1)));
      guides.push(guide("frames", model, 0, { at, from, to, files: { frames: { id: one.frames, kind: "video", name: "" } } }));
    }
  }
  if (source && model && KINDS.source(model)) {
    const [from, to] = String(asked.span || ":").split(":").map((end) => (end === "" ? "" : secondsOf(end, model.fps)));
    const asItIs = asked.upscale && !asked.strength && !asked.place;
    const how = asked.source_prompt ? "prompts" : asked.span || asked.mask ? "part" : asItIs ? "larger" : "whole";
    const values = { how, from, to, prompt: asked.source_prompt || "", ...(asked.strength ? { strength: asked.strength } : {}) };
    guides.push(guide("source", model, 0, { ...values, files: { source } }));
  }
  return { guides, later: rows, lost };
}
