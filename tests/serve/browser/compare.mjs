// A side-by-side study from its beginning to its report, in a real browser, with the keys. One line of JSON.
// Run: node compare.mjs CHROMIUM URL URL_WITH_KEY KEY STUDY_WITH_CHECKS

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const [, , executablePath, url, lockedUrl, key, checkedId] = process.argv;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"];
const SHOTS = process.env.SHOTS;

function check(fact, what) {
  if (!fact) throw new Error(what);
}
const same = (a, b, what) => check(a === b, `${what}: ${JSON.stringify(a)} is not ${JSON.stringify(b)}`);
const faults = [];

async function open(browser, { address = url, ...options } = {}) {
  const context = await browser.newContext({ locale: "en-GB", viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (line) => /Content Security Policy|Refused to/.test(line.text()) && faults.push(line.text()));
  page.on("request", (request) => {
    if (!/^(blob|data):/.test(request.url()) && new URL(request.url()).origin !== new URL(address).origin) faults.push(`foreign ${request.url()}`);
  });
  await page.goto(`${address}/compare`);
  return page;
}
async function accessible(page, where) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const bad = found.violations.filter((one) => one.impact === "serious" || one.impact === "critical");
  check(!bad.length, `${where}: ${bad.map((one) => `${one.id} ${one.nodes.map((node) => `${node.target} ${node.failureSummary}`).join("; ")}`).join(" | ")}`);
}
const shot = (page, name) => SHOTS && page.screenshot({ path: `${SHOTS}/${name}.png`, fullPage: true });

/** Whether the left clip is the darker one, which `ours` made. */
const leftIsOurs = (page) =>
  page.evaluate(async () => {
    const mean = async (video) => {
      while (video.readyState < 2) await new Promise((wake) => setTimeout(wake, 20));
      const canvas = Object.assign(document.createElement("canvas"), { width: 4, height: 4 });
      const pen = canvas.getContext("2d");
      pen.drawImage(video, 0, 0, 4, 4);
      return pen.getImageData(0, 0, 1, 1).data[0];
    };
    const [left, right] = document.querySelectorAll(".study-pair video");
    return (await mean(left)) < (await mean(right));
  });
const number = (page) => page.evaluate(() => document.querySelector(".study-progress")?.value ?? -1);

/** Answer everything with the keys; `prefers(ours is left, question)` gives the key. */
async function session(page, who, prefers) {
  await page.fill("#annotator", who);
  await page.keyboard.press("Enter");
  let phases = "";
  for (;;) {
    await page.waitForSelector(".study-pair, .study-done");
    if (await page.locator(".study-done").count()) return phases;
    const before = await number(page);
    const ours = await leftIsOurs(page);
    phases += (await page.locator(".study-prompt").count()) ? "p" : "v";
    for (const name of await page.locator(".question").evaluateAll((all) => all.map((one) => one.dataset.question))) {
      same(await page.getAttribute(".question.current", "data-question"), name, "the question in turn");
      await page.keyboard.press(prefers(ours, name));
    }
    await page.keyboard.press("Enter");
    await page.waitForFunction((old) => document.querySelector(".study-done") || document.querySelector(".study-progress")?.value > old, before);
  }
}

