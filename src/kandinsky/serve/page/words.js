// The page's languages: dictionaries with the same keys, plural forms, numbers and times as each language writes them.

export const LANGUAGES = { en: "English", ru: "Русский" };
const KEPT = "kandinsky.language";
let language = "en";
let table = {};

/** The language that was chosen before, or that the browser prefers. */
export function preferred() {
  const kept = read(KEPT);
  if (kept in LANGUAGES) return kept;
  return (navigator.languages || []).map((one) => one.slice(0, 2)).find((one) => one in LANGUAGES) || "en";
}

export async function speak(name) {
  const answer = await fetch(`page/languages/${name}.json`);
  table = await answer.json();
  language = name;
  document.documentElement.lang = name;
  keep(KEPT, name);
}

export const spoken = () => language;

/** The browser's own variety of the language: it decides between 17:05 and 5:05 PM. */
const locale = () => (navigator.languages || []).find((one) => one.startsWith(language)) || language;

/**
 * A text in the language of the page.
 * @param {string} key
 * @param {object} [values] For its `{placeholders}`; `n` also chooses the plural form.
 */
export function t(key, values = {}) {
  let text = table[key];
  if (text === undefined && "n" in values) text = table[`${key}.${new Intl.PluralRules(language).select(values.n)}`];
  if (text === undefined) return key;
  return text.replace(/\{(\w+)\}/g, (_, name) => (typeof values[name] === "number" ? number(values[name]) : values[name]));
}

export const has = (key) => key in table;
export const number = (value, digits = 2) => new Intl.NumberFormat(locale(), { maximumFractionDigits: digits }).format(value);

/** A length of time, rounded as a person would say it. */
export function duration(seconds) {
  if (seconds < 10) return t("time.s", { n: Math.max(seconds < 1 ? 0.1 : 0, Math.round(seconds * 10) / 10) });
  if (seconds < 90) return t("time.s", { n: Math.round(seconds) });
  if (seconds < 5400) return t("time.min", { n: Math.round(seconds / 60) });
  return t("time.h", { n: Math.round(seconds / 360) / 10 });
}

export function clock(at) {
  return new Intl.DateTimeFormat(locale(), { hour: "2-digit", minute: "2-digit" }).format(at * 1000);
}

/** `Today`, `Yesterday`, or a date. */
export function day(at) {
  const then = new Date(at * 1000);
  const midnight = new Date().setHours(0, 0, 0, 0);
  const days = Math.round((midnight - new Date(then).setHours(0, 0, 0, 0)) / 86400000);
  if (days < 2) return t(days < 1 ? "day.today" : "day.yesterday");
  return new Intl.DateTimeFormat(locale(), { day: "numeric", month: "long", year: "numeric" }).format(then);
}

export function bytes(count) {
  const unit = count < 1e6 ? "kB" : count < 1e9 ? "MB" : "GB";
  const value = count / { kB: 1e3, MB: 1e6, GB: 1e9 }[unit];
  return `${number(value, value < 10 ? 1 : 0)} ${t(`unit.${unit}`)}`;
}

// A browser may forbid storage; the page then forgets its preferences, and works.
export function read(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

export function keep(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    /* forgotten */
  }
}
