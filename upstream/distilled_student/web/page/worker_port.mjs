// Talks with the worker: messages that are answered once, and events.

export class WorkerPort {
  constructor(worker) {
    this.worker = worker;
    this.handlers = {};
    this.asked = new Map(); // id -> {resolve, reject}
    this.ids = 0;
    worker.onmessage = ({ data }) => this.receive(data);
    worker.onerror = (event) => {
      const error = new Error(event.message || "The worker of this page cannot be loaded. Is the site complete?");
      for (const { reject } of this.asked.values()) reject(error);
      this.asked.clear();
    };
  }

  postMessage(message, transfer) {
    this.worker.postMessage(message, transfer);
  }

  send(type, content = {}, transfer = []) {
    this.worker.postMessage({ type, ...content }, transfer);
  }

  /** Send a message and wait for its answer. Rejects with an Error in words. */
  ask(type, content, transfer = []) {
    const id = ++this.ids;
    return new Promise((resolve, reject) => {
      this.asked.set(id, { resolve, reject });
      this.send(type, { ...content, id }, transfer);
    });
  }

  /** Call a function for each message of a type; it replaces the one before. */
  on(type, handler) {
    this.handlers[type] = handler;
  }

  receive(data) {
    const asked = this.asked.get(data.id);
    if (!asked) {
      this.handlers[data.type]?.(data);
      return;
    }
    this.asked.delete(data.id);
    if (data.type === "error") asked.reject(new Error(data.message));
    else asked.resolve(data);
  }
}
