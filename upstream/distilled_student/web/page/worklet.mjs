// In the audio thread: averages the channels, resamples them to the model's rate and sends them to the worker.

import { Resampler } from "./resampler.mjs";

const PACKET = 320; // samples of a message: 20 ms

class Microphone extends AudioWorkletProcessor {
  constructor({ processorOptions: { rate } }) {
    super();
    this.resampler = new Resampler(sampleRate, rate);
    this.packet = new Float32Array(PACKET);
    this.filled = 0;
    this.isOpen = true;
    this.port.onmessage = ({ data }) => {
      if (data.port) this.worker = data.port;
      else this.isOpen = false;
    };
  }

  process([channels]) {
    if (this.isOpen && this.worker && channels.length) {
      for (const sample of this.resampler.process(average(channels))) {
        this.packet[this.filled++] = sample;
        if (this.filled === PACKET) this.send();
      }
    }
    return this.isOpen;
  }

  send() {
    const samples = this.packet;
    this.packet = new Float32Array(PACKET);
    this.filled = 0;
    this.worker.postMessage({ samples, sent: Date.now() }, [samples.buffer]);
  }
}

function average(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length);
}

registerProcessor("microphone", Microphone);
