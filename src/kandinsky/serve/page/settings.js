// What the form asks for: overrides of a model's defaults, from hand, from a job, or from the recipe in a file.

import { beginsKnown, filled, fitting, guide, inWindows, lack, ofRequest, requested } from "./guides.js";
import { state } from "./live.js";
import { t } from "./words.js";

/** Values that belong to a model: they go when another model is chosen. */
const OF_MODEL = ["size", "seconds", "steps", "guidance", "shift", "cache", "lora", "fps", "motion", "expand", "sound", "overlap", "fade", "loop", "upscale", "upscale_strength"];
const OF_TIME = ["overlap", "fade"]; // numbers of seconds
const OF_REQUEST = [...OF_MODEL, "negative_prompt", "format", "attention", "image_guidance", "interpolation_guidance"];
const GRID_AXES = ["seed", "steps", "guidance"];
export const MOST_OF_A_GRID = 24;
export const SEEDS = 2 ** 31;
const LARGER = /^(\d{1,2}(\.\d{1,6})?|\d{1,6}\s*[x×]\s*\d{1,6})$/i; // a factor, or a size
/** What a given clip is made larger by, if nothing else is said. */
export const USUALLY_LARGER = 2;

export const MODES = {
  clip: (model) => model.makes === "video",
  image: (model) => model.makes === "image" || model.stills,
  sound: (model) => model.makes === "sound",
  extend: (model) => model.extends,
};

export const modes = () => Object.keys(MODES).filter((mode) => state.models.some(MODES[mode]));
export const modelsOf = (mode) => state.models.filter(MODES[mode]);
export const modelNamed = (id) => state.models.find((model) => model.id === id);

/** An empty form for the server's first model that fits. */
export function blank(mode = modes()[0] || "clip") {
  return {
    mode, model: modelsOf(mode)[0]?.id || "", prompt: "", seed: "", values: {}, files: {}, guides: [], later: [],
    grid: { on: false, seed: 1, steps: "", guidance: "" },
  };
}

export function withModel(form, id) {
  const values = { ...form.values };
  for (const name of OF_MODEL) delete values[name];
  const model = modelNamed(id);
  const files = { ...form.files };
  const begins = model?.image !== "none" || (form.mode === "clip" && model?.knows["first frame"]);
  if (form.mode !== "extend" && !begins) delete files.image;
  if (!model?.mask) delete files.mask;
  return { ...form, model: id, values, files };
}

export function withMode(form, mode) {
  const fits = modelsOf(mode);
  const kept = fits.some((model) => model.id === form.model) ? form.model : fits[0]?.id || "";
  const files = { ...form.files };
  if (mode !== "sound" && mode !== "extend") delete files.video;
  else delete files.image;
  return { ...withModel({ ...form, mode, files }, kept), mode };
}

/** The form with a new guide of a kind, and with a model that takes it; null if there is none. */
export function withGuide(form, kind, files) {
  const fits = (model) => fitting([{ kind }], model).length > 0;
  const next = withMode(form, "clip");
  const able = modelsOf("clip").filter(fits);
  if (!able.length) return null;
  const chosen = fits(modelNamed(next.model)) ? next : withModel(next, able[0].id);
  const open = kind === "join" && filled(chosen.guides.filter((one) => one.kind === "join"), Object.values(files)[0]);
  if (open) return { ...chosen, guides: [...chosen.guides.filter((one) => one.kind !== "join"), ...open] };
  const others = kind === "frames" ? chosen.guides : chosen.guides.filter((one) => one.kind !== kind);
  const model = modelNamed(chosen.model);
  return { ...chosen, guides: [...others, guide(kind, model, model.defaults.seconds, { files })] };
}

/** The form with an image or clip: in a place that waits for one, or as what it starts from, with a model that takes it. */
export function withFile(form, file) {
  const guides = form.mode === "clip" && filled(fitting(form.guides, modelNamed(form.model)), file);
  if (guides) return { ...form, guides };
  const isClip = file instanceof Blob ? file.type.startsWith("video/") || file.type === "image/gif" : file.kind === "video";
  if (isClip) {
    const takes = form.mode === "sound" || form.mode === "extend" ? form.mode : modelsOf("sound").length ? "sound" : "extend";
    if (!modelsOf(takes).length) return null;
    const next = withMode(form, takes);
    return { ...next, files: { ...next.files, video: file } };
  }
  const able = (mode) => modelsOf(mode).filter((model) => model.image !== "none");
  const mode = [form.mode, "clip", "image"].find((one) => one !== "sound" && one !== "extend" && able(one).length);
  if (!mode) return null;
  const fits = able(mode);
  const next = withMode(form, mode);
  const chosen = fits.some((model) => model.id === next.model) ? next : withModel(next, fits[0].id);
  return { ...chosen, files: { ...chosen.files, image: file } };
}

