// Loads onnxruntime-web: exactly the files whose hashes are in runtime.json, from this site or from a public CDN.

/**
 * runtime: {base, script: {name, integrity}, wasm: {name, integrity}}; here: the URL of the page's folder.
 * Returns the module. Throws an Error in words.
 */
export async function loadRuntime(runtime, here) {
  if (typeof WebAssembly !== "object") {
    throw new Error("This browser has no WebAssembly, or it is switched off. Allow it, or use another browser.");
  }
  const load = ({ name, integrity }) => loadFile(new URL(runtime.base + name, here), integrity);
  const [script, binary] = await Promise.all([load(runtime.script), load(runtime.wasm)]);
  const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  try {
    const ort = await import(url);
    ort.env.wasm.numThreads = 1; // more need headers that static hosts do not send
    ort.env.wasm.wasmBinary = binary;
    return ort;
  } finally {
    URL.revokeObjectURL(url);
  }
}

async function loadFile(url, integrity) {
  let response;
  try {
    response = await fetch(url, { integrity });
  } catch {
    throw new Error(`${url} cannot be loaded, or it is not the file that this page was made for. Is there a network?`);
  }
  if (!response.ok) throw new Error(`${url} cannot be loaded: the server answered ${response.status}.`);
  return response.arrayBuffer();
}
