// Keeps the page, onnxruntime-web and the model, for when there is no network.
// With one, everything is asked for again, so that nothing is out of date.

const CACHE = "redimnet2";

async function keepAll() {
  const cache = await caches.open(CACHE);
  const files = await (await fetch("files.json")).json();
  await cache.addAll(["./", "files.json", ...files]);
  // The model may be one that the user chooses.
  await cache.add("model.onnx").catch(() => {});
  await self.skipWaiting();
}

async function answer(event) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(event.request, { cache: "no-cache" });
    if (response.ok) {
      event.waitUntil(cache.put(event.request, response.clone()));
    }
    return response;
  } catch (error) {
    const options = { ignoreSearch: true };
    const kept = await cache.match(event.request, options);
    if (kept) return kept;
    throw error;
  }
}

self.addEventListener("install", (event) => event.waitUntil(keepAll()));
self.addEventListener("activate", (event) =>
  event.waitUntil(self.clients.claim()),
);
self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && new URL(url).origin === self.location.origin) {
    event.respondWith(answer(event));
  }
});