/** What a value is now: as chosen, or the model's default. */
export const valueOf = (form, name) => form.values[name] ?? modelNamed(form.model)?.defaults[name];

/**
 * The form that asks for a job again.
 * @param {"all"|"seedless"|"seed"} what
 */
export function reuse(form, job, what, files = {}) {
  const seed = job.seed == null ? "" : String(job.seed);
  if (what === "seed") return { ...form, seed };
  const asked = job.request || {};
  const mode = job.object === "audio" ? "sound" : job.object === "image" ? "image" : "clip";
  const model = modelNamed(job.model);
  const again = mode === "clip" ? ofRequest(asked, model, files.video) : { guides: [], later: [] };
  const values = {};
  for (const name of OF_REQUEST) if (asked[name] !== undefined && asked[name] !== null) values[name] = asked[name];
  if (asked.width && asked.height) values.size = `${asked.width}x${asked.height}`;
  if (mode === "image") delete values.seconds;
  for (const name of OF_TIME) if (name in values) values[name] = parseFloat(values[name]);
  if (values.format === (mode === "image" ? "png" : "mp4")) delete values.format;
  return {
    ...blank(mode), model: modelNamed(job.model) ? job.model : form.model, prompt: job.prompt || "",
    seed: what === "all" ? seed : "", values, files: mode === "clip" ? { ...files, video: undefined } : files,
    guides: again.guides, later: again.later,
  };
}

/** Whether some of a job's files cannot be had again. */
export const isLost = (job, files) => job.object === "video" && Boolean(ofRequest(job.request || {}, modelNamed(job.model), files.video).lost);

/** A recipe, as found in a file, in the shape of a job. */
export function jobOfRecipe(recipe) {
  const model = modelNamed(recipe.model);
  const isStill = !recipe.frames || recipe.frames === 1;
  const asked = { width: recipe.width, height: recipe.height, seconds: isStill ? undefined : recipe.seconds };
  for (const name of OF_REQUEST) {
    const given = recipe[name];
    const isScalar = typeof given === "string" || typeof given === "number" || Array.isArray(given);
    if (name !== "seconds" && isScalar && given !== "" && given !== model?.defaults[name]) asked[name] = given;
  }
  for (const name of ["prompt_at", "loop"]) if (recipe[name]) asked[name] = recipe[name];
  if (model && `${recipe.width}x${recipe.height}` === model.defaults.size) delete asked.width;
  if (asked.seconds === model?.defaults.seconds) delete asked.seconds;
  const object = model?.makes === "sound" ? "audio" : isStill ? "image" : "video";
  return { object, model: recipe.model, prompt: recipe.prompt, seed: recipe.seed, request: asked };
}

/** Numbers of one axis of a grid: `4, 8 16`. */
export const numbers = (text) => [...new Set(String(text).split(/[\s,;]+/).filter(Boolean).map(Number))];

/** What stops the form from being sent: a key of the dictionary and its values, or null. */
export function lacking(form) {
  const model = modelNamed(form.model);
  if (!model) return ["lack.model"];
  if ((form.mode === "sound" || form.mode === "extend") && !form.files.video) return ["lack.video"];
  const guides = form.mode === "clip" ? fitting(form.guides, model) : [];
  const missing = lack(guides);
  if (missing) return [missing[0], { name: t(`guide.${missing[1]}`) }];
  if (form.mode === "clip" && model.image === "required" && !form.files.image && !beginsKnown(guides)) return ["lack.image"];
  if (form.mode === "image" && model.image === "required" && !form.files.image) return ["lack.image"];
  if (model.mask && !form.files.mask) return ["lack.mask"];
  const free = form.mode === "sound" || model.prompt === "optional";
  if (!form.prompt.trim() && !free) return ["lack.prompt"];
  if (form.seed !== "" && !/^\d{1,19}$/.test(form.seed)) return ["lack.seed"];
  if (upscaling(form, model) && !LARGER.test(String(form.values.upscale ?? USUALLY_LARGER).trim())) return ["lack.upscale"];
  const axes = axesOf(form);
  if (axes.steps.some((n) => !Number.isInteger(n) || n < model.steps[0] || n > model.steps[1])) {
    return ["lack.steps", { least: model.steps[0], most: model.steps[1] }];
  }
  if (axes.guidance.some((n) => !(n >= 0))) return ["lack.guidance"];
  if (count(form) > MOST_OF_A_GRID) return ["lack.grid", { most: MOST_OF_A_GRID }];
  return null;
}

