// A live session: a WebSocket, frames that are decoded as they come, and a clock that shows them evenly.

import * as api from "./api.js";
import { Decoder, formats } from "./live-decoder.js";

const HEAD = 16; // bytes before each packet: number of the frame, chunk, second
const LEAD_S = 0.1; // that the first frames wait, so that those that come a little late are in time
const CATCH_UP = 0.85; // pace when frames pile up
const METER_MS = 500;
const HIDDEN_MS = 60_000; // nobody looks for so long: the worker is needed elsewhere

const offered = formats(); // asked once
const now = () => performance.now() / 1000;

/** One session. `tell` gets what has changed, by name; see the values below. */
export class Stream {
  constructor(canvas, tell, onLocked) {
    this.canvas = canvas;
    this.tell = tell;
    this.onLocked = onLocked;
    this.frames = []; // decoded, in order
    this.told = new Map(); // prompts by number: when they were sent, and the chunk from which they hold
    this.count = 0;
    this.due = null; // when the next frame is to be shown
    this.pace = 0; // seconds a frame, as they are made
    this.shown = [];
    this.over = false;
    this.wrong = ""; // the newest error, which is why the session ends if it does
  }

  start(values) {
    this.fps = 12;
    this.fresh = true; // nothing was heard of the session yet
    this.tell({ phase: "connecting", prompt: "", wanted: values.prompt, error: "", reason: "", fps: null, factor: null, delay: null, unused: [], dropped: 0 });
    this.socket = api.live();
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = async () => this.say({ type: "start", ...values, format: await offered });
    this.socket.onmessage = (event) => (typeof event.data === "string" ? this.word(JSON.parse(event.data)) : this.frame(event.data));
    this.socket.onclose = () => this.gone();
    this.meter = setInterval(() => this.measure(), METER_MS);
    this.watch = () => this.look();
    document.addEventListener("visibilitychange", this.watch);
    this.tick = requestAnimationFrame(() => this.draw());
  }

