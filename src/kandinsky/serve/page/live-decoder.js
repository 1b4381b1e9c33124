// Coded video of a live session, by WebCodecs: which formats this browser takes, and a decoder of one.

/** What a browser is asked about, by format; the best first. */
const CODECS = { h264: "avc1.42C01E", vp9: "vp09.00.10.08" };
const setting = (codec) => ({ codec, optimizeForLatency: true });

async function takes(codec) {
  try {
    return (await VideoDecoder.isConfigSupported(setting(codec))).supported === true;
  } catch {
    return false;
  }
}

/** The formats that this browser shows, the best first; WebCodecs is there on pages of https and of this machine alone. */
export async function formats() {
  if (typeof VideoDecoder !== "function") return ["jpeg"];
  const found = await Promise.all(Object.entries(CODECS).map(async ([format, codec]) => ((await takes(codec)) ? [format] : [])));
  return [...found.flat(), "jpeg"];
}

/** A decoder of one codec: `onFrame` gets each image with what was said of it, `onFault` is told once. */
export class Decoder {
  constructor(codec, onFrame, onFault) {
    this.codec = codec;
    this.told = new Map(); // by number, which is the timestamp
    this.begun = false;
    this.inner = new VideoDecoder({
      output: (image) => {
        const told = this.told.get(image.timestamp);
        this.told.delete(image.timestamp);
        onFrame(told, image);
      },
      error: onFault,
    });
    this.inner.configure(setting(codec));
  }

  /** Take a packet; those before the first key frame show nothing. */
  take(told, data, isKey) {
    if (this.inner.state !== "configured" || !(this.begun || isKey)) return;
    this.begun = true;
    this.told.set(told.number, told);
    this.inner.decode(new EncodedVideoChunk({ type: isKey ? "key" : "delta", timestamp: told.number, data }));
  }

  close() {
    if (this.inner.state !== "closed") this.inner.close();
  }
}
