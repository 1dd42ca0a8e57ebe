// Where samples come from: the microphone, or a file.

const REASONS = {
  NotAllowedError: "The browser did not allow the microphone. Allow it next to the address of this page, or open a file.",
  NotFoundError: "There is no microphone. Connect one, or open a file.",
  NotReadableError: "The microphone cannot be used: another program may have it. Close that program, or open a file.",
};

const SOUND_MILLISECONDS = 1000; // after which a browser that has not begun to play allows no sound

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** The microphone, whose samples go to the worker at a rate. Throws an Error in words. */
export class Microphone {
  static async open(worker, rate) {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("This address cannot use the microphone: open the page by https or on localhost, or open a file.");
    }
    if (typeof AudioWorkletNode !== "function") {
      throw new Error("This browser cannot process audio in a page (AudioWorklet). Use a newer one, or open a file.");
    }
    const context = new AudioContext(); // before the first await: some browsers ask for a click
    try {
      const unprocessed = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
      const media = await navigator.mediaDevices.getUserMedia({ audio: unprocessed });
      await context.audioWorklet.addModule(new URL("worklet.mjs", import.meta.url));
      await context.resume();
      return new Microphone(context, media, worker, rate);
    } catch (error) {
      await context.close();
      throw new Error(REASONS[error.name] ?? `The microphone cannot be used (${error.message}). Open a file instead.`);
    }
  }

  constructor(context, media, worker, rate) {
    Object.assign(this, { context, media });
    this.node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0, processorOptions: { rate } });
    const { port1, port2 } = new MessageChannel(); // from the audio thread to the worker, not through the page
    this.node.port.postMessage({ port: port1 }, [port1]);
    worker.postMessage({ type: "port", port: port2 }, [port2]);
    context.createMediaStreamSource(media).connect(this.node);
    media.getAudioTracks()[0].addEventListener("ended", () => this.onended?.());
  }

  async close() {
    this.node.port.postMessage({ close: true });
    this.media.getTracks().forEach((track) => track.stop());
    await this.context.close();
  }
}

/** The samples of an audio file at a rate, averaged over its channels. Throws an Error in words. */
export async function readFile(file, rate) {
  const context = new OfflineAudioContext(1, 1, rate);
  let audio;
  try {
    audio = await context.decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} is not an audio file that this browser can read. Try .wav, .mp3 or .m4a.`);
  }
  const samples = new Float32Array(audio.length);
  for (let channel = 0; channel < audio.numberOfChannels; channel++) {
    audio.getChannelData(channel).forEach((sample, i) => (samples[i] += sample / audio.numberOfChannels));
  }
  return samples;
}

/** Plays samples, and gives them to feed as they are played. */
export class Player {
  constructor(samples, rate, feed) {
    Object.assign(this, { samples, rate, feed, fed: 0 });
    this.context = new AudioContext();
    const buffer = this.context.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(samples, 0);
    this.source = this.context.createBufferSource();
    this.source.buffer = buffer;
    this.source.connect(this.context.destination);
  }

  /** Play until the end, or until close. Returns how many samples were given: none if the browser allows no sound. */
  async play() {
    await Promise.race([this.context.resume(), wait(SOUND_MILLISECONDS)]);
    if (this.context.state !== "running") return 0;
    const begin = this.context.currentTime;
    this.source.start();
    while (this.fed < this.samples.length && this.context.state === "running") {
      this.feedUpTo(Math.floor((this.context.currentTime - begin) * this.rate));
      await wait(20);
    }
    return this.fed;
  }

  feedUpTo(end) {
    const part = this.samples.slice(this.fed, end);
    this.fed += part.length;
    if (part.length) this.feed(part);
  }

  async close() {
    if (this.context.state !== "closed") await this.context.close();
  }
}