  say(word) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(word));
  }

  prompt(text) {
    this.told.set(++this.count, { at: now(), prompt: text });
    this.tell({ wanted: text });
    this.say({ type: "prompt", prompt: text, id: this.count });
  }

  /** Do something until the next call; null: stop doing it. */
  act(action) {
    this.say({ type: "action", action });
  }

  save(seconds) {
    this.tell({ saving: true });
    this.say({ type: "save", seconds, id: ++this.count });
  }

  stop() {
    this.say({ type: "stop" });
    this.end("stopped");
  }

  /** The socket closed without a word: of one that never opened, the reason is had by asking in another way. */
  async gone() {
    if (this.over) return;
    if (this.fresh) {
      const refused = await api.models().then(() => null, (error) => error);
      if (refused?.status === 401) return this.end("locked"), this.onLocked();
    }
    this.end("gone");
  }

  /** The session is over, for the first reason that is told. */
  end(reason) {
    if (this.over) return;
    this.over = true;
    clearInterval(this.meter);
    clearTimeout(this.unseen);
    cancelAnimationFrame(this.tick);
    document.removeEventListener("visibilitychange", this.watch);
    this.socket.close();
    this.frames.forEach((one) => one.image.close());
    this.frames = [];
    this.decoder?.close();
    this.tell({ phase: "ended", reason, saving: false, error: reason === "failed" ? this.wrong : "" });
  }

  word(word) {
    switch (word.type) {
      case "session":
        this.fresh = false;
        this.fps = word.fps;
        this.canvas.width = word.width;
        this.canvas.height = word.height;
        this.tell({ seed: word.seed, keeps: word.keeps_s, width: word.width, height: word.height, last: word.prompt, actions: word.actions || [] });
        break;
      case "phase":
        this.tell({ phase: word.phase, place: word.place });
        break;
      case "applied":
        if (this.told.has(word.id)) this.told.get(word.id).chunk = word.chunk;
        break;
      case "chunk":
        this.tell({ factor: word.frames / this.fps / word.made_s, unused: word.unused_words, dropped: word.dropped });
        this.pace = this.chunk?.chunk > 0 ? 0.5 * this.pace + (0.5 * word.made_s) / word.frames : word.made_s / word.frames;
        this.chunk = word;
        break;
      case "saved":
        this.tell({ saving: false, saved: word });
        break;
      case "error":
        this.wrong = word.error.message;
        if (this.fresh) this.end("failed"); // the session could not begin
        else this.tell({ saving: false, complaint: word.error.message });
        break;
      case "end":
        this.end(word.reason);
        break;
    }
  }

  async frame(data) {
    const head = new DataView(data, 0, HEAD);
    const [number, chunk, at] = [head.getUint32(0), head.getUint32(4), head.getFloat64(8)];
    const { prompt, action, format, codec, keys } = this.chunk;
    const told = { number, chunk, at, prompt, action, format };
    const packet = new Uint8Array(data, HEAD);
    this.say({ type: "ack", frame: number });
    if (codec) return this.decode(told, packet, codec, keys.includes(number));
    if (document.hidden) return;
    this.put(told, await createImageBitmap(new Blob([packet], { type: "image/jpeg" })));
  }

  /** Coded frames build on those before, so they are decoded in a hidden tab too. */
  decode(told, packet, codec, isKey) {
    try {
      if (this.decoder?.codec !== codec) {
        this.decoder?.close();
        this.decoder = new Decoder(codec, (of, image) => this.put(of, image), () => this.undecoded());
      }
      this.decoder.take(told, packet, isKey);
    } catch {
      this.undecoded();
    }
  }

  /** The browser cannot after all: JPEG from the next chunk on. */
  undecoded() {
    if (!this.over) this.say({ type: "format", format: "jpeg" });
  }

  put(told, image) {
    if (this.over || document.hidden) return image.close();
    const place = this.frames.findIndex((one) => one.number > told.number);
    this.frames.splice(place < 0 ? this.frames.length : place, 0, { ...told, image });
  }

  draw() {
    this.tick = requestAnimationFrame(() => this.draw());
    if (!this.frames.length) return;
    if (this.due === null) this.due = now() + LEAD_S;
    if (now() < this.due) return;
    const most = this.chunk.frames; // that may wait; a model that is slower than its rate is shown slower, not in bursts
    while (this.frames.length > 2 * most) this.frames.shift().image.close();
    const pace = Math.max(1 / this.fps, this.pace) * (this.frames.length > most + 2 ? CATCH_UP : 1);
    this.due = Math.max(this.due, now() - pace) + pace;
    const one = this.frames.shift();
    this.canvas.getContext("2d").drawImage(one.image, 0, 0, this.canvas.width, this.canvas.height);
    one.image.close();
    this.canvas.dataset.format = one.format;
    this.shown.push(now());
    this.seen(one);
  }

  /** What is told about a frame that is seen now. */
  seen(one) {
    for (const [id, told] of this.told) {
      if (told.chunk === undefined || told.chunk > one.chunk) continue;
      this.told.delete(id);
      if (told.prompt === one.prompt) this.tell({ delay: now() - told.at });
    }
    if (one.action !== this.seenAction) {
      this.seenAction = one.action;
      this.tell({ action: one.action });
    }
    if (one.prompt !== this.seenPrompt || one.number === 0) {
      this.seenPrompt = one.prompt;
      this.tell({ phase: "live", prompt: one.prompt, at: one.at });
    }
  }

  measure() {
    const span = 2;
    this.shown = this.shown.filter((at) => now() - at < span);
    if (this.seenPrompt !== undefined) this.tell({ fps: this.shown.length / span });
  }

  look() {
    clearTimeout(this.unseen);
    if (document.hidden) {
      this.frames.forEach((one) => one.image.close());
      this.frames = [];
      this.unseen = setTimeout(() => (this.say({ type: "stop" }), this.end("hidden")), HIDDEN_MS);
    }
  }
}
