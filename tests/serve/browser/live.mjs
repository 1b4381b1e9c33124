// The page's live mode in a real browser, with the keyboard. One line of JSON.
// Run: node live.mjs CHROMIUM URL KEY

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const [, , executablePath, url, key] = process.argv;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const SHOTS = process.env.SHOTS;
const faults = [];

function check(fact, what) {
  if (!fact) throw new Error(what);
}
const shot = (page, name) => SHOTS && page.screenshot({ path: `${SHOTS}/${name}.png` });

async function accessible(page, where) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const bad = found.violations.filter((one) => one.impact === "serious" || one.impact === "critical");
  check(!bad.length, `${where}: ${bad.map((one) => `${one.id} ${one.nodes.map((node) => `${node.target} ${node.failureSummary}`).join("; ")}`).join(" | ")}`);
}

/** What the canvas shows, as one number for each of a few points. */
const pixels = (page) =>
  page.evaluate(() => {
    const canvas = document.querySelector(".live-stage canvas");
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return Array.from({ length: 64 }, (_, i) => data[i * 4 * 97 + (i % 3)]).join();
  });
async function changes(page, before) {
  await page.waitForFunction(
    (before) => {
      const canvas = document.querySelector(".live-stage canvas");
      const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      return Array.from({ length: 64 }, (_, i) => data[i * 4 * 97 + (i % 3)]).join() !== before;
    },
    before,
  );
}

async function live(browser) {
  const context = await browser.newContext({ locale: "ru-RU", viewport: { width: 1280, height: 800 } });
  const page = await context.newPage();
  await page.addInitScript(() => delete globalThis.VideoDecoder); // as on a page without https
  page.setDefaultTimeout(60_000);
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (line) => /Content Security Policy|Refused to/.test(line.text()) && faults.push(line.text()));
  await page.goto(`${url}/live`);
  await page.fill("#key", key); // the socket is opened with the cookie that this gives
  await page.keyboard.press("Enter");
  await page.waitForSelector("#live-prompt");
  check((await page.textContent("nav a[aria-current]")) === "Вживую", "the page is not in Russian");
  await accessible(page, "before");
  await page.focus("#live-prompt");
  await page.keyboard.type("кот");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".live-stage.live");
  const first = await pixels(page);
  await changes(page, first);
  check((await page.getAttribute(".live-stage canvas", "data-format")) === "jpeg", "not JPEG without WebCodecs");
  await shot(page, "live");
  await page.fill("#live-prompt", "<b>трактор</b>");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector(".live-caption b")?.textContent === "<b>трактор</b>");
  check((await page.getAttribute(".live-stage canvas", "aria-label")).includes("трактор"), "the canvas has no name");
  check((await page.locator(".live-prompts li").count()) === 2, "the prompts are not listed");
  await page.click(".live-save button");
  await page.waitForSelector(".live-clips video");
  const [file] = await Promise.all([page.waitForEvent("download"), page.click(".live-clips a")]);
  check((await file.failure()) === null, "the clip cannot be downloaded");
  await accessible(page, "while it runs");
  await page.setViewportSize({ width: 390, height: 800 });
  check(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "it is wider than a phone");
  await shot(page, "live-phone");
  await page.click(".composer .send .secondary");
  await page.waitForSelector(".live-stage.ended");
  check((await page.textContent(".live-veil[role=status] .live-told")) === "Остановлено", "it does not say that it was stopped");
  await page.click('nav a[href="/"]');
  await page.waitForSelector("#prompt:enabled");
  await page.waitForSelector(".card"); // the saved clip is with the others
  await page.goBack();
  await page.waitForSelector("#live-prompt");
  await context.clearCookies(); // a key that is not known any more is asked for, and no connection is said to be lost
  await page.fill("#live-prompt", "кот");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".gate");
  check(!faults.length, faults.join("\n"));
}

/** A world is played by keys, and another prompt stands where the one before did. */
async function world(browser) {
  const context = await browser.newContext({ viewport: { width: 1000, height: 800 } });
  const page = await context.newPage();
  await page.addInitScript(() => {
    const Own = globalThis.VideoDecoder;
    globalThis.VideoDecoder = class extends Own {
      constructor(told) {
        super(told);
        globalThis.faulty = () => (this.close(), told.error(new Error("faulty")));
      }
    };
  });
  page.setDefaultTimeout(60_000);
  page.on("pageerror", (error) => faults.push(String(error)));
  await page.goto(`${url}/live`);
  await page.fill("#key", key);
  await page.keyboard.press("Enter");
  await page.waitForSelector("#live-prompt");
  await page.selectOption("#live-model", "nano-world");
  await page.fill("#live-prompt", "a panda on a blue background");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".live-stage.live");
  // where the subject is: the mean column of what is unlike the background, of 0 to 1
  const where = () =>
    page.evaluate(() => {
      const canvas = document.querySelector(".live-stage canvas");
      const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      let [sum, count] = [0, 0];
      for (let y = 0; y < height; y++)
        for (let x = 0; x < width; x++) {
          const unlike = [0, 1, 2].reduce((all, c) => all + Math.abs(data[(y * width + x) * 4 + c] - data[2 * width * 4 + 8 + c]), 0);
          if (unlike > 150) (sum += x), count++;
        }
      return count ? sum / count / width : 0.5;
    });
  const until = async (test, what) => {
    for (let tries = 0; tries < 200; tries++) {
      if (test(await where())) return;
      await page.waitForTimeout(100);
    }
    throw new Error(`${what}: it is at ${await where()}`);
  };
  const best = await page.evaluate(async () => {
    const able = async (codec) => (await VideoDecoder.isConfigSupported({ codec })).supported;
    return (await able("avc1.42C01E")) ? "h264" : (await able("vp09.00.10.08")) ? "vp9" : "jpeg";
  });
  const format = () => page.getAttribute(".live-stage canvas", "data-format");
  check((await format()) === best, `${await format()} instead of ${best}`);
  const background = () => page.evaluate(() => [...document.querySelector(".live-stage canvas").getContext("2d").getImageData(4, 4, 1, 1).data].slice(0, 3));
  const [red, green, blue] = await background();
  check(blue > 150 && red < 90 && green < 110, `the background is ${await background()}, not blue`);
  await page.keyboard.down("ArrowRight"); // without a click: the keys play once the session runs
  await page.waitForSelector(".live-pad .right.on");
  await until((at) => at > 0.68, "right");
  await page.keyboard.up("ArrowRight");
  await page.fill("#live-prompt", "a frog on a pink background");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector(".live-caption b")?.textContent === "a frog on a pink background");
  await until((at) => at > 0.68, "the other one is elsewhere");
  await shot(page, "world");
  check((await page.inputValue("#live-prompt")) === "a frog on a pink background", "the prompt is not kept");
  await page.keyboard.down("ArrowLeft");
  await page.waitForSelector(".live-pad .left.on");
  await until((at) => at < 0.66, "left");
  await page.keyboard.up("ArrowLeft");
  await page.evaluate(() => globalThis.faulty()); // a decoder that fails after all
  await page.waitForFunction(() => document.querySelector(".live-stage canvas").dataset.format === "jpeg");
  await accessible(page, "a world");
  await page.click(".composer .send .secondary");
  await page.waitForSelector(".live-stage.ended");
  check(!faults.length, faults.join("\n"));
  await context.close();
}

const browser = await chromium.launch({ executablePath, args: FLAGS });
try {
  await world(browser);
  await live(browser);
  console.log(JSON.stringify({ ok: true }));
} catch (error) {
  console.log(JSON.stringify({ ok: false, problem: String(error.stack || error) }));
} finally {
  await browser.close();
}
