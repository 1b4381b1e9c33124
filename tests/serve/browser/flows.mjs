// What people do with the page, in a real browser against a real server. One line of JSON for each flow.
// Run: node flows.mjs CHROMIUM URL URL_WITH_KEY KEY URL_OF_TINY_MODELS [FLOW...]

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const [, , executablePath, url, lockedUrl, key, tinyUrl, ...only] = process.argv;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const PATIENCE = 60_000;
const LONGEST_JOB = 240_000; // the first one of a model also loads it
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"];

function check(fact, what) {
  if (!fact) throw new Error(what);
}
const same = (a, b, what) => check(a === b, `${what}: ${JSON.stringify(a)} is not ${JSON.stringify(b)}`);

const api = async (path, body, address = url) => {
  const answer = await fetch(address + path, body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  check(answer.ok, `${path}: ${answer.status} ${await answer.clone().text()}`);
  return answer.json();
};
const make = (values) => api("/v1/videos", { model: "nano-t2v", seconds: 0.5, steps: 1, seed: 7, ...values });
async function until(id, test, address = url) {
  const end = Date.now() + LONGEST_JOB;
  for (;;) {
    const job = await api(`/v1/jobs/${id}`, undefined, address);
    if (test(job)) return job;
    check(Date.now() < end, `${id} is still ${job.status}`);
    await new Promise((wake) => setTimeout(wake, 100));
  }
}
const over = (id, address = url) => until(id, (job) => ["completed", "failed", "cancelled"].includes(job.status), address);
const clear = async () => {
  for (const job of (await api("/v1/jobs/cancel?which=all", {})).data) await over(job.id);
};
const newest = async (address = url) => (await api("/v1/jobs?limit=1", undefined, address)).data[0];

/** A page; everything that breaks the policy, or is an error, is collected. */
async function open(browser, { address = url, ...options } = {}) {
  const context = await browser.newContext({ locale: "en-GB", viewport: { width: 1280, height: 800 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  page.faults = [];
  page.on("pageerror", (error) => page.faults.push(String(error)));
  page.on("console", (line) => /Content Security Policy|Refused to/.test(line.text()) && page.faults.push(line.text()));
  page.on("request", (request) => {
    if (!/^(blob|data):/.test(request.url()) && new URL(request.url()).origin !== new URL(address).origin) page.faults.push(`foreign ${request.url()}`);
  });
  await page.goto(address);
  await page.waitForSelector(address === lockedUrl ? ".gate" : "#prompt:enabled");
  return page;
}

async function more(page, values) {
  if (!(await page.locator("#steps").isVisible())) await page.click("details.fold > summary");
  for (const [name, value] of Object.entries(values)) await page.fill(`#${name}`, String(value));
}
const shortest = (page) => page.locator("#seconds").fill("0.5");
const cardOf = (page, id) => page.locator(`[data-card="${id}"]`);

async function accessible(page, where) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const bad = found.violations.filter((one) => one.impact === "serious" || one.impact === "critical");
  check(!bad.length, `${where}: ${bad.map((one) => `${one.id} ${one.nodes.map((node) => `${node.target} ${node.failureSummary}`).join("; ")}`).join(" | ")}`);
}

const FLOWS = {
  /** An example, a preview before the end, a clip that plays and can be downloaded. */
  async generate(browser) {
    const page = await open(browser);
    const text = await page.locator(".examples .chip").first().textContent();
    await page.locator(".examples .chip").first().click();
    same(await page.inputValue("#prompt"), text, "the prompt");
    await shortest(page);
    await more(page, { steps: 60, seed: 5 });
    await page.click("button[type=submit]");
    await page.waitForFunction(() => document.querySelector(".running .preview img")?.naturalWidth > 0);
    check(/^Step \d+ of 60/.test(await page.textContent(".running-phase span")), "the phase");
    const job = await newest();
    await page.click(".queue button[aria-pressed=true]");
    same(await page.locator(".running .preview").count(), 0, "previews that are switched off");
    await cardOf(page, job.id).click();
    await page.waitForFunction(() => document.querySelector(".viewer video")?.readyState >= 2 && document.querySelector(".viewer video").videoWidth === 96);
    const link = await page.getAttribute(".viewer a[download]", "href");
    const got = await fetch(url + link);
    same(got.headers.get("content-type"), "video/mp4", "the download");
    check(/attachment/.test(got.headers.get("content-disposition")), "it is no attachment");
    const done = await api(`/v1/jobs/${job.id}`);
    same(`${done.seed} ${done.request.steps}`, "5 60", "settings");
    return page;
  },

  /** The queue belongs to the server: reload, and the progress is there; close, and the job goes on. */
  async survives(browser) {
    const page = await open(browser);
    await page.fill("#prompt", "a snowman");
    await shortest(page);
    await more(page, { steps: 80 });
    await page.click("button[type=submit]");
    await page.waitForFunction(() => Number(/Step (\d+)/.exec(document.querySelector(".running-phase")?.textContent)?.[1]) >= 3);
    await page.reload();
    await page.waitForSelector(".running .preview img");
    const step = await page.waitForFunction(() => Number(/Step (\d+)/.exec(document.querySelector(".running-phase")?.textContent)?.[1]));
    check((await step.jsonValue()) >= 3, "the step is lost");
    const job = await newest();
    await page.close();
    same((await over(job.id)).status, "completed", "a job without its page");
    const again = await open(browser);
    await cardOf(again, job.id).waitFor();
    return again;
  },

  /** Stills go on without their page, too. */
  async still(browser) {
    const page = await open(browser);
    await page.click("input[name=mode][value=image]");
    await page.fill("#prompt", "a red heart");
    await more(page, { steps: 60 });
    await page.click("button[type=submit]");
    await page.waitForSelector(".running");
    const job = await newest();
    same(job.object, "image", "the kind");
    await page.close();
    same((await over(job.id)).status, "completed", "a still without its page");
    const again = await open(browser);
    await cardOf(again, job.id).click();
    await again.waitForFunction(() => document.querySelector(".viewer .stage img")?.naturalWidth === 96);
    await again.click(".viewer button:has-text('Start from this image')");
    same(await again.inputValue("#model"), "nano-i2v", "a model that takes an image");
    check(await again.locator(".slot.full").isVisible(), "no image in the form");
    return again;
  },

  /** Cancel one, those that wait, all. */
  async cancel(browser) {
    await clear();
    const jobs = [];
    for (let i = 0; i < 5; i++) jobs.push(await make({ steps: 600, prompt: `a panda ${i}` }));
    const page = await open(browser);
    await page.click(`.waiting[data-job="${jobs[2].id}"] button`);
    same((await over(jobs[2].id)).status, "cancelled", "one");
    same((await api(`/v1/jobs/${jobs[3].id}`)).status, "queued", "another");
    await page.click("text=Cancel waiting");
    for (const i of [1, 3, 4]) same((await over(jobs[i].id)).status, "cancelled", "those that wait");
    same((await until(jobs[0].id, (job) => job.status !== "queued")).status, "in_progress", "the one that runs");
    const other = await make({ steps: 600, prompt: "a panda" });
    await page.waitForSelector(`[data-job="${other.id}"]`);
    await page.click("text=Cancel all");
    for (const id of [jobs[0].id, other.id]) same((await over(id)).status, "cancelled", "all");
    await page.waitForFunction(() => !document.querySelector(".queue"));
    const last = await make({ steps: 600, prompt: "a panda" });
    await page.waitForSelector(`.running[data-job="${last.id}"]`);
    await page.evaluate(() => document.activeElement?.blur());
    await page.keyboard.press("Shift+X");
    same((await over(last.id)).status, "cancelled", "by key");
    return page;
  },

  /** Settings from the gallery, and from a file that is dropped on the page; what had no effect is struck out. */
  async reuse(browser) {
    const job = await over((await make({ prompt: "a snowman near a zeppelin", steps: 3, guidance: 1.5, seed: 11 })).id);
    const page = await open(browser);
    await cardOf(page, job.id).click();
    check((await page.locator(".viewer s").allTextContents()).includes("zeppelin"), "the word without effect");
    await page.click(".viewer button:has-text('Reuse all')");
    await page.click("details.fold > summary");
    const form = () => page.evaluate(() => ["prompt", "steps", "guidance", "seed"].map((id) => document.getElementById(id).value).join("|"));
    same(await form(), "a snowman near a zeppelin|3|1.5|11", "reuse all");
    check(/zeppelin/.test(await page.textContent("#prompt-notes")), "the form does not say what had no effect");
    await cardOf(page, job.id).click();
    await page.click(".viewer button:has-text('All but the seed')");
    same(await form(), "a snowman near a zeppelin|3|1.5|", "all but the seed");
    await page.reload();
    await page.waitForSelector("#prompt:enabled");
    await page.fill("#prompt", "a cat");
    await page.evaluate(async (path) => {
      const blob = await (await fetch(path)).blob();
      const data = new DataTransfer();
      data.items.add(new File([blob], "result.mp4", { type: "video/mp4" }));
      dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    }, `/v1/jobs/${job.id}/content`);
    await page.waitForSelector("dialog blockquote");
    await page.click("dialog button:has-text('The seed') >> nth=-1");
    await page.click("details.fold > summary");
    same(await form(), "a cat|||11", "the seed of a file");
    await page.evaluate(async (path) => {
      const blob = await (await fetch(path)).blob();
      const data = new DataTransfer();
      data.items.add(new File([blob], "result.mp4", { type: "video/mp4" }));
      dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    }, `/v1/jobs/${job.id}/content`);
    await page.click("dialog button:has-text('Reuse all')");
    await page.waitForFunction(() => document.getElementById("prompt").value.includes("zeppelin"));
    same(await form(), "a snowman near a zeppelin|3|1.5|11", "all of a file");
    return page;
  },

  /** An image by drop, by paste and as a file. */
  async image(browser) {
    const page = await open(browser);
    const give = (kind) => page.evaluate(async (how) => {
      const canvas = Object.assign(document.createElement("canvas"), { width: 96, height: 96 });
      canvas.getContext("2d").fillRect(20, 20, 50, 50);
      const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
      const data = new DataTransfer();
      data.items.add(new File([blob], `${how}.png`, { type: "image/png" }));
      const event = how === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }) : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
      document.body.dispatchEvent(event);
    }, kind);
    await give("drop");
    await page.waitForSelector(".slot.full:has-text('drop.png')");
    same(await page.inputValue("#model"), "nano-i2v", "a model that takes an image");
    await page.click(".slot.full button");
    await give("paste");
    await page.waitForSelector(".slot.full:has-text('paste.png')");
    await page.click(".slot.full button");
    const bytes = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==", "base64");
    await page.setInputFiles("input[data-field=image]", { name: "dot.png", mimeType: "image/png", buffer: bytes });
    await page.waitForSelector(".slot.full:has-text('dot.png')");
    await shortest(page);
    await more(page, { steps: 1 });
    const before = (await newest())?.id;
    await page.click("button[type=submit]");
    await page.waitForSelector(".toast");
    const job = await over((await newest()).id);
    check(job.id !== before && job.model === "nano-i2v", "no job");
    same(job.status, "completed", job.error?.message || "the job");
    await cardOf(page, job.id).click();
    await page.click(".viewer button:has-text('Reuse all')");
    await page.waitForSelector(".slot.full");
    return page;
  },

  /** Known frames, clips that are changed and joined, prompts by time: by file, drop and paste, with the keyboard. */
  async guides(browser) {
    await clear();
    const source = await over((await make({ prompt: "a panda", seconds: 2 })).id);
    const clip = Buffer.from(await (await fetch(`${url}/v1/jobs/${source.id}/content`)).arrayBuffer());
    const page = await open(browser);
    const still = Buffer.from(await page.evaluate(() => {
      const canvas = Object.assign(document.createElement("canvas"), { width: 96, height: 96 });
      const pen = canvas.getContext("2d");
      pen.fillStyle = "white";
      pen.fillRect(0, 48, 96, 48);
      return canvas.toDataURL("image/png").split(",")[1];
    }), "base64");
    const png = (name) => ({ name, mimeType: "image/png", buffer: still });
    const mp4 = (name) => ({ name, mimeType: "video/mp4", buffer: clip });
    const give = (selector, how, { name, mimeType, buffer }) => page.evaluate(([where, kind, text, type, data]) => {
      const given = new DataTransfer();
      given.items.add(new File([Uint8Array.from(atob(data), (one) => one.charCodeAt(0))], text, { type }));
      const told = { bubbles: true, cancelable: true };
      const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: given, ...told }) : new ClipboardEvent("paste", { clipboardData: given, ...told });
      document.querySelector(where).dispatchEvent(event);
    }, [selector, how, name, mimeType, buffer.toString("base64")]);
    const add = async (kind) => {
      await page.focus(`[data-add=${kind}]`);
      await page.keyboard.press("Enter");
    };
    const sent = async () => {
      const before = (await newest()).id;
      await page.click("button[type=submit]");
      for (let end = Date.now() + PATIENCE; ; await page.waitForTimeout(100)) {
        check(!(await page.locator(".problem").count()), (await page.locator(".problem").allTextContents()).join());
        const last = await newest();
        if (last.id !== before) return over(last.id);
        check(Date.now() < end, "nothing was sent");
      }
    };
    await page.fill("#prompt", "a panda");
    await more(page, { steps: 1, seed: 3 });
    // known frames
    await add("last");
    same(await page.evaluate(() => document.activeElement.dataset.field), "last-last", "the focus");
    await give("input[data-field=last-last]", "paste", png("end.png"));
    await page.waitForSelector("[data-guide=last] .slot.full:has-text('end.png')");
    await add("frames");
    await give("[data-guide=frames] .slot", "drop", mp4("middle.mp4"));
    await page.waitForSelector("[data-guide=frames] .slot.full:has-text('middle.mp4')");
    same(await page.locator("dialog[open], .slot.full").count(), 2, "a file in its place alone");
    await page.getByLabel("Begin at, s").fill("0.5");
    await page.getByLabel("Use to, s").fill("0.4");
    // prompts by time, in windows
    await add("later");
    await page.keyboard.type("a cat");
    await page.getByLabel("From second").fill("1.5");
    await page.fill("#seconds-exact", "3");
    await page.keyboard.press("Tab");
    await page.waitForSelector("#seconds-hint:has-text('windows')");
    const known = await sent();
    same(known.status, "completed", known.error?.message || "known frames");
    same(JSON.stringify(known.request.prompt_at), '[{"prompt":"a cat","at":1.5}]', "the prompts by time");
    same(JSON.stringify(known.request.conditions), '[{"frames":"condition-1-frames","at":"0.5s","cut":":0.4s"}]', "the frames");
    check(known.request.last_image && known.frames === 37, `the last frame, and ${known.frames} frames`);
    await cardOf(page, known.id).click();
    await page.click(".viewer button:has-text('Reuse all')");
    check(/give them again/.test(await page.locator(".toast").allTextContents().then((all) => all.join())), "files that are gone");
    same(await page.locator(".later input[type=text]").inputValue(), "a cat", "a prompt used again");
    await page.click(".later button");
    // a result is changed, with a mask
    await cardOf(page, source.id).click();
    await page.click(".viewer button:has-text('Change')");
    await page.waitForSelector("[data-guide=source] .slot.full");
    await page.click("[data-guide=source] .segments label:has-text('A part')");
    await page.click("button[type=submit]");
    check(/mask/.test(await page.textContent(".problem")), "a part is asked for");
    await page.setInputFiles("input[data-field=source-mask]", png("half.png"));
    await page.waitForSelector("[data-guide=source] .slot.full:has-text('half.png')");
    await page.fill("#seconds-exact", "2");
    await page.keyboard.press("Tab");
    await accessible(page, "guides");
    const changed = await sent();
    same(`${changed.status} ${changed.request.mask !== undefined}`, "completed true", changed.error?.message || "a masked clip");
    await page.click("[data-guide=source] header button");
    // two clips are joined: a result, and a file
    await cardOf(page, source.id).click();
    await page.click(".viewer button:has-text('Join')");
    await page.setInputFiles("input[data-field=join-second]", mp4("second.mp4"));
    await page.waitForSelector("[data-guide=join] .slot.full >> nth=1");
    const joined = await sent();
    same(joined.status, "completed", joined.error?.message || "a join");
    same(joined.request.conditions.map((one) => one.frames).join(), `${source.id},condition-2-frames`, "both clips");
    await page.click(".languages button[lang=ru]");
    await page.waitForSelector("[data-guide=join] h2:has-text('Соединить два клипа')");
    await page.setViewportSize({ width: 390, height: 844 });
    check((await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)) <= 0, "the page is wider than the screen");
    if (process.env.SHOTS) await page.screenshot({ path: `${process.env.SHOTS}/guides.png` });
    return page;
  },

  /** A clip is made larger as it is made, a result by one click, and a file by what changes of it. */
  async larger(browser) {
    await clear();
    const page = await open(browser);
    const sent = async (act) => {
      const before = (await newest())?.id;
      await act();
      for (let end = Date.now() + PATIENCE; ; await page.waitForTimeout(100)) {
        const last = await newest();
        if (last && last.id !== before) return over(last.id);
        check(Date.now() < end, "nothing was sent");
      }
    };
    const send = () => page.click("button[type=submit]");
    await page.fill("#prompt", "a panda");
    await shortest(page);
    await more(page, { steps: 2, seed: 3 });
    await page.fill("#upscale", "big");
    await send();
    check(/1920x1080/.test(await page.textContent(".problem")), "it does not say what is allowed");
    await page.fill("#upscale", "1.5");
    await page.fill("#upscale_strength", "0.5");
    const large = await sent(send);
    same(`${large.status} ${large.size} ${large.request.upscale} ${large.request.upscale_strength}`, "completed 144x144 1.5 0.5", large.error?.message || "a larger clip");
    await cardOf(page, large.id).click();
    await page.waitForSelector(".viewer video");
    await page.waitForFunction(() => document.querySelector(".viewer video").videoWidth === 144);
    check(/144 × 144/.test(await page.textContent(".viewer .facts")), "its size is not told");
    await accessible(page, "a larger clip");
    const larger = await sent(() => page.click(".viewer button:has-text('Make larger')"));
    same(`${larger.status} ${larger.size} ${larger.frames}`, `completed 288x288 ${large.frames}`, larger.error?.message || "twice as large");
    await page.waitForFunction(() => !document.querySelector("dialog[open]"));
    // all its settings again: the clip is there, as it is, and its size is what changes
    await cardOf(page, larger.id).click();
    await page.click(".viewer button:has-text('Reuse all')");
    await page.waitForSelector("[data-guide=source] .slot.full");
    check(await page.locator("[data-guide=source] .segments label:has-text('Its size') input").isChecked(), "what changes");
    await more(page, { steps: 2 });
    same(await page.inputValue("#upscale"), "2", "how much larger");
    if (process.env.SHOTS) await page.screenshot({ path: `${process.env.SHOTS}/larger.png`, fullPage: true });
    await page.fill("#upscale", "192x240");
    const other = await sent(send);
    same(`${other.status} ${other.size}`, "completed 192x240", other.error?.message || "by size");
    await page.click("[data-guide=source] header button");
    await page.click(".languages button[lang=ru]");
    await page.waitForSelector("label[for=upscale]:has-text('Увеличить')");
    await page.setViewportSize({ width: 390, height: 844 });
    check((await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)) <= 0, "the page is wider than the screen");
    return page;
  },

  /** A grid over seeds and steps, two of it compared, with a slider and side by side. */
  async grid(browser) {
    await clear();
    const page = await open(browser);
    await page.fill("#prompt", `a star on a purple background`);
    await shortest(page);
    await more(page, { seed: 3 });
    await page.check(".fold .check input");
    await page.fill("#grid-seed", "2");
    await page.fill("#grid-steps", "1, 2");
    check(/Generate 4/.test(await page.textContent("button[type=submit]")), "how many");
    await page.click("button[type=submit]");
    await page.waitForSelector(".toast");
    const jobs = (await api("/v1/jobs?limit=4")).data;
    same(jobs.map((job) => `${job.seed}/${job.request.steps}`).sort().join(" "), "3/1 3/2 4/1 4/2", "the grid");
    for (const job of jobs) same((await over(job.id)).status, "completed", "a cell");
    await cardOf(page, jobs[0].id).click();
    await page.click(".viewer button:has-text('Grid')");
    await page.waitForFunction(() => document.querySelectorAll(".grid-table button.cell").length === 4);
    await page.keyboard.press("Escape");
    await page.click(".gallery .actions button:has-text('Compare')");
    await cardOf(page, jobs[0].id).click();
    await cardOf(page, jobs[3].id).click();
    await page.waitForFunction(() => [...document.querySelectorAll(".versus video")].filter((one) => one.readyState >= 2).length === 2);
    await page.locator(".versus-controls input[type=range]").fill("20");
    const clip = () => page.evaluate(() => getComputedStyle(document.querySelector(".versus-two")).clipPath);
    check(/20%/.test(await clip()), `the slider: ${await clip()}`);
    const box = await page.locator(".versus").boundingBox();
    await page.mouse.click(box.x + box.width * 0.75, box.y + box.height / 2);
    check(/7[456]%/.test(await clip()), `the slider by mouse: ${await clip()}`);
    check((await page.locator(".differs").count()) === 2, "differences: seed and steps");
    await accessible(page, "compare");
    await page.click(".segments label:has-text('Side by side')");
    same(await clip(), "none", "side by side");
    return page;
  },

  /** Sound for a clip that was made. */
  async sound(browser) {
    const job = await over((await make({ prompt: "a rocket" })).id);
    const page = await open(browser);
    await cardOf(page, job.id).click();
    await page.click(".viewer button:has-text('Add sound')");
    await page.waitForSelector(".toast");
    const heard = await over((await newest()).id);
    same(`${heard.object} ${heard.status}`, "audio completed", "sound");
    await cardOf(page, heard.id).click();
    await page.waitForFunction(() => document.querySelector(".viewer video, .viewer audio")?.readyState >= 2);
    check(!(await page.evaluate(() => document.querySelector(".viewer video, .viewer audio").muted)), "it is muted");
    return page;
  },

  /** An answer that arrives after its job has ended leaves the result where it is. */
  async late(browser) {
    await clear();
    const page = await open(browser);
    await page.route("**/v1/videos", async (route) => {
      const answer = await route.fetch();
      const { id } = await answer.json();
      await cardOf(page, id).waitFor({ timeout: LONGEST_JOB });
      await route.fulfill({ response: answer });
    });
    await page.fill("#prompt", "a snowman");
    await shortest(page);
    await more(page, { steps: 1 });
    const answered = page.waitForResponse((one) => one.url().endsWith("/v1/videos"), { timeout: LONGEST_JOB });
    await page.click("button[type=submit]");
    const { id, status } = await (await answered).json();
    check(["queued", "in_progress"].includes(status), `the answer says ${status}`);
    await page.waitForTimeout(500);
    same(await cardOf(page, id).count(), 1, "the result");
    same(await page.locator(".running, .waiting").count(), 0, "the queue");
    return page;
  },

  /** From the prompt to the result and back without a mouse. */
  async keyboard(browser) {
    await clear();
    const page = await open(browser);
    await page.keyboard.press("/");
    await page.keyboard.type("a panda <img src=x onerror=document.title='hacked'> <script>1</script>");
    await shortest(page);
    await more(page, { steps: 1 });
    await page.focus("#prompt");
    await page.keyboard.press("Control+Enter");
    await page.waitForSelector(".toast");
    const job = await over((await newest()).id);
    await cardOf(page, job.id).focus();
    await page.keyboard.press("ArrowRight");
    check((await page.evaluate(() => document.activeElement.dataset.card)) !== job.id, "arrows in the gallery");
    await page.keyboard.press("ArrowLeft");
    await page.keyboard.press("Enter");
    await page.waitForSelector("dialog[open] .viewer-prompt");
    same(await page.locator(".viewer-prompt img, .card-prompt img").count(), 0, "markup of a prompt");
    check((await page.textContent(".viewer-prompt")).includes("<script>1</script>"), "the prompt as text");
    same(await page.title(), "Kandinsky", "the title");
    await page.keyboard.press("Escape");
    same(await page.locator("dialog[open]").count(), 0, "the dialog");
    same(await page.evaluate(() => document.activeElement.dataset.card), job.id, "the focus");
    await page.evaluate(() => document.activeElement.blur());
    await page.keyboard.press("?");
    await page.waitForSelector("dialog .shortcuts");
    return page;
  },

  /** Russian, kept over a reload. */
  async languages(browser) {
    const page = await open(browser);
    await page.click(".languages button[lang=ru]");
    await page.waitForFunction(() => document.documentElement.lang === "ru");
    check(/Создать/.test(await page.textContent("button[type=submit]")), "the button");
    await page.reload();
    await page.waitForSelector("#prompt:enabled");
    check(/Создать/.test(await page.textContent("button[type=submit]")), "after a reload");
    const bare = await page.evaluate(async () => {
      const keys = Object.keys(await (await fetch("page/languages/en.json")).json());
      return keys.filter((name) => name.includes(".") && document.body.innerText.includes(name));
    });
    same(bare.join(" "), "", "keys without their texts");
    check((await page.locator(".examples .chip").first().textContent()).match(/[а-я]/), "examples");
    const other = await open(browser, { locale: "ru-RU" });
    same(await other.evaluate(() => document.documentElement.lang), "ru", "the browser's language");
    return page;
  },

  /** No serious finding of axe, in light and dark; with a job in the queue. */
  async accessible(browser) {
    await clear();
    const done = await over((await make({ prompt: "a cat" })).id);
    await make({ steps: 600, prompt: "a rocket" });
    await make({ steps: 600, prompt: "a star" });
    let page;
    for (const colorScheme of ["light", "dark"]) {
      page = await open(browser, { colorScheme });
      await page.waitForSelector(".running .preview img");
      await page.click("details.fold > summary");
      await page.waitForTimeout(500);
      await accessible(page, `the page, ${colorScheme}`);
      await cardOf(page, done.id).click();
      await page.waitForSelector("dialog[open]");
      await accessible(page, `a result, ${colorScheme}`);
    }
    await clear();
    return page;
  },

  /** A phone: nothing sticks out, and everything is within reach. */
  async phone(browser) {
    const page = await open(browser, { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true });
    await page.fill("#prompt", "a robot on a pink background");
    const wide = () => page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    check((await wide()) <= 0, "the page is wider than the screen");
    await shortest(page);
    await more(page, { steps: 1 });
    await page.tap("button[type=submit]");
    await page.waitForSelector(".toast");
    const job = await over((await newest()).id);
    await cardOf(page, job.id).tap();
    await page.waitForSelector("dialog[open] video");
    check((await page.evaluate(() => document.querySelector("dialog").scrollWidth - document.querySelector("dialog").clientWidth)) <= 0, "the dialog is wider than the screen");
    await accessible(page, "a phone");
    check((await wide()) <= 0, "the page is wider than the screen");
    return page;
  },

  /** LoRAs, masks, prompt expansion and continuation: each where a model can, and nowhere else. */
  async able(browser) {
    const nano = await open(browser);
    check(!(await nano.locator("#lora, .slot input[data-field=mask]").count()), "Nano has neither LoRAs here nor masks");
    check(!/Expand the prompt/.test(await nano.textContent(".settings")), "Nano expands no prompts");
    const page = await open(browser, { address: tinyUrl });
    const sent = async () => {
      const before = (await newest(tinyUrl))?.id; // the word of its success may still stand
      await page.click("button[type=submit]");
      let made;
      for (let end = Date.now() + LONGEST_JOB; !made && Date.now() < end; await page.waitForTimeout(100)) {
        check(!(await page.locator(".problem").count()), (await page.locator(".problem").allTextContents()).join());
        const last = await newest(tinyUrl);
        if (last && last.id !== before) made = last;
      }
      check(made, "nothing was sent");
      const job = await over(made.id, tinyUrl);
      same(job.status, "completed", job.error?.message || "the job");
      return job;
    };
    await page.selectOption("#model", "tiny-t2v");
    await page.fill("#prompt", "a cat on a sofa");
    await page.locator("#seconds").fill("0.5");
    await more(page, { steps: 1, seed: 3 });
    await page.selectOption("#lora", "other");
    await page.fill("#lora-scale", "0.5");
    await page.check(".settings label:has-text('Expand the prompt') input");
    const job = await sent();
    same(`${job.request.lora} ${job.request.expand}`, "other:0.5 true", "what was asked for");
    await cardOf(page, job.id).click();
    check(await page.locator(".viewer summary:has-text('Prompt as the model expanded it')").count(), "what the model wrote");
    check(/other:0\.5/.test(await page.textContent(".viewer .facts")), "the LoRA of a result");
    await page.click(".viewer button:has-text('Reuse all')");
    await page.click("details.fold > summary");
    same(`${await page.inputValue("#lora")} ${await page.inputValue("#lora-scale")}`, "other 0.5", "the LoRA used again");
    await cardOf(page, job.id).click();
    await page.click(".viewer button:has-text('Continue')");
    same(`${await page.inputValue("#model")} ${await page.isChecked("input[name=mode][value=extend]")}`, "tiny-t2v true", "a model that continues");
    await page.locator("#seconds").fill("0.5");
    await more(page, { steps: 1 });
    const longer = await sent();
    check(longer.frames > job.frames, `${longer.frames} frames are not more than ${job.frames}`);
    await page.click("input[name=mode][value=image]");
    await page.selectOption("#model", "kandinsky3.0-inpaint");
    const png = async (colour, half) =>
      Buffer.from(await page.evaluate(async ([fill, width]) => {
        const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
        const pen = canvas.getContext("2d");
        for (const [shade, wide] of [["black", 64], [fill, width]]) Object.assign(pen, { fillStyle: shade }).fillRect(0, 0, wide, 64);
        return canvas.toDataURL("image/png").split(",")[1];
      }, [colour, half]), "base64");
    await page.fill("#prompt", "a cat");
    await page.setInputFiles("input[data-field=image]", { name: "room.png", mimeType: "image/png", buffer: await png("orange", 64) });
    await page.waitForSelector(".slot.full:has-text('room.png')");
    await page.click("button[type=submit]");
    check(/mask/.test(await page.textContent(".problem")), "a mask is asked for");
    await page.setInputFiles("input[data-field=mask]", { name: "half.png", mimeType: "image/png", buffer: await png("white", 32) });
    await page.waitForSelector(".slot.full:has-text('half.png')");
    await more(page, { steps: 1 });
    await accessible(page, "image and mask");
    const painted = await sent();
    same(`${painted.object} ${painted.model}`, "image kandinsky3.0-inpaint", "the image");
    if (process.env.SHOTS) await page.screenshot({ path: `${process.env.SHOTS}/mask.png` });
    check(!page.faults.length, `faults: ${page.faults.join(" | ")}`);
    return nano;
  },

  /** Who asks for less motion gets none by itself. */
  async calm(browser) {
    const page = await open(browser, { reducedMotion: "reduce" });
    same(await page.evaluate(() => document.getAnimations().filter((one) => one.playState === "running").length), 0, "animations");
    return page;
  },

  /** A server with a key lets in who has it, and keeps the others out. */
  async key(browser) {
    const page = await open(browser, { address: lockedUrl });
    await accessible(page, "the gate");
    await page.fill("#key", "a wrong key of some length");
    await page.click(".gate button");
    await page.waitForFunction(() => document.querySelector("#gate-problem").textContent.length > 5);
    await page.fill("#key", key);
    await page.click(".gate button");
    await page.waitForSelector("#prompt:enabled");
    check(!(await page.evaluate(() => document.cookie)).length, "the cookie can be read by scripts");
    check(!(await page.evaluate((text) => JSON.stringify(localStorage).includes(text), key)), "the key is kept");
    await page.reload();
    await page.waitForSelector("#prompt:enabled");
    await page.click(".top-acts button[aria-label='Forget the key']");
    await page.waitForSelector(".gate");
    return page;
  },

  /** The server is away: the page says so, and goes on when it is back. */
  async offline(browser) {
    const page = await open(browser);
    await page.route("**/v1/**", (route) => route.abort());
    await page.route("**/ready", (route) => route.abort());
    await page.evaluate(() => dispatchEvent(new Event("offline")));
    await page.waitForSelector(".banner");
    check(await page.locator("button[type=submit]").isDisabled(), "it can be sent");
    await page.unroute("**/v1/**");
    await page.unroute("**/ready");
    await page.waitForFunction(() => !document.querySelector(".banner"));
    return page;
  },
};

const browser = await chromium.launch({ executablePath, args: FLAGS });
for (const [name, flow] of Object.entries(FLOWS)) {
  if (only.length && !only.includes(name)) continue;
  const begun = Date.now();
  const told = { flow: name, ok: true, problem: "" };
  try {
    const page = await flow(browser);
    check(!page.faults.length, `faults: ${page.faults.join(" | ")}`);
  } catch (error) {
    Object.assign(told, { ok: false, problem: String(error.stack || error) });
  }
  for (const context of browser.contexts()) await context.close();
  console.log(JSON.stringify({ ...told, seconds: (Date.now() - begun) / 1000 }));
}
await browser.close();