/** Whether a second stage makes the result larger. */
export function upscaling(form, model) {
  if (!model?.upscales || form.mode === "sound") return false;
  const given = form.mode === "clip" && fitting(form.guides, model).some((one) => one.kind === "source" && one.how === "larger");
  return given || Boolean(form.values.upscale);
}

function axesOf(form) {
  if (!form.grid.on) return { seed: 1, steps: [], guidance: [] };
  return { seed: form.grid.seed, steps: numbers(form.grid.steps), guidance: numbers(form.grid.guidance) };
}

/** How many results the form asks for. */
export function count(form) {
  const { seed, steps, guidance } = axesOf(form);
  return seed * Math.max(1, steps.length) * Math.max(1, guidance.length);
}

/** The requests of the form: call, fields, files. */
export function requests(form) {
  const model = modelNamed(form.model);
  const { seed, steps, guidance } = axesOf(form);
  const one = { model: form.model };
  if (form.prompt.trim()) one.prompt = form.prompt.trim();
  for (const [name, value] of Object.entries(form.values)) if (value !== "" && value !== null) one[name] = value;
  const files = {};
  if (form.mode === "clip") {
    const told = requested(fitting(form.guides, model), model);
    Object.assign(one, told.values);
    Object.assign(files, told.files);
    const rows = inWindows(model) ? form.later.filter((row) => row.prompt.trim()) : [];
    if (rows.length) one.prompt_at = rows.map((row) => [row.prompt.trim(), row.at]);
    else delete one.fade;
  }
  for (const name of ["upscale", "upscale_strength"]) if (!upscaling(form, model)) delete one[name];
  if (upscaling(form, model)) {
    const wanted = String(one.upscale ?? USUALLY_LARGER).trim();
    one.upscale = Number(wanted) || wanted;
  }
  for (const name of OF_TIME) if (one[name] !== undefined) one[name] = name === "overlap" ? `${one[name]}s` : one[name];
  if (form.files.image) files[form.mode === "clip" ? "input_reference" : "image"] = form.files.image;
  if (form.files.mask) files.mask = form.files.mask;
  if (form.files.video) files.video = form.files.video;
  let call = form.mode;
  if (call === "image") {
    call = files.image ? "edit" : "image";
    if (one.format) one.output_format = one.format;
    for (const name of ["format", "seconds", "sound", "overlap", "fade", "loop"]) delete one[name];
  }
  if (call === "sound") for (const name of ["size", "shift", "cache", "lora", "sound", "expand", "overlap", "fade", "loop"]) delete one[name];
  if (model.makes !== "sound" && !model.sounds_with) delete one.sound;
  const first = form.seed !== "" ? Number(form.seed) : form.grid.on ? Math.floor(Math.random() * SEEDS) : null;
  const made = [];
  for (let i = 0; i < seed; i++) {
    for (const s of steps.length ? steps : [null]) {
      for (const g of guidance.length ? guidance : [null]) {
        const values = { ...one };
        if (first !== null) values.seed = first + i;
        if (s !== null) values.steps = s;
        if (g !== null) values.guidance = g;
        made.push({ call, values, files });
      }
    }
  }
  return made;
}

/** What two jobs that belong to one grid have in common. */
export function family(job) {
  const asked = { ...(job.request || {}) };
  for (const axis of GRID_AXES) delete asked[axis];
  delete asked.priority;
  return JSON.stringify([job.object, job.model, job.prompt, Object.entries(asked).sort()]);
}

/** A job's value on an axis. */
export function onAxis(job, axis) {
  if (axis === "seed") return job.seed ?? null;
  return job.request?.[axis] ?? job.recipe?.[axis] ?? modelNamed(job.model)?.defaults[axis] ?? null;
}

/**
 * The grid around a job: those that differ from it in seed, steps and guidance alone.
 * @returns {{axes: Object<string, number[]>, jobs: object[]}}
 */
export function gridAround(job, all) {
  const mine = family(job);
  const jobs = all.filter((one) => one.status !== "cancelled" && family(one) === mine);
  const axes = {};
  for (const axis of GRID_AXES) {
    const found = [...new Set(jobs.map((one) => onAxis(one, axis)).filter((value) => value !== null))];
    if (found.length > 1) axes[axis] = found.sort((a, b) => a - b);
  }
  return { axes, jobs };
}