const browser = await chromium.launch({ executablePath, args: FLAGS });
const told = { ok: true, problem: "" };
try {
  const page = await open(browser);
  await page.waitForSelector(".study-new");
  await accessible(page, "the list");
  await shot(page, "list");
  await page.fill("#study-name", "Ours against theirs");
  for (const name of ["ours", "theirs"]) await page.check(`.study-sets label:has-text("${name}") input`);
  await page.fill("#study-overlap", "2");
  await page.click(".study-new button[type=submit]");
  await page.waitForSelector("#annotator");
  const id = await page.evaluate(() => location.hash.slice(1));
  check(/^study_/.test(id), "the address names the study");

  // one goes back and changes an answer; everything else with the keys
  await page.fill("#annotator", "ann");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".study-pair");
  await page.waitForFunction(() => [...document.querySelectorAll(".study-pair video")].every((one) => one.readyState >= 2));
  check(!/\bours\b|\btheirs\b/.test(await page.evaluate(() => document.body.innerHTML.replaceAll(/Ours against theirs/g, ""))), "a model is named");
  await accessible(page, "a pair");
  await shot(page, "pair");
  await page.keyboard.press("2");
  await page.keyboard.press("2");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector(".study-progress")?.value === 1);
  await page.keyboard.press("Backspace");
  await page.waitForFunction(() => document.querySelector(".study-progress")?.value === 0);
  same(await page.locator(".choice[aria-pressed=true]").count(), 2, "the answers that were given");
  await page.keyboard.press("ArrowUp");
  await page.reload();
  const all = await session(page, "ann", (ours) => (ours ? "ArrowLeft" : "ArrowRight"));
  same(all, "vvppp", "phases: looks first, then the prompt");
  await shot(page, "done");

  const other = await open(browser, { colorScheme: "dark" });
  await other.waitForSelector(".study-list");
  await other.click(".study-list a.primary");
  await other.waitForSelector("#annotator");
  same(await session(other, "ben", (ours, name) => (name === "motion" ? "2" : ours ? "1" : "3")), "vvvppp", "the phases");

  await page.click(".study-done a.primary");
  await page.waitForSelector(".versus-report");
  const row = async (name) => (await page.locator(`[data-row="${name}"] td`).allTextContents()).slice(1).join(" | ");
  check(/^83 % \| 17 % \| 0 % \| \+83/.test(await row("visual quality")), `looks: ${await row("visual quality")}`);
  check(/^33 % \| 67 % \| 0 % \| \+33/.test(await row("motion")), `motion: ${await row("motion")}`);
  check(/^100 % \| 0 % \| 0 % \| \+100 \[\+100, \+100\] \| 0\.25 \| 6$/.test(await row("text alignment")), `prompt: ${await row("text alignment")}`);
  await accessible(page, "the report");
  await shot(page, "report");
  await page.emulateMedia({ media: "print" });
  check(!(await page.locator(".no-print").first().isVisible()), "buttons on paper");
  await shot(page, "print");
  await page.emulateMedia({ media: "screen" });
  const lines = await (await fetch(`${url}/v1/comparisons/${id}/votes`)).text();
  same(lines.trim().split("\n").length, 18, "votes");
  await page.setInputFiles(".file input", { name: "votes.jsonl", mimeType: "application/x-ndjson", buffer: Buffer.from(lines.replaceAll('"ann"', '"eve"')) });
  await page.waitForSelector(".toast.good");
  await page.waitForFunction(() => /eve 9/.test(document.body.innerText));
  await page.click(".languages button[lang=ru]");
  await page.waitForFunction(() => /Порядок моделей/.test(document.body.innerText));
  const bare = await page.evaluate(async () => Object.keys(await (await fetch("page/languages/en.json")).json()).filter((name) => name.includes(".") && document.body.innerText.includes(name)));
  same(bare.join(" "), "", "keys without their texts");
  await page.click(".top-acts > button");
  await page.click(".top-acts > button");
  same(await page.evaluate(() => document.documentElement.dataset.theme), "dark", "colours");
  await page.waitForTimeout(500); // colours fade
  await accessible(page, "the report, dark and Russian");
  await shot(page, "report-ru");

  // whoever did not look is told by name, on paper too
  check(!(await page.locator("[data-person]").count()), "checks of a study without any");
  const checked = await open(browser);
  await checked.goto(`${url}/compare#${checkedId}/report`);
  await checked.waitForSelector("[data-person]");
  await checked.emulateMedia({ media: "print" });
  const failed = async (who) => (await checked.locator(`[data-person="${who}"] td`).allInnerTexts()).join(" of ");
  same(`${await failed("keen")}, ${await failed("tired")}`, "0 of 1, 1 of 1", "failed checks");
  check(await checked.locator("[data-person=tired]").isVisible(), "failed checks on paper");
  await accessible(checked, "the report with checks");
  await shot(checked, "report-checks");

  const phone = await open(browser, { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true });
  await phone.waitForSelector(".study-list");
  await phone.goto(`${url}/compare#${id}`);
  await phone.fill("#annotator", "phone");
  await phone.tap("button[type=submit]");
  await phone.waitForSelector(".study-pair");
  check((await phone.evaluate(() => document.documentElement.scrollWidth)) <= 390, "wider than a phone");
  await shot(phone, "phone");
  await phone.goto(`${url}/compare#${id}/report`);
  await phone.waitForSelector(".versus-report");
  check((await phone.evaluate(() => document.documentElement.scrollWidth)) <= 390, "the report is wider than a phone");

  const locked = await open(browser, { address: lockedUrl });
  await locked.waitForSelector(".gate");
  await locked.fill("#key", key);
  await locked.click(".gate button");
  await locked.waitForSelector(".study-lead");
  check(!faults.length, `faults: ${faults.join(" | ")}`);
} catch (error) {
  Object.assign(told, { ok: false, problem: String(error.stack || error) });
}
console.log(JSON.stringify(told));
await browser.close();
