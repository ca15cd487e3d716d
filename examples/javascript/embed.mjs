// Embeds a recording in Node, after `npm ci` in the folder web:
//
//     redimnet2 export b3-vox2-lm --output b3.onnx
//     node examples/javascript/embed.mjs b3.onnx a.wav
//
// prints the embedding as JSON. Elsewhere it is `from "redimnet2-web"`.
import { readFile } from "node:fs/promises";
import { load } from "../../web/redimnet2.js";

/** Samples of a WAV file of 16 bits, 16 kHz and one channel. */
function samplesOf(file, path) {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const word = (at) => file.toString("latin1", at, at + 4);
  let format;
  const isWav = file.length > 12 && word(0) + word(8) === "RIFFWAVE";
  for (let at = 12; isWav && at + 24 <= file.length; ) {
    const size = view.getUint32(at + 4, true);
    if (word(at) === "fmt ") {
      format = [8, 10, 12, 22].map((n) => view.getUint16(at + n, true)).join();
    } else if (word(at) === "data" && format === "1,1,16000,16") {
      const count = Math.min(size, file.length - at - 8) >> 1;
      return Float32Array.from(
        { length: count },
        (_, n) => view.getInt16(at + 8 + 2 * n, true) / 32768,
      );
    }
    at += 8 + size + (size % 2);
  }
  throw new Error(`${path}: no WAV file of 16 bits, 16 kHz and one channel`);
}

const [model, path] = process.argv.slice(2);
try {
  if (path === undefined) throw new Error("give a model.onnx and a file.wav");
  const recognition = await load(await readFile(model));
  const difference = await recognition.check();
  console.error(`model as exported, within ${difference.toExponential(1)}`);
  const embedding = await recognition.embed(
    samplesOf(await readFile(path), path),
  );
  console.log(JSON.stringify(Array.from(embedding)));
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
}
