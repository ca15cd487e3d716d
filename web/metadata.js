// The custom metadata of an ONNX file, which onnxruntime's JavaScript API does
// not give.

const METADATA_PROPS = 14; // of ModelProto
const KEY = 1; // of StringStringEntryProto
const VALUE = 2;
// Wire types of protobuf.
const VARINT = 0;
const EIGHT_BYTES = 1;
const WITH_LENGTH = 2;
const FOUR_BYTES = 5;

/**
 * Reads the custom metadata of an ONNX file.
 *
 * @param {Uint8Array} bytes The whole file.
 * @returns {Record<string, string>}
 * @throws {Error} If the bytes are no protobuf message.
 */
export function readMetadata(bytes) {
  /** @type {Record<string, string>} */
  const metadata = {};
  for (const [number, entry] of fields(bytes)) {
    if (number !== METADATA_PROPS) continue;
    const texts = ["", ""];
    for (const [part, text] of fields(entry)) {
      if (part === KEY || part === VALUE) {
        texts[part - KEY] = new TextDecoder().decode(text);
      }
    }
    metadata[texts[0]] = texts[1];
  }
  return metadata;
}

/**
 * Yields number and content of the fields that have a length; of the others
 * nothing is wanted here.
 *
 * @param {Uint8Array} bytes
 * @returns {Generator<[number, Uint8Array]>}
 */
function* fields(bytes) {
  let position = 0;

  function varint() {
    let value = 0;
    // No bit operations: they would cut off at 32 bits.
    for (let scale = 1; scale < 2 ** 70; scale *= 128) {
      const byte = bytes[position++];
      value += (byte % 128) * scale;
      if (byte < 128) return value;
    }
    throw new Error("no protobuf message");
  }

  while (position < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    const number = Math.floor(tag / 8);
    let length = 0;
    if (kind === VARINT) varint();
    else if (kind === EIGHT_BYTES) length = 8;
    else if (kind === FOUR_BYTES) length = 4;
    else if (kind === WITH_LENGTH) length = varint();
    else throw new Error("no protobuf message");
    if (number < 1 || position + length > bytes.length) {
      throw new Error("no protobuf message");
    }
    const content = bytes.subarray(position, position + length);
    if (kind === WITH_LENGTH) yield [number, content];
    position += length;
  }
}
